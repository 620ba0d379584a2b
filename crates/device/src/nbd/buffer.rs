//! Buffers whose memory is used again and again, without being made zero each time.
//!
//! Invariant: after a large request they go back to [`KEPT`] bytes.

use std::ops::Range;

/// What a buffer keeps while it is empty.
const KEPT: usize = 2 << 20;
/// Where an empty input begins, so that the payload of its first request lies on a page.
const FRONT: usize = 4096 - super::protocol::REQUEST_LEN;

/// Bytes to be sent.
#[derive(Debug, Default)]
pub struct Out {
    bytes: Vec<u8>,
    end: usize,
}

impl Out {
    /// What is in it.
    pub fn filled(&self) -> &[u8] {
        &self.bytes[..self.end]
    }

    /// How much is in it.
    pub const fn len(&self) -> usize {
        self.end
    }

    /// Whether nothing is.
    pub const fn is_empty(&self) -> bool {
        self.end == 0
    }

    /// Appends.
    pub fn put(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
    }

    /// Appends so many bytes, of any content, to be overwritten.
    pub fn space(&mut self, len: usize) -> &mut [u8] {
        let range = self.end..self.end + len;
        if self.bytes.len() < range.end {
            self.bytes.resize(range.end.next_multiple_of(64 << 10), 0);
        }
        self.end = range.end;
        &mut self.bytes[range]
    }

    /// Goes back to this length.
    pub fn cut(&mut self, len: usize) {
        self.end = self.end.min(len);
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.end = 0;
        if self.bytes.len() > KEPT {
            self.bytes.truncate(KEPT);
            self.bytes.shrink_to_fit();
        }
    }
}

/// Bytes that have come.
#[derive(Debug)]
pub struct In {
    bytes: Vec<u8>,
    filled: Range<usize>,
}

impl Default for In {
    fn default() -> Self {
        Self { bytes: Vec::new(), filled: FRONT..FRONT }
    }
}

impl In {
    /// What is in it.
    pub fn filled(&self) -> &[u8] {
        self.bytes.get(self.filled.clone()).unwrap_or_default()
    }

    /// Takes bytes off its front.
    pub fn take(&mut self, len: usize) {
        self.filled.start += len.min(self.filled.len());
        if self.filled.is_empty() {
            self.filled = FRONT..FRONT;
            if self.bytes.len() > KEPT {
                self.bytes.truncate(KEPT);
                self.bytes.shrink_to_fit();
            }
        }
    }

    /// Room for so many bytes more at most; [`Self::came`] says how many there were. What a peer
    /// only announces takes no memory: the buffer grows with what has come.
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(self.filled.len().max(KEPT));
        if self.filled.end + len > self.bytes.len().max(KEPT) && self.filled.start > FRONT {
            self.bytes.copy_within(self.filled.clone(), FRONT);
            self.filled = FRONT..FRONT + self.filled.len();
        }
        let range = self.filled.end..self.filled.end + len;
        if self.bytes.len() < range.end {
            self.bytes.resize(range.end, 0);
        }
        &mut self.bytes[range]
    }

    /// So many bytes of the room have been filled.
    pub fn came(&mut self, len: usize) {
        self.filled.end = (self.filled.end + len).min(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_gives_back_in_order_what_came() {
        let mut buffer = In::default();
        let (mut next_in, mut next_out) = (0u64, 0u64);
        for round in 0..5000usize {
            let words = round % 700 + 1;
            for (to, n) in buffer.room(words * 8).chunks_mut(8).zip(next_in..) {
                to.copy_from_slice(&n.to_be_bytes());
            }
            buffer.came(words * 8);
            next_in += words as u64;
            let take = (buffer.filled().len() / 8).saturating_sub(round % 90);
            for word in buffer.filled()[..take * 8].chunks(8) {
                assert_eq!(word, next_out.to_be_bytes());
                next_out += 1;
            }
            buffer.take(take * 8);
            assert!(buffer.bytes.len() <= KEPT + 5600, "{}", buffer.bytes.len());
        }
        buffer.take(usize::MAX);
        assert_eq!(buffer.room(32 << 20).len(), KEPT);
        while buffer.filled().len() < 9 << 20 {
            let len = buffer.room((9 << 20) - buffer.filled().len()).len();
            buffer.came(len);
        }
        buffer.take(9 << 20);
        assert_eq!(buffer.bytes.len(), KEPT);
    }

    #[test]
    fn an_output_goes_back_to_its_size() {
        let mut out = Out::default();
        out.put(b"head");
        out.space(5 << 20)[0] = 7;
        assert_eq!((out.len(), out.filled()[4]), ((5 << 20) + 4, 7));
        out.cut(4);
        assert_eq!(out.filled(), b"head");
        out.clear();
        assert!(out.is_empty() && out.bytes.len() == KEPT);
    }
}
