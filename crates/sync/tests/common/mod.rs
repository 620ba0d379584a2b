//! A world in memory: a server's session over a real store, a writer, a disk,
//! and the loops that a program would run, without threads.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use dormouse_crypt::invite::{self, Binding};
use dormouse_crypt::seal::{DataKey, Opener, SealFor, Sealer};
use dormouse_crypt::{Identity, Random, SigningKey, VaultSecrets, hash, record};
use dormouse_format::limits::{BLOCK_SIZE, LEAF_BLOCKS};
use dormouse_format::message::{Message, Refusal};
use dormouse_format::point::{Grade, StoredPoint};
use dormouse_format::record::Kind;
use dormouse_format::vault::{Cert, Vault, VaultKeys, Volume};
use dormouse_format::{
    Block, Hash, InstanceId, PublicKey, TimeNs, VaultId, VolumeId, WriterId, geometry,
};
use dormouse_store::VaultStore;
use dormouse_store::memory::MemDir;
use dormouse_sync::checkpoint::{self, Checkpoint};
use dormouse_sync::copy::{self, Copy, Outcome};
use dormouse_sync::error::{Error, Result};
use dormouse_sync::fetch::{self, Fetch};
use dormouse_sync::history::Trust;
use dormouse_sync::leaf::{Claim, LeafData, LeafSet};
use dormouse_sync::server::{After, Client, Refused, Registry, Session};

pub struct Lcg(pub u64);

impl Random for Lcg {
    fn fill(&mut self, out: &mut [u8]) {
        for b in out {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            *b = (self.0 >> 40) as u8;
        }
    }
}

impl Lcg {
    pub fn below(&mut self, n: u64) -> u64 {
        u64::from_le_bytes(self.array()) % n
    }
}

#[derive(Default)]
pub struct Registered {
    pub clients: Mutex<HashMap<PublicKey, Client>>,
    pub invites: Mutex<HashMap<[u8; 32], Option<PublicKey>>>,
    pub vaults: Mutex<HashMap<VaultId, Arc<VaultStore>>>,
    pub segments: MemDir,
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
    ) -> std::result::Result<(), Refused> {
        match self.invites.lock().unwrap().get(verifier) {
            None => Err(Refused::new(Refusal::InviteUnknown, "unknown")),
            Some(Some(used)) if used != key => Err(Refused::new(Refusal::InviteUsed, "used")),
            _ => Ok(()),
        }
    }
    fn use_invite(
        &self,
        verifier: &[u8; 32],
        key: &PublicKey,
        client: &Client,
        now: TimeNs,
    ) -> std::result::Result<(), Refused> {
        self.check_invite(verifier, &client.name, key, now)?;
        self.invites.lock().unwrap().insert(*verifier, Some(*key));
        self.clients.lock().unwrap().insert(*key, client.clone());
        Ok(())
    }
    fn add_recovered(
        &self,
        key: &PublicKey,
        client: &Client,
        _: TimeNs,
    ) -> std::result::Result<String, Refused> {
        self.clients.lock().unwrap().insert(*key, client.clone());
        Ok(client.name.clone())
    }
    fn vault(&self, id: &VaultId) -> std::result::Result<Option<Arc<VaultStore>>, Refused> {
        Ok(self.vaults.lock().unwrap().get(id).cloned())
    }
    fn create_vault(
        &self,
        id: &VaultId,
        now: TimeNs,
    ) -> std::result::Result<Arc<VaultStore>, Refused> {
        let dirs = (Box::new(self.segments.clone()), Box::new(MemDir::default()));
        let store = VaultStore::create(dirs.0, dirs.1, *id, now, Default::default()).unwrap();
        let store = Arc::new(store);
        self.vaults.lock().unwrap().insert(*id, Arc::clone(&store));
        Ok(store)
    }
}

/// A sparse disk in memory.
#[derive(Clone, Default)]
pub struct Disk {
    pub size: u64,
    pub blocks: BTreeMap<Block, Vec<u8>>,
}

