//! A second copy of a history's log, under faults.
//!
//! The source goes on while it is followed: its steps, rounds and crashes fall between the
//! operations of the copy's disk, which goes down at any of them. Rules: a copy opens whenever it
//! was equal once, and each point that it lists is whole; in the end it is equal byte for byte;
//! healing from it brings the very bytes back; no record that verifies is ever hidden by healing,
//! also from a copy that has gone on by itself.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use dormouse_format::segment;
use dormouse_store::replica::{self, Healing};
use dormouse_store::{Error, VaultStore};

use super::World;
use crate::histories::judge::{self, said};
use crate::random::Lcg;
use crate::registry::Place;
use crate::storage::{Image, Op, SEGMENTS, Storage, Verdict, Watch};

/// What was done to second copies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named after what it counts")]
pub struct Copied {
    pub histories: u64,
    pub follows: u64,
    /// Follows that ended early, and were gone on with.
    pub interrupted: u64,
    pub opened: u64,
    /// Segments that were healed.
    pub healed: u64,
    /// Segments that an older or another copy could not heal, and named.
    pub left: u64,
}

impl Copied {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.histories += other.histories;
        self.follows += other.follows;
        self.interrupted += other.interrupted;
        self.opened += other.opened;
        self.healed += other.healed;
        self.left += other.left;
    }
}

/// What happens at the source between two operations of the copy's disk.
struct Meanwhile {
    world: Arc<Mutex<World>>,
    random: Lcg,
    moves: bool,
    crash_at: u64,
    wrong: Option<String>,
}

struct Between(Arc<Mutex<Meanwhile>>);

impl Watch for Between {
    fn before(&mut self, op: &Op<'_>, _: &Image) -> Verdict {
        let mut now = self.0.lock().unwrap();
        if op.index == now.crash_at {
            return Verdict::Crash;
        }
        if now.moves && now.wrong.is_none() && now.random.below(4) == 0 {
            let done = now.world.lock().unwrap().go_on();
            now.wrong = done.err();
        }
        Verdict::Go
    }
}

impl World {
    /// A step, and the machine's return if it went down.
    fn go_on(&mut self) -> Result<(), String> {
        self.aim();
        match self.step() {
            Err(super::Stop::Wrong(why)) => Err(why),
            Err(super::Stop::Down) => self.recover(),
            Ok(()) => Ok(()),
        }
    }

    /// No crash is near, and the machine is up.
    fn calm(&mut self) -> Result<(), String> {
        self.crash_at.store(u64::MAX, Ordering::Relaxed);
        if self.storage.is_down() { self.recover() } else { Ok(()) }
    }
}

/// A history and its second copy.
struct Pair {
    world: Arc<Mutex<World>>,
    meanwhile: Arc<Mutex<Meanwhile>>,
    target: Storage,
    /// A copy of an earlier time.
    older: Option<Image>,
    random: Lcg,
    copied: Copied,
}

/// Plays a history that is followed; what is wrong, if anything is.
pub fn play(seed: u64, trace: bool) -> (Copied, Result<(), String>) {
    let world = Arc::new(Mutex::new(World::new(seed, trace)));
    let mut random = Lcg(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xc0b1);
    let meanwhile = Arc::new(Mutex::new(Meanwhile {
        world: Arc::clone(&world),
        random: Lcg(random.below(u64::MAX)),
        moves: false,
        crash_at: u64::MAX,
        wrong: None,
    }));
    let watch = Box::new(Between(Arc::clone(&meanwhile)));
    let target = Storage::new(Image::default(), watch, random.below(u64::MAX));
    let copied = Copied { histories: 1, ..Copied::default() };
    let mut pair = Pair { world, meanwhile, target, older: None, random, copied };
    let done = pair.play();
    (pair.copied, done)
}

/// The image of a disk that is at rest, as a disk of its own.
fn disk(image: Image) -> Storage {
    Storage::new(image, Box::new(()), 1)
}

