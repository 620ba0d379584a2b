//! What all vaults of one bucket share: bounds, counters, and how it ends.
//!
//! Invariant: bytes that were acknowledged and not put are never more than the bound, but for
//! what the vaults do at the same moment; bytes on their way to the bucket take a bounded part
//! of memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_format::VaultId;

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::objects::Objects;
use crate::room::Room;

/// When something counts as durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durable {
    /// When the disk of this machine has it; the bucket gets it soon after.
    Local,
    /// When the bucket has it.
    Remote,
}

/// How a bucket is used.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// When something counts as durable.
    pub durable: Durable,
    /// Bytes that may be acknowledged and not put.
    pub backlog_max: u64,
    /// Bytes of segments and ranges that are kept here though the bucket has them.
    pub cache_max: u64,
    /// Time between two puts of a vault, if little is to be put.
    pub put_every: Duration,
    /// Parts of a segment that are left as they are; more are packed into one object.
    pub parts_max: usize,
    /// How long a question to the bucket is asked again, where somebody waits for the answer.
    pub patience: Duration,
    /// Nobody else uses the prefix, for certain: it is not tried whether create-if-absent excludes.
    pub alone: bool,
    /// The first pause before something is tried again; each next is twice as long.
    pub pause: Duration,
    /// Threads put, and time passes between two tries. Without: whoever waits for a put does it,
    /// [`crate::Hand`] does the rest, and nothing waits for a clock. For the simulator.
    pub threads: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            durable: Durable::Local,
            backlog_max: 8 << 30,
            cache_max: 16 << 30,
            put_every: Duration::from_secs(1),
            parts_max: 4,
            patience: Duration::from_secs(30),
            alone: false,
            pause: Duration::from_millis(100),
            threads: true,
        }
    }
}

/// A line for the log.
pub type Tell = Arc<dyn Fn(&str) + Send + Sync>;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of objects in memory at most, but for one.
const FLIGHT_MAX: u64 = 160 << 20;
/// Tries of one thing where nothing waits for a clock.
pub(crate) const TRIES_MAX: u32 = 1000;
/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Counts {
    backlog: u64,
    flight: u64,
    /// What vaults that are closed have not put.
    left: BTreeMap<VaultId, u64>,
}

pub(crate) struct Shared {
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) settings: Settings,
    /// Of the lease; zero where nothing is written.
    pub(crate) generation: u64,
    /// All generations that this state directory ever held.
    pub(crate) held: BTreeSet<u64>,
    pub(crate) cache: Cache,
    pub(crate) room: Room,
    pub(crate) tell: Tell,
    counts: Mutex<Counts>,
    changed: Condvar,
    stopping: AtomicBool,
    lost: Mutex<Option<String>>,
    away: AtomicBool,
    /// Whether it was told that objects stay.
    stays: AtomicBool,
}

impl Shared {
    pub(crate) fn new(
        objects: Arc<dyn Objects>,
        settings: Settings,
        held: BTreeSet<u64>,
        cache: Cache,
        tell: Tell,
    ) -> Self {
        Self {
            objects,
            settings,
            generation: held.last().copied().unwrap_or(0),
            held,
            cache,
            room: Room::new(settings.cache_max / 2),
            tell,
            counts: Mutex::default(),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
            lost: Mutex::default(),
            away: AtomicBool::new(false),
            stays: AtomicBool::new(false),
        }
    }

    /// Fails if nothing may be written any more.
    pub(crate) fn usable(&self) -> Result<()> {
        if let Some(why) = &*lock(&self.lost) {
            return Err(Error::Lost { why: why.clone() });
        }
        if self.stopping.load(Ordering::Acquire) { Err(Error::Stopping) } else { Ok(()) }
    }

    /// Another server writes now: nothing is written from here any more.
    pub(crate) fn lose(&self, why: impl Into<String>) -> Error {
        let why = why.into();
        let mut lost = lock(&self.lost);
        if lost.is_none() {
            (self.tell)(&format!("another server has taken the bucket over: {why}"));
            *lost = Some(why.clone());
        }
        drop(lost);
        self.changed.notify_all();
        Error::Lost { why }
    }

    /// Says once that the bucket does not answer.
    pub(crate) fn is_away(&self, error: &Error) {
        if !self.away.swap(true, Ordering::AcqRel) {
            (self.tell)(&format!("{error}; {} bytes wait here", self.backlog()));
        }
    }

    /// Says once that it answers again.
    pub(crate) fn is_back(&self) {
        if self.away.swap(false, Ordering::AcqRel) {
            (self.tell)("the object storage answers again");
        }
    }

