//! A disk that is checked: what is read must be what was last written.
//!
//! Owns: a sum of each sector that was written through it, and sectors that tell their own
//! address and sequence ([`stamp`]). Invariant: it never accuses a disk that is right: what other
//! requests touched while a read ran is not judged. Only for trying things out: it costs 24 bytes
//! of memory and more for each sector written.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{BlockDevice, Changes, Error, Extent, Geometry, Result, Write, Zero};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// What is known of a sector.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// Changes under way.
    writers: u32,
    /// Raised whenever a change begins.
    version: u32,
    /// Sum of its content, if that is known.
    sum: Option<u64>,
}

/// A disk, and what was written to it.
pub struct CheckWrites {
    lower: Arc<dyn BlockDevice>,
    known: Mutex<HashMap<u64, Known>>,
    checked: AtomicU64,
}

impl core::fmt::Debug for CheckWrites {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "CheckWrites({} sectors checked)", self.checked())
    }
}

fn sum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Sectors that these bytes touch.
const fn sectors(at: u64, len: u64) -> Range<u64> {
    at / SECTOR..(at + len).div_ceil(SECTOR)
}

impl CheckWrites {
    /// Checks this one from now on.
    pub fn new(lower: Arc<dyn BlockDevice>) -> Self {
        Self { lower, known: Mutex::default(), checked: AtomicU64::new(0) }
    }

