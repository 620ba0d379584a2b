//! What strangers cost who is let in: the time of a first copy, alone and while thousands of
//! connections that never say who they are hold all places of the server, and come back at once
//! when they are closed.
//!
//! The strangers run in a process of their own (`crates/dormouse/examples/strangers.rs`), on
//! this machine, and take processor time that they would not take elsewhere: what is measured is
//! an upper bound. Each copy has a fresh store and a fresh server; rounds alternate. A crowd of less
//! than a server's places meets a server of fewer places: one that may have few open files.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{Resource, setrlimit};

use super::{MIB, Options, Verdict};
use crate::measure;
use crate::random::SplitMix;
use crate::world::{Server, World};

/// An honest copy may take so many times as long.
const RATIO_MAX: f64 = 2.0;
/// What the server may take for strangers and the copy together.
const MEMORY_MAX: u64 = 256 << 20;
/// An honest client is let in within this time: what it waits for its handshake.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Times that an honest client comes in while the strangers are there.
const CONNECTS: usize = 10;
/// Strangers that a server takes, and open files with which it takes fewer.
const PLACES: usize = 1024;
const FEW_FILES: u64 = 1024;
const SEED: u64 = 0x7374_7261_6e67;

/// One first copy.
#[derive(Clone, Copy, Default)]
struct Run {
    seconds: f64,
    processor: f64,
    server_memory: u64,
    threads: u64,
    /// The slowest of several short commands.
    connect: Duration,
    /// How often strangers came.
    came: usize,
}

/// Runs the proof.
pub fn run(options: &Options) -> Result<ExitCode> {
    let root = options.directory.join("strangers");
    let attackers = options.dormouse.with_file_name("examples").join("strangers");
    ensure!(
        attackers.exists(),
        "{}: cargo build --release -p dormouse --example strangers",
        attackers.display()
    );
    if options.connections <= PLACES {
        // Inherited by the server, which takes 128 strangers then.
        setrlimit(Resource::RLIMIT_NOFILE, FEW_FILES, FEW_FILES)?;
    }
    fs::create_dir_all(&options.directory)?;
    let image = options.directory.join("strangers.img");
    write_image(&image, options.image_mib)?;
    println!(
        "an image of {} MiB; {} strangers; all on this machine, over loopback",
        options.image_mib, options.connections
    );
    println!(
        "| round | strangers | copy, s | processor, both, s | server, MiB | threads | slowest coming in, ms | strangers came | stayed, mean, ms |"
    );
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    let (mut alone, mut crowded) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        alone.push(copy(options, &root, &image, round, None)?);
        crowded.push(copy(options, &root, &image, round, Some(&attackers))?);
    }
    let median = |runs: &[Run]| {
        let mut seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    };
    let (before, with) = (median(&alone), median(&crowded));
    let mut verdict = Verdict::default();
    let came = crowded.iter().map(|run| run.came).min().unwrap_or_default();
    verdict.check(
        &format!(
            "all places were held, and changed hands: {came} strangers came, of {}",
            options.connections
        ),
        came > options.connections,
    );
    verdict.check(
        &format!("a copy takes at most {RATIO_MAX} times as long: {before:.2} s and {with:.2} s, {:.2} times", with / before),
        with <= RATIO_MAX * before,
    );
    let memory = crowded.iter().map(|run| run.server_memory).max().unwrap_or_default();
    verdict.check(
        &format!("the server stays under 256 MiB: at most {:.1} MiB", memory as f64 / MIB),
        memory < MEMORY_MAX,
    );
    let slowest = crowded.iter().map(|run| run.connect).max().unwrap_or_default();
    verdict.check(
        &format!(
            "an honest client comes in within {CONNECT_MAX:?}, each time: at most {slowest:.1?}"
        ),
        slowest < CONNECT_MAX,
    );
    if verdict.code() == ExitCode::SUCCESS {
        fs::remove_dir_all(&root)?;
        fs::remove_file(&image)?;
    }
    Ok(verdict.code())
}

