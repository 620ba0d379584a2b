//! `dormouse export`: real clients, its ends, its refusals, TLS. Says so where a client is missing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use std::io::Read;
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::program::{Place, Running};
use rustix::process::Signal;
use serde_json::Value;

/// Whether a program is there; says so if not.
fn there(program: &str, version: &str) -> bool {
    let found = Command::new(program).arg(version).output().is_ok_and(|o| o.status.success());
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

fn content(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(99);
        (state >> 56) as u8
    })
    .take(5 << 20)
    .collect();
    bytes[2 << 20..3 << 20].fill(0);
    bytes
}

/// A vault with two points of 'disk'.
fn vault() -> (Place, Vec<u8>, Vec<u8>) {
    let place = Place::joined();
    let (first, mut second) = (content(1), content(1));
    second[4 << 20..].copy_from_slice(&content(7)[4 << 20..]);
    for bytes in [&first, &second] {
        std::fs::write(place.path("disk"), bytes).unwrap();
        place.mirror("disk");
    }
    (place, first, second)
}

/// Starts an export, and waits until it tells of its disks.
fn export(place: &Place, args: &[&str]) -> (Running, Value) {
    let mut running = place.start(&[&["export"], args, &["--json"]].concat());
    let begun = Instant::now();
    loop {
        let said = running.out();
        let lines = said.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
        if let Some(event) = lines.into_iter().find(|v| v["event"] == "exporting") {
            return (running, event);
        }
        assert!(!running.ended() && begun.elapsed() < Duration::from_secs(30), "{}", running.err());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn uri(event: &Value, n: usize) -> String {
    event["exports"][n]["uri"].as_str().unwrap().to_owned()
}

/// Runs a client to its end; what it said, and whether it ended well.
fn client(program: &str, args: &[&str]) -> (bool, String) {
    let output = Command::new("timeout").arg("60").arg(program).args(args).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[track_caller]
fn runs(program: &str, args: &[&str]) -> String {
    let (well, said) = client(program, args);
    assert!(well, "{program} {args:?}: {said}");
    said
}

fn copy(uri: &str, to: &Path) -> Vec<u8> {
    runs("nbdcopy", &[uri, to.to_str().unwrap()]);
    let bytes = std::fs::read(to).unwrap();
    std::fs::remove_file(to).unwrap();
    bytes
}

#[test]
fn several_points_are_served_until_a_signal() {
    if !there("nbdcopy", "--version") {
        return;
    }
    let (place, first, second) = vault();
    let nbd = format!("unix:{}", place.name("nbd sock"));
    let pid_file = place.name("pid");
    let args = ["disk@1", "disk", "--nbd", &nbd, "--pid-file", &pid_file, "--fuzzy"];
    let (mut running, event) = export(&place, &args);
    assert_eq!(event["exports"][0]["point"], 1);
    assert_eq!(event["exports"][1]["read_only"], true);
    assert_eq!(event["exports"][1]["size"], 5 << 20);
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), format!("{}\n", running.child.id()));
    assert!(copy(&uri(&event, 0), &place.path("out")) == first);
    assert!(copy(&uri(&event, 1), &place.path("out")) == second);
    let list = runs("nbdinfo", &["--list", &uri(&event, 1)]);
    assert!(list.contains("disk@1") && list.contains("point 2 of 2"), "{list}");
    // Nobody else may take the socket meanwhile.
    place
        .run(&["export", "disk", "--nbd", &nbd])
        .fails(12, &["another process answers on", "name another place"]);
    assert!(place.path("nbd sock").exists());
    running.signal(Signal::TERM);
    running.wait().ok();
    assert!(!place.path("nbd sock").exists() && !place.path("pid").exists());
}

/// A client sees the disks that were named, and gets no other volume or point of the vault.
#[test]
fn only_what_is_named_is_listed_and_given() {
    if !there("nbdinfo", "--version") {
        return;
    }
    let (place, ..) = vault();
    std::fs::write(place.path("secret"), content(3)).unwrap();
    place.mirror("secret");
    let nbd = format!("unix:{}", place.name("nbd"));
    let (mut running, event) = export(&place, &["disk", "--nbd", &nbd]);
    let uri = uri(&event, 0);
    let list = runs("nbdinfo", &["--list", &uri]);
    assert!(list.contains("export=\"disk\"") && !list.contains("secret"), "{list}");
    assert_eq!(list.matches("export=").count(), 1, "{list}");
    for name in ["secret", "disk@1", "secret@1", "../disk"] {
        let (well, said) = client("nbdinfo", &[&uri.replace(":///disk", &format!(":///{name}"))]);
        assert!(!well && said.contains("there is no disk"), "{name}: {said}");
    }
    running.signal(Signal::TERM);
    running.wait().ok();
}

/// CVE-2015-0847: signals that came while connections began and ended.
#[test]
fn signals_among_connections_end_it_well() {
    let (place, ..) = vault();
    let nbd = format!("unix:{}", place.name("nbd"));
    let (mut running, _) = export(&place, &["disk", "--nbd", &nbd]);
    let socket = place.path("nbd");
    let noise: Vec<_> = (0..3)
        .map(|_| {
            let socket = socket.clone();
            std::thread::spawn(move || while UnixStream::connect(&socket).is_ok() {})
        })
        .collect();
    for n in 0..300 {
        if running.ended() {
            break;
        }
        let kinds = [Signal::CHILD, Signal::CHILD, Signal::TERM, Signal::INT];
        running.signal(kinds[if n < 100 { 0 } else { n % 4 }]);
    }
    running.wait().ok();
    noise.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(!socket.exists());
}

#[test]
fn a_socket_of_a_dead_process_is_replaced() {
    let (place, ..) = vault();
    let nbd = format!("unix:{}", place.name("nbd"));
    let (running, _) = export(&place, &["disk", "--nbd", &nbd]);
    running.kill();
    assert!(place.path("nbd").exists());
    let (mut running, _) = export(&place, &["disk", "--nbd", &nbd]);
    UnixStream::connect(place.path("nbd")).unwrap();
    running.signal(Signal::INT);
    running.wait().ok();
    assert!(!place.path("nbd").exists());
    // What is no socket stays.
    std::fs::write(place.path("nbd"), "text").unwrap();
    place.run(&["export", "disk", "--nbd", &nbd]).fails(8, &["is no socket"]);
    assert_eq!(std::fs::read(place.path("nbd")).unwrap(), b"text");
}

#[test]
fn what_clients_write_is_in_the_overlay_and_nowhere_else() {
    if !there("qemu-io", "--version") || !there("nbdcopy", "--version") {
        return;
    }
    let (place, _, second) = vault();
    let nbd = format!("unix:{}", place.name("nbd"));
    let over = place.name("over");
    let args = ["disk", "--nbd", &nbd, "--overlay", &over];
    let mut expected = second.clone();
    expected[100_000..105_000].fill(0x5a);
    for round in 0..2 {
        let (mut running, event) = export(&place, &args);
        let uri = uri(&event, 0);
        if round == 0 {
            runs("qemu-io", &["-f", "raw", "-c", "write -P 0x5a 100000 5000", &uri]);
        }
        assert!(copy(&uri, &place.path("out")) == expected, "round {round}");
        running.signal(Signal::TERM);
        running.wait().ok();
    }
    place.restores("disk", &second);
    place
        .run(&["export", "disk@1", "--nbd", &nbd, "--overlay", &over, "--fuzzy"])
        .fails(8, &["made over disk@2", "name another file"]);
    place
        .run(&["export", "disk", "disk@1", "--nbd", &nbd, "--overlay", &over])
        .fails(2, &["--overlay is for one volume"]);
}

#[test]
fn what_it_runs_gets_the_uri_and_ends_it() {
    if !there("nbdinfo", "--version") {
        return;
    }
    let (place, ..) = vault();
    let run = "nbdinfo --size \"$uri\" && test -S \"$unixsocket\"";
    let said = place.run(&["export", "disk", "--run", run]).ok();
    assert!(said.out.lines().any(|l| l == "5242880"), "{said:?}");
    let said = place.run(&["export", "disk", "--run", "exit 7"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("exit status: 7"), "{said:?}");
}

#[test]
fn the_layers_for_tests_are_put_around_the_disk() {
    if !there("nbdinfo", "--version") {
        return;
    }
    let (place, ..) = vault();
    let run = "nbdcopy \"$uri\" null:";
    let args = ["export", "disk", "--layer", "fault=read:1/1", "--layer", "log", "--run", run];
    let said = place.run(&args);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("#1 read ") && said.err.contains("fails on purpose"), "{said:?}");
}

#[test]
fn bad_places_are_refused_with_a_way_out() {
    let (place, ..) = vault();
    let fails = |args: &[&str], code, words: &[&str]| {
        place.run(&[&["export"], args].concat()).fails(code, words);
    };
    fails(&["disk", "--nbd", "0.0.0.0:0"], 2, &["without TLS", "--tls-certificates", "--insecure"]);
    fails(&["disk", "--nbd", "here"], 2, &["no place to listen"]);
    fails(&["none", "--nbd", "127.0.0.1:0"], 4, &["none"]);
    fails(&["disk", "disk", "--nbd", "127.0.0.1:0"], 2, &["named twice"]);
    let socket = format!("unix:{}/no/where", place.name("x"));
    assert_ne!(place.run(&["export", "disk", "--nbd", &socket]).code, Some(0));
    let dir = place.name("store");
    fails(&["disk", "--nbd", "0.0.0.0:0", "--tls-certificates", &dir], 8, &["server-cert.pem"]);
    let _live = UnixListener::bind(place.path("live")).unwrap();
    fails(&["disk", "--nbd", &format!("unix:{}", place.name("live"))], 12, &["answers on"]);
    let said = place.run(&["export", "disk"]);
    assert!(said.code == Some(2) && said.err.contains("--nbd"), "{said:?}");
}

/// An authority, a server and two clients, of which one has another authority.
fn certificates(place: &Place) -> bool {
    if !there("openssl", "version") {
        return false;
    }
    let script = r#"
set -e
ca() { mkdir -p $1; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
  -subj "/CN=$1" -addext basicConstraints=critical,CA:TRUE -addext keyUsage=keyCertSign \
  -keyout $1/ca-key.pem -out $1/ca-cert.pem; }
leaf() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" \
  -keyout $1/$2-key.pem -out $1/$2.csr
  printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=%sAuth\nkeyUsage=digitalSignature\nbasicConstraints=CA:FALSE\n' $2 > $1/ext
  openssl x509 -req -in $1/$2.csr -CA $1/ca-cert.pem -CAkey $1/ca-key.pem -CAcreateserial -days 2 \
  -extfile $1/ext -out $1/$2-cert.pem; }
ca good; leaf good server; leaf good client
ca bad; leaf bad client; cp good/ca-cert.pem bad/ca-cert.pem
mkdir none; cp good/ca-cert.pem none/
"#;
    let dir = place.path("tls");
    std::fs::create_dir(&dir).unwrap();
    let made = Command::new("sh").args(["-c", script]).current_dir(&dir).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    true
}

