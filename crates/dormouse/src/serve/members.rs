//! The clients that are connected.
//!
//! Owns: who they are, how many connections each has, when each was seen last. Invariant: every
//! connection of a client is compared with what the store says of that client, again and again,
//! from the moment it is one: a key that is revoked, or has another role now, is sent away, and cut
//! off if it does not go.
//! Leaves to others: sockets, and when it is looked ([`super::watch`]).

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use dormouse_format::message::Refusal;
use dormouse_format::{PublicKey, TimeNs};
use dormouse_sync::server::{Client, Refused, Role};

use super::limits::CLIENT_CONNECTIONS_MAX;
use crate::access::Roster;
use crate::link::LinkTx;

/// How long one that is sent away may take to go.
const GRACE: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct Member {
    name: String,
    key: PublicKey,
    role: Role,
    link: Option<LinkTx>,
    dismiss: Sender<Refused>,
    dismissed: Option<Instant>,
}

/// All of them, by the number of their connection.
#[derive(Debug, Default)]
pub(super) struct Members {
    rows: HashMap<u64, Member>,
    count: HashMap<String, usize>,
    /// When each client was seen last that is not connected.
    seen: BTreeMap<String, TimeNs>,
    /// Grows with each change.
    changes: u64,
    /// Bytes of connections that have ended: received and sent.
    moved: (u64, u64),
}

impl Members {
    /// None is connected, and these were seen before.
    pub(super) fn new(seen: BTreeMap<String, TimeNs>) -> Self {
        Self { seen, ..Self::default() }
    }

    /// A connection is a client's. It hears from what is returned that it has to go; `None` if
    /// the client has too many already.
    pub(super) fn add(
        &mut self,
        id: u64,
        client: &Client,
        key: PublicKey,
    ) -> Option<Receiver<Refused>> {
        let count = self.count.entry(client.name.clone()).or_default();
        if *count >= CLIENT_CONNECTIONS_MAX {
            return None;
        }
        *count += 1;
        self.changes += 1;
        let (dismiss, dismissed) = bounded(1);
        let (name, role) = (client.name.clone(), client.role);
        let member = Member { name, key, role, link: None, dismiss, dismissed: None };
        self.rows.insert(id, member);
        Some(dismissed)
    }

    /// It has a link.
    pub(super) fn linked(&mut self, id: u64, link: LinkTx) {
        if let Some(member) = self.rows.get_mut(&id) {
            member.link = Some(link);
        }
    }

    /// A connection has ended.
    pub(super) fn remove(&mut self, id: u64, now: TimeNs) {
        let Some(member) = self.rows.remove(&id) else { return };
        if let Some(link) = member.link {
            self.moved.0 += link.received();
            self.moved.1 += link.sent();
        }
        self.changes += 1;
        if let Some(count) = self.count.get_mut(&member.name) {
            *count -= 1;
            if *count == 0 {
                self.count.remove(&member.name);
            }
        }
        self.seen.insert(member.name, now);
    }

    /// Compares everybody with what the store says now. The connections that are to be cut off.
    pub(super) fn check(&mut self, roster: &Roster, now: Instant) -> Vec<u64> {
        let mut cut = Vec::new();
        for (id, member) in &mut self.rows {
            if let Some(since) = member.dismissed {
                if now.saturating_duration_since(since) >= GRACE {
                    cut.push(*id);
                }
                continue;
            }
            if let Some(refused) = verdict(member, roster) {
                member.dismissed = Some(now);
                // It is sent away once: there is room.
                let _ = member.dismiss.try_send(refused);
            }
        }
        cut
    }

    /// Connections of clients.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Clients that have one.
    pub(super) fn clients(&self) -> usize {
        self.count.len()
    }

    /// Bytes that came in and went out, over all connections of clients.
    pub(super) fn moved(&self) -> (u64, u64) {
        self.rows
            .values()
            .filter_map(|m| m.link.as_ref())
            .fold(self.moved, |(i, o), link| (i + link.received(), o + link.sent()))
    }

    /// How often anything changed.
    pub(super) const fn changes(&self) -> u64 {
        self.changes
    }

    /// Each client that is known here: its connections, and when it was seen.
    pub(super) fn seen(&self, now: TimeNs) -> BTreeMap<String, (usize, TimeNs)> {
        let mut all: BTreeMap<_, _> =
            self.seen.iter().map(|(name, at)| (name.clone(), (0, *at))).collect();
        all.extend(self.count.iter().map(|(name, n)| (name.clone(), (*n, now))));
        all
    }
}

/// Why a connection has to go, if it has to.
fn verdict(member: &Member, roster: &Roster) -> Option<Refused> {
    let name = &member.name;
    let Some(known) = roster.client(&member.key) else {
        // One whose file cannot be read now was a client before.
        let text = format!("client '{name}' is not known to the server any more");
        return roster.faults.is_empty().then(|| Refused::new(Refusal::NotAuthorised, text));
    };
    if known.revoked.is_some() {
        let text = format!("the key of client '{name}' was revoked on the server");
        return Some(Refused::new(Refusal::Revoked, text));
    }
    (known.role != member.role).then(|| {
        let text = format!("client '{name}' is a {} from now on: connect again", known.role.name());
        Refused::new(Refusal::Stopping, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_format::{VaultId, WriterId};

    fn client(name: &str) -> Client {
        let (vault, writer) = (VaultId([1; 32]), WriterId([2; 16]));
        Client { name: name.into(), vault, writer, role: Role::Writer, revoked: false }
    }

    #[test]
    fn a_client_has_so_many_connections_and_others_have_theirs() {
        let mut all = Members::default();
        for id in 0..CLIENT_CONNECTIONS_MAX as u64 {
            assert!(all.add(id, &client("a"), PublicKey([1; 32])).is_some());
        }
        assert!(all.add(99, &client("a"), PublicKey([1; 32])).is_none());
        assert!(all.add(100, &client("b"), PublicKey([2; 32])).is_some());
        all.remove(0, 7);
        assert!(all.add(101, &client("a"), PublicKey([1; 32])).is_some());
        assert_eq!((all.len(), all.clients()), (CLIENT_CONNECTIONS_MAX + 1, 2));
        assert_eq!(all.seen(9)["b"], (1, 9));
        all.remove(100, 8);
        assert_eq!(all.seen(9)["b"], (0, 8));
    }

    #[test]
    fn who_is_not_known_any_more_is_told_once_and_then_cut_off() {
        let mut all = Members::default();
        let dismissed = all.add(1, &client("a"), PublicKey([1; 32])).unwrap();
        let now = Instant::now();
        assert!(all.check(&Roster::default(), now).is_empty());
        assert_eq!(dismissed.try_recv().unwrap().refusal, Refusal::NotAuthorised);
        assert!(all.check(&Roster::default(), now + GRACE / 2).is_empty());
        assert!(dismissed.try_recv().is_err());
        assert_eq!(all.check(&Roster::default(), now + GRACE), [1]);
    }
}
