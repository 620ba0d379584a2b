//! Many clients of one server: what each may, and what whoever runs it sees and does.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::program::{Numbers, Place, Serving, log_of};
use common::{World, assert_fails};
use dormouse::access::{self, Quota};
use dormouse::connect;
use dormouse::exit::Class;
use dormouse::text::now_ns;
use dormouse_format::message::{Message, Refusal};
use dormouse_sync::server::Role;
use serde_json::Value;

/// A change counts for open connections within this.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What a link that is open hears within the time, and that it then ends.
#[track_caller]
fn sent_away(link: &dormouse::link::Link) -> (Refusal, String) {
    let until = Instant::now() + AT_ONCE;
    let Ok(Ok(Message::Error { refusal, text })) = link.rx.recv_deadline(until) else {
        panic!("nothing was said within {AT_ONCE:?}")
    };
    let end = link.rx.recv_deadline(until + AT_ONCE).unwrap();
    assert!(end.is_err(), "{end:?}");
    (refusal, text)
}

#[test]
fn a_revocation_reaches_connections_that_are_open() {
    let world = World::serving();
    world.join("a", &world.invite("laptop")).unwrap();
    world.join("b", &world.invite("desk")).unwrap();
    let [a, b] = ["a", "b"].map(|home| world.home(home).account().unwrap());
    let link = connect::connect(&a).unwrap();
    let other = connect::connect(&b).unwrap();
    access::revoke(&world.store(), "laptop", false, now_ns()).unwrap();
    let (refusal, text) = sent_away(&link);
    assert_eq!(refusal, Refusal::Revoked);
    assert!(text.contains("'laptop'"), "{text}");
    assert_fails(connect::connect(&a), Class::NotAuthorised, "revoked");
    // The neighbour heard nothing of it.
    let answer = connect::ask(&other, Message::ListVolumes).unwrap();
    assert_eq!(answer, Message::Volumes { items: vec![] });
}

/// One that is busy gets no message in that is looked at after the revocation.
#[test]
fn who_is_revoked_while_it_sends_gets_no_further() {
    let world = World::serving();
    world.join("a", &world.invite("laptop")).unwrap();
    let account = world.home("a").account().unwrap();
    let link = connect::connect(&account).unwrap();
    let vault = world.store().vault_path(&account.vault).join("segments/0000000000000001.seg");
    access::revoke(&world.store(), "laptop", false, now_ns()).unwrap();
    let (began, mut asked) = (Instant::now(), 0);
    while connect::send(&link, Message::Barrier).is_ok() {
        asked += 1;
        assert!(began.elapsed() < AT_ONCE, "still listened to after {asked} questions");
        while link.rx.recv_timeout(Duration::from_millis(1)).is_ok_and(|m| m.is_ok()) {}
    }
    let size = std::fs::metadata(&vault).unwrap().len();
    assert_fails(connect::connect(&account), Class::NotAuthorised, "revoked");
    assert_eq!(std::fs::metadata(&vault).unwrap().len(), size);
}

#[test]
fn another_role_counts_at_once() {
    let world = World::serving();
    world.join("a", &world.invite("laptop")).unwrap();
    let account = world.home("a").account().unwrap();
    let link = connect::connect(&account).unwrap();
    access::set_role(&world.store(), "laptop", Role::Reader).unwrap();
    let (refusal, text) = sent_away(&link);
    assert_eq!(refusal, Refusal::Stopping);
    assert!(text.contains("reader"), "{text}");
    let link = connect::connect(&account).unwrap();
    assert_fails(connect::ask(&link, Message::Barrier), Class::NotAuthorised, "grant STORE laptop");
    access::set_role(&world.store(), "laptop", Role::Writer).unwrap();
    let until = Instant::now() + AT_ONCE;
    let barrier = || connect::ask(&connect::connect(&account)?, Message::Barrier);
    while !barrier().is_ok_and(|answer| answer == Message::Durable) {
        assert!(Instant::now() < until);
    }
    // A grant does not undo a revocation.
    access::revoke(&world.store(), "laptop", false, now_ns()).unwrap();
    let granted = access::set_role(&world.store(), "laptop", Role::Writer);
    assert_fails(granted, Class::Place, "was revoked");
    assert_fails(connect::connect(&account), Class::NotAuthorised, "revoked");
    assert_fails(access::set_role(&world.store(), "no", Role::Reader), Class::NotFound, "'no'");
    let quota = access::set_quota(&world.store(), "no", Some(Quota::Bytes(1)));
    assert_fails(quota, Class::NotFound, "'no'");
}

