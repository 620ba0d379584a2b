//! The write log's bytes: a file's header, an entry's header, and their sums.
//!
//! Owns: layout and sums (docs/format.md, 'Write log'). Invariant: an entry is taken for whole
//! only if its sum covers its own header, the sums of its blocks and the sum of the entry
//! before it: what follows a hole is never taken. The sums find accidents; who can write here
//! can compute them.

use dormouse_format::limits::BLOCK_SIZE;
use twox_hash::XxHash3_64;

/// Bytes of a file's header.
pub(super) const FILE_HEAD: usize = 128;
/// Bytes of an entry's header, without the sums of its blocks.
pub(super) const ENTRY_HEAD: usize = 56;
/// What of it the sum covers: all that is before the sum.
const SUMMED: usize = 48;
/// Blocks of one entry, at most: 1 MiB.
pub(super) const BLOCKS_MAX: u64 = 256;

/// Numbers that a hash takes in a table.
pub(super) const HASH_SUMS: u64 = 4;

const FILE_MAGIC: &[u8; 8] = b"DORMWLG1";
const VERSION: u32 = 1;
const ENTRY_MAGIC: &[u8; 4] = b"DWLE";

/// What a log's writes go to, and on what they build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Base {
    /// The volume's id.
    pub volume: [u8; 16],
    /// The generation under which the volume was open.
    pub generation: u64,
    /// The newest point when the file was begun.
    pub seq: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

/// What a file's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileHead {
    pub number: u64,
    /// Whether what lies before it may have become a point that the base does not show.
    pub after_cut: bool,
    /// Seeds all sums of this file, so that no entry of another file holds in it.
    pub salt: u64,
    pub base: Base,
    /// The disk's size in bytes when the file was begun.
    pub size: u64,
    /// The number of its first entry.
    pub seq: u64,
    /// The sum of the last entry before this file; zero if there is none.
    pub chain: u64,
}

/// What an entry does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Blocks get new data.
    Data,
    /// Blocks become zeros.
    Zero,
    /// The disk gets another size; `block` is that, in bytes.
    Size,
    /// What was forgotten is in point `block`, whose hash stands in the table.
    Base,
    /// The same, and there is a cut of which a point may be made after that.
    BaseOfCut,
}

/// An entry's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntryHead {
    pub kind: Kind,
    pub block: u64,
    pub count: u64,
    /// Its number; the log's first is 0.
    pub seq: u64,
    /// Entries with a lower number were known to be durable when this one was written.
    pub durable: u64,
    /// The sum of the entry before.
    pub chain: u64,
    /// Its own.
    pub sum: u64,
}

/// A point's hash as numbers of a table.
pub(super) fn hash_sums(hash: &[u8; 32]) -> [u64; HASH_SUMS as usize] {
    core::array::from_fn(|i| u64_at(hash, i * 8))
}

/// A point's hash in a table.
pub(super) fn hash_of(sums: &[u64]) -> [u8; 32] {
    let mut hash = [0; 32];
    for (to, sum) in hash.chunks_exact_mut(8).zip(sums) {
        to.copy_from_slice(&sum.to_le_bytes());
    }
    hash
}

/// The sum of one block at its place.
pub(super) fn block_sum(salt: u64, block: u64, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(salt ^ block.wrapping_mul(0x9e37_79b9_7f4a_7c15), bytes)
}

