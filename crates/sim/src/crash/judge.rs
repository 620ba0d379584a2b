//! Opens what a crash left, with the real store, and holds it to what was promised.
//!
//! Owns: the rules. Opening succeeds, without a word of damage, for a crash is none.
//! Every acknowledged point is there as it was shown, in order, and nothing follows but
//! the one point in doubt. What it names can be had. A new generation is above all that
//! were told. What was set aside is kept. Every point restores bit for bit, the volume can
//! be written on, and after that all of it holds again. What the opened store showed is a
//! promise too: another crash takes nothing of it. A scrub finds nothing.

use std::sync::Arc;

use dormouse_format::point::StoredPoint;
use dormouse_format::record::{HEADER_LEN, Kind};
use dormouse_store::scrub::scrub;
use dormouse_store::{Error, TornTail, VaultStore};
use dormouse_sync::fetch::Mode;

use super::Figures;
use super::ledger::{Ledger, Sent};
use super::play::{Scene, content};
use super::watch::{End, Keeper};
use crate::drive::Restoring;
use crate::random::Lcg;
use crate::registry::Place as _;
use crate::source::Disk;
use crate::storage::{Image, SEGMENTS, Storage, Watch};
use crate::wire::Lied;
use crate::world::World;

/// Of so many crash points one is judged by restoring and going on.
const WHOLE_OF: u64 = 32;
/// Of so many crash points one has its recovery crashed at every I/O.
const AGAIN_OF: u64 = 16;
/// Of so many stores that are opened one has its chunks read.
const READ_OF: u64 = 4;
/// Kinds of records of which a store knows all.
const SMALL: [Kind; 5] = [Kind::Vault, Kind::Cert, Kind::VaultKeys, Kind::DataKey, Kind::Volume];

/// What an opened store has shown, and what it set aside.
#[derive(Default)]
struct Shown {
    points: Vec<StoredPoint>,
    generation: u64,
    /// Segment and bytes of torn ends.
    aside: Vec<(String, Vec<u8>)>,
}

/// A store that was opened after a crash.
struct Opened {
    storage: Storage,
    shown: Shown,
}

/// Judges one crash point.
pub struct Judge<'a> {
    scene: &'a Scene,
    ledger: &'a Ledger,
    figures: &'a mut Figures,
    random: Lcg,
}

type Held<T = ()> = Result<T, String>;

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Held {
    if holds { Ok(()) } else { Err(why()) }
}

impl<'a> Judge<'a> {
    /// A judge who knows what was promised.
    pub const fn new(
        scene: &'a Scene,
        ledger: &'a Ledger,
        figures: &'a mut Figures,
        random: Lcg,
    ) -> Self {
        Self { scene, ledger, figures, random }
    }

    /// Judges what a crash left.
    pub fn crash(&mut self, image: Image, end: End, last: bool) -> Held {
        self.figures.points += 1;
        let again = self.random.below(AGAIN_OF) == 0;
        let whole = (last && end == End::Lost) || self.random.below(WHOLE_OF) == 0;
        let keeper = again.then(|| Keeper::new(self.random.0));
        let watch: Box<dyn Watch> = match &keeper {
            Some(keeper) => Box::new(keeper.clone()),
            None => Box::new(()),
        };
        let Some(opened) = self.open(image, watch, &Shown::default())? else { return Ok(()) };
        self.figures.torn += opened.shown.aside.len() as u64;
        if let Some(keeper) = keeper {
            self.crash_within(&keeper, &opened, end)?;
        }
        if again || end == End::Killed {
            self.crash_after(&opened)?;
        }
        if whole { self.go_on(&opened) } else { Ok(()) }
    }

    /// Crashes within the recovery.
    fn crash_within(&mut self, keeper: &Keeper, opened: &Opened, end: End) -> Held {
        let mut within = Shown::default();
        // Where only the server was killed, a torn end may not have been on the medium.
        if end != End::Killed {
            within.aside.clone_from(&opened.shown.aside);
        }
        for (i, image) in keeper.take().into_iter().enumerate() {
            self.figures.again += 1;
            let why = |why| format!("after a second crash, at change {i} of the recovery: {why}");
            self.open(image, Box::new(()), &within).map_err(why)?;
        }
        Ok(())
    }

    /// A crash after the recovery, of which nothing is left that was not synced.
    fn crash_after(&mut self, opened: &Opened) -> Held {
        self.figures.again += 1;
        let image = opened.storage.image().settled(false);
        let why = |why| format!("after a second crash, when the store had been opened: {why}");
        let again = self.open(image, Box::new(()), &opened.shown).map_err(why)?;
        let clean = again.is_some_and(|again| again.shown.aside.is_empty());
        ensure(clean, || "what a recovery had cut off is there again".into())
    }

