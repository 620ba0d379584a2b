//! Reading ahead: which reads follow one another, and how far ahead of them blocks are asked for.
//!
//! Invariant: a single read asks for nothing more; each one that follows another doubles what is
//! asked for, up to a limit. A read that belongs to no stream costs some loads. Leaves to others:
//! to ask.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use dormouse_format::Block;

/// Streams that are followed at once.
const STREAMS: usize = 16;
/// How far behind its place a read may come and still follow: several threads read one stream.
const SLACK: u64 = 512;
const WINDOW_MIN: u64 = 32;
/// Blocks ahead of a stream, at most (8 MiB).
const WINDOW_MAX: u64 = 2048;
const NONE: u64 = u64::MAX;

/// All streams of a disk.
pub(super) struct Streams {
    /// Where each goes on: looked at by every read.
    next: [AtomicU64; STREAMS],
    streams: Mutex<[Stream; STREAMS]>,
    turn: AtomicU64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    window: u64,
    /// What was asked for ends here.
    asked: Block,
}

impl Streams {
    pub(super) fn new() -> Self {
        Self {
            next: [const { AtomicU64::new(NONE) }; STREAMS],
            streams: Mutex::default(),
            turn: AtomicU64::new(0),
        }
    }

    /// A read of `range`, which was `missed` or not: what to ask for ahead of it.
    pub(super) fn read(&self, range: &Range<Block>, missed: bool) -> Option<Range<Block>> {
        let follows =
            |next: u64| next != NONE && range.start >= next && range.start - next <= SLACK;
        let found = self.next.iter().position(|n| follows(n.load(Ordering::Relaxed)));
        let Some(at) = found else {
            // A read behind the place where a stream is now is a late one of it.
            let late = |n: &AtomicU64| {
                let next = n.load(Ordering::Relaxed);
                next != NONE && range.start < next && next - range.start <= 2 * SLACK
            };
            if missed && !self.next.iter().any(late) {
                self.begin(range.end);
            }
            return None;
        };
        self.next[at].fetch_max(range.end, Ordering::Relaxed);
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = &mut streams[at];
        stream.window = (stream.window * 2).clamp(WINDOW_MIN, WINDOW_MAX);
        // In halves of the window, so that one request brings many blocks.
        let from = stream.asked.max(range.end);
        let to = range.end + stream.window;
        if to < from + stream.window / 2 {
            return None;
        }
        stream.asked = to;
        Some(from..to)
    }

    fn begin(&self, next: Block) {
        let at = self.turn.fetch_add(1, Ordering::Relaxed) as usize % STREAMS;
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams[at] = Stream::default();
        self.next[at].store(next, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is asked for ahead of reads of 8 blocks that begin at these.
    fn asked(starts: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let streams = Streams::new();
        let ahead = starts.into_iter().filter_map(|s| streams.read(&(s..s + 8), true));
        ahead.map(|r| r.end - r.start).collect()
    }

    #[test]
    fn what_follows_doubles_up_to_a_limit() {
        let ahead = asked((0..1000).map(|i| i * 8));
        assert_eq!(ahead[..3], [32, 48, 80]);
        assert!(ahead.iter().all(|n| *n <= WINDOW_MAX));
        // All of it was asked for, once, and no further than the window.
        let total: u64 = ahead.iter().sum();
        assert!((7000..=8000 + WINDOW_MAX).contains(&total), "{total}");
    }

    #[test]
    fn reads_at_random_ask_for_nothing() {
        let mut at = 1u64;
        let starts = (0..1000).map(|_| {
            at = at.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            at >> 30
        });
        assert_eq!(asked(starts), [0; 0]);
    }

    #[test]
    fn two_streams_at_once_and_threads_out_of_order() {
        let two = asked((0..100).flat_map(|i| [i * 8, 1_000_000 + i * 8]));
        assert!(two.len() > 10);
        // Pairs of threads that overtake each other.
        let crossed = asked((0..100).flat_map(|i| [i * 16 + 8, i * 16]));
        assert!(crossed.len() > 5, "{crossed:?}");
    }
}
