//! kill -9 of the real client, the real server, or both, and cuts of the link between
//! them at any byte, as a seed decides: every point that was listed stays, bit for bit, and the next copy sends
//! nothing that the store already has.
//!
//! `DORMOUSE_KILL_CYCLES=200` for a long run, `DORMOUSE_KILL_SEED=N` for the same
//! one again (as far as a machine's timing lets it).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

#[path = "../common/mod.rs"]
mod common;

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::program::{Numbers, Place, Running, Serving, chunks, log_of, same, text};
use common::relay::Relay;

const MIB: usize = 1 << 20;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is no number")))
}

fn numbers() -> Numbers {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = from_env("DORMOUSE_KILL_SEED").unwrap_or(clock);
    println!("DORMOUSE_KILL_SEED={seed}");
    Numbers(seed)
}

/// Noise, words, the noise again, and zeros.
fn image(numbers: &mut Numbers) -> Vec<u8> {
    let noise = numbers.noise(8 * MIB);
    [&noise[..], &numbers.words(8 * MIB), &noise, &vec![0; 40 * MIB]].concat()
}

/// A file system with programs of this machine in it.
fn real_image(place: &Place, numbers: &mut Numbers) -> Vec<u8> {
    let (stage, made) = (place.path("stage"), place.path("real.img"));
    std::fs::create_dir(&stage).unwrap();
    let mut room = 30 * MIB as u64;
    for entry in std::fs::read_dir("/usr/bin").unwrap().map(Result::unwrap) {
        let len = entry.metadata().map_or(0, |m| if m.is_file() { m.len() } else { 0 });
        if len > 0
            && len <= room
            && std::fs::copy(entry.path(), stage.join(entry.file_name())).is_ok()
        {
            room -= len;
        }
    }
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mke2fs = Command::new("mke2fs")
        .env("PATH", path)
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .args([stage.as_os_str(), made.as_os_str(), "64M".as_ref()])
        .status();
    if !mke2fs.is_ok_and(|status| status.success()) {
        println!("SKIPPED: a real file system: mke2fs does not run; noise instead");
        return image(numbers);
    }
    let bytes = std::fs::read(&made).unwrap();
    std::fs::remove_dir_all(&stage).unwrap();
    std::fs::remove_file(&made).unwrap();
    bytes
}

/// What an image was, version by version, without keeping each whole.
struct History {
    first: Vec<u8>,
    changes: Vec<Vec<(usize, Vec<u8>)>>,
    now: Vec<u8>,
    /// The version of each point, in order.
    points: Vec<usize>,
    hashes: Vec<String>,
}

impl History {
    fn new(first: Vec<u8>) -> Self {
        let now = first.clone();
        Self { first, changes: Vec::new(), now, points: Vec::new(), hashes: Vec::new() }
    }

    const fn version(&self) -> usize {
        self.changes.len()
    }

    /// Changes the image and its file; the bytes that were changed.
    fn change(&mut self, numbers: &mut Numbers, file: &File) -> u64 {
        let mut changes = Vec::new();
        for _ in 0..1 + numbers.below(6) {
            let len = 1 + numbers.below(2 * MIB as u64) as usize;
            let at = numbers.below((self.now.len() - len) as u64) as usize;
            let bytes = match numbers.below(5) {
                0 => vec![0; len],
                1 => numbers.words(len),
                // Moved content.
                2 => self.now
                    [numbers.below((self.now.len() - len) as u64) as usize / 4096 * 4096..][..len]
                    .to_vec(),
                _ => numbers.noise(len),
            };
            self.now[at..at + len].copy_from_slice(&bytes);
            file.write_all_at(&bytes, at as u64).unwrap();
            changes.push((at, bytes));
        }
        let changed = changes.iter().map(|(_, b)| b.len() as u64).sum();
        self.changes.push(changes);
        changed
    }

