//! What continuous integration runs, in the order in which a failure is cheapest to find.

use std::env;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::tidy;

const STEPS: &[&[&str]] = &[
    &["fmt", "--all", "--check"],
    &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
    // The programs for the kernel are what their source says.
    &["xtask", "bpf", "--check"],
    // The README's test command.
    &["test", "--workspace"],
    &["run", "--release", "--package", "dormouse", "--", "demo"],
    // Short forms of long proofs. Fixed seeds: a change is judged, not the day.
    &["xtask", "sim", "1", "--runs", "200"],
    &["xtask", "crash", "--points", "60000"],
    &["xtask", "flips"],
    // These checks must be able to fail.
    &["xtask", "sim", "--canary"],
    &["xtask", "mutants", "--short"],
    &["xtask", "proof", "sparse", "--blocks", "20000"],
    &["xtask", "proof", "live", "--short", "--seed", "1"],
];

/// Built once, on a clean clone: what speeds up the next build, or a program that runs for years,
/// only slows this down.
const QUICK_BUILDS: &[(&str, &str)] = &[
    ("CARGO_INCREMENTAL", "0"),
    ("CARGO_PROFILE_DEV_DEBUG", "0"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
];

/// Runs every step; stops at the first that fails.
pub fn run() -> Result<ExitCode> {
    println!("== tidy");
    if tidy::run()? != ExitCode::SUCCESS {
        bail!("tidy found faults");
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    for step in STEPS {
        let line = format!("cargo {}", step.join(" "));
        println!("== {line}");
        let start = Instant::now();
        let status = Command::new(&cargo)
            .args(*step)
            .envs(QUICK_BUILDS.iter().copied())
            .status()
            .with_context(|| format!("cannot start {line}"))?;
        if !status.success() {
            bail!("{line} ended with {status}");
        }
        println!("== done in {:.1} s", start.elapsed().as_secs_f64());
    }
    Ok(ExitCode::SUCCESS)
}
