//! The daemon: its file, its signals, what it tells, and its end. With mirrors of the test's,
//! which do nothing but tell a state; and the real program as far as it needs no disk.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::assert_fails;
use common::program::{Place, Running};
use crossbeam_channel::Sender;
use dormouse::daemon::board::State;
use dormouse::daemon::config::MirrorConfig;
use dormouse::daemon::status_socket::{Document, documents};
use dormouse::daemon::{Mirrors, Options, Run, Signal, run_with};
use dormouse::exit::{Class, fail};
use dormouse::home::Home;
use dormouse::log::Log;
use rustix::process::Signal as Kill;

const LIMIT: Duration = Duration::from_secs(30);

/// Waits until something is so.
#[track_caller]
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A daemon in this process, with mirrors that tell LIVE and wait for the stop. Those of
/// `/stubborn` wait for `release` instead, and those of `/bad` fail.
struct Daemon {
    dir: tempfile::TempDir,
    signals: Sender<Signal>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
    log: Arc<Mutex<Vec<String>>>,
    /// `+device` and `-device`.
    seen: Arc<Mutex<Vec<String>>>,
    release: Arc<AtomicBool>,
}

impl Daemon {
    fn start(file: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mirror.toml");
        std::fs::write(&path, file).unwrap();
        Self::run(dir, Mirrors::File(path), Duration::from_secs(20))
    }

    fn run(dir: tempfile::TempDir, mirrors: Mirrors, stop_wait: Duration) -> Self {
        let (log, seen) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let release = Arc::new(AtomicBool::new(false));
        let (signals, told) = crossbeam_channel::unbounded();
        let options = Options {
            home: Home::locate(Some(dir.path().join("home"))).unwrap(),
            mirrors,
            run: fake(Arc::clone(&seen), Arc::clone(&release)),
            log: {
                let lines = Arc::clone(&log);
                Log::to(move |line| lines.lock().unwrap().push(line.to_owned()))
            },
            stop_wait,
        };
        let thread = Some(std::thread::spawn(move || run_with(options, &told)));
        Self { dir, signals, thread, log, seen, release }
    }

    fn home(&self) -> Home {
        Home::locate(Some(self.dir.path().join("home"))).unwrap()
    }

    fn reload(&self, file: &str) {
        std::fs::write(self.dir.path().join("mirror.toml"), file).unwrap();
        self.signals.send(Signal::Reload).unwrap();
    }

    fn logged(&self, words: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(words))
    }

    /// What mirrors started and ended since this was asked last, sorted.
    fn seen(&self) -> Vec<String> {
        let mut seen = std::mem::take(&mut *self.seen.lock().unwrap());
        seen.sort();
        seen
    }

    /// Waits until these volumes, and no others, are live.
    #[track_caller]
    fn live(&self, volumes: &[&str]) {
        until(&format!("{volumes:?} are live: {:?}", documents(&self.home())), || {
            let documents = documents(&self.home());
            let all: Vec<_> = documents.iter().flat_map(|d| &d.volumes).collect();
            let names: Vec<_> = all.iter().map(|v| v.volume.as_str()).collect();
            names == volumes && all.iter().all(|v| v.state == State::Live)
        });
    }

    fn stop(mut self) -> anyhow::Result<()> {
        self.signals.send(Signal::Stop).unwrap();
        self.end()
    }

    /// Waits for its end.
    #[track_caller]
    fn end(&mut self) -> anyhow::Result<()> {
        let thread = self.thread.take().unwrap();
        until("it has ended", || thread.is_finished());
        thread.join().unwrap()
    }

    fn metrics_address(&self) -> String {
        let log = self.log.lock().unwrap();
        let line = log.iter().rev().find_map(|l| l.strip_prefix("metrics are at http://"));
        line.unwrap().strip_suffix("/metrics").unwrap().to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.release.store(true, Ordering::Relaxed);
    }
}

fn fake(seen: Arc<Mutex<Vec<String>>>, release: Arc<AtomicBool>) -> Run {
    Arc::new(move |config, context| {
        let device = config.device.display().to_string();
        if device == "/bad" {
            return fail(Class::NotAuthorised, "revoked on purpose", "ask for a new invite");
        }
        seen.lock().unwrap().push(format!("+{device}"));
        context.board.update(&config.volume, |s| {
            s.state = State::Live;
            s.reason.clear();
        });
        context.log.line("lives");
        if device == "/stubborn" {
            while !release.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
        } else {
            let _ = context.stop.recv();
        }
        seen.lock().unwrap().push(format!("-{device}"));
        Ok(())
    })
}

