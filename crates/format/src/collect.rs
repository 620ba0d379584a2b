//! What the store notes when it lets go of something: expired points, retired segments.
//!
//! Both are made by the server and not signed: they explain to recovery, scrub and the
//! index why something is not there. Layout: docs/format.md, 'Expired' and 'Retired'.

use crate::codec::{Error, Reader, Result, Writer, invalid};
use crate::ids::{Seq, TimeNs, VolumeId};
use crate::limits::{EXPIRED_RANGES_MAX, RETIRED_MAX};

/// Reads the number of items; none and too many are refused.
fn count(r: &mut Reader<'_>, what: &'static str, limit: usize, each: usize) -> Result<usize> {
    let n = r.u32()? as usize;
    r.reserved(4)?;
    if n > limit {
        return Err(Error::TooLarge { what, value: n as u64, limit: limit as u64 });
    }
    if n == 0 || n * each != r.left() {
        return Err(invalid(what, "the count does not fit the length"));
    }
    Ok(n)
}

/// Points of a volume that are not listed, not read and built on no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expired {
    /// The volume.
    pub volume: VolumeId,
    /// When, by the server's clock.
    pub at: TimeNs,
    /// First and last of each range; ascending, with at least one point between two.
    pub ranges: Vec<(Seq, Seq)>,
}

impl Expired {
    const WHAT: &'static str = "expired";

    /// The body's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(32 + self.ranges.len() * 16);
        w.bytes(&self.volume.0).u64(self.at).u32(self.ranges.len() as u32).reserved(4);
        for (first, last) in &self.ranges {
            w.u64(*first).u64(*last);
        }
        w.done()
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut r = Reader::new(body, Self::WHAT);
        let (volume, at) = (VolumeId(r.array()?), r.u64()?);
        let n = count(&mut r, Self::WHAT, EXPIRED_RANGES_MAX, 16)?;
        let mut ranges: Vec<(Seq, Seq)> = Vec::with_capacity(n);
        for _ in 0..n {
            let (first, last) = (r.u64()?, r.u64()?);
            let before = ranges.last().map_or(0, |(_, last)| last.saturating_add(1));
            let apart = ranges.is_empty() || first > before;
            if first == 0 || first > last || !apart {
                return Err(invalid(Self::WHAT, "the ranges do not ascend, or meet"));
            }
            ranges.push((first, last));
        }
        r.end()?;
        Ok(Self { volume, at, ranges })
    }
}

/// What is left of a segment that was removed: enough to check the chain over the gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetiredSegment {
    /// Its number, which no segment has again.
    pub number: u64,
    /// The last chain value of the segment before it.
    pub before: [u8; 16],
    /// The check of its header.
    pub check: [u8; 16],
    /// Its own last chain value.
    pub chain: [u8; 16],
}

/// Segments that are not needed any more: what was live in them lies durable behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retired {
    /// The segments, numbers ascending.
    pub segments: Vec<RetiredSegment>,
}

impl Retired {
    const WHAT: &'static str = "retired";

    /// The body's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(8 + self.segments.len() * 56);
        w.u32(self.segments.len() as u32).reserved(4);
        for s in &self.segments {
            w.u64(s.number).bytes(&s.before).bytes(&s.check).bytes(&s.chain);
        }
        w.done()
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut r = Reader::new(body, Self::WHAT);
        let n = count(&mut r, Self::WHAT, RETIRED_MAX, 56)?;
        let mut segments: Vec<RetiredSegment> = Vec::with_capacity(n);
        for _ in 0..n {
            let (number, before) = (r.u64()?, r.array()?);
            let segment = RetiredSegment { number, before, check: r.array()?, chain: r.array()? };
            if number > u64::from(u32::MAX) || number <= segments.last().map_or(0, |s| s.number) {
                return Err(invalid(Self::WHAT, "the numbers of segments do not ascend"));
            }
            segments.push(segment);
        }
        r.end()?;
        Ok(Self { segments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expired(ranges: &[(Seq, Seq)]) -> Expired {
        Expired { volume: VolumeId([1; 16]), at: 2, ranges: ranges.to_vec() }
    }

    #[test]
    fn expired_ranges_ascend_apart() {
        for good in [&[(1, 1)][..], &[(1, 3), (5, 5)], &[(7, Seq::MAX)]] {
            let value = expired(good);
            assert_eq!(Expired::decode(&value.encode()), Ok(value));
        }
        let meet = [(1, 3), (4, 5)];
        let all = [(7, Seq::MAX), (Seq::MAX, Seq::MAX)];
        for bad in [&[][..], &[(0, 1)], &[(3, 2)], &meet, &[(5, 6), (1, 2)], &all] {
            assert!(Expired::decode(&expired(bad).encode()).is_err(), "{bad:?}");
        }
        let many = |n: u64| (0..n).map(|i| (2 * i + 1, 2 * i + 1)).collect::<Vec<_>>();
        let most = EXPIRED_RANGES_MAX as u64;
        assert!(Expired::decode(&expired(&many(most)).encode()).is_ok());
        assert!(Expired::decode(&expired(&many(most + 1)).encode()).is_err());
    }

    #[test]
    fn retired_numbers_ascend() {
        let retired = |numbers: &[u64]| {
            let (before, check, chain) = ([1; 16], [2; 16], [3; 16]);
            let of = |n: &u64| RetiredSegment { number: *n, before, check, chain };
            Retired { segments: numbers.iter().map(of).collect() }
        };
        let value = retired(&[1, 2, 9, u64::from(u32::MAX)]);
        assert_eq!(Retired::decode(&value.encode()), Ok(value.clone()));
        for cut in 0..value.encode().len() {
            assert!(Retired::decode(&value.encode()[..cut]).is_err(), "cut at {cut}");
        }
        for bad in [&[][..], &[0], &[2, 2], &[3, 2], &[1 << 32]] {
            assert!(Retired::decode(&retired(bad).encode()).is_err(), "{bad:?}");
        }
        let many: Vec<u64> = (1..=RETIRED_MAX as u64 + 1).collect();
        assert!(Retired::decode(&retired(&many[1..]).encode()).is_ok());
        assert!(Retired::decode(&retired(&many).encode()).is_err());
    }
}
