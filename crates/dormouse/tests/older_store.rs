//! Stores of earlier versions, committed with this program, are served, checked, restored from
//! and written to by every later one; so are their homes and recovery kits.
//!
//! A new one is made by `DORMOUSE_WRITE_STORE=NAME cargo test -p dormouse --test older_store`,
//! as `tests/data/NAME`: once for each version of the format, and never changed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::program::Place;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

/// What the volume 'v' held at its first and its second point, and 'w', a fork of the first, at
/// its second. Computed here alone: it must never change.
fn images() -> [Vec<u8>; 3] {
    let mut state = 1_u32;
    let mut noise = |len: usize| -> Vec<u8> {
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..len).map(next).collect()
    };
    let mut first = noise(40 << 10);
    first.extend(vec![0; 1 << 20]);
    first.extend(b"what a dormouse dreams of\n".repeat(4000));
    first.extend(noise(777));
    let mut second = first.clone();
    second[8192..12_288].copy_from_slice(&noise(4096));
    let mut forked = first.clone();
    forked[..4096].fill(0);
    [first, second, forked]
}

fn copy(from: &Path, to: &Path) {
    for (path, bytes) in common::snapshot(from) {
        let name = path.strip_prefix(from).unwrap();
        let lock = name.ends_with("lock") || name.ends_with("manifest.lock");
        if lock || name.starts_with("run") || name.to_string_lossy().starts_with("volume-") {
            continue;
        }
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Makes a store with all that a store has, its client's home and the kit.
fn write(name: &str) {
    let to = Path::new(DATA).join(name);
    assert!(!to.exists(), "{} is there: a committed store is never changed", to.display());
    let (place, server) = Place::served();
    let [first, second, forked] = images();
    for (name, image) in [("v", &first), ("v", &second)] {
        fs::write(place.path(name), image).unwrap();
        place.mirror(name);
    }
    place.run(&["fork", "v@1", "w"]).ok();
    fs::write(place.path("w"), &forked).unwrap();
    place.run(&["mirror", &place.name("w"), "--once"]).ok();
    place.invite("another", &server);
    server.stop();
    for part in ["store", "home"] {
        copy(&place.path(part), &to.join(part));
    }
    fs::copy(place.path("kit"), to.join("kit")).unwrap();
}

fn stores() -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(DATA).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn stores_of_every_version_are_served_restored_and_written() {
    if let Ok(name) = std::env::var("DORMOUSE_WRITE_STORE") {
        write(&name);
    }
    let stores = stores();
    assert!(!stores.is_empty(), "no store is committed in {DATA}");
    let [first, second, forked] = images();
    for from in stores {
        let place = Place::new();
        for part in ["store", "home"] {
            copy(&from.join(part), &place.path(part));
        }
        fs::copy(from.join("kit"), place.path("kit")).unwrap();
        let whole = || {
            for (what, image) in [("v@1", &first), ("v@2", &second), ("w", &forked)] {
                place.run(&["verify", what]).ok();
                place.restores(what, image);
            }
        };
        let store = place.name("store");
        place.run(&["scrub", &store]).ok();
        let server = place.serve("127.0.0.1:0");
        place.run(&["retarget", &server.address]).ok();
        whole();
        // The history goes on.
        let third = [&second[..], b"and one more"].concat();
        fs::write(place.path("v"), &third).unwrap();
        assert_eq!(place.mirror("v")["point"], 3, "{}", from.display());
        place.restores("v", &third);
        whole();
        place.run_in("new", &["join", "--kit", &place.name("kit"), &server.address]).ok();
        place.restores_in("new", "v", &third);
        server.stop();
        // Without its index too.
        place.run(&["rebuild", &store]).ok();
        place.run(&["scrub", &store]).ok();
        let before = common::snapshot(&from);
        assert!(before.iter().any(|(path, _)| path.extension().is_some_and(|e| e == "seg")));
    }
}
