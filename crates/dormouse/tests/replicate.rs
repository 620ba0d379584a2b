//! A second copy of a store: it follows a server at work, takes its place, and heals it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use std::fs;
use std::path::Path;

use common::program::{Numbers, Place, Serving, chunks};

fn image(seed: u64) -> Vec<u8> {
    Numbers(seed).noise(300 << 10)
}

fn mirrored(place: &Place, name: &str, seed: u64) -> Vec<u8> {
    let bytes = image(seed);
    fs::write(place.path(name), &bytes).unwrap();
    place.mirror(name);
    bytes
}

/// Segments and state of a store, without caches, locks and marks.
fn content(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let all = common::snapshot(dir).into_iter();
    let all = all.map(|(p, b)| (p.strip_prefix(dir).unwrap().to_str().unwrap().to_owned(), b));
    // The first server's own memory, which a copy begins anew.
    let other = ["lock", "manifest.lock", "replica.toml", "seen.json", "seen.json.new"];
    all.filter(|(name, _)| !other.contains(&&**name) && !name.contains("/index/")).collect()
}

#[test]
fn a_copy_follows_a_server_at_work_and_takes_its_place() {
    let (place, server) = Place::served();
    let (store, copy) = (place.name("store"), place.name("copy"));
    let replicate = || place.run(&["replicate", &store, &copy, "--json"]);
    let first = mirrored(&place, "v", 1);
    let said = replicate().ok();
    assert!(said.event("done")["bytes"].as_u64().unwrap() > 300 << 10, "{said:?}");
    // All that was acknowledged is there, and nothing is copied twice.
    assert_eq!(replicate().ok().event("done")["copied"], 0);
    let second = mirrored(&place, "v", 2);
    place.invite("another", &server);
    let done = replicate().ok().event("done");
    let bytes = done["bytes"].as_u64().unwrap();
    assert!((300 << 10..400 << 10).contains(&bytes) && done["state"] == 2, "{done}");
    place.run(&["scrub", &copy]).ok();
    // Nobody else writes to it.
    for args in [&["serve", &*copy, "--listen", "127.0.0.1:0"][..], &["rebuild", &copy]] {
        place.run(args).fails(8, &["second copy", "dormouse promote"]);
    }
    server.stop();
    assert!(replicate().ok().event("done")["audit_bytes"] == 0, "it was copied before");
    assert_eq!(content(Path::new(&copy)), content(Path::new(&store)));
    // The store is lost.
    fs::remove_dir_all(&store).unwrap();
    let said = place.run(&["promote", &copy]).ok();
    assert!(said.out.contains("last equal to"), "{said:?}");
    let server = Serving::start(Path::new(&copy), "127.0.0.1:0");
    place.run(&["retarget", &server.address]).ok();
    // Who joined the lost store is on record in the one that took its place.
    let audit = place.run(&["audit", &copy, "--json"]).ok().events();
    assert!(audit.iter().any(|e| e["event"] == "join" && e["client"] == "laptop"), "{audit:?}");
    for (what, image) in [("v@1", &first), ("v@2", &second)] {
        place.restores(what, image);
    }
    let third = mirrored(&place, "v", 3);
    place.restores("v@3", &third);
}

#[test]
fn a_copy_of_something_else_is_left_alone() {
    let (place, server) = Place::served();
    server.stop();
    let (store, copy, full) = (place.name("store"), place.name("copy"), place.name("full"));
    fs::create_dir(&full).unwrap();
    fs::write(place.path("full/x"), "x").unwrap();
    place.run(&["replicate", &store, &full]).fails(8, &["not empty", "nothing was changed"]);
    place.run(&["replicate", &store, &store]).fails(8, &["not a second copy"]);
    place.run(&["replicate", &place.name("none"), &copy]).fails(4, &["no store"]);
    place.run(&["replicate", &store, &copy]).ok();
    Serving::start(&place.path("other"), "127.0.0.1:0").stop();
    let other = place.name("other");
    place.run(&["replicate", &other, &copy]).fails(8, &["another store"]);
    place.run(&["promote", &store]).fails(8, &["no second copy"]);
    // What was promoted is no copy any more.
    place.run(&["promote", &copy]).ok();
    place.run(&["replicate", &store, &copy]).fails(8, &["not a second copy"]);
}

#[test]
fn a_damaged_store_is_healed_and_keeps_the_damage_for_inspection() {
    let (place, server) = Place::served();
    let (store, copy) = (place.name("store"), place.name("copy"));
    let bytes = mirrored(&place, "v", 1);
    server.stop();
    place.run(&["replicate", &store, &copy]).ok();
    let segment = place.segments()[0].clone();
    let whole = fs::read(&segment).unwrap();
    let mut damaged = whole.clone();
    for (at, header) in chunks(&segment).iter().take(3) {
        damaged[at + 112 + header.body_len as usize / 2] ^= 1;
    }
    fs::write(&segment, &damaged).unwrap();
    place.run(&["scrub", &store]).fails(9, &["--repair-from"]);
    // Damage is not taken for news, and not hidden.
    let server = place.serve("127.0.0.1:0");
    place.run(&["scrub", &store, "--repair-from", &copy]).fails(12, &["in use"]);
    server.kill();
    let said = place.run(&["scrub", &store, "--repair-from", &copy]).ok();
    assert!(said.out.contains("healed; what was there is kept in"), "{said:?}");
    let now = fs::read(&segment).unwrap();
    assert!(now.starts_with(&whole));
    let kept = segment.with_extension("seg.damaged-1");
    assert!(fs::read(&kept).unwrap().starts_with(&damaged));
    let notes = place.run(&["doctor", &store]).out;
    assert!(notes.contains("damaged-1") || notes.contains("set aside"), "{notes}");
    let server = place.serve("127.0.0.1:0");
    place.run(&["retarget", &server.address]).ok();
    place.restores("v", &bytes);
    place.run(&["verify", "v"]).ok();
    server.stop();
    // A segment that is gone comes back too.
    fs::remove_file(&segment).unwrap();
    let said = place.run(&["scrub", &store, "--repair-from", &copy]).ok();
    assert!(said.out.contains("it was missing"), "{said:?}");
    assert_eq!(fs::read(&segment).unwrap(), whole);
}
