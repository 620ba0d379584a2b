//! A very large, nearly empty disk on which a million random blocks change: what crosses the link
//! each way, what is stored, and how much memory both sides take.
//!
//! The disk is a sparse file. Bytes are counted by a relay between client and server, so they
//! include TLS and the connection's own beginning.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::relay::Relay;
use super::{MIB, Options, Verdict, field};
use crate::measure::{self, Step};
use crate::random::SplitMix;
use crate::world::{Server, World};

const BLOCK: usize = 4096;
const TIB: u64 = 1 << 40;
/// Blocks before the change, unless the command line says how many.
const BASE_BLOCKS_MAX: usize = 20_000;
const MEMORY_MAX: u64 = 256 << 20;
/// An unchanged disk may cost 1/10,000 of its size on the link.
const UNCHANGED_SHARE: u64 = 10_000;
const SEED: u64 = 0x7370_6172_7365;

/// Where everything happens.
struct Proof {
    world: World,
    relay: Relay,
    server: Server,
    disk: PathBuf,
    size: u64,
    verdict: Verdict,
    client_peak: u64,
    server_peak: u64,
}

/// Runs the proof.
pub fn run(options: &Options) -> Result<ExitCode> {
    let size = options.size_tib * TIB;
    let world = World::fresh(&options.dormouse, &options.directory.join("sparse"))?;
    let disk = options.directory.join("sparse").join("disk.img");
    let server = world.serve()?;
    let relay = Relay::start(server.address, Duration::ZERO)?;
    world.join(relay.address)?;
    let mut proof = Proof {
        world,
        relay,
        server,
        disk,
        size,
        verdict: Verdict::default(),
        client_peak: 0,
        server_peak: 0,
    };

    println!("a sparse file of {} TiB; the link is loopback", options.size_tib);
    println!(
        "| step | changed blocks | time, s | processor, s | sent, MiB | received, MiB | stored, MiB | client, MiB | server, MiB |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|");
    let mut random = SplitMix::new(SEED);
    let base = options.base_blocks.unwrap_or(BASE_BLOCKS_MAX.min(options.blocks / 4));
    let base = proof.write(&mut random, base)?;
    proof.mirror("first copy", base)?;
    let changed = proof.write(&mut random, options.blocks)?;
    let (sent, received, stored) = proof.mirror("copy after the change", changed)?;
    let (up, down, _) = proof.mirror("copy of nothing new", 0)?;
    let restored = proof.restore()?;

    let each = |bytes: u64| bytes as f64 / changed.max(1) as f64;
    println!(
        "for each changed block: {:.0} bytes sent, {:.0} received, {:.0} stored",
        each(sent),
        each(received),
        each(stored)
    );
    for (side, peak) in [("client", proof.client_peak), ("server", proof.server_peak)] {
        proof.verdict.check(
            &format!("the {side} stays under 256 MiB: at most {:.1} MiB", peak as f64 / MIB),
            peak < MEMORY_MAX,
        );
    }
    let share = proof.size / UNCHANGED_SHARE;
    proof.verdict.check(
        &format!("nothing new costs {} of at most {share} bytes on the link", up + down),
        up + down < share,
    );
    let compared = compare(&proof.disk, &restored)?;
    println!("the restored disk is equal in {compared} blocks of data, and empty elsewhere");
    let code = proof.verdict.code();
    let Proof { server, .. } = proof;
    drop(server);
    fs::remove_dir_all(options.directory.join("sparse"))?;
    Ok(code)
}

