//! A volume as a disk beside a plain file, served by others: fio's NBD engine, queue depth 32.
//!
//! One image of random bytes. `qemu-nbd` and `nbdkit file` serve copies of it; `dormouse export`
//! serves the point of a volume that holds it, with a warm cache, and, for writing, a volume of its
//! size (`--write --writeback`). All servers stay up; the rounds take turns, each first as often.
//! Before a round of writes the volume has sent all that was written before (its log is empty). The
//! whole disk written once is a burst that the log takes; again and again for `--seconds` is more than it
//! holds ([`LOG_SIZE`]), and goes on as long as what was written before is not needed any more.
//!
//! Then the same by the kernel ([`looped`]), cold reads beside a restore ([`cold`]), and how long a
//! huge disk takes to be there ([`ready`]).

mod cold;
mod looped;
mod ready;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Options, Verdict};
use crate::measure;
use crate::random::SplitMix;
use crate::world::{self, World};

/// What a rate must be, beside that of each peer.
const RATIO_LEAST: f64 = 0.9;
const START_LIMIT: Duration = Duration::from_secs(30);
/// The longest that a full log takes to be sent.
const SENT_LIMIT: Duration = Duration::from_secs(300);
const SEED: u64 = 0x64_6973_6b73;

/// What the write log of a volume may take.
const LOG_SIZE: &str = "4GiB";

/// The parts, in their order.
const PARTS: [&str; 4] = ["nbd", "cold", "loop", "ready"];

/// What fio does.
struct Job {
    name: &'static str,
    arguments: &'static [&'static str],
    writes: bool,
    /// The whole disk, and no longer.
    once: bool,
}

impl Job {
    const fn new(name: &'static str, arguments: &'static [&'static str], writes: bool) -> Self {
        Self { name, arguments, writes, once: false }
    }
}

const WRITE: &[&str] = &["--rw=write", "--bs=1m"];
const JOBS: [Job; 5] = [
    Job::new("4k random read", &["--rw=randread", "--bs=4k"], false),
    Job::new("1 MiB read", &["--rw=read", "--bs=1m"], false),
    Job::new("4k random write", &["--rw=randwrite", "--bs=4k"], true),
    Job { once: true, ..Job::new("1 MiB write, the disk once", WRITE, true) },
    Job::new("1 MiB write, again and again", WRITE, true),
];

/// A server that runs; ended when it is dropped.
struct Serving {
    name: &'static str,
    child: Child,
    uri: String,
}

/// Requests a second, and processor time of the server for one, in microseconds.
#[derive(Clone, Copy)]
struct Rate {
    requests: f64,
    processor: f64,
}

impl Serving {
    fn start(
        name: &'static str,
        socket: &Path,
        export: &str,
        mut command: Command,
    ) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let uri = format!("nbd+unix:///{export}?socket={}", socket.display());
        let serving = Self { name, child, uri };
        measure::wait_for(&format!("the socket of {name}"), START_LIMIT, || {
            Ok(socket.exists().then_some(()))
        })?;
        Ok(serving)
    }

    /// Seconds of processor that it has used.
    fn processor(&self) -> Result<f64> {
        measure::cpu_seconds(self.child.id())
    }

    fn fio(&self, job: &Job, options: &Options) -> Result<Rate> {
        let before = self.processor()?;
        let mut fio = fio(&["--ioengine=nbd", "--iodepth=32"], job);
        fio.arg(format!("--uri={}", self.uri));
        if !job.once {
            fio.arg("--time_based").arg(format!("--runtime={}", options.seconds));
        }
        let requests = rate(fio, job, self.name)?;
        let used = self.processor()? - before;
        let all =
            if job.once { options.image_mib as f64 } else { requests * options.seconds as f64 };
        Ok(Rate { requests, processor: used * 1e6 / all })
    }
}

/// fio, with what all runs have in common.
fn fio(engine: &[&str], job: &Job) -> Command {
    let mut fio = Command::new("fio");
    fio.args(["--name=x", "--randrepeat=1", "--norandommap", "--output-format=json"]);
    fio.args(engine).args(job.arguments);
    fio
}

/// Runs fio: requests a second.
fn rate(mut fio: Command, job: &Job, with: &str) -> Result<f64> {
    let out = fio.output().context("cannot start fio")?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "fio with {with}: {}", said.trim());
    let requests = super::iops(&out.stdout, if job.writes { "write" } else { "read" })?;
    ensure!(requests > 0.0, "fio did nothing with {with}: {}", said.trim());
    Ok(requests)
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// Runs the proof.
pub fn run(options: &Options) -> Result<ExitCode> {
    for program in ["fio", "qemu-nbd", "nbdkit"] {
        ensure!(
            Command::new(program).arg("--version").output().is_ok(),
            "{program} is not installed: apt-get install fio qemu-utils nbdkit"
        );
    }
    let unknown = options.parts.iter().find(|part| !PARTS.contains(&part.as_str()));
    ensure!(unknown.is_none(), "there is no part {unknown:?}: {}", PARTS.join(", "));
    let wanted = |part: &str| options.parts.is_empty() || options.parts.iter().any(|p| p == part);
    let root = options.directory.join("disks");
    let world = World::fresh(&options.dormouse, &root)?;
    let server = world.serve()?;
    world.join(server.address)?;
    let image = root.join("image");
    fill(&image, options.image_mib)?;
    world::output(world.mirror(&image, "point"))?;
    let mut create = world.client();
    create.args(["create", "disk", &format!("{}MiB", options.image_mib)]);
    world::output(create)?;
    let mut verdict = Verdict::default();
    if wanted("nbd") {
        served(&world, &root, options, &mut verdict)?;
    }
    if wanted("cold") {
        cold::run(&world, &root, options, &mut verdict)?;
    }
    if wanted("loop") {
        looped::run(&world, &root, options)?;
    }
    if wanted("ready") {
        ready::run(&world, &root, options, &mut verdict)?;
    }
    drop(server);
    fs::remove_dir_all(&root)?;
    Ok(verdict.code())
}

