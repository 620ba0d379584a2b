//! The fixed shape of the map: which node covers which blocks.
//!
//! Level 0 is a leaf of 256 blocks, level 1 a page of 64 leaves, and each level
//! above covers 64 times as much. Nodes are aligned to their size. A volume's
//! map ends at the lowest level whose node 0 covers the whole volume, at least 1.

use crate::limits::{BLOCK_SIZE, FANOUT, LEAF_BLOCKS, LEVEL_MAX};

/// Number of blocks of a volume of `size` bytes; the last may be padded with zeros.
pub const fn blocks(size: u64) -> u64 {
    size.div_ceil(BLOCK_SIZE as u64)
}

/// Number of blocks that one node of `level` covers.
pub const fn span(level: u8) -> u64 {
    LEAF_BLOCKS << (6 * level as u32)
}

/// Level of the top node of a volume of `size` bytes.
pub const fn top_level(size: u64) -> u8 {
    let blocks = blocks(size);
    let mut level = 1;
    while level < LEVEL_MAX && span(level) < blocks {
        level += 1;
    }
    level
}

/// A node's place: level and index among the nodes of that level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// 0 for a leaf.
    pub level: u8,
    /// Which node of that level, counted from block 0.
    pub index: u64,
}

impl Place {
    /// The first block covered.
    pub const fn first_block(self) -> u64 {
        self.index * span(self.level)
    }

    /// The node's place `slot` below this one.
    pub const fn child(self, slot: u64) -> Self {
        Self { level: self.level - 1, index: self.index * FANOUT + slot }
    }

    /// The node above, and the slot there.
    pub const fn parent(self) -> (Self, usize) {
        (Self { level: self.level + 1, index: self.index / FANOUT }, (self.index % FANOUT) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_cover_sizes() {
        assert_eq!(top_level(0), 1);
        assert_eq!(top_level(64 << 20), 1);
        assert_eq!(top_level((64 << 20) + 1), 2);
        assert_eq!(top_level(4 << 30), 2);
        assert_eq!(top_level(1 << 40), 4);
        assert_eq!(top_level(crate::limits::VOLUME_SIZE_MAX), 7);
        assert_eq!(blocks(1), 1);
        assert_eq!(blocks(4096), 1);
        assert_eq!(blocks(4097), 2);
    }

    #[test]
    fn children_and_parents_agree() {
        let p = Place { level: 2, index: 5 };
        for slot in 0..FANOUT {
            assert_eq!(p.child(slot).parent(), (p, slot as usize));
        }
        assert_eq!(p.first_block(), p.child(0).first_block());
    }
}
