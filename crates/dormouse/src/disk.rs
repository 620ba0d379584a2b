//! A volume at a point as a disk, at once.
//!
//! Owns: how a point is opened as a [`BlockDevice`]. Invariant: what is read from it was proved
//! under the point's signed root. Leaves to others: how the disk is given to a kernel or to
//! another program (`dormouse-device`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use dormouse_device::BlockDevice;
use dormouse_device::file::FileDevice;
use dormouse_format::TimeNs;
use dormouse_format::point::Grade;
use dormouse_sync::fetch::{Fetch, Mode, Plan};
use dormouse_sync::leaf::LeafSet;

use crate::chosen::{self, Chosen, How};
use crate::dest::{Dest, DestOptions};
use crate::engine::{self, Opening};
use crate::home::Home;
use crate::remote::Freshness;
use crate::report::Report;
use crate::when::VolumeAt;

/// How a disk is opened.
#[derive(Debug, Clone, Default)]
pub struct DiskOptions {
    /// A directory for blocks that were read, and how many bytes it may take.
    pub cache: Option<(PathBuf, u64)>,
    /// How long a read may wait for the server; without it, as long as it takes.
    pub timeout: Option<Duration>,
    /// Pull what was not read yet into the cache, in the background.
    pub fill: bool,
    /// A fuzzy point may be chosen.
    pub fuzzy: bool,
    /// The hash of a point that must be in the history.
    pub expect_head: Option<String>,
}

/// A disk that was opened.
pub struct Opened {
    /// The disk. Dropping the last of it ends all that works for it.
    pub device: Arc<dyn BlockDevice>,
    /// The volume's name.
    pub volume: String,
    /// The point's sequence number.
    pub point: u64,
    /// When the server received the point.
    pub time: TimeNs,
    /// The point's grade.
    pub grade: Grade,
    /// Bytes.
    pub size: u64,
    /// Whether the history goes on from what this machine knows; said to the user already.
    pub freshness: Freshness,
}

/// Opens a volume at a point.
pub fn open(
    home: &Home,
    what: &VolumeAt,
    options: &DiskOptions,
    report: &mut Report,
) -> Result<Opened> {
    let how = How { fuzzy: options.fuzzy, expect_head: options.expect_head.as_deref() };
    let chosen = chosen::choose(home, what, how, report)?;
    let p = *chosen.point.point();
    let (time, freshness) = (chosen.point.receipt, chosen.fresh);
    let device = whole(&chosen)?;
    Ok(Opened {
        device,
        volume: what.volume.clone(),
        point: p.seq,
        time,
        grade: p.grade,
        size: p.size,
        freshness,
    })
}

/// Fetches all of it into a file without a name.
fn whole(chosen: &Chosen) -> Result<Arc<dyn BlockDevice>> {
    let size = chosen.point.point().size;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let own = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(format!("dormouse-disk-{}-{}", own.0, own.1));
    let dest = Dest::create(&path, size, DestOptions { force: true, in_place: false })?;
    let Chosen { point, checkpoint, .. } = *chosen;
    let plan =
        Plan { point, checkpoint, mode: Mode::Fresh, local: LeafSet::new(0), keep_going: false };
    let opening = Opening {
        trust: Arc::clone(&chosen.trust),
        secrets: Arc::new(chosen.account.secrets.clone()),
        tags: chosen.tags,
    };
    let mut fetch = Fetch::new(plan, Arc::clone(&chosen.trust), Arc::clone(&chosen.identity))?;
    engine::run_fetch(&chosen.link, &mut fetch, &opening, Some(&dest), &mut |_| {})?;
    dest.finish()?;
    let device = FileDevice::open(&path, true).context("cannot open the disk's copy")?;
    std::fs::remove_file(&path).context("cannot take the name off the disk's copy")?;
    Ok(Arc::new(device))
}
