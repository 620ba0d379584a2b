//! Bad input to the real program: each has its code, names the thing, shows a way
//! out, and leaves store and destination as they were.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::loops::Loop;
use common::program::{
    Numbers, Place, Running, Serving, Tmpfs, chunks, is_root, log_of, same, same_store, text,
};
use dormouse_format::record::HEADER_LEN;
use rustix::process::Signal;

const MIB: usize = 1 << 20;
/// Of the version in a segment's header.
const VERSION_AT: u64 = 8;

fn put(place: &Place, name: &str, bytes: &[u8]) {
    std::fs::write(place.path(name), bytes).unwrap();
}

/// Each command fails so, and neither the store nor 'd' is touched.
#[track_caller]
/// A server, a home joined to it, and one point of volume 'v', whose source stays.
fn with_point(content: &[u8]) -> (Place, Serving) {
    let (place, server) = Place::served();
    put(&place, "v", content);
    place.mirror("v");
    (place, server)
}

fn fail_without_trace(place: &Place, commands: &[&[&str]], code: i32, words: &[&str]) {
    let dest = || std::fs::read(place.path("d")).ok();
    let (store, there) = (place.store(), dest());
    for args in commands {
        place.run(args).fails(code, words);
    }
    same_store(&store, &place.store());
    assert!(there == dest(), "the destination was changed");
    let left = std::fs::read_dir(place.path("."))
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains(".dormouse-"))
        .count();
    assert_eq!(left, 0, "something is left behind");
}

#[test]
fn a_volume_that_is_not_there() {
    let (place, _server) = with_point(b"content");
    let d = place.name("d");
    let commands = [
        &["restore", "nope", &d][..],
        &["restore", "nope@1", &d],
        &["verify", "nope"],
        &["points", "nope"],
    ];
    fail_without_trace(&place, &commands, 4, &["'nope'", "dormouse volumes"]);
    let v = place.name("v");
    let commands = [&["mirror", &v, "--once", "--volume", "a/b"][..], &["restore", "a/b", &d]];
    fail_without_trace(&place, &commands, 2, &["'a/b'"]);
}

#[test]
fn a_point_that_is_not_there() {
    let (place, _server) = with_point(b"content");
    put(&place, "d", b"old");
    let d = place.name("d");
    let seven = [&["restore", "v@7", &d, "--force"][..], &["verify", "v@7"], &["verify", "v@0"]];
    fail_without_trace(&place, &seven[..2], 4, &["no point 7", "the oldest is point 1"]);
    fail_without_trace(&place, &seven[2..], 4, &["no point 0", "the oldest is point 1"]);
    let before = [&["restore", "v@2001-01-01", &d, "--force"][..], &["verify", "v@1h ago"]];
    fail_without_trace(&place, &before, 4, &["at or before", "the oldest is point 1"]);
    let hash = "00".repeat(32);
    let other = [&["restore", "v", &d, "--force", "--expect-head", &hash][..]];
    fail_without_trace(&place, &other, 9, &["expected point", "older state"]);
    let typo = [&["restore", "v", &d, "--force", "--expect-head", "12"][..]];
    fail_without_trace(&place, &typo, 2, &["'12'", "64 hexadecimal digits"]);
}

/// Whether a process has a file open.
fn has_open(pid: u32, path: &str) -> bool {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter_map(|e| std::fs::read_link(e.path()).ok()).any(|p| text(&p) == path)
}

/// Starts a mirror of 'v' that has opened it and waits for the server; then lets it go on
/// after `meanwhile`.
fn mirror_while(place: &Place, server: &Serving, meanwhile: impl FnOnce(&Path)) -> Running {
    server.signal(Signal::STOP);
    let v = place.name("v");
    let running = place.start(&["mirror", &v, "--once", "--json"]);
    let began = Instant::now();
    while !has_open(running.child.id(), &v) {
        assert!(began.elapsed() < Duration::from_secs(5), "{}", running.err());
        std::thread::sleep(Duration::from_millis(5));
    }
    // It looks at the file's times within a few ticks of the clock.
    std::thread::sleep(Duration::from_millis(300));
    meanwhile(Path::new(&v));
    server.signal(Signal::CONT);
    running
}

