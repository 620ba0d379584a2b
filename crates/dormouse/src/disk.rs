//! A volume at a point as a disk, at once.
//!
//! Owns: how a point is opened as a [`BlockDevice`]. Invariant: what is read from it was proved
//! under the point's signed root. Leaves to others: how the disk is given to a kernel or to
//! another program (`dormouse-device`).

mod ahead;
mod blocks;
mod device;
mod file;
mod memory;
mod own;
mod pilot;
mod reach;
mod waits;
mod ways;
mod workers;
mod zeros;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use crossbeam_channel::unbounded;
use dormouse_device::BlockDevice;
use dormouse_format::TimeNs;
use dormouse_format::point::{Grade, StoredPoint};
use dormouse_sync::read::{Action, Event, Limits, Reader};

use crate::chosen::{self, Chosen, How};
use crate::connect;
use crate::home::Home;
use crate::link::Link;
use crate::log::Log;
use crate::netdisk::Below;
use crate::patience::Patience;
use crate::remote::Freshness;
use crate::report::Report;
use crate::when::{VolumeAt, When};
use ahead::Streams;
use blocks::Blocks;
use device::{Attached, Disk};
use file::CacheFile;
use own::Own;
use pilot::{Pilot, Start};
use reach::Place;
use waits::Waits;

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

/// Points that are kept to compare with (about 5 MiB).
const POINTS: usize = 16_384;

/// Opens a volume at a point.
///
/// Nothing of its content is fetched yet, and of its map only what was changed since its last
/// checkpoint: a disk of any size is there at once.
pub fn open(
    home: &Home,
    what: &VolumeAt,
    options: &DiskOptions,
    report: &mut Report,
) -> Result<Opened> {
    Ok(open_point(home, what, options, report)?.1)
}

/// Opens the newest point of a volume, of which this machine makes the next ones: it must be
/// this one.
pub fn open_own(
    home: &Home,
    volume: &str,
    point: &StoredPoint,
    options: &DiskOptions,
    report: &mut Report,
) -> Result<(Arc<dyn Below>, Opened)> {
    let when = When(Some(point.point().seq.to_string()));
    let what = VolumeAt { volume: volume.to_owned(), when };
    let (disk, opened) = open_point(home, &what, options, report)?;
    Ok((disk, opened))
}

fn open_point(
    home: &Home,
    what: &VolumeAt,
    options: &DiskOptions,
    report: &mut Report,
) -> Result<(Arc<Attached>, Opened)> {
    let how = How { fuzzy: options.fuzzy, expect_head: options.expect_head.as_deref() };
    let chosen = chosen::choose(home, what, how, report)?;
    let p = *chosen.point.point();
    let (time, freshness) = (chosen.point.receipt, chosen.fresh);
    let secrets = Arc::new(chosen.account.secrets.clone());
    let file = match &options.cache {
        Some((dir, bytes)) => {
            Some(CacheFile::open(dir, *bytes, Arc::clone(&secrets), chosen.tags)?)
        }
        None => None,
    };
    if options.fill && file.is_none() {
        report.note("without a cache on disk there is nothing to fill: give --cache");
    }
    let place = Place {
        home: home.clone(),
        name: what.volume.clone(),
        volume: chosen.volume,
        seq: p.seq,
        expected: options.expect_head.is_some(),
    };
    let blocks = Blocks::new(secrets, chosen.tags, file);
    let disk = start(chosen, place, blocks, options)?;
    let device: Arc<dyn BlockDevice> = Arc::clone(&disk) as _;
    let volume = what.volume.clone();
    let (point, grade, size) = (p.seq, p.grade, p.size);
    Ok((disk, Opened { device, volume, point, time, grade, size, freshness }))
}

/// Starts what works for a disk, when its point can be read.
fn start(
    chosen: Chosen,
    place: Place,
    blocks: Blocks,
    options: &DiskOptions,
) -> Result<Arc<Attached>> {
    let Chosen { link, trust, identity, point, checkpoint, mut history, .. } = chosen;
    let limits = Limits::default();
    let mut reader = Reader::new(point, checkpoint, Arc::clone(&trust), identity, limits)?;
    make_ready(&link, &mut reader)?;
    history.drain(..history.len().saturating_sub(POINTS));
    let fill = options.fill && blocks.file.is_some();
    let shared = Arc::new(Shared {
        blocks,
        own: Own::default(),
        waits: Waits::default(),
        ahead: AtomicU64::new(0),
        away: Mutex::default(),
        refused: AtomicBool::new(false),
    });
    let (commands, commanded) = unbounded();
    let (jobs, job) = unbounded();
    let (told, events) = unbounded();
    let mut threads = workers::start(&shared, &job, &told)?;
    let log = Log::stderr().of_volume(&place.name);
    let (commands_of, shared_of) = (commanded, Arc::clone(&shared));
    let pilot = Pilot::new(Start {
        shared: shared_of,
        place,
        link,
        trust,
        reader,
        commands: commands_of,
        jobs,
        events,
        fill,
        log,
    });
    let builder = std::thread::Builder::new().name("disk".into());
    threads.insert(0, builder.spawn(move || pilot.run()).context("cannot start a thread")?);
    let disk = Disk {
        shared,
        size: AtomicU64::new(point.point().size),
        timeout: options.timeout,
        commands,
        streams: Streams::new(),
        points: history,
        threads,
    };
    Ok(Arc::new(Attached(Arc::new(disk))))
}

/// Gets what the point needs before a block can be read: its deltas.
fn make_ready(link: &Link, reader: &mut Reader) -> Result<()> {
    let mut actions = Vec::new();
    reader.start(&mut actions);
    let patience = Patience::new(link);
    loop {
        let mut messages = Vec::new();
        for action in actions.drain(..) {
            match action {
                Action::Send(message) => messages.push(message),
                Action::Ready { result, .. } => return Ok(result?),
                _ => {}
            }
        }
        connect::send_all(link, messages)?;
        let message = connect::receive_of(link, &patience)?;
        reader.take(Event::Message(message), &mut actions)?;
    }
}

/// What the threads of a disk share.
struct Shared {
    blocks: Blocks,
    own: Own,
    waits: Waits,
    /// Blocks that were asked for ahead and are not here yet.
    ahead: AtomicU64,
    /// Why there is no server.
    away: Mutex<Option<String>>,
    /// Whether waiting for it cannot help.
    refused: AtomicBool,
}

impl Shared {
    fn away(&self) -> Option<String> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this is news.
    fn set_away(&self, why: Option<String>, refused: bool) -> bool {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *away != why;
        *away = why;
        self.refused.store(refused, Ordering::SeqCst);
        news
    }

    fn is_refused(&self) -> bool {
        self.refused.load(Ordering::SeqCst)
    }

    /// Why nothing can be read for now, and waiting for it cannot help.
    fn refused(&self) -> Option<String> {
        if self.is_refused() { self.away() } else { None }
    }
}