    /// How many sectors were read and found right.
    pub fn checked(&self) -> u64 {
        self.checked.load(Ordering::Relaxed)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<u64, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does a change; `content` is what sector-aligned parts of it will be, if that is certain.
    fn change(
        &self,
        at: u64,
        len: u64,
        content: impl Fn(Range<usize>) -> Option<u64>,
        go: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut begun = HashMap::new();
        for sector in sectors(at, len) {
            let mut known = self.known();
            let entry = known.entry(sector).or_default();
            entry.writers += 1;
            entry.version = entry.version.wrapping_add(1);
            entry.sum = None;
            begun.insert(sector, entry.version);
        }
        let done = go();
        for sector in sectors(at, len) {
            let mut known = self.known();
            let entry = known.entry(sector).or_default();
            entry.writers -= 1;
            let start = sector * SECTOR;
            let whole = start >= at && start + SECTOR <= at + len;
            // Nobody else touched it meanwhile, and it was done.
            if whole && done.is_ok() && begun.get(&sector) == Some(&entry.version) {
                let from = (start - at) as usize;
                entry.sum = content(from..from + SECTOR as usize);
            }
        }
        done
    }
}

impl BlockDevice for CheckWrites {
    fn geometry(&self) -> Geometry {
        self.lower.geometry()
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let range = sectors(at, out.len() as u64);
        let before: HashMap<u64, Known> = {
            let known = self.known();
            range.filter_map(|s| Some((s, *known.get(&s)?))).collect()
        };
        self.lower.read(at, out)?;
        let known = self.known();
        for (sector, was) in before {
            let now = known.get(&sector).copied().unwrap_or_default();
            let still = was.writers == 0 && was.version == now.version;
            let (Some(expected), true) = (was.sum, still) else { continue };
            let Some(from) = (sector * SECTOR).checked_sub(at) else { continue };
            let from = from as usize;
            let Some(bytes) = out.get(from..from + SECTOR as usize) else { continue };
            if sum(bytes) != expected {
                let text = format!("sector {sector} is not what was last written there");
                return Err(Error::Damaged(text));
            }
            self.checked.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn ready(&self, at: u64, len: u64) -> bool {
        self.lower.ready(at, len)
    }

    fn write_ready(&self, at: u64, len: u64) -> bool {
        self.lower.write_ready(at, len)
    }

    fn writes_in_turn(&self) -> bool {
        self.lower.writes_in_turn()
    }

    fn prefetch(&self, at: u64, len: u64) -> Result<()> {
        self.lower.prefetch(at, len)
    }

    fn write(&self, at: u64, bytes: &[u8], how: Write) -> Result<()> {
        let content = |range| bytes.get(range).map(sum);
        self.change(at, bytes.len() as u64, content, || self.lower.write(at, bytes, how))
    }

    fn zero(&self, at: u64, len: u64, how: Zero) -> Result<()> {
        let zeros = Some(sum(&[0; SECTOR as usize]));
        self.change(at, len, |_| zeros, || self.lower.zero(at, len, how))
    }

    fn trim(&self, at: u64, len: u64) -> Result<()> {
        // What is there afterwards is anybody's guess.
        self.change(at, len, |_| None, || self.lower.trim(at, len))
    }

    fn flush(&self) -> Result<()> {
        self.lower.flush()
    }

    fn extents(&self, at: u64, len: u64, most: usize) -> Result<Vec<Extent>> {
        self.lower.extents(at, len, most)
    }

    fn changes_since(&self, point: &str) -> Result<Arc<dyn Changes>> {
        self.lower.changes_since(point)
    }

    fn resize(&self, size: u64) -> Result<()> {
        self.lower.resize(size)
    }
}

/// Sectors that tell where they belong and which write they come from.
///
/// Layout: `DORMOUSE`, the sector's number, the sequence, both as eight bytes little-endian, then
/// bytes that follow from these two.
pub mod stamp {
    use super::SECTOR;

    const WORD: &[u8; 8] = b"DORMOUSE";

    /// Fills whole sectors, of which the first has this number.
    pub fn fill(first: u64, sequence: u64, out: &mut [u8]) {
        for (sector, number) in out.chunks_mut(SECTOR as usize).zip(first..) {
            let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ sequence;
            for (at, word) in sector.chunks_mut(8).enumerate() {
                state = state.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
                let value = match at {
                    0 => *WORD,
                    1 => number.to_le_bytes(),
                    2 => sequence.to_le_bytes(),
                    _ => state.to_le_bytes(),
                };
                word.copy_from_slice(&value[..word.len()]);
            }
        }
    }

    /// Number and sequence of a sector, if it is one of these and whole.
    pub fn read(sector: &[u8]) -> Option<(u64, u64)> {
        let word = |at: usize| sector.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let (number, sequence) = (word(8)?, word(16)?);
        let mut expected = [0; SECTOR as usize];
        fill(number, sequence, &mut expected);
        (sector == expected).then_some((number, sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryDevice;

    #[test]
    fn a_disk_that_loses_a_write_is_found_out() {
        let memory = Arc::new(MemoryDevice::new(vec![0; 64 << 10], false));
        let disk = CheckWrites::new(memory.clone());
        let mut out = vec![0; 8192];
        disk.write(100, &[1; 5000], Write::default()).unwrap();
        disk.zero(8192, 1024, Zero::default()).unwrap();
        disk.read(0, &mut out).unwrap();
        assert_eq!(disk.checked(), 8, "sectors 1 to 8, and not those that are touched in part");
        // Behind its back.
        memory.write(1030, &[9], Write::default()).unwrap();
        let error = disk.read(0, &mut out).unwrap_err();
        assert!(error.to_string().contains("sector 2 "), "{error}");
        disk.read(2048, &mut out).unwrap();
        disk.trim(0, 8192).unwrap();
        disk.read(0, &mut out).unwrap();
    }

    #[test]
    fn a_stamp_tells_address_and_sequence_and_a_torn_one_nothing() {
        let (mut old, mut new) = (vec![0; 1024], vec![0; 1024]);
        stamp::fill(7, 1, &mut old);
        stamp::fill(7, 2, &mut new);
        assert_eq!(stamp::read(&old[512..]), Some((8, 1)));
        assert_eq!(stamp::read(&new[..512]), Some((7, 2)));
        let torn = [&new[..256], &old[256..512]].concat();
        assert_eq!(stamp::read(&torn), None);
        assert_eq!(stamp::read(&[0; 512]), None);
        assert_eq!(stamp::read(&[]), None);
    }
}
