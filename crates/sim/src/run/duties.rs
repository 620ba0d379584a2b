//! What a server does of itself over the years: it lets points expire and collects.
//!
//! Owns: nights, in which much time goes by and nothing happens; when who runs the server does
//! something. Invariant: other events fall into collections, wherever these let go of all
//! locks. Leaves to others: which points may go ([`super::kept`]), and the rules of roles and
//! quotas ([`super::office`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use dormouse_format::point::StoredPoint;
use dormouse_format::{Seq, VolumeId};
use dormouse_store::collect::Rules;
use dormouse_store::retention::clock::{Clocks, Mark};
use dormouse_store::{By, Error as StoreError, GRACE, VaultStore};
use dormouse_sync::server::Registry;

use super::kept::DAY;
use super::model::Violation;
use super::{Event, MS, Run, S, Stepped};

const MINUTE: u64 = 60 * S;
/// How far a clock may be off, beside a thousandth of what went by, and how long a machine may
/// have been off: docs/guarantees.md says so.
const TOLERANCE: u64 = 10 * MINUTE;
const OFF_MAX: u64 = 4 * DAY;

/// What there is beside events.
#[derive(Debug, Default)]
pub(super) struct Duties {
    /// Nanoseconds of nights.
    pub(super) slept: u64,
    /// When the machine was started, and how often before.
    booted: (u8, u64),
    /// When the clock was said to be right, and how often the machine had been started.
    pub(super) confirmed: (u8, u64),
    /// A collection runs.
    collecting: bool,
    /// Somebody has another role since the server looked last.
    pub(super) unwatched: bool,
    /// Clients who had another role for a while.
    pub(super) appointed: BTreeSet<usize>,
}

impl Run {
    /// The clock is right, and somebody says so.
    pub(super) fn begin_duties(&mut self) {
        let (boots, time) = (self.server.boots, self.time());
        (self.duties.booted, self.duties.confirmed) = ((boots, time), (boots, time));
        let clocks = self.clocks();
        *self.server.registry.clocks.lock().unwrap() = Some((clocks, Mark::new(clocks)));
        self.at(5 * S, Event::Duty);
    }

    fn clocks(&self) -> Clocks {
        let since_boot = self.time().saturating_sub(self.duties.booted.1);
        Clocks { wall: self.wall(), since_boot, boot: [self.server.boots; 16] }
    }

    /// The server's machine reads its clocks.
    pub(super) fn tick(&mut self) {
        if self.duties.booted.0 != self.server.boots {
            self.duties.booted = (self.server.boots, self.time());
        }
        let now = self.clocks();
        if let Some((clocks, _)) = self.server.registry.clocks.lock().unwrap().as_mut() {
            *clocks = now;
        }
    }

    pub(super) fn duty(&mut self) -> Stepped {
        if self.settings.writes_left == 0 || self.calm {
            return Ok(());
        }
        let after = self.below(8000) * MS;
        self.at(after, Event::Duty);
        match self.below(18) {
            0..4 => {
                self.duties.slept += (6 + self.below(48)) * 60 * MINUTE;
                self.report.nights += 1;
                self.note(format_args!("a night"));
                Ok(())
            }
            4..7 => self.expire_all(),
            7..13 => {
                let grace = [MINUTE, 60 * MINUTE, DAY][self.below(3) as usize];
                let percent = [50, 80, 100][self.below(3) as usize];
                self.collect(&Rules { grace_ns: grace, live_percent_max: percent })
            }
            13 => {
                self.correct_clock();
                Ok(())
            }
            _ => {
                self.office();
                Ok(())
            }
        }
    }

    /// The clock is set right; at times somebody says that it is.
    pub(super) fn correct_clock(&mut self) {
        self.skew = 0;
        self.tick();
        self.note(format_args!("the server's clock is right"));
        if self.calm || self.below(2) == 0 {
            let _ = self.server.registry.clock_holds(true);
            self.duties.confirmed = (self.server.boots, self.time());
        }
    }

    /// By this clock nothing may go: it has jumped, and nobody said that it is right.
    pub(super) fn clock_may(&self) -> Stepped {
        let (boots, since) = self.duties.confirmed;
        let drift = TOLERANCE + (self.time() - since) / 1000;
        let starts = u64::from(self.server.boots.wrapping_sub(boots));
        let wrong = match (self.skew.unsigned_abs(), starts) {
            (off, 0) => off > drift,
            (off, _) => self.skew > 0 && off > (OFF_MAX + drift) * starts + drift,
        };
        if wrong {
            return Err(Violation(format!("points go by a clock that is off by {} ns", self.skew)));
        }
        Ok(())
    }

