//! The server's end of what is kept: retention, deletions, bridges.
//!
//! Invariant: whoever gets here may ([`super::roles`]). An administrator over the link can let
//! nothing go at once: deletions and harsher policies wait for the grace, of which only who runs
//! the store may make less. Leaves to others: what goes (`dormouse_store`).

use dormouse_format::keeping::Bridge;
use dormouse_format::limits::KEEPING_MAX;
use dormouse_format::message::{Keep, Kept, Message, Refusal};
use dormouse_format::record::Kind;
use dormouse_format::seeded::seeded;
use dormouse_format::{Seq, TimeNs, VolumeId};
use dormouse_store::retention::Policy;
use dormouse_store::retention::policy::{DAY, show_age};
use dormouse_store::{By, Due, Error as StoreError, GRACE, VaultStore};

use super::{Open, Out, Refused, Step, refuse};

/// The least grace of what is asked for over the link.
pub const GRACE_MIN: u64 = DAY;
/// Bytes that a server reads for one who wants to know what would be gained: some seconds of it.
pub const LOOKS_MAX: u64 = 2 << 30;

/// Who asks, and of which store.
pub struct Asked<'a> {
    /// The vault's store.
    pub store: &'a VaultStore,
    /// Whether the clock may be believed: [`super::Registry::clock_holds`].
    pub clock: &'a dyn Fn(bool) -> Result<(), Refused>,
    /// The client's name, or who runs the store.
    pub name: &'a str,
    /// Whether it is who runs the store.
    pub operator: bool,
    /// Bytes that may be read to find out what would be gained.
    pub looks: u64,
}

impl Open {
    pub(super) fn keep(&self, ask: Keep, now: TimeNs, out: Out<'_>) -> Step {
        let clock = |confirmed| self.registry.clock_holds(confirmed);
        let (store, name) = (&*self.store, self.client.name.as_str());
        let looks = LOOKS_MAX;
        Asked { store, clock: &clock, name, operator: false, looks }.answer(ask, now, out)
    }
}