impl Disk {
    pub fn new(size: u64) -> Self {
        Self { size, blocks: BTreeMap::new() }
    }
    pub fn write(&mut self, block: Block, content: Vec<u8>) {
        assert_eq!(content.len(), BLOCK_SIZE);
        if content.iter().all(|b| *b == 0) {
            self.blocks.remove(&block);
        } else {
            self.blocks.insert(block, content);
        }
    }
    pub fn resize(&mut self, size: u64) {
        self.size = size;
        self.blocks.split_off(&geometry::blocks(size));
    }
    pub fn leaves(&self) -> LeafSet {
        let mut set = LeafSet::new(self.size);
        self.blocks.keys().for_each(|b| set.add(b / LEAF_BLOCKS));
        set
    }
    /// The blocks of a leaf that have data, or those of `only` whatever they have.
    pub fn leaf(&self, index: u64, only: Option<&[Block]>, mut claim: Claim) -> Arc<LeafData> {
        let range = index * LEAF_BLOCKS..(index + 1) * LEAF_BLOCKS;
        let blocks: Vec<Block> = match only {
            Some(only) => only.iter().copied().filter(|b| range.contains(b)).collect(),
            None => self.blocks.range(range).map(|(b, _)| *b).collect(),
        };
        let (mut runs, mut bytes): (Vec<(u16, u16)>, Vec<u8>) = (Vec::new(), Vec::new());
        for block in blocks {
            let at = (block % LEAF_BLOCKS) as u16;
            match runs.last_mut() {
                Some((first, n)) if *first + *n == at => *n += 1,
                _ => runs.push((at, 1)),
            }
            match self.blocks.get(&block) {
                Some(content) => bytes.extend_from_slice(content),
                None => bytes.resize(bytes.len() + BLOCK_SIZE, 0),
            }
        }
        claim.shrink(bytes.len() as u64);
        Arc::new(LeafData { runs, bytes, skip: 0, claim })
    }
}

pub fn noise(random: &mut Lcg) -> Vec<u8> {
    let mut block = vec![0; BLOCK_SIZE];
    random.fill(&mut block);
    block
}

/// The keys of one machine.
pub struct Machine {
    pub transport: PublicKey,
    pub signer: Arc<SigningKey>,
    pub secrets: Arc<VaultSecrets>,
    pub identity: Arc<Identity>,
    pub authority: Arc<SigningKey>,
    pub vault: VaultId,
    pub instance: u8,
}

/// A connection without a wire; messages still go through their codec.
pub struct Wire {
    pub session: Session,
    pub inbox: VecDeque<Message>,
    pub sent: u64,
    pub received: u64,
    pub messages: u64,
    /// The link is cut when so many messages were sent.
    pub cut_after: Option<u64>,
    pub closed: bool,
}

impl Wire {
    pub fn send(&mut self, now: TimeNs, message: &Message) {
        if self.cut_after.is_some_and(|n| self.messages >= n) {
            self.closed = true;
        }
        if self.closed {
            return;
        }
        self.messages += 1;
        let frame = message.encode();
        self.sent += frame.len() as u64;
        let message = Message::decode(&frame[4..]).unwrap();
        let (inbox, received) = (&mut self.inbox, &mut self.received);
        let after = self.session.handle(now, message, &mut |answer| {
            let frame = answer.encode();
            *received += frame.len() as u64;
            inbox.push_back(Message::decode(&frame[4..]).unwrap());
        });
        self.closed = after == After::Close;
    }
    pub fn ask(&mut self, now: TimeNs, message: &Message) -> Result<Message> {
        self.send(now, message);
        self.next()
    }
    pub fn next(&mut self) -> Result<Message> {
        match self.inbox.pop_front() {
            Some(Message::Error { refusal, text }) => Err(Error::Refused { refusal, text }),
            Some(message) => Ok(message),
            None => Err(Error::Protocol { what: "cut" }),
        }
    }
}

pub type Lie = Box<dyn FnMut(&mut Message)>;

/// What a lying server does: it answers another question, or alters an answer.
#[derive(Default)]
pub struct Liar {
    pub ask: Option<Lie>,
    pub answer: Option<Lie>,
}

