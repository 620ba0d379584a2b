//! The simulated server: real sessions over the real store, on the simulated disk.
//!
//! It dies with the machine or alone, and comes back; it does what the program does
//! with a store that fails: it goes on refusing until somebody starts it again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use dormouse_crypt::invite::Binding;
use dormouse_format::message::{Message, Refusal};
use dormouse_format::{PublicKey, TimeNs, VaultId, WriterId};
use dormouse_store::{Error as StoreError, Options, Recovery, VaultStore};
use dormouse_sync::server::{After, Client, Session};

use super::net::LinkId;
use crate::registry::Registered;
use crate::storage::Storage;

/// The server's machine.
pub struct Server {
    vault: VaultId,
    options: Options,
    /// What the process knows; clients and invites are kept by whoever starts it again.
    pub registry: Arc<Registered>,
    /// Its disk.
    pub storage: Storage,
    sessions: BTreeMap<LinkId, (PublicKey, Session)>,
    /// Whether the process runs.
    pub up: bool,
    /// What an administrator has set, and the program says again at each start.
    pub terms: Terms,
    /// How often the machine was started.
    pub boots: u8,
}

/// The terms of the vault.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// Bytes that it may hold.
    pub quota: Option<u64>,
    /// Whose records nobody relies on.
    pub distrusted: HashSet<WriterId>,
}

/// How a try to start ended.
#[derive(Debug)]
pub enum Start {
    /// It runs.
    Up(Recovery),
    /// The machine went down again.
    Down,
    /// The store could not be opened.
    Failed(StoreError),
}

impl Server {
    /// A server that runs, whose vault is open.
    pub fn new(
        registry: Arc<Registered>,
        storage: Storage,
        vault: VaultId,
        options: Options,
    ) -> Self {
        let (sessions, terms) = (BTreeMap::new(), Terms::default());
        Self { vault, options, registry, storage, sessions, up: true, terms, boots: 1 }
    }

    /// The open vault.
    pub fn store(&self) -> Option<Arc<VaultStore>> {
        self.registry.vaults.lock().unwrap().get(&self.vault).cloned()
    }

    /// Whether the store has stopped writing.
    pub fn is_poisoned(&self) -> bool {
        self.store().is_some_and(|s| s.stats().poisoned)
    }

    /// The process ends without a word. With `machine` all goes down that is in memory.
    pub fn die(&mut self, machine: bool) {
        self.up = false;
        // What a session does at its end it does not do when its process is killed.
        self.sessions.clear();
        self.registry.forget();
        if machine || self.storage.is_down() {
            self.boots = self.boots.wrapping_add(1);
            self.storage = self.storage.restart();
        } else {
            self.storage = self.storage.reopened();
        }
    }

    /// Starts the process.
    pub fn start(&mut self) -> Start {
        let (clients, invites) = self.registry.state();
        let registry = Registered::new(Box::new(self.storage.clone()), self.options);
        registry.set_state(clients, invites);
        *registry.clocks.lock().unwrap() = *self.registry.clocks.lock().unwrap();
        self.registry = Arc::new(registry);
        match self.registry.reopen(self.vault) {
            Ok(recovery) => {
                self.up = true;
                self.agree();
                Start::Up(recovery)
            }
            Err(_) if self.storage.is_down() => {
                self.boots = self.boots.wrapping_add(1);
                self.storage = self.storage.restart();
                Start::Down
            }
            Err(error) => Start::Failed(error),
        }
    }

    /// Whether a session runs on this link.
    pub fn serves(&self, link: LinkId) -> bool {
        self.sessions.contains_key(&link)
    }

    /// Takes a link that a client has opened.
    pub fn accept(&mut self, link: LinkId, client: PublicKey) {
        let binding = Binding { exporter: [9; 32], client, server: PublicKey([8; 32]) };
        self.sessions.insert(link, (client, Session::new(self.registry.clone(), binding)));
    }

    /// Tells the store its terms.
    pub fn agree(&self) {
        if let Some(store) = self.store() {
            store.set_quota(self.terms.quota);
            store.set_distrusted(self.terms.distrusted.clone());
        }
    }

    /// The client of a link, as it is registered now.
    pub fn client(&self, link: LinkId) -> Option<Client> {
        let (key, _) = self.sessions.get(&link)?;
        self.registry.clients.lock().unwrap().get(key).cloned()
    }

    /// Ends the sessions of those who are something else now than when they came: which.
    pub fn watch(&mut self) -> Vec<LinkId> {
        let changed = |(key, session): &(PublicKey, Session)| {
            let now = self.registry.clients.lock().unwrap().get(key).cloned();
            session.client().is_some_and(|was| now.as_ref() != Some(was))
        };
        let found = self.sessions.iter().filter(|(_, s)| changed(s)).map(|(link, _)| *link);
        let found: Vec<LinkId> = found.collect();
        found.iter().for_each(|link| self.hang_up(*link));
        found
    }

    /// Handles a message; the answers, and whether the link is closed after them.
    pub fn handle(&mut self, link: LinkId, now: TimeNs, frame: &[u8]) -> (Vec<Message>, bool) {
        let Some((_, session)) = self.sessions.get_mut(&link) else { return (Vec::new(), true) };
        let message = match Message::decode(&frame[4..]) {
            Ok(message) => message,
            Err(e) => {
                let (refusal, text) = (Refusal::Protocol, e.to_string());
                return (vec![Message::Error { refusal, text }], true);
            }
        };
        let (mut answers, storage) = (Vec::new(), &self.storage);
        let after = session.handle(now, message, &mut |answer| {
            // What is said after the machine went down nobody hears.
            if !storage.is_down() {
                answers.push(answer);
            }
        });
        (answers, after == After::Close)
    }

    /// The link has ended, and the server knows it.
    pub fn hang_up(&mut self, link: LinkId) {
        if let Some((_, mut session)) = self.sessions.remove(&link) {
            session.end();
        }
    }
}
