//! The program as others see it: its command line, its exit codes, its processes.
//! Every process is bounded in time and is ended by its own handle.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dormouse_format::record::{HEADER_LEN, Header, Kind, MAGIC};
use serde_json::Value;

/// No command of these tests takes longer.
const LIMIT: Duration = Duration::from_secs(60);
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_dormouse");

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Ends well, or the test fails.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// Fails with this code, names all `words`, and says a way out.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "'{word}' is not in: {}", self.err);
        }
        let at = self.err.find("dormouse: ").unwrap_or_else(|| panic!("no error in: {}", self.err));
        assert!(self.err[at..].contains("\n  "), "no way out in: {}", self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self
    }

    /// The JSON events, one a line.
    pub fn events(&self) -> Vec<Value> {
        self.out
            .lines()
            .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}")))
            .collect()
    }

    /// The only event of this name.
    #[track_caller]
    pub fn event(&self, name: &str) -> Value {
        let mut all: Vec<_> = self.events().into_iter().filter(|v| v["event"] == name).collect();
        assert_eq!(all.len(), 1, "{name}: {self:?}");
        all.remove(0)
    }

    /// All of the output as one JSON value.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// A command that runs.
pub struct Running {
    pub child: Child,
    out: PathBuf,
    err: PathBuf,
    since: Instant,
}

impl Running {
    /// What it has said so far on its standard error.
    pub fn err(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap()
    }

    pub fn out(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap()
    }

    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Whether it has opened a file that has no name (yet).
    pub fn holds_unnamed_file(&self) -> bool {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        let links =
            fds.into_iter().flatten().filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        links.into_iter().any(|l| l.to_string_lossy().ends_with(" (deleted)"))
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// kill -9.
    pub fn kill(mut self) -> Said {
        let _ = self.child.kill();
        self.wait()
    }

    /// Waits for its end; one that hangs is killed, and then has no code.
    pub fn wait(&mut self) -> Said {
        let code = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status.code();
            }
            if self.since.elapsed() > LIMIT {
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!("a command took more than {LIMIT:?}: {}", self.err());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        Said { code, out: self.out(), err: self.err() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.out);
        let _ = std::fs::remove_file(&self.err);
    }
}

/// A server process; killed when dropped.
pub struct Serving {
    pub child: Child,
    pub address: String,
}

impl Serving {
    /// `dormouse serve`, on this address.
    pub fn start(store: &Path, listen: &str) -> Self {
        Self::start_with(store, listen, &[])
    }

    /// With more arguments.
    pub fn start_with(store: &Path, listen: &str, more: &[&str]) -> Self {
        Self::start_by(Command::new(PROGRAM), store, listen, more)
    }

