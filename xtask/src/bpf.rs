//! Builds the programs that run in the kernel.
//!
//! The object is committed, so that building Dormouse needs no clang; `--check` builds it again
//! and compares, so that the object is what the source says.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

const SOURCE: &str = "crates/track/bpf/track.bpf.c";
const OBJECT: &str = "crates/track/bpf/track.bpf.o";
/// Another version makes other instructions of the same source.
const CLANG: &str = "14";

/// `cargo xtask bpf [--check]`.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let check = match arguments {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => bail!("usage: cargo xtask bpf [--check]"),
    };
    let built = Path::new("target/track.bpf.o");
    fs::create_dir_all("target")?;
    let version = Command::new("clang").arg("-dumpversion").output();
    let version = version.context("clang is not here: install the package clang")?.stdout;
    let version = String::from_utf8_lossy(&version).trim().to_owned();
    ensure!(
        version.split('.').next() == Some(CLANG),
        "clang is of version {version}; the object is made with {CLANG}"
    );
    let mut clang = Command::new("clang");
    clang.args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]);
    // Without the path of the checkout, which differs.
    clang.arg("-fdebug-compilation-dir=.");
    clang.args(["-target", "bpf", "-mcpu=v3", "-c", SOURCE, "-o"]).arg(built);
    succeed(&mut clang)?;
    succeed(Command::new("llvm-strip").arg("-g").arg(built))?;
    let new = fs::read(built)?;
    if !check {
        fs::write(OBJECT, &new)?;
        println!("{OBJECT}: {} bytes", new.len());
    } else if fs::read(OBJECT)? != new {
        bail!("{OBJECT} is not what {SOURCE} makes: cargo xtask bpf");
    }
    Ok(ExitCode::SUCCESS)
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
