//! What administrators order, and what other roles must not.

use dormouse_format::message::{Keep, Message};
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
    /// One at random, about points up to `newest`.
    pub fn some(random: &mut Lcg, newest: Seq) -> Self {
        match random.below(12) {
            0..3 => Self::Retain {
                rule: random.below(RULES.len() as u64) as usize,
                days: 1 + random.below(2),
            },
            3..6 => {
                let first = 1 + random.below(newest.max(1));
                let last = first + random.below(6);
                Self::Delete { first, last, days: 1 + random.below(3) }
            }
            6 => Self::Undelete,
            7..11 => Self::Prune { clock_is_right: false },
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