    /// Opens and looks; `None` if there is no store yet, and none was promised.
    fn open(&self, image: Image, watch: Box<dyn Watch>, before: &Shown) -> Held<Option<Opened>> {
        let storage = Storage::new(image.clone(), watch, self.random.0);
        let vault = self.scene.machines[0].vault;
        let (segments, index) = (storage.segments(), storage.index());
        let (store, recovery) = match VaultStore::open(segments, index, vault, self.scene.options) {
            Ok(opened) => opened,
            Err(Error::NotAStore { .. }) if !self.ledger.has_promised() => return Ok(None),
            Err(error) => return Err(format!("the store does not open: {error}")),
        };
        ensure(recovery.damaged.is_empty(), || format!("called damaged: {recovery:?}"))?;
        ensure(!recovery.read_only, || "opened for reading only".into())?;
        let aside = self.set_aside(&image, &storage.image(), &recovery.torn, before)?;
        self.small(&store)?;
        let points = self.points(&store, before)?;
        self.chunks(&store, points.len(), self.random.clone().below(READ_OF) == 0)?;
        let generation = self.generation(&store, before)?;
        Ok(Some(Opened { storage, shown: Shown { points, generation, aside } }))
    }

    /// What recovery cut off lies in files of its own, also what an earlier one did.
    fn set_aside(
        &self,
        before: &Image,
        after: &Image,
        torn: &[TornTail],
        earlier: &Shown,
    ) -> Held<Vec<(String, Vec<u8>)>> {
        let mut aside = Vec::new();
        for tail in torn {
            let bytes = before.content(SEGMENTS, &tail.segment).unwrap_or_default();
            let bytes = bytes[tail.offset as usize..].to_vec();
            let kept = after.content(SEGMENTS, &tail.kept_in) == Some(&bytes);
            ensure(kept, || format!("a torn end is not kept: {tail:?}"))?;
            aside.push((tail.segment.clone(), bytes));
        }
        for (segment, bytes) in &earlier.aside {
            let of = |name: &&String| name.starts_with(segment.as_str()) && *name != segment;
            let names = after.names(SEGMENTS);
            let mut kept = names.iter().filter(of);
            let found = kept.any(|name| after.content(SEGMENTS, name) == Some(bytes));
            ensure(found, || format!("the torn end of {segment} was set aside and is gone"))?;
        }
        Ok(aside)
    }

    /// Keys, certificates and volumes: all that were promised, and none that nobody sent.
    fn small(&self, store: &VaultStore) -> Held {
        for kind in SMALL {
            let found = store.small(kind, &[]).map_err(|e| format!("no {kind:?}: {e}"))?;
            let lost =
                self.ledger.promised().iter().find(|(k, b)| *k == kind && !found.contains(b));
            ensure(lost.is_none(), || format!("an acknowledged {kind:?} is lost"))?;
            let all = found.iter().all(|bytes| self.ledger.knows(kind, bytes));
            ensure(all, || format!("a {kind:?} that nobody sent"))?;
        }
        let volumes = store.volumes();
        let promised = self.ledger.promised().iter().filter(|(kind, _)| *kind == Kind::Volume);
        for (_, record) in promised {
            let listed = volumes.iter().any(|(_, body, _)| *body == record[HEADER_LEN..]);
            ensure(listed, || "an acknowledged volume is not listed".into())?;
        }
        Ok(())
    }

    /// The points: all that were acknowledged or shown, and at most the one in doubt.
    fn points(&self, store: &VaultStore, before: &Shown) -> Held<Vec<StoredPoint>> {
        let volume = &self.scene.volume.0;
        let points = match store.points(volume, 1, 1000) {
            Ok(points) => points,
            Err(Error::NotFound { .. }) if self.ledger.points.is_empty() => Vec::new(),
            Err(error) => return Err(format!("no points: {error}")),
        };
        let promised = self.ledger.points.len();
        ensure(points.len() >= promised, || {
            format!("{promised} points were acknowledged, {} are there", points.len())
        })?;
        let might: Vec<&Sent> = self.ledger.points.iter().chain(&self.ledger.doubt).collect();
        ensure(points.len() <= might.len(), || "a point that nobody sent".into())?;
        for (found, sent) in points.iter().zip(might) {
            let seq = found.point().seq;
            let same = found.signed == sent.signed
                && sent.receipt.is_none_or(|receipt| receipt == found.receipt)
                && sent.stored.is_none_or(|stored| stored == *found);
            ensure(same, || format!("point {seq} is not as it was sent and acknowledged"))?;
        }
        let shown = before.points.len();
        let kept = points.get(..shown) == Some(&before.points);
        ensure(kept, || "a point that the opened store had shown is gone or another".into())?;
        let head = store.volumes().first().and_then(|(_, _, head)| *head);
        ensure(head == points.last().copied(), || "the head is not the last point".into())?;
        Ok(points)
    }

