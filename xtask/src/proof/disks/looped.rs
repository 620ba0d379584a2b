//! A point, and a volume that is written, as devices of the kernel by FUSE and loop, beside a loop
//! device over a plain file: fio, direct, 32 deep.
//!
//! No target: it is told what the way costs where the kernel has neither ublk nor NBD. Both
//! loop devices pass reads and writes on without a cache of their own where the file system can.
//! The point's blocks are in its cache; before each run of writes the volume has sent all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{JOBS, Job, Options, World, fio, rate, sent};
use crate::world;

/// A device; taken away when dropped.
struct Device {
    name: &'static str,
    path: PathBuf,
    away: Command,
}

impl Drop for Device {
    fn drop(&mut self) {
        let ended = self.away.status();
        if !ended.as_ref().is_ok_and(|status| status.success()) {
            eprintln!("{} could not be taken away: {ended:?}", self.path.display());
        }
    }
}

/// Runs the part, or says why not.
pub fn run(world: &World, root: &Path, options: &Options) -> Result<()> {
    if let Some(why) = missing() {
        eprintln!("SKIPPED: FUSE and loop beside a loop device: {why}");
        return Ok(());
    }
    let plain = root.join("plain.img");
    fs::copy(root.join("image"), &plain)?;
    let plain = plain_loop(&plain)?;
    println!("\n| FUSE + loop | round | loop device | dormouse | ratio |\n|---|--:|--:|--:|--:|");
    for writes in [false, true] {
        let own = if writes { volume(world, root)? } else { point(world, root, options)? };
        for job in JOBS.iter().filter(|job| job.writes == writes && !job.once) {
            compare(world, job, options, [&plain, &own])?;
        }
    }
    Ok(())
}

fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root");
    }
    if !Path::new("/dev/fuse").exists() || !Path::new("/dev/loop-control").exists() {
        return Some("this kernel has no FUSE, or no loop devices");
    }
    None
}

fn compare(world: &World, job: &Job, options: &Options, devices: [&Device; 2]) -> Result<()> {
    let mut ratios = Vec::new();
    for round in 1..=options.rounds {
        let mut rates = [0.0; 2];
        for turn in 0..devices.len() {
            let which = (turn + round) % devices.len();
            if job.writes {
                sent(world)?;
            }
            let device = devices[which];
            let mut fio = fio(&["--ioengine=libaio", "--direct=1", "--iodepth=32"], job);
            fio.arg(format!("--filename={}", device.path.display()));
            fio.arg("--time_based").arg(format!("--runtime={}", options.seconds));
            rates[which] = rate(fio, job, device.name)?;
        }
        let ratio = rates[1] / rates[0];
        println!("| {} | {round} | {:.0} | {:.0} | {ratio:.2} |", job.name, rates[0], rates[1]);
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!("reported: {}: {:.2} of a loop device", job.name, ratios[ratios.len() / 2]);
    Ok(())
}

/// A loop device over a file.
fn plain_loop(file: &Path) -> Result<Device> {
    let losetup = |direct: &str| {
        Command::new("losetup").args(["--show", "-f", direct]).arg(file).output().context("losetup")
    };
    let mut out = losetup("--direct-io=on")?;
    if !out.status.success() {
        println!("the loop device has a cache of its own: this file system has no direct I/O");
        out = losetup("--direct-io=off")?;
    }
    ensure!(out.status.success(), "losetup: {}", String::from_utf8_lossy(&out.stderr).trim());
    let path = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
    let mut away = Command::new("losetup");
    away.arg("-d").arg(&path);
    Ok(Device { name: "a loop device", path, away })
}

/// Attaches, and knows how to detach.
pub fn attach(world: &World, root: &Path, arguments: &[&str]) -> Result<(PathBuf, Command)> {
    let command = |name: &str| {
        let mut command = world.client();
        command.env("DORMOUSE_ATTACHED", root.join("attached")).arg(name);
        command
    };
    let mut attach = command("attach");
    attach.args(arguments).args(["--via", "fuse"]);
    let path = PathBuf::from(world::output(attach)?.trim());
    let mut detach = command("detach");
    detach.arg(&path).arg("--force").stdout(std::process::Stdio::null());
    Ok((path, detach))
}

/// The point, with a cache that holds all of it.
fn point(world: &World, root: &Path, options: &Options) -> Result<Device> {
    let (cache, size) = (root.join("loop-cache"), format!("{}MiB", options.image_mib * 2));
    let cache = cache.to_string_lossy();
    let (path, away) = attach(world, root, &["point", "--cache", &cache, "--cache-size", &size])?;
    let device = Device { name: "a point by FUSE", path, away };
    let mut read = Command::new("dd");
    read.arg(format!("if={}", device.path.display()));
    read.args(["of=/dev/null", "bs=1M", "iflag=direct", "status=none"]);
    world::output(read)?;
    Ok(device)
}

/// The volume, all of it written once.
fn volume(world: &World, root: &Path) -> Result<Device> {
    let (path, away) = attach(world, root, &["disk", "--write", "--writeback"])?;
    let device = Device { name: "a volume by FUSE", path, away };
    let mut write = Command::new("dd");
    write.arg(format!("if={}", root.join("image").display()));
    write.arg(format!("of={}", device.path.display()));
    write.args(["bs=1M", "oflag=direct", "conv=fsync,notrunc", "status=none"]);
    world::output(write)?;
    Ok(device)
}
