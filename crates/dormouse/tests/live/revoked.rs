//! What whoever runs the server decides reaches a mirror that is open, and says what to do.

use std::time::{Duration, Instant};

use dormouse::connect;
use dormouse::home::Home;
use dormouse_format::message::Message;

use crate::common::program::Numbers;
use crate::stand::{Stand, sh, until};

/// The link of a mirror ends within this.
const AT_ONCE: Duration = Duration::from_secs(1);

#[test]
fn a_revoked_mirror_is_sent_away_at_once_and_says_why() {
    let Some(stand) = Stand::live(&[]) else { return };
    let store = stand.place.name("store");
    let log = dormouse_log(&stand);
    stand.place.run(&["revoke", &store, "me"]).ok();
    let began = Instant::now();
    while !std::fs::read_to_string(&log).unwrap().contains("client 'me': sent away") {
        assert!(began.elapsed() < AT_ONCE, "{}", std::fs::read_to_string(&log).unwrap());
        std::thread::sleep(Duration::from_millis(10));
    }
    // Its next try is told why.
    until("NOCONN, not authorised", || says(&stand, "NOCONN", "does not let this client in"));
    // It is the server that keeps it out: marks go on, and the disk is as it was.
    let list = stand.place.run(&["clients", &store, "--json"]).ok().json();
    assert!(list["clients"][0]["revoked"].is_string(), "{list}");
}

#[test]
fn a_mirror_at_its_quota_waits_for_room_and_goes_on() {
    let Some(mut stand) = Stand::live(&[]) else { return };
    let store = stand.place.name("store");
    let grant = |quota: &str| stand.place.run(&["grant", &store, "me", "--quota", quota]).ok();
    grant("600KiB");
    std::thread::sleep(AT_ONCE);
    std::fs::write(stand.mount.join("new"), Numbers(3).noise(1 << 20)).unwrap();
    sh("sync");
    until("NOCONN, full", || says(&stand, "NOCONN", "room"));
    assert!(stand.log().contains("of 600.0 KiB are stored"), "{}", stand.log());
    grant("none");
    // It would try again by itself, in a while.
    stand.kill();
    stand.start(&[]);
    stand.is_live();
    stand.umount();
    stand.comes_back();
}

/// All tokens for scans are taken, by connections that say nothing more and rest with them.
#[test]
fn a_mirror_that_waits_until_it_may_scan_says_so() {
    let Some(mut stand) = Stand::new() else { return };
    let cores = std::thread::available_parallelism().unwrap().get();
    if 2 * cores > 12 {
        eprintln!("SKIPPED: with {cores} processors a client may not take all tokens");
        return;
    }
    let account = Home::locate(Some(stand.place.path("home"))).unwrap().account().unwrap();
    let scan = || {
        let link = connect::connect(&account).unwrap();
        assert_eq!(connect::ask(&link, Message::AskScan).unwrap(), Message::Admitted);
        link
    };
    let scans: Vec<_> = (0..2 * cores).map(|_| scan()).collect();
    std::thread::sleep(Duration::from_secs(4));
    stand.start(&[]);
    let notes = || stand.status().map(|v| v["notes"].to_string()).unwrap_or_default();
    until("a note of those that scan first", || notes().contains("others scan first"));
    drop(scans);
    stand.is_live();
    assert!(!stand.status().unwrap()["notes"].to_string().contains("scan first"));
}

/// Whether it is in this state, with such a reason.
fn says(stand: &Stand, state: &str, reason: &str) -> bool {
    let status = stand.status();
    status.is_some_and(|v| v["state"] == state && v["reason"].to_string().contains(reason))
}

fn dormouse_log(stand: &Stand) -> std::path::PathBuf {
    crate::common::program::log_of(&stand.place.path("store"))
}
