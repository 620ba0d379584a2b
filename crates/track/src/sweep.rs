//! Which of the marked blocks a pass takes.
//!
//! Owns: where the next pass goes on, and which blocks are written all the time. Invariants: while
//! more is marked than one pass takes, passes go up through the addresses and begin anew at the end,
//! so that no block waits for longer than one sweep over all; what is left out stays marked; when it is
//! said that all writes before a moment were taken, they were, also those of blocks that waited. Memory is
//! bounded: the sets below hold blocks of the last few passes, of which each takes so many at most.
//!
//! **Hot blocks.** One that was marked again in each of the last [`HOT_AFTER`] passes, and each of them
//! saw all marks, is hot: it waits until a pass takes hot ones too. One that then is not marked again is
//! hot no more. Under a backlog nothing waits for being hot: a sweep takes each block once anyway.
//!
//! Leaves to others: when hot blocks are taken (`dormouse_sync::live`), and what becomes of a pass.

use std::time::Duration;

use crate::dirty::Dirty;
use crate::marks::{Marks, Room};

/// In so many passes one after the other a block must be marked to be hot.
pub const HOT_AFTER: usize = 4;
/// So many blocks are hot, at most: what may be held in memory while file systems are frozen.
pub const HOT_MAX: u64 = 4096;

/// Where passes have come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sweep {
    /// The leaf at which the next pass begins.
    from: u64,
    /// How many leaves a sweep of several passes has gone over, and since when all that was marked
    /// is in it; not before the next pass, if there is no moment.
    under_way: Option<(u64, Option<Duration>)>,
    /// Blocks that were marked in the last pass, in the last two, and so on.
    streaks: [Dirty; HOT_AFTER - 1],
    hot: Dirty,
}

/// What a pass takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The blocks.
    pub dirty: Dirty,
    /// Hot blocks that wait.
    pub waiting: Dirty,
    /// Whether that is all that was marked.
    pub whole: bool,
    /// When this pass is acknowledged, all that was written before this moment is.
    pub sent: Option<Duration>,
    /// How it goes on when this pass is acknowledged.
    pub next: Sweep,
}

impl Sweep {
    /// Takes from the old bitmap, which was cut off at `cut`, what has room; hot blocks if `hot`
    /// says so, and nothing of `without`, as if it were not marked.
    pub fn take(
        &self,
        marks: &Marks<'_>,
        cut: Duration,
        mut room: Room,
        hot: bool,
        without: &Dirty,
    ) -> Taken {
        let leaves = marks.leaves();
        let from = if self.from < leaves { self.from } else { 0 };
        let (high, mut next) = marks.carried_in(from..leaves, &mut room, without);
        let mut dirty = Dirty::default();
        let mut seen_all = false;
        if next == leaves {
            (dirty, next) = marks.carried_in(0..from, &mut room, without);
            seen_all = next == from;
        }
        let gone = match next.checked_sub(from) {
            _ if seen_all => leaves,
            Some(up) => up,
            None => leaves - from + next,
        };
        dirty.append(high);
        let waiting = match self.under_way {
            None if !hot => dirty.and(&self.hot),
            _ => Dirty::default(),
        };
        let dirty = dirty.minus(&waiting);
        let (under_way, sent) = self.goes_on(gone, leaves, cut, seen_all, waiting.is_empty());
        let mut next = Self { from: next, under_way, ..Self::default() };
        next.learn(self, &dirty, &waiting, seen_all);
        Taken { whole: seen_all && waiting.is_empty(), dirty, waiting, sent, next }
    }

    /// How far the sweep has come, and since when all is taken.
    fn goes_on(
        &self,
        gone: u64,
        leaves: u64,
        cut: Duration,
        seen_all: bool,
        none_waits: bool,
    ) -> (Option<(u64, Option<Duration>)>, Option<Duration>) {
        let again = Some((0, None));
        if seen_all {
            return (None, none_waits.then_some(cut));
        }
        if !none_waits {
            return (again, None);
        }
        let (before, since) = self.under_way.unwrap_or((0, None));
        let (gone, since) = (before + gone, since.unwrap_or(cut));
        if gone >= leaves { (again, Some(since)) } else { (Some((gone, Some(since))), None) }
    }

    /// Which blocks are hot after a pass that took these, and left those out.
    fn learn(&mut self, before: &Self, dirty: &Dirty, waiting: &Dirty, seen_all: bool) {
        self.hot = waiting.or(&before.hot.and(dirty));
        if !seen_all {
            return;
        }
        let [.., longest] = &before.streaks;
        let new = longest.and(dirty);
        if self.hot.blocks() + new.blocks() <= HOT_MAX {
            self.hot = self.hot.or(&new);
        }
        for i in (1..self.streaks.len()).rev() {
            self.streaks[i] = before.streaks[i - 1].and(dirty);
        }
        self.streaks[0] = dirty.clone();
    }

    /// How many marked blocks wait for their turn.
    pub fn waiting(&self, marks: &Marks<'_>) -> u64 {
        marks.marked_of(&self.hot)
    }
}

#[cfg(test)]
mod tests;