fn mirrors(volumes: &[&str]) -> String {
    volumes.iter().map(|v| format!("[[mirror]]\ndevice = \"/{v}\"\n")).collect()
}

#[test]
fn a_reload_touches_what_changed_and_nothing_if_the_file_is_bad() {
    let daemon = Daemon::start(&mirrors(&["a", "b", "c"]));
    daemon.live(&["a", "b", "c"]);
    assert_eq!(daemon.seen(), ["+/a", "+/b", "+/c"]);
    assert!(daemon.logged("a: lives"), "its events carry the volume");
    daemon.reload("[[mirror]]\ndevice = \"/a\"\npoint-every = \"soon\"\nx = 1\n");
    until("the errors are logged", || daemon.logged("mirror.toml has 2 errors"));
    assert!(daemon.logged(":3:15: point-every: must be") && daemon.logged(":4:1: x: is not known"));
    daemon.live(&["a", "b", "c"]);
    assert_eq!(daemon.seen(), [""; 0], "nothing was touched");
    std::fs::remove_file(daemon.dir.path().join("mirror.toml")).unwrap();
    daemon.signals.send(Signal::Reload).unwrap();
    until("that it is gone is logged", || daemon.logged("there is no file"));
    // 'a' stays, 'b' is changed, 'c' goes, 'd' comes.
    let file = format!("{}level = 3\n{}", mirrors(&["a", "b"]), mirrors(&["d"]));
    daemon.reload(&file);
    until("the new ones run", || daemon.logged("d: lives"));
    daemon.live(&["a", "b", "d"]);
    assert_eq!(daemon.seen(), ["+/b", "+/d", "-/b", "-/c"]);
    daemon.reload(&file);
    until("it was read again", || {
        daemon.log.lock().unwrap().iter().filter(|l| l.contains("was read again")).count() == 2
    });
    assert_eq!(daemon.seen(), [""; 0], "the same file changes nothing");
    let seen = Arc::clone(&daemon.seen);
    daemon.stop().unwrap();
    let mut seen = seen.lock().unwrap().clone();
    seen.sort();
    assert_eq!(seen, ["-/a", "-/b", "-/d"], "all were told to stop, and did");
}

#[test]
fn a_failing_mirror_is_shown_and_ends_no_other() {
    let daemon = Daemon::start(&mirrors(&["bad", "good"]));
    until("the failure is shown", || {
        let told = documents(&daemon.home());
        let all: Vec<_> = told.iter().flat_map(|d| &d.volumes).collect();
        all.len() == 2
            && all[0].reason == "failed: revoked on purpose"
            && all[0].next_try_s.is_some()
            && all[0].notes == ["ask for a new invite"]
            && all[1].state == State::Live
    });
    assert!(daemon.logged("bad: revoked on purpose"));
    daemon.stop().unwrap();
}

#[test]
fn a_stop_is_bounded_and_a_second_signal_ends_at_once() {
    for (signals, stop_wait, why) in
        [(1, Duration::from_secs(1), "did not stop within"), (2, LIMIT * 2, "second signal")]
    {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mirror.toml");
        std::fs::write(&path, mirrors(&["a", "stubborn"])).unwrap();
        let mut daemon = Daemon::run(dir, Mirrors::File(path), stop_wait);
        daemon.live(&["a", "stubborn"]);
        for _ in 0..signals {
            daemon.signals.send(Signal::Stop).unwrap();
            // Nothing is read again any more.
            daemon.signals.send(Signal::Reload).unwrap();
            until("the other has ended", || daemon.logged("a: stopped"));
        }
        let ended = daemon.end();
        let text = format!("{:#}", ended.as_ref().unwrap_err());
        assert!(text.contains("stubborn") && !text.contains("of a,"), "{text}");
        assert_fails(ended, Class::Other, why);
    }
}

#[test]
fn the_failure_of_a_single_mirror_is_that_of_the_process() {
    let one = |device: &str| {
        let mirror = MirrorConfig::new(device.into());
        Daemon::run(tempfile::tempdir().unwrap(), Mirrors::One(mirror), LIMIT)
    };
    let mut bad = one("/bad");
    assert_fails(bad.end(), Class::NotAuthorised, "on purpose");
    let good = one("/good");
    good.live(&["good"]);
    good.signals.send(Signal::Reload).unwrap();
    until("there is no file", || good.logged("there is no file to read again"));
    good.stop().unwrap();
}