#[track_caller]
fn points(place: &Place, args: &[&str]) -> usize {
    let said = place.run(&[&["points", "v", "--json"], args].concat()).ok();
    said.json().as_array().unwrap().len()
}

#[test]
fn a_volume_with_fuzzy_points_only() {
    let (place, server) = Place::served();
    put(&place, "v", &[1; 5000]);
    let mut fuzzy = mirror_while(&place, &server, |v| {
        OpenOptions::new().write(true).open(v).unwrap().write_all(b"x").unwrap();
    });
    fuzzy.wait().fails(3, &["point 1 of 'v' is only fuzzy", "written while it was read"]);
    assert_eq!((points(&place, &[]), points(&place, &["--all"])), (0, 1));
    let d = place.name("d");
    let commands = [
        &["restore", "v", &d][..],
        &["restore", "v@latest", &d],
        &["restore", "v@now", &d],
        &["verify", "v"],
        &["verify", "v@now"],
    ];
    let words = ["no consistent point yet", "1 fuzzy", "points --all", "--fuzzy"];
    fail_without_trace(&place, &commands, 4, &words);
    fail_without_trace(&place, &[&["restore", "v@1", &d]], 4, &["only fuzzy", "--fuzzy"]);
}

#[test]
fn a_restore_without_the_identity() {
    let (place, _server) = with_point(b"content");
    place.run(&["recovery-kit", &place.name("kit2"), "--offline"]).ok();
    put(&place, "d", b"old");
    let (d, kit3) = (place.name("d"), place.name("kit3"));
    let commands = [
        &["restore", "v", &d, "--force"][..],
        &["restore", "v", &d, "--in-place"],
        &["verify", "v"],
    ];
    fail_without_trace(&place, &commands, 10, &["identity is not on this machine", "join --kit"]);
    let commands = [&["recovery-kit", &kit3][..], &["vault", "export-writer", &kit3]];
    fail_without_trace(&place, &commands, 10, &["authority is not on this machine", "join --kit"]);
    assert!(!place.path("kit3").exists());
    // What needs no identity goes on.
    assert_eq!(place.mirror("v")["point"], 2);
    assert_eq!(points(&place, &[]), 2);
}

#[test]
fn a_source_that_is_none() {
    let (place, _server) = Place::served();
    std::fs::create_dir(place.path("dir")).unwrap();
    let (none, dir) = (place.name("none"), place.name("dir"));
    let none_at_all = [&["mirror", &none, "--once"][..], &["mirror", "/dev/nonsense", "--once"]];
    fail_without_trace(&place, &none_at_all, 8, &["cannot open /", "No such file", "lsblk"]);
    for odd in [&*dir, "/dev/null", "/proc"] {
        let words = [odd, "neither a file nor a block device", "name an image"];
        fail_without_trace(&place, &[&["mirror", odd, "--once"]], 8, &words);
    }
    assert_eq!(place.run(&["volumes", "--json"]).ok().json(), serde_json::json!([]));
}

#[test]
fn a_source_that_shrinks() {
    let content = Numbers(1).noise(3 * MIB);
    let (place, server) = with_point(&content);
    for (size, at) in [(MIB + 5, "byte 1048581"), (0, "byte 0")] {
        put(&place, "v", &content);
        let mut shrinking = mirror_while(&place, &server, |v| {
            OpenOptions::new().write(true).open(v).unwrap().set_len(size as u64).unwrap();
        });
        let words = [&place.name("v")[..], "shrank while it was read", at, "3145728 bytes"];
        shrinking.wait().fails(8, &words);
        assert_eq!(points(&place, &["--all"]), 1);
        place.restores("v", &content);
    }
    // At rest with its new size it is copied.
    assert_eq!(place.mirror("v")["point"], 2);
    place.restores("v", &[]);
    place.restores("v@1", &content);
}