#[test]
fn tls_wants_a_certificate_of_the_authority() {
    if !there("nbdinfo", "--version") || !there("qemu-img", "--version") {
        return;
    }
    let (place, _, second) = vault();
    if !certificates(&place) {
        return;
    }
    let good = place.name("tls/good");
    let args = ["disk", "--nbd", "127.0.0.1:0", "--tls-certificates", &good];
    let (mut running, event) = export(&place, &args);
    let uri = uri(&event, 0);
    let port = uri.trim_end_matches("/disk").rsplit(':').next().unwrap().to_owned();
    assert!(uri.starts_with("nbds://127.0.0.1:"), "{uri}");
    let with = |uri: &str, dir: &str| format!("{uri}?tls-certificates={}", place.name(dir));
    assert!(copy(&with(&uri, "tls/good"), &place.path("out")) == second);
    let info = runs("nbdinfo", &[&with(&uri, "tls/good")]);
    assert!(info.contains("newstyle-fixed with TLS"), "{info}");
    for dir in ["tls/bad", "tls/none"] {
        let (well, said) = client("nbdinfo", &[&with(&uri, dir)]);
        assert!(!well, "{dir}: {said}");
    }
    let (well, said) = client("nbdinfo", &[&uri.replace("nbds:", "nbd:")]);
    assert!(!well && !said.contains("5242880"), "{said}");
    let creds = format!("tls-creds-x509,id=t,endpoint=client,dir={good}");
    let image = format!("driver=nbd,host=localhost,port={port},export=disk,tls-creds=t");
    let info = runs("qemu-img", &["info", "--object", &creds, "--image-opts", &image]);
    assert!(info.contains("5 MiB (5242880 bytes)"), "{info}");
    // What comes before TLS is not taken for what comes under it.
    let mut plain = TcpStream::connect(("127.0.0.1", port.parse().unwrap())).unwrap();
    let mut talk = [0, 0, 0, 3].to_vec();
    talk.extend(b"IHAVEOPT\0\0\0\x05\0\0\0\0IHAVEOPT\0\0\0\x03\0\0\0\0");
    std::io::Write::write_all(&mut plain, &talk).unwrap();
    let mut said = Vec::new();
    plain.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let _ = plain.read_to_end(&mut said);
    assert_eq!(said.len(), 18, "only the greeting: {said:?}");
    running.signal(Signal::TERM);
    let said = running.wait().ok();
    assert!(said.err.contains("bytes came before TLS"), "{}", said.err);
    // Without certificates of clients.
    let (mut running, event) = export(&place, &[&args[..], &["--tls-any-client"]].concat());
    let other = event["exports"][0]["uri"].as_str().unwrap();
    runs("nbdinfo", &[&with(other, "tls/none")]);
    running.signal(Signal::TERM);
    running.wait().ok();
}

#[test]
fn a_server_among_idle_clients_ends_at_once() {
    let (place, ..) = vault();
    let nbd = format!("unix:{}", place.name("nbd"));
    let (mut running, _) = export(&place, &["disk", "--nbd", &nbd]);
    let idle: Vec<_> = (0..5).map(|_| UnixStream::connect(place.path("nbd")).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    running.signal(Signal::TERM);
    running.wait().ok();
    assert!(begun.elapsed() < Duration::from_secs(5));
    drop(idle);
}
