//! `doctor` and `rebuild`: what is said of a store that something is wrong with, and how much of
//! it comes back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use std::fs;
use std::path::PathBuf;

use common::program::{Numbers, Place, Said};

/// A store with a client 'laptop' and a volume 'v' of one point; no server runs.
fn stored() -> (Place, Vec<u8>) {
    let (place, server) = Place::served();
    let image = Numbers(11).noise(200 << 10);
    fs::write(place.path("v"), &image).unwrap();
    place.mirror("v");
    server.stop();
    (place, image)
}

fn doctor(place: &Place) -> Said {
    place.run(&["doctor", &place.name("store"), "--json"])
}

/// What is said of the store with this weight: subject, finding and way out.
fn told(said: &Said, weight: &str) -> Vec<String> {
    let of = |event: &&serde_json::Value| event["part"] == "store" && event["weight"] == weight;
    let text = |event: &serde_json::Value| {
        format!("{}: {} / {}", event["about"], event["found"], event["to_do"])
    };
    said.events().iter().filter(of).map(text).collect()
}

#[track_caller]
fn is_wrong(place: &Place, code: i32, words: &[&str]) {
    let said = doctor(place);
    // Where a layer of the jail does not hold, that is wrong too, but less so than a store.
    assert_eq!(said.code, Some(code), "{said:?}");
    let wrong = told(&said, "wrong");
    let all = |text: &&String| words.iter().all(|word| text.contains(word));
    assert!(wrong.iter().any(|text| all(&text)), "{words:?} is not in {wrong:#?}");
    assert!(wrong.iter().all(|text| !text.ends_with("/ \"\"")), "no way out: {wrong:#?}");
}

