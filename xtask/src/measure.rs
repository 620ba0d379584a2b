//! One timed step: wall clock, processor time and peak memory of a program, and of its server.
//!
//! The program runs below a second `xtask`, which does nothing else: `getrusage` of *its*
//! children is then the program's alone, and the small parent keeps out of the program's peak
//! memory.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};

/// The hidden subcommand that measures one program.
pub const MEASURE: &str = "measure-one";
/// Compared at once; small, because a child's peak memory starts at its parent's.
const BUFFER_SIZE: usize = 1 << 20;
/// Memory is full when reading 256 MiB leaves at most so much less free.
const FILL_LEAST: u64 = 64 << 20;
/// More than any machine has that this runs on.
const FILLER_SIZE: u64 = 8 << 40;
/// The filler, and how far it was read.
static FILLER: Mutex<Option<(File, u64)>> = Mutex::new(None);
const TICKS_PER_SECOND: f64 = 100.0;

/// What one step cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    /// From start to exit.
    pub seconds: f64,
    /// The same, with a `sync` after it.
    pub synced_seconds: f64,
    /// User and system time, with the server's.
    pub cpu_seconds: f64,
    /// Peak resident memory of the program that was started.
    pub rss_bytes: u64,
    /// Peak resident memory of its server, where it has one.
    pub server_rss_bytes: Option<u64>,
}

/// `measure-one RESULT PROGRAM ARGUMENT…`: runs the program and writes what it cost to RESULT.
pub fn measure_one(arguments: &[String]) -> Result<ExitCode> {
    let [result, program, rest @ ..] = arguments else {
        bail!("{MEASURE} RESULT PROGRAM ARGUMENT...")
    };
    let start = Instant::now();
    let status = Command::new(program)
        .args(rest)
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    let seconds = start.elapsed().as_secs_f64();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let (user, system) = (usage.user_time(), usage.system_time());
    let cpu =
        (user.tv_sec() + system.tv_sec()) as f64 + (user.tv_usec() + system.tv_usec()) as f64 / 1e6;
    fs::write(result, format!("{seconds} {cpu} {}", usage.max_rss() * 1024))
        .with_context(|| format!("cannot write {result}"))?;
    ensure!(status.success(), "{program} ended with {status}");
    Ok(ExitCode::SUCCESS)
}

/// Runs `command` as one timed step. What it prints goes to `scratch`, and into the error if it
/// fails.
pub fn step(command: &Command, scratch: &Path, server: Option<u32>) -> Result<Step> {
    let result = scratch.join("measured");
    let log = scratch.join("output");
    let output = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let mut wrapped = Command::new(std::env::current_exe()?);
    wrapped.arg(MEASURE).arg(&result).arg(command.get_program()).args(command.get_args());
    wrapped.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(directory) = command.get_current_dir() {
        wrapped.current_dir(directory);
    }
    wrapped.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);

    nix::unistd::sync();
    let server_before = server
        .map(|process| reset_peak(process).and_then(|()| cpu_seconds(process)))
        .transpose()?;
    let start = Instant::now();
    let status = wrapped.status().context("cannot start the measuring process")?;
    let outer = start.elapsed();
    nix::unistd::sync();
    let with_sync = start.elapsed();
    if !status.success() {
        let said = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<_> = said.lines().collect();
        bail!("{command:?} failed:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
    }
    let line =
        fs::read_to_string(&result).with_context(|| format!("cannot read {}", result.display()))?;
    let fields: Vec<f64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    let [seconds, cpu, rss] = fields[..] else { bail!("the measuring process wrote {line:?}") };
    let mut step = Step {
        seconds,
        synced_seconds: seconds + (with_sync - outer).as_secs_f64(),
        cpu_seconds: cpu,
        rss_bytes: rss as u64,
        server_rss_bytes: None,
    };
    if let (Some(process), Some(before)) = (server, server_before) {
        step.cpu_seconds += cpu_seconds(process)? - before;
        step.server_rss_bytes = Some(peak(process)?);
    }
    Ok(step)
}

