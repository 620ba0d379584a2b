//! The short form of `cargo xtask herd`: more clients than there are tokens for scans come at once,
//! and all get their point; one that follows a disk meanwhile is not held up.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;
#[path = "common/herd.rs"]
mod herd;

use std::time::{Duration, Instant};

use common::World;
use dormouse::connect;
use dormouse_format::message::Message;
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
