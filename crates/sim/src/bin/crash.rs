//! `cargo xtask crash`: enumerates crash points and prints the figures.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dormouse_sim::crash::{self, CrashPoint, Figures, Plan};

/// Crash points after which it is told how far the work is.
const TELL_AFTER: u64 = 50_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("crash: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode, String> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut plan = Plan { points: 20_000, seed: 1, jobs };
    let mut one: Option<CrashPoint> = None;
    let mut rest = arguments.iter();
    while let Some(name) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name} {value}: no number"));
        match name.as_str() {
            "--points" => plan.points = number()?,
            "--seed" => plan.seed = number()?,
            "--jobs" => plan.jobs = number()? as usize,
            "--one" => one = Some(value.parse()?),
            _ => return Err(format!("unknown argument {name}")),
        }
    }
    let start = Instant::now();
    let (figures, failures) = match &one {
        Some(at) => {
            let (figures, failure) = crash::run_one(plan.seed, at);
            (figures, failure.into_iter().collect())
        }
        None => {
            let told = AtomicU64::new(0);
            crash::run(&plan, &|figures| {
                let reached = figures.points / TELL_AFTER;
                if told.fetch_max(reached, Ordering::Relaxed) < reached {
                    let seconds = start.elapsed().as_secs_f64();
                    eprintln!("{} crash points after {seconds:.0} s", figures.points);
                }
            })
        }
    };
    if figures.points == 0 && failures.is_empty() {
        return Err("the sequence has no such I/O".into());
    }
    print(&figures, start.elapsed().as_secs_f64());
    for failure in &failures {
        println!("FAILED {}", failure.why);
        println!("  again: cargo xtask crash --seed {} --one {}", plan.seed, failure.at);
    }
    println!("failures: {}", failures.len());
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(figures: &Figures, seconds: f64) {
    let Figures { played, points, again, restores, torn } = figures;
    println!("sequences played       {played}");
    println!("crash points           {points}");
    println!("crashes of recoveries  {again}");
    println!("torn ends set aside    {torn}");
    println!("points restored        {restores}");
    println!(
        "time                   {seconds:.1} s, {:.0} crash points/s",
        *points as f64 / seconds
    );
}
