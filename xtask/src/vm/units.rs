//! A scene with a real systemd: the units of `contrib/systemd`, installed, started, reloaded, killed,
//! hung, stopped.
//!
//! Owns: what such a machine has besides: this machine's systemd, its journal, and the targets that
//! units hang on. Its root is one that can be left, for services that have name spaces of their own.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::image::Image;
use super::kernel::Kernel;
use super::machine::{self, Machine};
use super::{COMMON, LIMIT};

/// What it is called.
pub const NAME: &str = "units";
/// What it shows.
pub const WHAT: &str =
    "the units under systemd: ready, reload, kill -9, watchdog, stop; marks go on";

const INIT: &str = include_str!("scenes/units_init.sh");
const SCRIPT: &str = include_str!("scenes/units.sh");
/// Runs the script when the machine is up, and ends it.
const SCENE: &str = include_str!("scenes/units_scene.service");
const UNITS: &str = "contrib/systemd";
/// Where this machine's systemd keeps its units.
const HOST_UNITS: &str = "/lib/systemd/system";
const MANAGER: &str = "/lib/systemd/systemd";
const JOURNAL: &str = "/lib/systemd/systemd-journald";
const TOOLS: &[&str] = &["systemctl", "journalctl", "systemd-escape", "mke2fs", "e2fsck", "cmp"];

/// Why it cannot be played here.
pub fn missing() -> Option<String> {
    let files = [MANAGER, JOURNAL].into_iter().find(|path| !Path::new(path).exists());
    let tools = TOOLS.iter().copied().find(|name| machine::find(name).is_none());
    files.or(tools).map(|what| format!("{what} is not here (packages systemd, e2fsprogs)"))
}

pub fn play(kernel: &Kernel, place: &Path, log: &mut String) -> Result<()> {
    let mut image = Image::new(kernel)?;
    image.module(kernel, "loop")?;
    image.program(Path::new("target/debug/dormouse"), "/usr/bin/dormouse")?;
    for path in [MANAGER, JOURNAL] {
        image.program(Path::new(path), path)?;
    }
    for name in TOOLS {
        let path = machine::find(name).with_context(|| format!("{name} is not here"))?;
        image.program(&path, &format!("/usr/bin/{name}"))?;
    }
    let host = |name: &str| name.ends_with(".target") || name.starts_with("systemd-journald");
    add_units(&mut image, Path::new(HOST_UNITS), HOST_UNITS, host)?;
    let ours = |name: &str| name.ends_with(".service") || name.ends_with(".socket");
    add_units(&mut image, Path::new(UNITS), "/etc/systemd/system", ours)?;
    image.file("/etc/systemd/system/scene.service", SCENE.as_bytes(), 0o644);
    let target = "[Unit]\nRequires=basic.target scene.service\nAfter=basic.target\n";
    image.file("/etc/systemd/system/default.target", target.as_bytes(), 0o644);
    image.file("/etc/machine-id", b"0123456789abcdef0123456789abcdef\n", 0o444);
    // As `dormouse.sysusers` says.
    let users =
        b"root:x:0:0::/root:/bin/sh\ndormouse:x:990:990::/var/lib/dormouse-server:/bin/sh\n";
    image.file("/etc/passwd", users, 0o644);
    image.file("/etc/group", b"root:x:0:\ndormouse:x:990:\n", 0o644);
    image.file("/init", INIT.as_bytes(), 0o755);
    image.file("/run.sh", format!("{COMMON}\n{SCRIPT}").as_bytes(), 0o755);
    let initrd = place.join("units.initrd");
    image.write(&initrd)?;
    // Two minutes where nothing else runs; a service manager is more to emulate than a shell.
    let status = Machine::boot(&kernel.file(), &initrd, &[])?.wait(LIMIT * 2, log)?;
    ensure!(status == 0, "the script has ended with status {status}");
    Ok(())
}

/// The unit files of a directory whose names fit; links that stand for nothing are left out.
fn add_units(image: &mut Image, from: &Path, to: &str, fits: impl Fn(&str) -> bool) -> Result<()> {
    let mut some = false;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if fits(&name) && path.is_file() {
            image.file(&format!("{to}/{name}"), &fs::read(&path)?, 0o644);
            some = true;
        }
    }
    ensure!(some, "{} has no units", from.display());
    Ok(())
}
