//! A point that was never read, from its beginning to its end, beside a restore of it.
//!
//! Each round restores the point to a new file, and then reads it over NBD, 1 MiB at a time, from an
//! export of its own that has no cache: one request at a time, and 32.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::{Job, Options, Serving, Verdict, World, fio, rate};
use crate::world;

/// What the rate must be, beside that of a restore.
const RATIO_LEAST: f64 = 0.5;

const READ: Job = Job::new("1 MiB read, cold", &["--rw=read", "--bs=1m"], false);

/// Runs the part.
pub fn run(world: &World, root: &Path, options: &Options, verdict: &mut Verdict) -> Result<()> {
    println!("\n| cold, MiB/s | round | restore | 1 deep | 32 deep |\n|---|--:|--:|--:|--:|");
    let mut ratios = [Vec::new(), Vec::new()];
    for round in 1..=options.rounds {
        let target = root.join("restored");
        let begun = Instant::now();
        world::output(world.restore("point", &target))?;
        let restored = options.image_mib as f64 / begun.elapsed().as_secs_f64();
        std::fs::remove_file(&target)?;
        let mut rates = [0.0; 2];
        for (at, depth) in ["--iodepth=1", "--iodepth=32"].into_iter().enumerate() {
            // A new process: nothing is in its memory.
            let serving = export(world, root)?;
            let mut fio = fio(&["--ioengine=nbd", depth], &READ);
            fio.arg(format!("--uri={}", serving.uri));
            rates[at] = rate(fio, &READ, serving.name)?;
            ratios[at].push(rates[at] / restored);
        }
        println!("| {} | {round} | {restored:.0} | {:.0} | {:.0} |", READ.name, rates[0], rates[1]);
    }
    for (ratios, depth) in ratios.iter_mut().zip([1, 32]) {
        ratios.sort_by(f64::total_cmp);
        let median = ratios[ratios.len() / 2];
        let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
        let what = format!(
            "{}, {depth} deep: at least {RATIO_LEAST} of a restore: {median:.2} ({least:.2} to {most:.2})",
            READ.name
        );
        verdict.check(&what, median >= RATIO_LEAST);
    }
    Ok(())
}

/// The point, without a cache.
fn export(world: &World, root: &Path) -> Result<Serving> {
    let socket = root.join("cold.sock");
    let mut command = world.client();
    command.args(["export", "point", "--nbd"]).arg(format!("unix:{}", socket.display()));
    Serving::start("a point without a cache", &socket, "point", command)
}
