//! The program itself: exit codes, output, signals.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

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
    let mut child = Command::new(env!("CARGO_BIN_EXE_dormouse"))
        .args(["serve", store.to_str().unwrap(), "--listen", "127.0.0.1:0"])
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
    fails(&home, &["mirror", &path("file")], 2, "live mirroring is not there yet");
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
    std::fs::create_dir(&store).unwrap();
    let header = "format = \"dormouse store\"\nversion = 99\n";
    std::fs::write(store.join("dormouse-store"), header).unwrap();
    let s = store.to_str().unwrap();
    for args in [&["serve", s][..], &["invite", s, "c", "--url", "h"], &["scrub", s], &["join", s]]
    {
        fails(&dir.path().join("home"), args, 7, "version 99");
    }
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 1);
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
