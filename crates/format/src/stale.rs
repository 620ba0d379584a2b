//! Which blocks of a volume's points could not be read from the disk.
//!
//! Layout: docs/format.md, 'Stale blocks'.

use crate::codec::{Reader, Result, Writer, invalid};
use crate::ids::{Block, Seq, VaultId, VolumeId, WriterId};
use crate::limits::VOLUME_SIZE_MAX;
use crate::vault::Signed;

/// Most runs that one record names.
pub const RUNS_MAX: usize = 480;
const BLOCKS_MAX: u64 = VOLUME_SIZE_MAX / crate::limits::BLOCK_SIZE as u64;

/// From a point on, until the next record of the volume: these blocks hold what was there when the
/// disk could last be read, or zeros. Signed by the writer of the points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stale {
    /// The vault.
    pub vault: VaultId,
    /// The volume.
    pub volume: VolumeId,
    /// Who writes it.
    pub writer: WriterId,
    /// The first point of which this is so.
    pub seq: Seq,
    /// How many blocks; more than the runs hold, if those are not all.
    pub blocks: u64,
    /// First block and number, ascending, apart from each other; none if all can be read again.
    pub runs: Vec<(Block, u32)>,
}

impl Stale {
    /// Bytes of the volume that are named, as first and last.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        let size = crate::limits::BLOCK_SIZE as u64;
        self.runs.iter().map(move |(first, n)| (first * size, (first + u64::from(*n)) * size - 1))
    }

    fn rules(self) -> Result<Self> {
        let bad = |why| Err(invalid(Self::WHAT, why));
        let (mut end, mut sum) = (None, 0);
        for (first, count) in &self.runs {
            if *count == 0 || *first > BLOCKS_MAX || end.is_some_and(|end| *first <= end) {
                return bad("the runs do not ascend");
            }
            end = Some(first + u64::from(*count));
            sum += u64::from(*count);
        }
        if end.is_some_and(|end| end > BLOCKS_MAX) || self.blocks > BLOCKS_MAX {
            return bad("a block lies beyond the largest volume");
        }
        if sum > self.blocks || self.runs.is_empty() != (self.blocks == 0) {
            return bad("the number of blocks does not fit the runs");
        }
        if self.seq == 0 { bad("points begin at 1") } else { Ok(self) }
    }
}

impl Signed for Stale {
    const WHAT: &'static str = "stale blocks";

    fn write(&self, w: &mut Writer) {
        w.bytes(&self.vault.0).bytes(&self.volume.0).bytes(&self.writer.0);
        w.u64(self.seq).u64(self.blocks).u32(self.runs.len() as u32);
        for (first, count) in &self.runs {
            w.u64(*first).u32(*count);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self> {
        let (vault, volume, writer) =
            (VaultId(r.array()?), VolumeId(r.array()?), WriterId(r.array()?));
        let (seq, blocks, n) = (r.u64()?, r.u64()?, r.u32()? as usize);
        if n > RUNS_MAX {
            return Err(invalid(Self::WHAT, "too many runs"));
        }
        let mut runs = Vec::with_capacity(n);
        for _ in 0..n {
            runs.push((r.u64()?, r.u32()?));
        }
        Self { vault, volume, writer, seq, blocks, runs }.rules()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Signature;
    use crate::limits::SIGNED_BODY_MAX;

    fn stale(blocks: u64, runs: &[(Block, u32)]) -> Stale {
        let (vault, volume, writer) = (VaultId([1; 32]), VolumeId([2; 16]), WriterId([3; 16]));
        Stale { vault, volume, writer, seq: 7, blocks, runs: runs.to_vec() }
    }

    #[test]
    fn what_is_written_is_read_and_fits_a_record() {
        let many: Vec<(Block, u32)> = (0..RUNS_MAX as u64).map(|i| (i * 9, 3)).collect();
        for value in [stale(0, &[]), stale(5, &[(0, 2), (3, 1)]), stale(99_999, &many)] {
            let body = value.encode(&Signature([9; 64]));
            assert!(body.len() <= SIGNED_BODY_MAX, "{}", body.len());
            assert_eq!(Stale::decode(&body).unwrap().0, value);
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let too_many: Vec<(Block, u32)> = (0..=RUNS_MAX as u64).map(|i| (i * 9, 3)).collect();
        let far = BLOCKS_MAX - 1;
        let wrong = [
            stale(1, &[]),
            stale(0, &[(1, 1)]),
            stale(2, &[(1, 0), (4, 2)]),
            stale(9, &[(4, 2), (1, 1)]),
            stale(9, &[(1, 2), (3, 1)]),
            stale(1, &[(1, 2)]),
            stale(5, &[(far, 2)]),
            stale(5, &[(u64::MAX, 1)]),
            stale(BLOCKS_MAX + 1, &[(1, 1)]),
            stale(u64::from(u32::MAX), &too_many),
            Stale { seq: 0, ..stale(1, &[(1, 1)]) },
        ];
        for value in wrong {
            assert!(Stale::decode(&value.encode(&Signature([9; 64]))).is_err(), "{value:?}");
        }
        assert!(Stale::decode(&stale(2, &[(far, 1)]).encode(&Signature([0; 64]))).is_ok());
    }
}
