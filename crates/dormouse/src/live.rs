//! The live mirror of one device: the copy follows the disk.
//!
//! Owns: the loop that does what `dormouse_sync::live` decides, with a real disk, tracker, link
//! and clock. Invariants: a mark is forgotten only when the point that carries it is durable on
//! the server, and on record beside the marks; the grade of a point is what was proved. Leaves to
//! others: what is done next (`dormouse_sync::live`), marks (`dormouse_track`), and who is told
//! ([`Audience`]).

mod connecting;
mod disk;
pub mod foreground;
mod freezing;
mod jobs;
mod pilot;

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use crossbeam_channel::Receiver;
use dormouse_format::vault::name_is_valid;
use dormouse_sync::live::{Event, Freeze, Live, Settings, View};

use crate::exit::{Class, Failure};
use crate::home::Home;
use crate::pace::Pace;
use disk::Tracked;
use jobs::Worker;
use pilot::Pilot;

/// Most bytes that are held in memory while file systems are frozen.
pub(crate) const REST_MAX: u64 = 24 << 20;

/// What is mirrored, and how.
#[derive(Debug, Clone)]
pub struct Order {
    /// The block device.
    pub device: PathBuf,
    /// The volume.
    pub volume: String,
    /// Whether points are forced by freezing.
    pub freeze: Freeze,
    /// Run before a freeze; if it fails there is none.
    pub hook_before: Option<Hook>,
    /// Run after it, whether it was one or not.
    pub hook_after: Option<Hook>,
    /// Bytes a second that may be sent.
    pub limit: Option<NonZeroU64>,
    /// The zstd level.
    pub level: i32,
    /// Take the volume over from another writer or installation.
    pub takeover: bool,
}

/// A program that is run before or after a freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Its path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

/// What was counted since the mirror began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Points that were frozen.
    pub frozen: u64,
    /// Points that were settled.
    pub settled: u64,
    /// Points that were fuzzy.
    pub fuzzy: u64,
    /// Freezes that did not work.
    pub freezes_failed: u64,
    /// Read from the device.
    pub bytes_read: u64,
    /// Sent to the server, of records.
    pub bytes_sent: u64,
    /// Connections after the first.
    pub reconnects: u64,
    /// Scans that were begun.
    pub scans: u64,
    /// Reads of the device that failed.
    pub read_errors: u64,
}

/// Who is told what goes on. Never waits.
pub trait Audience {
    /// How it stands; several times a second.
    fn seen(&self, view: &View, counters: &Counters);
    /// Something to be logged.
    fn line(&self, text: &str);
}

/// Mirrors a device until `stop` is closed or carries something, and a clean stop is done; the
/// second time it ends at once.
pub fn run(home: &Home, order: &Order, stop: &Receiver<()>, audience: &dyn Audience) -> Result<()> {
    let account = Arc::new(home.account()?);
    if !name_is_valid(&order.volume) {
        let message = format!("'{}' cannot name a volume", order.volume);
        return Err(Failure::new(Class::Usage, message)
            .hint("use 1 to 64 letters, digits, '.', '_' and '-'")
            .into());
    }
    let _lock = home.lock_named(&format!("volume-{}", order.volume))?;
    let tracked = Tracked::open(home, order)?;
    let settings = Settings {
        size: tracked.size(),
        freeze: order.freeze,
        rest_max: REST_MAX,
        seed: u64::from_le_bytes(dormouse_crypt::Random::array(&mut dormouse_crypt::OsRandom)),
    };
    let mut pilot = Pilot::new(Live::new(settings), stop, audience);
    if order.takeover {
        pilot.tell(Event::Try { takeover: true });
    }
    let pace = order.limit.map(|rate| Arc::new(Pace::new(rate)));
    let mut worker = Worker::new(home.clone(), account, order.clone(), pace, tracked);
    pilot.fly(&mut worker)?;
    worker.end()
}
