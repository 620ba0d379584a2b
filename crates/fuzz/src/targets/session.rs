//! The server's end of a connection: any messages, in any order, and true ones among them.
//!
//! A model goes along. What the server said is committed must be there, as it was signed,
//! when the store is opened again from the files; and the map of the last checkpoint must be
//! the model's. Refusals are not judged: the model only believes 'yes'.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use dormouse_crypt::invite::Binding;
use dormouse_crypt::{hash, record};
use dormouse_format::geometry::{Place, blocks};
use dormouse_format::message::{Base, Message, Refusal};
use dormouse_format::point::{Point, SignedPoint};
use dormouse_format::record::Kind;
use dormouse_format::vault::{Cert, Distrust};
use dormouse_format::{
    Block, Hash, InstanceId, PublicKey, RecordId, Signature, TimeNs, VaultId, VolumeId, WriterId,
};
use dormouse_store::fuzzing::MapPage;
use dormouse_store::memory::MemDir;
use dormouse_store::{Dir, Options, VaultStore};
use dormouse_sync::server::{After, Client, Refused, Registry, Role, Session};

use crate::Target;
use crate::input::Input;
use crate::targets::format::{fields_of_point, header};
use crate::world::{VOLUME, world};

/// A server's session.
pub const SESSION: Target = Target {
    name: "session",
    what: "a server's session: any messages of any clients; what was acknowledged stays",
    run: |data| {
        run(data);
    },
    seeds,
    len_max: 2048,
};

type Answer<T> = Result<T, Refused>;

/// Two clients of one vault, and a store that can be opened anew.
struct Server {
    dir: MemDir,
    store: Mutex<Arc<VaultStore>>,
    recovered: Mutex<HashMap<PublicKey, Client>>,
}

fn open(dir: &MemDir) -> Arc<VaultStore> {
    let options = Options { segment_size: 16 << 10, index_entries: 16 };
    let segments: Box<dyn Dir> = Box::new(dir.clone());
    let opened = VaultStore::open(segments, Box::new(MemDir::new()), world().vault, options);
    let (store, recovery) = opened.expect("the server's store opens again");
    assert!(recovery.torn.is_empty() && recovery.damaged.is_empty(), "{recovery:?}");
    Arc::new(store)
}

impl Server {
    fn new(dir: MemDir) -> Self {
        let store = Mutex::new(open(&dir));
        Self { dir, store, recovered: Mutex::default() }
    }

    fn reopen(&self) {
        *self.store.lock().unwrap() = open(&self.dir);
    }
}

/// A session of the first client on this store, after its greeting.
pub(crate) fn reader(store: Arc<VaultStore>) -> Session {
    let (store, recovered) = (Mutex::new(store), Mutex::default());
    let server = Server { dir: MemDir::new(), store, recovered };
    let mut session = Session::new(Arc::new(server), binding(key(0, 0)));
    session.handle(1, Message::Hello { instance: InstanceId([1; 16]) }, &mut |_| {});
    session
}

impl Registry for Server {
    fn client(&self, key: &PublicKey) -> Answer<Option<Client>> {
        let writer = world().writers.get(usize::from(key.0[0])).map(|w| w.writer_id());
        let known = writer.map(|writer| Client {
            name: "laptop".into(),
            vault: world().vault,
            writer,
            // A third of the keys are of each role.
            role: Role::ALL[usize::from(key.0[2]) % 3],
            revoked: key.0[1] == 9,
        });
        Ok(known.or_else(|| self.recovered.lock().unwrap().get(key).cloned()))
    }

    fn check_invite(&self, _: &[u8; 32], _: &str, key: &PublicKey, _: TimeNs) -> Answer<Role> {
        match key.0[1] {
            8 => Err(Refused::new(Refusal::InviteUnknown, "unknown")),
            _ => Ok(Role::ALL[usize::from(key.0[2]) % 3]),
        }
    }

    fn use_invite(&self, _: &[u8; 32], key: &PublicKey, c: &Client, _: TimeNs) -> Answer<Client> {
        self.recovered.lock().unwrap().insert(*key, c.clone());
        Ok(c.clone())
    }

    fn add_recovered(&self, key: &PublicKey, c: &Client, _: TimeNs) -> Answer<Client> {
        self.recovered.lock().unwrap().insert(*key, c.clone());
        Ok(c.clone())
    }