/// The commands, end to end: a reader that joins an existing vault, a quota, the list.
#[test]
fn roles_and_quotas_by_command() {
    let (place, server) = Place::served();
    let store = place.name("store");
    let invite = |name: &str, role: &str| {
        let args = ["invite", &store, name, "--role", role, "--url", &server.address];
        place.run(&args).ok().out.trim().to_owned()
    };
    let data = Numbers(5).noise(3 << 20);
    std::fs::write(place.path("disk"), &data).unwrap();
    place.mirror("disk");
    // Who reads makes no vault of its own.
    let said = place.run_in("r", &["join", &invite("eye", "reader")]);
    said.fails(4, &["reader", "export-writer"]);
    place.run(&["vault", "export-writer", &place.name("w"), "--name", "eye"]).ok();
    let join = |invite: &str| place.run_in("r", &["join", invite, "--vault", &place.name("w")]);
    join(&invite("eye2", "reader")).ok();
    let mirror = ["mirror", &place.name("disk"), "--volume", "other", "--once"];
    place.run_in("r", &mirror).fails(5, &["is reader here", "grant STORE eye2 --role writer"]);
    place.run_in("r", &["points"]).ok();
    let args = |more: &[&'static str]| [&["grant"][..], more].concat();
    let grant = |more: &[&'static str]| {
        let mut args = args(more);
        args.insert(1, &store);
        place.run(&args)
    };
    grant(&["eye2", "--role", "writer"]).ok();
    place.run_in("r", &mirror).ok();
    // A quota below what is there: nothing new, and all comes back.
    let said = grant(&["laptop", "--quota", "1MiB"]).ok();
    assert!(said.out.contains("may hold 1.0 MiB") && said.out.contains("already"), "{said:?}");
    std::fs::write(place.path("disk"), Numbers(6).noise(3 << 20)).unwrap();
    let again = ["mirror", &place.name("disk"), "--once"];
    place.run(&again).fails(11, &["quota", "of 1.0 MiB are stored", "larger quota"]);
    place.restores("disk@1", &data);
    grant(&["laptop", "--quota", "much"]).fails(2, &["'much' is not a quota"]);
    let list = place.run(&["clients", &store, "--json"]).ok().json();
    let of = |name: &str| {
        let all = list["clients"].as_array().unwrap();
        all.iter().find(|c| c["client"] == name).unwrap().clone()
    };
    assert_eq!(of("laptop")["vault_quota"], 1 << 20);
    assert_eq!(of("eye2")["role"], "writer");
    assert_eq!(of("eye2")["vault"], of("laptop")["vault"]);
    assert!(of("laptop")["vault_bytes"].as_u64().unwrap() > 3 << 20);
    assert_eq!(of("laptop")["connections"], 0);
    grant(&["laptop", "--quota", "none"]).ok();
    place.run(&again).ok();
    audited(&place, &store);
}

/// What was done is in the audit log, in order, with who and from where.
fn audited(place: &Place, store: &str) {
    place.run(&["revoke", store, "eye2", "--distrust"]).ok();
    let said = place.run(&["audit", store, "--json"]).ok();
    let events = said.events();
    let names: Vec<_> = events.iter().map(|e| e["event"].as_str().unwrap()).collect();
    let expected =
        ["invite", "join", "invite", "invite", "join", "role", "quota", "quota", "revoke"];
    assert_eq!(names, expected);
    let join = &events[4];
    assert_eq!((join["client"].as_str(), join["role"].as_str()), (Some("eye2"), Some("reader")));
    assert!(join["from"].as_str().unwrap().starts_with("127.0.0.1:"), "{join}");
    let revoke = events.last().unwrap();
    let uid = format!("uid {}", rustix::process::getuid().as_raw());
    assert!(revoke["by"].as_str().unwrap().starts_with(&uid), "{revoke}");
    assert_eq!((&revoke["distrust"], &revoke["from"]), (&Value::Bool(true), &"command".into()));
    assert!(place.run(&["audit", store]).ok().out.contains("revoke"));
}

/// A takeover is a change of hands; opening one's own volume is none.
#[test]
fn a_takeover_is_audited() {
    let (place, server) = Place::served();
    let store = place.name("store");
    std::fs::write(place.path("disk"), Numbers(7).noise(1 << 20)).unwrap();
    let mirror = ["mirror", &place.name("disk"), "--once", "--takeover"];
    place.run(&mirror).ok();
    place.run(&["vault", "export-writer", &place.name("w")]).ok();
    let invite = place.invite("desk", &server);
    place.run_in("d", &["join", &invite, "--vault", &place.name("w")]).ok();
    place.run_in("d", &mirror).ok();
    let events = place.run(&["audit", &store, "--json"]).ok().events();
    let taken: Vec<_> = events.iter().filter(|e| e["event"] == "takeover").collect();
    assert_eq!(taken.len(), 1, "{events:?}");
    assert_eq!(taken[0]["client"], "desk");
    assert!(taken[0]["volume"].is_string() && taken[0]["from_writer"].is_string());
}

/// The default quota of all vaults is what server.toml says.
#[test]
fn a_quota_for_all() {
    let place = Place::new();
    let store = place.path("store");
    Serving::start(&store, "127.0.0.1:0").stop();
    std::fs::write(store.join("server.toml"), "quota = \"2MiB\"\n").unwrap();
    let server = Serving::start(&store, "127.0.0.1:0");
    place.join_server("home", "laptop", &server);
    std::fs::write(place.path("disk"), Numbers(8).noise(3 << 20)).unwrap();
    let mirror = ["mirror", &place.name("disk"), "--once"];
    place.run(&mirror).fails(11, &["quota", "2.0 MiB"]);
    // At once, and without a new start of the server.
    let grant = ["grant", &place.name("store"), "laptop", "--quota", "100MiB"];
    place.run(&grant).ok();
    std::thread::sleep(AT_ONCE);
    place.run(&mirror).ok();
    std::fs::write(store.join("server.toml"), "quota = \"some\"\n").unwrap();
    server.stop();
    let said = place.run(&["serve", &place.name("store"), "--listen", "127.0.0.1:0"]);
    said.fails(2, &["'some' is not"]);
}

/// GET, by whichever socket.
fn get(mut stream: impl Read + Write, path: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The value of a metric.
#[track_caller]
fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|l| l.strip_prefix(name).is_some_and(|l| l.starts_with(' ')));
    line.unwrap_or_else(|| panic!("no {name} in {text}"))
        .rsplit(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn metrics_and_health_and_a_log_for_programs() {
    let place = Place::new();
    // In a directory of its own: else it cannot be removed out of the jail, and is replaced instead.
    std::fs::create_dir(place.path("run")).unwrap();
    let socket = place.path("run/metrics.sock");
    let more = ["--metrics", &format!("unix:{}", socket.display()), "--log", "json"];
    let server = Serving::start_with(&place.path("store"), "127.0.0.1:0", &more);
    place.join_server("home", "laptop", &server);
    std::fs::write(place.path("disk"), Numbers(9).noise(1 << 20)).unwrap();
    place.mirror("disk");
    let unknown = TcpStream::connect(&server.address).unwrap();
    let at = || UnixStream::connect(&socket).unwrap();
    assert!(get(at(), "/health").starts_with("HTTP/1.1 200 OK"));
    assert!(get(at(), "/").starts_with("HTTP/1.1 404"));
    let text = get(at(), "/metrics");
    assert_eq!(metric(&text, "dormouse_server_commit_seconds_count"), 1.0);
    assert_eq!(metric(&text, "dormouse_server_strangers"), 1.0, "{text}");
    assert!(metric(&text, "dormouse_server_received_bytes_total") > 1e6);
    assert!(metric(&text, "dormouse_server_accepted_total") >= 3.0);
    assert_eq!(metric(&text, "dormouse_server_refused_total{reason=\"Full\"}"), 0.0);
    let bytes = text.lines().find(|l| l.starts_with("dormouse_server_vault_bytes{vault="));
    assert!(bytes.unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap() > 1 << 20);
    drop(unknown);
    place.run(&["revoke", &place.name("store"), "laptop"]).ok();
    place.run(&["points"]).fails(5, &["revoked"]);
    let text = get(at(), "/metrics");
    assert_eq!(metric(&text, "dormouse_server_refused_total{reason=\"Revoked\"}"), 1.0);
    server.stop();
    assert!(!socket.exists(), "the socket goes with the server");
    let log = std::fs::read_to_string(log_of(&place.path("store"))).unwrap();
    let lines: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |l: &&Value| l["client"] == "laptop" && l["message"] == "connected";
    assert!(lines.iter().any(|l| of(&l) && l["peer"].as_str().unwrap().starts_with("127.")));
    let elsewhere = ["serve", &place.name("store"), "--metrics", "0.0.0.0:1"];
    place.run(&elsewhere).fails(2, &["0.0.0.0:1", "loopback"]);
}

/// Beside something else the jail lets nothing be removed: the next server replaces the socket.
#[test]
fn a_socket_for_metrics_does_not_open_the_jail_for_its_neighbours() {
    let place = Place::new();
    std::fs::create_dir(place.path("run")).unwrap();
    std::fs::write(place.path("run/neighbour"), "x").unwrap();
    let socket = place.path("run/metrics.sock");
    let more = ["--metrics", &format!("unix:{}", socket.display())];
    for _ in 0..2 {
        let server = Serving::start_with(&place.path("store"), "127.0.0.1:0", &more);
        assert!(get(UnixStream::connect(&socket).unwrap(), "/health").contains("200 OK"));
        server.stop();
        assert!(socket.exists() && place.path("run/neighbour").exists());
    }
    std::fs::remove_file(place.path("run/neighbour")).unwrap();
    Serving::start_with(&place.path("store"), "127.0.0.1:0", &more).stop();
    assert!(!socket.exists());
}

/// A key that comes back without end costs no more than so many handshakes.
#[test]
fn a_client_that_comes_back_without_end_waits_for_its_turn() {
    let world = World::serving();
    world.join("a", &world.invite("laptop")).unwrap();
    let account = world.home("a").account().unwrap();
    let (began, mut done) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(3) {
        drop(connect::connect(&account).unwrap());
        done += 1;
    }
    // A burst of 64, and 8 a second.
    assert!((80..=64 + 8 * 4).contains(&done), "{done} in 3 s");
    world.join("b", &world.invite("desk")).unwrap();
    let began = Instant::now();
    connect::connect(&world.home("b").account().unwrap()).unwrap();
    assert!(began.elapsed() < AT_ONCE, "others have their own turns");
}
