//! The server's end of one connection.
//!
//! Owns: what a connection may ask, and in which order. Invariant: before the
//! first message has proved who speaks, nothing but a proof is looked at; after
//! it, everything stays within the client's own vault; a volume is written only
//! by the writer that the client was enrolled with.
//! Leaves to others: sockets, TLS, threads, and where clients and invites are kept
//! ([`Registry`]), and what a role may ([`roles`]).

pub mod keeping;
pub mod roles;

use std::sync::Arc;

use dormouse_crypt::invite::{Binding, verifier};
use dormouse_crypt::{hash, keys, record};
use dormouse_format::limits::{CHUNK_TRIES_MAX, HAVE_MAX, POINTS_MAX};
use dormouse_format::message::{Base, Message, Refusal, VolumeItem};
use dormouse_format::record::Kind;
use dormouse_format::seeded::seeded;
use dormouse_format::stale::Stale;
use dormouse_format::vault::{Cert, DataKey, Distrust, Signed, VaultKeys, name_is_valid};
use dormouse_format::{
    ChunkId, InstanceId, PublicKey, RecordId, Seq, Signature, TimeNs, VaultId, VolumeId, WriterId,
};
use dormouse_store::{Commit, Error as StoreError, Pending, Pins, VaultStore};
use roles::need_of;
pub use roles::{Need, Role};

/// A client as the server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its name.
    pub name: String,
    /// Its vault.
    pub vault: VaultId,
    /// The writer that it was enrolled with.
    pub writer: WriterId,
    /// What it may.
    pub role: Role,
    /// Whether its key was revoked.
    pub revoked: bool,
}

/// A refusal with its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why, for programs.
    pub refusal: Refusal,
    /// Why, for people.
    pub text: String,
}

impl Refused {
    /// A refusal.
    pub fn new(refusal: Refusal, text: impl Into<String>) -> Self {
        Self { refusal, text: text.into() }
    }
}

/// Where clients, invites and vaults are kept.
pub trait Registry: Send + Sync {
    /// The client with this transport key.
    fn client(&self, key: &PublicKey) -> Result<Option<Client>, Refused>;

    /// Looks whether an invite may be used by this key, without using it: it is known,
    /// not expired, for this name, and unused or used by the same key. Gives the role that it
    /// invites to.
    fn check_invite(
        &self,
        verifier: &[u8; 32],
        name: &str,
        key: &PublicKey,
        now: TimeNs,
    ) -> Result<Role, Refused>;

    /// Checks an invite again and uses it, durably before it returns, and adds the client.
    /// Idempotent for the same key; 'already used' names the fingerprint that used it. Gives
    /// the client as it is known now.
    fn use_invite(
        &self,
        verifier: &[u8; 32],
        key: &PublicKey,
        client: &Client,
        now: TimeNs,
    ) -> Result<Client, Refused>;

    /// Adds a client that has proved the vault's authority, under a free name like
    /// the one given. Gives the client as it is known now.
    fn add_recovered(
        &self,
        key: &PublicKey,
        client: &Client,
        now: TimeNs,
    ) -> Result<Client, Refused>;

    /// The store of a vault, if it is here.
    fn vault(&self, id: &VaultId) -> Result<Option<Arc<VaultStore>>, Refused>;

    /// The store of a vault, made if it is not here yet.
    fn create_vault(&self, id: &VaultId, now: TimeNs) -> Result<Arc<VaultStore>, Refused>;

    /// Whether the clock may be believed when points are to expire; `confirmed`: an administrator
    /// says that it is right, which holds from now on.
    fn clock_holds(&self, confirmed: bool) -> Result<(), Refused> {
        let _ = confirmed;
        Ok(())
    }
}

/// What the caller does after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Goes on.
    Continue,
    /// Sends what was answered, then closes.
    Close,
}

type Out<'a> = &'a mut dyn FnMut(Message);
type Step = Result<(), Refused>;

/// One connection.
pub struct Session {
    registry: Arc<dyn Registry>,
    binding: Binding,
    open: Option<Open>,
}

struct Open {
    registry: Arc<dyn Registry>,
    store: Arc<VaultStore>,
    client: Client,
    writer_key: PublicKey,
    authority: PublicKey,
    instance: InstanceId,
    volume: Option<(VolumeId, u64)>,
    pending: Option<Pending>,
    /// Chunks that it was told are there, and what it put, until its commit or end.
    pins: Pins,
}

