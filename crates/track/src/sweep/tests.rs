//! Against a model that knows each write; and by scenes.

use std::collections::BTreeMap;

use dormouse_format::limits::LEAF_BLOCKS;

use super::*;
use crate::marks::tests::Memory;

const ALL: Room = Room { leaves: usize::MAX, blocks: u64::MAX };

const fn at(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// One pass, acknowledged.
fn pass(sweep: &mut Sweep, marks: &Marks<'_>, now: u64, room: Room, hot: bool) -> Taken {
    marks.carry_back();
    marks.cut();
    let taken = sweep.take(marks, at(now), room, hot, &Dirty::default());
    marks.forget(&taken.dirty);
    marks.carry_back();
    *sweep = taken.next.clone();
    taken
}

fn blocks(dirty: &Dirty) -> Vec<u64> {
    dirty.all_blocks().collect()
}

/// Numbers that look random, and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % n
    }
}

#[test]
fn what_is_said_to_be_sent_was_taken() {
    let (mut said, mut limited, mut waited) = (0, 0, 0);
    for seed in 1..400 {
        let mut random = Random(seed * 7919);
        let size = 1 + random.below(20 * LEAF_BLOCKS);
        let memory = Memory::of_blocks(size);
        let (marks, mut sweep) = (memory.marks(), Sweep::default());
        // The oldest write of each block that no pass has taken.
        let mut unsent = BTreeMap::new();
        let mut claimed = at(0);
        for now in 1..200 {
            for _ in 0..random.below(30) {
                // Some are written much more often than others.
                let range = if random.below(2) == 0 { 5.min(size) } else { size };
                let block = random.below(range);
                marks.mark(block, 1);
                unsent.entry(block).or_insert(at(now));
            }
            marks.carry_back();
            marks.cut();
            let room = match random.below(3) {
                0 => Room { leaves: 1 + random.below(4) as usize, blocks: 1 + random.below(40) },
                _ => ALL,
            };
            let cut = at(now) + Duration::from_millis(500);
            let taken = sweep.take(&marks, cut, room, random.below(4) == 0, &Dirty::default());
            // Nothing is invented, and what is said of all is so.
            let marked: Vec<_> = unsent.keys().copied().collect();
            let both = taken.dirty.or(&taken.waiting);
            assert!(blocks(&both).iter().all(|b| unsent.contains_key(b)), "seed {seed}");
            assert!(taken.dirty.and(&taken.waiting).is_empty());
            assert_eq!(taken.whole, blocks(&taken.dirty) == marked, "seed {seed} at {now}");
            if random.below(5) == 0 {
                continue;
            }
            marks.forget(&taken.dirty);
            unsent.retain(|block, _| !taken.dirty.has(*block));
            claimed = taken.sent.map_or(claimed, |sent| sent.max(claimed));
            let oldest = unsent.values().min();
            assert!(oldest.is_none_or(|at| *at >= claimed), "seed {seed} at {now}: {oldest:?}");
            said += u32::from(taken.sent.is_some());
            limited += u32::from(taken.sent.is_some_and(|sent| sent < cut));
            waited += u32::from(!taken.waiting.is_empty());
            sweep = taken.next;
        }
    }
    assert!(said > 1000 && limited > 100 && waited > 1000, "{said} {limited} {waited}");
}

#[test]
fn no_address_waits_for_longer_than_a_sweep() {
    let leaves = 50;
    let memory = Memory::of_blocks(leaves * LEAF_BLOCKS);
    let (marks, mut sweep) = (memory.marks(), Sweep::default());
    let room = Room { leaves: 5, blocks: u64::MAX };
    let mut taken_at = vec![0; leaves as usize];
    let mut sent = at(0);
    for now in 1..100 {
        // More than a pass takes is written before each, and most of it at low addresses.
        (0..leaves).for_each(|leaf| {
            if leaf < 20 || now % 7 == leaf % 7 {
                marks.mark(leaf * LEAF_BLOCKS, 1);
            }
        });
        let taken = pass(&mut sweep, &marks, now, room, false);
        assert_eq!(taken.dirty.leaves(), 5);
        assert!(taken.waiting.is_empty() && !taken.whole, "nothing waits under a backlog");
        for (leaf, _) in taken.dirty.iter() {
            let waited = now - taken_at[*leaf as usize];
            assert!(now < 20 || waited <= 10, "leaf {leaf} has waited for {waited} passes");
            taken_at[*leaf as usize] = now;
        }
        sent = taken.sent.unwrap_or(sent);
        assert!(now < 20 || at(now) - sent <= at(21), "{sent:?} at {now}");
    }
}

#[test]
fn a_block_that_is_written_all_the_time_waits_for_its_turn() {
    let memory = Memory::of_blocks(10_000);
    let (marks, mut sweep) = (memory.marks(), Sweep::default());
    let mut taken_at = Vec::new();
    for now in 1..=20 {
        marks.mark(7, 1);
        // Others of the same leaf are written once.
        marks.mark(10 + now, 1);
        let taken = pass(&mut sweep, &marks, now, ALL, now % 8 == 0);
        assert!(taken.dirty.has(10 + now), "at {now}");
        assert_eq!(taken.dirty.has(7), taken.waiting.is_empty(), "at {now}");
        assert_eq!(taken.whole, taken.waiting.is_empty());
        assert_eq!(taken.sent, taken.whole.then_some(at(now)));
        if taken.dirty.has(7) {
            taken_at.push(now);
        }
    }
    assert_eq!(taken_at, [1, 2, 3, 4, 8, 16]);
    // Its last write is taken in its turn, and then it is as any other.
    assert!(pass(&mut sweep, &marks, 21, ALL, true).dirty.has(7));
    assert_eq!(blocks(&pass(&mut sweep, &marks, 22, ALL, false).dirty), []);
    marks.mark(7, 1);
    assert_eq!(blocks(&pass(&mut sweep, &marks, 23, ALL, false).dirty), [7]);
    marks.mark(7, 1);
    assert_eq!(sweep.waiting(&marks), 0);
}

#[test]
fn what_is_hot_is_bounded() {
    let memory = Memory::of_blocks(20_000);
    let (marks, mut sweep) = (memory.marks(), Sweep::default());
    for now in 1..10 {
        marks.mark(0, HOT_MAX + 1);
        assert!(pass(&mut sweep, &marks, now, ALL, false).whole, "more than may be hot");
    }
    for now in 10..20 {
        marks.mark(0, HOT_MAX);
        pass(&mut sweep, &marks, now, ALL, false);
    }
    marks.mark(0, HOT_MAX);
    assert_eq!(sweep.waiting(&marks), HOT_MAX);
}

/// Else what is said to be sent would stand still as long as there is a backlog.
#[test]
fn under_a_backlog_hot_blocks_take_their_turn() {
    let leaves = 10;
    let memory = Memory::of_blocks(leaves * LEAF_BLOCKS);
    let (marks, mut sweep) = (memory.marks(), Sweep::default());
    for now in 1..10 {
        marks.mark(7, 1);
        pass(&mut sweep, &marks, now, ALL, false);
    }
    assert_eq!(sweep.waiting(&marks), 1);
    let (mut sent, room) = (at(0), Room { leaves: 9, blocks: u64::MAX });
    for now in 10..60 {
        (0..leaves).for_each(|leaf| marks.mark(leaf * LEAF_BLOCKS + 7, 1));
        sent = pass(&mut sweep, &marks, now, room, false).sent.unwrap_or(sent);
        assert!(now < 13 || at(now) - sent <= at(3), "{sent:?} at {now}");
    }
}
