//! Playing a history.
//!
//! Owns: what happens, in which order, and when the machine goes down. Steps of writers also
//! happen inside collections, wherever these let go of all locks. Invariant: what is in the
//! model was acknowledged; what was under way at a crash is looked up afterwards.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_crypt::{SigningKey, hash, record};
use dormouse_format::geometry::top_level;
use dormouse_format::point::{Grade, Point as Signable};
use dormouse_format::record::{Header, Kind};
use dormouse_format::vault::{self, Cert, DataKey, Vault};
use dormouse_format::{ChunkId, Hash, InstanceId, KeyId, Seq, VaultId, VolumeId, WriterId};
use dormouse_store::collect::Rules;
use dormouse_store::{Base, Commit, Error, Options, Pending, Pins, SignedPoint, VaultStore};

use super::Figures;
use super::judge::{self, said};
use super::model::{Change, Map, Point, SIZE, Volume, applied, chunk_of, root, runs};
use crate::random::Lcg;
use crate::registry::Place;
use crate::storage::{Image, Op, Storage, Verdict, Watch};

/// What nothing refers to stays for so long.
const GRACE: u64 = 1000;
const VOLUMES_MAX: usize = 5;

/// Why a step did not come to its end.
enum Stop {
    /// The machine went down.
    Down,
    /// Something is wrong.
    Wrong(String),
}

impl From<String> for Stop {
    fn from(why: String) -> Self {
        Self::Wrong(why)
    }
}

type Step<T = ()> = Result<T, Stop>;

/// Goes down at one operation.
struct CrashAt(Arc<AtomicU64>);

impl Watch for CrashAt {
    fn before(&mut self, op: &Op<'_>, _: &Image) -> Verdict {
        if op.index == self.0.load(Ordering::Relaxed) { Verdict::Crash } else { Verdict::Go }
    }
}

/// A connection that writes a point.
struct Session {
    volume: usize,
    writer: usize,
    generation: u64,
    base: Base,
    changes: Vec<Change>,
    /// Without, it trusts what it knew before.
    pins: Option<Pins>,
    pending: Option<Pending>,
    parts: Vec<(Vec<u8>, Hash)>,
    stage: u8,
    /// Rounds of collection that had begun when it asked 'have'.
    rounds: u64,
}

/// What was under way when the machine went down.
enum UnderWay {
    Nothing,
    Commit { volume: usize, seq: Seq, signed: Box<SignedPoint>, point: Box<Point> },
    Expire { volume: usize, seqs: Vec<Seq>, at: u64 },
    Create(Box<Volume>),
}

/// Everything.
pub struct World {
    random: Lcg,
    trace: bool,
    /// What was played.
    pub figures: Figures,
    authority: SigningKey,
    writers: Vec<SigningKey>,
    vault: VaultId,
    options: Options,
    rules: Rules,
    crash_at: Arc<AtomicU64>,
    storage: Storage,
    store: Option<Arc<VaultStore>>,
    volumes: Vec<Volume>,
    sessions: Vec<Session>,
    under_way: UnderWay,
    clock: u64,
    /// The greatest that the clock ever was.
    latest: u64,
    in_round: bool,
    rounds_begun: u64,
    made: u8,
}

fn key_of(writer: usize) -> KeyId {
    KeyId([100 + writer as u8; 16])
}