impl core::fmt::Debug for Session {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Session({:?})", self.client_name())
    }
}

impl Session {
    /// A connection whose TLS handshake is done.
    pub fn new(registry: Arc<dyn Registry>, binding: Binding) -> Self {
        Self { registry, binding, open: None }
    }

    /// Whether the client has proved who it is.
    pub const fn authenticated(&self) -> bool {
        self.open.is_some()
    }

    /// Who it is.
    pub fn client(&self) -> Option<&Client> {
        self.open.as_ref().map(|o| &o.client)
    }

    /// Its vault.
    pub fn store(&self) -> Option<&VaultStore> {
        self.open.as_ref().map(|open| &*open.store)
    }

    /// The writer that holds a volume of its vault.
    pub fn holder(&self, volume: &VolumeId) -> Option<WriterId> {
        self.open.as_ref()?.store.holder(volume)
    }

    /// Its name.
    pub fn client_name(&self) -> Option<&str> {
        self.client().map(|c| c.name.as_str())
    }

    /// The connection has ended: what it wrote is put on record as durable, so that
    /// damage to it can later be told from a torn end.
    pub fn end(&mut self) {
        if let Some(open) = self.open.take()
            && open.volume.is_some()
        {
            // What fails here was acknowledged before, and is found by the next one.
            let store = &open.store;
            if seeded("end-unmarked") {
                return;
            }
            let _ = store.barrier().and_then(|()| store.note()).and_then(|()| store.barrier());
        }
    }

    /// Takes one message and answers it.
    pub fn handle(&mut self, now: TimeNs, message: Message, out: Out<'_>) -> After {
        let read = is_read(&message);
        let step = match &mut self.open {
            None => self.first(now, message, out),
            Some(open) => open.handle(now, message, out),
        };
        match step {
            Ok(()) => After::Continue,
            Err(Refused { refusal, text }) => {
                let goes_on = read && self.open.is_some() && refusal == Refusal::NotFound;
                out(Message::Error { refusal, text });
                if goes_on { After::Continue } else { After::Close }
            }
        }
    }

    fn first(&mut self, now: TimeNs, message: Message, out: Out<'_>) -> Step {
        let (client, instance) = match message {
            Message::Hello { instance } => (self.hello()?, instance),
            Message::Enrol { proof_key, proof, name, bundle, writer_proof } => {
                let proofs = Proofs { key: proof_key, proof, writer: writer_proof };
                (self.enrol(now, &proofs, name, &bundle)?, InstanceId::ZERO)
            }
            Message::Recover { vault, proof, name, cert } => {
                (self.recover(now, vault, &proof, name, &cert)?, InstanceId::ZERO)
            }
            _ => return Err(Refused::new(Refusal::Protocol, "say who you are first")),
        };
        let store = self.registry.vault(&client.vault)?.ok_or_else(|| {
            Refused::new(Refusal::Damaged, "this client's vault is not in the store any more")
        })?;
        let authority = authority(&store, &client.vault)?;
        let writer_key = writer_key(&store, &authority, &client.vault, &client.writer)?;
        let (vault, name) = (client.vault, client.name.clone());
        let (registry, pins) = (Arc::clone(&self.registry), store.pins());
        let (volume, pending) = (None, None);
        let open = Open {
            registry,
            store,
            client,
            writer_key,
            authority,
            instance,
            volume,
            pending,
            pins,
        };
        self.open = Some(open);
        out(Message::Welcome { vault, name, time: now });
        Ok(())
    }

    fn hello(&self) -> Result<Client, Refused> {
        let client = self.registry.client(&self.binding.client)?.ok_or_else(|| {
            Refused::new(Refusal::NotAuthorised, "this server does not know this machine's key")
        })?;
        if client.revoked && !seeded("revoked-welcome") {
            let text = format!("the key of client '{}' was revoked on the server", client.name);
            return Err(Refused::new(Refusal::Revoked, text));
        }
        Ok(client)
    }

