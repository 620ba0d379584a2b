//! A history whose log lies in a bucket.
//!
//! Owns: the server's place there, and what befalls it: answers that are lost, puts that are done
//! late, an outage, the loss of the machine, another server that takes over. Rules: what was
//! acknowledged comes back from the bucket alone (`remote`), or from the bucket and this
//! machine's disk (`local`); who was taken over acknowledges nothing more; no object is made
//! twice under one name with another content; a storage that does not exclude is refused.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dormouse_bucket::{Bucket, BucketDir, Durable, Error, Hand, Objects, Settings, Who};
use dormouse_format::{InstanceId, Seq, VaultId, VolumeId};
use dormouse_store::{Dir, VaultStore, scrub};

use super::{Stop, World};
use crate::histories::judge::{self, said};
use crate::objects::{Bucketful, Counts};
use crate::random::Lcg;
use crate::registry::Place;
use crate::storage::{Image, Storage};

/// What was done to buckets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named after what it counts")]
pub struct Shelved {
    pub histories: u64,
    pub objects: Counts,
    /// Times that all but the bucket was lost.
    pub lost: u64,
    /// Servers that were taken over while they ran.
    pub fenced: u64,
    /// Careless storages that were refused.
    pub refused: u64,
    /// Of all that is left in the buckets.
    pub sum: u64,
}

