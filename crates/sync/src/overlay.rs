//! What deltas have changed since a checkpoint, by address.
//!
//! Invariant: memory grows with the number of changed blocks and of zeroed
//! ranges, not with the length of the ranges. Deltas are bounded before they are proved.

use std::collections::BTreeMap;

use dormouse_crypt::{hash, record};
use dormouse_format::extents::{Content, Runs};
use dormouse_format::limits::DELTAS_BYTES_MAX;
use dormouse_format::point::StoredPoint;
use dormouse_format::record::Kind;
use dormouse_format::seeded::seeded;
use dormouse_format::{Block, Hash, delta, geometry};

use crate::error::{Error, Result};
use crate::map::Entry;

/// Takes the deltas between a checkpoint and a point, and proves that they are all.
#[derive(Debug)]
pub struct Deltas {
    running: Hash,
    overlay: Overlay,
    /// Bytes of their records so far.
    bytes: u64,
}

impl Deltas {
    /// Before the first delta after `checkpoint`.
    pub fn after(checkpoint: &StoredPoint) -> Self {
        let p = checkpoint.point();
        Self { running: p.root, overlay: Overlay::new(geometry::blocks(p.size)), bytes: 0 }
    }

    /// Takes the next delta's record. More of them than a store keeps is refused here:
    /// what they are is known only at the end, and a lying server need not end.
    pub fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        if self.bytes > DELTAS_BYTES_MAX {
            return Err(Error::Protocol { what: "more deltas than a store keeps" });
        }
        let (header, body) = record::check(bytes)?;
        if header.kind != Kind::Delta {
            return Err(Error::Protocol { what: "a record that is no delta" });
        }
        let (prefix, runs) = delta::decode(body)?;
        self.running = hash::delta(&self.running, prefix.size, runs);
        self.overlay.add(geometry::blocks(prefix.size), runs)
    }

    /// All were taken: their running hash must be the one that the point signs.
    pub fn finish(mut self, point: &StoredPoint) -> Result<Overlay> {
        let p = point.point();
        let signed = if p.is_checkpoint() { p.root } else { p.deltas };
        if self.running != signed && !seeded("deltas-unchecked") {
            return Err(Error::Map { seq: p.seq, what: "the running hash of its deltas" });
        }
        self.overlay.add(geometry::blocks(p.size), &[])?;
        Ok(self.overlay)
    }
}

/// The sum of some deltas.
#[derive(Debug, Clone)]
pub struct Overlay {
    data: BTreeMap<Block, Entry>,
    /// Zeroed ranges, start to end, apart from each other.
    zeros: BTreeMap<Block, Block>,
    /// Blocks of the base from here on are gone: the volume was shorter in between.
    base_end: Block,
}

impl Overlay {
    /// No deltas over a base of `blocks` blocks.
    pub const fn new(blocks: Block) -> Self {
        Self { data: BTreeMap::new(), zeros: BTreeMap::new(), base_end: blocks }
    }

    /// Lays one delta's runs over what is there; the volume then has `blocks` blocks.
    pub fn add(&mut self, blocks: Block, runs: &[u8]) -> Result<()> {
        self.base_end = self.base_end.min(blocks);
        self.data.split_off(&blocks);
        for run in Runs::new(runs) {
            let run = run?;
            match run.content {
                Content::Zero => self.zero(run.start, run.end()),
                Content::Data { chunk, first, tags } => {
                    for (i, tag) in tags.iter().enumerate() {
                        let entry = Entry { tag, chunk, index: first + i as u8 };
                        let older = self.data.insert(run.start + i as u64, entry);
                        if let (Some(older), true) = (older, seeded("first-delta-wins")) {
                            self.data.insert(run.start + i as u64, older);
                        }
                    }
                }
                Content::Tags(_) => {
                    return Err(Error::Protocol { what: "a delta without hints" });
                }
            }
        }
        Ok(())
    }

