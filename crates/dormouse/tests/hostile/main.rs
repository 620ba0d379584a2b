//! The real program against a server that lies, and the real server against clients that do,
//! over TLS and sockets. Each lie alone: the exit code, the words, what is at the destination,
//! time and memory.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod clients;
#[path = "../common/mod.rs"]
mod common;
mod data;
mod disk;
mod floods;
mod history;
mod liar;
mod versions;
mod wire;

use std::path::Path;
use std::time::{Duration, Instant};

use common::program::{Numbers, Place, Running, Said};
use liar::{Liar, Lie};

const MIB: usize = 1 << 20;

/// A store behind a liar, and 'home', which has made three points of 'v' and one of 'other'.
struct Stage {
    place: Place,
    liar: Liar,
    /// What 'v' was at each point.
    versions: Vec<Vec<u8>>,
}

impl Stage {
    fn new() -> Self {
        let place = Place::new();
        let liar = Liar::start(&place.path("store"));
        let invite = ["invite", &place.name("store"), "laptop", "--url", &liar.address];
        let invite = place.run(&invite).ok();
        place.run(&["join", invite.out.trim()]).ok();
        place.run(&["recovery-kit", &place.name("kit")]).ok();
        let mut numbers = Numbers(7);
        // Two pages of the map, far from each other.
        let mut content = [numbers.noise(MIB), vec![0; 66 * MIB], numbers.noise(MIB)].concat();
        let versions = (1..=3)
            .map(|version| {
                content[5 * 4096..6 * 4096].fill(version);
                std::fs::write(place.path("v"), &content).unwrap();
                place.mirror("v");
                content.clone()
            })
            .collect();
        std::fs::write(place.path("other"), numbers.noise(3 * MIB)).unwrap();
        place.mirror("other");
        Self { place, liar, versions }
    }

    /// A home that has only the kit, and has asked for nothing yet.
    fn reader(&self, home: &str) {
        self.place.run_in(home, &["join", "--kit", &self.place.name("kit")]).ok();
    }

    /// Whatever a restore and a verification come to under this lie, no wrong byte is left: the
    /// destination is not there.
    #[track_caller]
    fn refused(&self, lie: impl Fn() -> Lie, code: i32, words: &[&str]) {
        let dest = self.place.path("dest");
        for args in [&["restore", "v", dest.to_str().unwrap()][..], &["verify", "v"]] {
            self.liar.lie(lie());
            let said = self.place.run(args);
            self.liar.lie(Lie::none());
            // A verification goes on, and tells every fault on its standard output.
            let told = Said { err: format!("{}{}", said.out, said.err), ..said };
            told.fails(code, words);
            assert!(!dest.exists(), "{args:?} left a destination");
        }
    }

    /// These commands fail under this lie, each in the same way.
    #[track_caller]
    fn all_refused(&self, home: &str, lie: impl Fn() -> Lie, code: i32, words: &[&str]) {
        let (source, dest) = (self.place.name("v"), self.place.name("dest"));
        for args in [
            &["points", "v"][..],
            &["volumes"],
            &["status"],
            &["verify", "v"],
            &["restore", "v", &dest],
            &["mirror", &source, "--once", "--takeover"],
        ] {
            self.liar.lie(lie());
            let said = self.place.run_in(home, args);
            self.liar.lie(Lie::none());
            // 'status' says it among the rest.
            let said = Said { err: format!("{}{}", said.out, said.err), ..said };
            assert!(said.code == Some(code), "{args:?}: {said:?}");
            said.fails(code, words);
            assert!(!Path::new(&dest).exists(), "{args:?} left a destination");
        }
    }
}

/// Ends within this time, and with how much memory at most: the peak while it ran.
#[track_caller]
fn bounded(mut running: Running, limit: Duration) -> (Said, u64) {
    let began = Instant::now();
    let mut peak = 0;
    while !running.ended() {
        peak = peak.max(memory(running.child.id(), "VmHWM:").unwrap_or(0));
        if began.elapsed() > limit {
            let said = running.kill();
            panic!("it took more than {limit:?}: {said:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    (running.wait(), peak)
}

/// Bytes of a process's memory, as the kernel counts them.
fn memory(process: u32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse().ok().map(|kib: u64| kib << 10)
}
