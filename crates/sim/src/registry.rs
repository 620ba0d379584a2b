//! Clients, invites and vaults of a simulated server, in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use dormouse_format::message::Refusal;
use dormouse_format::{PublicKey, TimeNs, VaultId};
use dormouse_store::memory::MemDir;
use dormouse_store::retention::clock::{Clocks, Mark};
use dormouse_store::{Dir, Options, Recovery, VaultStore};
use dormouse_sync::server::{Client, Refused, Registry, Role};

/// Where the one vault of a simulated server lies.
pub trait Place: Send + Sync {
    /// The directory of its segments.
    fn segments(&self) -> Box<dyn Dir>;
    /// The directory of its index.
    fn index(&self) -> Box<dyn Dir>;
}

/// In memory, without faults.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Segments.
    pub segments: MemDir,
    /// Index.
    pub index: MemDir,
}

impl Place for Memory {
    fn segments(&self) -> Box<dyn Dir> {
        Box::new(self.segments.clone())
    }
    fn index(&self) -> Box<dyn Dir> {
        Box::new(self.index.clone())
    }
}

/// Clients by transport key.
pub type Clients = HashMap<PublicKey, Client>;
/// Invites by verifier, and who used them.
pub type Invites = HashMap<[u8; 32], Option<PublicKey>>;

/// What a server knows. Clients and invites are kept as if their files never failed.
pub struct Registered {
    /// Clients by transport key.
    pub clients: Mutex<Clients>,
    /// Invites by verifier, and who used them.
    pub invites: Mutex<Invites>,
    /// What invites are for that are not for writers.
    roles: Mutex<HashMap<[u8; 32], Role>>,
    /// Open vaults.
    pub vaults: Mutex<HashMap<VaultId, Arc<VaultStore>>>,
    /// The machine's clocks, and what was believed of them; none: they are always right.
    pub clocks: Mutex<Option<(Clocks, Mark)>>,
    place: Box<dyn Place>,
    options: Options,
}

impl Registered {
    /// A server without clients.
    pub fn new(place: Box<dyn Place>, options: Options) -> Self {
        let (clients, invites, roles, vaults, clocks) = Default::default();
        Self { clients, invites, roles, vaults, clocks, place, options }
    }

    /// Makes an invite.
    pub fn invite(&self, verifier: [u8; 32]) {
        self.invites.lock().unwrap().insert(verifier, None);
    }

    /// Makes an invite for a role.
    pub fn invite_as(&self, verifier: [u8; 32], role: Role) {
        self.roles.lock().unwrap().insert(verifier, role);
        self.invite(verifier);
    }

    /// Clients and invites.
    pub fn state(&self) -> (Clients, Invites) {
        (self.clients.lock().unwrap().clone(), self.invites.lock().unwrap().clone())
    }

    /// Sets clients and invites.
    pub fn set_state(&self, clients: Clients, invites: Invites) {
        *self.clients.lock().unwrap() = clients;
        *self.invites.lock().unwrap() = invites;
    }

    /// Forgets the open vaults, as a process does that dies.
    pub fn forget(&self) {
        self.vaults.lock().unwrap().clear();
    }

    /// Opens a vault anew.
    pub fn reopen(&self, vault: VaultId) -> dormouse_store::Result<Recovery> {
        let (segments, index) = (self.place.segments(), self.place.index());
        let (store, recovery) = VaultStore::open(segments, index, vault, self.options)?;
        self.vaults.lock().unwrap().insert(vault, Arc::new(store));
        Ok(recovery)
    }

    /// Gives a client another role, or takes its key's rights away.
    pub fn grant(&self, key: &PublicKey, role: Role, revoked: bool) {
        if let Some(client) = self.clients.lock().unwrap().get_mut(key) {
            (client.role, client.revoked) = (role, revoked);
        }
    }
}

impl Registry for Registered {
    fn client(&self, key: &PublicKey) -> std::result::Result<Option<Client>, Refused> {
        Ok(self.clients.lock().unwrap().get(key).cloned())
    }
    fn check_invite(
        &self,
        verifier: &[u8; 32],
        _: &str,
        key: &PublicKey,
        _: TimeNs,
    ) -> std::result::Result<Role, Refused> {
        match self.invites.lock().unwrap().get(verifier) {
            None => Err(Refused::new(Refusal::InviteUnknown, "unknown")),
            Some(Some(used)) if used != key => Err(Refused::new(Refusal::InviteUsed, "used")),
            _ => Ok(self.roles.lock().unwrap().get(verifier).copied().unwrap_or_default()),
        }
    }
    fn use_invite(
        &self,
        verifier: &[u8; 32],
        key: &PublicKey,
        client: &Client,
        now: TimeNs,
    ) -> std::result::Result<Client, Refused> {
        self.check_invite(verifier, &client.name, key, now)?;
        self.invites.lock().unwrap().insert(*verifier, Some(*key));
        self.clients.lock().unwrap().insert(*key, client.clone());
        Ok(client.clone())
    }
    fn add_recovered(
        &self,
        key: &PublicKey,
        client: &Client,
        _: TimeNs,
    ) -> std::result::Result<Client, Refused> {
        self.clients.lock().unwrap().insert(*key, client.clone());
        Ok(client.clone())
    }
    fn vault(&self, id: &VaultId) -> std::result::Result<Option<Arc<VaultStore>>, Refused> {
        Ok(self.vaults.lock().unwrap().get(id).cloned())
    }
    fn create_vault(
        &self,
        id: &VaultId,
        now: TimeNs,
    ) -> std::result::Result<Arc<VaultStore>, Refused> {
        let (segments, index) = (self.place.segments(), self.place.index());
        let failed = |e: dormouse_store::Error| Refused::new(Refusal::Internal, e.to_string());
        let store = VaultStore::create(segments, index, *id, now, self.options).map_err(failed)?;
        let store = Arc::new(store);
        self.vaults.lock().unwrap().insert(*id, Arc::clone(&store));
        Ok(store)
    }
    fn clock_holds(&self, confirmed: bool) -> std::result::Result<(), Refused> {
        let mut clocks = self.clocks.lock().unwrap();
        let Some((now, mark)) = clocks.as_mut() else { return Ok(()) };
        let judged = if confirmed { Ok(Mark::new(*now)) } else { mark.judge(*now) };
        let doubted = |doubt| Refused::new(Refusal::Conflict, format!("nothing expires: {doubt}"));
        *mark = judged.map_err(doubted)?;
        Ok(())
    }
}
