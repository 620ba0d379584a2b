//! `cargo xtask sim`: builds the simulator optimised, and runs it.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

/// Runs the simulator with these arguments.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    simulator("dormouse-sim", arguments)
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
