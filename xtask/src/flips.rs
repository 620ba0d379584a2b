//! `cargo xtask flips`: damages a real small store and the state files of both sides.
//!
//! Owns the order: segments and index by the simulator, state files by the program's
//! own test, which takes its choice from the environment.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::sim;

/// What the program's test reads: 'all', or a seed.
const CHOICE: &str = "DORMOUSE_FLIPS";

/// Runs both with these arguments.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let done = sim::simulator("flips", arguments)?;
    let one = arguments.iter().any(|a| a == "--case");
    if one || done != ExitCode::SUCCESS {
        return Ok(done);
    }
    let after = |flag: &str| {
        let at = arguments.iter().position(|a| a == flag)?;
        arguments.get(at + 1).cloned()
    };
    let all = arguments.iter().any(|a| a == "--all");
    let choice = if all { "all".into() } else { after("--seed").unwrap_or_else(|| "1".into()) };
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["test", "--quiet", "-p", "dormouse", "--test", "flips"])
        // A sample is looked at sooner than a release is built.
        .args(all.then_some("--release"))
        .args(["--", "--nocapture"])
        .env(CHOICE, choice)
        .status()
        .context("cargo does not start")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
