//! A network disk as a [`BlockDevice`]: the write log over what the server has.
//!
//! Invariant: a block that is in the log is read from there, and from below if not. Writes of
//! less than a block read the rest first, and exclude all other writes meanwhile.

use std::sync::PoisonError;

use dormouse_device::{BlockDevice, Error, Extent, Geometry, Result, Write, Zero};
use dormouse_format::limits::{BLOCK_SIZE, VOLUME_SIZE_MAX};

use super::{Durability, NetDisk};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Extents of what lies below that are asked for at once, when zeros are to be left out.
const EXTENTS: usize = 256;

impl NetDisk {
    /// Reads whole blocks.
    fn read_blocks(&self, block: u64, out: &mut [u8]) -> Result<()> {
        let mut missing = Vec::new();
        self.log.read(block, out, &mut missing)?;
        let below = self.below.geometry().size;
        for (first, count) in missing {
            let (at, len) = (first * BLOCK, count * BLOCK);
            let from = (first - block) as usize * BLOCK_SIZE;
            let out = &mut out[from..from + len as usize];
            // The disk may have grown since the newest point.
            let there = below.saturating_sub(at).min(len) as usize;
            out[there..].fill(0);
            if there > 0 {
                self.below.read(at, &mut out[..there])?;
            }
        }
        Ok(())
    }

    /// Changes bytes within one block.
    fn patch(&self, at: u64, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let mut bytes = [0; BLOCK_SIZE];
        self.read_blocks(at / BLOCK, &mut bytes)?;
        change(&mut bytes[(at % BLOCK) as usize..]);
        self.log.write(at / BLOCK, &bytes)
    }

    fn write_parts(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let aligned = at.is_multiple_of(BLOCK) && bytes.len().is_multiple_of(BLOCK_SIZE);
        if aligned {
            let _shared = self.partial.read().unwrap_or_else(PoisonError::into_inner);
            return self.log.write(at / BLOCK, bytes);
        }
        let _alone = self.partial.write().unwrap_or_else(PoisonError::into_inner);
        let head = ((BLOCK - at % BLOCK) % BLOCK).min(bytes.len() as u64) as usize;
        let (head, rest) = bytes.split_at(head);
        let (body, tail) = rest.split_at(rest.len() - rest.len() % BLOCK_SIZE);
        let body_at = at + head.len() as u64;
        if !head.is_empty() {
            self.patch(at, |block| block[..head.len()].copy_from_slice(head))?;
        }
        if !body.is_empty() {
            self.log.write(body_at / BLOCK, body)?;
        }
        if !tail.is_empty() {
            let at = body_at + body.len() as u64;
            self.patch(at, |block| block[..tail.len()].copy_from_slice(tail))?;
        }
        Ok(())
    }

    /// Zeros whole blocks, but for those that are zero below and were not written since: a disk
    /// that mkfs discards as a whole costs nothing.
    fn zero_blocks(&self, start: u64, end: u64) -> Result<()> {
        let _shared = self.partial.read().unwrap_or_else(PoisonError::into_inner);
        let mut at = start;
        while at < end {
            let (held, until) = self.log.held(at, end);
            if held {
                self.log.zero(at, until - at)?;
                at = until;
                continue;
            }
            // What cannot be learned now counts as data.
            let parts = match self.below_extents(at * BLOCK, (until - at) * BLOCK, EXTENTS) {
                Ok(parts) => parts,
                Err(_) => vec![Extent { len: (until - at) * BLOCK, hole: false, zero: false }],
            };
            for part in parts {
                // A part may end within a block, where the volume's size is odd.
                let next = (at * BLOCK + part.len).div_ceil(BLOCK).min(until);
                if !part.zero && next > at {
                    self.log.zero(at, next - at)?;
                }
                at = next.max(at);
            }
        }
        Ok(())
    }

    /// How it is below; what lies behind its end is a hole.
    fn below_extents(&self, at: u64, len: u64, most: usize) -> Result<Vec<Extent>> {
        let there = self.below.geometry().size.saturating_sub(at).min(len);
        if there == 0 {
            return Ok(vec![Extent { len, hole: true, zero: true }]);
        }
        self.below.extents(at, there, most)
    }

    /// `first` and `end` of the whole blocks of a range.
    const fn whole_blocks(at: u64, len: u64) -> (u64, u64) {
        (at.div_ceil(BLOCK), (at + len) / BLOCK)
    }
}

