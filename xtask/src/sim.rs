//! `cargo xtask sim`: builds the simulator optimised, and runs it.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::mutants::{self, Build, Outcome};

/// Syncs and writes that are left out, and duties that are not done; of which family, and in how
/// many seeds that must show: at least twice as many as it took.
const CANARIES: &[(&str, &str, u64)] = &[
    ("commit-unsynced", "sound", 20),
    ("generation-unsynced", "sound", 20),
    ("seal-unsynced", "sound", 20),
    ("segment-name-unsynced", "sound", 20),
    ("durable-ahead", "sound", 60),
    ("reopen-unwritten", "sound", 80),
    ("floor-ignored", "kept", 60),
    ("quota-unchecked", "kept", 30),
    ("revoked-welcome", "kept", 30),
];

/// Runs the simulator with these arguments.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    simulator("dormouse-sim", arguments)
}

/// Runs the simulator with bugs of which most only a crash can show. If it finds one of them not, it
/// proves nothing, and this fails.
pub fn canary() -> Result<ExitCode> {
    let build = Build::make()?;
    for (bug, family, runs) in CANARIES {
        mutants::find(bug)?;
        let runs = runs.to_string();
        let arguments = ["1", "--family", family, "--first", "--runs", &runs];
        let check = build.program("dormouse-sim", &arguments)?;
        match check.run(Some(bug), Duration::from_secs(300))? {
            Outcome::Caught(what) if what.starts_with("seed ") => println!("canary {bug}: {what}"),
            other => bail!("the simulator does not find {bug} in {runs} seeds: {other:?}"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a program of the simulator's crate; it knows from which commit it is.
pub fn simulator(program: &str, arguments: &[String]) -> Result<ExitCode> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["run", "--quiet", "--release", "-p", "dormouse-sim", "--bin", program, "--"]);
    let status = cargo
        .args(arguments)
        .env("DORMOUSE_COMMIT", commit().unwrap_or_else(|| "unknown".into()))
        .status()
        .context("cargo does not start")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The commit that is checked out, with a mark if files differ from it.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let out = Command::new("git").args(arguments).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let head = git(&["rev-parse", "--short=12", "HEAD"])?;
    let clean = git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(if clean { head } else { format!("{head}, changed") })
}
