//! `cargo xtask histories`: plays random histories with collections, and prints the figures.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dormouse_sim::histories::{self, Failure, Figures};

/// Histories after which it is told how far the work is.
const TELL_AFTER: u64 = 5_000;

const USAGE: &str = "\
usage: cargo xtask histories [--copies | --buckets] [--runs N] [--seed SEED] [--jobs N] [--one SEED]

Plays N random histories (1000) from SEED (1) on, and prints what happened in them. A failure prints
its seed; --one plays one history, and tells each step. With --copies a second copy follows each
history, under faults of its own, is promoted, and heals; with --buckets the log lies in object
storage that fails, and machines are lost.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("histories: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode, String> {
    let mut jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut runs, mut seed, mut one, mut other) = (1000, 1, None, None);
    let mut rest = arguments.iter();
    while let Some(name) = rest.next() {
        if matches!(name.as_str(), "-h" | "--help") {
            println!("{USAGE}");
            return Ok(ExitCode::SUCCESS);
        }
        if matches!(name.as_str(), "--copies" | "--buckets") {
            other = Some(name.as_str());
            continue;
        }
        let value = rest.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = value.parse::<u64>().map_err(|_| format!("{name} {value}: no number"))?;
        match name.as_str() {
            "--runs" => runs = number,
            "--seed" => seed = number,
            "--jobs" => jobs = number as usize,
            "--one" => one = Some(number),
            _ => return Err(format!("unknown argument {name}")),
        }
    }
    let start = Instant::now();
    if let Some(how) = other {
        let (seed, runs) = one.map_or((seed, runs), |seed| (seed, 1));
        let (figures, failures) = if how == "--copies" {
            let (figures, failures) = histories::run_copied(seed, runs);
            (format!("{figures:?}"), failures)
        } else {
            let (figures, failures) = histories::run_shelved(seed, runs);
            (format!("{figures:?}"), failures)
        };
        println!("{figures}, {:.1} s", start.elapsed().as_secs_f64());
        return Ok(told(&failures, &format!(" {how}")));
    }
    let (figures, failures) = match one {
        Some(seed) => {
            let (figures, failure) = histories::one(seed, true);
            (figures, failure.into_iter().collect())
        }
        None => {
            let told = AtomicU64::new(0);
            histories::run(seed, runs, jobs, &|done| {
                let reached = done / TELL_AFTER;
                if told.fetch_max(reached, Ordering::Relaxed) < reached {
                    eprintln!("{done} histories after {:.0} s", start.elapsed().as_secs_f64());
                }
            })
        }
    };
    print(&figures, start.elapsed().as_secs_f64());
    Ok(told(&failures, ""))
}

fn told(failures: &[Failure], how: &str) -> ExitCode {
    for failure in failures {
        println!("seed {}: {}", failure.seed, failure.why);
        println!("  again: cargo xtask histories{how} --one {}", failure.seed);
    }
    println!("failures: {}", failures.len());
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(figures: &Figures, seconds: f64) {
    let f = figures;
    println!("histories                          {}", f.histories);
    println!("points committed, forks made       {}, {}", f.points, f.forks);
    println!("points expired                     {}", f.expired);
    println!("rounds, segments retired           {}, {}", f.rounds, f.retired);
    println!("commits over a round               {}", f.over_rounds);
    println!("commits refused, missing named     {}", f.refused);
    println!("crashes, within a round            {}, {}", f.crashes, f.crashes_in_rounds);
    println!("clock jumps                        {}", f.clock_jumps);
    println!("time                               {seconds:.1} s");
}