impl BlockDevice for NetDisk {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.log.size(), block: BLOCK_SIZE as u32, read_only: false }
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let end = at + out.len() as u64;
        if at.is_multiple_of(BLOCK) && end.is_multiple_of(BLOCK) {
            return self.read_blocks(at / BLOCK, out);
        }
        let (first, last) = (at / BLOCK, end.div_ceil(BLOCK));
        let mut whole = vec![0; (last - first) as usize * BLOCK_SIZE];
        self.read_blocks(first, &mut whole)?;
        let from = (at - first * BLOCK) as usize;
        out.copy_from_slice(&whole[from..from + out.len()]);
        Ok(())
    }

    fn ready(&self, at: u64, len: u64) -> bool {
        let (mut block, end) = (at / BLOCK, (at + len).div_ceil(BLOCK));
        while block < end {
            let (held, until) = self.log.held(block, end);
            if !held && !self.below.ready(block * BLOCK, (until - block) * BLOCK) {
                return false;
            }
            block = until;
        }
        true
    }

    fn write_ready(&self, at: u64, len: u64) -> bool {
        let edges = [at, at + len].into_iter().filter(|edge| !edge.is_multiple_of(BLOCK));
        self.log.has_room(len)
            && edges.map(|edge| edge / BLOCK * BLOCK).all(|at| self.ready(at, BLOCK))
    }

    fn writes_in_turn(&self) -> bool {
        true
    }

    fn prefetch(&self, at: u64, len: u64) -> Result<()> {
        let there = self.below.geometry().size.saturating_sub(at).min(len);
        if there == 0 {
            return Ok(());
        }
        self.below.prefetch(at, there)
    }

    fn write(&self, at: u64, bytes: &[u8], how: Write) -> Result<()> {
        self.write_parts(at, bytes)?;
        if how.fua { self.flush() } else { Ok(()) }
    }

    fn write_each(&self, parts: &[(u64, &[u8])]) -> Result<()> {
        let whole = |n: u64| n.is_multiple_of(BLOCK);
        if !parts.iter().all(|(at, bytes)| whole(*at) && whole(bytes.len() as u64)) {
            return parts.iter().try_for_each(|(at, bytes)| self.write_parts(*at, bytes));
        }
        let runs: Vec<_> = parts.iter().map(|(at, bytes)| (at / BLOCK, *bytes)).collect();
        let _shared = self.partial.read().unwrap_or_else(PoisonError::into_inner);
        self.log.write_each(&runs)
    }

    fn zero(&self, at: u64, len: u64, how: Zero) -> Result<()> {
        let (start, end) = Self::whole_blocks(at, len);
        if start >= end {
            self.write_parts(at, &vec![0; len as usize])?;
        } else {
            let (head, tail) = (start * BLOCK - at, at + len - end * BLOCK);
            if head > 0 {
                self.write_parts(at, &vec![0; head as usize])?;
            }
            self.zero_blocks(start, end)?;
            if tail > 0 {
                self.write_parts(end * BLOCK, &vec![0; tail as usize])?;
            }
        }
        if how.fua { self.flush() } else { Ok(()) }
    }

    fn trim(&self, at: u64, len: u64) -> Result<()> {
        let (start, end) = Self::whole_blocks(at, len);
        if start < end { self.zero_blocks(start, end) } else { Ok(()) }
    }

    fn flush(&self) -> Result<()> {
        match self.durability {
            Durability::Local => self.log.flush(),
            Durability::Server => self.shared.sent(self.log.written(), self.timeout),
        }
    }

    fn extents(&self, at: u64, len: u64, most: usize) -> Result<Vec<Extent>> {
        let (mut extents, end) = (Vec::new(), at + len);
        let mut from = at;
        while from < end && extents.len() < most {
            let (held, until) = self.log.held(from / BLOCK, end.div_ceil(BLOCK));
            let until = (until * BLOCK).min(end);
            if held {
                let zero = self.log.zeros(from / BLOCK);
                let until = (zero.1 * BLOCK).min(until);
                extents.push(Extent { len: until - from, hole: zero.0, zero: zero.0 });
                from = until;
            } else {
                for part in self.below_extents(from, until - from, most - extents.len())? {
                    extents.push(part);
                    from += part.len;
                }
            }
        }
        Ok(extents)
    }

    fn resize(&self, size: u64) -> Result<()> {
        if size == 0 || !size.is_multiple_of(BLOCK) {
            return Err(Error::Unsupported("a size that is no multiple of 4 KiB"));
        }
        if size > VOLUME_SIZE_MAX {
            return Err(Error::Unsupported("a size beyond the largest volume"));
        }
        let _alone = self.partial.write().unwrap_or_else(PoisonError::into_inner);
        self.log.resize(size)
    }
}
