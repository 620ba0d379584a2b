//! Crashes the machine at every I/O, while it goes on.
//!
//! Owns: which images of the disk are judged. Before each operation that changes
//! something the disk is copied as a crash would leave it, and the copy is judged against
//! what was promised up to this instant; then the operation is done. So a crash point
//! costs one opening, and no second run. Leaves to others: the verdict ([`super::judge`]).

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use super::Figures;
use super::judge::Judge;
use super::ledger::Ledger;
use super::play::Scene;
use crate::random::Lcg;
use crate::storage::{Image, Op, Verdict, Watch};

/// How a machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It goes down, and nothing of what waits for a sync is kept.
    Lost,
    /// It goes down, and all of it is kept.
    Kept,
    /// It goes down, and what waits is kept, lost or torn, sector by sector.
    Torn,
    /// The server alone is killed: what waits for a sync still does.
    Killed,
}

/// Passes after which an end comes again at the same I/O.
pub const ENDS: u64 = 6;

impl End {
    /// The end of a crash point: in one pass they take turns along the I/O, and at each
    /// I/O from pass to pass.
    const fn at(pass: u64, io: u64) -> Self {
        match (pass + io) % ENDS {
            0 => Self::Lost,
            1 => Self::Kept,
            2 => Self::Killed,
            _ => Self::Torn,
        }
    }

    /// What it leaves of the disk.
    pub fn of(self, image: &Image, random: &mut Lcg) -> Image {
        match self {
            Self::Lost | Self::Kept => image.settled(self == Self::Kept),
            Self::Torn => image.crashed(random),
            Self::Killed => image.clone(),
        }
    }
}

/// A crash point of the sequence that does not hold.
pub struct At {
    /// Which change of the disk.
    pub io: u64,
    /// The pass.
    pub pass: u64,
    /// What does not hold.
    pub why: String,
}

/// What watches one sequence.
pub struct Probe {
    /// What was promised so far.
    pub ledger: Ledger,
    /// What was counted.
    pub figures: Figures,
    /// The first crash point that does not hold.
    pub failure: Option<At>,
    scene: Arc<Scene>,
    passes: Range<u64>,
    seed: u64,
    only: Option<u64>,
    armed: bool,
    io: u64,
}

impl Probe {
    /// Looks on until it is armed; judges only the crash point `only`, if it is given.
    pub fn new(scene: &Arc<Scene>, passes: Range<u64>, seed: u64, only: Option<u64>) -> Self {
        let (ledger, figures) = (Ledger::default(), Figures::default());
        let scene = Arc::clone(scene);
        Self { ledger, figures, failure: None, scene, passes, seed, only, armed: false, io: 0 }
    }

    /// From now on every change of the disk is a crash point.
    pub const fn arm(&mut self) {
        self.armed = true;
    }

    /// Number of the next crash point.
    pub const fn io(&self) -> u64 {
        self.io
    }

    /// Crashes now, once for each pass, unless another pass leaves the same.
    pub fn crash(&mut self, image: &Image, last: bool) {
        if !self.armed || self.failure.is_some() {
            return;
        }
        let io = self.io;
        self.io += 1;
        if self.only.is_some_and(|only| only != io) {
            return;
        }
        let mut seen = Vec::new();
        for pass in self.passes.clone() {
            let end = End::at(pass, io);
            let mut random = Lcg(super::mix(super::mix(self.seed, pass), io));
            let image = end.of(image, &mut random);
            if seen.contains(&image) {
                continue;
            }
            seen.push(image.clone());
            let mut judge = Judge::new(&self.scene, &self.ledger, &mut self.figures, random);
            let found = catch_unwind(AssertUnwindSafe(|| judge.crash(image, end, last)));
            let found = found.unwrap_or_else(|_| Err(super::PANIC.into()));
            if let Err(why) = found {
                let why = format!("{end:?}: {why}");
                self.failure = Some(At { io, pass, why });
                return;
            }
        }
    }
}

/// The watch of the disk that a sequence is played on.
pub struct Watcher(pub Arc<Mutex<Probe>>);

impl Watch for Watcher {
    fn before(&mut self, op: &Op<'_>, disk: &Image) -> Verdict {
        if op.kind.changes() {
            self.0.lock().unwrap().crash(disk, false);
        }
        Verdict::Go
    }
}

/// Keeps what a crash would leave at every change of the disk, while a store recovers.
#[derive(Clone)]
pub struct Keeper {
    kept: Arc<Mutex<Vec<Image>>>,
    random: Lcg,
}

impl Keeper {
    /// Has kept nothing yet.
    pub fn new(seed: u64) -> Self {
        Self { kept: Arc::default(), random: Lcg(seed) }
    }

    /// What was kept.
    pub fn take(&self) -> Vec<Image> {
        std::mem::take(&mut self.kept.lock().unwrap())
    }
}

impl Watch for Keeper {
    fn before(&mut self, op: &Op<'_>, disk: &Image) -> Verdict {
        if op.kind.changes() {
            let end = [End::Lost, End::Torn, End::Torn][self.random.below(3) as usize];
            let image = end.of(disk, &mut self.random);
            self.kept.lock().unwrap().push(image);
        }
        Verdict::Go
    }
}
