//! How long it takes until a huge disk is there: from the command to the first block that is read.
//!
//! A sparse file with random blocks all over it is copied; its point is attached, and served over NBD,
//! each time by a new process that has kept nothing; the same for an empty volume that is written.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::looped::attach;
use super::{Options, SplitMix, Verdict, World};
use crate::{measure, world};

/// The longest that it may take, in seconds.
const LIMIT: f64 = 1.0;
/// Blocks that are not zero.
const BLOCKS: u64 = 2000;
const BLOCK: u64 = 4096;
const SEED: u64 = 0x72_6561_6479;

/// Runs the part.
pub fn run(world: &World, root: &Path, options: &Options, verdict: &mut Verdict) -> Result<()> {
    let (image, size) = (root.join("huge"), options.size_tib << 40);
    let known = make(&image, size)?;
    world::output(world.mirror(&image, "huge"))?;
    std::fs::remove_file(&image)?;
    let mut create = world.client();
    create.args(["create", "void", &format!("{}TiB", options.size_tib)]);
    world::output(create)?;
    let rooted = nix::unistd::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !rooted {
        eprintln!("SKIPPED: attaching a huge disk needs root and FUSE; it is served over NBD only");
    }
    println!(
        "\n| ready, s | round | attached | attached to be written | over NBD |\n|---|--:|--:|--:|--:|"
    );
    let mut worst = [0.0f64; 3];
    for round in 1..=options.rounds {
        let mut took = [0.0; 3];
        if rooted {
            took[0] = attached(world, root, &["huge", "--no-cache"], Some(&known))?;
            took[1] = attached(world, root, &["void", "--write"], None)?;
        }
        took[2] = served(world, size)?;
        println!(
            "| {} TiB | {round} | {:.2} | {:.2} | {:.2} |",
            options.size_tib, took[0], took[1], took[2]
        );
        worst.iter_mut().zip(took).for_each(|(worst, took)| *worst = worst.max(took));
    }
    let names =
        ["a point, attached", "an empty volume, attached to be written", "a point over NBD"];
    for (name, worst) in names.into_iter().zip(worst).filter(|(_, worst)| *worst > 0.0) {
        let what = format!(
            "{name}, {} TiB: its first block within {LIMIT} s: {worst:.2}",
            options.size_tib
        );
        verdict.check(&what, worst < LIMIT);
    }
    Ok(())
}

/// Random blocks at random places of a sparse file; the last of them, and its content.
fn make(image: &Path, size: u64) -> Result<(u64, Vec<u8>)> {
    let (file, mut random) = (File::create(image)?, SplitMix::new(SEED));
    file.set_len(size)?;
    let mut last = (0, vec![0; BLOCK as usize]);
    for _ in 0..BLOCKS {
        last.0 = random.next() % (size / BLOCK) * BLOCK;
        for bytes in last.1.chunks_exact_mut(8) {
            bytes.copy_from_slice(&random.next().to_le_bytes());
        }
        file.write_all_at(&last.1, last.0)?;
    }
    Ok(last)
}

/// Seconds until a block was read from an attached disk; what it holds if that is known.
fn attached(
    world: &World,
    root: &Path,
    arguments: &[&str],
    known: Option<&(u64, Vec<u8>)>,
) -> Result<f64> {
    let begun = Instant::now();
    let (path, mut detach) = attach(world, root, arguments)?;
    let mut block = vec![0; BLOCK as usize];
    let (at, expected) = known.map_or((BLOCK, None), |(at, bytes)| (*at, Some(bytes)));
    let read = File::open(&path).and_then(|disk| disk.read_exact_at(&mut block, at));
    let took = begun.elapsed().as_secs_f64();
    let ended = detach.status()?;
    read?;
    ensure!(expected.is_none_or(|bytes| *bytes == block), "another block was read");
    ensure!(ended.success(), "{} could not be detached: {ended}", path.display());
    measure::wait_for("the end of the disk", std::time::Duration::from_secs(20), || {
        Ok(std::fs::read_dir(root.join("attached"))?
            .all(|entry| {
                entry.is_ok_and(|e| e.path().extension().is_none_or(|ending| ending != "json"))
            })
            .then_some(()))
    })?;
    Ok(took)
}

/// Seconds until a client has read a block in the middle, and all has ended.
fn served(world: &World, size: u64) -> Result<f64> {
    let begun = Instant::now();
    let mut export: Command = world.client();
    let read = format!("qemu-io -r -f raw -c 'read -q {}k 4k' \"$uri\"", size / 2048);
    export.args(["export", "huge", "--run", &read]);
    world::output(export)?;
    Ok(begun.elapsed().as_secs_f64())
}