#[test]
fn a_source_that_vanishes() {
    let content = Numbers(1).noise(MIB);
    let (place, server) = with_point(&content);
    let gone = "replaced or removed while it was read";
    let mut vanishing = mirror_while(&place, &server, |v| std::fs::remove_file(v).unwrap());
    vanishing.wait().fails(3, &["point 2 of 'v' is only fuzzy", gone]);
    put(&place, "v", &content);
    put(&place, "w", &content);
    let w = place.path("w");
    let mut replaced = mirror_while(&place, &server, |v| std::fs::rename(w, v).unwrap());
    replaced.wait().fails(3, &["point 3 of 'v' is only fuzzy", gone]);
    assert_eq!((points(&place, &[]), points(&place, &["--all"])), (1, 3));
    place.restores("v", &content);
}

#[test]
fn a_destination_that_cannot_be() {
    let (place, _server) = with_point(&Numbers(3).noise(MIB + 5));
    put(&place, "d", b"precious");
    let d = place.name("d");
    let there = [&["restore", "v", &d][..]];
    fail_without_trace(&place, &there, 8, &[&d, "exists already", "--force", "--in-place"]);
    let store = place.name("store");
    for flags in [&[][..], &["--force"], &["--in-place"]] {
        let directory = [&["restore", "v", &store], flags].concat();
        fail_without_trace(&place, &[&directory], 8, &[&store, "is a directory", "name a file"]);
        let null = [&["restore", "v", "/dev/null"], flags].concat();
        fail_without_trace(&place, &[&null], 8, &["/dev/null", "neither a file nor a block"]);
    }
    // A link to nothing is told before anything is fetched, and stays.
    std::os::unix::fs::symlink(place.path("gone"), place.path("l")).unwrap();
    let (l, gone) = (place.name("l"), place.name("gone"));
    for flags in [&[][..], &["--force"], &["--in-place"]] {
        let dangling = [&["restore", "v", &l], flags].concat();
        let words = [&*l, "symbolic link to", &gone, "remove the link"];
        fail_without_trace(&place, &[&dangling], 8, &words);
    }
    assert!(place.path("l").is_symlink() && !place.path("gone").exists());
    let nowhere = place.name("no/where");
    fail_without_trace(&place, &[&["restore", "v", &nowhere]], 8, &[&nowhere, "check the path"]);
}

#[test]
fn a_destination_that_is_made_meanwhile() {
    let (place, server) = with_point(&Numbers(3).noise(32 * MIB));
    let (v, d) = (place.name("v"), place.name("d"));
    let mut restore = place.start(&["restore", "v", &d]);
    let began = Instant::now();
    while !restore.holds_unnamed_file() && !restore.ended() {
        assert!(began.elapsed() < Duration::from_secs(20), "{}", restore.err());
        std::thread::yield_now();
    }
    server.signal(Signal::STOP);
    let made = File::create_new(&d).and_then(|mut f| f.write_all(b"theirs"));
    server.signal(Signal::CONT);
    let said = restore.wait();
    if made.is_err() {
        eprintln!("SKIPPED: the restore had ended before its name was taken");
        said.ok();
        same(Path::new(&d), &std::fs::read(&v).unwrap());
        return;
    }
    said.fails(8, &[&d, "meanwhile", "left as it is", "--force"]);
    same(Path::new(&d), b"theirs");
}

/// A loop device, where the test may have one.
fn attach(file: &Path) -> Option<Loop> {
    if is_root("a loop device") { Loop::attach(file, &[]) } else { None }
}

#[test]
fn a_device_that_is_too_small() {
    let content = Numbers(3).noise(2 * MIB);
    let (place, _server) = with_point(&content);
    let old = Numbers(4).noise(MIB);
    put(&place, "d", &old);
    let Some(device) = attach(&place.path("d")) else { return };
    let dev = text(&device.0);
    let commands = [
        &["restore", "v", dev][..],
        &["restore", "v", dev, "--in-place"],
        &["restore", "v", dev, "--force"],
    ];
    let words = [dev, "has 1048576 bytes", "needs 2097152", "larger device", "nothing was written"];
    fail_without_trace(&place, &commands, 8, &words);
    // The image under it is in use.
    let d = place.name("d");
    let below = [&["restore", "v", &d, "--force"][..], &["restore", "v", &d, "--in-place"]];
    fail_without_trace(&place, &below, 8, &["in use as", dev]);
    drop(device);
    same(&place.path("d"), &old);
    // One that is large enough takes it, whatever lies behind stays.
    put(&place, "d", &[old.clone(), old.clone(), old.clone()].concat());
    let Some(device) = attach(&place.path("d")) else { return };
    place.run(&["restore", "v", text(&device.0)]).ok();
    drop(device);
    same(&place.path("d"), &[content, old].concat());
}

