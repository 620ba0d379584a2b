//! The program itself: exit codes, output, signals.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use dormouse::store_dir::StoreDir;
use dormouse::text::{now_ns, parse_time};

fn dormouse(home: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dormouse"))
        .args(args)
        .env("DORMOUSE_HOME", home)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn fails(home: &Path, args: &[&str], code: i32, words: &str) {
    let out = dormouse(home, args);
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
    assert!(text.contains(words), "{args:?}: '{words}' is not in: {text}");
}

struct Serving(Child, String);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(store: &Path) -> Serving {
    serve_with(store, &[])
}

fn serve_with(store: &Path, more: &[&str]) -> Serving {
    let mut child = Command::new(env!("CARGO_BIN_EXE_dormouse"))
        .args(["serve", store.to_str().unwrap(), "--listen", "127.0.0.1:0"])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").unwrap().to_owned();
    Serving(child, address)
}

#[test]
fn each_bad_input_has_its_code_and_its_words() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("file"), "x").unwrap();
    std::fs::create_dir(path("full")).unwrap();
    std::fs::write(path("full/x"), "x").unwrap();
    fails(&home, &["mirror"], 2, "SOURCE");
    fails(&home, &["mirror", &path("file")], 4, "nothing is joined");
    fails(&home, &["mirror", &path("file"), "--json"], 2, "--once");
    fails(&home, &["mirror", &path("file"), "--once"], 4, "nothing is joined");
    fails(&home, &["status"], 4, "nothing is joined");
    fails(&home, &["invite", &path("none"), "c", "--url", "h"], 4, "no store");
    fails(&home, &["invite", &path("file"), "c", "--url", "h"], 8, "not a directory");
    fails(&home, &["serve", &path("full")], 8, "not empty");
    fails(&home, &["scrub", &path("full")], 8, "not a Dormouse store");
    fails(&home, &["join", "dormouse://h:1/c#abc"], 2, "not a whole invite");
    fails(&home, &["join", "--kit", &path("no-kit")], 10, "no file");
    fails(&home, &["restore", "v@soon", &path("d")], 2, "not a time");
    fails(&home, &["serve", &path("s"), "--listen", "nonsense"], 2, "cannot listen");
    let out = dormouse(&home, &["--help"]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("Exit codes"));
    assert!(dormouse(&home, &["man"]).status.success());
    assert!(dormouse(&home, &["completions", "bash"]).status.success());
    assert!(!home.exists() || std::fs::read_dir(&home).unwrap().count() <= 1);
}

#[test]
fn a_newer_store_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("s");
    let header = "format = \"dormouse store\"\nversion = 99\n";
    let made = StoreDir::open_or_create(&store).unwrap();
    made.state().write("dormouse-store", header, 0o644).unwrap();
    let before = common::snapshot(&store);
    let s = store.to_str().unwrap();
    for args in [&["serve", s][..], &["invite", s, "c", "--url", "h"], &["scrub", s], &["join", s]]
    {
        fails(&dir.path().join("home"), args, 7, "version 99");
    }
    assert_eq!(common::snapshot(&store), before);
}

/// A store in a directory, joined by a home, with a volume 'v' of one point.
struct Small {
    dir: tempfile::TempDir,
}

