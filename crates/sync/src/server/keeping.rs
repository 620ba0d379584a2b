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
use dormouse_store::{By, Due, Error as StoreError, GRACE};

use super::{Open, Out, Refused, Step, refuse};

/// The least grace of a deletion that is asked for over the link.
pub const GRACE_MIN: u64 = DAY;

impl Open {
    pub(super) fn keep(&self, ask: Keep, now: TimeNs, out: Out<'_>) -> Step {
        let by = By { name: &self.client.name, grace: GRACE, now };
        let answer = match ask {
            Keep::GetRetention => self.told(now),
            Keep::SetRetention { volume, policy } => {
                let policy = read_policy(&policy)?;
                let volume = (!volume.is_zero()).then_some(&volume);
                self.store.set_retention(volume, policy.as_ref(), by).map_err(refuse)?;
                Message::Done
            }
            Keep::Prune { volume, apply, clock_is_right } => {
                let doubt = self.registry.clock_holds(apply && clock_is_right);
                let due = match (apply, doubt) {
                    (true, doubt) => doubt.and_then(|()| self.store.prune(&volume, by).map_err(refuse))?,
                    (false, doubt) => {
                        let mut due = self.store.due(&volume, now).map_err(refuse)?;
                        due.notes.extend(doubt.err().map(|e| e.text));
                        due
                    }
                };
                pruned(&due)
            }
            Keep::Delete { volume, points, grace } => {
                if grace < GRACE_MIN {
                    let text = format!(
                        "a grace of less than {} is for who runs the store: dormouse delete --store \
                         DIR, there",
                        show_age(GRACE_MIN)
                    );
                    return Err(Refused::new(Refusal::NotAuthorised, text));
                }
                self.store.delete(&volume, points, By { grace, ..by }).map_err(refuse)?;
                Message::Done
            }
            Keep::Undelete { volume } => {
                self.store.undelete(&volume, by).map_err(refuse)?;
                Message::Done
            }
            Keep::GetGaps { volume, from, to } => {
                let ranges = self.store.expired(&volume, from..=to, KEEPING_MAX).map_err(refuse)?;
                Message::Kept(Kept::Gaps { ranges })
            }
            Keep::GetBridges { volume, from, to } => {
                self.bridges(&volume, (from, to), out)?;
                Message::Done
            }
        };
        out(answer);
        Ok(())
    }

    fn told(&self, now: TimeNs) -> Message {
        let doubt = self.registry.clock_holds(false).err().map(|e| e.text).unwrap_or_default();
        let (settings, deletions) = (self.store.retention(now), self.store.deletions());
        Message::Kept(Kept::Retention { settings, deletions, doubt })
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
        match self.store.put(bytes, now) {
            Err(StoreError::Conflict { .. }) => Ok(()),
            _ if seeded("bridge-lost") => Ok(()),
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