    fn vault(&self, id: &VaultId) -> Answer<Option<Arc<VaultStore>>> {
        Ok((*id == world().vault).then(|| self.store.lock().unwrap().clone()))
    }

    fn create_vault(&self, _: &VaultId, _: TimeNs) -> Answer<Arc<VaultStore>> {
        Err(Refused::new(Refusal::Full, "no more vaults"))
    }
}

/// What the volume's points must be.
#[derive(Clone)]
struct Model {
    committed: Vec<SignedPoint>,
    checkpoint: Map,
    head: Map,
}

/// The first page of a map.
#[derive(Clone)]
struct Map {
    page: MapPage,
    /// Whether also its hints must be right: all runs were in the first page. That its tags are
    /// right follows from the root that the server agreed to.
    sure: bool,
}

impl Model {
    fn last(&self) -> Option<&Point> {
        self.committed.last().map(|s| &s.point)
    }

    fn running(&self) -> Hash {
        self.last().map_or(Hash::ZERO, |p| if p.is_checkpoint() { p.root } else { p.deltas })
    }
}

/// A point that was begun on a connection.
struct Begun {
    base: Base,
    size: u64,
    map: Map,
    running: Hash,
}

/// A connection.
struct Peer {
    session: Session,
    /// Which writer signs here.
    writer: usize,
    generation: u64,
    begun: Option<Begun>,
    closed: bool,
}

struct Run {
    server: Arc<Server>,
    model: Model,
    peers: Vec<Peer>,
    now: TimeNs,
}

fn key(client: u8, kind: u8) -> PublicKey {
    let mut key = [0; 32];
    (key[0], key[1]) = (client, kind);
    PublicKey(key)
}

fn binding(client: PublicKey) -> Binding {
    Binding { exporter: [9; 32], client, server: PublicKey([8; 32]) }
}

/// How many points were committed.
pub fn run(data: &[u8]) -> usize {
    let mut input = Input::new(data);
    let server = Arc::new(Server::new(world().empty().snapshot()));
    let empty = Map { page: MapPage::zero(), sure: true };
    let model = Model { committed: Vec::new(), checkpoint: empty.clone(), head: empty };
    let mut run = Run { server, model, peers: Vec::new(), now: 10 };
    run.connect(0, 0);
    for _ in 0..100 {
        if input.is_empty() {
            break;
        }
        run.now = run.now.saturating_add(1);
        run.step(&mut input);
    }
    run.end();
    run.model.committed.len()
}

impl Run {
    fn push(&mut self, session: Session, writer: usize) {
        if self.peers.len() >= 4 {
            self.peers.remove(0).session.end();
        }
        let writer = writer.min(1);
        self.peers.push(Peer { session, writer, generation: 0, begun: None, closed: false });
    }

    fn connect(&mut self, client: u8, kind: u8) {
        let session = Session::new(self.server.clone(), binding(key(client, kind)));
        self.push(session, usize::from(client));
        self.say(Message::Hello { instance: InstanceId([client + 1; 16]) });
    }

    /// Sends a message on the newest connection, as it would come off the wire.
    fn say(&mut self, message: Message) -> Option<Message> {
        let peer = self.peers.last_mut()?;
        if peer.closed {
            return None;
        }
        // What does not decode never comes here.
        let message = Message::decode(&message.encode()[4..]).ok()?;
        let mut answer = None;
        let after = peer.session.handle(self.now, message, &mut |m| {
            assert_eq!(Message::decode(&m.encode()[4..]).as_ref(), Ok(&m), "an answer's codec");
            answer.get_or_insert(m);
        });
        peer.closed = after == After::Close;
        answer
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 24 {
            0 => self.raw(input.blob()),
            1 => {
                let at = input.below(self.peers.len());
                let peer = self.peers.remove(at);
                self.peers.push(peer);
            }
            2 => self.connect(input.u8() % 3, input.u8() % 10),
            3 => self.reopen(),
            4 => self.put(input),
            5 | 6 => self.open_write(input),
            7 | 8 => self.begin(input),
            9..=12 => self.extents(input),
            13..=16 => self.commit(input),
            17 => self.read(input),
            18 => self.have(input),
            19 => self.first(input),
            20 => self.create(input),
            21 => self.distrust(input),
            22 => drop(self.say(Message::Barrier)),
            _ => self.close(),
        }
    }