    /// Each version in turn.
    fn versions(&self, mut see: impl FnMut(usize, &[u8])) {
        let mut image = self.first.clone();
        see(0, &image);
        for (i, changes) in self.changes.iter().enumerate() {
            for (at, bytes) in changes {
                image[*at..*at + bytes.len()].copy_from_slice(bytes);
            }
            see(i + 1, &image);
        }
    }

    fn at(&self, version: usize) -> Vec<u8> {
        let mut found = Vec::new();
        self.versions(|i, image| {
            if i == version {
                found = image.to_vec();
            }
        });
        found
    }

    /// What is listed now: all that was, and at most `more` new points of this version.
    fn take(&mut self, place: &Place, more: usize) {
        let listed = place.run(&["points", "v", "--all", "--json"]);
        if listed.code == Some(4) && self.points.is_empty() && listed.err.contains("no volume") {
            return;
        }
        let listed = listed.ok().json();
        let listed = listed.as_array().unwrap();
        let (was, is) = (self.points.len(), listed.len());
        assert!((was..=was + more).contains(&is), "{was} points were listed, and now {is}");
        for (i, point) in listed.iter().enumerate() {
            let hash = point["hash"].as_str().unwrap();
            assert_eq!((&point["point"], &point["grade"]), (&(i + 1).into(), &"settled".into()));
            match self.hashes.get(i) {
                Some(was) => assert_eq!(was, hash, "point {} is another", i + 1),
                None => {
                    self.points.push(self.version());
                    self.hashes.push(hash.to_owned());
                }
            }
        }
    }

    /// The newest point comes back into a new file, or another onto an older one.
    fn check_some(&self, place: &Place, numbers: &mut Numbers) {
        let Some(newest) = self.points.last() else { return };
        let dest = place.name("d");
        if numbers.below(2) == 0 {
            place.run(&["restore", "v", &dest, "--force"]).ok();
            return same(Path::new(&dest), &self.at(*newest));
        }
        let other = numbers.below(self.points.len() as u64) as usize;
        place.run(&["restore", &format!("v@{}", other + 1), &dest, "--in-place"]).ok();
        same(Path::new(&dest), &self.at(self.points[other]));
    }

    /// Every point comes back.
    fn check_all(&self, place: &Place) {
        let dest = place.path("all");
        self.versions(|version, image| {
            for (i, _) in self.points.iter().enumerate().filter(|(_, v)| **v == version) {
                let what = format!("v@{}", i + 1);
                place.run(&["restore", &what, text(&dest), "--in-place"]).ok();
                same(&dest, image);
            }
        });
        std::fs::remove_file(dest).unwrap();
    }
}

fn stored(place: &Place) -> u64 {
    place.segments().iter().filter_map(|p| Some(std::fs::metadata(p).ok()?.len())).sum()
}

/// The number of chunks in the store; none is there twice.
fn stored_chunks(place: &Place) -> u64 {
    let mut seen = HashSet::new();
    for segment in place.segments() {
        for (_, header) in chunks(&segment) {
            assert!(seen.insert(header.id), "chunk {} was stored twice", header.id);
        }
    }
    seen.len() as u64
}