    fn enrol(
        &self,
        now: TimeNs,
        proofs: &Proofs,
        name: String,
        bundle: &[Vec<u8>],
    ) -> Result<Client, Refused> {
        let wrong = |e: dormouse_crypt::Error| Refused::new(Refusal::BadRecord, e.to_string());
        if !name_is_valid(&name) {
            return Err(Refused::new(Refusal::Protocol, "the client's name is not valid"));
        }
        let unknown = |_| Refused::new(Refusal::InviteUnknown, "the invite's proof is wrong");
        self.binding.check_invite(&proofs.key, &proofs.proof).map_err(unknown)?;
        let verifier = verifier(&proofs.key);
        let role = self.registry.check_invite(&verifier, &name, &self.binding.client, now)?;
        let parts = Bundle::read(bundle).map_err(wrong)?;
        let cert_key = parts.cert.0.key;
        self.binding.check_writer(&cert_key, &proofs.writer).map_err(wrong)?;
        let vault = parts.cert.0.vault;
        let there = self.registry.vault(&vault)?;
        if there.is_none() && parts.vault.is_none() {
            let text = "the certificate is of a vault that is not on this server";
            return Err(Refused::new(Refusal::NotFound, text));
        }
        if there.is_none() && role != Role::Writer {
            let text = format!(
                "the invite is for a {}, and the vault is not on this server: join a vault that \
                 is, with a file of `dormouse vault export-writer`",
                role.name()
            );
            return Err(Refused::new(Refusal::NotFound, text));
        }
        parts.check(there.as_deref(), &vault).map_err(wrong)?;
        let store = match there {
            Some(store) => store,
            None => self.registry.create_vault(&vault, now)?,
        };
        // The vault's own record comes first: the others are checked against it.
        for kind in [Kind::Vault, Kind::Cert, Kind::VaultKeys] {
            let of_kind = |part: &&Vec<u8>| part[4] == kind as u8;
            for part in bundle.iter().filter(of_kind) {
                store.put(part, now).map_err(refuse)?;
            }
        }
        store.barrier().map_err(refuse)?;
        let writer = hash::writer_id(&cert_key);
        let client = Client { name, vault, writer, role, revoked: false };
        self.registry.use_invite(&verifier, &self.binding.client, &client, now)
    }

    fn recover(
        &self,
        now: TimeNs,
        vault: VaultId,
        proof: &Signature,
        name: String,
        cert: &[u8],
    ) -> Result<Client, Refused> {
        // An unknown vault and a wrong proof look alike.
        let denied = || {
            Refused::new(Refusal::NotAuthorised, "this server does not know this vault's authority")
        };
        if !name_is_valid(&name) {
            return Err(Refused::new(Refusal::Protocol, "the client's name is not valid"));
        }
        let store = self.registry.vault(&vault)?.ok_or_else(denied)?;
        let authority = authority(&store, &vault)?;
        self.binding.check_authority(&authority, proof).map_err(|_| denied())?;
        let wrong = |e: dormouse_crypt::Error| Refused::new(Refusal::BadRecord, e.to_string());
        let body = body_of(cert, Kind::Cert).map_err(wrong)?;
        let value: Cert = keys::verify_body(&authority, body).map_err(wrong)?;
        if value.vault != vault {
            return Err(denied());
        }
        store.put(cert, now).map_err(refuse)?;
        store.barrier().map_err(refuse)?;
        let writer = hash::writer_id(&value.key);
        let client = Client { name, vault, writer, role: Role::Writer, revoked: false };
        self.registry.add_recovered(&self.binding.client, &client, now)
    }
}

struct Proofs {
    key: PublicKey,
    proof: Signature,
    writer: Signature,
}

/// The records that a new client brings.
struct Bundle {
    vault: Option<Vec<u8>>,
    cert: (Cert, Vec<u8>),
    keys: Option<Vec<u8>>,
}

impl Bundle {
    fn read(records: &[Vec<u8>]) -> Result<Self, dormouse_crypt::Error> {
        let (mut vault, mut cert, mut keys) = (None, None, None);
        for bytes in records {
            let (header, body) = record::check(bytes)?;
            let slot = match header.kind {
                Kind::Vault => &mut vault,
                Kind::Cert => &mut cert,
                Kind::VaultKeys => &mut keys,
                _ => return Err(dormouse_crypt::Error::Key { what: "bundle" }),
            };
            *slot = Some(body.to_vec());
        }
        let cert = cert.ok_or(dormouse_crypt::Error::Key { what: "bundle without certificate" })?;
        let value = Cert::decode(&cert)?.0;
        Ok(Self { vault, cert: (value, cert), keys })
    }