impl Proof {
    /// Writes `count` random blocks, half of whose bits are random. How many differ from before.
    fn write(&self, random: &mut SplitMix, count: usize) -> Result<u64> {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.disk)
            .with_context(|| format!("cannot open {}", self.disk.display()))?;
        file.set_len(self.size).context("this file system has no files of that size")?;
        let blocks = usize::try_from(self.size / BLOCK as u64)?;
        let mut places = BTreeSet::new();
        while places.len() < count {
            places.insert(random.below(blocks) as u64);
        }
        let mut block = [0; BLOCK];
        for place in places {
            // Sixteen letters: zstd makes about half of it.
            for bytes in block.chunks_exact_mut(16) {
                let bits = random.next();
                for (index, byte) in bytes.iter_mut().enumerate() {
                    *byte = b'a' + (bits >> (4 * index) & 15) as u8;
                }
            }
            file.write_all_at(&block, place * BLOCK as u64)?;
        }
        Ok(count as u64)
    }

    fn timed(&mut self, name: &str, command: &Command, changed: u64) -> Result<(Step, u64, u64)> {
        self.relay.take();
        let before = measure::stored(&self.world.store)?;
        let step = measure::step(command, &self.world.scratch, Some(self.server.id()))
            .with_context(|| name.to_owned())?;
        let (up, down) = self.relay.take();
        let server = step.server_rss_bytes.unwrap_or_default();
        let stored = measure::stored(&self.world.store)?.saturating_sub(before);
        let mib = |bytes: u64| bytes as f64 / MIB;
        println!(
            "| {name} | {changed} | {:.1} | {:.1} | {:.2} | {:.2} | {:.2} | {:.1} | {:.1} |",
            step.seconds,
            step.cpu_seconds,
            mib(up),
            mib(down),
            mib(stored),
            mib(step.rss_bytes),
            mib(server)
        );
        self.client_peak = self.client_peak.max(step.rss_bytes);
        self.server_peak = self.server_peak.max(server);
        Ok((step, up, down))
    }

    /// Bytes sent, received and stored.
    fn mirror(&mut self, name: &str, changed: u64) -> Result<(u64, u64, u64)> {
        let before = measure::stored(&self.world.store)?;
        let mut command = self.world.mirror(&self.disk, "sparse");
        command.arg("--json");
        let (_, up, down) = self.timed(name, &command, changed)?;
        let stored = measure::stored(&self.world.store)?.saturating_sub(before);
        let said = fs::read_to_string(self.world.scratch.join("output"))?;
        let saw = field(&said, "changed_bytes")? / BLOCK as u64;
        // A block may have been drawn twice, with other content each time.
        ensure!(saw == changed, "{name}: it saw {saw} changed blocks, not {changed}");
        Ok((up, down, stored))
    }

    fn restore(&mut self) -> Result<PathBuf> {
        let target = self.world.scratch.join("restored.img");
        let command = self.world.restore("sparse", &target);
        self.timed("restore", &command, 0)?;
        let blocks = fs::metadata(&target)?.blocks() / 8;
        let source = fs::metadata(&self.disk)?.blocks() / 8;
        self.verdict.check(
            &format!("the restored file is sparse: {blocks} blocks, the source has {source}"),
            blocks <= source + source / 4 + 1024,
        );
        Ok(target)
    }
}

/// Compares two sparse files where either has data; how many blocks that were.
fn compare(one: &Path, two: &Path) -> Result<u64> {
    let start = Instant::now();
    let open =
        |path: &Path| File::open(path).with_context(|| format!("cannot read {}", path.display()));
    let (one, two) = (open(one)?, open(two)?);
    let size = one.metadata()?.len();
    ensure!(size == two.metadata()?.len(), "the restored file has another size");
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut compared = 0;
    let mut at = 0;
    // The next range of either file; what both have is compared once.
    while let Some((from, to)) =
        [range(&one, at)?, range(&two, at)?].into_iter().flatten().min_by_key(|range| range.0)
    {
        let length = usize::try_from((to - from).min(left.len() as u64))?;
        one.read_exact_at(&mut left[..length], from)?;
        two.read_exact_at(&mut right[..length], from)?;
        ensure!(left[..length] == right[..length], "the restored file differs at {from}");
        compared += (length as u64).div_ceil(BLOCK as u64);
        at = from + length as u64;
    }
    println!("compared in {:.1} s", start.elapsed().as_secs_f64());
    Ok(compared)
}

/// The first range with data from `at` on.
fn range(file: &File, at: u64) -> Result<Option<(u64, u64)>> {
    let seek = |at: u64, whence| lseek(file, i64::try_from(at).unwrap_or(i64::MAX), whence);
    let start = match seek(at, Whence::SeekData) {
        Ok(start) => start as u64,
        Err(Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some((start, seek(start, Whence::SeekHole)? as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_found_in_either_file() {
        let directory = std::env::temp_dir().join(format!("xtask-sparse-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let make = |name: &str, blocks: &[(u64, u8)]| {
            let path = directory.join(name);
            let file = File::create(&path).unwrap();
            file.set_len(1 << 32).unwrap();
            for &(place, byte) in blocks {
                file.write_all_at(&[byte; BLOCK], place * BLOCK as u64).unwrap();
            }
            path
        };
        let one = make("one", &[(5, 1), (900_000, 2)]);
        assert_eq!(compare(&one, &make("two", &[(5, 1), (900_000, 2)])).unwrap(), 2);
        // Zeros that are written are equal to a hole.
        assert_eq!(compare(&one, &make("two", &[(5, 1), (7, 0), (900_000, 2)])).unwrap(), 3);
        assert!(compare(&one, &make("two", &[(5, 1)])).is_err());
        assert!(compare(&one, &make("two", &[(5, 1), (7, 3), (900_000, 2)])).is_err());
        assert!(compare(&one, &make("two", &[(5, 1), (900_000, 3)])).is_err());
        fs::remove_dir_all(&directory).unwrap();
    }
}
