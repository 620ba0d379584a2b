//! The disk that is copied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dormouse_format::limits::{BLOCK_SIZE, LEAF_BLOCKS};
use dormouse_format::{Block, VolumeId, geometry};
use dormouse_sync::copy;
use dormouse_sync::leaf::{Claim, LeafData, LeafSet, Unread};

use crate::machine::Machine;
use crate::world::Opened;

/// A sparse disk in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// Bytes.
    pub size: u64,
    /// The blocks that are not zero.
    pub blocks: BTreeMap<Block, Arc<[u8]>>,
    /// Blocks that cannot be read.
    pub unread: BTreeSet<Block>,
}

impl Disk {
    /// All zero.
    pub fn new(size: u64) -> Self {
        Self { size, ..Self::default() }
    }

    /// Writes one block.
    pub fn write(&mut self, block: Block, content: impl Into<Arc<[u8]>>) {
        let content = content.into();
        assert_eq!(content.len(), BLOCK_SIZE);
        if content.iter().all(|b| *b == 0) {
            self.blocks.remove(&block);
        } else {
            self.blocks.insert(block, content);
        }
    }

    /// Cuts it, or adds zeros.
    pub fn resize(&mut self, size: u64) {
        self.size = size;
        self.blocks.split_off(&geometry::blocks(size));
    }

    /// The leaves that have data.
    pub fn leaves(&self) -> LeafSet {
        let mut set = LeafSet::new(self.size);
        self.blocks.keys().chain(&self.unread).for_each(|b| set.add(b / LEAF_BLOCKS));
        set
    }

    /// Makes blocks zero.
    pub fn zero(&mut self, start: Block, count: u64) {
        for block in start..start + count {
            self.blocks.remove(&block);
        }
    }

    /// A copy of all of it, or of the blocks that changed.
    pub fn plan(
        &self,
        machine: &Machine,
        volume: VolumeId,
        (generation, head, checkpoint): Opened,
        mode: copy::Mode,
        changed: Option<&[Block]>,
    ) -> copy::Plan {
        let leaves = match changed {
            None => self.leaves(),
            Some(changed) => {
                let mut set = LeafSet::new(self.size);
                changed.iter().for_each(|b| set.add(b / LEAF_BLOCKS));
                set
            }
        };
        let (vault, size) = (machine.vault, self.size);
        let generation = copy::Generation::Given(generation);
        let window = copy::WINDOW;
        let stale = false;
        copy::Plan {
            vault,
            volume,
            generation,
            head,
            checkpoint,
            size,
            leaves,
            mode,
            part: copy::ALL,
            stale,
            window,
        }
    }

    /// The blocks of a leaf that have data, or those of `only` whatever they have.
    pub fn leaf(&self, index: u64, only: Option<&[Block]>, mut claim: Claim) -> Arc<LeafData> {
        let range = index * LEAF_BLOCKS..(index + 1) * LEAF_BLOCKS;
        let blocks: Vec<Block> = match only {
            Some(only) => only.iter().copied().filter(|b| range.contains(b)).collect(),
            None => self.blocks.range(range.clone()).map(|(b, _)| *b).collect(),
        };
        let (mut runs, mut bytes): (Vec<(u16, u16)>, Vec<u8>) = (Vec::new(), Vec::new());
        let failed = self.unread.range(range).map(|b| ((b % LEAF_BLOCKS) as u16, 1));
        let unread = Unread::without(&failed.collect::<Vec<_>>(), &[]);
        for block in blocks {
            let at = (block % LEAF_BLOCKS) as u16;
            if unread.has(usize::from(at)) {
                continue;
            }
            match runs.last_mut() {
                Some((first, n)) if *first + *n == at => *n += 1,
                _ => runs.push((at, 1)),
            }
            match self.blocks.get(&block) {
                Some(content) => bytes.extend_from_slice(content),
                None => bytes.resize(bytes.len() + BLOCK_SIZE, 0),
            }
        }
        claim.shrink(bytes.len() as u64);
        Arc::new(LeafData { runs, bytes, skip: 0, unread, claim })
    }
}