#[test]
fn no_room_for_the_restored() {
    let place = Place::joined();
    let content = Numbers(3).noise(4 * MIB);
    put(&place, "v", &content);
    place.mirror("v");
    let what = "a destination without room";
    let Some(small) = Tmpfs::mount(&place.path("small"), 2048, what) else { return };
    let (d, at) = (place.name("small/d"), place.path("small"));
    let count = || std::fs::read_dir(&at).unwrap().count();
    for flags in [&[][..], &["--force"], &["--in-place"]] {
        let said = place.run(&[&["restore", "v", &d], flags].concat());
        said.fails(11, &["cannot write to", &d, "No space", "nothing is left behind"]);
        assert_eq!(count(), 0);
    }
    // An old file stays; but one that is changed in place says so.
    std::fs::write(&d, b"precious").unwrap();
    place.run(&["restore", "v", &d, "--force"]).fails(11, &["nothing is left behind"]);
    same(Path::new(&d), b"precious");
    let said = place.run(&["restore", "v", &d, "--in-place"]);
    said.fails(11, &["were written", "neither the old content nor the new", "--in-place"]);
    small.resize(8192);
    place.run(&["restore", "v", &d, "--in-place"]).ok();
    same(Path::new(&d), &content);
}

#[test]
fn no_room_for_the_programs_own_files() {
    let (place, _server) = with_point(b"content");
    let what = "a home without room";
    let Some(_small) = Tmpfs::mount(&place.path("small"), 512, what) else { return };
    let (home, small) = (place.path("home"), place.path("small/home"));
    let status = Command::new("cp").arg("-a").arg(&home).arg(&small).status().unwrap();
    assert!(status.success());
    let _ = File::create(place.path("small/fill")).unwrap().write_all(&vec![1; MIB]);
    let v = place.name("v");
    place
        .run_in("small/home", &["mirror", &v, "--once"])
        .fails(11, &["point 2 of 'v' is whole on the server", "small/home", "free space"]);
    std::fs::remove_file(place.path("small/fill")).unwrap();
    place.run_in("small/home", &["mirror", &v, "--once"]).ok();
    place.restores("v", b"content");
}

#[test]
fn no_room_on_the_server() {
    let place = Place::new();
    let what = "a store without room";
    let Some(small) = Tmpfs::mount(&place.path("store"), 6 << 10, what) else { return };
    let server = place.serve("127.0.0.1:0");
    let address = server.address.clone();
    place.join_server("home", "laptop", &server);
    let old = Numbers(1).noise(2 * MIB);
    put(&place, "v", &old);
    place.mirror("v");
    let new = Numbers(2).noise(12 * MIB);
    put(&place, "v", &new);
    let v = place.name("v");
    for _ in 0..2 {
        place
            .run(&["mirror", &v, "--once"])
            .fails(11, &["the server refused", "free space on the server"]);
        assert_eq!(points(&place, &["--all"]), 1);
        place.restores("v", &old);
    }
    // A restart on a full disk is no worse.
    server.stop();
    let server = place.serve(&address);
    assert_eq!(points(&place, &["--all"]), 1);
    place.restores("v", &old);
    place
        .run(&["mirror", &v, "--once"])
        .fails(11, &["the server refused", "free space on the server"]);
    place.restores("v", &old);
    server.stop();
    small.resize(32 << 10);
    let server = place.serve(&address);
    let done = place.mirror("v");
    // What went through before the disk was full is not sent again.
    assert!(done["chunks_known"].as_u64().unwrap() > 0, "{done}");
    place.restores("v", &new);
    place.restores("v@1", &old);
    server.stop();
    place.run(&["scrub", &place.name("store")]).ok();
    drop(small);
}