impl Pair {
    fn play(&mut self) -> Result<(), String> {
        self.world.lock().unwrap().set_up()?;
        let follows = 4 + self.random.below(6);
        for _ in 0..follows {
            for _ in 0..self.random.below(20) {
                self.world.lock().unwrap().go_on()?;
            }
            self.world.lock().unwrap().calm()?;
            let crash = self.random.below(3) == 0;
            let whole = self.follow(true, crash)?;
            if whole || self.older.is_some() {
                self.opens()?;
            }
            if whole && self.random.below(2) == 0 {
                self.older = Some(self.target.image());
            }
        }
        self.finish()
    }

    /// Brings the copy up to date; false if a crash on either side ended it early.
    fn follow(&mut self, moves: bool, crash: bool) -> Result<bool, String> {
        let (source, vault) = {
            let world = self.world.lock().unwrap();
            (world.storage.clone(), world.vault)
        };
        let far = [6, 40, 200][self.random.below(3) as usize];
        let at = if crash { self.target.ops() + self.random.below(far) } else { u64::MAX };
        let set = |moves, at| {
            let mut now = self.meanwhile.lock().unwrap();
            (now.moves, now.crash_at) = (moves, at);
            now.wrong.take()
        };
        set(moves, at);
        let done = replica::follow(&*source.segments(), &*self.target.segments(), &vault);
        let wrong = set(false, u64::MAX);
        self.copied.follows += 1;
        if let Some(why) = wrong {
            return Err(why);
        }
        let (ours, theirs) = (self.target.is_down(), source.is_down());
        if ours {
            self.target = self.target.restart();
        }
        self.world.lock().unwrap().calm()?;
        match done {
            Ok(followed) if followed.damaged.is_empty() => Ok(true),
            Ok(followed) => Err(format!("damage is copied: {:?}", followed.damaged)),
            Err(_) if ours || theirs => {
                self.copied.interrupted += 1;
                Ok(false)
            }
            Err(e) => Err(format!("the copy does not follow: {e}")),
        }
    }

    /// The copy as it is now, promoted: it opens, and what it lists is whole.
    fn opens(&mut self) -> Result<(), String> {
        let world = self.world.lock().unwrap();
        let image = self.target.image().crashed(&mut self.random);
        let storage = disk(image);
        said("promoting", replica::settle(&*storage.segments(), &world.vault))?;
        let opened =
            VaultStore::open(storage.segments(), storage.index(), world.vault, world.options);
        let (store, recovery) = said("the promoted copy does not open", opened)?;
        if !recovery.damaged.is_empty() {
            return Err(format!("the promoted copy is damaged: {:?}", recovery.damaged));
        }
        self.copied.opened += 1;
        for volume in &world.volumes {
            let points = match store.points(&volume.id, 0, 10_000) {
                Err(Error::NotFound { .. }) => continue,
                points => said("points of the copy", points)?,
            };
            for point in points {
                let seq = point.point().seq;
                if !volume.points.contains_key(&seq) {
                    return Err(format!("the copy has a point {seq} that nobody made"));
                }
                if self.random.below(3) == 0 {
                    judge::whole(&store, volume, seq, &world.writer(0))?;
                }
            }
        }
        Ok(())
    }