impl Shelved {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.histories += other.histories;
        self.objects.made += other.objects.made;
        self.objects.taken += other.objects.taken;
        self.objects.unanswered += other.objects.unanswered;
        self.objects.late += other.objects.late;
        self.lost += other.lost;
        self.fenced += other.fenced;
        self.refused += other.refused;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// A directory of the real disk, for the little that a bucket's server keeps there. Gone when
/// dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dormouse-sim-{}-{number}", std::process::id());
        // Where there is memory for it: a disk's syncs only take time here.
        let memory = PathBuf::from("/dev/shm");
        let dir = if memory.is_dir() { memory } else { std::env::temp_dir() };
        Self(dir.join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server's place in a bucket.
pub(super) struct Shelf {
    objects: Bucketful,
    durable: Durable,
    cache_max: u64,
    scratch: Scratch,
    /// Which machine it is.
    machine: u64,
    starts: u64,
    bucket: Option<Bucket>,
    hand: Option<Hand>,
    done: Shelved,
}

impl Shelf {
    fn new(seed: u64, durable: Durable, random: &mut Lcg) -> Self {
        let objects = Bucketful::new(seed, 20 + random.below(150));
        let cache_max = [8 << 10, 1 << 20][random.below(2) as usize];
        let (bucket, hand) = (None, None);
        let (scratch, done) = (Scratch::new(), Shelved { histories: 1, ..Shelved::default() });
        let (machine, starts) = (0, 0);
        Self { objects, durable, cache_max, scratch, machine, starts, bucket, hand, done }
    }

    fn bucket(&mut self, takeover: bool) -> Result<Bucket, Error> {
        let settings = Settings {
            durable: self.durable,
            cache_max: self.cache_max,
            put_every: Duration::ZERO,
            parts_max: 2,
            threads: false,
            ..Settings::default()
        };
        let who = Who { holder: format!("m{}", self.machine), host: "sim".into(), takeover };
        let objects: Arc<dyn Objects> = Arc::new(self.objects.clone());
        loop {
            self.starts += 1;
            let (nonce, tell) = (format!("n{}", self.starts), Arc::new(|_: &str| {}));
            let dir = self.scratch.0.clone();
            match Bucket::open(objects.clone(), &who, settings, &dir, &nonce, tell) {
                // As a service manager does: again, until it starts.
                Err(Error::Away { .. }) => {}
                done => return done,
            }
        }
    }

    /// The segments of a vault, opened anew.
    pub(super) fn open(
        &mut self,
        storage: &Storage,
        vault: VaultId,
        takeover: bool,
    ) -> Result<Box<dyn Dir>, Error> {
        // The server before has ended, or its machine was lost.
        self.bucket = None;
        let bucket = self.bucket(takeover)?;
        let dir: BucketDir = bucket.segments(vault, Arc::from(storage.segments()))?;
        self.hand = Some(dir.hand());
        self.bucket = Some(bucket);
        Ok(Box::new(dir))
    }

    /// A few things that threads would do.
    fn work(&self, random: &mut Lcg) -> Result<(), String> {
        for _ in 0..random.below(6) {
            match self.hand.as_ref().map(Hand::work) {
                None | Some(Ok(false)) => break,
                Some(Ok(true) | Err(Error::Away { .. } | Error::Local { .. })) => {}
                Some(Err(e)) => return Err(format!("a put fails: {e}")),
            }
        }
        if random.below(3) == 0 {
            self.objects.land(random);
        }
        self.objects.broken().map_or(Ok(()), Err)
    }

    /// All is put.
    fn drain(&self) -> Result<(), String> {
        for _ in 0..10_000 {
            match self.hand.as_ref().map_or(Ok(false), Hand::work) {
                Ok(false) => return Ok(()),
                Ok(true) | Err(Error::Away { .. }) => {}
                Err(e) => return Err(format!("a put fails: {e}")),
            }
        }
        Err("putting comes to no end".into())
    }
}

/// Plays a history whose log lies in a bucket; what is wrong, if anything is.
pub fn play(seed: u64, trace: bool) -> (Shelved, Result<(), String>) {
    let mut world = World::new(seed, trace);
    let mut random = Lcg(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xb0c5);
    let durable = if seed.is_multiple_of(2) { Durable::Local } else { Durable::Remote };
    world.shelf = Some(Shelf::new(seed, durable, &mut random));
    let played = world.play_shelved(&mut random);
    let mut done = world.shelf.as_ref().map(|s| s.done).unwrap_or_default();
    if let Some(shelf) = &world.shelf {
        (done.objects, done.sum) = (shelf.objects.counts(), shelf.objects.sum());
    }
    (done, played)
}

impl World {
    fn shelf(&mut self) -> &mut Shelf {
        self.shelf.as_mut().unwrap()
    }

    fn play_shelved(&mut self, random: &mut Lcg) -> Result<(), String> {
        let shelf = self.shelf();
        while let Err(e) = dormouse_bucket::create(&shelf.objects, "a-store") {
            if !e.may_pass() {
                return Err(format!("making the store: {e}"));
            }
        }
        shelf.objects.careless(true);
        match shelf.bucket(false) {
            Err(Error::NotAtomic { .. }) => shelf.done.refused += 1,
            other => return Err(format!("a careless storage: {other:?}")),
        }
        shelf.objects.careless(false);
        shelf.objects.stays(random.below(8) == 0);
        self.set_up()?;
        self.shelf().drain()?;
        for _ in 0..40 + random.below(60) {
            self.aim();
            match self.step() {
                Ok(()) => {}
                Err(Stop::Wrong(why)) => return Err(why),
                Err(Stop::Down) => self.recover()?,
            }
            if self.storage.is_down() {
                self.recover()?;
            }
            self.shelf().work(random)?;
            match random.below(40) {
                0 | 1 => self.lose(random, false)?,
                2 => self.lose(random, true)?,
                3 => self.shelf().objects.go_away(random.below(20)),
                _ => {}
            }
        }
        self.crash_at.store(u64::MAX, Ordering::Relaxed);
        if self.storage.is_down() {
            self.recover()?;
        }
        self.shelf().objects.fail(0);
        self.shelf().drain()?;
        self.lose(random, false)?;
        self.all_is_there()
    }

    /// The machine is gone with all that it had, or with `running` another server takes over while
    /// it goes on. Under `local` what was not put is lost with it, from some moment on.
    fn lose(&mut self, random: &mut Lcg, running: bool) -> Result<(), String> {
        // An operation that crashes the machine here is another story.
        self.crash_at.store(u64::MAX, Ordering::Relaxed);
        let partly = self.shelf().durable == Durable::Local && random.below(2) == 0;
        if !partly {
            self.shelf().drain()?;
        }
        self.sessions.clear();
        let old = self.store.take().filter(|_| running);
        let hand = self.shelf().hand.take();
        let bucket = self.shelf().bucket.take().filter(|_| running);
        self.tell(|| format!("the machine is lost; running: {running}"));
        let seed = random.below(u64::MAX);
        let watch = Box::new(super::CrashAt(Arc::clone(&self.crash_at)));
        let storage =
            std::mem::replace(&mut self.storage, Storage::new(Image::default(), watch, seed));
        // What is left of it lives on until the new one has begun.
        let shelf = self.shelf();
        let scratch = std::mem::replace(&mut shelf.scratch, Scratch::new());
        (shelf.machine, shelf.done.lost) = (shelf.machine + 1, shelf.done.lost + 1);
        self.open_as(true).map_err(|stop| match stop {
            Some(Stop::Wrong(why)) => why,
            _ => "down without a crash".into(),
        })?;
        if let (Some(old), Some(hand)) = (&old, &hand) {
            self.shelf().done.fenced += 1;
            self.is_fenced(old, hand)?;
        }
        drop((old, bucket, storage, scratch));
        if partly {
            self.goes_back()?;
        }
        let store = self.store();
        for volume in &self.volumes {
            judge::listed(&store, volume).map_err(|why| format!("after a loss: {why}"))?;
        }
        self.look().map_err(|stop| match stop {
            Stop::Wrong(why) => format!("after a loss: {why}"),
            Stop::Down => "down without a crash".into(),
        })
    }

    /// What the bucket has is an earlier moment of the history.
    fn goes_back(&mut self) -> Result<(), String> {
        let store = self.store();
        let there: Vec<VolumeId> = store.volumes().into_iter().map(|(v, ..)| v.id).collect();
        self.volumes.retain(|volume| there.contains(&volume.id));
        for volume in &mut self.volumes {
            let points = said("points after a loss", store.points(&volume.id, 0, 10_000))?;
            let seqs: Vec<Seq> = points.iter().map(|p| p.point().seq).collect();
            let newest = seqs.last().copied().unwrap_or(0);
            volume.points.retain(|seq, _| *seq <= newest);
            for (seq, point) in &mut volume.points {
                // What was said to have expired is there again, if nobody heard of it.
                point.expired = point.expired.filter(|_| !seqs.contains(seq));
            }
        }
        let (volumes, writer) = (&self.volumes, self.writer(0));
        volumes.iter().try_for_each(|volume| {
            volume.kept().try_for_each(|(seq, _)| judge::whole(&store, volume, seq, &writer))
        })
    }

    /// A server that was taken over acknowledges nothing that has to be in the bucket, and puts
    /// nothing there.
    fn is_fenced(&mut self, old: &VaultStore, hand: &Hand) -> Result<(), String> {
        let remote = self.shelf().durable == Durable::Remote;
        let (id, writer) = (self.volumes[0].id, self.writer(0));
        let opened = old.open_write(&id, writer, InstanceId([9; 16]), true, self.clock);
        let put = old.put(&self.chunk(0, 9000), self.clock).and_then(|()| old.barrier());
        if remote && (opened.is_ok() || put.is_ok()) {
            return Err("two servers commit to one volume".into());
        }
        for _ in 0..1000 {
            match hand.work() {
                Ok(true) | Err(Error::Away { .. }) => {}
                // It knows now, or its machine went down before.
                Err(Error::Lost { .. } | Error::Stopping | Error::Local { .. }) => return Ok(()),
                Ok(false) if opened.is_err() && put.is_err() => return Ok(()),
                other => return Err(format!("a server that was taken over goes on: {other:?}")),
            }
        }
        Err("a server that was taken over puts for ever".into())
    }

    /// Everything, from the bucket alone.
    fn all_is_there(&mut self) -> Result<(), String> {
        let store = self.store();
        for volume in &self.volumes {
            judge::listed(&store, volume)?;
            for (seq, _) in volume.kept() {
                judge::whole(&store, volume, seq, &self.writer(0))?;
            }
        }
        said("closing", store.close())?;
        drop(store);
        self.store = None;
        let (storage, vault) = (self.storage.reopened(), self.vault);
        self.storage = storage;
        let opened = self.shelf.as_mut().map(|shelf| shelf.open(&self.storage, vault, false));
        let dir = said("opening the bucket", opened.ok_or("no bucket")?)?;
        let mut first = None;
        let done = scrub::scrub(&*dir, vault, false, &mut |finding| {
            first.get_or_insert(format!("scrub: {finding:?}"));
        });
        said("scrub", done)?;
        first.or_else(|| self.shelf().objects.broken()).map_or(Ok(()), Err)
    }
}