#[test]
fn a_full_server_goes_on_when_there_is_room_again() {
    let place = Place::new();
    let what = "a store without room";
    let Some(small) = Tmpfs::mount(&place.path("store"), 6 << 10, what) else { return };
    let server = place.serve("127.0.0.1:0");
    place.join_server("home", "laptop", &server);
    let content = Numbers(2).noise(12 * MIB);
    put(&place, "v", &content);
    let v = place.name("v");
    place
        .run(&["mirror", &v, "--once"])
        .fails(11, &["the server refused", "free space on the server"]);
    small.resize(32 << 10);
    assert_eq!(place.mirror("v")["point"], 1);
    place.restores("v", &content);
    server.stop();
    drop(small);
}

fn flip(file: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn a_damaged_chunk() {
    let (place, _server) = Place::served();
    let (a, b) = (Numbers(1).noise(MIB), Numbers(2).noise(MIB));
    put(&place, "a", &a);
    place.mirror("a");
    let of_a = chunks(&place.segments()[0]);
    put(&place, "b", &b);
    place.mirror("b");
    // Point 2 of 'a' has none of the chunks of point 1.
    put(&place, "a", &b);
    place.mirror("a");
    put(&place, "a", &[a.clone(), b.clone()].concat());
    place.mirror("a");
    let segment = place.segments()[0].clone();
    let (at, header) = of_a[of_a.len() / 2];
    let in_body = at as u64 + HEADER_LEN as u64 + u64::from(header.body_len) / 2;
    flip(&segment, in_body);

    let (id, d) = (header.id.to_string(), place.name("d"));
    let restores = [&["restore", "a@1", &d][..], &["restore", "a", &d]];
    fail_without_trace(&place, &restores, 9, &["chunk", &id, "block", "scrub STORE"]);
    put(&place, "d", b"precious");
    fail_without_trace(&place, &[&["restore", "a@1", &d, "--force"]], 9, &[&id]);
    let said = place.run(&["verify", "a@1"]).fails(9, &["1 chunks of point 1", "scrub STORE"]);
    assert!(said.out.contains(&format!("BAD: chunk {id}")), "{said:?}");
    let said = place.run(&["verify", "a@3", "--json"]).fails(9, &["1 chunks of point 3"]);
    assert!(said.event("fault")["what"].as_str().unwrap().contains(&id));
    assert_eq!(said.event("done")["bad_chunks"], 1);
    // All others are whole.
    place.restores("a@2", &b);
    place.restores("b", &b);
    place.run(&["verify", "a@2"]).ok();

    let store = place.name("store");
    let said = place.run(&["scrub", &store]).fails(9, &["1 faults", &store, "copy of the store"]);
    let name = segment.file_name().unwrap().to_str().unwrap();
    for words in [name, &format!("byte {at}:"), &id, "volume 'a', points 1, 3"] {
        assert!(said.out.contains(words), "'{words}' is not in {said:?}");
    }
    let fault = place.run(&["scrub", &store, "--json"]).fails(9, &["1 faults"]).event("fault");
    assert_eq!((&fault["offset"], &fault["id"]), (&at.into(), &id.clone().into()));
    assert_eq!(fault["touches"], serde_json::json!([{ "volume": "a", "points": [1, 3] }]));

    // The same byte again, and all is as it was.
    flip(&segment, in_body);
    place.restores("a@1", &a);
    place.run(&["scrub", &store]).ok();

    // Damaged for good: a copy compares tags only, but one of all sends that chunk again.
    flip(&segment, in_body);
    fail_without_trace(&place, &[&["restore", "a", &d, "--force"]], 9, &["mirror SOURCE", "--all"]);
    let done = place.mirror("a");
    assert_eq!((&done["point"], &done["chunks_sent"]), (&4.into(), &0.into()));
    place.run(&["verify", "a"]).fails(9, &["1 chunks of point 4", "mirror SOURCE", "--all"]);
    let again = || place.run(&["mirror", &place.name("a"), "--once", "--all", "--json"]).ok();
    let done = again().event("done");
    assert_eq!((&done["chunks_sent"], &done["changed_bytes"]), (&1.into(), &0.into()));
    assert_eq!(done["chunks"].as_u64().unwrap(), 1 + done["chunks_known"].as_u64().unwrap());
    for (what, content) in [("a@1", a.clone()), ("a@2", b.clone()), ("a", [a, b].concat())] {
        place.restores(what, &content);
        place.run(&["verify", what]).ok();
    }
    let sealed_anew = chunks(&segment).into_iter().filter(|(_, h)| h.id == header.id).count();
    assert_eq!(sealed_anew, 2);
    assert_eq!(again().event("done")["chunks_sent"], 0);
    // The damaged record stays, and nothing needs it.
    let said = place.run(&["scrub", &store]).fails(9, &["1 faults", "mirror SOURCE"]);
    assert!(said.out.contains("touches no point"), "{said:?}");
}

#[test]
fn a_damage_before_the_server_starts() {
    let (place, server) = Place::served();
    let address = server.address.clone();
    let (a, b) = (Numbers(1).noise(66 * MIB), Numbers(2).noise(MIB));
    for (name, content) in [("a", &a), ("b", &b)] {
        put(&place, name, content);
        place.mirror(name);
    }
    server.stop();
    let segments = place.segments();
    // In a segment that is sealed all but that chunk is there.
    let (at, header) = chunks(&segments[0])[3];
    flip(&segments[0], at as u64 + HEADER_LEN as u64 + 100);
    let server = place.serve(&address);
    let (id, d, store) = (header.id.to_string(), place.name("d"), place.name("store"));
    fail_without_trace(&place, &[&["restore", "a", &d]], 9, &["chunk", &id, "scrub STORE"]);
    let said = place.run(&["verify", "a"]).fails(9, &["1 chunks of point 1"]);
    assert!(said.out.contains(&id), "{said:?}");
    place.restores("b", &b);
    server.stop();
    place.run(&["scrub", &store]).fails(9, &["1 faults"]);
    flip(&segments[0], at as u64 + HEADER_LEN as u64 + 100);
    // In the last one too, and nothing is cut off.
    let last = segments.last().unwrap();
    let (at, header) = chunks(last)[0];
    let (id, name) = (header.id.to_string(), text(last.file_name().unwrap().as_ref()));
    let in_body = at as u64 + HEADER_LEN as u64 + 100;
    flip(last, in_body);
    let whole = std::fs::read(last).unwrap();
    let server = place.serve(&address);
    fail_without_trace(&place, &[&["restore", "a", &d]], 9, &["chunk", &id, "mirror SOURCE"]);
    place.restores("b", &b);
    assert_eq!(std::fs::read(last).unwrap()[..whole.len()], whole);
    let log = std::fs::read_to_string(log_of(&place.path("store"))).unwrap();
    assert!(log.contains(&format!("{name}, byte {at}")), "{log}");
    let said = place.run(&["scrub", &store]).fails(9, &["1 faults", "mirror SOURCE"]);
    for words in [name, &format!("byte {at}:"), &id, "volume 'a', points 1"] {
        assert!(said.out.contains(words), "'{words}' is not in {said:?}");
    }
    // Sent again, all points have it; the damaged record stays.
    let a_file = place.name("a");
    let said = place.run(&["mirror", &a_file, "--once", "--all", "--json"]).ok();
    assert_eq!(said.event("done")["chunks_sent"], 1);
    for what in ["a@1", "a@2"] {
        place.restores(what, &a);
    }
    server.stop();
    let server = place.serve(&address);
    place.restores("a@1", &a);
    server.stop();
    let said = place.run(&["scrub", &store]).fails(9, &["1 faults"]);
    assert!(said.out.contains("touches no point"), "{said:?}");
    flip(last, in_body);
    place.run(&["scrub", &store]).ok();
}

#[test]
fn a_damaged_header_before_the_server_starts() {
    let content = Numbers(1).noise(MIB);
    let (place, server) = with_point(&content);
    let address = server.address.clone();
    server.stop();
    // Nothing tells for sure where the next record begins: the last segment has no table.
    let segment = place.segments()[0].clone();
    let (at, _) = chunks(&segment)[2];
    flip(&segment, at as u64 + 20);
    let whole = std::fs::read(&segment).unwrap();
    let server = place.serve(&address);
    let (v, d, store) = (place.name("v"), place.name("d"), place.name("store"));
    let commands = [&["restore", "v", &d][..], &["mirror", &v, "--once", "--all"]];
    fail_without_trace(&place, &commands, 9, &["vault cannot be opened", "scrub STORE"]);
    server.stop();
    assert_eq!(std::fs::read(&segment).unwrap(), whole);
    let said = place.run(&["scrub", &store]).fails(9, &["1 faults"]);
    assert!(said.out.contains(&format!("byte {at}:")), "{said:?}");
    flip(&segment, at as u64 + 20);
    let _server = place.serve(&address);
    place.restores("v", &content);
}

#[test]
fn a_segment_of_a_newer_version() {
    let content = Numbers(1).noise(MIB);
    let (place, server) = with_point(&content);
    let address = server.address.clone();
    server.stop();
    let segment = place.segments()[0].clone();
    // The version and the check stand where they are in every version.
    let set_version = |version: u8| {
        let mut bytes = std::fs::read(&segment).unwrap();
        bytes[VERSION_AT as usize] = version;
        let check = dormouse_crypt::hash::header_check(&bytes[..112]);
        bytes[112..128].copy_from_slice(&check);
        std::fs::write(&segment, bytes).unwrap();
    };
    let own = std::fs::read(&segment).unwrap()[VERSION_AT as usize];
    set_version(own + 1);
    let (v, d, store) = (place.name("v"), place.name("d"), place.name("store"));
    let commands = [
        &["points"][..],
        &["volumes"],
        &["mirror", &v, "--once"],
        &["restore", "v", &d],
        &["verify", "v"],
        &["join", "--kit", &place.name("kit")],
    ];
    let (has, knows) = (format!("has version {}", own + 1), format!("knows up to {own}"));
    let words = ["segment", &*has, &*knows, "update"];
    let server = place.serve(&address);
    for args in commands {
        let home = if args[0] == "join" { "new" } else { "home" };
        let store = place.store();
        place.run_in(home, args).fails(7, &words).fails(7, &["update dormouse on the server"]);
        same_store(&store, &place.store());
    }
    server.stop();
    place.run(&["scrub", &store]).fails(7, &words);
    // The same store as a directory.
    place.run_in("new", &["join", &store, "--kit", &place.name("kit")]).fails(7, &words);
    set_version(own);
    place.run_in("new", &["join", &store, "--kit", &place.name("kit")]).ok();
    set_version(own + 1);
    let before = place.store();
    for args in &commands[..5] {
        place.run_in("new", args).fails(7, &words);
    }
    assert!(before == place.store(), "the store was changed");
    assert!(!Path::new(&d).exists());
    set_version(own);
    place.restores_in("new", "v", &content);
}

#[test]
fn a_last_segment_that_was_cut() {
    let first = Numbers(1).noise(MIB);
    let (place, server) = with_point(&first);
    let address = server.address.clone();
    let segment = place.segments()[0].clone();
    let with_one = std::fs::metadata(&segment).unwrap().len();
    put(&place, "v", &Numbers(2).noise(MIB));
    place.mirror("v");
    server.stop();
    let whole = std::fs::read(&segment).unwrap();
    let cut =
        |len: u64| OpenOptions::new().write(true).open(&segment).unwrap().set_len(len).unwrap();
    // In the middle of the second point: what this machine knows of it tells.
    cut(with_one + MIB as u64 / 2);
    let server = place.serve(&address);
    let (v, d) = (place.name("v"), place.name("d"));
    for args in [&["restore", "v", &d][..], &["mirror", &v, "--once"], &["verify", "v@1"]] {
        place.run(args).fails(9, &["lost history", "point 1", "point 2", "older state"]);
    }
    assert!(!place.path("d").exists());
    assert!(std::fs::read_to_string(log_of(&place.path("store"))).unwrap().contains(".torn-"));
    // Who has not seen the second point has the first.
    place.run_in("new", &["join", "--kit", &place.name("kit")]).ok();
    place.restores_in("new", "v", &first);
    server.stop();
    // A backup of the segment brings all of it back.
    std::fs::write(&segment, &whole).unwrap();
    for kept in std::fs::read_dir(segment.parent().unwrap()).unwrap() {
        let kept = kept.unwrap().path();
        if kept != segment {
            std::fs::remove_file(kept).unwrap();
        }
    }
    let server = place.serve(&address);
    place.restores("v@1", &first);
    server.stop();
    // Almost all of it: not even the vault.
    for len in [0, 60, 1000] {
        cut(len);
        let server = place.serve(&address);
        for args in [&["restore", "v", &d][..], &["mirror", &v, "--once"], &["points"]] {
            let said = place.run(args);
            assert!(
                matches!(said.code, Some(4..=9)) && said.err.contains("\n  "),
                "{len}: {said:?}"
            );
        }
        server.stop();
        std::fs::write(&segment, &whole).unwrap();
    }
}

#[test]
fn a_sealed_segment_that_was_cut_or_lost() {
    let content = Numbers(1).noise(66 * MIB);
    let (place, server) = with_point(&content);
    let address = server.address.clone();
    server.stop();
    let segments = place.segments();
    assert!(segments.len() > 1, "{segments:?}");
    let (segment, kept) = (&segments[0], place.path("kept"));
    std::fs::copy(segment, &kept).unwrap();
    let name = segment.file_name().unwrap().to_str().unwrap();
    let (v, d, store) = (place.name("v"), place.name("d"), place.name("store"));
    for len in [Some(1u64 << 20), Some(std::fs::metadata(segment).unwrap().len() - 1), None] {
        match len {
            Some(len) => {
                OpenOptions::new().write(true).open(segment).unwrap().set_len(len).unwrap();
            }
            None => std::fs::remove_file(segment).unwrap(),
        }
        let server = place.serve(&address);
        let commands = [&["restore", "v", &d][..], &["mirror", &v, "--once"]];
        fail_without_trace(&place, &commands, 9, &["vault cannot be opened", "scrub STORE"]);
        server.stop();
        let log = std::fs::read_to_string(log_of(&place.path("store"))).unwrap();
        assert!(log.contains(name), "{log}");
        let said = place.run(&["scrub", &store]).fails(9, &["faults in", "check the disk"]);
        assert!(said.out.contains(name), "{said:?}");
        std::fs::copy(&kept, segment).unwrap();
    }
    let _server = place.serve(&address);
    place.restores("v", &content);
}

#[test]
fn a_server_that_stops_in_the_middle() {
    let small = Numbers(7).noise(MIB);
    let (place, server) = with_point(&small);
    let address = server.address.clone();
    let content = Numbers(8).noise(96 * MIB);
    put(&place, "v", &content);
    let stored =
        || place.segments().iter().map(|p| std::fs::metadata(p).unwrap().len()).sum::<u64>();
    let (v, d) = (place.name("v"), place.name("d"));
    let mut mirror = place.start(&["mirror", &v, "--once"]);
    while stored() < 8 << 20 && !mirror.ended() {
        std::thread::sleep(Duration::from_millis(2));
    }
    server.stop();
    mirror.wait().fails(6, &["stopping", "try again"]);
    place.run(&["mirror", &v, "--once"]).fails(6, &["refused", "dormouse serve"]);
    let server = place.serve(&address);
    assert_eq!(points(&place, &["--all"]), 1);
    place.restores("v", &small);
    let done = place.mirror("v");
    assert!(done["chunks_known"].as_u64().unwrap() > 0, "{done}");

    let before = place.names();
    let mut restore = place.start(&["restore", "v", &d]);
    while !restore.holds_unnamed_file() && !restore.ended() {
        std::thread::sleep(Duration::from_millis(1));
    }
    server.stop();
    restore.wait().fails(6, &["stopping", "try again"]);
    assert_eq!(place.names(), before);
    let _server = place.serve(&address);
    place.restores("v", &content);
}