impl World {
    /// The world of a seed, on an empty disk.
    pub fn new(seed: u64, trace: bool) -> Self {
        let mut random = Lcg(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed);
        let authority = SigningKey::from_seed([1; 32]).unwrap();
        let writers = [2, 3].map(|i| SigningKey::from_seed([i; 32]).unwrap()).into();
        let vault = hash::vault_id(&authority.public());
        let segment_size = 1500 + random.below(6) * random.below(900);
        let index_entries = 1 + random.below(40) as usize;
        let options = Options { segment_size, index_entries };
        let live_percent_max = [100, 100, 80, 50][random.below(4) as usize];
        let rules = Rules { grace_ns: GRACE, live_percent_max };
        let crash_at = Arc::new(AtomicU64::new(u64::MAX));
        let watch = Box::new(CrashAt(Arc::clone(&crash_at)));
        let storage = Storage::new(Image::default(), watch, random.below(u64::MAX));
        Self {
            random,
            trace,
            figures: Figures::default(),
            authority,
            writers,
            vault,
            options,
            rules,
            crash_at,
            storage,
            store: None,
            volumes: Vec::new(),
            sessions: Vec::new(),
            under_way: UnderWay::Nothing,
            clock: 1_000_000,
            latest: 1_000_000,
            in_round: false,
            rounds_begun: 0,
            made: 0,
        }
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("[{}] {}", self.clock, what());
        }
    }

    fn store(&self) -> Arc<VaultStore> {
        Arc::clone(self.store.as_ref().unwrap())
    }

    fn writer(&self, i: usize) -> WriterId {
        self.writers[i].writer_id()
    }

    /// An error of the store is one only while the machine is up.
    fn went<T>(&self, what: &str, result: Result<T, Error>) -> Step<T> {
        match result {
            Ok(value) => Ok(value),
            Err(_) if self.storage.is_down() => Err(Stop::Down),
            Err(e) => Err(Stop::Wrong(format!("{what}: {e}"))),
        }
    }

    /// Plays it, from the making of the vault to the last judgement.
    pub fn play(&mut self) -> Result<(), String> {
        self.set_up()?;
        let steps = 40 + self.random.below(80);
        for _ in 0..steps {
            self.aim();
            match self.step() {
                Ok(()) => {}
                Err(Stop::Wrong(why)) => return Err(why),
                Err(Stop::Down) => self.recover()?,
            }
        }
        self.crash_at.store(u64::MAX, Ordering::Relaxed);
        // What is only a cache may fail without a word.
        if self.storage.is_down() {
            self.recover()?;
        }
        self.finish()
    }

    fn set_up(&mut self) -> Result<(), String> {
        let (segments, index) = (self.storage.segments(), self.storage.index());
        let made = VaultStore::create(segments, index, self.vault, self.clock, self.options);
        let store = said("making the vault", made)?;
        let authority = self.authority.public();
        let value = Vault { authority, recipient: "age1x".into(), created: 1 };
        let body = self.authority.sign_body(&value);
        let mut bundle = vec![record::plain(Kind::Vault, WriterId::ZERO, &body)];
        for (i, w) in self.writers.iter().enumerate() {
            let (vault, key, writer) = (self.vault, w.public(), w.writer_id());
            let cert = Cert { vault, key, trust_group: 1, issued: 1, name: format!("w{i}") };
            let body = self.authority.sign_body(&cert);
            bundle.push(record::plain(Kind::Cert, WriterId::ZERO, &body));
            let value = DataKey { vault, writer, key: key_of(i), created: 1, wrapped: vec![1] };
            bundle.push(record::plain(Kind::DataKey, writer, &w.sign_body(&value)));
        }
        for part in bundle {
            said("the bundle", store.put(&part, self.clock))?;
        }
        said("a barrier", store.barrier())?;
        self.store = Some(Arc::new(store));
        for _ in 0..2 {
            self.create(None).map_err(|_| "making a volume".to_owned())?;
        }
        Ok(())
    }

    /// Sometimes the machine goes down soon.
    fn aim(&mut self) {
        if self.random.below(24) == 0 {
            let far = [8, 40, 400][self.random.below(3) as usize];
            let at = self.storage.ops() + self.random.below(far);
            self.crash_at.store(at, Ordering::Relaxed);
        }
    }

    fn step(&mut self) -> Step {
        self.clock += self.random.below(60);
        self.latest = self.latest.max(self.clock);
        match self.random.below(40) {
            0..26 => self.session(),
            26..30 => self.expire(),
            30..35 => self.collect(),
            35 => self.fork(),
            36 => self.orphan(),
            37 => {
                self.figures.clock_jumps += 1;
                let far = self.random.below(4 * GRACE);
                let back = self.random.below(2) == 0;
                let to = if back { self.clock.saturating_sub(far) } else { self.clock + far };
                self.tell(|| format!("the clock jumps to {to}"));
                self.clock = to;
                Ok(())
            }
            38 => self.reopen(),
            _ => self.look(),
        }
    }

    fn create(&mut self, origin: Option<(usize, Seq)>) -> Step {
        let store = self.store();
        self.made += 1;
        let id = VolumeId([self.made; 16]);
        let name = format!("v{}", self.made);
        let of = origin.map(|(volume, seq)| {
            let of = &self.volumes[volume];
            (of.id, seq, Arc::clone(&of.points[&seq].map), of.points[&seq].hash, of.tags)
        });
        let tags = of.as_ref().map_or(id, |o| o.4);
        let record = of.as_ref().map(|(volume, seq, _, hash, tags)| vault::Origin {
            tags: *tags,
            volume: *volume,
            seq: *seq,
            hash: *hash,
        });
        let (vault, writer) = (self.vault, self.writer(0));
        let body = self.writers[0].sign_body(&vault::Volume {
            vault,
            id,
            writer,
            created: 1,
            name: name.clone(),
            origin: record,
        });
        self.tell(|| format!("{name} is made, of {origin:?}"));
        let origin = of.map(|(volume, seq, map, ..)| (volume, seq, map));
        let volume = Volume { id, name, tags, origin, points: Default::default() };
        self.under_way = UnderWay::Create(Box::new(volume.clone()));
        self.went("making a volume", store.create_volume(&body, self.clock))?;
        self.under_way = UnderWay::Nothing;
        self.volumes.push(volume);
        Ok(())
    }

    fn fork(&mut self) -> Step {
        if self.volumes.len() >= VOLUMES_MAX {
            return Ok(());
        }
        let volume = self.random.below(self.volumes.len() as u64) as usize;
        let kept: Vec<Seq> = self.volumes[volume].kept().map(|(seq, _)| seq).collect();
        if kept.is_empty() {
            return Ok(());
        }
        let seq = kept[self.random.below(kept.len() as u64) as usize];
        self.figures.forks += 1;
        self.create(Some((volume, seq)))
    }

    /// A chunk that nobody will ever name.
    fn orphan(&mut self) -> Step {
        let seed = 1000 + self.random.below(1000);
        let record = self.chunk(0, seed);
        self.went("an orphan", self.store().put(&record, self.clock))
    }

    fn chunk(&self, writer: usize, seed: u64) -> Vec<u8> {
        let id = chunk_of(seed);
        let body = vec![id.0[0]; 40 + (seed % 50) as usize];
        let mut header = Header {
            kind: Kind::Chunk,
            count: 8,
            body_len: body.len() as u32,
            epoch: 1,
            id,
            writer: self.writer(writer),
            key: key_of(writer),
            nonce: [1; 12],
            body_check: hash::body_check(&body),
            check: [0; 16],
        };
        header.check = hash::header_check(&header.encode()[..96]);
        [&header.encode()[..], &body].concat()
    }

    /// One step of one of at most two writers.
    fn session(&mut self) -> Step {
        let i = self.random.below(2) as usize;
        if i >= self.sessions.len() {
            return self.begin();
        }
        if self.random.below(40) == 0 {
            self.tell(|| "a connection ends".into());
            self.sessions.swap_remove(i);
            return Ok(());
        }
        let mut session = self.sessions.swap_remove(i);
        let ended = match session.stage {
            0 => self.have(&mut session)?,
            1 => self.put(&mut session)?,
            2 => self.extents(&mut session)?,
            _ => self.commit(&mut session)?,
        };
        session.stage += 1;
        if !ended {
            self.sessions.push(session);
        }
        Ok(())
    }

    fn begin(&mut self) -> Step {
        let volume = self.random.below(self.volumes.len() as u64) as usize;
        if self.sessions.iter().any(|s| s.volume == volume) {
            return Ok(());
        }
        let v = &self.volumes[volume];
        let base = match (v.head(), self.random.below(4)) {
            (None, _) if v.origin.is_some() => Base::Head,
            (None, _) => Base::Checkpoint,
            (_, 0) => Base::Checkpoint,
            (_, 1) => Base::Head,
            _ => Base::Delta,
        };
        let id = v.id;
        let writer = self.random.below(2) as usize;
        let instance = InstanceId([1; 16]);
        let store = self.store();
        let opened = store.open_write(&id, self.writer(writer), instance, true, self.clock);
        let generation = self.went("opening a volume", opened)?;
        let pins = (self.random.below(8) > 0).then(|| store.pins());
        let (pending, parts, stage, rounds) = (None, Vec::new(), 0, self.rounds_begun);
        let changes = Change::some(&mut self.random);
        self.tell(|| format!("{id} is opened, {base:?}, {changes:?}"));
        let session = Session {
            volume,
            writer,
            generation,
            base,
            changes,
            pins,
            pending,
            parts,
            stage,
            rounds,
        };
        self.sessions.push(session);
        Ok(())
    }

    fn ids(session: &Session) -> Vec<u64> {
        let ids: BTreeSet<u64> = session.changes.iter().filter_map(Change::chunk).collect();
        ids.into_iter().collect()
    }

    /// Asks, and puts half of what is not there.
    fn have(&mut self, session: &mut Session) -> Step<bool> {
        session.rounds = self.rounds_begun;
        self.ask(session, 2)
    }

    /// Asks again, and puts the rest: with pins what was promised must still be there.
    fn put(&mut self, session: &mut Session) -> Step<bool> {
        if session.pins.is_none() {
            return Ok(false);
        }
        self.ask(session, 1)
    }

    fn ask(&mut self, session: &Session, share: usize) -> Step<bool> {
        let (store, writer) = (self.store(), self.writer(session.writer));
        let seeds = Self::ids(session);
        let ids: Vec<ChunkId> = seeds.iter().map(|seed| chunk_of(*seed)).collect();
        let pins = session.pins.as_ref();
        let have = self.went("have", store.have_pinned(&writer, &ids, false, pins))?;
        let missing = seeds.iter().zip(have).filter(|(_, have)| !have).map(|(seed, _)| *seed);
        for seed in missing.step_by(share).collect::<Vec<_>>() {
            let record = self.chunk(session.writer, seed);
            self.went("put", store.put_pinned(&record, self.clock, pins))?;
        }
        Ok(false)
    }

    fn extents(&mut self, session: &mut Session) -> Step<bool> {
        let store = self.store();
        let volume = &self.volumes[session.volume];
        let begun = store.begin(&volume.id, session.generation, session.base, SIZE);
        let mut pending = self.went("begin", begun)?;
        let cut = self.random.below(session.changes.len() as u64 + 1) as usize;
        let (first, second) = session.changes.split_at(cut);
        let mut running = volume.head().map_or(Hash::ZERO, |(_, p)| p.running);
        for part in [first, second] {
            let bytes = runs(part);
            running = hash::delta(&running, SIZE, &bytes);
            self.went("extents", store.extents(&mut pending, &bytes, self.clock))?;
            session.parts.push((bytes, running));
        }
        session.pending = Some(pending);
        // A try that is given up leaves parts behind.
        if self.random.below(10) == 0 {
            session.parts.clear();
            session.pending = None;
            session.stage -= 1;
        }
        Ok(false)
    }

    fn commit(&mut self, session: &mut Session) -> Step<bool> {
        let store = self.store();
        let Some(pending) = session.pending.take() else { return Ok(true) };
        let volume = &self.volumes[session.volume];
        let head = volume.head();
        let seq = head.map_or(1, |(seq, _)| seq + 1);
        let empty = Arc::new(Map::new());
        let origin = volume.origin.as_ref().map(|o| &o.2);
        let before = match (session.base, head) {
            (_, None) => origin.unwrap_or(&empty),
            (Base::Checkpoint, Some((_, p))) => &volume.points[&p.base].map,
            (_, Some((_, p))) => &p.map,
        };
        let map = Arc::new(applied(before, &session.changes));
        let is_delta = session.base == Base::Delta;
        let own = root(&volume.id, &map);
        let of = head.filter(|_| is_delta).map(|(_, p)| (p.base, p.root));
        let (base, root) = of.unwrap_or((seq, own));
        let parts = if is_delta { std::mem::take(&mut session.parts) } else { Vec::new() };
        let running = parts.last().map_or(root, |(_, running)| *running);
        let prev = head.map_or(Hash::ZERO, |(_, p)| p.hash);
        let signed = self.writers[session.writer].sign_point(Signable {
            vault: self.vault,
            volume: volume.id,
            writer: self.writer(session.writer),
            seq,
            generation: session.generation,
            time: seq,
            size: SIZE,
            grade: Grade::Settled,
            stale: false,
            checkpoint: base,
            epoch: 1,
            prev,
            root,
            deltas: if is_delta { running } else { Hash::ZERO },
        });
        let hash = hash::point(&signed.point.encode());
        let point = Point { map, base, root, running, hash, parts, expired: None };
        debug_assert_eq!(top_level(SIZE), 2);
        let (at, name) = (session.volume, volume.name.clone());
        self.under_way = UnderWay::Commit {
            volume: at,
            seq,
            signed: Box::new(signed),
            point: Box::new(point.clone()),
        };
        let done = self.went("commit", store.commit(pending, &signed, self.clock))?;
        self.under_way = UnderWay::Nothing;
        match done {
            Commit::Done(_) => {
                self.tell(|| format!("{name}@{seq} is there"));
                self.figures.points += 1;
                self.figures.over_rounds += u64::from(session.rounds < self.rounds_begun);
                self.volumes[at].points.insert(seq, point);
                if let Some(pins) = &session.pins {
                    pins.release();
                }
            }
            Commit::Missing(ids) => self.missing(session, &name, seq, &ids)?,
        }
        Ok(true)
    }

    /// Only who asked without a promise may be refused, and for what really is not there.
    fn missing(&mut self, session: &Session, name: &str, seq: Seq, ids: &[ChunkId]) -> Step {
        self.tell(|| format!("{name}@{seq} is refused: {ids:?}"));
        if session.pins.is_some() {
            let why = format!("{name}@{seq} lacks {} chunks that were promised", ids.len());
            return Err(Stop::Wrong(why));
        }
        self.figures.refused += 1;
        let named: BTreeSet<ChunkId> = Self::ids(session).into_iter().map(chunk_of).collect();
        let store = self.store();
        let have = store.have(&self.writer(session.writer), ids, true);
        let have = self.went("have", have)?;
        if ids.is_empty() || have.iter().any(|h| *h) || ids.iter().any(|id| !named.contains(id)) {
            return Err(Stop::Wrong(format!("{name}@{seq} is refused for the wrong chunks")));
        }
        Ok(())
    }

    fn expire(&mut self) -> Step {
        let volume = self.random.below(self.volumes.len() as u64) as usize;
        let id = self.volumes[volume].id;
        let empty_fork = |v: &&Volume| v.points.is_empty();
        let origins = self.volumes.iter().filter(empty_fork).filter_map(|v| v.origin.as_ref());
        let forked: BTreeSet<Seq> = origins.filter(|o| o.0 == id).map(|o| o.1).collect();
        let v = &self.volumes[volume];
        let seqs = v.expirable(&mut self.random, &forked);
        let ranges: Vec<_> = seqs.iter().map(|seq| *seq..=*seq).collect();
        self.tell(|| format!("volume {} loses {seqs:?}", volume + 1));
        let at = self.clock;
        self.under_way = UnderWay::Expire { volume, seqs: seqs.clone(), at };
        let done = self.went("expire", self.store().expire(&id, &ranges, at))?;
        self.under_way = UnderWay::Nothing;
        if done != seqs.len() as u64 {
            return Err(Stop::Wrong(format!("{done} of {} points expired", seqs.len())));
        }
        self.gone(volume, &seqs, at);
        Ok(())
    }

    fn gone(&mut self, volume: usize, seqs: &[Seq], at: u64) {
        self.figures.expired += seqs.len() as u64;
        for seq in seqs {
            if let Some(point) = self.volumes[volume].points.get_mut(seq) {
                point.expired = Some(at);
            }
        }
    }

    /// A round, with steps of writers in between.
    fn collect(&mut self) -> Step {
        self.tell(|| "a round begins".into());
        self.in_round = true;
        self.rounds_begun += 1;
        let (store, rules) = (self.store(), self.rules);
        let (now, stop) = (self.clock, self.random.below(20) == 0);
        let mut inside = Ok(());
        let done = store.collect(now, &rules, &mut |_| {
            if inside.is_ok() && self.random.below(4) == 0 {
                inside = match self.random.below(12) {
                    0 => self.expire(),
                    1 => self.fork(),
                    2 => self.look(),
                    _ => self.session(),
                };
            }
            inside.is_ok() && !(stop && self.random.below(10) == 0)
        });
        inside?;
        if let Err(Error::Stopped) = done {
            self.in_round = false;
            return Ok(());
        }
        let round = self.went("collect", done)?;
        self.tell(|| format!("a round ends: {round:?}"));
        self.in_round = false;
        self.figures.rounds += 1;
        self.figures.retired += round.retired;
        if !round.damaged.is_empty() {
            return Err(Stop::Wrong(format!("a round finds damage: {:?}", round.damaged)));
        }
        self.look()
    }

    /// One point of each volume.
    fn look(&mut self) -> Step {
        let store = self.store();
        for volume in &self.volumes {
            let kept: Vec<Seq> = volume.kept().map(|(seq, _)| seq).collect();
            if kept.is_empty() {
                continue;
            }
            let seq = kept[self.random.below(kept.len() as u64) as usize];
            let judged = judge::whole(&store, volume, seq, &self.writers[0].writer_id());
            if judged.is_err() && self.storage.is_down() {
                return Err(Stop::Down);
            }
            judged?;
        }
        Ok(())
    }

    fn reopen(&mut self) -> Step {
        self.tell(|| "the store is opened again".into());
        let store = self.store();
        self.sessions.clear();
        self.went("closing", store.close())?;
        drop(store);
        self.store = None;
        self.storage = self.storage.reopened();
        self.open().map_err(|e| e.unwrap_or(Stop::Down))
    }

    /// `None`: the machine went down again.
    fn open(&mut self) -> Result<(), Option<Stop>> {
        let (segments, index) = (self.storage.segments(), self.storage.index());
        match VaultStore::open(segments, index, self.vault, self.options) {
            Ok((store, recovery)) => {
                if !recovery.damaged.is_empty() {
                    let why = format!("damage without cause: {:?}", recovery.damaged);
                    return Err(Some(Stop::Wrong(why)));
                }
                self.store = Some(Arc::new(store));
                Ok(())
            }
            Err(_) if self.storage.is_down() => Err(None),
            Err(e) => Err(Some(Stop::Wrong(format!("the store does not open: {e}")))),
        }
    }

    /// The machine comes back.
    fn recover(&mut self) -> Result<(), String> {
        self.figures.crashes += 1;
        self.figures.crashes_in_rounds += u64::from(self.in_round);
        self.tell(|| "the machine goes down".into());
        self.in_round = false;
        self.sessions.clear();
        self.store = None;
        // Recovery may be cut short as well.
        let again = self.random.below(4) == 0;
        loop {
            self.storage = self.storage.restart();
            let far = self.random.below(30);
            let at = if again { self.storage.ops() + far } else { u64::MAX };
            self.crash_at.store(at, Ordering::Relaxed);
            if self.random.below(10) == 0 {
                self.storage.alter(|image| image.clear(crate::storage::INDEX));
            }
            let opened = self.open();
            self.crash_at.store(u64::MAX, Ordering::Relaxed);
            match opened {
                Ok(()) => break,
                Err(None) => self.tell(|| "and again".into()),
                Err(Some(Stop::Wrong(why))) => return Err(why),
                Err(Some(Stop::Down)) => {}
            }
            if again {
                self.storage = self.storage.restart();
                match self.open() {
                    Err(Some(Stop::Wrong(why))) => return Err(why),
                    _ => break,
                }
            }
        }
        self.learn()?;
        let store = self.store();
        for volume in &self.volumes {
            judge::listed(&store, volume)?;
        }
        self.look().map_err(|stop| match stop {
            Stop::Wrong(why) => format!("after a crash: {why}"),
            Stop::Down => "down without a crash".into(),
        })
    }

    /// What was under way may have been done, or not.
    fn learn(&mut self) -> Result<(), String> {
        let store = self.store();
        match std::mem::replace(&mut self.under_way, UnderWay::Nothing) {
            UnderWay::Nothing => {}
            UnderWay::Commit { volume, seq, signed, point } => {
                let head = said("head", store.head(&self.volumes[volume].id))?;
                if head.is_some_and(|h| h.signed == *signed) {
                    self.figures.points += 1;
                    self.volumes[volume].points.insert(seq, *point);
                }
            }
            UnderWay::Expire { volume, seqs, at } => {
                let id = self.volumes[volume].id;
                let there = seqs.first().map(|seq| store.point(&id, *seq).is_ok());
                if there == Some(false) {
                    self.gone(volume, &seqs, at);
                }
            }
            UnderWay::Create(volume) => {
                let all = store.volumes();
                if all.iter().any(|(value, ..)| value.id == volume.id) {
                    self.volumes.push(*volume);
                }
            }
        }
        Ok(())
    }

    /// All is quiet, the grace passes, and after two rounds nothing is left that nobody needs.
    fn finish(&mut self) -> Result<(), String> {
        self.sessions.clear();
        let rules = Rules { live_percent_max: 100, ..self.rules };
        let store = self.store();
        // Whatever the clock said: from now on it goes on from its greatest.
        self.clock = self.latest.max(self.clock) + 10 * GRACE;
        for wait in [0, 2 * GRACE, 1] {
            self.clock += wait;
            let round = said("the last rounds", store.collect(self.clock, &rules, &mut |_| true))?;
            self.tell(|| format!("{round:?}"));
            self.figures.retired += round.retired;
        }
        judge::spare(&self.storage.image(), &self.volumes)?;
        for pass in 0..2 {
            let store = self.store();
            for volume in &self.volumes {
                judge::listed(&store, volume)?;
                for (seq, _) in volume.kept() {
                    judge::whole(&store, volume, seq, &self.writer(0))?;
                }
            }
            if pass == 0 {
                said("closing", store.close())?;
                drop(store);
                self.store = None;
                self.storage = self.storage.restart();
                if let Err(Some(Stop::Wrong(why))) = self.open() {
                    return Err(why);
                }
            }
        }
        judge::clean(&self.storage, self.vault)
    }
}
