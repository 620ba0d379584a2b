//! The short form of `cargo xtask herd`: more clients than there are tokens for scans come at once,
//! and all get their point; one that follows a disk meanwhile is not held up.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;
#[path = "common/herd.rs"]
mod herd;

use std::time::{Duration, Instant};

use common::World;
use common::program::Place;
use dormouse::connect;
use dormouse::home::Home;
use dormouse_format::message::{Message, Refusal};
use herd::{Herd, Live, quantile};

/// Clients.
const NUMBER: usize = 24;
/// A live write takes no longer than this, whatever the others do.
const LIVE_MAX: Duration = Duration::from_secs(2);

#[test]
fn all_that_come_at_once_get_their_point_and_who_is_live_goes_on() {
    let mut world = World::serving();
    let address = world.server.as_ref().unwrap().address().to_string();
    let herd = Herd::join(&world.path("store"), &address, world.dir.path(), NUMBER).unwrap();
    world.join("live", &world.invite("live")).unwrap();
    let live = Live::start(&world.home("live"), Duration::from_millis(100)).unwrap();
    herd.change(1, 256, 4 << 20).unwrap();
    herd.come().unwrap();
    world.stop();
    world.start();
    herd.change(2, 64, 4 << 20).unwrap();
    assert_eq!(herd.come().unwrap().len(), NUMBER);
    // It tries again now and then, and is there again in a moment.
    std::thread::sleep(Duration::from_secs(2));
    let times = live.end().unwrap();
    let mut times: Vec<Duration> = times.into_iter().map(|(_, took)| took).collect();
    // One of them fell into the restart.
    times.sort_unstable();
    times.pop();
    let worst = quantile(&mut times, 1.0);
    assert!(times.len() > 5 && worst < LIVE_MAX, "{worst:?} of {}", times.len());
    // Every one has its second point.
    for home in herd.homes() {
        let link = connect::connect(&home.account().unwrap()).unwrap();
        let Ok(Message::Volumes { items }) = connect::ask(&link, Message::ListVolumes) else {
            panic!("volumes")
        };
        assert_eq!(items[0].head.unwrap().point().seq, 2);
    }
}

/// Scans beyond the tokens are told how many are before them, in order, and are let in as
/// others go.
#[test]
fn a_scan_that_has_to_wait_is_told_so() {
    let world = World::serving();
    world.join("a", &world.invite("laptop")).unwrap();
    let account = world.home("a").account().unwrap();
    let ask = || {
        let link = connect::connect(&account).unwrap();
        connect::send(&link, Message::AskScan).unwrap();
        link
    };
    let cores = std::thread::available_parallelism().unwrap().get();
    if 2 * cores > 12 {
        eprintln!(
            "SKIPPED: with {cores} processors more scans run at once than a client may ask for"
        );
        return;
    }
    let admitted = |link: &dormouse::link::Link| {
        assert_eq!(connect::receive(link).unwrap(), Message::Admitted);
    };
    let mut running: Vec<_> = (0..2 * cores).map(|_| ask()).collect();
    running.iter().for_each(admitted);
    let waiting = [ask(), ask()];
    // Each is told within a moment; who came first is first.
    let mut ahead: Vec<Message> = waiting.iter().map(|l| connect::receive(l).unwrap()).collect();
    ahead.sort_by_key(|m| format!("{m:?}"));
    assert_eq!(ahead, [Message::Queued { ahead: 0 }, Message::Queued { ahead: 1 }]);
    let began = Instant::now();
    running.truncate(2 * cores - 2);
    waiting.iter().for_each(admitted);
    assert!(began.elapsed() < Duration::from_secs(2));
    // Other questions of who does not scan are answered all the time.
    let link = connect::connect(&account).unwrap();
    assert_eq!(connect::ask(&link, Message::Barrier).unwrap(), Message::Durable);
}

/// Threads of a process that have this name.
fn threads(pid: u32, name: &str) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let called = |t: &std::fs::DirEntry| std::fs::read_to_string(t.path().join("comm"));
    tasks.filter(|t| called(t).is_ok_and(|c| c.trim() == name)).count()
}

#[track_caller]
fn soon(what: &str, is: impl Fn() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Clients that say nothing have no thread; what they say then is answered, who is revoked is told
/// so at once, and so are all when the server stops.
#[test]
fn who_says_nothing_costs_no_thread_and_is_there_all_the_same() {
    let (place, server) = Place::served();
    place.join_server("second", "desk", &server);
    let account = |home: &str| Home::locate(Some(place.path(home))).unwrap().account().unwrap();
    let (first, second) = (account("home"), account("second"));
    let mut links: Vec<_> = (0..12).map(|_| connect::connect(&first).unwrap()).collect();
    let revoked: Vec<_> = (0..4).map(|_| connect::connect(&second).unwrap()).collect();
    let pid = server.child.id();
    let at_work = || ["connection", "link-read", "link-write"].map(|name| threads(pid, name));
    // A thread that has just begun has its name a moment later: they are not counted to the last.
    assert!(at_work().iter().all(|n| *n >= 8), "{:?}", at_work());
    let at_rest = || soon("they rest", || at_work() == [0; 3]);
    at_rest();
    for round in 0..2 {
        for link in &links {
            let began = Instant::now();
            let answer = connect::ask(link, Message::Barrier).unwrap();
            assert_eq!((answer, round), (Message::Durable, round));
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        }
        assert!(at_work()[0] <= 12, "those that are not spoken to go on resting");
        if round == 0 {
            at_rest();
        }
    }
    at_rest();
    place.run(&["revoke", &place.name("store"), "desk"]).ok();
    let until = Instant::now() + Duration::from_secs(1);
    for link in &revoked {
        let told = link.rx.recv_deadline(until).unwrap();
        assert!(matches!(told, Ok(Message::Error { refusal: Refusal::Revoked, .. })), "{told:?}");
    }
    // One that went away while it rested is noticed.
    drop(links.pop());
    let link = links.pop().unwrap();
    link.cut();
    let began = Instant::now();
    server.stop();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    for link in &links {
        let told = link.rx.recv_timeout(Duration::from_secs(1)).unwrap();
        assert!(matches!(told, Ok(Message::Error { refusal: Refusal::Stopping, .. })), "{told:?}");
    }
}
