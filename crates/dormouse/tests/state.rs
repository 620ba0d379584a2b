//! Damaged, old and missing state, as people meet it: what the program says, and the
//! way back. Every byte of it is the business of `flips.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use std::path::{Path, PathBuf};

use common::program::{Place, log_of};

fn the_only(dir: PathBuf) -> PathBuf {
    let all: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

fn copy_tree(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    for (path, bytes) in common::snapshot(from) {
        let path = to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

fn two_points(place: &Place) -> [Vec<u8>; 2] {
    [1_u8, 2].map(|n| {
        let bytes = vec![n; 9000];
        std::fs::write(place.path("v"), &bytes).unwrap();
        place.mirror("v");
        if n == 1 {
            copy_tree(&place.path("home"), &place.path("old-home"));
            copy_tree(&place.path("store"), &place.path("old-store"));
        }
        bytes
    })
}

#[test]
fn an_old_head_is_refused_and_the_home_goes_on_when_told_so() {
    let place = Place::joined();
    let [_, newest] = two_points(&place);
    let head = the_only(place.path("home/heads"));
    let old = place.path("old-home/heads").join(head.file_name().unwrap());
    std::fs::copy(old, &head).unwrap();
    let name = head.to_str().unwrap();
    let words = [name, "an old version was put back", "--accept-state", "--kit"];
    let v = place.name("v");
    for args in [
        &["status"][..],
        &["points", "v"],
        &["volumes"],
        &["verify", "v"],
        &["mirror", &v, "--once"],
    ] {
        place.run(args).fails(9, &words);
    }
    let said = place.run(&["status", "--accept-state"]).ok();
    assert!(said.err.contains("set aside, as set-aside/heads-"), "{said:?}");
    let said = place.run(&["restore", "v", &place.name("d")]).ok();
    assert!(said.err.contains("freshness unproven"), "{said:?}");
    place.restores("v", &newest);
    // The next copy remembers the head again.
    place.mirror("v");
    assert!(!place.run(&["restore", "v", &place.name("e")]).ok().err.contains("unproven"));
}

/// All files of a home put back look as they did then: nothing local can tell. The
/// server's history goes on from the head that the home knows, so all of it is proved,
/// and the next point builds on what the server has.
#[test]
fn a_home_put_back_as_a_whole_goes_on_from_the_servers_head() {
    let place = Place::joined();
    let versions = two_points(&place);
    copy_tree(&place.path("old-home"), &place.path("home"));
    let said = place.run(&["points", "v", "--json"]).ok();
    assert_eq!(said.json().as_array().unwrap().len(), 2, "{said:?}");
    for (n, version) in versions.iter().enumerate() {
        place.restores(&format!("v@{}", n + 1), version);
    }
    std::fs::write(place.path("v"), vec![3; 9000]).unwrap();
    assert_eq!(place.mirror("v")["point"], 3);
    place.restores("v@2", &versions[1]);
    place.restores("v@3", &[3; 9000]);
}

/// The limit of it: with a home put back, the server may be put back as far unseen, but
/// no further than the home knows.
#[test]
fn a_server_put_back_behind_its_clients_head_is_found_out() {
    let place = Place::joined();
    two_points(&place);
    copy_tree(&place.path("store"), &place.path("new-store"));
    copy_tree(&place.path("old-store"), &place.path("store"));
    for args in [&["points", "v"][..], &["verify", "v"], &["mirror", &place.name("v"), "--once"]] {
        place.run(args).fails(9, &["put back to an older state"]);
    }
    copy_tree(&place.path("old-home"), &place.path("home"));
    place.run(&["verify", "v"]).ok();
}

#[test]
fn a_damaged_home_names_the_file_and_a_backup_brings_it_back() {
    let place = Place::joined();
    let client = place.path("home/client.toml");
    let whole = std::fs::read(&client).unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    std::fs::write(&client, text.replace("trust_group = 0", "trust_group = 1")).unwrap();
    let words = [client.to_str().unwrap(), "damaged", "backup"];
    for args in [&["status"][..], &["points"], &["vault", "show"], &["recovery-kit"]] {
        place.run(args).fails(9, &words);
    }
    place.run(&["status", "--accept-state"]).fails(9, &words);
    place.run(&["join", &place.name("store")]).fails(9, &words);
    std::fs::write(&client, &whole).unwrap();
    place.run(&["status"]).ok();
    // Neither is a home that lost its files one that has joined nothing.
    std::fs::remove_file(&client).unwrap();
    place.run(&["join", &place.name("store")]).fails(9, &["client.toml: it is missing"]);
}

#[test]
fn scrub_tells_of_the_servers_state_and_goes_on_when_told_so() {
    let (place, server) = Place::served();
    place.join_server("second", "desk", &server);
    let store = place.name("store");
    let laptop = place.path("store/clients/laptop.toml");
    let before = std::fs::read(&laptop).unwrap();
    place.run(&["revoke", &store, "laptop"]).ok();
    place.run(&["points"]).fails(5, &["revoked"]);
    // A revoked client's old file, under a running server.
    std::fs::write(&laptop, before).unwrap();
    place.run(&["points"]).fails(9, &["a file of the server's state does not hold"]);
    place.run_in("second", &["points"]).ok();
    let name = laptop.to_str().unwrap();
    let said = place.run(&["scrub", &store]).fails(9, &["1 faults", "--accept-state"]);
    assert!(said.out.contains(&format!("state {name}: an old version was put back")), "{said:?}");
    let said = place.run(&["scrub", &store, "--json"]).fails(9, &[]);
    assert_eq!(said.event("state")["file"], name);
    let said = place.run(&["clients", &store]).fails(9, &[name]);
    assert!(said.out.contains("desk") && !said.out.contains("laptop"), "{said:?}");
    place.run(&["invite", &store, "laptop", "--url", "h"]).fails(9, &[name]);
    place.run(&["revoke", &store, "laptop"]).fails(9, &[name]);

    let said = place.run(&["scrub", &store, "--accept-state"]).ok();
    assert!(said.err.contains("clients/laptop.toml: set aside"), "{said:?}");
    place.run(&["points"]).fails(5, &["does not know"]);
    place.run_in("second", &["points"]).ok();
    server.stop();
    place.run(&["scrub", &store]).ok();
    // A server that starts says at once what does not hold.
    std::fs::write(place.path("store/clients/desk.toml"), "key = 1").unwrap();
    let server = place.serve("127.0.0.1:0");
    let log = std::fs::read_to_string(log_of(&place.path("store"))).unwrap();
    assert!(log.contains("desk.toml: it is damaged"), "{log}");
    server.stop();
}

#[test]
fn a_store_whose_key_or_header_is_damaged_is_refused_by_name() {
    let place = Place::joined();
    let store = place.name("store");
    for name in ["server.key", "dormouse-store", "manifest.toml"] {
        let path = place.path("store").join(name);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let words = [path.to_str().unwrap(), "damaged"];
        place.run(&["serve", &store, "--listen", "127.0.0.1:0"]).fails(9, &words);
        place.run(&["points"]).fails(9, &words);
        let said = place.run(&["scrub", &store]).fails(9, &[]);
        assert!(said.out.contains(&format!("state {}", words[0])), "{said:?}");
        std::fs::write(&path, whole).unwrap();
    }
    place.run(&["points"]).ok();
    for tree in ["store", "home"] {
        std::fs::remove_file(place.path(tree).join("manifest.toml")).unwrap();
        place.run(&["points"]).fails(9, &["manifest.toml: it is missing", "--accept-state"]);
        let accept: &[&str] = if tree == "home" { &["status"] } else { &["scrub", &store] };
        place.run(&[accept, &["--accept-state"]].concat()).ok();
        place.run(&["points"]).ok();
    }
    // What the administrator edits is not state, and what is misspelt is told.
    std::fs::write(place.path("store/server.toml"), "lisen = \"h:1\"\n").unwrap();
    let said = place.run(&["serve", &store]).fails(2, &["server.toml", "lisen"]);
    assert!(said.err.contains("listen = "), "{said:?}");
}