    /// All is quiet: the copy becomes equal, is promoted, and heals.
    fn finish(&mut self) -> Result<(), String> {
        if !self.follow(false, false)? {
            return Err("nothing fails, and the copy does not follow".into());
        }
        let (clean, copy) = (self.world.lock().unwrap().storage.image(), self.target.image());
        same(&clean, &copy)?;
        self.opens()?;
        {
            let world = self.world.lock().unwrap();
            let storage = disk(copy.settled(true));
            let opened =
                VaultStore::open(storage.segments(), storage.index(), world.vault, world.options);
            let (store, _) = said("the promoted copy does not open", opened)?;
            for volume in &world.volumes {
                judge::listed(&store, volume)?;
                for (seq, _) in volume.kept() {
                    judge::whole(&store, volume, seq, &world.writer(0))?;
                }
            }
        }
        let (healed, healing) = self.heals(&clean, copy.clone())?;
        if !healing.left.is_empty() {
            return Err(format!("an equal copy does not heal {:?}", healing.left));
        }
        same(&healed, &clean)?;
        let older = self.older.take().unwrap_or(copy);
        self.heals(&clean, older.clone())?;
        let other = self.gone_on(older)?;
        for _ in 0..3 {
            self.heals(&clean, other.clone())?;
        }
        Ok(())
    }

    /// The copy was promoted by mistake, and has gone on by itself.
    fn gone_on(&self, copy: Image) -> Result<Image, String> {
        let world = self.world.lock().unwrap();
        let storage = disk(copy.settled(true));
        let opened =
            VaultStore::open(storage.segments(), storage.index(), world.vault, world.options);
        let (store, _) = said("the promoted copy does not open", opened)?;
        for seed in 5000..5004 {
            said("the promoted copy goes on", store.put(&world.chunk(0, seed), world.clock))?;
        }
        said("the promoted copy goes on", store.barrier())?;
        Ok(storage.image())
    }

    /// Rots some of a log, and heals it from a copy: what lies there then, and what was said.
    fn heals(&mut self, clean: &Image, copy: Image) -> Result<(Image, Healing), String> {
        let vault = self.world.lock().unwrap().vault;
        let mut rotten = clean.settled(true);
        let names: Vec<String> =
            rotten.names(SEGMENTS).into_iter().filter(|n| n.ends_with(".seg")).collect();
        for _ in 0..1 + self.random.below(4) {
            let name = &names[self.random.below(names.len() as u64) as usize];
            let len = rotten.content(SEGMENTS, name).map_or(0, <[u8]>::len) as u64;
            if len > 0 {
                let (at, mask) = (self.random.below(len) as usize, 1 << self.random.below(8));
                rotten.rot(SEGMENTS, name, at, mask);
            }
        }
        let own = disk(rotten.clone());
        let other = disk(copy.settled(true));
        let healing = replica::heal(&*own.segments(), &*other.segments(), &vault);
        let healing = said("healing", healing)?;
        let healed = own.image();
        self.copied.healed += healing.healed.len() as u64;
        self.copied.left += healing.left.len() as u64;
        for (name, at, end) in judge::places(clean)? {
            let of = |image: &Image| {
                let bytes = image.content(SEGMENTS, &name)?.get(at..end)?;
                Some(bytes.to_vec())
            };
            let was = of(clean);
            if of(&rotten) == was && of(&healed) != was {
                return Err(format!("healing hides the record at byte {at} of {name}"));
            }
        }
        Ok((healed, healing))
    }
}

/// Both have the same segments, byte for byte.
fn same(one: &Image, other: &Image) -> Result<(), String> {
    let names = |image: &Image| {
        image.names(SEGMENTS).into_iter().filter(|n| n.ends_with(".seg")).collect::<Vec<_>>()
    };
    // The last one of a log was perhaps just begun, and is not worth a copy yet.
    let begun = |name: &String| {
        let len = one.content(SEGMENTS, name).map_or(0, <[u8]>::len);
        len <= segment::HEADER_LEN && !other.names(SEGMENTS).contains(name)
    };
    let mut names_here = names(one);
    if names_here.last().is_some_and(begun) {
        names_here.pop();
    }
    if names_here != names(other) {
        return Err(format!("segments are {:?}, and {:?}", names(one), names(other)));
    }
    let differs = |name: &&String| one.content(SEGMENTS, name) != other.content(SEGMENTS, name);
    match names_here.iter().find(differs) {
        Some(name) => Err(format!("{name} differs")),
        None => Ok(()),
    }
}
