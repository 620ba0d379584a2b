//! What a network disk is over: the volume as the server has it.

use dormouse_device::{BlockDevice, Result};
use dormouse_format::point::StoredPoint;

/// The newest point of a volume, as a disk, whose owner makes the next ones.
pub trait Below: BlockDevice {
    /// A point was made: these extents lead to it, after which the volume has `size` bytes.
    fn apply(&self, size: u64, extents: &[Vec<u8>]) -> Result<()>;

    /// The newest point is this checkpoint, whose content it has already.
    fn rebase(&self, checkpoint: &StoredPoint) -> Result<()>;

    /// Whole blocks that are about to be in it, from `block` on: worth keeping, perhaps.
    fn offer(&self, block: u64, bytes: &[u8]);
}