#[test]
fn status_and_metrics_move_with_the_file() {
    let daemon = Daemon::start(&format!("metrics = \"127.0.0.1:0\"\n{}", mirrors(&["a"])));
    daemon.live(&["a"]);
    let address = daemon.metrics_address();
    let mut http = TcpStream::connect(&address).unwrap();
    http.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    http.read_to_string(&mut answer).unwrap();
    let line = "\ndormouse_volume_state{volume=\"a\",state=\"LIVE\"} 1\n";
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains(line), "{answer}");
    // An address that cannot be had changes nothing.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_at = taken.local_addr().unwrap();
    daemon.reload(&format!("metrics = \"{taken_at}\"\n{}", mirrors(&["b"])));
    until("it is told", || daemon.logged(&format!("cannot serve metrics on {taken_at}")));
    daemon.live(&["a"]);
    TcpStream::connect(&address).unwrap();
    let socket = daemon.dir.path().join("elsewhere.sock");
    daemon.reload(&format!("status = {:?}\n{}", socket.to_str().unwrap(), mirrors(&["a"])));
    until("the socket is elsewhere", || socket.exists() && daemon.logged("was read again"));
    daemon.live(&["a"]);
    assert!(TcpStream::connect(&address).is_err());
    assert_eq!(daemon.seen(), ["+/a"], "the mirror was not touched");
    daemon.stop().unwrap();
    assert!(!socket.exists());
}

/// The real program with a file of mirrors; what its mirrors do is not looked at here.
struct Real {
    place: Place,
    file: PathBuf,
    running: Running,
}

impl Real {
    fn start(file: &str, change: impl FnOnce(&mut std::process::Command)) -> Self {
        let place = Place::joined();
        let path = place.path("mirror.toml");
        std::fs::write(&path, file).unwrap();
        let name = place.name("mirror.toml");
        let running = place.start_with("home", &["daemon", "--config", &name], change);
        Self { place, file: path, running }
    }

    fn documents(&self) -> Vec<Document> {
        documents(&Home::locate(Some(self.place.path("home"))).unwrap())
    }

    #[track_caller]
    fn mirrors(&self, volumes: &[&str]) {
        until(&format!("{volumes:?}: {}", self.running.err()), || {
            let documents = self.documents();
            let names: Vec<_> =
                documents.iter().flat_map(|d| &d.volumes).map(|v| v.volume.as_str()).collect();
            names == volumes
        });
    }
}

#[test]
fn the_program_answers_to_signals_and_tells_its_manager() {
    let dir = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    let mut real = Real::start(&mirrors(&["none/a", "none/b"]), |command| {
        command.env("NOTIFY_SOCKET", dir.path().join("notify")).env("WATCHDOG_USEC", "200000");
    });
    let mut heard = Vec::new();
    let mut hear = |what: &str| {
        let mut bytes = [0; 512];
        loop {
            let len = manager.recv(&mut bytes).unwrap_or_else(|e| panic!("{what}: {e}: {heard:?}"));
            heard.push(String::from_utf8(bytes[..len].to_vec()).unwrap());
            if heard.last().unwrap().starts_with(what) {
                return;
            }
        }
    };
    hear("READY=1");
    hear("STATUS=");
    let began = Instant::now();
    (0..5).for_each(|_| hear("WATCHDOG=1"));
    let took = began.elapsed();
    assert!(took > Duration::from_millis(300) && took < Duration::from_secs(5), "{took:?}");
    real.mirrors(&["a", "b"]);
    std::fs::write(&real.file, "[[mirror]]\n").unwrap();
    real.running.signal(Kill::HUP);
    hear("RELOADING=1\nMONOTONIC_USEC=");
    hear("READY=1");
    let file = real.file.display().to_string();
    until("the error is told", || {
        real.running.err().contains(&format!("{file}:1:1: device: is missing"))
    });
    real.mirrors(&["a", "b"]);
    std::fs::write(&real.file, mirrors(&["none/b", "none/c"])).unwrap();
    real.running.signal(Kill::HUP);
    real.mirrors(&["b", "c"]);
    real.running.signal(Kill::TERM);
    hear("STOPPING=1");
    assert_eq!(real.running.wait().ok().out, "");
    assert!(real.documents().is_empty());
}

