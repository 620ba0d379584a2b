//! The jail of `dormouse serve`: what a server in it cannot do, that it could before, and that
//! it can again where the layer is taken away. And that it still serves.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::program::{Numbers, Place, Serving, is_root, log_of};
use dormouse::jail::Layer;
use dormouse::jail::probe::Found;

const LANDLOCK: [Layer; 3] = [Layer::Files, Layer::Network, Layer::Scope];

/// What the process that tries has found, without these layers.
fn probe(without: &[Layer]) -> Found {
    probe_as(&[], without)
}

fn probe_as(flags: &[&str], without: &[Layer]) -> Found {
    let place = Place::new();
    let dir = place.name("dir");
    fs::create_dir(&dir).unwrap();
    let mut args = vec!["jail-probe", &dir];
    args.extend(flags);
    for layer in without {
        args.extend(["--without", layer.name()]);
    }
    let said = place.run(&args).ok();
    serde_json::from_str(&said.out).unwrap()
}

/// Whether this kernel has all layers; says so if not.
fn has_all(found: &Found) -> bool {
    let missing: Vec<_> = found.layers.iter().filter(|layer| !layer.holds).collect();
    if !missing.is_empty() {
        eprintln!("SKIPPED: a proof of the jail needs all its layers: {missing:?}");
    }
    missing.is_empty()
}

/// What can be done in the jail of that which must not.
fn holes(found: &Found) -> Vec<&str> {
    for tried in &found.refused {
        assert_eq!(tried.before, None, "{tried:?}: not possible before the jail: proves nothing");
    }
    let open = found.refused.iter().filter(|tried| tried.after.is_none());
    open.map(|tried| tried.what.as_str()).collect()
}

#[test]
fn nothing_of_the_host_is_left_and_all_of_the_store() {
    let found = probe(&[]);
    if !has_all(&found) {
        return;
    }
    assert_eq!(holes(&found), [""; 0]);
    for what in ["read /etc/passwd", "open a connection", "start a program"] {
        assert!(found.refused.iter().any(|tried| tried.what == what), "{what} was not tried");
    }
    for tried in &found.allowed {
        assert_eq!((&tried.before, &tried.after), (&None, &None), "{tried:?}");
    }
}

/// Else the test above would pass without a jail.
#[test]
fn each_try_works_where_its_layers_are_taken_away() {
    if !has_all(&probe(&[])) {
        return;
    }
    let [files, network, scope] = LANDLOCK;
    let (calls, limits) = (Layer::SystemCalls, Layer::Limits);
    let all = probe(&[files, network, scope, calls, limits]);
    assert_eq!(holes(&all).len(), all.refused.len(), "{:?}", holes(&all));
    // What one layer alone keeps, and what two keep.
    let reads = ["read /etc/passwd", "list the root directory", "write a file beside the store"];
    assert_eq!(holes(&probe(&[files])), reads);
    assert_eq!(holes(&probe(&[limits])), ["write beyond the limit of a file"]);
    assert_eq!(holes(&probe(&[calls])), ["send a datagram", "raise a limit"]);
    assert_eq!(holes(&probe(&[network])), [""; 0]);
    let sockets =
        ["open a connection", "send a datagram", "listen on another port", "raise a limit"];
    assert_eq!(holes(&probe(&[calls, network])), sockets);
    assert_eq!(
        holes(&probe(&[calls, scope])),
        ["send a datagram", "signal another process", "raise a limit"]
    );
    let mut program = reads.to_vec();
    program.extend(["send a datagram", "start a program", "raise a limit"]);
    assert_eq!(holes(&probe(&[calls, files])), program);
}

/// Of a store in object storage: one port may be reached, and nothing else.
#[test]
fn the_server_of_a_bucket_reaches_its_port_and_nothing_else() {
    let bucket = |without: &[Layer]| probe_as(&["--bucket"], without);
    let found = bucket(&[]);
    if !has_all(&found) {
        return;
    }
    assert_eq!(holes(&found), [""; 0]);
    for what in ["read /etc/passwd", "open a connection", "connect by sending", "start a program"] {
        assert!(found.refused.iter().any(|tried| tried.what == what), "{what} was not tried");
    }
    assert!(found.allowed.iter().any(|tried| tried.what == "connect to the object storage"));
    for tried in &found.allowed {
        assert_eq!((&tried.before, &tried.after), (&None, &None), "{tried:?}");
    }
    let network = found.layers.iter().find(|l| l.layer == "landlock-network").unwrap();
    assert!(network.why.contains("but to port "), "{network:?}");
    // Else what is above would be no proof.
    let [_, network, _] = LANDLOCK;
    assert_eq!(holes(&bucket(&[network])), ["open a connection"]);
    let calls = Layer::SystemCalls;
    let open = holes_of(&bucket(&[network, calls]));
    assert!(open.contains(&"connect by sending".to_owned()), "{open:?}");
}

fn holes_of(found: &Found) -> Vec<String> {
    holes(found).into_iter().map(str::to_owned).collect()
}

/// The fields of a thread's status.
fn status(of: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(of.join("status")).unwrap();
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().to_owned()))
    };
    text.lines().filter_map(field).collect()
}

