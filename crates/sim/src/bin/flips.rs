//! Damages a small real store in every way, or in a sample of all ways.
//!
//! Run by `cargo xtask flips`, which says what the flags mean.

use std::process::ExitCode;

use dormouse_sim::flips::{Choice, run};

/// Cases of each kind without `--all`.
const EACH: usize = 400;

fn main() -> ExitCode {
    let mut jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut seed, mut choice) = (1, Choice::Sampled(EACH));
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let mut number = || arguments.next().and_then(|n| n.parse::<u64>().ok());
        let known = match flag.as_str() {
            "--all" => {
                choice = Choice::All;
                Some(())
            }
            "--seed" => number().map(|n| seed = n),
            "--jobs" => number().map(|n| jobs = n as usize),
            "--case" => number().map(|n| choice = Choice::One(n as usize)),
            _ => None,
        };
        if known.is_none() {
            eprintln!("flips: unknown flag, or a number is missing: {flag}");
            return ExitCode::FAILURE;
        }
    }
    let table = run(seed, choice, jobs);
    println!("{table}");
    for v in &table.violations {
        println!("to repeat: cargo xtask flips --seed {seed} --case {}  # {}", v.case, v.what);
    }
    if table.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