    /// Every part is signed by the authority of the vault that the certificate names.
    fn check(
        &self,
        store: Option<&VaultStore>,
        vault: &VaultId,
    ) -> Result<(), dormouse_crypt::Error> {
        let body = match &self.vault {
            Some(body) => body.clone(),
            None => store
                .and_then(|s| s.small(Kind::Vault, &[]).ok())
                .and_then(|all| {
                    all.first().map(|r| r[dormouse_format::record::HEADER_LEN..].to_vec())
                })
                .ok_or(dormouse_crypt::Error::Key { what: "vault without record" })?,
        };
        let authority = keys::verify_vault(vault, &body)?.authority;
        keys::verify_body::<Cert>(&authority, &self.cert.1)?;
        if let Some(keys) = &self.keys {
            let value: VaultKeys = keys::verify_body(&authority, keys)?;
            if value.vault != *vault {
                return Err(dormouse_crypt::Error::Key { what: "vault keys of another vault" });
            }
        }
        Ok(())
    }
}

fn body_of(bytes: &[u8], kind: Kind) -> Result<&[u8], dormouse_crypt::Error> {
    let (header, body) = record::check(bytes)?;
    if header.kind == kind {
        Ok(body)
    } else {
        Err(dormouse_crypt::Error::Key { what: kind.name() })
    }
}

fn authority(store: &VaultStore, vault: &VaultId) -> Result<PublicKey, Refused> {
    let records = store.small(Kind::Vault, &[]).map_err(refuse)?;
    let found =
        records.iter().find_map(|r| keys::verify_vault(vault, body_of(r, Kind::Vault).ok()?).ok());
    found.map(|v| v.authority).ok_or_else(|| {
        Refused::new(Refusal::Damaged, "the vault's own record is missing or damaged in the store")
    })
}

fn writer_key(
    store: &VaultStore,
    authority: &PublicKey,
    vault: &VaultId,
    writer: &WriterId,
) -> Result<PublicKey, Refused> {
    let records = store.small(Kind::Cert, &[]).map_err(refuse)?;
    let certs = records.iter().filter_map(|r| {
        let cert: Cert = keys::verify_body(authority, body_of(r, Kind::Cert).ok()?).ok()?;
        (cert.vault == *vault && hash::writer_id(&cert.key) == *writer).then_some(cert)
    });
    let found = certs.max_by_key(|cert| cert.issued).map(|cert| cert.key);
    found.ok_or_else(|| {
        Refused::new(
            Refusal::Damaged,
            "this client's certificate is missing or damaged in the store",
        )
    })
}

/// Questions that wait for an answer, and change nothing if that is 'not found': it does not
/// end the connection.
fn is_read(message: &Message) -> bool {
    need_of(message) == Some(Need::Read) || matches!(message, Message::Keep(_))
}

