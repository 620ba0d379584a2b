//! Messages about what is kept: retention, deletions, and what leads over expired points.
//!
//! Numbers 0x40 to 0x46 and 0x58 of the client, 0xc0 to 0xc2 and 0xd0 of the server. Layout: docs/protocol.md,
//! 'Retention'.

use crate::codec::{Reader, Result, Writer, invalid};
use crate::ids::{Seq, VolumeId};
use crate::keeping::{Deletion, Retention};
use crate::limits::{DELETIONS_MAX, KEEPING_MAX, POLICY_MAX, TEXT_MAX, VOLUMES_MAX};

const WHAT: &str = "message";

/// First and last of a range of points.
pub type Range = (Seq, Seq);

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// What is kept, and what is to be deleted? Answered by [`Kept::Retention`].
    GetRetention,
    /// Sets how long points of a volume are kept. Answered by `Done`, when durable.
    SetRetention {
        /// The volume; zero: the vault's default.
        volume: VolumeId,
        /// The policy; empty: none.
        policy: String,
        /// Nanoseconds during which what was set before keeps what it keeps, too.
        grace: u64,
    },
    /// Lets expire what may, in one volume. Answered by [`Kept::Pruned`].
    Prune {
        /// The volume.
        volume: VolumeId,
        /// Does it; else it is only said what would go.
        apply: bool,
        /// The server's clock is right, whatever it looks like.
        clock_is_right: bool,
    },
    /// Deletes a volume, or points of it, after a grace. Answered by `Done`, when durable.
    Delete {
        /// The volume.
        volume: VolumeId,
        /// The points; none: the volume.
        points: Option<Range>,
        /// Nanoseconds during which it can be undone.
        grace: u64,
    },
    /// Takes back all deletions of a volume that have not happened. Answered by `Done`.
    Undelete {
        /// The volume.
        volume: VolumeId,
    },
    /// Which points have expired? Answered by [`Kept::Gaps`].
    GetGaps {
        /// The volume.
        volume: VolumeId,
        /// From this point on.
        from: Seq,
        /// To this one.
        to: Seq,
    },
    /// Bridges that begin at `from` or later and end at `to` or before: a `Record` each, then
    /// `Done`.
    GetBridges {
        /// The volume.
        volume: VolumeId,
        /// First checkpoint.
        from: Seq,
        /// Last checkpoint.
        to: Seq,
    },
    /// How many bytes would nothing refer to any more, if what may expire did? Answered by
    /// [`Kept::Gain`].
    GetGain {
        /// The volume; zero: all of them together.
        volume: VolumeId,
    },
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// What is set, and what is to be deleted.
    Retention {
        /// Of volumes, and the default: what holds, and what will.
        settings: Vec<Retention>,
        /// Those that have not happened.
        deletions: Vec<Deletion>,
        /// Why nothing expires now; empty if nothing is wrong.
        doubt: String,
    },
    /// What goes, or would.
    Pruned {
        /// Points that were there.
        points: u64,
        /// How many of them go.
        gone: u64,
        /// They; the first [`KEEPING_MAX`] ranges.
        ranges: Vec<Range>,
        /// Why more does not go, for people; may be empty.
        note: String,
    },
    /// Points that have expired; ranges that ascend and do not meet. As many as fit mean that
    /// there may be more.
    Gaps {
        /// They.
        ranges: Vec<Range>,
    },
    /// What would be gained.
    Gain {
        /// Points that would go.
        points: u64,
        /// Bytes of records that only they refer to; none if that was not found out.
        bytes: Option<u64>,
        /// Why not, for people; else empty.
        note: String,
    },
}

/// Numbers of the message types.
mod t {
    pub const GET_RETENTION: u8 = 0x40;
    pub const SET_RETENTION: u8 = 0x41;
    pub const PRUNE: u8 = 0x42;
    pub const DELETE: u8 = 0x43;
    pub const UNDELETE: u8 = 0x44;
    pub const GET_GAPS: u8 = 0x45;
    pub const GET_BRIDGES: u8 = 0x46;
    pub const GET_GAIN: u8 = 0x58;
    pub const RETENTION: u8 = 0xc0;
    pub const PRUNED: u8 = 0xc1;
    pub const GAPS: u8 = 0xc2;
    pub const GAIN: u8 = 0xd0;
}

/// Whether this is a number of the client's messages.
pub(super) const fn is_asked(kind: u8) -> bool {
    matches!(kind, t::GET_RETENTION..=t::GET_BRIDGES | t::GET_GAIN)
}

/// Whether it is one of the server's.
pub(super) const fn is_told(kind: u8) -> bool {
    matches!(kind, t::RETENTION..=t::GAPS | t::GAIN)
}

impl Keep {
    /// Whether it changes nothing.
    pub const fn is_read(&self) -> bool {
        matches!(self, Self::GetRetention | Self::GetGaps { .. } | Self::GetBridges { .. })
    }

