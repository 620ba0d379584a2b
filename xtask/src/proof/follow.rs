//! How closely the copy follows a disk in use, and what that costs the disk.
//!
//! Three parts, on a loop device over a file in memory, server and client on this machine:
//!
//! - **tracker**: fio writes 4 KiB at random, with the programs in the kernel and without, in turn;
//! - **lag**: fio writes 20 MB/s at random to a mounted ext4 (with replacement, so that passes
//!   rarely settle and points are frozen); the status socket is asked ten times a second;
//! - **second**: the mirror is down while a twentieth of the disk changes; from its start until
//!   nothing is behind, beside the second copy of others ([`second`]).

mod second;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dormouse_track::device::Disk as Watched;
use dormouse_track::ebpf::{self, Watch};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::live::disk::{Attached, Disk, FileSystem};
use super::{MIB, Options, Verdict};
use crate::world::World;

const GIB: u64 = 1 << 30;
const SIZE: u64 = 4 * GIB;
const RATE_MB: u64 = 20;
const SAMPLE: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(120);
const SEED: u64 = 0x666f_6c6c_6f77;

/// Runs the proof.
pub fn run(options: &Options) -> Result<ExitCode> {
    let mut verdict = Verdict::default();
    fs::create_dir_all(&options.directory)?;
    tracker(options, &mut verdict)?;
    lag(options, &mut verdict)?;
    second::run(options, &mut verdict)?;
    Ok(verdict.code())
}

/// A disk without a file system, of an image that is removed by whoever made the directory.
fn bare(directory: &Path) -> Result<Attached> {
    let image = directory.join("bare.img");
    File::create(&image)?.set_len(SIZE)?;
    Attached::to(&image, &[])
}

