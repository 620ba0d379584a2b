//! Playing a history.
//!
//! Owns: what happens, in which order, and when the machine goes down. Steps of writers also
//! happen inside collections, wherever these let go of all locks. Invariant: what is in the
//! model was acknowledged; what was under way at a crash is looked up afterwards.

mod recovery;
pub mod second;
mod sessions;
pub mod shelf;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_crypt::{SigningKey, hash, record};
use dormouse_format::record::{Header, Kind};
use dormouse_format::vault::{self, Cert, DataKey, Vault};
use dormouse_format::{Hash, KeyId, Seq, VaultId, VolumeId, WriterId};
use dormouse_store::collect::Rules;
use dormouse_store::{Base, Error, Options, Pending, Pins, SignedPoint, VaultStore};

use super::Figures;
use super::judge::{self, said};
use super::model::{Change, Point, Volume, chunk_of};
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
    /// The bucket, if the log lies in one.
    shelf: Option<shelf::Shelf>,
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
            shelf: None,
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
        let (segments, index) = (said("the segments", self.segments(false))?, self.storage.index());
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
