//! What the owner of a volume laid over its map since the disk was opened.
//!
//! Invariant: a block that was read by the map as it was before a change is neither kept nor
//! given out after the change: whoever keeps it holds this lock, and compares its tag. Leaves to
//! others: the map itself (`sync::read`).

use core::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use dormouse_format::extents::{Content, Runs};
use dormouse_format::geometry::blocks;
use dormouse_format::{Block, Tag};
use dormouse_sync::Result;
use dormouse_sync::map::Entry;
use dormouse_sync::overlay::Overlay;

use super::blocks::Blocks;

/// Blocks that are remembered as changed, at most, before reads must wait until all older ones
/// are over (about 30 MiB).
pub(super) const MOST: u64 = 256 << 10;

/// The changes.
pub(super) struct Own(RwLock<Changes>);

/// The changes, as they are while this is held.
pub(super) struct Changes {
    overlay: Overlay,
    /// Blocks that were added.
    count: u64,
}

impl Default for Own {
    fn default() -> Self {
        Self(RwLock::new(Changes::none()))
    }
}

impl Own {
    /// To keep or give out blocks.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Changes> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Changes> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lays encoded runs over the map, after which the volume has `size` bytes; what was kept of
    /// these blocks counts no more.
    pub(super) fn add(&self, old_size: u64, size: u64, runs: &[u8], kept: &Blocks) -> Result<()> {
        let mut changes = self.write();
        changes.overlay.add(blocks(size), runs)?;
        if size < old_size {
            kept.forget(blocks(size)..blocks(old_size));
        }
        for run in Runs::new(runs) {
            let run = run?;
            kept.forget(run.start..run.end());
            if let Content::Data { tags, .. } = run.content {
                changes.count += run.count;
                // What was offered before is right now.
                for (block, tag) in (run.start..).zip(tags.iter()) {
                    kept.prove(block, &tag);
                }
            } else {
                changes.count += 1;
            }
        }
        Ok(())
    }

    /// How many blocks are remembered.
    pub(super) fn count(&self) -> u64 {
        self.read().count
    }

    /// Nothing is under way that was read by an older map.
    pub(super) fn forget(&self) {
        *self.write() = Changes::none();
    }
}

impl Changes {
    const fn none() -> Self {
        Self { overlay: Overlay::new(Block::MAX), count: 0 }
    }

    /// Parts of blocks from `first` on that are as the map has them now, by their tags.
    pub(super) fn valid(&self, first: Block, tags: &[Tag], take: &mut dyn FnMut(Range<usize>)) {
        let end = first + tags.len() as u64;
        if !self.overlay.touches(first, end) {
            return take(0..tags.len());
        }
        let mut from = 0;
        for (i, tag) in tags.iter().enumerate() {
            let block = first + i as u64;
            let mut now = [Entry { tag: *tag, ..Entry::ZERO }];
            self.overlay.apply(block, &mut now);
            if now[0].tag != *tag {
                if from < i {
                    take(from..i);
                }
                from = i + 1;
            }
        }
        if from < tags.len() {
            take(from..tags.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_format::RecordId;
    use dormouse_format::extents::ExtentsWriter;

    #[test]
    fn what_was_read_before_a_change_is_left_out() {
        let own = Own::default();
        let secrets = std::sync::Arc::new(dormouse_crypt::VaultSecrets::new(1, [1; 32], [2; 32]));
        let kept = Blocks::new(secrets, dormouse_format::VolumeId([1; 16]), None);
        let parts = |tags: &[Tag]| {
            let mut parts = Vec::new();
            own.read().valid(10, tags, &mut |range| parts.push(range));
            parts
        };
        let old = [Tag([7; 16]); 8];
        assert_eq!(parts(&old), [0..8]);
        kept.put(10, &old, &[7; 8 * 4096]);
        let mut runs = ExtentsWriter::new();
        runs.zero(11, 1);
        runs.data(13, RecordId([1; 16]), 0, &[Tag([8; 16]), Tag([7; 16])]);
        own.add(1 << 30, 1 << 30, &runs.take(), &kept).unwrap();
        assert_eq!(parts(&old), [0..1, 2..3, 4..8]);
        let held: Vec<_> = (10..18).filter(|block| kept.holds(*block)).collect();
        assert_eq!(held, [10, 12, 15, 16, 17]);
        // A volume that has shrunk.
        own.add(1 << 30, 16 << 12, &[], &kept).unwrap();
        assert_eq!(parts(&old), [0..1, 2..3, 4..6]);
        assert!(kept.holds(15) && !kept.holds(16));
        assert_eq!(own.count(), 3);
        own.forget();
        assert_eq!((parts(&old), own.count()), (vec![0..8], 0));
    }
}
