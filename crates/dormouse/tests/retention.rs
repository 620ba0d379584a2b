//! What is kept, by the real program: for who runs the store, for an administrator, and for a
//! writer, who may not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use std::time::Duration;

use common::program::{Numbers, Place, Serving};
use dormouse::serve::expiring::expire_all;
use dormouse::text::now_ns;
use dormouse_store::retention::clock::{Clocks, Mark};
use serde_json::Value;

const SHORT: &str = "all:1s,floor:1s,short-floor";
const DAY: u64 = 24 * 3_600_000_000_000;

/// Long enough that what was there is older than a second, and what was set is effective.
fn wait() {
    std::thread::sleep(Duration::from_millis(1200));
}

struct Stage {
    place: Place,
    server: Option<Serving>,
    content: Vec<u8>,
}

impl Stage {
    fn new() -> Self {
        let (place, server) = Place::served();
        Self { place, server: Some(server), content: Numbers(5).noise(1 << 20) }
    }

    /// One more point of 'v'.
    fn point(&mut self, version: u8) -> u64 {
        self.content[8192..12288].fill(version);
        std::fs::write(self.place.path("v"), &self.content).unwrap();
        self.place.mirror("v")["point"].as_u64().unwrap()
    }

    /// A command of who runs the store.
    fn operator(&self, args: &[&str]) -> common::program::Said {
        let store = self.place.name("store");
        self.place.run_in("none", &[args, &["--store", &store]].concat())
    }

    /// As the server does each hour, in every vault.
    fn expire(&self) {
        let store = dormouse::store_dir::StoreDir::open(&self.place.path("store")).unwrap();
        let _lock = store.lock().unwrap();
        let access = dormouse::access::Access::new(store, dormouse::log::Log::silent());
        expire_all(&access, &dormouse::log::Log::silent(), &|| false);
        access.close();
    }

    /// What the audit log says of what is kept.
    fn audit(&self) -> Vec<Value> {
        let all = self.place.run(&["audit", &self.place.name("store"), "--json"]).ok().events();
        let kept = ["retention", "prune", "delete", "undelete", "deleted"];
        all.into_iter().filter(|e| kept.contains(&e["event"].as_str().unwrap())).collect()
    }

    fn seqs(&self, home: &str) -> Vec<u64> {
        let said = self.place.run_in(home, &["points", "v", "--all", "--json"]).ok();
        let points = said.json();
        points.as_array().unwrap().iter().map(|p| p["point"].as_u64().unwrap()).collect()
    }
}

fn only(value: &Value) -> &Value {
    assert_eq!(value.as_array().unwrap().len(), 1, "{value}");
    &value[0]
}

#[test]
fn points_expire_while_the_server_runs() {
    let mut stage = Stage::new();
    stage.point(1);
    stage.point(2);
    // One who sees point 2, and comes back when it is gone.
    stage.place.run_in("reader", &["join", "--kit", &stage.place.name("kit")]).ok();
    assert_eq!(stage.seqs("reader"), [1, 2]);
    stage.point(3);
    let said = stage.operator(&["retention", "v", "all:1s,floor:1s"]);
    said.fails(2, &["at character 1", "short-floor"]);
    stage.operator(&["retention", "w", "all:9d"]).fails(4, &["no volume 'w'"]);
    stage.operator(&["retention", "v", SHORT, "--grace", "1s"]).ok();
    let told = stage.operator(&["retention", "v", "--json"]).ok().json();
    let setting = only(&told["retention"]);
    assert_eq!((&setting["volume"], &setting["policy"]), (&"v".into(), &SHORT.into()));
    assert_eq!(setting["set_by"], "operator");
    wait();
    stage.point(4);
    let dry = stage.operator(&["prune", "--dry-run", "--json"]).ok().json();
    let dry = only(&dry);
    assert_eq!(
        (&dry["volume"], &dry["points"], &dry["expired"]),
        (&"v".into(), &4.into(), &3.into())
    );
    assert_eq!(dry["ranges"], serde_json::json!([[1, 3]]));
    // Three points, and the small chunks of two that nothing else refers to. What exactly is gained
    // is for the store's own test: gain.rs.
    let gain = dry["gain_bytes"].as_u64().unwrap();
    assert!((3 * 448..8 << 10).contains(&gain), "{gain}");
    let said = stage.operator(&["prune", "v", "--dry-run"]).ok();
    assert!(said.out.contains("of records would not be needed any more"), "{said:?}");
    assert_eq!(stage.seqs("home"), [1, 2, 3, 4], "a dry run lets nothing go");
    let said = stage.operator(&["prune", "v"]).ok();
    assert!(said.out.contains("v: 3 of 4 points have expired: 1 to 3"), "{said:?}");
    let audit = stage.audit();
    assert_eq!(
        audit.iter().map(|e| e["event"].as_str().unwrap()).collect::<Vec<_>>(),
        ["retention", "prune"]
    );
    assert_eq!((&audit[0]["name"], &audit[0]["policy"]), (&"v".into(), &SHORT.into()));
    assert_eq!((&audit[1]["gone"], &audit[1]["points"]), (&3.into(), &"1..3".into()));
    let uid = format!("uid {}", rustix::process::getuid().as_raw());
    assert_eq!((&audit[1]["by"], &audit[1]["from"]), (&uid.into(), &"order".into()));
    // Bridges lead over what is gone: nobody has anything to say.
    for home in ["home", "reader"] {
        assert_eq!(stage.seqs(home), [4]);
        let said = stage.place.run_in(home, &["verify", "v"]).ok();
        assert!(!said.err.contains("expired"), "{said:?}");
    }
    let content = stage.content.clone();
    stage.place.restores("v", &content);
    stage.place.run(&["restore", "v@2", &stage.place.name("dest")]).fails(4, &["point 2"]);
    // The next copy goes on, and what expired stays gone when the server comes back.
    stage.point(5);
    stage.server.take().unwrap().stop();
    wait();
    stage.expire();
    let server = stage.place.serve("127.0.0.1:0");
    for home in ["home", "reader"] {
        stage.place.run_in(home, &["retarget", &server.address]).ok();
    }
    assert_eq!(stage.seqs("reader"), [5]);
    server.stop();
}