#[test]
fn status_shows_what_the_daemons_do() {
    let mut real = Real::start(&mirrors(&["none/a", "none/b"]), |_| {});
    real.mirrors(&["a", "b"]);
    let json = real.place.run(&["status", "--json"]).ok().json();
    assert_eq!(json["reached"], true);
    assert_eq!(json["daemons"][0]["volumes"][1]["volume"], "b");
    let text = real.place.run(&["status"]).ok().out;
    for words in ["home  ", "server     reached", "VOLUME", "\na ", "\nb ", "POINT LAG"] {
        assert!(text.contains(words), "'{words}' is not in: {text}");
    }
    let metrics = real.place.run(&["status", "--prometheus"]).ok().out;
    assert!(metrics.contains("\ndormouse_volume_info{volume=\"a\",device=\"/none/a\"} 1\n"));
    for wrong in [["--watch", "--accept-state"], ["--prometheus", "--json"]] {
        assert_eq!(real.place.run(&["status", wrong[0], wrong[1]]).code, Some(2));
    }
    // Lines until nobody reads any more; and what is new is there soon.
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut watch = real.place.start_with("home", &["status", "--watch", "--json"], |command| {
        command.stdout(Stdio::from(writer));
    });
    let mut lines = Vec::new();
    let mut next = || {
        let mut byte = [0];
        while byte[0] != b'\n' {
            reader.read_exact(&mut byte).unwrap();
            lines.push(byte[0]);
        }
        let line: serde_json::Value = serde_json::from_slice(&std::mem::take(&mut lines)).unwrap();
        line["daemons"].as_array().unwrap().clone()
    };
    for _ in 0..2 {
        assert_eq!(next()[0]["volumes"][0]["volume"], "a");
    }
    real.running.signal(Kill::TERM);
    real.running.wait().ok();
    until("the end of the daemon is told", || next().is_empty());
    drop(reader);
    let said = watch.wait();
    assert_eq!((said.code, said.err.as_str()), (Some(141), ""));
}

#[test]
fn without_a_daemon_that_is_said() {
    let place = Place::joined();
    assert!(place.run(&["status"]).ok().out.contains("\nno daemon runs: "));
    assert_eq!(place.run(&["status", "--json"]).ok().json()["daemons"], serde_json::json!([]));
    assert_eq!(place.run(&["status", "--prometheus"]).ok().out.lines().count(), 3);
    let watch = place.start(&["status", "--watch"]);
    until("it is said once", || {
        watch.out() == "no daemon runs: `dormouse daemon` mirrors what a file names\n\n"
    });
    watch.signal(Kill::INT);
    let mut watch = watch;
    assert_eq!(watch.wait().err, "", "Ctrl-C ends it quietly");
}

#[test]
fn what_keeps_a_daemon_from_starting_has_its_code() {
    let place = Place::joined();
    let file = place.name("m.toml");
    let daemon = |home: &str| place.run_in(home, &["daemon", "--config", &file]);
    daemon("home").fails(4, &["there is no file", "m.toml", "[[mirror]]"]);
    std::fs::write(&file, "[[mirror]]\ndevice = 1\n").unwrap();
    daemon("home").fails(2, &["m.toml has an error", "m.toml:2:10: device: must be"]);
    std::fs::write(&file, mirrors(&["a"])).unwrap();
    daemon("nothing").fails(4, &["nothing is joined"]);
    let metrics = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = metrics.local_addr().unwrap();
    std::fs::write(&file, format!("metrics = \"{taken}\"\n{}", mirrors(&["a"]))).unwrap();
    daemon("home").fails(8, &["cannot serve metrics"]);
    std::fs::write(place.path("taken"), "x").unwrap();
    let status = place.name("taken");
    std::fs::write(&file, format!("status = {status:?}\n{}", mirrors(&["a"]))).unwrap();
    daemon("home").fails(8, &["is no socket"]);
}

