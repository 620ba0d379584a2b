//! What administrators order, and what other roles must not.

use dormouse_format::message::{Keep, Message};
use dormouse_format::point::StoredPoint;
use dormouse_format::{Seq, VolumeId};
use dormouse_sync::server::Role;

use super::kept::{DAY, RULES};
use crate::random::Lcg;

/// What an administrator says about a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// How long its points are kept.
    Retain {
        /// Which of the rules.
        rule: usize,
        /// Until it is effective.
        days: u64,
    },
    /// Some points go.
    Delete {
        /// The first.
        first: Seq,
        /// The last.
        last: Seq,
        /// During which it can be undone.
        days: u64,
    },
    /// They do not.
    Undelete,
    /// What is due goes.
    Prune {
        /// Whatever the clock looks like.
        clock_is_right: bool,
    },
    /// What is set?
    Look,
}

impl Order {
    /// One at random, about these points.
    pub fn some(random: &mut Lcg, points: &[StoredPoint]) -> Self {
        match random.below(12) {
            0..2 => Self::Retain {
                rule: random.below(RULES.len() as u64) as usize,
                days: 1 + random.below(2),
            },
            2..6 => {
                // Mostly what can be deleted: from a checkpoint to before another.
                let seq = |p: &StoredPoint| p.point().seq;
                let bases: Vec<Seq> =
                    points.iter().filter(|p| p.point().is_checkpoint()).map(seq).collect();
                let at = random.below(bases.len().max(1) as u64) as usize;
                let first = bases.get(at).copied().unwrap_or(1);
                let last = bases.get(at + 1 + random.below(2) as usize);
                let last = last.map_or(first + random.below(6), |next| next - 1);
                Self::Delete { first, last, days: 1 + random.below(3) }
            }
            6..8 => Self::Undelete,
            8..11 => Self::Prune { clock_is_right: false },
            _ => Self::Look,
        }
    }

    /// As it is asked.
    pub fn ask(self, volume: VolumeId) -> Keep {
        match self {
            Self::Retain { rule, days } => {
                let policy = RULES[rule].text.to_owned();
                Keep::SetRetention { volume, policy, grace: days * DAY }
            }
            Self::Delete { first, last, days } => {
                Keep::Delete { volume, points: Some((first, last)), grace: days * DAY }
            }
            Self::Undelete => Keep::Undelete { volume },
            Self::Prune { clock_is_right } => Keep::Prune { volume, apply: true, clock_is_right },
            Self::Look => Keep::GetRetention,
        }
    }
}

/// Something that a role must not.
pub fn forbidden(role: Role, volume: VolumeId, nth: u64) -> Message {
    let appends = [
        Message::OpenWrite { volume, takeover: true },
        Message::Barrier,
        Message::Have { check: false, ids: vec![] },
        Message::CreateVolume { body: vec![1] },
        Message::AskScan,
    ];
    let keeps = [
        Keep::Delete { volume, points: None, grace: DAY },
        Keep::Delete { volume, points: Some((1, 1)), grace: DAY },
        Keep::SetRetention { volume, policy: RULES[0].text.to_owned(), grace: DAY },
        Keep::Undelete { volume },
        Keep::Prune { volume, apply: true, clock_is_right: true },
    ]
    .map(Message::Keep);
    let all = match role {
        Role::Writer => keeps.to_vec(),
        Role::Reader => [&appends[..], &keeps[..]].concat(),
        Role::Admin => appends.to_vec(),
    };
    let at = nth as usize % all.len();
    all[at].clone()
}