    /// The points of a volume, if the disk gives them.
    fn points(&self, store: &VaultStore, id: &VolumeId) -> Option<Vec<StoredPoint>> {
        store.points(id, 1, 10_000).ok()
    }

    /// Somebody is about to let go what is due; false if the disk does not tell what there is.
    pub(super) fn prunes(&mut self, id: VolumeId) -> bool {
        let points = self.server.store().and_then(|store| self.points(&store, &id));
        let wall = self.wall();
        if let Some(points) = &points {
            self.model.kept.prunes(id, points, wall);
        }
        points.is_some()
    }

    /// Whether an error of the store is one that faults explain.
    fn explained(&self, store: &Arc<VaultStore>, failures: u64) -> bool {
        let same = self.server.store().is_some_and(|now| Arc::ptr_eq(&now, store));
        let down = !same || !self.server.up || self.server.storage.is_down();
        down || store.stats().poisoned || self.faults.counts().failures > failures
    }

    /// Every volume lets go what is due, if the clock may be believed.
    pub(super) fn expire_all(&mut self) -> Stepped {
        self.tick();
        let Some(store) = self.server.store().filter(|_| self.server.up) else { return Ok(()) };
        if !store.keeps_less() || self.server.registry.clock_holds(false).is_err() {
            return Ok(());
        }
        self.clock_may()?;
        let ids: Vec<VolumeId> = store.volumes().into_iter().map(|(v, ..)| v.id).collect();
        for id in ids {
            let failures = self.faults.counts().failures;
            if !self.prunes(id) {
                return self.after_server();
            }
            let by = By { name: "retention", grace: GRACE, now: self.wall() };
            match store.prune(&id, by) {
                Ok(due) => self.note(format_args!("{} of {} points go", due.gone, due.points)),
                Err(_) if self.explained(&store, failures) => return self.after_server(),
                Err(e) => return Err(Violation(format!("points do not expire: {e}"))),
            }
            if !self.look_at(&store, id)? {
                return self.after_server();
            }
        }
        Ok(())
    }

    /// A round of collection, into which other events fall.
    pub(super) fn collect(&mut self, rules: &Rules) -> Stepped {
        let Some(store) = self.server.store().filter(|_| self.server.up) else { return Ok(()) };
        if std::mem::replace(&mut self.duties.collecting, true) {
            return Ok(());
        }
        self.note(format_args!("a round begins: {rules:?}"));
        let (failures, wall) = (self.faults.counts().failures, self.wall());
        let stop = self.below(20) == 0;
        let mut inside = Ok(true);
        let done = store.collect(wall, rules, &mut |_| {
            if !self.calm && matches!(inside, Ok(true)) && self.below(3) == 0 {
                inside = self.step();
            }
            inside.is_ok() && !(stop && self.below(10) == 0)
        });
        self.duties.collecting = false;
        inside?;
        match done {
            Ok(round) => {
                self.note(format_args!("a round ends: {round:?}"));
                self.report.rounds += 1;
                self.report.retired += round.retired;
                if !round.damaged.is_empty() && !self.explained(&store, failures) {
                    let why = format!("a round finds damage: {:?}", round.damaged);
                    return Err(Violation(why));
                }
            }
            Err(StoreError::Stopped) => {}
            Err(e) if self.explained(&store, failures) => {
                self.note(format_args!("a round fails: {e}"));
            }
            Err(e) => return Err(Violation(format!("a round fails: {e}"))),
        }
        self.after_server()
    }

    /// The faults are over: what is due goes, nothing that anybody needs does, and what is not
    /// needed is collected.
    pub(super) fn years_later(&mut self) -> Stepped {
        for _ in 0..2 {
            self.duties.slept += 8 * DAY;
            self.expire_all()?;
            let Some(store) = self.server.store() else { return Ok(()) };
            for (volume, ..) in store.volumes() {
                let wall = self.wall();
                let points = self.points(&store, &volume.id).unwrap_or_default();
                let overdue: Option<Seq> = self.model.kept.overdue(&volume.id, &points, wall);
                if let Some(seq) = overdue {
                    return Err(Violation(format!("point {seq} was due, and is there")));
                }
            }
            self.collect(&Rules { live_percent_max: 100, ..Rules::default() })?;
        }
        Ok(())
    }
}