    fn raw(&mut self, bytes: &[u8]) {
        let Ok(message) = Message::decode(bytes) else { return };
        if matches!(message, Message::OpenWrite { .. } | Message::Begin { .. }) {
            return;
        }
        if matches!(message, Message::Extents { .. } | Message::Commit { .. }) {
            self.forget();
        }
        self.say(message);
    }

    /// The model no longer knows what was begun on the newest connection.
    fn forget(&mut self) {
        if let Some(begun) = self.peers.last_mut().and_then(|p| p.begun.as_mut()) {
            begun.map.sure = false;
        }
    }

    fn close(&mut self) {
        if let Some(mut peer) = self.peers.pop() {
            peer.session.end();
        }
        if self.peers.is_empty() {
            self.connect(0, 0);
        }
    }

    /// All connections are cut, and the server starts anew on the same files.
    fn reopen(&mut self) {
        self.peers.clear();
        self.server.reopen();
        self.connect(0, 0);
    }

    fn put(&mut self, input: &mut Input<'_>) {
        let w = world();
        let record = match input.u8() % 6 {
            0 => w.chunks[input.below(3)].record.clone(),
            1 => w.data_key(input.below(2)),
            2 => {
                let cert = Cert {
                    vault: w.vault,
                    key: w.writers[input.below(2)].public(),
                    trust_group: u32::from(input.u8() % 3),
                    issued: input.number(),
                    name: "one".into(),
                };
                let body = w.authority.sign_body(&cert);
                record::plain(Kind::Cert, WriterId([input.u8() % 2; 16]), &body)
            }
            3 => {
                let mut header = header(input);
                (header.writer, header.key) = (w.writers[0].writer_id(), w.key.id);
                dormouse_crypt::fuzzing::assemble(header, input.blob())
            }
            4 => w.bundle[input.below(w.bundle.len())].clone(),
            _ => {
                let kind = Kind::ALL[input.below(14)];
                record::plain(kind, w.writers[0].writer_id(), input.blob())
            }
        };
        self.say(Message::Put { record });
    }

    fn open_write(&mut self, input: &mut Input<'_>) {
        let volume = if input.u8() < 250 { VOLUME } else { VolumeId([9; 16]) };
        let takeover = input.flag();
        let answer = self.say(Message::OpenWrite { volume, takeover });
        let Some(peer) = self.peers.last_mut() else { return };
        peer.begun = None;
        if let Some(Message::Opened { generation, head, .. }) = answer
            && volume == VOLUME
        {
            assert!(generation > peer.generation, "a generation twice");
            peer.generation = generation;
            assert_eq!(head.map(|h| h.signed), self.model.committed.last().copied(), "head");
        }
    }

    fn begin(&mut self, input: &mut Input<'_>) {
        let base = [Base::Checkpoint, Base::Delta, Base::Head][input.below(3)];
        let size = match input.u8() {
            255 => input.number(),
            n => u64::from(n) * 1000 * 4096 / 16,
        };
        let refused = self.say(Message::Begin { base, size });
        let mut map = match base {
            Base::Checkpoint => self.model.checkpoint.clone(),
            _ => self.model.head.clone(),
        };
        map.page.clear(0, blocks(size), Block::MAX);
        let running = self.model.running();
        let Some(peer) = self.peers.last_mut() else { return };
        peer.begun = refused.is_none().then_some(Begun { base, size, map, running });
    }

    fn extents(&mut self, input: &mut Input<'_>) {
        let w = world();
        let runs = match input.u8() % 4 {
            0 => w.runs(u64::from(input.u8()), input.below(3)),
            1 => {
                let mut out = dormouse_format::extents::ExtentsWriter::new();
                let start = input.number().min(1 << 40);
                out.zero(start, 1 + input.number().min(1 << 40));
                out.take()
            }
            2 => [w.runs(1, 0), w.runs(1, input.below(3))].concat(),
            _ => input.blob().to_vec(),
        };
        let said = self.say(Message::Extents { runs: runs.clone() });
        let Some(begun) = self.peers.last_mut().and_then(|p| p.begun.as_mut()) else { return };
        let map = &mut begun.map;
        map.sure &= said.is_none() && map.page.apply(0, &runs).is_ok();
        map.page.clear(0, blocks(begun.size), Block::MAX);
        begun.running = hash::delta(&begun.running, begun.size, &runs);
    }