    fn zero(&mut self, mut start: Block, mut end: Block) {
        // One by one: to split the map and join it again would cost all of it, for each range.
        let gone: Vec<Block> = self.data.range(start..end).map(|(block, _)| *block).collect();
        for block in gone {
            self.data.remove(&block);
        }
        let touching: Vec<_> = self
            .zeros
            .range(..=end)
            .rev()
            .take_while(|(_, e)| **e >= start)
            .map(|(s, e)| (*s, *e))
            .collect();
        for (s, e) in touching {
            self.zeros.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.zeros.insert(start, end);
    }

    /// The first block from `from` up to `end` that has data here.
    pub fn next_data(&self, from: Block, end: Block) -> Option<Block> {
        if from >= end {
            return None;
        }
        self.data.range(from..end).next().map(|(block, _)| *block)
    }

    /// Whether the base still counts at `block`.
    pub const fn base_reaches(&self, block: Block) -> bool {
        block < self.base_end
    }

    /// Lays the overlay over `entries`, which begin at block `first`.
    pub fn apply(&self, first: Block, entries: &mut [Entry]) {
        let end = first + entries.len() as u64;
        let cut = self.base_end.clamp(first, end) - first;
        entries[cut as usize..].fill(Entry::ZERO);
        for (s, e) in self.zeros.range(..end).rev().take_while(|(_, e)| **e > first) {
            let (s, e) = ((*s).max(first) - first, (*e).min(end) - first);
            entries[s as usize..e as usize].fill(Entry::ZERO);
        }
        for (block, entry) in self.data.range(first..end) {
            entries[(block - first) as usize] = *entry;
        }
    }

    /// Whether everything from `first` up to `end` was made zero here.
    pub fn zeroed(&self, first: Block, end: Block) -> bool {
        let zeros = self.zeros.range(..=first).next_back();
        zeros.is_some_and(|(_, e)| *e >= end) && self.next_data(first, end).is_none()
    }

    /// Whether anything from `first` up to `end` may differ from the base.
    pub fn touches(&self, first: Block, end: Block) -> bool {
        self.base_end < end
            || self.next_data(first, end).is_some()
            || self.zeros.range(..end).next_back().is_some_and(|(_, e)| *e > first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_format::extents::ExtentsWriter;
    use dormouse_format::{RecordId, Tag};

    /// Takes no time; it took minutes when each zeroed range cost the whole map.
    #[test]
    fn a_zeroed_range_costs_what_it_removes() {
        const BLOCKS: u64 = 300_000;
        let mut overlay = Overlay::new(BLOCKS);
        let (mut data, mut zeros) = (ExtentsWriter::new(), ExtentsWriter::new());
        for at in (0..BLOCKS).step_by(10) {
            data.data(at, RecordId([1; 16]), 0, &[Tag([1; 16]); 10]);
            zeros.zero(at, 2);
        }
        overlay.add(BLOCKS, &data.take()).unwrap();
        overlay.add(BLOCKS, &zeros.take()).unwrap();
        assert_eq!(overlay.data.len() as u64, BLOCKS / 10 * 8);
        assert_eq!(overlay.next_data(0, BLOCKS), Some(2));
    }

    #[test]
    fn equals_a_plain_array() {
        let mut state = 12345u64;
        let mut random = move |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        for _ in 0..200 {
            let base = Entry { tag: Tag([255; 16]), chunk: RecordId([1; 16]), index: 0 };
            let mut plain = vec![base; 64];
            let mut overlay = Overlay::new(64);
            for step in 0..12u8 {
                let mut w = ExtentsWriter::new();
                let size = if random(4) == 0 { 20 + random(44) } else { 64 };
                plain[size as usize..].fill(Entry::ZERO);
                let mut at = random(20);
                while at < size {
                    let n = (1 + random(6)).min(size - at);
                    let range = at as usize..(at + n) as usize;
                    if random(2) == 0 {
                        w.zero(at, n);
                        plain[range].fill(Entry::ZERO);
                    } else {
                        let tags = vec![Tag([step + 1; 16]); n as usize];
                        w.data(at, RecordId([step + 1; 16]), 0, &tags);
                        for (i, at) in range.enumerate() {
                            let chunk = RecordId([step + 1; 16]);
                            plain[at] = Entry { tag: tags[0], chunk, index: i as u8 };
                        }
                    }
                    at += n + random(20);
                }
                overlay.add(size, &w.take()).unwrap();
            }
            let mut entries = vec![base; 64];
            overlay.apply(0, &mut entries);
            assert_eq!(entries, plain);
            let mut part = vec![base; 16];
            overlay.apply(16, &mut part);
            assert_eq!(part, plain[16..32]);
        }
    }
}