impl Asked<'_> {
    /// Does what is asked, and answers.
    pub fn answer(&self, ask: Keep, now: TimeNs, out: Out<'_>) -> Result<(), Refused> {
        let by = |grace| By { name: self.name, grace, now };
        let store = self.store;
        let answer = match ask {
            Keep::GetRetention => self.told(now),
            Keep::SetRetention { volume, policy, grace } => {
                self.check_grace(grace)?;
                let policy = read_policy(&policy)?;
                let volume = (!volume.is_zero()).then_some(&volume);
                store.set_retention(volume, policy.as_ref(), by(grace)).map_err(refuse)?;
                Message::Done
            }
            Keep::Prune { volume, apply: false, .. } => {
                let mut due = store.due(&volume, now).map_err(refuse)?;
                due.notes.extend((self.clock)(false).err().map(|e| e.text));
                pruned(&due)
            }
            Keep::Prune { volume, apply: true, clock_is_right } => {
                (self.clock)(clock_is_right)?;
                pruned(&store.prune(&volume, by(GRACE)).map_err(refuse)?)
            }
            Keep::Delete { volume, points, grace } => {
                self.check_grace(grace)?;
                store.delete(&volume, points, by(grace)).map_err(refuse)?;
                Message::Done
            }
            Keep::Undelete { volume } => {
                store.undelete(&volume, by(GRACE)).map_err(refuse)?;
                Message::Done
            }
            Keep::GetGaps { volume, from, to } => {
                let ranges = store.expired(&volume, from..=to, KEEPING_MAX).map_err(refuse)?;
                Message::Kept(Kept::Gaps { ranges })
            }
            Keep::GetBridges { volume, from, to } => {
                self.bridges(&volume, (from, to), out)?;
                Message::Done
            }
            Keep::GetGain { volume } => Message::Kept(self.gain(&volume, now)?),
        };
        out(answer);
        Ok(())
    }

    fn check_grace(&self, grace: u64) -> Step {
        if self.operator || grace >= GRACE_MIN {
            return Ok(());
        }
        let text = format!(
            "a grace of less than {} is for who runs the store: the same command with --store DIR, \
             there",
            show_age(GRACE_MIN)
        );
        Err(Refused::new(Refusal::NotAuthorised, text))
    }

    fn told(&self, now: TimeNs) -> Message {
        let doubt = (self.clock)(false).err().map(|e| e.text).unwrap_or_default();
        let (settings, deletions) = (self.store.retention(now), self.store.deletions());
        Message::Kept(Kept::Retention { settings, deletions, doubt })
    }

    fn gain(&self, volume: &VolumeId, now: TimeNs) -> Result<Kept, Refused> {
        let all = self.store.volumes().into_iter().map(|(v, ..)| v.id);
        let volumes: Vec<_> = if volume.is_zero() { all.collect() } else { vec![*volume] };
        let mut left = self.looks;
        let mut pace = |bytes| {
            left = left.saturating_sub(bytes);
            left > 0
        };
        match self.store.gain(&volumes, now, &mut pace) {
            Ok(gain) => {
                let (points, bytes) = (gain.points, Some(gain.bytes));
                Ok(Kept::Gain { points, bytes, note: String::new() })
            }
            Err(StoreError::Stopped) => {
                let note = format!(
                    "more than {} GiB of the map would have to be read to tell; without a server \
                     at work, the same command with --store DIR takes the time",
                    self.looks >> 30
                );
                Ok(Kept::Gain { points: 0, bytes: None, note })
            }
            Err(error) => Err(refuse(error)),
        }
    }

    fn bridges(&self, volume: &VolumeId, (from, to): (Seq, Seq), out: Out<'_>) -> Step {
        let ids = self.store.bridges(volume, from, to).map_err(refuse)?;
        for some in ids.chunks(1024) {
            for place in self.store.places(Kind::Bridge, some) {
                match self.store.read(&place) {
                    Ok(record) => out(Message::Record { record }),
                    // One that is damaged takes nothing away from the others.
                    Err(StoreError::Damaged { .. }) => {}
                    Err(e) => return Err(refuse(e)),
                }
            }
        }
        Ok(())
    }
}

impl Open {
    /// A bridge that does not lead on is passed over: the commit behind it, which does not fit
    /// either, is refused for its own reason.
    pub(super) fn put_bridge(&self, bytes: &[u8], body: &[u8], now: TimeNs) -> Step {
        let bad = |why: &str| Refused::new(Refusal::BadRecord, why);
        let value: Bridge = self.verified(body)?;
        if value.vault != self.client.vault || value.writer != self.client.writer {
            return Err(bad("the bridge is not this client's"));
        }
        if self.volume.is_none_or(|(open, _)| open != value.volume) {
            return Err(bad("the bridge is of a volume that is not open for writing"));
        }
        if seeded("bridge-lost") {
            return Ok(());
        }
        match self.store.put(bytes, now) {
            Err(StoreError::Conflict { .. }) => Ok(()),
            put => put.map_err(refuse),
        }
    }
}

/// A policy as a client sends it; nothing: none.
fn read_policy(text: &str) -> Result<Option<Policy>, Refused> {
    if text.is_empty() {
        return Ok(None);
    }
    let policy = text.parse().map_err(|e| {
        Refused::new(Refusal::BadRecord, format!("this is no retention policy: {e}"))
    })?;
    Ok(Some(policy))
}

fn pruned(due: &Due) -> Message {
    let ranges = due.ranges.iter().take(KEEPING_MAX).map(|r| (*r.start(), *r.end())).collect();
    let (points, gone, note) = (due.points, due.gone, due.notes.join("; "));
    Message::Kept(Kept::Pruned { points, gone, ranges, note })
}