fn the_only(dir: PathBuf) -> PathBuf {
    let all: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

fn flip(path: &PathBuf, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_host_and_a_good_store_are_fine() {
    let (place, _) = stored();
    let before = place.store();
    let said = doctor(&place);
    assert_eq!(told(&said, "wrong"), [""; 0]);
    let fine = told(&said, "ok").join("\n");
    for words in ["all hold", "lock\": \"free", "free space", "1 segments"] {
        assert!(fine.contains(words), "{words} is not in {fine}");
    }
    assert_eq!(place.store(), before, "nothing was changed");
    let host = |e: &serde_json::Value| e["part"] == "host";
    assert!(said.events().iter().filter(|e| host(e)).count() >= 9, "{said:?}");
    if said.code == Some(0) {
        let text = place.run(&["doctor"]).ok().out;
        for layer in dormouse::jail::Layer::ALL {
            assert!(text.contains(layer.name()), "{text}");
        }
    } else {
        eprintln!("SKIPPED: a layer of the jail does not hold here: {}", said.out);
    }
    let server = place.serve("127.0.0.1:0");
    let fine = told(&doctor(&place), "ok").join("\n");
    assert!(fine.contains(&format!("held by process {}", server.child.id())), "{fine}");
}

#[test]
fn a_quota_that_is_nearly_or_wholly_used_up_is_told() {
    let (place, _) = stored();
    let store = place.name("store");
    let list = place.run(&["clients", &store, "--json"]).ok().json();
    let bytes = list["clients"][0]["vault_bytes"].as_u64().unwrap();
    let told_with = |quota: u64, weight: &str| {
        place.run(&["grant", &store, "laptop", "--quota", &format!("{quota}B")]).ok();
        let said = doctor(&place);
        assert_eq!(said.code == Some(11), weight == "wrong", "{said:?}");
        told(&said, weight).into_iter().find(|text| text.contains("of its quota of"))
    };
    let text = told_with(bytes * 2, "ok").unwrap();
    assert!(text.ends_with("/ \"\""), "nothing to do: {text}");
    let text = told_with(bytes + bytes / 20, "note").unwrap();
    assert!(text.contains("dormouse grant") && text.contains("prune"), "{text}");
    let text = told_with(bytes, "wrong").unwrap();
    assert!(text.contains("nothing new is taken") && text.contains("dormouse grant"), "{text}");
    // The default counts where nothing is granted.
    place.run(&["grant", &store, "laptop", "--quota", "default"]).ok();
    fs::write(place.path("store/server.toml"), "quota = \"1KiB\"").unwrap();
    is_wrong(&place, 11, &["of its quota of 1.0 KiB"]);
}

#[test]
fn what_is_wrong_is_named_with_what_to_do() {
    let (place, _) = stored();
    let (segment, store) = (place.segments()[0].clone(), place.name("store"));
    let whole = fs::read(&segment).unwrap();
    // Unfinished: fine, and told.
    fs::write(&segment, [&whole[..], b"DMR1 and no more"].concat()).unwrap();
    let said = doctor(&place);
    assert!(told(&said, "note").join("\n").contains("16 bytes from"), "{said:?}");
    assert_eq!(told(&said, "wrong"), [""; 0]);
    // Damaged, where the chain says so.
    let (chunk, header) = common::program::chunks(&segment)[0];
    fs::write(&segment, &whole).unwrap();
    flip(&segment, chunk + 112 + header.body_len as usize / 2);
    is_wrong(&place, 9, &["byte", "dormouse scrub", "--all"]);
    fs::rename(&segment, segment.with_extension("away")).unwrap();
    is_wrong(&place, 8, &["no segments"]);
    fs::rename(segment.with_extension("away"), &segment).unwrap();
    fs::write(&segment, &whole).unwrap();
    assert_eq!(told(&doctor(&place), "wrong"), [""; 0]);

    fs::write(place.path("store/server.toml"), "port = 1").unwrap();
    is_wrong(&place, 2, &["server.toml", "url = "]);
    fs::remove_file(place.path("store/server.toml")).unwrap();
    flip(&the_only(place.path("store/clients")), 9);
    is_wrong(&place, 9, &["laptop.toml", "damaged", "--accept-state"]);
    place.run(&["scrub", &store, "--accept-state"]).ok();
    let notes = told(&doctor(&place), "note").join("\n");
    assert!(notes.contains("set-aside") && notes.contains("no client belongs to it"), "{notes}");
    place.run(&["doctor", &place.name("none")]).fails(4, &["no store"]);
}

#[test]
fn free_space_that_is_gone_is_wrong() {
    let place = Place::new();
    let what = "a store on a small disk";
    let Some(_disk) = common::program::Tmpfs::mount(&place.path("store"), 4096, what) else {
        return;
    };
    place.serve("127.0.0.1:0").stop();
    is_wrong(&place, 11, &["free space", "make room"]);
}

/// The index comes back by itself, and by `rebuild`; what is in use is left alone.
#[test]
fn an_index_comes_back() {
    let (place, image) = stored();
    let store = place.name("store");
    let vault = the_only(place.path("store/vaults"));
    let segments = fs::read(&place.segments()[0]).unwrap();
    for by_command in [true, false] {
        fs::remove_dir_all(vault.join("index")).unwrap();
        if by_command {
            let said = place.run(&["rebuild", &store]).ok();
            assert!(said.out.contains("index of 1 segments"), "{said:?}");
        }
        let server = place.serve("127.0.0.1:0");
        place.run(&["retarget", &server.address]).ok();
        place.restores("v", &image);
        place.run(&["rebuild", &store]).fails(12, &["in use"]);
        server.stop();
    }
    let now = fs::read(&place.segments()[0]).unwrap();
    assert!(now.starts_with(&segments), "the log only grows");
    fs::create_dir_all(vault.join("index")).unwrap();
    fs::write(vault.join("index/0000000000000001-0000000000000001.run"), "x").unwrap();
    let notes = told(&doctor(&place), "note").join("\n");
    assert!(notes.contains("index files that do not fit"), "{notes}");
    place.run(&["rebuild", &store]).ok();
    assert_eq!(told(&doctor(&place), "note"), [""; 0]);
}

#[test]
fn lock_files_come_back_by_themselves() {
    let (place, image) = stored();
    for name in ["lock", "manifest.lock"] {
        fs::remove_file(place.path("store").join(name)).unwrap();
    }
    let server = place.serve("127.0.0.1:0");
    place.run(&["retarget", &server.address]).ok();
    place.restores("v", &image);
}

/// Manifest and header are made of what is there; clients stay.
#[test]
fn a_manifest_and_a_header_come_back() {
    let (place, image) = stored();
    let store = place.name("store");
    for lost in [&["manifest.toml"][..], &["dormouse-store"], &["manifest.toml", "dormouse-store"]]
    {
        for name in lost {
            fs::remove_file(place.path("store").join(name)).unwrap();
        }
        // Without both it looks like any other directory.
        let (code, word) =
            if lost.len() == 1 { (9, "missing") } else { (8, "not a Dormouse store") };
        place.run(&["serve", &store, "--listen", "127.0.0.1:0"]).fails(code, &[word]);
        let said = place.run(&["rebuild", &store]).ok();
        assert!(!said.err.contains("must join again"), "{said:?}");
        let server = place.serve("127.0.0.1:0");
        place.run(&["retarget", &server.address]).ok();
        place.restores("v", &image);
        server.stop();
    }
    // Damaged, they are kept aside.
    for name in ["manifest.toml", "dormouse-store"] {
        flip(&place.path("store").join(name), 3);
        let said = place.run(&["rebuild", &store]).ok();
        assert!(said.err.contains(&format!("set aside, as set-aside/{name}")), "{said:?}");
    }
    assert_eq!(told(&doctor(&place), "wrong"), [""; 0]);
}

/// Clients cannot be made anew: they must join again, and that is said.
#[test]
fn clients_that_are_gone_join_again() {
    let (place, image) = stored();
    let store = place.name("store");
    fs::remove_dir_all(place.path("store/clients")).unwrap();
    let said = place.run(&["rebuild", &store]).ok();
    assert!(said.err.contains("'laptop' must join again"), "{said:?}");
    assert!(said.out.contains("no client belongs to it"), "{said:?}");
    let server = place.serve("127.0.0.1:0");
    place.run(&["retarget", &server.address]).ok();
    place.run(&["points", "v"]).fails(5, &[]);
    let kit = place.name("kit");
    place.run_in("again", &["join", "--kit", &kit, &server.address]).ok();
    place.restores_in("again", "v", &image);
}

/// A server's key is made only if that is asked for.
#[test]
fn everything_but_the_vaults_is_gone() {
    let (place, image) = stored();
    let store = place.name("store");
    for entry in fs::read_dir(&store).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("vaults") {
            fs::remove_dir_all(path).unwrap();
        } else if path.is_file() {
            fs::remove_file(path).unwrap();
        }
    }
    place.run(&["rebuild", &store]).fails(10, &["server.key", "--new-key"]);
    assert_eq!(fs::read_dir(&store).unwrap().count(), 1, "nothing was changed");
    let said = place.run(&["rebuild", &store, "--new-key"]).ok();
    assert!(said.err.contains("a new key"), "{said:?}");
    let server = place.serve("127.0.0.1:0");
    place.run(&["retarget", &server.address]).ok();
    place.run(&["points", "v"]).fails(5, &["key"]);
    let invite = place.invite("laptop", &server);
    let file = place.name("writer");
    let said = place.run(&["vault", "export-writer", &file]).ok();
    assert!(said.out.contains("secret"), "{said:?}");
    place.run_in("again", &["join", &invite, "--vault", &file]).ok();
    fs::write(place.path("w"), &image).unwrap();
    place.run_in("again", &["mirror", &place.name("w"), "--once"]).ok();
    place.run(&["rebuild", &place.name("none")]).fails(4, &["no store"]);
}