/// Over NBD, beside the others.
fn served(world: &World, root: &Path, options: &Options, verdict: &mut Verdict) -> Result<()> {
    let image = root.join("image");
    let peers = [qemu(root, &image)?, nbdkit(root, &image)?];
    println!(
        "disks of {} MiB; a write log of {LOG_SIZE} at most; each run {} s, or the disk once",
        options.image_mib, options.seconds
    );
    println!(
        "| | round | qemu-nbd | nbdkit | dormouse | µs of processor each |\n|---|--:|--:|--:|--:|---|"
    );
    let point = point(world, root)?;
    for job in JOBS.iter().filter(|job| !job.writes) {
        compare(job, options, &peers, &point, verdict, || Ok(()))?;
    }
    drop(point);
    let disk = disk(world, root)?;
    for job in JOBS.iter().filter(|job| job.writes) {
        compare(job, options, &peers, &disk, verdict, || sent(world))?;
    }
    Ok(())
}

/// Random bytes, in pieces of a MiB that differ.
fn fill(image: &Path, mib: usize) -> Result<()> {
    let mut file = File::create(image)?;
    let mut random = SplitMix::new(SEED);
    let mut piece = vec![0; 1 << 20];
    for _ in 0..mib {
        for bytes in piece.chunks_exact_mut(8) {
            bytes.copy_from_slice(&random.next().to_le_bytes());
        }
        file.write_all(&piece)?;
    }
    Ok(file.sync_all()?)
}

fn qemu(root: &Path, image: &Path) -> Result<Serving> {
    let (socket, copy) = (root.join("qemu.sock"), root.join("qemu.img"));
    fs::copy(image, &copy)?;
    let mut command = Command::new("qemu-nbd");
    command.args(["--format=raw", "--persistent", "--shared=4", "--socket"]);
    command.arg(&socket).arg(&copy);
    Serving::start("qemu-nbd", &socket, "", command)
}

fn nbdkit(root: &Path, image: &Path) -> Result<Serving> {
    let (socket, copy) = (root.join("nbdkit.sock"), root.join("nbdkit.img"));
    fs::copy(image, &copy)?;
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(&socket);
    command.arg("file").arg(&copy);
    Serving::start("nbdkit", &socket, "", command)
}

/// The point, with a cache that holds all of it.
fn point(world: &World, root: &Path) -> Result<Serving> {
    let socket = root.join("point.sock");
    let mut command = world.client();
    command.args(["export", "point", "--cache"]).arg(root.join("cache"));
    command.arg("--nbd").arg(format!("unix:{}", socket.display()));
    let serving = Serving::start("a point", &socket, "point", command)?;
    let mut copy = Command::new("nbdcopy");
    copy.args([&serving.uri, "null:"]);
    world::output(copy)?;
    Ok(serving)
}

/// A volume that is written, all of it once.
fn disk(world: &World, root: &Path) -> Result<Serving> {
    let socket = root.join("disk.sock");
    let mut command = world.client();
    command.args(["export", "disk", "--write", "--writeback", "--log-size", LOG_SIZE]);
    command.arg("--nbd").arg(format!("unix:{}", socket.display()));
    let serving = Serving::start("a volume", &socket, "disk", command)?;
    let mut copy = Command::new("nbdcopy");
    copy.arg(root.join("image")).arg(&serving.uri);
    world::output(copy)?;
    Ok(serving)
}

/// Waits until all that was written is sent.
fn sent(world: &World) -> Result<()> {
    let log: PathBuf = world.homes.join("client/writing/disk");
    measure::wait_for("an empty write log", SENT_LIMIT, || {
        let mut bytes = 0;
        for entry in fs::read_dir(&log)? {
            // A file that was sent goes while it is counted.
            bytes += entry?.metadata().map_or(0, |meta| meta.len());
        }
        Ok((bytes < 64 << 10).then_some(()))
    })
}

fn compare(
    job: &Job,
    options: &Options,
    peers: &[Serving; 2],
    own: &Serving,
    verdict: &mut Verdict,
    ready: impl Fn() -> Result<()>,
) -> Result<()> {
    let servers = [&peers[0], &peers[1], own];
    let mut ratios = [Vec::new(), Vec::new()];
    for round in 1..=options.rounds {
        let mut rates = [Rate { requests: 0.0, processor: 0.0 }; 3];
        for turn in 0..servers.len() {
            let which = (turn + round) % servers.len();
            ready()?;
            rates[which] = servers[which].fio(job, options)?;
        }
        let [a, b, own] = rates;
        println!(
            "| {} | {round} | {:.0} | {:.0} | {:.0} | {:.1} {:.1} {:.1} |",
            job.name, a.requests, b.requests, own.requests, a.processor, b.processor, own.processor
        );
        ratios[0].push(own.requests / a.requests);
        ratios[1].push(own.requests / b.requests);
    }
    for (peer, ratios) in peers.iter().zip(&mut ratios) {
        ratios.sort_by(f64::total_cmp);
        let median = ratios[ratios.len() / 2];
        let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
        verdict.check(
            &format!(
                "{}: at least {RATIO_LEAST} of {}: {median:.2} ({least:.2} to {most:.2})",
                job.name, peer.name
            ),
            median >= RATIO_LEAST,
        );
    }
    Ok(())
}
