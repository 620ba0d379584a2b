//! `cargo xtask fuzz`: builds the fuzzer, runs each target for a time, tells what it reached.
//!
//! Owns the command line and the report; [`fuzzer`] owns the build and the runs of the
//! program. What the runs find worth keeping lies in `target/fuzz/found/TARGET`; only
//! `--minimise` and `--seed` write to the committed corpora. Exit code 1 if an input is found
//! that a target does not survive.

mod fuzzer;

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use fuzzer::{Fuzzer, Outcome, Target};

/// What was asked for.
struct Options {
    targets: Vec<String>,
    seconds: u64,
    jobs: usize,
    minimise: bool,
    seed: bool,
}

fn options(arguments: &[String]) -> Result<Options> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options =
        Options { targets: Vec::new(), seconds: 60, jobs, minimise: false, seed: false };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut number = || -> Result<u64> {
            let text = rest.next().map_or("", String::as_str);
            match text.parse() {
                Ok(number) if number > 0 => Ok(number),
                _ => bail!("{argument} needs a number from 1 on, not '{text}'"),
            }
        };
        match argument.as_str() {
            "--seconds" => options.seconds = number()?,
            "--jobs" => options.jobs = usize::try_from(number()?)?,
            "--minimise" => options.minimise = true,
            "--seed" => options.seed = true,
            name if !name.starts_with('-') => options.targets.push(name.to_owned()),
            _ => bail!("unknown argument {argument}; see `cargo xtask help`"),
        }
    }
    Ok(options)
}

/// Runs what the arguments ask for.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let options = options(arguments)?;
    let fuzzer = Fuzzer::build()?;
    let mut targets = fuzzer.targets()?;
    for name in &options.targets {
        let known = targets.iter().any(|t| t.name == *name);
        let all: Vec<&str> = targets.iter().map(|t| t.name.as_str()).collect();
        ensure!(known, "there is no target {name}; there are: {}", all.join(", "));
    }
    if !options.targets.is_empty() {
        targets.retain(|t| options.targets.contains(&t.name));
    }
    if options.seed {
        targets.iter().try_for_each(|t| fuzzer.seed(t))?;
        println!("fuzz: the seeds of {} targets are in their corpora", targets.len());
        return Ok(ExitCode::SUCCESS);
    }
    if options.minimise {
        return minimise(&fuzzer, &targets);
    }
    let start = Instant::now();
    let outcomes = run_all(&fuzzer, &targets, &options)?;
    report(&targets, &outcomes, start.elapsed().as_secs_f64());
    let failed = outcomes.iter().any(|o| !o.crashes.is_empty() || !o.ended_well);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn minimise(fuzzer: &Fuzzer, targets: &[Target]) -> Result<ExitCode> {
    for target in targets {
        let (files, bytes) = fuzzer.minimise(target)?;
        println!("{:<14} {files:>5} files {bytes:>8} bytes", target.name);
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs all targets, `jobs` at a time.
fn run_all(fuzzer: &Fuzzer, targets: &[Target], options: &Options) -> Result<Vec<Outcome>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Result<Outcome>)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.min(targets.len()) {
            scope.spawn(|| {
                while let Some((at, target)) = take(&next, targets) {
                    eprintln!("fuzz: {} for {} s", target.name, options.seconds);
                    let outcome = fuzzer.run(target, options.seconds);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((at, outcome));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

fn take<'a>(next: &AtomicUsize, targets: &'a [Target]) -> Option<(usize, &'a Target)> {
    let at = next.fetch_add(1, Ordering::Relaxed);
    targets.get(at).map(|target| (at, target))
}

fn report(targets: &[Target], outcomes: &[Outcome], seconds: f64) {
    println!("| target | executions | each second | inputs kept | coverage | MiB | crashes |");
    println!("|---|--:|--:|--:|--:|--:|--:|");
    for (target, o) in targets.iter().zip(outcomes) {
        println!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            target.name,
            o.executions,
            o.per_second,
            o.kept,
            o.coverage,
            o.memory_mib,
            o.crashes.len()
        );
    }
    let all: u64 = outcomes.iter().map(|o| o.executions).sum();
    println!("\n{all} executions of {} targets in {seconds:.0} s", targets.len());
    for (target, outcome) in targets.iter().zip(outcomes) {
        for crash in &outcome.crashes {
            println!("\n{}: an input that it does not survive: {}", target.name, crash.display());
            println!("  replay: {}", outcome.replay(&target.name, crash));
            println!("  keep it, once it is mended, in crates/fuzz/regressions/{}/", target.name);
        }
        if outcome.crashes.is_empty() && !outcome.ended_well {
            println!("\n{}: the fuzzer failed; see {}", target.name, outcome.log.display());
        }
    }
}
