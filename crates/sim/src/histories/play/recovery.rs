//! The machine comes back, or its process does.
//!
//! Invariant: what was acknowledged is there afterwards; what was under way is there or not.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dormouse_store::{Dir, VaultStore};

use super::{Step, Stop, UnderWay, World};
use crate::histories::judge::{self, said};
use crate::registry::Place;

impl World {
    pub(super) fn reopen(&mut self) -> Step {
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
    pub(super) fn open(&mut self) -> Result<(), Option<Stop>> {
        self.open_as(false)
    }

    /// The segments, on the disk or in the bucket.
    pub(super) fn segments(
        &mut self,
        takeover: bool,
    ) -> Result<Box<dyn Dir>, dormouse_bucket::Error> {
        match &mut self.shelf {
            Some(shelf) => shelf.open(&self.storage, self.vault, takeover),
            None => Ok(self.storage.segments()),
        }
    }

    /// With `takeover` whoever has the bucket has it no more.
    pub(super) fn open_as(&mut self, takeover: bool) -> Result<(), Option<Stop>> {
        let segments = match self.segments(takeover) {
            Ok(segments) => segments,
            Err(_) if self.storage.is_down() => return Err(None),
            Err(e) => return Err(Some(Stop::Wrong(format!("the bucket does not open: {e}")))),
        };
        let index = self.storage.index();
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
    pub(super) fn recover(&mut self) -> Result<(), String> {
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
}