/// Waits until the server has ended all connections that it began.
fn quiet(log: &Path, from: usize) {
    let began = Instant::now();
    loop {
        let text = std::fs::read(log).unwrap();
        let text = String::from_utf8_lossy(&text[from..]).into_owned();
        let count = |what: &str| text.lines().filter(|l| l.contains(what)).count();
        if count("' connected") <= count(" after ") {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "a connection stays: {text}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Client,
    Server,
    Both,
}

/// Waits for a moment in the life of a copy that takes about `takes` and stores about `bytes`.
fn moment(place: &Place, numbers: &mut Numbers, client: &mut Running, takes: Duration, bytes: u64) {
    if numbers.below(3) == 0 {
        let micros = takes.as_micros() as u64 * 11 / 10;
        std::thread::sleep(Duration::from_micros(numbers.below(micros)));
        return;
    }
    let until = stored(place) + numbers.below(bytes / 2);
    while stored(place) < until && !client.ended() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn nothing_that_was_acknowledged_is_lost_or_sent_twice() {
    let cycles = from_env("DORMOUSE_KILL_CYCLES").unwrap_or(10);
    let mut numbers = numbers();
    let (place, server) = Place::served();
    let (address, log) = (server.address.clone(), log_of(&place.path("store")));
    let mut server = Some(server);
    let mut log_from = 0;
    let mut history = History::new(real_image(&place, &mut numbers));
    std::fs::write(place.path("v"), &history.now).unwrap();
    let file = OpenOptions::new().write(true).open(place.path("v")).unwrap();
    let v = place.name("v");
    let mirror = ["mirror", &*v, "--once", "--json"];
    let (mut takes, mut bytes) = (Duration::from_millis(500), 10 * MIB as u64);
    let (mut in_the_middle, mut spared) = (0, 0);
    for cycle in 0..cycles {
        if cycle > 0 {
            bytes = history.change(&mut numbers, &file);
        }
        let before = stored_chunks(&place);
        let who = [Who::Client, Who::Server, Who::Both][numbers.below(3) as usize];
        let mut client = place.start(&mirror);
        moment(&place, &mut numbers, &mut client, takes, bytes);
        let said = match who {
            Who::Client => client.kill(),
            Who::Server => {
                Serving::kill(server.take().unwrap());
                client.wait()
            }
            Who::Both => {
                Serving::kill(server.take().unwrap());
                client.kill()
            }
        };
        println!(
            "cycle {cycle}: {who:?}, {:?}, {} points, {takes:?}",
            said.code,
            history.points.len()
        );
        match said.code {
            // Ended before, or was killed.
            Some(0) | None => {}
            // Saw the server go.
            _ => drop(said.fails(6, &[])),
        }
        if who != Who::Client {
            log_from = std::fs::metadata(&log).unwrap().len() as usize;
            server = Some(place.serve(&address));
        }
        // Half of the time the next copy comes while the server still ends the last.
        let at_once = who == Who::Client && numbers.below(2) == 0;
        if !at_once {
            quiet(&log, log_from);
            history.take(&place, 1);
            history.check_some(&place, &mut numbers);
        }
        let there = stored_chunks(&place);
        let began = Instant::now();
        let done = place.mirror("v");
        takes = (takes + began.elapsed()) / 2;
        let number = |field: &str| done[field].as_u64().unwrap();
        quiet(&log, log_from);
        if !at_once {
            // What the store had after the kill it has once, and was not sent again.
            assert_eq!(stored_chunks(&place), there + number("chunks_sent"), "{done}");
            let whole = number("changed_bytes") == 0;
            assert!(whole || number("chunks_known") >= there - before, "{before} {there} {done}");
            if !whole && there > before {
                in_the_middle += 1;
                spared += there - before;
            }
        }
        history.take(&place, if at_once { 2 } else { 1 });
        assert_eq!(history.points.last(), Some(&history.version()));
        if cycle % 20 == 19 {
            history.check_all(&place);
        }
    }
    history.check_all(&place);
    place.restores("v", &history.now);
    server.take().unwrap().stop();
    place.run(&["scrub", &place.name("store")]).ok();
    println!(
        "{cycles} cycles, {} points, {in_the_middle} killed in the middle, {spared} chunks not sent again",
        history.points.len()
    );
}

#[test]
fn a_restore_that_is_killed_leaves_the_destination_or_can_be_repeated() {
    let mut numbers = numbers();
    let (place, server) = Place::served();
    let address = server.address.clone();
    let mut server = Some(server);
    let content = image(&mut numbers);
    std::fs::write(place.path("v"), &content).unwrap();
    place.mirror("v");
    let dest = place.name("d");
    let old = numbers.noise(64 * MIB);
    std::fs::write(&dest, &old).unwrap();
    let names = place.names();
    for cycle in 0..6 {
        let in_place = cycle % 2 == 1;
        let flag = if in_place { "--in-place" } else { "--force" };
        let mut client = place.start(&["restore", "v", &dest, flag]);
        std::thread::sleep(Duration::from_millis(numbers.below(250)));
        let said = if cycle % 3 == 2 {
            Serving::kill(server.take().unwrap());
            let said = client.wait();
            server = Some(place.serve(&address));
            said
        } else {
            client.kill()
        };
        println!("cycle {cycle}: {flag}: {:?}", said.code);
        match said.code {
            Some(0) => same(Path::new(&dest), &content),
            None | Some(6) if in_place => {}
            // Either the old or, killed at the very end, the new: nothing in between.
            None | Some(6) if std::fs::read(&dest).unwrap() == content => {}
            None | Some(6) => same(Path::new(&dest), &old),
            _ => panic!("{said:?}"),
        }
        assert_eq!(place.names(), names, "nothing is left beside the destination");
        place.run(&["restore", "v", &dest, "--in-place"]).ok();
        same(Path::new(&dest), &content);
        std::fs::write(&dest, &old).unwrap();
    }
}

#[test]
fn a_link_that_is_cut_at_any_byte_loses_nothing_and_sends_nothing_twice() {
    let cycles = from_env("DORMOUSE_KILL_CYCLES").unwrap_or(10);
    let mut numbers = numbers();
    let place = Place::new();
    let server = place.serve("127.0.0.1:0");
    let log = log_of(&place.path("store"));
    let relay = Relay::start(&server.address);
    let invite = place.run(&["invite", &place.name("store"), "laptop", "--url", &relay.address]);
    place.run(&["join", invite.ok().out.trim()]).ok();
    let mut history = History::new(real_image(&place, &mut numbers));
    std::fs::write(place.path("v"), &history.now).unwrap();
    let file = OpenOptions::new().write(true).open(place.path("v")).unwrap();
    let v = place.name("v");
    let mut in_the_middle = 0;
    for cycle in 0..cycles {
        // What the whole would be is about what changed, and less: some cuts come too late.
        let bytes = if cycle == 0 { 12 * MIB as u64 } else { history.change(&mut numbers, &file) };
        let before = stored_chunks(&place);
        let up = numbers.below(3) > 0;
        // A third of these cuts lie in the handshake and the questions, as all downward do.
        let reach = if numbers.below(3) == 0 { 8000 } else { bytes };
        let at = if up { numbers.below(reach) } else { numbers.below(3000) };
        relay.cut(up, at);
        let said = place.run(&["mirror", &v, "--once", "--json"]);
        println!("cycle {cycle}: {} at byte {at}: {:?}", if up { "up" } else { "down" }, said.code);
        if said.code != Some(0) {
            said.fails(6, &[]);
        }
        relay.heal();
        quiet(&log, 0);
        history.take(&place, 1);
        history.check_some(&place, &mut numbers);
        quiet(&log, 0);
        let there = stored_chunks(&place);
        let done = place.mirror("v");
        quiet(&log, 0);
        let number = |field: &str| done[field].as_u64().unwrap();
        assert_eq!(stored_chunks(&place), there + number("chunks_sent"), "{done}");
        in_the_middle += u32::from(there > before && number("changed_bytes") > 0);
        history.take(&place, 1);
        assert_eq!(history.points.last(), Some(&history.version()));
    }
    for at in [0, 900, 5000, 100_000, 4 * MIB as u64] {
        relay.cut(false, at);
        let names = place.names();
        place.run(&["restore", "v", &place.name("new")]).fails(6, &[]);
        relay.heal();
        assert_eq!(place.names(), names, "cut at byte {at}");
    }
    history.check_all(&place);
    server.stop();
    place.run(&["scrub", &place.name("store")]).ok();
    println!("{cycles} cycles, {} points, {in_the_middle} cut within a copy", history.points.len());
}
