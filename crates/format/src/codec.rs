//! The two halves of every codec: a bounded reader and a writer.
//!
//! Owns: little-endian integers, fixed arrays, canonical LEB128, checked ends.
//! Invariant: no read passes the end; no allocation exceeds the input.

use crate::seeded::seeded;

/// What can be wrong with bytes that claim to be ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The input ends before the field does.
    #[error("{what}: ends too early")]
    Short {
        /// The field or structure.
        what: &'static str,
    },
    /// Bytes are left over after the last field.
    #[error("{what}: {left} bytes too many")]
    Trailing {
        /// The structure.
        what: &'static str,
        /// How many bytes are left.
        left: usize,
    },
    /// A field has a value outside its rule.
    #[error("{what}: {why}")]
    Invalid {
        /// The field or structure.
        what: &'static str,
        /// The rule that is broken.
        why: &'static str,
    },
    /// A length or count is above its limit.
    #[error("{what}: {value} is more than the limit of {limit}")]
    TooLarge {
        /// The field.
        what: &'static str,
        /// What the input says.
        value: u64,
        /// The limit from [`crate::limits`].
        limit: u64,
    },
    /// Written by a newer program.
    #[error("{what}: version {found}, and this program knows up to {known}")]
    Version {
        /// The structure.
        what: &'static str,
        /// The version found.
        found: u32,
        /// The newest version known.
        known: u32,
    },
}

/// Result of a decoder.
pub type Result<T> = core::result::Result<T, Error>;

/// Shorthand for [`Error::Invalid`].
pub const fn invalid(what: &'static str, why: &'static str) -> Error {
    Error::Invalid { what, why }
}

/// Reads fields off the front of a byte slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// A reader over `bytes`; errors name `what`.
    pub const fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    /// Bytes not read yet.
    pub const fn left(&self) -> usize {
        self.rest.len()
    }

    /// Takes `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(Error::Short { what: self.what })?;
        self.rest = rest;
        Ok(head)
    }

    /// Takes all that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    /// Takes a fixed array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) =
            self.rest.split_first_chunk::<N>().ok_or(Error::Short { what: self.what })?;
        self.rest = rest;
        Ok(*head)
    }

    /// Takes a byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes a little-endian `u16`.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Takes a little-endian `u32`.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Takes a little-endian `u64`.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Takes a byte that must be 0 or 1.
    pub fn bool(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(invalid(self.what, "a flag is neither 0 nor 1")),
        }
    }

    /// Takes `n` reserved bytes, which must be zero.
    pub fn reserved(&mut self, n: usize) -> Result<()> {
        if self.bytes(n)?.iter().any(|&b| b != 0) && !seeded("reserved-unchecked") {
            return Err(invalid(self.what, "reserved bytes are not zero"));
        }
        Ok(())
    }

    /// Takes a LEB128 number; only the shortest form is accepted.
    pub fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.u8()?;
            let low = u64::from(byte & 0x7f);
            if shift == 63 && low > 1 {
                return Err(invalid(self.what, "a number does not fit 64 bits"));
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(invalid(self.what, "a number is not in its shortest form"));
                }
                return Ok(value);
            }
        }
        Err(invalid(self.what, "a number does not fit 64 bits"))
    }

    /// Takes bytes with a `u32` length before them, at most `limit` of them.
    pub fn blob(&mut self, limit: usize) -> Result<&'a [u8]> {
        let len = self.u32()? as usize;
        if len > limit {
            return Err(Error::TooLarge {
                what: self.what,
                value: len as u64,
                limit: limit as u64,
            });
        }
        self.bytes(len)
    }

    /// Takes UTF-8 text with a `u32` length before it.
    pub fn text(&mut self, limit: usize) -> Result<String> {
        let bytes = self.blob(limit)?;
        core::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| invalid(self.what, "text is not UTF-8"))
    }

    /// Takes a count that must not exceed `limit`, nor what is left at `each` bytes an item.
    pub fn count(&mut self, limit: usize, each: usize) -> Result<usize> {
        let n = self.u32()? as usize;
        if n > limit + usize::from(seeded("count-bound")) {
            return Err(Error::TooLarge { what: self.what, value: n as u64, limit: limit as u64 });
        }
        if n.saturating_mul(each) > self.rest.len() {
            return Err(Error::Short { what: self.what });
        }
        Ok(n)
    }

    /// Whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Says that nothing may be left.
    pub const fn end(self) -> Result<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Error::Trailing { what: self.what, left: self.rest.len() })
        }
    }
}

/// Appends fields to a vector.
#[derive(Debug, Default, Clone)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// An empty writer with room for `n` bytes.
    pub fn with_capacity(n: usize) -> Self {
        Self(Vec::with_capacity(n))
    }

    /// Appends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends a byte.
    pub fn u8(&mut self, v: u8) -> &mut Self {
        self.0.push(v);
        self
    }

    /// Appends a little-endian `u16`.
    pub fn u16(&mut self, v: u16) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }

    /// Appends a little-endian `u32`.
    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }

    /// Appends a little-endian `u64`.
    pub fn u64(&mut self, v: u64) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }

    /// Appends `n` zero bytes.
    pub fn reserved(&mut self, n: usize) -> &mut Self {
        self.0.resize(self.0.len() + n, 0);
        self
    }

    /// Appends a number as LEB128 in its shortest form.
    pub fn varint(&mut self, mut v: u64) -> &mut Self {
        while v >= 0x80 {
            self.0.push((v as u8 & 0x7f) | 0x80);
            v >>= 7;
        }
        self.0.push(v as u8);
        self
    }

    /// Appends bytes with their length as `u32` before them.
    pub fn blob(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(bytes.len() as u32);
        self.bytes(bytes)
    }

    /// The bytes written.
    pub fn done(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varint_has_one_form() {
        for v in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut w = Writer::default();
            w.varint(v);
            let mut r = Reader::new(&w.0, "t");
            assert_eq!(r.varint(), Ok(v));
            assert_eq!(r.end(), Ok(()));
        }
        assert!(Reader::new(&[0x80, 0x00], "t").varint().is_err());
        assert!(Reader::new(&[0xff; 10], "t").varint().is_err());
        assert!(Reader::new(&[0xff; 3], "t").varint().is_err());
    }

    #[test]
    fn a_count_is_checked_against_what_is_left() {
        let mut w = Writer::default();
        w.u32(1000);
        assert_eq!(Reader::new(&w.0, "t").count(4096, 16), Err(Error::Short { what: "t" }));
        assert!(matches!(Reader::new(&w.0, "t").count(10, 16), Err(Error::TooLarge { .. })));
    }
}