    /// With so many open files at most.
    pub fn start_limited(store: &Path, listen: &str, files: u32) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\""), PROGRAM]);
        Self::start_by(shell, store, listen, &[])
    }

    fn start_by(mut command: Command, store: &Path, listen: &str, more: &[&str]) -> Self {
        let log = File::options().create(true).append(true).open(log_of(store)).unwrap();
        let mut child = command
            .args(["serve", text(store), "--listen", listen])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some(address) = line.trim().strip_prefix("listening on ") else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the server did not start: {}", std::fs::read_to_string(log_of(store)).unwrap());
        };
        Self { child, address: address.to_owned() }
    }

    /// kill -9.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// SIGTERM, and a good end.
    pub fn stop(mut self) {
        self.signal(rustix::process::Signal::TERM);
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a server on this store logs to: beside it.
pub fn log_of(store: &Path) -> PathBuf {
    store.with_extension("log")
}

/// A directory with a store, homes and images in it.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// With 'home' joined to the directory 'store', and a kit exported.
    pub fn joined() -> Self {
        let place = Self::new();
        place.run(&["join", place.name("store").as_str()]).ok();
        place.run(&["recovery-kit", place.name("kit").as_str()]).ok();
        place
    }

    /// With 'home' joined to a server on 'store', and a kit exported.
    pub fn served() -> (Self, Serving) {
        let place = Self::new();
        let server = place.serve("127.0.0.1:0");
        place.join_server("home", "laptop", &server);
        place.run(&["recovery-kit", place.name("kit").as_str()]).ok();
        (place, server)
    }

    pub fn serve(&self, listen: &str) -> Serving {
        Serving::start(&self.path("store"), listen)
    }

    pub fn invite(&self, client: &str, server: &Serving) -> String {
        let store = self.name("store");
        let said = self.run(&["invite", &store, client, "--url", &server.address]).ok();
        said.out.trim().to_owned()
    }

    pub fn join_server(&self, home: &str, client: &str, server: &Serving) {
        let invite = self.invite(client, server);
        self.run_in(home, &["join", &invite]).ok();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The names in the place, without what commands print.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> =
            names.filter(|n| !n.starts_with(".out-") && !n.starts_with(".err-")).collect();
        names.sort();
        names
    }

    /// A path as an argument.
    pub fn name(&self, name: &str) -> String {
        text(&self.path(name)).to_owned()
    }

    /// Starts a command with 'home'.
    pub fn start(&self, args: &[&str]) -> Running {
        self.start_in("home", args)
    }

    pub fn start_in(&self, home: &str, args: &[&str]) -> Running {
        self.start_with(home, args, |_| {})
    }

    /// With a change to the command.
    pub fn start_with(
        &self,
        home: &str,
        args: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> Running {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (out, err) = (self.path(&format!(".out-{n}")), self.path(&format!(".err-{n}")));
        let mut command = Command::new(PROGRAM);
        command
            .args(args)
            .env("DORMOUSE_HOME", self.path(home))
            .env("TZ", "UTC")
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap());
        change(&mut command);
        let child = command.spawn().unwrap();
        Running { child, out, err, since: Instant::now() }
    }

    /// Runs a command with 'home' to its end.
    pub fn run(&self, args: &[&str]) -> Said {
        self.run_in("home", args)
    }

    pub fn run_in(&self, home: &str, args: &[&str]) -> Said {
        self.start_in(home, args).wait()
    }

    /// `mirror IMAGE --once --json`, with 'done' of its events.
    #[track_caller]
    pub fn mirror(&self, image: &str) -> Value {
        self.run(&["mirror", &self.name(image), "--once", "--json"]).ok().event("done")
    }

    /// Restores and compares bit for bit.
    #[track_caller]
    pub fn restores(&self, what: &str, expected: &[u8]) {
        self.restores_in("home", what, expected);
    }

    #[track_caller]
    pub fn restores_in(&self, home: &str, what: &str, expected: &[u8]) {
        let dest = self.name(&format!("restored-{}", what.replace(['@', ' ', ':'], "-")));
        self.run_in(home, &["restore", what, &dest]).ok();
        same(Path::new(&dest), expected);
        std::fs::remove_file(dest).unwrap();
    }

    /// Everything in the store that is data: vaults and clients, without caches,
    /// the lock, the log and who was seen.
    pub fn store(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let data = |p: &Path| {
            !["lock", "seen.json", "seen.json.new"].iter().any(|name| p.ends_with(name))
                && !p.components().any(|c| c.as_os_str() == "index")
        };
        super::snapshot(&self.path("store")).into_iter().filter(|(p, _)| data(p)).collect()
    }

    /// The segments of the store's only vault, in order.
    pub fn segments(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for vault in std::fs::read_dir(self.path("store/vaults")).into_iter().flatten() {
            for file in std::fs::read_dir(vault.unwrap().path().join("segments")).unwrap() {
                all.push(file.unwrap().path());
            }
        }
        all.retain(|p| p.extension().is_some_and(|e| e == "seg"));
        all.sort();
        all
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Compares a file with bytes, without printing them.
#[track_caller]
pub fn same(path: &Path, expected: &[u8]) {
    let got = std::fs::read(path).unwrap();
    assert_eq!(got.len(), expected.len(), "{}", path.display());
    if got != expected {
        let at = got.iter().zip(expected).position(|(a, b)| a != b).unwrap();
        panic!("{} differs from byte {at} on", path.display());
    }
}

/// Numbers that look random, the same ones for a seed.
#[derive(Debug, Clone)]
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Bytes that do not compress.
    pub fn noise(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// Bytes that do.
    pub fn words(&mut self, len: usize) -> Vec<u8> {
        const WORDS: [&str; 8] =
            ["disk ", "point ", "block ", "sleep ", "mouse ", "winter ", "nut\n", "dorm "];
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(WORDS[self.below(8) as usize].as_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// Whether this test can mount; says so if not.
pub fn is_root(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: {what} needs root, for a small file system");
    }
    root
}

/// A small file system in memory; gone when dropped.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None`, and said so, where that cannot be.
    pub fn mount(at: &Path, size_kib: u64, what: &str) -> Option<Self> {
        if !is_root(what) {
            return None;
        }
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={size_kib}k");
        let out =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        match out {
            Ok(out) if out.status.success() => Some(Self(at.to_owned())),
            Ok(out) => {
                eprintln!("SKIPPED: {what}: {}", String::from_utf8_lossy(&out.stderr));
                None
            }
            Err(e) => {
                eprintln!("SKIPPED: {what}: no mount here: {e}");
                None
            }
        }
    }

    pub fn resize(&self, size_kib: u64) {
        let size = format!("remount,size={size_kib}k");
        let status = Command::new("mount").args(["-o", &size]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A store is as it was, but for marks (notes of the server on how far its own files are
/// durable) at the end of a segment.
#[track_caller]
pub fn same_store(was: &[(PathBuf, Vec<u8>)], is: &[(PathBuf, Vec<u8>)]) {
    let names = |all: &[(PathBuf, Vec<u8>)]| all.iter().map(|(p, _)| p.clone()).collect::<Vec<_>>();
    assert_eq!(names(was), names(is));
    for ((path, was), (_, is)) in was.iter().zip(is) {
        let shown = path.display();
        let Some(new) = is.strip_prefix(&was[..]) else { panic!("{shown} was changed") };
        let kinds: Vec<_> = records_of(new).iter().map(|(_, h)| h.kind).collect();
        let marks = !kinds.is_empty() && kinds.iter().all(|k| *k == Kind::Mark);
        assert!(new.is_empty() || marks, "{shown} has {} bytes more: {kinds:?}", new.len());
    }
}

/// The records of a segment's file whose header holds: where each begins, and its header.
pub fn records(segment: &Path) -> Vec<(usize, Header)> {
    records_of(&std::fs::read(segment).unwrap())
}

fn records_of(bytes: &[u8]) -> Vec<(usize, Header)> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(head) = bytes.get(at..).and_then(|b| b.first_chunk::<HEADER_LEN>()) {
        let header = (head[..4] == MAGIC).then(|| dormouse_crypt::record::check_header(head).ok());
        match header.flatten() {
            Some(header) => {
                found.push((at, header));
                at += HEADER_LEN + header.body_len as usize;
            }
            None => at += 1,
        }
    }
    found
}

/// The chunks of a segment's file.
pub fn chunks(segment: &Path) -> Vec<(usize, Header)> {
    records(segment).into_iter().filter(|(_, h)| h.kind == Kind::Chunk).collect()
}