/// Fills free memory with cached pages that nobody needs, as on any machine that has run for a
/// while: what a program then takes comes from the cache at an even cost. A virtual machine that
/// gives free memory back to its host pays for each page again when it is first touched (16 µs for
/// 4 KiB were seen), and who comes first would pay for all.
pub fn fill_memory(scratch: &Path) -> Result<()> {
    let mut filler = FILLER.lock().unwrap_or_else(PoisonError::into_inner);
    let (file, offset) = match &mut *filler {
        Some(filler) => filler,
        None => filler.insert((make_filler(scratch)?, 0)),
    };
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        let before = free_memory()?;
        for _ in 0..256 {
            file.read_exact_at(&mut buffer, *offset)?;
            *offset += BUFFER_SIZE as u64;
        }
        // The kernel keeps some free; how much it does not say.
        if free_memory()? + FILL_LEAST > before || *offset >= FILLER_SIZE {
            return Ok(());
        }
    }
}

/// A hole without a name: reading it costs memory and no disk.
fn make_filler(scratch: &Path) -> Result<File> {
    let path = scratch.join("filler");
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.with_context(|| format!("cannot create {}", path.display()))?;
    fs::remove_file(&path)?;
    file.set_len(FILLER_SIZE)?;
    Ok(file)
}

fn free_memory() -> Result<u64> {
    bytes_in("/proc/meminfo", "MemFree:")
}

/// What a line of a file in `/proc` says in kB.
fn bytes_in(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let line = line.with_context(|| format!("no {name} in {path}"))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// Makes the kernel forget the peak memory of a process so far.
fn reset_peak(process: u32) -> Result<()> {
    fs::write(format!("/proc/{process}/clear_refs"), "5").context("the server is gone, or not ours")
}

fn peak(process: u32) -> Result<u64> {
    bytes_in(&format!("/proc/{process}/status"), "VmHWM:").context("the server is gone")
}

pub fn cpu_seconds(process: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).context("the server is gone")?;
    // The second field is the name in parentheses and may hold spaces; utime and stime are 14 and
    // 15.
    let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
    let ticks: f64 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    Ok(ticks / TICKS_PER_SECOND)
}

/// Apparent bytes of every file at or below `path`.
pub fn stored(path: &Path) -> Result<u64> {
    let metadata =
        fs::symlink_metadata(path).with_context(|| format!("cannot find {}", path.display()))?;
    if !metadata.is_dir() {
        return Ok(metadata.size());
    }
    let mut sum = 0;
    for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
        sum += stored(&entry?.path())?;
    }
    Ok(sum)
}

/// An error unless the two files are equal bit for bit.
pub fn compare(restored: &Path, original: &Path) -> Result<()> {
    let open =
        |path: &Path| File::open(path).with_context(|| format!("cannot read {}", path.display()));
    let (mut one, mut two) = (open(restored)?, open(original)?);
    let (size_one, size_two) = (one.metadata()?.len(), two.metadata()?.len());
    ensure!(size_one == size_two, "{} has {size_one} bytes, not {size_two}", restored.display());
    let (mut buffer_one, mut buffer_two) = (vec![0; BUFFER_SIZE], vec![0; BUFFER_SIZE]);
    let mut offset = 0;
    while offset < size_two {
        let length = usize::try_from((size_two - offset).min(BUFFER_SIZE as u64))?;
        one.read_exact(&mut buffer_one[..length])?;
        two.read_exact(&mut buffer_two[..length])?;
        ensure!(
            buffer_one[..length] == buffer_two[..length],
            "{} differs from what was copied in the MiB at offset {offset}",
            restored.display()
        );
        offset += length as u64;
    }
    Ok(())
}

/// Reads a file once, so that it lies in the page cache for whoever reads it next.
pub fn warm(path: &Path) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    io::copy(&mut file, &mut io::sink())?;
    Ok(())
}

/// Waits until `found` gives something.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut found: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = found()? {
            return Ok(value);
        }
        ensure!(start.elapsed() < limit, "{what} did not happen within {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}
