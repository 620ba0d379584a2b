//! Lines about what is kept: retention that was set, deletions that were asked for, taken back and
//! carried out, points that were pruned.
//!
//! Invariant: whichever way an order comes (over the link, by a command on the store, by a command
//! through the server), it gets the same line. Leaves to others: who may ask.

use dormouse_format::message::{Keep, Kept, Message};
use dormouse_format::{Seq, VaultId, VolumeId};
use dormouse_store::retention::policy::show_age;
use dormouse_store::{Due, VaultStore};
use serde_json::Value;

use super::Event;

/// Ranges of points that a line names; the rest is counted.
const RANGES_MAX: usize = 16;

/// An order about what is kept, before it is carried out: afterwards a name may be gone.
#[derive(Debug, Clone)]
pub struct Order {
    what: &'static str,
    fields: Vec<(&'static str, Value)>,
}

impl Order {
    /// What this order will have changed; `None` if nothing.
    pub fn of(store: &VaultStore, ask: &Keep) -> Option<Self> {
        let grace = |ns: u64| ("grace", show_age(ns).into());
        let (what, volume, fields) = match ask {
            Keep::SetRetention { volume, policy, grace: ns } => {
                let policy = if policy.is_empty() { "none" } else { policy };
                ("retention", volume, vec![("policy", policy.into()), grace(*ns)])
            }
            Keep::Prune { volume, apply: true, clock_is_right } => {
                let told = clock_is_right.then(|| ("clock_is_right", true.into()));
                ("prune", volume, told.into_iter().collect())
            }
            Keep::Delete { volume, points, grace: ns } => {
                let points = points.map(|range| ("points", shown(range).into()));
                ("delete", volume, points.into_iter().chain([grace(*ns)]).collect())
            }
            Keep::Undelete { volume } => ("undelete", volume, vec![]),
            _ => return None,
        };
        let of = named(store, volume);
        Some(Self { what, fields: of.into_iter().chain(fields).collect() })
    }

    /// Its line, now that it was carried out with this answer; `None` if that changed nothing.
    pub fn event(self, answer: &Message, event: impl FnOnce(&str) -> Event) -> Option<Event> {
        let mut fields = self.fields;
        if let Message::Kept(Kept::Pruned { gone, ranges, .. }) = answer {
            if *gone == 0 {
                return None;
            }
            fields.extend(pruned(*gone, ranges));
        }
        Some(with(event(self.what), fields))
    }
}

/// Deletions that the server carried out by itself, since their time had come.
pub fn carried_out(vault: &VaultId, name: &str, volume: &VolumeId, due: &Due) -> Vec<Event> {
    let one = |deletion: &dormouse_format::keeping::Deletion| {
        let event = Event::new("deleted", "-", "retention", "server");
        let event = event.with("vault", vault.to_string()).with("volume", volume.to_string());
        let event = event.with("name", name).with("asked_by", deletion.by.clone());
        match deletion.points {
            Some(range) => event.with("points", shown(range)),
            None => event,
        }
    };
    due.carried_out().map(one).collect()
}

fn with(event: Event, fields: impl IntoIterator<Item = (&'static str, Value)>) -> Event {
    fields.into_iter().fold(event, |event, (key, value)| event.with(key, value))
}

fn named(store: &VaultStore, volume: &VolumeId) -> Vec<(&'static str, Value)> {
    let vault = ("vault", store.vault().to_string().into());
    if volume.is_zero() {
        return vec![vault, ("name", "(default)".into())];
    }
    let all = store.volumes();
    let name = all.iter().find(|(v, ..)| v.id == *volume).map(|(v, ..)| v.name.clone());
    let name = name.map(|name| ("name", name.into()));
    [vault, ("volume", volume.to_string().into())].into_iter().chain(name).collect()
}

fn pruned(gone: u64, ranges: &[(Seq, Seq)]) -> Vec<(&'static str, Value)> {
    let mut text: Vec<String> = ranges.iter().take(RANGES_MAX).map(|r| shown(*r)).collect();
    if ranges.len() > RANGES_MAX {
        text.push("…".into());
    }
    let text = (!text.is_empty()).then(|| ("points", text.join(",").into()));
    [("gone", gone.into())].into_iter().chain(text).collect()
}

fn shown((first, last): (Seq, Seq)) -> String {
    if first == last { first.to_string() } else { format!("{first}..{last}") }
}
