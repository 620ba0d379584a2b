//! What the machine is told, and what it asks for.

use std::time::Duration;

use dormouse_format::Seq;

use super::reason::{Away, Gap, Unfrozen};
use super::view::PointSeen;

/// Time since an arbitrary start, of a clock that goes on while the machine sleeps
/// (`CLOCK_BOOTTIME`): lags count sleep.
pub type Moment = Duration;

/// Whether points are forced by freezing the file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freeze {
    /// When the newest consistent point is this old, and the disk has changed since.
    Auto {
        /// The age.
        every: Duration,
    },
    /// Never: consistent points are those that prove themselves.
    Never,
}

/// What the machine goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Whether points are forced.
    pub freeze: Freeze,
    /// Most bytes that may be read while frozen: they are held in memory.
    pub rest_max: u64,
    /// For the waits: another number on each client.
    pub seed: u64,
}

/// Whether the tracker's marks are all that the server can lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It has watched without a gap since the server's head, or since the scan that is
    /// still owed was begun.
    Unbroken,
    /// It has not, or that cannot be proved.
    Broken(Gap),
}

/// What the server has of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The newest point.
    pub point: PointSeen,
    /// The newest consistent point, and at least the time since the instant that it shows.
    pub consistent: Option<(PointSeen, Duration)>,
    /// Bytes of deltas since the last checkpoint, as far as they are known.
    pub deltas: u64,
}

/// A point that a pass, a freeze or a scan has made, durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// The point.
    pub point: PointSeen,
    /// When what it carries was cut off; if it is consistent, it shows the disk of this instant.
    pub cut: Moment,
    /// Every write before is on the server now; none if this point says nothing new of that,
    /// because more was marked than it carries.
    pub sent: Option<Moment>,
    /// Bytes of blocks that it carries.
    pub bytes: u64,
    /// Bytes of deltas that it added; none for a scan.
    pub deltas: u64,
    /// Bytes that are marked again, without those of `stale`.
    pub left: u64,
    /// Of these, bytes of blocks that are written all the time and wait for their turn.
    pub waiting: u64,
    /// Blocks that could not be read, and are old in the copy.
    pub stale: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Nothing but time, not before [`super::Live::wake`].
    Tick,
    /// A route, an address or a network interface came or went.
    RouteChanged,
    /// The user asks to try the server again, now.
    Try {
        /// And to take the volume over from another instance.
        takeover: bool,
    },
    /// End of [`Job::Connect`]: the volume is open for writing.
    Connected {
        /// Whether all must be compared.
        proof: Proof,
        /// What the server has.
        head: Option<Head>,
        /// Bytes that are marked.
        dirty: u64,
    },
    /// There is no server any more, or there was none. Ends what ran, whatever it was; its
    /// own end is not reported.
    Lost {
        /// Why.
        away: Away,
        /// What was said about it.
        detail: String,
    },
    /// End of [`Job::Scan`], [`Job::Pass`] or [`Job::Freeze`].
    Made(Made),
    /// End of [`Job::Freeze`] without a point. All is thawed; what was taken is marked again.
    Unfrozen {
        /// Why.
        why: Unfrozen,
        /// What was said about it.
        detail: String,
    },
    /// End of [`Job::Checkpoint`].
    Checkpointed {
        /// Its number.
        seq: Seq,
    },
    /// End of any job without its result, with the server still there: something on this
    /// side failed, or it was cancelled.
    Failed {
        /// What failed.
        detail: String,
    },
    /// The tracker was looked at. Wanted at least each [`super::PASS_MIN`].
    Dirty {
        /// Bytes that are marked, with those of a pass that runs, without those of blocks
        /// that cannot be read.
        bytes: u64,
        /// Of these, bytes of blocks that are written all the time and wait for their turn.
        waiting: u64,
    },
    /// How far the scan that runs has come.
    Progress {
        /// Bytes compared.
        done: u64,
        /// Bytes to compare.
        left: u64,
    },
    /// The marks no longer tell all.
    Gap(Gap),
    /// The disk has another size. The tracker has marked what that changes, or a
    /// [`Event::Gap`] follows.
    Resized {
        /// The size in bytes.
        size: u64,
    },
    /// A clean stop is wanted; the second time, an end at once.
    StopAsked,
}

/// What takes its time. One at a time runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Connects, opens the volume for writing, and looks for the proof.
    Connect {
        /// Takes the volume over from another instance.
        takeover: bool,
    },
    /// Compares all of the disk.
    Scan {
        /// What the last scan read need not be read again: it is the same unbroken watch.
        resume: bool,
    },
    /// Sends what is marked; closes a point even if there was nothing.
    Pass {
        /// It ends before it has added more bytes of deltas; the rest stays marked.
        deltas_max: u64,
        /// Blocks that are written all the time go too: they do not in each pass.
        hot: bool,
    },
    /// Freezes, takes what is marked into memory, thaws, sends.
    Freeze,
    /// Makes a checkpoint of the head.
    Checkpoint,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Begins a job. Its end is reported, once, by an event.
    Begin(Job),
    /// Ends the job that runs as soon as that can be; its end is reported all the same.
    Cancel,
    /// A route changed: looks soon whether the connection still lives.
    Probe,
    /// That was all. What still runs is dropped, the connection closed.
    Stopped,
}