fn tasks(server: &Serving) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.child.id())).unwrap();
    tasks.map(|task| status(&task.unwrap().path())).collect()
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn every_thread_of_a_server_is_inside_and_it_serves() {
    if !has_all(&probe(&[])) {
        return;
    }
    let place = Place::new();
    let server = Serving::start_with(&place.path("store"), "127.0.0.1:0", &["--require-jail"]);
    place.join_server("home", "laptop", &server);
    place.run(&["recovery-kit", place.name("kit").as_str()]).ok();
    let image = Numbers(7).noise(3 << 20);
    fs::write(place.path("v"), &image).unwrap();
    place.mirror("v");
    place.restores("v", &image);
    // One that says nothing keeps its thread.
    let silent = TcpStream::connect(&server.address).unwrap();
    let stranger = until("the stranger has its thread", || {
        let confined = |task: &BTreeMap<String, String>| task["Seccomp_filters"] == "2";
        tasks(&server).into_iter().find(|t| t["Name"] == "stranger" && confined(t))
    });
    assert_eq!(stranger["Seccomp"], "2");
    let tasks = tasks(&server);
    assert!(tasks.len() >= 3, "{tasks:?}");
    for task in &tasks {
        let of = |name: &str| task[name].as_str();
        assert_eq!((of("NoNewPrivs"), of("Seccomp")), ("1", "2"), "{task:?}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(of(set), "0000000000000000", "{set} of {task:?}");
        }
        assert!(task["Name"] == "stranger" || of("Seccomp_filters") == "1", "{task:?}");
    }
    drop(silent);
    let log = fs::read_to_string(log_of(&place.path("store"))).unwrap();
    assert!(!log.contains("does not hold") && !log.contains("may do anything"), "{log}");
    server.stop();
    // What it wrote is whole.
    place.run(&["scrub", &place.name("store")]).ok();
}

#[test]
fn a_layer_that_does_not_hold_is_said_and_refused_where_it_is_required() {
    if !is_root("a store of another user") || !has_all(&probe(&[])) {
        return;
    }
    let place = Place::new();
    place.serve("127.0.0.1:0").stop();
    let store = place.name("store");
    rustix::fs::chown(&store, Some(rustix::fs::Uid::from_raw(54_321)), None).unwrap();
    let args = ["serve", &store, "--listen", "127.0.0.1:0", "--require-jail"];
    let words = ["belongs to user 54321", "jail is required", "capabilities", "dormouse doctor"];
    place.run(&args).fails(1, &words);
    let server = place.serve("127.0.0.1:0");
    let log = fs::read_to_string(log_of(&place.path("store"))).unwrap();
    assert!(log.contains("layer 'capabilities' does not hold"), "{log}");
    assert!(log.contains("run the server as a user of its own"), "{log}");
    place.join_server("home", "laptop", &server);
    server.stop();
}

/// `LISTEN_FDS`, as systemd hands a socket over.
fn activated(store: &str, fd: i32, count: u32) -> Command {
    let mut shell = Command::new("sh");
    let line = format!("LISTEN_PID=$$ LISTEN_FDS={count} exec \"$0\" serve \"$1\" 3<&{fd}");
    shell.args(["-c", &line, env!("CARGO_BIN_EXE_dormouse"), store]);
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

#[test]
fn a_socket_that_is_handed_over_is_listened_on() {
    use std::os::fd::AsRawFd;
    let place = Place::new();
    let store = place.name("store");
    let inherited = |file: &dyn std::os::fd::AsFd| {
        rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty()).unwrap();
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    inherited(&listener);
    let address = listener.local_addr().unwrap().to_string();
    let mut child = activated(&store, listener.as_raw_fd(), 1).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let server = Serving { child, address: address.clone() };
    assert_eq!(line.trim(), format!("listening on {address}"));
    place.join_server("home", "laptop", &server);
    server.stop();
    for (count, file, words) in [
        (2, &listener as &dyn std::os::fd::AsFd, "2 sockets were handed over"),
        (1, &fs::File::open("/dev/null").unwrap(), "not a TCP socket that listens"),
    ] {
        inherited(file);
        let fd = file.as_fd().as_raw_fd();
        let out = activated(&store, fd, count).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{said}");
        assert!(said.contains(words) && said.contains(".socket unit"), "{said}");
    }
}

/// The exposure of a unit, by systemd-analyze; none where that is not there.
fn is_below(unit: &Path, tenths: u32) -> Option<(bool, String)> {
    let out = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", &format!("--threshold={tenths}")])
        .arg(unit)
        .output();
    match out {
        Ok(out) => Some((out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())),
        Err(e) => {
            eprintln!("SKIPPED: the unit's exposure is not judged: no systemd-analyze here: {e}");
            None
        }
    }
}

#[test]
fn the_units_exposure_is_below_one_and_a_half() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contrib/systemd");
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(units.join("dormouse-serve.service")).unwrap();
    let unit = dir.path().join("dormouse-serve.service");
    for (text, good) in [
        (text.clone(), true),
        (text.replace("PrivateNetwork=yes", "").replace("SystemCallFilter=", "#"), false),
    ] {
        fs::write(&unit, text).unwrap();
        // In tenths: 1.4 and below.
        let Some((below, said)) = is_below(&unit, 14) else { return };
        assert_eq!(below, good, "{said}");
    }
    let socket = dir.path().join("dormouse-serve.socket");
    let text = fs::read_to_string(units.join("dormouse-serve.socket")).unwrap();
    for (text, good) in [(text.replace("Backlog", "Backlock"), false), (text, true)] {
        fs::write(&socket, text).unwrap();
        let mut command = Command::new("systemd-analyze");
        command.args(["verify", "--man=no"]).arg(&socket).env("SYSTEMD_LOG_LEVEL", "warning");
        let said = command.output().unwrap().stderr;
        let said = String::from_utf8_lossy(&said);
        let told = said.lines().any(|line| line.contains(socket.to_str().unwrap()));
        assert_eq!(told, !good, "{said}");
    }
}