    fn commit(&mut self, input: &mut Input<'_>) {
        let alter = input.u8();
        let Some(peer) = self.peers.last_mut() else { return };
        let (writer, generation, begun) = (peer.writer, peer.generation, peer.begun.take());
        let size = begun.as_ref().map_or(4096, |b| b.size);
        let map = begun.as_ref().is_none_or(|b| b.base != Base::Delta);
        let root = begun.as_ref().map_or(Hash::ZERO, |b| world().root(b.size, &b.map.page));
        let mut point = world().point(self.model.last(), size, root);
        point.generation = generation;
        point.writer = world().writers[writer].writer_id();
        if !map {
            let last = self.model.last();
            let base = last.map(|p| (p.checkpoint, p.root)).unwrap_or((1, root));
            (point.checkpoint, point.root) = base;
            point.deltas = begun.as_ref().map_or(Hash::ZERO, |b| b.running);
        }
        let honest = point;
        match alter {
            200 => point = fields_of_point(input),
            201 => point.size ^= 4096,
            202 => point.seq = input.number(),
            203 => point.root = Hash([3; 32]),
            204 => point.deltas = Hash([3; 32]),
            205 => point.writer = world().writers[1 - writer].writer_id(),
            206 => point.generation = input.number(),
            207 => point.prev = Hash([4; 32]),
            _ => {}
        }
        let mut signed = world().writers[writer].sign_point(point);
        if alter == 208 {
            signed.signature = Signature([5; 64]);
        }
        let answer = self.say(Message::Commit { point: signed });
        if let Some(Message::Committed { .. }) = answer {
            let begun = begun.expect("a point was committed that was not begun");
            assert_ne!(alter, 208, "a point was committed whose signature is wrong");
            // Time, grade and epoch are the writer's own affair.
            let (time, grade, epoch) = (point.time, point.grade, point.epoch);
            let honest = Point { time, grade, epoch, ..honest };
            assert!(!begun.map.sure || point == honest, "an altered point was committed");
            self.accepted(signed, begun);
        }
    }

    fn accepted(&mut self, signed: SignedPoint, begun: Begun) {
        self.model.committed.push(signed);
        if begun.base != Base::Delta {
            self.model.checkpoint = begun.map.clone();
        }
        self.model.head = begun.map;
    }

    fn read(&mut self, input: &mut Input<'_>) {
        let w = world();
        let volume = if input.u8() < 240 { VOLUME } else { VolumeId([9; 16]) };
        let seq = u64::from(input.u8() % 8);
        let ids: Vec<RecordId> = w.chunks.iter().map(|c| c.id).collect();
        let (writer, skip) = (w.writers[input.below(2)].writer_id(), input.u8() % 12);
        let (level, index) = (input.u8() % 10, input.number() & ((1 << 44) - 1));
        let message = match input.u8() % 7 {
            0 => Message::ListVolumes,
            1 => Message::ListPoints { volume, from: seq, limit: input.u32() },
            2 => Message::GetSmall { kind: Kind::ALL[input.below(14)], ids: vec![] },
            3 => Message::GetChunks { writer, skip, ids },
            4 => Message::GetNode { volume, seq, place: Place { level: level.clamp(1, 8), index } },
            5 => {
                let (mask, hints) = (input.u64(), input.flag());
                Message::GetLeaves { volume, seq, page: index, mask, hints }
            }
            _ => Message::GetDeltas { volume, seq },
        };
        self.say(message);
    }

    fn have(&mut self, input: &mut Input<'_>) {
        let mut ids: Vec<RecordId> = world().chunks.iter().map(|c| c.id).collect();
        ids.push(RecordId([input.u8(); 16]));
        let check = input.flag();
        self.say(Message::Have { check, ids });
    }

    /// Another first message, of a machine that is not known.
    fn first(&mut self, input: &mut Input<'_>) {
        let w = world();
        let client = key(7, input.u8() % 10);
        let session = Session::new(self.server.clone(), binding(client));
        self.push(session, 0);
        let (binding, name) = (binding(client), ["desk", "", "a/b"][input.below(3)].to_owned());
        let cert = w.bundle[1 + input.below(2)].clone();
        let message = if input.flag() {
            let proof = binding.prove_authority(&w.authority);
            Message::Recover { vault: w.vault, proof, name, cert }
        } else {
            let key = dormouse_crypt::invite::key(&[3; 16]).unwrap();
            let records = input.below(w.bundle.len());
            let mut bundle = w.bundle[..records.min(3)].to_vec();
            bundle.push(cert);
            Message::Enrol {
                proof_key: key.public(),
                proof: binding.prove_invite(&key),
                name,
                bundle,
                writer_proof: binding.prove_writer(&w.writers[input.below(2)]),
            }
        };
        self.say(message);
    }

