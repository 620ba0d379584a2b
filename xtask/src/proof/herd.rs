//! What a server costs when a whole house comes back at once. The clients are threads of another
//! process that run the program's own code (`crates/dormouse/examples/herd.rs`, which says what is
//! measured); the server is the program itself.

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use super::Options;

/// Clients, and connections that say nothing, unless the command line says otherwise.
pub const CLIENTS: usize = 200;
const IDLE: usize = 1000;

/// Runs the proof.
pub fn run(options: &Options) -> Result<ExitCode> {
    let herd = options.dormouse.with_file_name("examples").join("herd");
    ensure!(
        herd.exists() && options.dormouse.exists(),
        "{}: cargo build --release -p dormouse --bins --example herd",
        herd.display()
    );
    let root = options.directory.join("herd");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    let status = Command::new(&herd)
        .arg(std::path::absolute(&options.dormouse)?)
        .arg(&root)
        .args([options.clients.to_string(), IDLE.to_string()])
        .status()
        .with_context(|| format!("cannot start {}", herd.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