impl FileHead {
    pub(super) fn encode(&self) -> [u8; FILE_HEAD] {
        let mut out = [0; FILE_HEAD];
        out[..8].copy_from_slice(FILE_MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12] = u8::from(self.after_cut);
        out[16..24].copy_from_slice(&self.number.to_le_bytes());
        out[24..32].copy_from_slice(&self.salt.to_le_bytes());
        out[32..48].copy_from_slice(&self.base.volume);
        out[48..56].copy_from_slice(&self.base.generation.to_le_bytes());
        out[56..64].copy_from_slice(&self.base.seq.to_le_bytes());
        out[64..96].copy_from_slice(&self.base.hash);
        out[96..104].copy_from_slice(&self.size.to_le_bytes());
        out[104..112].copy_from_slice(&self.seq.to_le_bytes());
        out[112..120].copy_from_slice(&self.chain.to_le_bytes());
        let sum = XxHash3_64::oneshot(&out[..120]);
        out[120..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// `None` if it does not hold; the version if it is a newer one.
    pub(super) fn decode(bytes: &[u8; FILE_HEAD]) -> Option<Result<Self, u32>> {
        let sum = XxHash3_64::oneshot(&bytes[..120]);
        if &bytes[..8] != FILE_MAGIC
            || sum != u64_at(bytes, 120)
            || bytes[13..16] != [0; 3]
            || bytes[12] > 1
        {
            return None;
        }
        let version = u32::from_le_bytes(array(bytes, 8));
        if version != VERSION {
            return Some(Err(version));
        }
        Some(Ok(Self {
            number: u64_at(bytes, 16),
            after_cut: bytes[12] == 1,
            salt: u64_at(bytes, 24),
            base: Base {
                volume: array(bytes, 32),
                generation: u64_at(bytes, 48),
                seq: u64_at(bytes, 56),
                hash: array(bytes, 64),
            },
            size: u64_at(bytes, 96),
            seq: u64_at(bytes, 104),
            chain: u64_at(bytes, 112),
        }))
    }
}

impl EntryHead {
    /// Appends header and sums of the blocks, as they are written; `self.sum` is not looked at.
    /// Returns the entry's sum.
    pub(super) fn encode(&self, salt: u64, sums: &[u64], to: &mut Vec<u8>) -> u64 {
        let start = to.len();
        to.resize(start + ENTRY_HEAD, 0);
        to.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
        let out = &mut to[start..];
        out[..4].copy_from_slice(ENTRY_MAGIC);
        out[4] = match self.kind {
            Kind::Data => 1,
            Kind::Zero => 2,
            Kind::Size => 3,
            Kind::Base => 4,
            Kind::BaseOfCut => 5,
        };
        out[8..16].copy_from_slice(&self.block.to_le_bytes());
        out[16..24].copy_from_slice(&self.count.to_le_bytes());
        out[24..32].copy_from_slice(&self.seq.to_le_bytes());
        out[32..40].copy_from_slice(&self.durable.to_le_bytes());
        out[40..48].copy_from_slice(&self.chain.to_le_bytes());
        let sum = entry_sum(salt, out);
        out[SUMMED..ENTRY_HEAD].copy_from_slice(&sum.to_le_bytes());
        sum
    }

    /// What the fixed part says, not proved yet; `None` if that can be no entry.
    pub(super) fn decode(bytes: &[u8; ENTRY_HEAD]) -> Option<Self> {
        let kind = match bytes[4] {
            1 => Kind::Data,
            2 => Kind::Zero,
            3 => Kind::Size,
            4 => Kind::Base,
            5 => Kind::BaseOfCut,
            _ => return None,
        };
        if &bytes[..4] != ENTRY_MAGIC || bytes[5..8] != [0; 3] {
            return None;
        }
        let head = Self {
            kind,
            block: u64_at(bytes, 8),
            count: u64_at(bytes, 16),
            seq: u64_at(bytes, 24),
            durable: u64_at(bytes, 32),
            chain: u64_at(bytes, 40),
            sum: u64_at(bytes, SUMMED),
        };
        let counts = match kind {
            Kind::Data => 1..=BLOCKS_MAX,
            Kind::Zero => 1..=u64::MAX / BLOCK_SIZE as u64,
            Kind::Size => 0..=0,
            Kind::Base | Kind::BaseOfCut => HASH_SUMS..=HASH_SUMS,
        };
        let fits = head.block.checked_add(head.count).is_some();
        (fits && counts.contains(&head.count)).then_some(head)
    }

    /// Numbers of the table that follows the header.
    pub(super) const fn sums(&self) -> usize {
        match self.kind {
            Kind::Data | Kind::Base | Kind::BaseOfCut => self.count as usize,
            Kind::Zero | Kind::Size => 0,
        }
    }

    /// Whether it changes nothing on the disk.
    pub(super) const fn is_base(&self) -> bool {
        matches!(self.kind, Kind::Base | Kind::BaseOfCut)
    }

    /// Bytes of data that follow the table.
    pub(super) const fn data(&self) -> usize {
        match self.kind {
            Kind::Data => self.count as usize * BLOCK_SIZE,
            Kind::Zero | Kind::Size | Kind::Base | Kind::BaseOfCut => 0,
        }
    }
}

/// The sum of an entry's header and its blocks' sums, all but the sum itself.
pub(super) fn entry_sum(salt: u64, head: &[u8]) -> u64 {
    let fixed = XxHash3_64::oneshot_with_seed(salt, &head[..SUMMED]);
    XxHash3_64::oneshot_with_seed(fixed, &head[ENTRY_HEAD..])
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_a_header_counts() {
        let base = Base { volume: [3; 16], generation: 4, seq: 5, hash: [6; 32] };
        let head =
            FileHead { number: 1, after_cut: true, salt: 2, base, size: 7 << 12, seq: 9, chain: 8 };
        let bytes = head.encode();
        assert_eq!(FileHead::decode(&bytes), Some(Ok(head)));
        for bit in 0..FILE_HEAD * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FileHead::decode(&bad), None, "bit {bit}");
        }
    }

    #[test]
    fn every_bit_of_an_entry_counts() {
        let (kind, block, count) = (Kind::Data, 9, 2);
        let head = EntryHead { kind, block, count, seq: 4, durable: 3, chain: 10, sum: 0 };
        let mut bytes = Vec::new();
        let sum = head.encode(77, &[11, 12], &mut bytes);
        let holds = |bytes: &[u8]| {
            let fixed = bytes[..ENTRY_HEAD].try_into().unwrap();
            EntryHead::decode(fixed).is_some_and(|h| h.sum == entry_sum(77, bytes))
        };
        assert_eq!(entry_sum(77, &bytes), sum);
        assert!(holds(&bytes));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!holds(&bad), "bit {bit}");
        }
    }
}