#[test]
fn a_deletion_can_be_undone_until_it_happens() {
    let mut stage = Stage::new();
    for version in 1..=3 {
        stage.point(version);
    }
    stage.operator(&["delete", "v@3"]).fails(12, &["newest point, 3"]);
    stage.operator(&["delete", "v@7..9"]).fails(4, &["no point from 7 to 9"]);
    let said = stage.operator(&["delete", "v@1..2"]).ok();
    assert!(said.out.contains("points 1 to 2 of 'v' will be deleted at"), "{said:?}");
    let points = stage.place.run(&["points", "v", "--json"]).ok().json();
    let deleted: Vec<_> =
        points.as_array().unwrap().iter().map(|p| p["deleted"].is_string()).collect();
    assert_eq!(deleted, [true, true, false]);
    let said = stage.place.run(&["points", "v"]).ok();
    assert!(said.out.contains("2 points are to be deleted"), "{said:?}");
    let said = stage.place.run(&["volumes"]).ok();
    assert!(said.out.contains("points 1 to 2 of 'v' will be deleted"), "{said:?}");
    stage.operator(&["prune"]).ok();
    assert_eq!(stage.seqs("home"), [1, 2, 3], "it waits for its time");
    stage.operator(&["undelete", "v"]).ok();
    stage.operator(&["undelete", "v"]).fails(4, &["a deletion of v that could be undone"]);
    // Of a volume with a fork: first the fork.
    stage.place.run(&["fork", "v@2", "w"]).ok();
    stage.operator(&["delete", "v@2"]).fails(12, &["the fork 'w' begins with point 2"]);
    stage.operator(&["delete", "v"]).fails(12, &["'w' is a fork of it"]);
    stage.operator(&["delete", "v@1", "--grace", "1s"]).ok();
    stage.operator(&["delete", "w", "--grace", "1s"]).ok();
    wait();
    // By the server itself, when it is time.
    let server = stage.server.take().unwrap();
    let address = server.address.clone();
    server.stop();
    stage.expire();
    stage.server = Some(stage.place.serve(&address));
    let audit = stage.audit();
    let told: Vec<_> =
        audit.iter().map(|e| (e["event"].as_str().unwrap(), e["name"].as_str().unwrap())).collect();
    let [v, w] = ["v", "w"];
    let asked = [("delete", v), ("undelete", v), ("delete", v), ("delete", w)];
    assert_eq!(told[..4], asked);
    assert_eq!(told[4..].iter().filter(|e| **e == ("deleted", v)).count(), 1, "{told:?}");
    assert_eq!(told[4..].iter().filter(|e| **e == ("deleted", w)).count(), 1, "{told:?}");
    assert_eq!((&audit[0]["points"], &audit[0]["grace"]), (&"1..2".into(), &"1w".into()));
    assert_eq!(stage.seqs("home"), [2, 3]);
    let said = stage.place.run_in("reader", &["join", "--kit", &stage.place.name("kit")]).ok();
    assert!(!said.out.is_empty());
    let names = |said: &Value| -> Vec<String> {
        let all = said.as_array().unwrap().iter();
        all.map(|v| v["volume"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&stage.place.run_in("reader", &["volumes", "--json"]).ok().json()), ["v"]);
    // Who knew it is told that it is gone.
    stage.place.run(&["volumes"]).fails(9, &["does not show volume 'w'"]);
}

#[test]
fn a_writer_may_read_what_is_set_and_an_administrator_set_it() {
    let mut stage = Stage::new();
    stage.point(1);
    stage.point(2);
    for args in [
        &["retention", "v", "all:9d"][..],
        &["retention", "--default", "all:9d"],
        &["prune"],
        &["prune", "--dry-run"],
        &["delete", "v"],
        &["delete", "v@1"],
        &["undelete", "v"],
    ] {
        stage.place.run(args).fails(5, &["this client is writer here"]);
    }
    let said = stage.place.run(&["retention"]).ok();
    assert!(said.out.contains("nothing is set: everything is kept"), "{said:?}");
    // An administrator of the vault: another key, invited as such.
    let (store, file) = (stage.place.name("store"), stage.place.name("writer"));
    stage.place.run(&["vault", "export-writer", &file, "--name", "desk"]).ok();
    let address = &stage.server.as_ref().unwrap().address;
    let invite = ["invite", &store, "desk", "--url", address, "--role", "admin"];
    let invite = stage.place.run(&invite).ok().out;
    stage.place.run_in("desk", &["join", invite.trim(), "--vault", &file]).ok();
    let desk = |args: &[&str]| stage.place.run_in("desk", args);
    desk(&["retention", "v", "all:9d", "--grace", "1h"]).fails(5, &["for who runs the store"]);
    desk(&["delete", "v", "--grace", "1h"]).fails(5, &["for who runs the store"]);
    let said = desk(&["retention", "--default", "all:9d,daily:1y"]).ok();
    assert!(said.out.contains("the default: all:9d,daily:1y"), "{said:?}");
    desk(&["retention", "v", "none"]).ok();
    let said = stage.place.run(&["retention"]).ok();
    for words in ["(default)", "all:9d,daily:1y", "none of its own", "desk", "from "] {
        assert!(said.out.contains(words), "'{words}' is not in {said:?}");
    }
    desk(&["prune", "--json"]).ok();
    desk(&["delete", "v@1", "--grace", "1d"]).ok();
    desk(&["undelete", "v"]).ok();
    let audit = stage.audit();
    let told: Vec<_> = audit.iter().map(|e| e["event"].as_str().unwrap()).collect();
    assert_eq!(
        told,
        ["retention", "retention", "delete", "undelete"],
        "what was refused has no line"
    );
    for line in &audit {
        assert_eq!((&line["client"], &line["role"]), (&"desk".into(), &"admin".into()), "{line}");
        assert!(line["from"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    }
    desk(&["mirror", &stage.place.name("v"), "--volume", "x", "--once"])
        .fails(5, &["is admin here"]);
    assert_eq!(stage.seqs("home"), [1, 2]);
}

#[test]
fn a_clock_that_has_jumped_stops_expiry_until_it_is_confirmed() {
    let mut stage = Stage::new();
    stage.point(1);
    stage.operator(&["retention", "v", SHORT, "--grace", "1s"]).ok();
    wait();
    stage.point(2);
    // As if the last look had been in three days, before this start of the machine.
    let clocks = Clocks { wall: now_ns() + 3 * DAY, since_boot: 1, boot: [1; 16] };
    let mark = stage.place.path("store").join("expiry-clock");
    std::fs::write(&mark, Mark::new(clocks).to_text()).unwrap();
    let words = ["clock has gone back by 2 d 23 h", "--clock-is-right"];
    stage.operator(&["prune"]).fails(12, &words);
    let said = stage.operator(&["prune", "--dry-run"]).ok();
    assert!(said.err.contains(words[0]), "{said:?}");
    let said = stage.place.run(&["retention"]).ok();
    assert!(said.err.contains(words[0]), "{said:?}");
    assert_eq!(stage.seqs("home"), [1, 2]);
    // The same without a server, and what is confirmed holds.
    stage.server.take().unwrap().stop();
    stage.operator(&["prune"]).fails(12, &words);
    stage.operator(&["prune", "--clock-is-right"]).ok();
    let said = stage.operator(&["prune", "--json"]).ok().json();
    assert_eq!((&only(&said)["points"], &only(&said)["expired"]), (&1.into(), &0.into()));
}

#[test]
fn who_has_the_store_and_takes_no_orders_is_told_of() {
    let place = Place::joined();
    let store = dormouse::store_dir::StoreDir::open(&place.path("store")).unwrap();
    let lock = store.lock().unwrap();
    let running = place.start(&["retention", "--store", &place.name("store")]);
    let orders = place.path("store").join("orders");
    let asked = || std::fs::read_dir(&orders).is_ok_and(|mut d| d.next().is_some());
    let began = std::time::Instant::now();
    while !asked() {
        assert!(began.elapsed() < Duration::from_secs(20), "no order was given");
        std::thread::sleep(Duration::from_millis(5));
    }
    running.kill();
    drop(lock);
    // Without anybody, it is done on the store itself.
    let said = place.run(&["retention", "--store", &place.name("store")]).ok();
    assert!(said.out.contains("nothing is set"), "{said:?}");
}