impl Open {
    fn handle(&mut self, now: TimeNs, message: Message, out: Out<'_>) -> Step {
        let misplaced = || Refused::new(Refusal::Protocol, "this message has no place here");
        self.may(need_of(&message).ok_or_else(misplaced)?)?;
        match message {
            Message::ListVolumes => self.list_volumes(out),
            Message::ListPoints { volume, from, limit } => {
                let limit = (limit as usize).min(POINTS_MAX);
                let points = self.store.points(&volume, from, limit).map_err(refuse)?;
                out(Message::Points { points });
                Ok(())
            }
            Message::GetSmall { kind, ids } => self.get_small(kind, &ids, out),
            Message::GetChunks { writer, skip, ids } => self.get_chunks(&writer, skip, &ids, out),
            Message::GetNode { volume, seq, place } => {
                let children = self.store.node(&volume, seq, place).map_err(refuse)?;
                let mut mask = 0u64;
                let mut hashes = Vec::new();
                for (slot, hash) in children.into_iter().enumerate().filter(|(_, h)| !h.is_zero()) {
                    mask |= 1 << slot;
                    hashes.push(hash);
                }
                out(Message::Node { mask, hashes });
                Ok(())
            }
            Message::GetLeaves { volume, seq, page, mask, hints } => {
                let runs = self.store.leaves(&volume, seq, page, mask, hints).map_err(refuse)?;
                out(Message::Leaves { runs });
                Ok(())
            }
            Message::GetDeltas { volume, seq } => self.get_deltas(&volume, seq, out),
            Message::CreateVolume { body } => {
                self.create_volume(&body, now)?;
                out(Message::Done);
                Ok(())
            }
            Message::OpenWrite { volume, takeover } => self.open_write(volume, takeover, now, out),
            Message::Have { check, ids } => {
                debug_assert!(ids.len() <= HAVE_MAX);
                let (store, pins) = (&self.store, Some(&self.pins));
                let have = store.have_pinned(&self.client.writer, &ids, check, pins);
                let have = have.map_err(refuse)?;
                out(Message::HaveAnswer { have });
                Ok(())
            }
            Message::Put { record } => self.put(&record, now),
            Message::AskScan => {
                // Who serves many lets it wait before it comes here.
                out(Message::Admitted);
                Ok(())
            }
            Message::Barrier => {
                self.store.barrier().map_err(refuse)?;
                out(Message::Durable);
                Ok(())
            }
            Message::Begin { base, size } => self.begin(base, size),
            Message::Extents { runs } => {
                let pending = self.pending.as_mut().ok_or_else(no_pending)?;
                self.store.extents(pending, &runs, now).map_err(refuse)
            }
            Message::Commit { point } => {
                let pending = self.pending.take().ok_or_else(no_pending)?;
                out(match self.store.commit(pending, &point, now).map_err(refuse)? {
                    Commit::Done(stored) => {
                        self.pins.release();
                        Message::Committed { receipt: stored.receipt }
                    }
                    Commit::Missing(ids) => Message::Missing { ids },
                });
                Ok(())
            }
            Message::Distrust { body } => {
                let value: Distrust = self.verified(&body)?;
                if value.vault != self.client.vault || value.by != self.client.writer {
                    return Err(Refused::new(
                        Refusal::BadRecord,
                        "the distrust is not by this client",
                    ));
                }
                let bytes = record::plain(Kind::Distrust, self.client.writer, &body);
                self.store.put(&bytes, now).map_err(refuse)?;
                self.store.barrier().map_err(refuse)?;
                out(Message::Done);
                Ok(())
            }
            Message::Keep(ask) => self.keep(ask, now, out),
            _ => Err(misplaced()),
        }
    }

    fn verified<T: Signed>(&self, body: &[u8]) -> Result<T, Refused> {
        keys::verify_body(&self.writer_key, body)
            .map_err(|e| Refused::new(Refusal::BadRecord, e.to_string()))
    }

    fn list_volumes(&self, out: Out<'_>) -> Step {
        let items = self
            .store
            .volumes()
            .into_iter()
            .map(|(_, volume, head)| VolumeItem { volume, head })
            .collect();
        out(Message::Volumes { items });
        Ok(())
    }

    fn get_small(&self, kind: Kind, ids: &[RecordId], out: Out<'_>) -> Step {
        if !matches!(
            kind,
            Kind::Vault | Kind::Cert | Kind::VaultKeys | Kind::DataKey | Kind::Volume | Kind::Stale
        ) || (kind == Kind::DataKey && ids.is_empty())
        {
            return Err(Refused::new(
                Refusal::Protocol,
                "records of this kind are not given out so",
            ));
        }
        let mut tell = |record| out(Message::Record { record });
        self.store.each_small(kind, ids, &mut tell).map_err(refuse)?;
        out(Message::Done);
        Ok(())
    }

    fn get_chunks(&self, writer: &WriterId, skip: u8, ids: &[ChunkId], out: Out<'_>) -> Step {
        if skip > CHUNK_TRIES_MAX {
            return Err(Refused::new(Refusal::Protocol, "too many records passed over"));
        }
        for &id in ids {
            // A damaged chunk is as good as none here: scrub tells where the damage is.
            out(match self.store.chunk(&id, writer, skip) {
                Ok(Some(record)) => Message::Record { record },
                Ok(None) | Err(StoreError::Damaged { .. }) => Message::Absent { id },
                Err(e) => return Err(refuse(e)),
            });
        }
        Ok(())
    }

