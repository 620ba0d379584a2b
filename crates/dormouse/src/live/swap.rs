//! Active swap of the mirrored disk: left out, as zeros.
//!
//! Invariants: as long as blocks are left out they stay marked, so the copy and the marks together
//! remain the disk, whenever an area is given up, also while no daemon is there. They are no work:
//! they count in no backlog, and are never read. An area that is taken into use later is sent as zeros,
//! once. Leaves to others: which blocks those are ([`dormouse_track::swap`]).

use dormouse_track::device::Disk;
use dormouse_track::dirty::Dirty;
use dormouse_track::marks::Marks;
use dormouse_track::swap::{Swap, listed};

use crate::leaves::Runs;
use crate::text;

/// Leaves that are sent as zeros with one pass.
const ZEROS_LEAVES: usize = 64;

/// What is left out.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    wanted: bool,
    /// The kernel's list, when it was last looked at.
    listed: Vec<u8>,
    swap: Swap,
    /// Of its blocks, those that may not be zero in the copy.
    pending: Dirty,
}

impl LeftOut {
    pub(super) fn new(wanted: bool) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Looks at what the kernel swaps to; `again` also if its list is as it was. Whether that is
    /// something else now.
    pub(super) fn look(&mut self, disk: &Disk, marks: &Marks<'_>, again: bool) -> bool {
        if !self.wanted {
            return false;
        }
        let listed = listed();
        if listed == self.listed && !again {
            return false;
        }
        let swap = Swap::on(disk, &listed);
        let at_start = self.listed.is_empty();
        self.listed = listed;
        if swap == self.swap {
            return false;
        }
        let new = swap.blocks.minus(&self.swap.blocks);
        // If all of it is marked at the start, a daemon before this one has left it out.
        if !at_start || marks.marked_of(&new) < new.blocks() {
            mark(marks, &new);
            self.pending = self.pending.or(&new);
        }
        self.pending = self.pending.and(&swap.blocks);
        self.swap = swap;
        true
    }

    /// Whether the kernel still swaps to the same areas.
    pub(super) fn holds(&self) -> bool {
        !self.wanted || listed_areas(&self.listed) == listed_areas(&listed())
    }

    /// The blocks that are left out.
    pub(super) const fn blocks(&self) -> &Dirty {
        &self.swap.blocks
    }

    /// How many of all marked blocks are work.
    pub(super) fn work(&self, marks: &Marks<'_>) -> u64 {
        let left_out = marks.marked_of(&self.swap.blocks);
        marks.dirty_blocks().saturating_sub(left_out) + self.pending.blocks()
    }

    /// What a pass sends as zeros; and whether that is all that is to be sent so.
    pub(super) fn zeros(&self) -> (Dirty, bool) {
        let first = self.pending.first(ZEROS_LEAVES);
        let all = first == self.pending;
        (first, all)
    }

    /// These are zero in the copy.
    pub(super) fn are_zero(&mut self, zeros: &Dirty) {
        self.pending = self.pending.minus(zeros);
    }

    /// All will be compared, and no mark is left: these are marked again, and the scan leaves them
    /// out, so that they become zero in the copy.
    pub(super) fn before_scan(&mut self, marks: &Marks<'_>) {
        mark(marks, &self.swap.blocks);
        self.pending = Dirty::default();
    }

    /// For people.
    pub(super) fn note(&self) -> Option<String> {
        let names: Vec<_> = self.swap.areas.iter().map(|a| a.display().to_string()).collect();
        let size = text::size(self.swap.blocks.blocks() * 4096);
        (!names.is_empty()).then(|| {
            format!("swap on {} ({size}) is left out: zeros in the copy", names.join(", "))
        })
    }
}

/// Names of the areas: how much of each is used changes all the time.
fn listed_areas(listed: &[u8]) -> Vec<&[u8]> {
    let lines = listed.split(|byte| *byte == b'\n').skip(1);
    lines.filter_map(|line| line.split(u8::is_ascii_whitespace).next()).collect()
}

/// Marks these blocks.
pub(super) fn mark(marks: &Marks<'_>, blocks: &Dirty) {
    for (leaf, _) in blocks.iter() {
        for (first, count) in blocks.runs(*leaf) {
            let start = leaf * dormouse_format::limits::LEAF_BLOCKS + u64::from(first);
            marks.mark(start, u64::from(count));
        }
    }
}

/// Runs of a leaf, parted where `zeros` begin and end; and which parts are of these.
pub(super) fn parts(runs: &Runs, zeros: &Runs) -> Vec<((u16, u16), bool)> {
    let zero = |block: u16| zeros.iter().any(|(first, n)| (*first..first + n).contains(&block));
    let mut parts: Vec<((u16, u16), bool)> = Vec::new();
    for block in runs.iter().flat_map(|(first, n)| *first..first + n) {
        match parts.last_mut() {
            Some(((first, n), is)) if *first + *n == block && *is == zero(block) => *n += 1,
            _ => parts.push(((block, 1), zero(block))),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_parted_at_zeros() {
        let parts =
            |runs: &[(u16, u16)], zeros: &[(u16, u16)]| parts(&runs.to_vec(), &zeros.to_vec());
        assert_eq!(parts(&[(0, 256)], &[]), [((0, 256), false)]);
        let zeros = [((0, 16), false), ((16, 240), true)];
        assert_eq!(parts(&[(0, 256)], &[(16, 240)]), zeros);
        let mixed = [((2, 1), false), ((3, 2), true), ((5, 1), false), ((9, 1), true)];
        assert_eq!(parts(&[(2, 4), (9, 1)], &[(3, 2), (9, 9)]), mixed);
        assert_eq!(parts(&[], &[(0, 9)]), []);
    }

    #[test]
    fn lists_are_compared_by_their_areas() {
        let list = |used: u32| format!("Filename\tType\n/dev/a  partition {used}\n/dev/b file 1\n");
        assert_eq!(listed_areas(list(1).as_bytes()), listed_areas(list(99).as_bytes()));
        assert_ne!(listed_areas(list(1).as_bytes()), listed_areas(b"Filename\n/dev/a partition"));
    }
}