fn fio(target: &Path, arguments: &str) -> Command {
    let mut fio = Command::new("fio");
    fio.args(["--name=x", "--rw=randwrite", "--bs=4k", "--norandommap", "--randrepeat=1"])
        .args(["--time_based", "--output-format=json"])
        .arg(format!("--filename={}", target.display()))
        .args(arguments.split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    fio
}

fn tracker(options: &Options, verdict: &mut Verdict) -> Result<()> {
    let root = options.directory.join("follow");
    fs::create_dir_all(&root)?;
    let disk = bare(&root)?;
    let pins = ebpf::place().join(format!("proof-{}", std::process::id()));
    let load = "--direct=1 --ioengine=libaio --iodepth=16 --size=1g --runtime=5";
    let measure = |tracked: bool| -> Result<f64> {
        let watch = if tracked { Some(Watch::begin(&Watched::of(&disk.0)?, &pins)?) } else { None };
        let out = fio(&disk.0, load).output().context("cannot start fio")?;
        if let Some(watch) = watch {
            watch.end()?;
        }
        super::iops(&out.stdout, "write")
    };
    measure(false)?;
    println!("| round | writes a second without | with the tracker | ratio |\n|--:|--:|--:|--:|");
    let mut ratios = Vec::new();
    for round in 1..=options.rounds.max(5) {
        // In turn, and each first as often.
        let first = round % 2 == 0;
        let (a, b) = (measure(first)?, measure(!first)?);
        let (with, without) = if first { (a, b) } else { (b, a) };
        println!("| {round} | {without:.0} | {with:.0} | {:.3} |", with / without);
        ratios.push(with / without);
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    drop(disk);
    fs::remove_dir_all(&root)?;
    let what = format!("the tracker costs at most 2 % of the writes: median {median:.3}");
    verdict.check(&what, median >= 0.98);
    Ok(())
}

/// A mirror that runs.
struct Mirror {
    child: Child,
    log: PathBuf,
    home: PathBuf,
}

impl Mirror {
    fn start(world: &World, device: &Path, log: &str) -> Result<Self> {
        let log = world.scratch.join(log);
        let mut command = world.client();
        command.arg("mirror").arg(device).args(["--volume", "disk", "--point-every", "5s"]);
        let child = command.stderr(File::create(&log)?).stdout(Stdio::null()).spawn()?;
        Ok(Self { child, log, home: world.homes.join("client") })
    }

    /// What its socket says now; nothing while it does not answer.
    fn status(&self) -> Option<String> {
        let socket = self.home.join(format!("run/status-{}.sock", self.child.id()));
        let mut stream = UnixStream::connect(socket).ok()?;
        stream.write_all(b"status\n").ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        line.contains("\"state\"").then_some(line)
    }

    /// Waits until nothing is behind.
    fn wait_even(&mut self) -> Result<Duration> {
        let began = Instant::now();
        while began.elapsed() < WAIT_MAX {
            if let Some(status) = self.status()
                && status.contains("\"LIVE\"")
                && number(&status, "data_lag_ms") == Some(0)
            {
                return Ok(began.elapsed());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the mirror ended with {status}: {}", fs::read_to_string(&self.log)?);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("the mirror is still behind: {}", fs::read_to_string(&self.log)?)
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|l| l.split_whitespace().next()).context("no such memory")?;
        Ok(kib.parse::<u64>()? << 10)
    }

    fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the mirror ended with {status}");
        Ok(())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn number(document: &str, name: &str) -> Option<u64> {
    let rest = document.split_once(&format!("\"{name}\":"))?.1;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn of(sorted: &[f64], part: f64) -> f64 {
    let at = ((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len().max(1));
    sorted.get(at - 1).copied().unwrap_or(f64::NAN)
}

fn lag(options: &Options, verdict: &mut Verdict) -> Result<()> {
    let root = options.directory.join("follow");
    let world = World::fresh(&options.dormouse, &root)?;
    let server = world.serve()?;
    world.join(server.address)?;
    let mut disk = Disk::create(&root, FileSystem::Ext4, SIZE)?;
    let mut mirror = Mirror::start(&world, &disk.device, "mirror")?;
    mirror.wait_even()?;
    let before = mirror.status().context("the mirror does not answer")?;
    let load = format!(
        "--direct=1 --ioengine=libaio --iodepth=8 --size=512m --rate={RATE_MB}000000 --runtime={}",
        options.seconds
    );
    let mut fio = fio(&disk.mount.join("file"), &load).spawn().context("cannot start fio")?;
    // The file is laid out first, as fast as that goes: not part of the load.
    std::thread::sleep(Duration::from_secs(5));
    let (mut data, mut point) = (Vec::new(), Vec::new());
    while fio.try_wait()?.is_none() {
        if let Some(status) = mirror.status() {
            data.extend(number(&status, "data_lag_ms").map(|ms| ms as f64 / 1e3));
            point.extend(number(&status, "point_lag_ms").map(|ms| ms as f64 / 1e3));
        }
        std::thread::sleep(SAMPLE);
    }
    let after = mirror.status().context("the mirror does not answer")?;
    let peak = mirror.memory("VmHWM:")?;
    mirror.wait_even()?;
    let log = fs::read_to_string(&mirror.log)?;
    mirror.stop()?;
    disk.umount()?;
    data.sort_by(f64::total_cmp);
    point.sort_by(f64::total_cmp);
    let mut frozen = frozen_ms(&log);
    frozen.sort_by(f64::total_cmp);
    let counted = |name| -> f64 {
        let get = |document| number(document, name).unwrap_or(0) as f64;
        get(&after) - get(&before)
    };
    let sent = counted("bytes_sent");
    let overhead = counted("bytes_on_link") / sent - 1.0;
    println!(
        "\n{} samples; points: {} settled, {} frozen, {} fuzzy; sent {:.0} MiB",
        data.len(),
        counted("settled"),
        counted("frozen"),
        counted("fuzzy"),
        sent / MIB
    );
    println!("| | p50 | p99 | most |\n|---|--:|--:|--:|");
    for (name, values) in
        [("data lag, s", &data), ("point lag, s", &point), ("frozen, ms", &frozen)]
    {
        println!(
            "| {name} | {:.2} | {:.2} | {:.2} |",
            of(values, 0.5),
            of(values, 0.99),
            of(values, 1.0)
        );
    }
    let (p50, p99) = (of(&data, 0.5), of(&data, 0.99));
    verdict.check(
        &format!("data lag: p50 at most 1 s, p99 at most 3 s: {p50:.2} and {p99:.2}"),
        p50 <= 1.0 && p99 <= 3.0,
    );
    let p99 = of(&point, 0.99);
    verdict.check(&format!("point lag: p99 at most 8 s: {p99:.2}"), p99 <= 8.0);
    let p99 = of(&frozen, 0.99);
    verdict.check(
        &format!("{} freezes: p99 at most 50 ms: {p99:.1}", frozen.len()),
        !frozen.is_empty() && p99 <= 50.0,
    );
    verdict.check(
        &format!("what is no content: at most 10 % of what is: {:.1} %", overhead * 100.0),
        overhead <= 0.1,
    );
    verdict.check(
        &format!("memory: at most 64 MiB besides bitmaps: {:.1} MiB", peak as f64 / MIB),
        peak <= 64 << 20,
    );
    fs::remove_dir_all(&root)?;
    Ok(())
}

/// How long each freeze was, by the log.
fn frozen_ms(log: &str) -> Vec<f64> {
    let lines = log.lines().filter_map(|line| line.split_once("frozen for "));
    lines.filter_map(|(_, rest)| rest.split(' ').next()?.parse().ok()).collect()
}
