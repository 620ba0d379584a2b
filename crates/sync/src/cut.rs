//! Cutting changed blocks into chunks at content-defined boundaries.
//!
//! Invariant: a chunk holds 1 to 64 consecutive, non-zero blocks; where it ends
//! depends on content only, so that moved content is cut alike. Which blocks belong
//! to no chunk together (changed and unchanged) the caller says, by [`Cutter::end`].

use std::sync::Arc;

use dormouse_crypt::digest::cuts;
use dormouse_format::limits::{BLOCK_SIZE, CHUNK_BLOCKS_MAX};
use dormouse_format::seeded::seeded;
use dormouse_format::{Block, Digest, Tag};

use crate::leaf::LeafData;

/// A chunk that is cut and not yet sealed.
#[derive(Debug)]
pub struct Cut {
    /// Its first block.
    pub start: Block,
    /// Digests of its blocks.
    pub digests: Vec<Digest>,
    /// Tags of its blocks.
    pub tags: Vec<Tag>,
    /// Where its content lies: leaf, offset, bytes.
    pub parts: Vec<(Arc<LeafData>, usize, usize)>,
}

impl Cut {
    /// The content in one piece: borrowed if it lies so, else gathered in `scratch`.
    pub fn content<'a>(&'a self, scratch: &'a mut Vec<u8>) -> &'a [u8] {
        if let [(leaf, at, len)] = &self.parts[..] {
            return &leaf.bytes[*at..at + len];
        }
        scratch.clear();
        for (leaf, at, len) in &self.parts {
            scratch.extend_from_slice(&leaf.bytes[*at..at + len]);
        }
        scratch
    }
}

/// Cuts a stream of changed blocks.
#[derive(Debug, Default)]
pub struct Cutter {
    open: Option<Cut>,
}

impl Cutter {
    /// Adds a changed, non-zero block, after those added before; whole chunks go to `out`.
    pub fn add(
        &mut self,
        block: Block,
        digest: Digest,
        tag: Tag,
        leaf: &Arc<LeafData>,
        at: usize,
        out: &mut dyn FnMut(Cut),
    ) {
        let follows = |c: &Cut| c.start + c.digests.len() as u64 == block;
        if !self.open.as_ref().is_some_and(follows) {
            self.end(out);
        }
        let cut = self.open.get_or_insert_with(|| Cut {
            start: block,
            digests: Vec::with_capacity(16),
            tags: Vec::with_capacity(16),
            parts: Vec::with_capacity(1),
        });
        cut.digests.push(digest);
        cut.tags.push(tag);
        match cut.parts.last_mut() {
            Some((last, from, len)) if Arc::ptr_eq(last, leaf) && *from + *len == at => {
                *len += BLOCK_SIZE;
            }
            _ => cut.parts.push((Arc::clone(leaf), at, BLOCK_SIZE)),
        }
        let most = CHUNK_BLOCKS_MAX + usize::from(seeded("cut-bound"));
        if cuts(&digest) || cut.digests.len() == most {
            self.end(out);
        }
    }

    /// Ends the open chunk: what follows is unchanged, zero, or nothing.
    pub fn end(&mut self, out: &mut dyn FnMut(Cut)) {
        if let Some(cut) = self.open.take() {
            out(cut);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leaf::Budget;

    fn leaf() -> Arc<LeafData> {
        let claim = Budget::default().claim(0);
        Arc::new(LeafData {
            runs: vec![(0, 200)],
            bytes: vec![1; 200 * BLOCK_SIZE],
            skip: 0,
            unread: crate::leaf::Unread::default(),
            claim,
        })
    }

    fn cut(blocks: &[(Block, u8)]) -> Vec<(Block, usize)> {
        let leaf = leaf();
        let mut cutter = Cutter::default();
        let mut out = Vec::new();
        let mut take = |c: Cut| out.push((c.start, c.digests.len()));
        for (i, (block, first)) in blocks.iter().enumerate() {
            let digest = Digest([*first; 16]);
            cutter.add(*block, digest, Tag([1; 16]), &leaf, i * BLOCK_SIZE, &mut take);
        }
        cutter.end(&mut take);
        out
    }

    #[test]
    fn chunks_end_at_boundaries_gaps_and_64() {
        assert_eq!(cut(&[(5, 1), (6, 0x10), (7, 1)]), [(5, 2), (7, 1)]);
        assert_eq!(cut(&[(5, 1), (7, 1)]), [(5, 1), (7, 1)]);
        let long: Vec<_> = (0..130).map(|b| (b, 1)).collect();
        assert_eq!(cut(&long), [(0, 64), (64, 64), (128, 2)]);
    }
}
