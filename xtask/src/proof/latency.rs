//! What a slow answer costs: first copies and restores over a link that delays each direction,
//! against the same link without delay.
//!
//! The delay is made by a relay in user space. The kernel sees two connections on loopback, so its
//! own limit, a socket buffer for each round trip, does not show here; it is computed at the end.
//! Round trips that a run needs in any case (handshakes, opening a volume, the commit) cost the
//! same for any disk; they are measured with a disk of one block and stated apart.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

use super::relay::Relay;
use super::{MIB, Options, Verdict};
use crate::bench::image::Images;
use crate::measure;
use crate::world::World;

/// The delay may cost this share of the time without it.
const COST_MAX: f64 = 0.15;

/// Memory that is touched before anything is measured: where free memory was given back to a host,
/// the first program to touch it again would pay for that.
const WARM_UP: u64 = 3 << 30;

/// The figures of one first copy, of a second copy of the same, and of a restore.
#[derive(Clone, Copy)]
struct Run {
    first: f64,
    /// Processor time of both sides for the first copy, and of the relay for all.
    processor: f64,
    relay: f64,
    second: f64,
    restore: f64,
    sent: u64,
    /// Peak resident memory of the client in the first copy.
    memory: u64,
}

/// Runs the proof.
pub fn run(options: &Options) -> Result<ExitCode> {
    let delay = Duration::from_millis(options.delay_ms);
    fs::create_dir_all(&options.images)
        .with_context(|| format!("cannot create {}", options.images.display()))?;
    let images = Images::prepare(&options.images, !options.large)?;
    images.put_base()?;
    println!("{}", images.describe());
    fs::create_dir_all(&options.directory)?;
    let tiny = options.directory.join("tiny.img");
    File::create(&tiny)?.write_all_at(&[7; 4096], 0)?;

    println!(
        "\n| round | disk | first, 0 ms, s | first, {0} ms, s | second, 0 ms, s | second, {0} ms, s | restore, 0 ms, s | restore, {0} ms, s | processor of the first + relay, 0 ms, s | {0} ms, s | client, 0 ms, MiB | {0} ms, MiB |",
        options.delay_ms
    );
    println!("|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    let (mut small, mut large) = (Vec::new(), Vec::new());
    touch_memory(&options.directory)?;
    for round in 1..=options.rounds {
        for (name, disk, runs) in
            [("one block", tiny.as_path(), &mut small), ("image", images.disk(), &mut large)]
        {
            measure::warm(disk)?;
            let near = copy(options, disk, Duration::ZERO)?;
            let far = copy(options, disk, delay)?;
            println!(
                "| {round} | {name} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} | {:.2} + {:.2} | {:.2} + {:.2} | {:.0} | {:.0} |",
                near.first,
                far.first,
                near.second,
                far.second,
                near.restore,
                far.restore,
                near.processor,
                near.relay,
                far.processor,
                far.relay,
                near.memory as f64 / MIB,
                far.memory as f64 / MIB
            );
            runs.push((near, far));
        }
    }
    fs::remove_file(&tiny)?;
    Ok(judge(options.delay_ms, &small, &large))
}

type Runs = [(Run, Run)];

fn median(runs: &Runs, value: fn(&(Run, Run)) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// What the runs without and with delay say about the promises.
fn judge(delay_ms: u64, small: &Runs, large: &Runs) -> ExitCode {
    let trip = 2.0 * Duration::from_millis(delay_ms).as_secs_f64();
    let constant = median(small, |(near, far)| far.first - near.first);
    let again = median(small, |(near, far)| far.second - near.second);
    let restore = median(small, |(near, far)| far.restore - near.restore);
    let near = median(large, |(near, _)| near.first);
    let far = median(large, |(_, far)| far.first);
    println!(
        "\none block: {:.1} round trips for a first copy, {:.1} for a second, {:.1} for a restore; {constant:.2} s, {again:.2} s and {restore:.2} s",
        constant / trip,
        again / trip,
        restore / trip
    );
    println!(
        "image: {near:.2} s without delay, {far:.2} s with {delay_ms} ms each way: {:+.1} %",
        (far / near - 1.0) * 100.0
    );
    let rest = far - constant;
    println!(
        "without the constant round trips: {rest:.2} s, {:+.1} %",
        (rest / near - 1.0) * 100.0
    );
    let back_near = median(large, |(near, _)| near.restore);
    let back_far = median(large, |(_, far)| far.restore);
    println!(
        "restore: {back_near:.2} s without delay, {back_far:.2} s with: {:+.1} %; without the constant {:+.1} %",
        (back_far / back_near - 1.0) * 100.0,
        ((back_far - restore) / back_near - 1.0) * 100.0
    );
    let enough = constant / COST_MAX;
    println!(
        "the constant alone is within {:.0} % from a copy of {enough:.1} s on, {:.1} times this image",
        COST_MAX * 100.0,
        enough / near
    );
    let sent = large.first().map_or(0, |(near, _)| near.sent) as f64;
    buffers(sent, near, trip);
    let mut verdict = Verdict::default();
    verdict.check(
        "beside the constant, the delay costs at most 15 %",
        rest <= near * (1.0 + COST_MAX),
    );
    verdict
        .check("with the constant, the delay costs at most 15 %", far <= near * (1.0 + COST_MAX));
    verdict.check(
        "beside its constant, the delay costs a restore at most 15 %",
        back_far - restore <= back_near * (1.0 + COST_MAX),
    );
    verdict.code()
}

/// Writes a file that lies in the page cache, and removes it.
fn touch_memory(directory: &Path) -> Result<()> {
    let path = directory.join("warm-up");
    let file = File::create(&path)?;
    let bytes = vec![1; 1 << 20];
    for at in (0..WARM_UP).step_by(bytes.len()) {
        file.write_all_at(&bytes, at)?;
    }
    Ok(fs::remove_file(path)?)
}

/// A first and a second copy into a fresh store, and a restore.
fn copy(options: &Options, disk: &Path, delay: Duration) -> Result<Run> {
    let world = World::fresh(&options.dormouse, &options.directory.join("latency"))?;
    let server = world.serve()?;
    let relay = Relay::start(server.address, delay)?;
    world.join(relay.address)?;
    relay.take();
    let before = own_seconds()?;
    let command = world.mirror(disk, "latency");
    let first = measure::step(&command, &world.scratch, Some(server.id()))?;
    let (sent, _) = relay.take();
    let second = measure::step(&command, &world.scratch, Some(server.id()))?;
    let target = world.scratch.join("restored.img");
    let command = world.restore("latency", &target);
    let restore = measure::step(&command, &world.scratch, Some(server.id()))?;
    let relay = own_seconds()? - before;
    measure::compare(&target, disk)?;
    drop(server);
    fs::remove_dir_all(options.directory.join("latency"))?;
    Ok(Run {
        first: first.seconds,
        processor: first.cpu_seconds,
        relay,
        second: second.seconds,
        restore: restore.seconds,
        sent,
        memory: first.rss_bytes,
    })
}

/// Processor time of this process, which is the relay's.
fn own_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// What the kernel needs for the same rate where the delay is on the wire.
fn buffers(sent: f64, seconds: f64, trip: f64) {
    let rate = sent / seconds;
    println!(
        "on a wire with this round trip of {:.0} ms, {:.0} MiB/s need {:.1} MiB in flight",
        trip * 1000.0,
        rate / MIB,
        rate * trip / MIB
    );
    for name in ["tcp_wmem", "tcp_rmem"] {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
        let most = text.split_whitespace().nth(2).and_then(|word| word.parse::<f64>().ok());
        if let Some(most) = most {
            println!(
                "this kernel's {name} allows at most {:.0} MiB for one connection: at most {:.0} MiB/s",
                most / MIB,
                most / trip / MIB
            );
        }
    }
}