#[test]
fn check_says_what_would_happen() {
    let place = Place::joined();
    let (file, image) = (place.name("m.toml"), place.name("image"));
    std::fs::write(&image, vec![7; 9000]).unwrap();
    place.mirror("image");
    place.run(&["check", &file]).fails(4, &["there is no file"]);
    std::fs::write(&file, "[[mirror]]\ndevice = 'x'\n[[mirror]]\ntracker = 'x'\n").unwrap();
    let said =
        place.run(&["check", &file, "--json"]).fails(2, &["has 3 errors", ":4:11: tracker:"]);
    let problem = &said.json()["problems"][1];
    assert_eq!((&problem["line"], &problem["column"]), (&3.into(), &1.into()));
    assert_eq!(problem["key"], "device");
    let good = format!(
        "[[mirror]]\ndevice = {image:?}\nlimit = \"1MiB\"\ntracker = \"scan\"\nfreeze = \"never\"\n"
    );
    std::fs::write(&file, &good).unwrap();
    let said = place.run(&["check", &file]).ok();
    assert_eq!(
        said.out,
        format!(
            "image: {image}, 8.8 KiB; volume known here\n  \
             never freezes, tracker scan, at most 1.0 MiB a second\n"
        )
    );
    let more = "[[mirror]]\ndevice = \"/dev/sdzz\"\nhook-after = [\"/none/x\"]\n";
    std::fs::write(&file, format!("{good}{more}")).unwrap();
    let said = place.run(&["check", &file, "--json"]).fails(8, &["1 of 2 mirrors cannot start"]);
    let json = said.json();
    assert_eq!(json["problems"], serde_json::json!([]));
    assert_eq!(
        (&json["mirrors"][0]["size"], &json["mirrors"][0]["known"]),
        (&9000.into(), &true.into())
    );
    assert_eq!(json["mirrors"][0]["errors"], serde_json::json!([]));
    let errors = json["mirrors"][1]["errors"].to_string();
    assert!(errors.contains("/dev/sdzz: No such file") && errors.contains("/none/x"), "{errors}");
    assert!(
        json["mirrors"][1]["warnings"][0].as_str().unwrap().contains("another disk may be called")
    );
    let said = place.run_in("nothing", &["check", &file]);
    assert_eq!(said.code, Some(8));
    assert!(said.out.contains("error: nothing is joined yet"), "{}", said.out);
}

#[test]
fn lines_for_the_journal_have_a_level() {
    if std::path::Path::new("/run/systemd/journal/socket").exists() {
        eprintln!("SKIPPED: a journal runs here, and would get the lines of this test");
        return;
    }
    let place = Place::joined();
    let file = place.name("m.toml");
    std::fs::write(&file, mirrors(&["none/a"])).unwrap();
    let err = std::fs::File::create(place.path("journal")).unwrap();
    let stat = rustix::fs::fstat(err.as_fd()).unwrap();
    let start = |stream: String| {
        let err = err.try_clone().unwrap();
        place.start_with("home", &["daemon", "--config", &file], |command| {
            command.stderr(err).env("JOURNAL_STREAM", stream);
        })
    };
    let said = || std::fs::read_to_string(place.path("journal")).unwrap();
    for (stream, begin) in [
        (format!("{}:{}", stat.st_dev, stat.st_ino), "<6>a: mirrors /none/a\n"),
        ("1:1".into(), "20"),
    ] {
        err.set_len(0).unwrap();
        let mut running = start(stream);
        until("it has said something", || said().contains("mirrors /none/a\n"));
        running.signal(Kill::TERM);
        running.wait();
        assert!(said().trim_start_matches('\0').starts_with(begin), "{}", said());
    }
}

/// Each unit by itself, as systemd reads it; what it does not understand it only warns of.
#[test]
fn the_units_are_understood_by_systemd() {
    let verify = |unit: &std::path::Path| {
        let mut command = std::process::Command::new("systemd-analyze");
        command.args(["verify", "--man=no"]).arg(unit).env("SYSTEMD_LOG_LEVEL", "warning").output()
    };
    let dir = tempfile::tempdir().unwrap();
    let units = concat!(env!("CARGO_MANIFEST_DIR"), "/../../contrib/systemd");
    for (name, instance) in [
        ("dormouse.service", "dormouse.service"),
        ("dormouse-mirror@.service", "dormouse-mirror@dev-disk-by\\x2did-x.service"),
        ("dormouse-serve.service", "dormouse-serve.service"),
    ] {
        let text = std::fs::read_to_string(format!("{units}/{name}")).unwrap();
        let text = text.replace("/usr/bin/dormouse", env!("CARGO_BIN_EXE_dormouse"));
        for (text, good) in [(text.replace("KillMode", "KillMod"), false), (text, true)] {
            let unit = dir.path().join(instance);
            std::fs::write(&unit, text).unwrap();
            let out = match verify(&unit) {
                Ok(out) => out,
                Err(e) => {
                    eprintln!("SKIPPED: the units are not verified: no systemd-analyze here: {e}");
                    return;
                }
            };
            let said = String::from_utf8_lossy(&out.stderr);
            let told = said.lines().any(|line| line.contains(unit.to_str().unwrap()));
            assert_eq!(told, !good, "{name}: {said}");
        }
    }
}