/// Blocks that compress to about half.
fn write_image(path: &Path, mib: usize) -> Result<()> {
    let mut file =
        File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut random = SplitMix::new(SEED);
    let mut piece = vec![0; 1 << 20];
    for _ in 0..mib {
        for bytes in piece.chunks_exact_mut(16) {
            let bits = random.next();
            for (index, byte) in bytes.iter_mut().enumerate() {
                *byte = b'a' + (bits >> (4 * index) & 15) as u8;
            }
        }
        file.write_all(&piece)?;
    }
    Ok(())
}

/// A first copy into a fresh store, compared with what comes back from it.
fn copy(
    options: &Options,
    root: &Path,
    image: &Path,
    round: usize,
    attackers: Option<&PathBuf>,
) -> Result<Run> {
    let world = World::fresh(&options.dormouse, root)?;
    let server = world.serve()?;
    world.join(server.address)?;
    let crowd = attackers
        .map(|program| Crowd::start(program, &world, &server, options.connections))
        .transpose()?;
    let step = measure::step(&world.mirror(image, "disk"), &world.scratch, Some(server.id()))?;
    let mut run = Run {
        seconds: step.seconds,
        processor: step.cpu_seconds,
        server_memory: step.server_rss_bytes.unwrap_or_default(),
        threads: threads(server.id())?,
        connect: Duration::ZERO,
        came: 0,
    };
    for _ in 0..CONNECTS {
        let start = Instant::now();
        let mut volumes = world.client();
        volumes.arg("volumes");
        crate::world::output(volumes).context("an honest client was kept out")?;
        run.connect = run.connect.max(start.elapsed());
    }
    let said = crowd.map(Crowd::end).transpose()?;
    let restored = world.scratch.join("restored.img");
    crate::world::output(world.restore("disk", &restored))?;
    measure::compare(&restored, image)?;
    let field = |name: &str| said.as_deref().map_or("–", |said| word_after(said, name));
    run.came = field("came").parse().unwrap_or_default();
    println!(
        "| {round} | {} | {:.2} | {:.2} | {:.1} | {} | {:.0} | {} | {} |",
        attackers.map_or(0, |_| options.connections),
        run.seconds,
        run.processor,
        run.server_memory as f64 / MIB,
        run.threads,
        run.connect.as_secs_f64() * 1000.0,
        field("came"),
        field("stayed_ms"),
    );
    Ok(run)
}

fn threads(process: u32) -> Result<u64> {
    let status =
        fs::read_to_string(format!("/proc/{process}/status")).context("the server is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:"));
    Ok(line.context("no threads in status")?.trim().parse()?)
}

fn word_after<'a>(said: &'a str, name: &str) -> &'a str {
    let mut words = said.split_whitespace();
    words.find(|word| *word == name).and_then(|_| words.next()).unwrap_or("?")
}

/// Strangers that hold the server's places; gone when dropped.
struct Crowd {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Crowd {
    /// Starts them, and waits until each has come once.
    fn start(program: &Path, world: &World, server: &Server, number: usize) -> Result<Self> {
        let log = fs::read_to_string(world.scratch.join("server"))?;
        // They have machines of their own in truth: here they get what the others leave.
        let mut child = Command::new("nice")
            .args(["-n", "19"])
            .arg(program)
            .args([
                &server.address.to_string(),
                word_after(&log, "fingerprint"),
                &number.to_string(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("no output of the strangers")?);
        let mut crowd = Self { child, input, output };
        let mut line = String::new();
        crowd.output.read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("the strangers did not come: {line}");
        }
        Ok(crowd)
    }

    /// Sends them away; what they say.
    fn end(mut self) -> Result<String> {
        self.input.take();
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // Ended already, if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_by_the_one_before() {
        assert_eq!(word_after("came 12 failed 0 stayed_ms 999\n", "stayed_ms"), "999");
        assert_eq!(word_after("listening on x\nfingerprint ab\n", "fingerprint"), "ab");
        assert_eq!(word_after("came", "came"), "?");
    }
}