    /// Removes an object; false where that is not allowed: it stays then, and that is told once.
    pub(crate) fn delete(&self, name: &str) -> Result<bool> {
        match self.objects.delete(name) {
            Err(error @ Error::Refused { .. }) => {
                if !self.stays.swap(true, Ordering::AcqRel) {
                    (self.tell)(&format!(
                        "what is not needed any more stays in the bucket: {error}"
                    ));
                }
                Ok(false)
            }
            done => done.map(|()| true),
        }
    }

    /// Ends all waiting.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Bytes that are acknowledged, or about to be, and not put.
    pub(crate) fn backlog(&self) -> u64 {
        lock(&self.counts).backlog
    }

    pub(crate) fn add_backlog(&self, bytes: u64) {
        lock(&self.counts).backlog += bytes;
    }

    pub(crate) fn sub_backlog(&self, bytes: u64) {
        let mut counts = lock(&self.counts);
        counts.backlog = counts.backlog.saturating_sub(bytes);
        drop(counts);
        self.changed.notify_all();
    }

    /// A vault is opened, with so many bytes to put.
    pub(crate) fn opened(&self, vault: &VaultId, bytes: u64) {
        let mut counts = lock(&self.counts);
        counts.left.remove(vault);
        counts.backlog += bytes;
    }

    /// A vault is closed, with so many bytes that are not put.
    pub(crate) fn closed(&self, vault: &VaultId, bytes: u64) {
        if bytes > 0 {
            lock(&self.counts).left.insert(*vault, bytes);
        }
        self.sub_backlog(bytes);
    }

    /// Bytes that only this machine has.
    pub(crate) fn left(&self) -> u64 {
        let counts = lock(&self.counts);
        counts.backlog + counts.left.values().sum::<u64>()
    }

    /// Waits until nothing is left to put, or for this long; what is left.
    pub(crate) fn wait_empty(&self, most: Duration) -> u64 {
        let counts = lock(&self.counts);
        let left = |counts: &mut Counts| counts.backlog > 0 && self.usable().is_ok();
        let waited = self.changed.wait_timeout_while(counts, most, left);
        waited.unwrap_or_else(PoisonError::into_inner).0.backlog
    }

    /// Waits until the backlog is within its bound.
    pub(crate) fn wait_backlog(&self) -> Result<()> {
        let mut counts = lock(&self.counts);
        while counts.backlog > self.settings.backlog_max {
            self.usable()?;
            // With a limit, so that what is not signalled under this lock is seen too.
            let waited = self.changed.wait_timeout(counts, Duration::from_millis(500));
            counts = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Takes room in memory for an object; given back when dropped.
    pub(crate) fn flight(&self, bytes: u64) -> Flight<'_> {
        let mut counts = lock(&self.counts);
        while counts.flight > 0 && counts.flight + bytes > FLIGHT_MAX {
            counts = self.changed.wait(counts).unwrap_or_else(PoisonError::into_inner);
        }
        counts.flight += bytes;
        Flight { shared: self, bytes }
    }

    /// Sleeps for the `tries`-th pause, or until the server stops.
    pub(crate) fn pause(&self, tries: u32) -> Result<()> {
        if !self.settings.threads {
            return self.usable();
        }
        let pause = self.settings.pause.saturating_mul(1 << tries.min(8)).min(PAUSE_MAX);
        // Apart from one another, so that all vaults do not come back at the same moment.
        let spread = std::collections::hash_map::RandomState::new();
        let spread = std::hash::BuildHasher::hash_one(&spread, tries) % 50;
        let pause = pause * (75 + spread as u32) / 100;
        let counts = lock(&self.counts);
        let stopped = |_: &mut Counts| self.usable().is_ok();
        let waited = self.changed.wait_timeout_while(counts, pause, stopped);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        self.usable()
    }

    /// Asks until there is an answer, or the patience of somebody who waits is over.
    pub(crate) fn ask<T>(&self, mut question: impl FnMut() -> Result<T>) -> Result<T> {
        let until = std::time::Instant::now() + self.settings.patience;
        let by_hand = !self.settings.threads;
        let mut tries = 0;
        let patient = |tries| match by_hand {
            true => tries < TRIES_MAX,
            false => std::time::Instant::now() < until,
        };
        loop {
            match question() {
                Err(e) if e.may_pass() && patient(tries) => self.pause(tries)?,
                done => return done,
            }
            tries += 1;
        }
    }
}

/// Room in memory for an object on its way.
pub(crate) struct Flight<'a> {
    shared: &'a Shared,
    bytes: u64,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        lock(&self.shared.counts).flight -= self.bytes;
        self.shared.changed.notify_all();
    }
}