    fn get_deltas(&self, volume: &VolumeId, seq: Seq, out: Out<'_>) -> Step {
        let mut tell = |record| out(Message::Record { record });
        self.store.each_delta(volume, seq, &mut tell).map_err(refuse)?;
        out(Message::Done);
        Ok(())
    }

    fn create_volume(&self, body: &[u8], now: TimeNs) -> Step {
        let value: dormouse_format::vault::Volume = self.verified(body)?;
        if value.vault != self.client.vault || value.writer != self.client.writer {
            return Err(Refused::new(Refusal::BadRecord, "the volume is not this client's"));
        }
        self.store.create_volume(body, now).map_err(refuse)
    }

    fn open_write(&mut self, volume: VolumeId, takeover: bool, now: TimeNs, out: Out<'_>) -> Step {
        if self.instance.is_zero() {
            return Err(Refused::new(Refusal::Protocol, "an instance writes after 'hello' only"));
        }
        self.pending = None;
        let generation = self
            .store
            .open_write(&volume, self.client.writer, self.instance, takeover, now)
            .map_err(refuse)?;
        let head = self.store.head(&volume).map_err(refuse)?;
        let checkpoint = match head.as_ref().map(|h| *h.point()) {
            Some(p) if !p.is_checkpoint() => {
                Some(self.store.point(&volume, p.checkpoint).map_err(refuse)?)
            }
            _ => None,
        };
        self.volume = Some((volume, generation));
        out(Message::Opened { generation, head, checkpoint });
        Ok(())
    }

    fn begin(&mut self, base: Base, size: u64) -> Step {
        let Some((volume, generation)) = self.volume else {
            return Err(Refused::new(Refusal::Protocol, "open a volume for writing first"));
        };
        self.pending = Some(self.store.begin(&volume, generation, base, size).map_err(refuse)?);
        Ok(())
    }

    fn put(&self, bytes: &[u8], now: TimeNs) -> Step {
        let bad = |why: &str| Refused::new(Refusal::BadRecord, why);
        let (header, body) =
            dormouse_format::record::split(bytes).map_err(|e| bad(&e.to_string()))?;
        match header.kind {
            Kind::Chunk if header.writer == self.client.writer || seeded("put-for-another") => {}
            Kind::DataKey => {
                let value: DataKey = self.verified(body)?;
                if value.vault != self.client.vault || value.writer != self.client.writer {
                    return Err(bad("the data key is not this client's"));
                }
            }
            Kind::Stale => {
                let value: Stale = self.verified(body)?;
                let open = self.volume.is_some_and(|(volume, _)| volume == value.volume);
                if value.vault != self.client.vault || !open {
                    return Err(bad("the stale blocks are not of the volume that is open"));
                }
            }
            Kind::Cert => {
                let value: Cert =
                    keys::verify_body(&self.authority, body).map_err(|e| bad(&e.to_string()))?;
                if value.vault != self.client.vault {
                    return Err(bad("the certificate is of another vault"));
                }
            }
            Kind::Bridge => return self.put_bridge(bytes, body, now),
            _ => return Err(bad("a client may not put such a record")),
        }
        self.store.put_pinned(bytes, now, Some(&self.pins)).map_err(refuse)
    }
}

fn no_pending() -> Refused {
    Refused::new(Refusal::Protocol, "no point was begun")
}

/// What the store's errors are to a client. Details of the server's disk stay there.
fn refuse(error: StoreError) -> Refused {
    let refusal = match &error {
        StoreError::NotFound { .. } => Refusal::NotFound,
        StoreError::Exists { .. } => Refusal::Exists,
        StoreError::Held { .. } => Refusal::Held,
        StoreError::Fenced => Refusal::Fenced,
        StoreError::Conflict { .. } | StoreError::Kept { .. } => Refusal::Conflict,
        StoreError::BadRecord { .. } | StoreError::Crypt(_) | StoreError::Format(_) => {
            Refusal::BadRecord
        }
        StoreError::Full | StoreError::Quota { .. } => Refusal::Full,
        StoreError::Damaged { .. } => Refusal::Damaged,
        _ => Refusal::Internal,
    };
    Refused::new(refusal, error.to_string())
}
