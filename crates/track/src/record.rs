//! What a daemon records of its watch, in the kernel's memory beside the bitmaps.
//!
//! It lives and dies with them: a reboot leaves neither. Invariant: what does not carry the
//! magic of this version is no record.

use crate::sleep::Slept;

/// Words that a record takes.
pub const RECORD_WORDS: usize = 20;
/// 'dormous' and the version, 1.
const MAGIC: u64 = u64::from_be_bytes(*b"dormous\x01");
/// Programs that watch one disk.
pub const LINKS: usize = 2;

/// How far the copy has come, and what has watched since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The volume.
    pub volume: [u8; 16],
    /// The kernel's number of this appearance of the disk; 0 where it has none.
    pub disk_sequence: u64,
    /// Size of what is watched, in bytes.
    pub size: u64,
    /// Ids of the links of the programs. They are never used again until a reboot.
    pub links: [u64; LINKS],
    /// The newest point that the server has acknowledged.
    pub head: [u8; 32],
    /// Its sequence number; 0: there is none yet.
    pub seq: u64,
    /// The right to write under which the next point is made.
    pub generation: u64,
    /// The copy at `head` and the marked blocks together are the disk: it was compared once
    /// as a whole, and watched from then on.
    pub complete: bool,
    /// As long as it is not: so many pages (64 MiB of the disk each), from the first on, were
    /// compared, and are in `head` as they were or are marked since.
    pub scanned: u64,
    /// [`crate::marks::Marks::everything`] when that scan began.
    pub everything: u64,
    /// How the machine had slept when that was looked at last.
    pub slept: Slept,
}

impl Record {
    pub(crate) fn encode(&self) -> [u64; RECORD_WORDS] {
        let mut words = [0; RECORD_WORDS];
        words[0] = MAGIC;
        put(&mut words[1..3], &self.volume);
        words[3] = self.disk_sequence;
        words[4] = self.size;
        words[5..7].copy_from_slice(&self.links);
        put(&mut words[7..11], &self.head);
        words[11] = self.seq;
        words[12] = self.generation;
        words[13] = u64::from(self.complete);
        words[14] = self.everything;
        words[15] = self.slept.ms;
        words[16] = self.slept.suspends;
        words[17] = self.scanned;
        words
    }

    pub(crate) fn decode(words: &[u64; RECORD_WORDS]) -> Option<Self> {
        if words[0] != MAGIC || words[13] > 1 {
            return None;
        }
        Some(Self {
            volume: get(&words[1..3]),
            disk_sequence: words[3],
            size: words[4],
            links: [words[5], words[6]],
            head: get(&words[7..11]),
            seq: words[11],
            generation: words[12],
            complete: words[13] == 1,
            everything: words[14],
            slept: Slept { ms: words[15], suspends: words[16] },
            // A record of a program that knew nothing of it has a zero here.
            scanned: words[17],
        })
    }
}

fn put(words: &mut [u64], bytes: &[u8]) {
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut all = [0; 8];
        all.copy_from_slice(bytes);
        *word = u64::from_le_bytes(all);
    }
}

fn get<const N: usize>(words: &[u64]) -> [u8; N] {
    let mut out = [0; N];
    for (bytes, word) in out.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_nothing_else_is_one() {
        let record = Record {
            volume: *b"0123456789abcdef",
            disk_sequence: 7,
            size: 1 << 40,
            links: [3, u64::MAX],
            head: std::array::from_fn(|i| i as u8),
            seq: 9,
            generation: 4,
            complete: true,
            scanned: 11,
            everything: 2,
            slept: Slept { ms: 5, suspends: 1 },
        };
        let words = record.encode();
        assert_eq!(Record::decode(&words), Some(record));
        assert_eq!(Record::decode(&[0; RECORD_WORDS]), None);
        for word in [0, 13] {
            let mut other = words;
            other[word] ^= 2;
            assert_eq!(Record::decode(&other), None);
        }
    }
}