    /// The index answers for every chunk that was promised or that a visible point names;
    /// with `read` the records are those that were sent.
    fn chunks(&self, store: &VaultStore, points: usize, read: bool) -> Held {
        let writer = self.scene.machines[0].writer();
        let failed = |e| format!("chunks cannot be read: {e}");
        let all = self.ledger.needed(points);
        let have = store.have(&writer, &all, false).map_err(failed)?;
        ensure(!have.contains(&false), || "a chunk of a point is not had".into())?;
        for id in all.iter().filter(|_| read) {
            let found = store.chunk(id, &writer, 0).map_err(failed)?;
            let sent = found.is_some_and(|record| self.ledger.is_of(id, &record));
            ensure(sent, || format!("chunk {id} is not as it was sent"))?;
        }
        Ok(())
    }

    /// A new generation is above those that were told.
    fn generation(&self, store: &VaultStore, before: &Shown) -> Held<u64> {
        let told = self.ledger.generation.max(before.generation);
        let machine = &self.scene.machines[0];
        let (writer, instance) = (machine.writer(), machine.instance());
        let raised = store.open_write(&self.scene.volume.0, writer, instance, true, 1);
        match raised {
            Ok(new) if new > told => Ok(new),
            Ok(new) => Err(format!("generation {told} was told, and now it is {new}")),
            Err(Error::NotFound { .. } | Error::BadRecord { .. }) if told == 0 => Ok(0),
            Err(error) => Err(format!("the volume cannot be opened for writing: {error}")),
        }
    }

    /// Restores every point, makes another one, opens anew, and restores again.
    fn go_on(&mut self, opened: &Opened) -> Held {
        let points = &opened.shown.points;
        let machine = &self.scene.machines[0];
        let volume = self.scene.volume.0;
        let mut world = self.scene.world(&opened.storage, self.random.0);
        let reopened = |e| format!("the store does not open again: {e}");
        world.registry.reopen(machine.vault).map_err(reopened)?;
        let might = self.ledger.points.iter().chain(&self.ledger.doubt);
        let mut disks: Vec<_> = might.take(points.len()).map(|s| Arc::clone(&s.disk)).collect();
        let Some(last) = disks.last() else { return Ok(()) };
        let mut next = Disk::clone(last);
        let changed = [0, 1];
        next.write(0, content(&mut self.random));
        next.zero(1, 1);
        self.restore(&mut world, points, &disks)?;
        world.now = 1 << 50;
        world.takeover = true;
        let scan = self.random.below(2) == 0;
        let done = if scan {
            world.copy(machine, volume, &next)
        } else {
            world.copy_changes(machine, volume, &next, &changed)
        };
        done.map_err(|e| format!("the next copy fails: {e}"))?;
        disks.push(Arc::new(next));
        world.registry.forget();
        let recovery = world.registry.reopen(machine.vault).map_err(reopened)?;
        let clean = recovery.torn.is_empty() && recovery.damaged.is_empty();
        ensure(clean, || format!("after going on: {recovery:?}"))?;
        let all = world.points(machine, volume).map_err(|e| format!("after going on: {e}"))?;
        let kept = all.len() == points.len() + 1 && all[..points.len()] == *points;
        ensure(kept, || "going on changed the history".into())?;
        let broken = |why| format!("after going on: {why}");
        let last = all.len().saturating_sub(2);
        self.restore(&mut world, &all[last..], &disks[last..]).map_err(broken)?;
        self.scrub(&opened.storage).map_err(broken)
    }

    /// Restores points and compares them with their disks.
    fn restore(&mut self, world: &mut World, points: &[StoredPoint], disks: &[Arc<Disk>]) -> Held {
        let (machine, volume) = (&self.scene.machines[0], self.scene.volume.0);
        let failed = |e| format!("a point does not restore: {e}");
        let all = world.points(machine, volume).map_err(failed)?;
        let trust = world.trust(machine).map_err(failed)?;
        let mut wire = world.hello(machine).map_err(failed)?;
        let mut ends = Lied { wire: &mut wire, liar: &mut world.liar };
        for (point, disk) in points.iter().zip(disks) {
            self.figures.restores += 1;
            let mut found = Disk::default();
            let pair = [*point, all[point.point().checkpoint as usize - 1]];
            let seq = point.point().seq;
            Restoring::start(machine, volume, trust.clone(), pair, Mode::Fresh, &mut found)
                .and_then(|mut restoring| restoring.turn(&mut found, &mut ends))
                .map_err(|e| format!("point {seq} does not restore: {e}"))?;
            ensure(found == **disk, || format!("point {seq} restores to another disk"))?;
        }
        Ok(())
    }

    /// A scrub finds nothing wrong.
    fn scrub(&self, storage: &Storage) -> Held {
        let (mut found, vault) = (Vec::new(), self.scene.machines[0].vault);
        let summary = scrub(&*storage.segments(), vault, false, &mut |f| found.push(f));
        summary.map_err(|e| format!("the scrub fails: {e}"))?;
        ensure(found.is_empty(), || format!("a scrub finds {found:?}"))
    }
}