impl Small {
    fn new() -> Self {
        let small = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(small.path("v"), [7; 9000]).unwrap();
        for args in [&["join", &small.path("s")][..], &["mirror", &small.path("v"), "--once"]] {
            let out = dormouse(&small.home(), args);
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
        small
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn kit_exported(&self) -> bool {
        let out = dormouse(&self.home(), &["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        status["kit_exported"].as_bool().unwrap()
    }

    /// Runs each command that says something with an output that takes nothing; the codes are
    /// `code`, and what is said of it holds `words`.
    #[track_caller]
    fn with_output(&self, output: impl Fn() -> Stdio, code: i32, words: &str) {
        let (store, back, v) = (self.path("s"), self.path("back"), self.path("v"));
        let commands = [
            &["--help"][..],
            &["man"],
            &["completions", "bash"],
            &["points"],
            &["points", "--json"],
            &["volumes"],
            &["volumes", "--json"],
            &["clients", &store],
            &["clients", &store, "--json"],
            &["status"],
            &["vault", "show"],
            &["recovery-kit"],
            &["recovery-kit", "-", "--paper"],
            &["invite", &store, "c", "--url", "h"],
            &["scrub", &store],
            &["scrub", &store, "--json"],
            &["verify", "v"],
            &["verify", "v", "--json"],
            &["mirror", &v, "--once"],
            &["mirror", &v, "--once", "--json"],
            &["restore", "v", &back],
        ];
        for args in commands {
            let out = Command::new(env!("CARGO_BIN_EXE_dormouse"))
                .args(args)
                .env("DORMOUSE_HOME", self.home())
                .stdin(Stdio::null())
                .stdout(output())
                .stderr(Stdio::piped())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
            assert!(said.contains(words) && !said.contains("panicked"), "{args:?}: {said}");
            assert_eq!(said.contains("dormouse: "), !words.is_empty(), "{args:?}: {said}");
        }
        assert!(!self.kit_exported(), "a kit that nobody saw is none");
        // The work was done all the same.
        assert_eq!(std::fs::read(&back).unwrap(), [7; 9000]);
        let out = dormouse(&self.home(), &["points", "--json"]);
        let points: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(points.as_array().unwrap().len(), 3);
    }
}

#[test]
fn a_full_output_is_an_error_and_no_panic() {
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let words = "cannot write to standard output: No space left";
    Small::new().with_output(full, 11, words);
    // An error that cannot be told keeps its code.
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_dormouse"))
        .arg("status")
        .env("DORMOUSE_HOME", dir.path())
        .stderr(full())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(4));
}

#[test]
fn an_output_that_nobody_reads_ends_quietly() {
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    Small::new().with_output(closed, 141, "");
}

#[test]
fn the_kit_says_how_to_take_the_keys_off_the_machine() {
    let small = Small::new();
    let file = small.path("kit");
    for args in [&[][..], &["-"], &["--paper"], &["-", "--paper"], &[&*file]] {
        let out = dormouse(&small.home(), &[&["recovery-kit"], args].concat());
        let (said, kit) =
            (String::from_utf8_lossy(&out.stderr), String::from_utf8_lossy(&out.stdout));
        assert!(out.status.success(), "{said}");
        for words in ["Keep it somewhere else", "identity and authority", "off this machine"] {
            assert!(said.contains(words), "{args:?}: '{words}' is not in: {said}");
        }
        assert!(said.contains("\n    dormouse recovery-kit ANOTHER-FILE --offline"), "{said}");
        assert!(!kit.contains("--offline"), "advice is no part of the kit: {kit}");
        assert!(small.kit_exported());
    }
    let out = dormouse(&small.home(), &["recovery-kit", &small.path("kit2"), "--offline"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("no longer on this machine"), "{said}");
}

#[test]
fn everything_of_the_program_is_in_its_home() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("user")).unwrap();
    std::fs::write(path("v"), [7; 9000]).unwrap();
    let run = |home: Option<&str>, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dormouse"));
        command.args(args).env("HOME", path("user")).env_remove("DORMOUSE_HOME");
        for name in ["XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        if let Some(home) = home {
            command.env("DORMOUSE_HOME", path(home));
        }
        let out = command.stdin(Stdio::null()).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let in_user = || std::fs::read_dir(path("user")).unwrap().count();
    let (s, v, d) = (path("s"), path("v"), path("d"));
    run(Some("own"), &["join", &s]);
    run(Some("own"), &["mirror", &v, "--once"]);
    run(Some("own"), &["restore", "v", &d]);
    run(Some("own"), &["recovery-kit", &path("kit")]);
    assert_eq!(std::fs::read(&d).unwrap(), [7; 9000]);
    assert_eq!(in_user(), 0);
    assert!(Path::new(&path("own/client.toml")).exists());
    // The flag does the same, and without either it is the user's.
    run(None, &["--home", &path("own"), "points"]);
    assert_eq!(in_user(), 0);
    run(None, &["join", &s, "--kit", &path("kit")]);
    assert_eq!(in_user(), 1);
}

#[test]
fn invites_know_the_address_and_their_end() {
    let dir = tempfile::tempdir().unwrap();
    let (store, home) = (dir.path().join("s"), dir.path().join("h"));
    let s = store.to_str().unwrap();
    let server = serve_with(&store, &["--url", "backup.example.org:7447"]);
    let invite = |args: &[&str]| {
        let out = dormouse(&home, &[&["invite", s], args].concat());
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{said}");
        (String::from_utf8(out.stdout).unwrap().trim().to_owned(), said)
    };
    // From the configuration; a flag goes before it.
    let (known, _) = invite(&["a"]);
    assert!(known.starts_with("dormouse://backup.example.org:7447/a#"), "{known}");
    let (given, _) = invite(&["b", "--url", "10.0.0.7:1"]);
    assert!(given.starts_with("dormouse://10.0.0.7:1/b#"), "{given}");
    drop(server);
    let server = serve(&store);
    assert!(invite(&["c"]).0.starts_with("dormouse://backup.example.org:7447/c#"));

    let ends = |client: &str| {
        let out = dormouse(&home, &["clients", s, "--json"]);
        let value: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let mut open = value["invites"].as_array().unwrap().iter();
        let invite = open.find(|i| i["client"] == client)?;
        parse_time(invite["expires"].as_str().unwrap())
    };
    let minute = 60_000_000_000;
    for (client, expires, minutes) in [("d", "90m", 90), ("e", "7d", 7 * 24 * 60)] {
        invite(&[client, "--expires", expires]);
        let left = ends(client).unwrap() - now_ns();
        assert!((minute * (minutes - 1)..=minute * minutes).contains(&left), "{left}");
    }
    let left = ends("a").unwrap() - now_ns();
    assert!((minute * (24 * 60 - 1)..=minute * 24 * 60).contains(&left), "24h unless told: {left}");
    let (short, said) = invite(&["f", "--expires", "1ms", "--url", &server.1]);
    assert!(said.contains("valid once, until 20"), "{said}");
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(ends("f"), None);
    fails(&home, &["join", &short], 5, "expired");
    let there = || std::fs::read_dir(store.join("invites")).unwrap().count();
    let before = there();
    fails(&home, &["invite", s, "g", "--expires", "580y"], 2, "'580y' is too long");
    for wrong in ["0h", "-1h", "soon", "9999y", ""] {
        fails(&home, &["invite", s, "g", &format!("--expires={wrong}")], 2, "not a duration");
    }
    assert_eq!(there(), before);
}

#[test]
fn serve_invite_join_status_revoke_and_stop() {
    let dir = tempfile::tempdir().unwrap();
    let (store, home) = (dir.path().join("s"), dir.path().join("h"));
    let s = store.to_str().unwrap();
    let mut server = serve(&store);
    fails(&home, &["serve", s, "--listen", "127.0.0.1:0"], 12, "in use");
    fails(&home, &["invite", s, "c"], 2, "--url");
    let out = dormouse(&home, &["invite", s, "c", "--url", &server.1]);
    assert!(out.status.success());
    let invite = String::from_utf8(out.stdout).unwrap();
    assert_eq!(invite.lines().count(), 1);
    let out = dormouse(&home, &["join", invite.trim()]);
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && said.contains("recovery-kit"), "{said}");
    let out = dormouse(&home, &["status"]);
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && said.contains("no recovery kit"), "{said}");
    let out = dormouse(&home, &["clients", s, "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(value["clients"][0]["client"], "c");
    assert!(dormouse(&home, &["volumes"]).status.success());
    fails(&home, &["points", "v"], 4, "no volume 'v'");
    assert!(dormouse(&home, &["revoke", s, "c"]).status.success());
    fails(&home, &["volumes"], 5, "revoked");
    let began = Instant::now();
    let pid = rustix::process::Pid::from_child(&server.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(server.0.wait().unwrap().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5));
    fails(&home, &["volumes"], 6, "refused");
    assert!(dormouse(&home, &["scrub", s]).status.success());
}