    pub(super) fn write(&self, w: &mut Writer) {
        match self {
            Self::GetRetention => {
                w.u8(t::GET_RETENTION);
            }
            Self::SetRetention { volume, policy, grace } => {
                w.u8(t::SET_RETENTION).bytes(&volume.0).blob(policy.as_bytes()).u64(*grace);
            }
            Self::Prune { volume, apply, clock_is_right } => {
                w.u8(t::PRUNE).bytes(&volume.0);
                w.u8(u8::from(*apply)).u8(u8::from(*clock_is_right));
            }
            Self::Delete { volume, points, grace } => {
                let (first, last) = points.unwrap_or((0, 0));
                w.u8(t::DELETE).bytes(&volume.0).u64(first).u64(last).u64(*grace);
            }
            Self::Undelete { volume } => {
                w.u8(t::UNDELETE).bytes(&volume.0);
            }
            Self::GetGaps { volume, from, to } => {
                w.u8(t::GET_GAPS).bytes(&volume.0).u64(*from).u64(*to);
            }
            Self::GetBridges { volume, from, to } => {
                w.u8(t::GET_BRIDGES).bytes(&volume.0).u64(*from).u64(*to);
            }
            Self::GetGain { volume } => {
                w.u8(t::GET_GAIN).bytes(&volume.0);
            }
        }
    }

    pub(super) fn read(kind: u8, r: &mut Reader<'_>) -> Result<Self> {
        if kind == t::GET_RETENTION {
            return Ok(Self::GetRetention);
        }
        let volume = VolumeId(r.array()?);
        Ok(match kind {
            t::SET_RETENTION => {
                Self::SetRetention { volume, policy: r.text(POLICY_MAX)?, grace: r.u64()? }
            }
            t::PRUNE => Self::Prune { volume, apply: r.bool()?, clock_is_right: r.bool()? },
            t::DELETE => {
                let points = match (r.u64()?, r.u64()?) {
                    (0, 0) => None,
                    (first, last) if first > 0 && first <= last => Some((first, last)),
                    _ => return Err(invalid(WHAT, "no such range of points")),
                };
                Self::Delete { volume, points, grace: r.u64()? }
            }
            t::UNDELETE => Self::Undelete { volume },
            t::GET_GAPS => Self::GetGaps { volume, from: r.u64()?, to: r.u64()? },
            t::GET_BRIDGES => Self::GetBridges { volume, from: r.u64()?, to: r.u64()? },
            t::GET_GAIN => Self::GetGain { volume },
            _ => return Err(invalid(WHAT, "unknown type")),
        })
    }
}

impl Kept {
    pub(super) fn write(&self, w: &mut Writer) {
        match self {
            Self::Retention { settings, deletions, doubt } => {
                w.u8(t::RETENTION).u32(settings.len() as u32);
                settings.iter().for_each(|s| {
                    w.bytes(&s.encode());
                });
                w.u32(deletions.len() as u32);
                deletions.iter().for_each(|d| {
                    w.bytes(&d.encode());
                });
                w.blob(super::clip(doubt, TEXT_MAX).as_bytes());
            }
            Self::Pruned { points, gone, ranges, note } => {
                w.u8(t::PRUNED).u64(*points).u64(*gone);
                write_ranges(w, ranges);
                w.blob(super::clip(note, TEXT_MAX).as_bytes());
            }
            Self::Gaps { ranges } => {
                w.u8(t::GAPS);
                write_ranges(w, ranges);
            }
            Self::Gain { points, bytes, note } => {
                w.u8(t::GAIN).u64(*points).u8(u8::from(bytes.is_some()));
                w.u64(bytes.unwrap_or(0)).blob(super::clip(note, TEXT_MAX).as_bytes());
            }
        }
    }

    pub(super) fn read(kind: u8, r: &mut Reader<'_>) -> Result<Self> {
        Ok(match kind {
            t::RETENTION => {
                let settings = (0..r.count(2 * (VOLUMES_MAX + 1), RETENTION_MIN)?)
                    .map(|_| Retention::read(r))
                    .collect::<Result<_>>()?;
                let deletions = (0..r.count(DELETIONS_MAX, DELETION_MIN)?)
                    .map(|_| Deletion::read(r))
                    .collect::<Result<_>>()?;
                Self::Retention { settings, deletions, doubt: r.text(TEXT_MAX)? }
            }
            t::PRUNED => {
                let (points, gone) = (r.u64()?, r.u64()?);
                Self::Pruned { points, gone, ranges: read_ranges(r)?, note: r.text(TEXT_MAX)? }
            }
            t::GAPS => Self::Gaps { ranges: read_ranges(r)? },
            t::GAIN => {
                let points = r.u64()?;
                let bytes = match (r.bool()?, r.u64()?) {
                    (true, bytes) => Some(bytes),
                    (false, 0) => None,
                    _ => return Err(invalid(WHAT, "a gain that is not known has bytes")),
                };
                Self::Gain { points, bytes, note: r.text(TEXT_MAX)? }
            }
            _ => return Err(invalid(WHAT, "unknown type")),
        })
    }
}

/// Bytes of the shortest ones.
const RETENTION_MIN: usize = 16 + 16 + 4 + 4;
const DELETION_MIN: usize = 8 + 16 + 16 + 32 + 4;

fn write_ranges(w: &mut Writer, ranges: &[Range]) {
    w.u32(ranges.len() as u32);
    for (first, last) in ranges {
        w.u64(*first).u64(*last);
    }
}

/// Ranges that ascend and do not meet.
fn read_ranges(r: &mut Reader<'_>) -> Result<Vec<Range>> {
    let n = r.count(KEEPING_MAX, 16)?;
    let mut ranges: Vec<Range> = Vec::with_capacity(n);
    for _ in 0..n {
        let (first, last) = (r.u64()?, r.u64()?);
        let apart = ranges.last().is_none_or(|(_, before)| first > before.saturating_add(1));
        if first == 0 || first > last || !apart {
            return Err(invalid(WHAT, "ranges of points that do not ascend"));
        }
        ranges.push((first, last));
    }
    Ok(ranges)
}