    fn create(&mut self, input: &mut Input<'_>) {
        let w = world();
        let id = VolumeId([input.u8() % 12; 16]);
        let value = w.volume_named(id, ["disk", "a", "b", "c"][input.below(4)]);
        let mut body = w.writers[input.below(2)].sign_body(&value);
        body.truncate(body.len() - usize::from(input.u8() / 250));
        self.say(Message::CreateVolume { body });
    }

    fn distrust(&mut self, input: &mut Input<'_>) {
        let w = world();
        let one = w.writers[0].writer_id();
        let chunk = w.chunks[input.below(3)].id;
        let value = Distrust { vault: w.vault, chunk, maker: one, key: w.key.id, by: one };
        self.say(Message::Distrust { body: w.writers[input.below(2)].sign_body(&value) });
    }

    /// What was acknowledged is in the files.
    fn end(&mut self) {
        if self.now & 1 == 0 {
            self.peers.drain(..).for_each(|mut p| p.session.end());
        }
        let store = open(&self.server.dir.snapshot());
        let points = store.points(&VOLUME, 0, usize::MAX).expect("points can be read");
        let signed: Vec<SignedPoint> = points.iter().map(|p| p.signed).collect();
        assert_eq!(signed, self.model.committed, "points after opening again");
        let Some(last) = self.model.last() else { return };
        let runs = store.leaves(&VOLUME, last.checkpoint, 0, u64::MAX, true).expect("leaves");
        let mut page = MapPage::zero();
        page.apply(0, &runs).unwrap();
        let expected = &self.model.checkpoint;
        let tags = |page: &MapPage| page.select(0, u64::MAX, false);
        assert_eq!(tags(&page), tags(&expected.page), "the tags of the last checkpoint");
        assert!(!expected.sure || page == expected.page, "the hints of the last checkpoint");
    }
}

/// Honest histories first: the fuzzer alters them.
fn seeds() -> Vec<Vec<u8>> {
    let open = [5, 0, 0];
    let checkpoint = [7, 0, 100, 9, 0, 10, 1, 13, 0];
    let delta = [7, 1, 100, 9, 0, 40, 0, 13, 0];
    let head = [7, 2, 100, 9, 1, 11, 3, 13, 0];
    let mut out = vec![
        [&open[..], &checkpoint].concat(),
        [&open[..], &checkpoint, &delta, &delta, &head].concat(),
        [&open[..], &checkpoint, &[3], &open, &delta, &[3], &open, &head].concat(),
        [&open[..], &checkpoint, &[2, 1, 0], &[5, 0, 1], &delta, &[1, 0], &delta].concat(),
        [&[7, 0, 3][..], &open, &[7, 0, 3, 13, 0, 7, 1, 2, 9, 3, 0, 0, 13, 0]].concat(),
        [&open[..], &[7, 0, 255, 253, 9, 0, 3, 2, 13, 0, 7, 0, 255, 3, 13, 0]].concat(),
        [&open[..], &checkpoint, &[9, 1, 252, 255, 255, 252, 255, 255, 13, 0]].concat(),
    ];
    for alter in 200..209 {
        out.push([&open[..], &checkpoint, &delta[..8], &[alter, 1, 1, 1]].concat());
        out.push([&open[..], &checkpoint[..8], &[alter, 1, 1, 1]].concat());
    }
    for kind in 0..7 {
        out.push([&open[..], &checkpoint, &[17, 0, 1, 0, 0, 1, 0, kind, 255, 255]].concat());
    }
    for kind in 0..6 {
        out.push([&[4, kind][..], &[1; 12]].concat());
    }
    for op in 18..24 {
        out.push([&[op][..], &[0; 6], &[op], &[1; 6], &open, &checkpoint].concat());
    }
    for message in crate::corpus::vectors("message_").into_iter().filter(|v| v.len() < 600) {
        let len = (message.len().saturating_sub(4) as u16).to_le_bytes();
        let body = message.get(4..).unwrap_or_default();
        out.push([&open[..], &checkpoint, &[0], &len, body].concat());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else the model would judge nothing.
    #[test]
    fn honest_histories_are_committed() {
        let committed: Vec<usize> = seeds().iter().take(6).map(|s| run(s)).collect();
        assert_eq!(committed, [1, 4, 3, 2, 0, 2]);
    }
}
