//! The simulator as a program: `cargo xtask sim`.
//!
//! Owns the command line and the threads; a run is one thread's.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use dormouse_sim::run::model::Violation;
use dormouse_sim::run::{Family, Report, Run};

const USAGE: &str =
    "usage: cargo xtask sim [SEED] [--runs N] [--jobs N] [--family sound|rot|kept] [--trace] [--first]

Runs N seeds (1 with a SEED, else 200), from SEED or from the clock on. Odd seeds have a
sound disk, and every other one of these a server with duties for years ('kept'); even ones have
a disk that rots; unless --family says so. A failure prints its seed;
with --first no seed above it is begun.";

struct Asked {
    seed: u64,
    runs: u64,
    jobs: usize,
    family: Option<Family>,
    trace: bool,
    first: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match asked(&arguments) {
        Some(asked) => run(&asked),
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn asked(arguments: &[String]) -> Option<Asked> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut seed, mut runs) = (None, None);
    let mut asked = Asked { seed: 0, runs: 0, jobs, family: None, trace: false, first: false };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--runs" => runs = Some(rest.next()?.parse().ok()?),
            "--jobs" => asked.jobs = rest.next()?.parse().ok()?,
            "--trace" => asked.trace = true,
            "--first" => asked.first = true,
            "--family" => {
                asked.family = Some(match rest.next()?.as_str() {
                    "sound" => Family::Sound,
                    "rot" => Family::Rot,
                    "kept" => Family::Kept,
                    _ => return None,
                });
            }
            text => seed = Some(text.parse().ok()?),
        }
    }
    asked.runs = runs.unwrap_or(if seed.is_some() { 1 } else { 200 });
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_secs());
    asked.seed = seed.unwrap_or_else(clock);
    Some(asked)
}

fn run(asked: &Asked) -> ExitCode {
    let (next, failed) = (AtomicU64::new(0), Mutex::new(BTreeMap::new()));
    let sum = Mutex::new(Report::default());
    let began = Instant::now();
    println!("seeds {} to {}", asked.seed, asked.seed + asked.runs - 1);
    std::thread::scope(|scope| {
        for _ in 0..asked.jobs.clamp(1, 64) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let enough = asked.first && failed.lock().is_ok_and(|f| !f.is_empty());
                    if at >= asked.runs || enough {
                        return;
                    }
                    one(asked, asked.seed + at, &sum, &failed);
                }
            });
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    if let Ok(sum) = sum.into_inner() {
        print(&sum, asked, seconds);
    }
    let failed = failed.into_inner().unwrap_or_default();
    if let Some(text) = failed.values().next().filter(|_| asked.first) {
        println!("{text}");
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Failures, by seed. With `--first` only the lowest is printed, at the end: which others
/// were under way depends on the machine.
type Failed = Mutex<BTreeMap<u64, String>>;

fn one(asked: &Asked, seed: u64, sum: &Mutex<Report>, failed: &Failed) {
    let usual = [Family::Rot, Family::Sound, Family::Rot, Family::Kept][(seed % 4) as usize];
    let family = asked.family.unwrap_or(usual);
    let (report, outcome) = std::panic::catch_unwind(|| Run::seed(seed, family, asked.trace))
        .unwrap_or_else(|_| {
            (Report::default(), Err(Violation("a panic; its message is above".into())))
        });
    if let Err(violation) = outcome {
        let name = match family {
            Family::Sound => "sound",
            Family::Rot => "rot",
            Family::Kept => "kept",
        };
        let commit = std::env::var("DORMOUSE_COMMIT").unwrap_or_else(|_| "unknown".into());
        let text = format!(
            "seed {seed} FAILED: {}\n  again: cargo xtask sim {seed} --family {name} --trace   \
             (commit {commit})",
            violation.0
        );
        if !asked.first {
            println!("{text}");
        }
        if let Ok(mut failed) = failed.lock() {
            failed.insert(seed, text);
        }
    }
    if let Ok(mut sum) = sum.lock() {
        sum.add(&report);
    }
}

fn print(sum: &Report, asked: &Asked, seconds: f64) {
    let row = |name: &str, n: u64| println!("{name:>28}  {n}");
    row("runs", asked.runs);
    for (name, n) in sum.rows() {
        row(name, n);
    }
    println!("{:>28}  {:016x}", "trace", sum.trace);
    println!("{:>28}  {seconds:.1}", "seconds");
}
