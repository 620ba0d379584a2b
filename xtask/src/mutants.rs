//! `cargo xtask mutants`: each bug on purpose must be caught by a check.
//!
//! Owns: the order of work and the table. The bugs stand in `crates/format/src/seeded.rs`;
//! what is run is in [`checks`]; that list, source and documentation agree is looked at in
//! [`places`]. First all checks run without a bug, and must pass: else what catches a bug
//! would say nothing.

mod checks;
pub mod places;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dormouse_format::seeded::{BUGS, Bug};

use checks::Check;
pub use checks::{Build, Outcome};

/// A few bugs of each crate, quickly caught: what continuous integration looks at.
const SHORT: &[&str] = &[
    "count-bound",
    "aad-without-vault",
    "nonce-constant",
    "seal-table-short",
    "damage-as-torn-end",
    "visible-before-durable",
    "missing-unchecked",
    "patch-order",
    "leaf-unchecked",
    "prev-unchecked",
];
/// What a check may take when it was not timed without a bug.
const UNTIMED: Duration = Duration::from_secs(300);

/// What was asked for.
#[derive(Default)]
struct Asked {
    bugs: Vec<&'static Bug>,
    all_checks: bool,
    control: bool,
    write: bool,
    jobs: usize,
}

/// Runs the checks against bugs, and prints which one catches which.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    if arguments.iter().any(|a| a == "--list") {
        BUGS.iter().for_each(|b| println!("{:6} {:24} {}", b.part, b.name, b.mistake));
        return Ok(ExitCode::SUCCESS);
    }
    let asked = asked(arguments)?;
    let checks = Build::make()?.checks()?;
    let limits = if asked.control { control(&checks)? } else { vec![UNTIMED; checks.len()] };
    let rows = catch_all(&asked, &checks, &limits)?;
    let missed = rows.iter().filter(|(_, caught)| caught.is_empty()).count();
    println!("\n{} bugs, {missed} not caught", rows.len());
    if asked.write && missed == 0 {
        places::write_table(&table(&rows))?;
    }
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn asked(arguments: &[String]) -> Result<Asked> {
    let mut asked = Asked::default();
    let mut short = false;
    asked.jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--jobs" => {
                asked.jobs = rest.next().context("--jobs N")?.parse().context("--jobs N")?
            }
            "--all-checks" => asked.all_checks = true,
            "--write" => asked.write = true,
            "--short" => short = true,
            name => asked.bugs.push(find(name)?),
        }
    }
    if short {
        asked.bugs = SHORT.iter().map(|name| find(name)).collect::<Result<_>>()?;
    }
    let all = asked.bugs.is_empty();
    if asked.write && !all {
        bail!("--write is for the table of all bugs: name none");
    }
    if all {
        asked.bugs = BUGS.iter().collect();
    }
    asked.control = all;
    Ok(asked)
}

/// The bug of this name.
pub fn find(name: &str) -> Result<&'static Bug> {
    let found = BUGS.iter().find(|b| b.name == name);
    found.with_context(|| format!("no bug is called '{name}': cargo xtask mutants --list"))
}

/// All checks pass without a bug; how long each may take with one.
fn control(checks: &[Check]) -> Result<Vec<Duration>> {
    let mut limits = Vec::new();
    for check in checks {
        let began = std::time::Instant::now();
        match check.run(None, UNTIMED * 4)? {
            Outcome::Passed => {}
            Outcome::Caught(what) => bail!("without any bug, {}: {what}", check.name),
        }
        let took = began.elapsed();
        println!("without a bug: {:24} passes, {:.1} s", check.name, took.as_secs_f64());
        limits.push(took * 10 + Duration::from_secs(30));
    }
    Ok(limits)
}

/// What catches each bug, in the order of the bugs; as many at a time as were asked for.
fn catch_all(
    asked: &Asked,
    checks: &[Check],
    limits: &[Duration],
) -> Result<Vec<(&'static Bug, String)>> {
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        let work = || -> Result<()> {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(bug) = asked.bugs.get(at) else { return Ok(()) };
                let caught = catch(bug, checks, limits, asked.all_checks)?;
                let shown = if caught.is_empty() { "NOT CAUGHT" } else { &caught };
                println!("{:24} {shown}", bug.name);
                rows.lock().unwrap_or_else(PoisonError::into_inner).insert(at, (*bug, caught));
            }
        };
        let workers: Vec<_> = (0..asked.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let mut ends = workers.into_iter().map(|worker| worker.join());
        ends.try_for_each(|end| end.unwrap_or_else(|_| bail!("a worker fails")))
    })?;
    Ok(rows.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect())
}

/// What catches a bug: the first check, or all of them.
fn catch(bug: &Bug, checks: &[Check], limits: &[Duration], all: bool) -> Result<String> {
    let mut caught = Vec::new();
    for (check, limit) in checks.iter().zip(limits).filter(|(c, _)| c.reaches(bug.part)) {
        if let Outcome::Caught(what) = check.run(Some(bug.name), *limit)? {
            caught.push(format!("{}: {what}", check.name));
            if !all {
                break;
            }
        }
    }
    Ok(caught.join("; "))
}

/// The table as it stands in the documentation.
fn table(rows: &[(&Bug, String)]) -> String {
    let mut out = String::from("| bug | in | the mistake | caught by |\n|---|---|---|---|\n");
    for (bug, caught) in rows {
        let Bug { name, part, mistake } = bug;
        let _ = writeln!(out, "| `{name}` | {part} | {mistake} | {caught} |");
    }
    out
}