pub struct World {
    pub registry: Arc<Registered>,
    pub random: Lcg,
    pub now: TimeNs,
    pub cut_after: Option<u64>,
    /// Lies to copies, checkpoints and restores; not to lists of points and certificates.
    pub liar: Liar,
    /// Bytes of the last copy: sent, received.
    pub traffic: (u64, u64),
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self {
            registry: Arc::default(),
            random: Lcg(seed),
            now: 1,
            cut_after: None,
            liar: Liar::default(),
            traffic: (0, 0),
        }
    }

    fn say(&mut self, wire: &mut Wire, mut message: Message) {
        if let Some(ask) = &mut self.liar.ask {
            ask(&mut message);
        }
        wire.send(self.now, &message);
    }

    fn hear(&mut self, wire: &mut Wire) -> Result<Message> {
        let mut message = wire.next()?;
        if let Some(answer) = &mut self.liar.answer {
            answer(&mut message);
        }
        Ok(message)
    }

    pub fn binding(&self, client: PublicKey) -> Binding {
        Binding { exporter: [9; 32], client, server: PublicKey([8; 32]) }
    }

    pub fn wire(&self, client: PublicKey) -> Wire {
        Wire {
            session: Session::new(self.registry.clone(), self.binding(client)),
            inbox: VecDeque::new(),
            sent: 0,
            received: 0,
            messages: 0,
            cut_after: None,
            closed: false,
        }
    }

    /// A new machine with a new vault.
    pub fn machine(&mut self) -> Machine {
        let authority = Arc::new(SigningKey::generate(&mut self.random).unwrap());
        let identity = Arc::new(Identity::generate());
        let secrets = Arc::new(VaultSecrets::generate(&mut self.random));
        let machine = self.machine_of(authority, identity, secrets, 0);
        let vault = Vault {
            authority: machine.authority.public(),
            recipient: machine.identity.recipient().to_string(),
            created: self.now,
        };
        let keys = VaultKeys {
            vault: machine.vault,
            epoch: 1,
            wrapped: machine.secrets.wrap(&machine.identity.recipient()).unwrap(),
        };
        let more = [
            (Kind::Vault, machine.authority.sign_body(&vault)),
            (Kind::VaultKeys, machine.authority.sign_body(&keys)),
        ];
        self.enrol(&machine, 0, &more).unwrap();
        machine
    }

    /// A second machine of the same vault.
    pub fn second(&mut self, first: &Machine, group: u32) -> Machine {
        let (a, i, s) = (&first.authority, &first.identity, &first.secrets);
        let machine = self.machine_of(a.clone(), i.clone(), s.clone(), group);
        self.enrol(&machine, group, &[]).unwrap();
        machine
    }

    fn machine_of(
        &mut self,
        authority: Arc<SigningKey>,
        identity: Arc<Identity>,
        secrets: Arc<VaultSecrets>,
        _group: u32,
    ) -> Machine {
        Machine {
            transport: PublicKey(self.random.array()),
            signer: Arc::new(SigningKey::generate(&mut self.random).unwrap()),
            vault: hash::vault_id(&authority.public()),
            secrets,
            identity,
            authority,
            instance: 1,
        }
    }

    pub fn cert(&self, machine: &Machine, group: u32) -> Vec<u8> {
        let cert = Cert {
            vault: machine.vault,
            key: machine.signer.public(),
            trust_group: group,
            issued: self.now,
            name: "writer".into(),
        };
        record::plain(Kind::Cert, WriterId::ZERO, &machine.authority.sign_body(&cert))
    }

    pub fn enrol(
        &mut self,
        machine: &Machine,
        group: u32,
        more: &[(Kind, Vec<u8>)],
    ) -> Result<Message> {
        let secret = invite::secret(&mut self.random);
        let key = invite::key(&secret).unwrap();
        let verifier = invite::verifier(&key.public());
        self.registry.invites.lock().unwrap().insert(verifier, None);
        let binding = self.binding(machine.transport);
        let mut bundle = vec![self.cert(machine, group)];
        bundle.extend(more.iter().map(|(k, b)| record::plain(*k, WriterId::ZERO, b)));
        let message = Message::Enrol {
            proof_key: key.public(),
            proof: binding.prove_invite(&key),
            name: "laptop".into(),
            bundle,
            writer_proof: binding.prove_writer(&machine.signer),
        };
        self.wire(machine.transport).ask(self.now, &message)
    }

    pub fn hello(&mut self, machine: &Machine) -> Result<Wire> {
        self.now += 1_000_000_000;
        let mut wire = self.wire(machine.transport);
        wire.cut_after = self.cut_after;
        let instance = InstanceId([machine.instance; 16]);
        wire.ask(self.now, &Message::Hello { instance })?;
        Ok(wire)
    }

    pub fn volume(&mut self, machine: &Machine, name: &str) -> VolumeId {
        let id = VolumeId(self.random.array());
        let volume = Volume {
            vault: machine.vault,
            id,
            writer: machine.signer.writer_id(),
            created: self.now,
            name: name.into(),
        };
        let body = machine.signer.sign_body(&volume);
        let mut wire = self.hello(machine).unwrap();
        assert_eq!(wire.ask(self.now, &Message::CreateVolume { body }), Ok(Message::Done));
        id
    }

    pub fn open(
        &mut self,
        wire: &mut Wire,
        volume: VolumeId,
    ) -> Result<(u64, Option<StoredPoint>, Option<StoredPoint>)> {
        match wire.ask(self.now, &Message::OpenWrite { volume, takeover: false })? {
            Message::Opened { generation, head, checkpoint } => {
                let base = checkpoint.or(head);
                Ok((generation, head, base))
            }
            other => panic!("{other:?}"),
        }
    }

    /// Copies by a scan.
    pub fn copy(&mut self, machine: &Machine, volume: VolumeId, disk: &Disk) -> Result<Outcome> {
        self.copy_mode(machine, volume, disk, copy::Mode::Scan, None)
    }

    /// Copies by a scan that asks for every chunk.
    pub fn check(&mut self, machine: &Machine, volume: VolumeId, disk: &Disk) -> Result<Outcome> {
        self.copy_mode(machine, volume, disk, copy::Mode::Check, None)
    }

    /// Copies these changed blocks as a delta point.
    pub fn copy_changes(
        &mut self,
        machine: &Machine,
        volume: VolumeId,
        disk: &Disk,
        changed: &[Block],
    ) -> Result<Outcome> {
        self.copy_mode(machine, volume, disk, copy::Mode::Changes, Some(changed))
    }

    fn copy_mode(
        &mut self,
        machine: &Machine,
        volume: VolumeId,
        disk: &Disk,
        mode: copy::Mode,
        changed: Option<&[Block]>,
    ) -> Result<Outcome> {
        let mut wire = self.hello(machine)?;
        let (generation, head, checkpoint) = self.open(&mut wire, volume)?;
        let leaves = match changed {
            None => disk.leaves(),
            Some(changed) => {
                let mut set = LeafSet::new(disk.size);
                changed.iter().for_each(|b| set.add(b / LEAF_BLOCKS));
                set
            }
        };
        let plan = copy::Plan {
            vault: machine.vault,
            volume,
            generation: copy::Generation::Given(generation),
            head,
            checkpoint,
            size: disk.size,
            leaves,
            mode,
        };
        let result = self.run_copy(machine, &mut wire, plan, disk, changed);
        self.traffic = (wire.sent, wire.received);
        result
    }

    /// Copies by a scan that begins before the volume's opening is answered, in the
    /// belief that this is its head.
    pub fn copy_ahead(
        &mut self,
        machine: &Machine,
        volume: VolumeId,
        disk: &Disk,
        head: Option<StoredPoint>,
    ) -> Result<Outcome> {
        let mut wire = self.hello(machine)?;
        wire.send(self.now, &Message::OpenWrite { volume, takeover: false });
        let plan = copy::Plan {
            vault: machine.vault,
            volume,
            generation: copy::Generation::Asked { created: false },
            head,
            checkpoint: head,
            size: disk.size,
            leaves: disk.leaves(),
            mode: copy::Mode::Scan,
        };
        self.run_copy(machine, &mut wire, plan, disk, None)
    }

    fn run_copy(
        &mut self,
        machine: &Machine,
        wire: &mut Wire,
        plan: copy::Plan,
        disk: &Disk,
        changed: Option<&[Block]>,
    ) -> Result<Outcome> {
        let key = DataKey::generate(&mut self.random).unwrap();
        let body = key
            .wrap(machine.vault, &machine.identity.recipient(), &machine.signer, self.now)
            .unwrap();
        let writer = machine.signer.writer_id();
        let record = record::plain(Kind::DataKey, writer, &body);
        wire.send(self.now, &Message::Put { record });
        let mut sealer = Sealer::new(1).unwrap();
        let volume = plan.volume;
        let mut copy = Copy::new(plan, machine.secrets.clone(), machine.signer.clone())?;
        let (mut actions, mut todo) = (Vec::new(), VecDeque::new());
        copy.start(&mut actions)?;
        loop {
            todo.extend(actions.drain(..));
            // A worker may be late: answers come while a chunk is being sealed.
            let late = matches!(todo.front(), Some(copy::Action::Seal { .. }))
                && self.random.below(3) == 0
                && !wire.inbox.is_empty();
            let event = match if late { None } else { todo.pop_front() } {
                Some(copy::Action::Send(message)) => {
                    self.say(wire, message);
                    continue;
                }
                Some(copy::Action::Read { index, claim }) => {
                    let data = disk.leaf(index, changed, claim);
                    let hashes = data.hash(&machine.secrets, &volume, index);
                    copy::Event::Leaf { index, data, hashes }
                }
                Some(copy::Action::Seal { id, cut }) => {
                    let who = SealFor {
                        vault: &machine.vault,
                        writer,
                        key: &key,
                        secrets: &machine.secrets,
                    };
                    let mut scratch = Vec::new();
                    let content = cut.content(&mut scratch);
                    let record = sealer.seal(who, id, &cut.digests, content).unwrap();
                    copy::Event::Sealed { id, record }
                }
                Some(copy::Action::Finish) => {
                    copy::Event::Finished { grade: Grade::Settled, time: self.now }
                }
                Some(copy::Action::Done(outcome)) => return Ok(outcome),
                None => copy::Event::Message(self.hear(wire)?),
            };
            copy.step(event, &mut actions)?;
        }
    }

    /// Makes a checkpoint of the head.
    pub fn checkpoint(&mut self, machine: &Machine, volume: VolumeId) -> Result<StoredPoint> {
        let mut wire = self.hello(machine)?;
        let (generation, head, checkpoint) = self.open(&mut wire, volume)?;
        let plan = checkpoint::Plan {
            generation,
            head: head.unwrap(),
            checkpoint: checkpoint.unwrap(),
            grade: Grade::Settled,
            time: self.now,
        };
        let mut engine = Checkpoint::new(plan, machine.signer.clone())?;
        let mut actions = Vec::new();
        engine.start(&mut actions);
        loop {
            for action in actions.drain(..) {
                match action {
                    checkpoint::Action::Send(message) => self.say(&mut wire, message),
                    checkpoint::Action::Done { point, .. } => {
                        self.traffic = (wire.sent, wire.received);
                        return Ok(self.points(machine, volume)[point.point.seq as usize - 1]);
                    }
                }
            }
            engine.step(self.hear(&mut wire)?, &mut actions)?;
        }
    }

    pub fn trust(&mut self, machine: &Machine) -> Trust {
        let mut trust = Trust::new(machine.authority.public());
        let mut wire = self.hello(machine).unwrap();
        let ask = Message::GetSmall { kind: Kind::Cert, ids: vec![] };
        let mut answer = wire.ask(self.now, &ask).unwrap();
        while let Message::Record { record } = answer {
            trust.add_cert(&record).unwrap();
            answer = wire.next().unwrap();
        }
        trust
    }

    pub fn points(&mut self, machine: &Machine, volume: VolumeId) -> Vec<StoredPoint> {
        let mut wire = self.hello(machine).unwrap();
        let ask = Message::ListPoints { volume, from: 1, limit: 2000 };
        let Ok(Message::Points { points }) = wire.ask(self.now, &ask) else { panic!() };
        self.trust(machine).chain(&volume, &points).unwrap();
        points
    }

    /// Restores a point; `old` is what the destination holds before (in-place).
    pub fn restore(
        &mut self,
        machine: &Machine,
        volume: VolumeId,
        seq: u64,
        old: Option<&Disk>,
    ) -> Result<(Disk, fetch::Progress)> {
        let points = self.points(machine, volume);
        let point = points[seq as usize - 1];
        let checkpoint = points[point.point().checkpoint as usize - 1];
        let mut disk = old.cloned().unwrap_or_default();
        let mode = if old.is_some() { fetch::Mode::InPlace } else { fetch::Mode::Fresh };
        let progress = self.restore_to(machine, volume, [point, checkpoint], mode, &mut disk)?;
        Ok((disk, progress))
    }

    /// Restores a point with its checkpoint; `disk` has what was written, also after an error.
    pub fn restore_to(
        &mut self,
        machine: &Machine,
        volume: VolumeId,
        [point, checkpoint]: [StoredPoint; 2],
        mode: fetch::Mode,
        disk: &mut Disk,
    ) -> Result<fetch::Progress> {
        let trust = Arc::new(self.trust(machine));
        let mut wire = self.hello(machine)?;
        disk.resize(point.point().size);
        let in_place = mode == fetch::Mode::InPlace;
        let local = if in_place { disk.leaves() } else { LeafSet::new(0) };
        let plan = fetch::Plan { point, checkpoint, mode, local, keep_going: false };
        let secrets = &machine.secrets;
        let mut fetch = Fetch::new(plan, trust.clone(), machine.identity.clone())?;
        let mut opener = Opener::new().unwrap();
        let (mut actions, mut todo) = (Vec::new(), VecDeque::new());
        fetch.start(&mut actions)?;
        loop {
            todo.extend(actions.drain(..));
            let event = match todo.pop_front() {
                Some(fetch::Action::Send(message)) => {
                    self.say(&mut wire, message);
                    continue;
                }
                Some(fetch::Action::Open(job)) => {
                    let mut write = |at: u64, bytes: &[u8]| {
                        for (i, b) in bytes.chunks(BLOCK_SIZE).enumerate() {
                            disk.write(at / BLOCK_SIZE as u64 + i as u64, b.to_vec());
                        }
                        Ok::<(), ()>(())
                    };
                    let who = (&*trust, &**secrets, &volume);
                    match job.run(who, &mut opener, &mut write) {
                        Ok(done) => {
                            done.unwrap();
                            fetch::Event::Opened { blocks: job.blocks }
                        }
                        Err(error) => fetch::Event::Broken { job, error },
                    }
                }
                Some(fetch::Action::Zero { start, count }) => {
                    (start..start + count).for_each(|b| {
                        disk.blocks.remove(&b);
                    });
                    continue;
                }
                Some(fetch::Action::ReadLocal { index }) => {
                    let claim = dormouse_sync::leaf::Budget::default().claim(Claim::WHOLE);
                    let data = disk.leaf(index, None, claim);
                    let tags = Box::new(data.hash(secrets, &volume, index).tags);
                    fetch::Event::Local { index, tags }
                }
                Some(fetch::Action::Done) => return Ok(*fetch.progress()),
                None => fetch::Event::Message(self.hear(&mut wire)?),
            };
            fetch.step(event, &mut actions)?;
        }
    }

    pub fn assert_restores(&mut self, machine: &Machine, volume: VolumeId, models: &[Disk]) {
        for (i, model) in models.iter().enumerate() {
            let (disk, _) = self.restore(machine, volume, i as u64 + 1, None).unwrap();
            assert_eq!(disk.size, model.size, "size of point {}", i + 1);
            assert!(disk.blocks == model.blocks, "content of point {}", i + 1);
        }
    }
}

pub fn same(a: &Disk, b: &Disk) -> bool {
    a.size == b.size && a.blocks == b.blocks
}

pub fn unused(_: Hash) {}
