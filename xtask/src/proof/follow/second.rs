//! A second copy of a disk that was watched, beside that of programs that must read it.
//!
//! Half of the disk is written, in pieces of 1 MiB that differ and of which a compressor saves half. The
//! mirror makes its first copy and is stopped; a twentieth of the disk changes; from its start until nothing
//! is behind. The peers then copy the very images: as they were before, which is not timed, and after.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{Mirror, SEED, SIZE, bare, number};
use crate::bench::programs::{self, Place, Program};
use crate::measure;
use crate::proof::{MIB, Options, Verdict};
use crate::random::SplitMix;
use crate::world::{self, World};

/// What changes for a second copy.
const CHANGED_MIB: u64 = 229;
/// Of the time of the fastest peer, at most.
const PART_MOST: f64 = 0.1;
const PEERS: [&str; 6] =
    ["borg", "borg-fixed", "restic", "restic-fastest", "rustic", "rustic-fixed"];

pub(super) fn run(options: &Options, verdict: &mut Verdict) -> Result<()> {
    let root = options.directory.join("follow");
    let world = World::fresh(&options.dormouse, &root)?;
    let server = world.serve()?;
    world.join(server.address)?;
    let disk = bare(&root)?;
    let (image, before) = (root.join("bare.img"), root.join("before.img"));
    let mut random = SplitMix::new(SEED);
    let all: Vec<u64> = (0..(SIZE / 2) >> 20).map(|mib| mib << 21).collect();
    write(&disk.0, &all, &mut random)?;
    let mut mirror = Mirror::start(&world, &disk.0, "first")?;
    mirror.wait_even()?;
    mirror.stop()?;
    copy(&image, &before)?;
    let changed: Vec<u64> = (0..CHANGED_MIB).map(|mib| (mib * 17 % 4096) << 20).collect();
    write(&disk.0, &changed, &mut random)?;
    measure::fill_memory(&world.scratch)?;
    let began = Instant::now();
    let mut mirror = Mirror::start(&world, &disk.0, "second")?;
    mirror.wait_even()?;
    let took = began.elapsed().as_secs_f64();
    let status = mirror.status().unwrap_or_default();
    let log = fs::read_to_string(&mirror.log)?;
    ensure!(!log.contains("SCANNING"), "it was scanned: {log}");
    mirror.stop()?;
    let read = number(&status, "bytes_read").unwrap_or(0) as f64 / MIB;
    println!(
        "\n{CHANGED_MIB} MiB changed in 4 GiB while the mirror was down: even after {took:.2} s, {read:.0} MiB read"
    );
    drop(server);
    let mut fastest: Option<(f64, &str)> = None;
    for program in programs::all(&options.dormouse) {
        let name = program.name();
        if !PEERS.contains(&name) {
            continue;
        }
        match program.version() {
            Ok(version) => {
                let took = peer(&*program, &root, &before, &image)?;
                println!("{name} {version}: second copy after {took:.2} s");
                if fastest.is_none_or(|(least, _)| took < least) {
                    fastest = Some((took, name));
                }
            }
            Err(why) => println!("{name}: {why}"),
        }
    }
    let (least, name) = fastest.context("no peer is installed")?;
    verdict.check(
        &format!(
            "second copy: at most {PART_MOST} of the fastest, {name}: {:.3} ({took:.2} s of {least:.2} s)",
            took / least
        ),
        took <= PART_MOST * least,
    );
    fs::remove_dir_all(&root)?;
    Ok(())
}

/// Writes a piece of 1 MiB at each of these bytes.
fn write(disk: &Path, places: &[u64], random: &mut SplitMix) -> Result<()> {
    let device = File::options().write(true).open(disk)?;
    let mut piece = vec![0; 1 << 20];
    for at in places {
        for bytes in piece.chunks_exact_mut(16) {
            let bits = random.next();
            for (index, byte) in bytes.iter_mut().enumerate() {
                *byte = b'a' + (bits >> (4 * index) & 15) as u8;
            }
        }
        device.write_all_at(&piece, *at)?;
    }
    Ok(device.sync_all()?)
}

/// Seconds of a peer's second copy.
fn peer(program: &dyn Program, root: &Path, before: &Path, after: &Path) -> Result<f64> {
    let disk: PathBuf = root.join("disk.img");
    let place = Place::fresh(&root.join("peer"), &disk)?;
    let mut session = program.prepare(&place)?;
    copy(before, &disk)?;
    world::output(program.copy(&place, 1))?;
    copy(after, &disk)?;
    let step = session.timed(&place, program.copy(&place, 2))?;
    drop(session);
    place.remove()?;
    fs::remove_file(&disk)?;
    Ok(step.seconds)
}

/// A sparse copy.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut cp = Command::new("cp");
    cp.arg("--sparse=always").arg(from).arg(to);
    world::output(cp)?;
    Ok(())
}
