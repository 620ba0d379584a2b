//! How fast a point reads as a disk:
//! `cargo run --release -p dormouse --example disk -- HOME VOLUME[@WHEN] [CACHE MIB]`
//!
//! Prints how long it takes to open, how fast it reads cold from its beginning to its end, and
//! how fast what is here already is read again, in one thread and in several.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement for developers")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dormouse::disk::{self, DiskOptions};
use dormouse::home::Home;
use dormouse::report::Report;
use dormouse_device::BlockDevice;

const MIB: u64 = 1 << 20;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let home = Home::locate(Some(args[0].clone().into()))?;
    let cache = args.get(2).map(|dir| (dir.into(), args[3].parse::<u64>().unwrap() * MIB));
    let options = DiskOptions { cache, ..DiskOptions::default() };
    let begun = Instant::now();
    let mut report = Report::new(false, true);
    let opened = disk::open(&home, &args[1].parse()?, &options, &mut report)?;
    println!("open in {:?}, {} MiB", begun.elapsed(), opened.size / MIB);
    let disk = &*opened.device;
    // The second time what fits is here.
    for what in ["cold", "warm"] {
        let begun = Instant::now();
        let mut out = vec![0; MIB as usize];
        for at in (0..opened.size / MIB * MIB).step_by(MIB as usize) {
            disk.read(at, &mut out)?;
        }
        let rate = opened.size as f64 / begun.elapsed().as_secs_f64() / MIB as f64;
        println!("{what}, 1 MiB after 1 MiB: {rate:.0} MiB/s");
    }
    for (threads, region) in [(1, opened.size), (4, opened.size), (1, 32 * MIB), (4, 32 * MIB)] {
        let rate = random(disk, region.min(opened.size), threads);
        println!("4 KiB at random in {} MiB, {threads} threads: {rate:.0} a second", region / MIB);
    }
    Ok(())
}

/// Reads 4 KiB at random places of a region, in so many threads: how many a second.
fn random(disk: &dyn BlockDevice, region: u64, threads: u64) -> f64 {
    let (done, length) = (AtomicU64::new(0), Duration::from_secs(2));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let done = &done;
            scope.spawn(move || {
                let mut seed = thread * 7919 + 1;
                let mut out = vec![0; 4096];
                while begun.elapsed() < length {
                    for _ in 0..64 {
                        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
                        let at = (seed >> 20) % (region / 4096) * 4096;
                        disk.read(at, &mut out).unwrap();
                    }
                    done.fetch_add(64, Ordering::Relaxed);
                }
            });
        }
    });
    done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
}
