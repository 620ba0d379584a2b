//! Which blocks were written, and where their newest content lies: runs that do not overlap.
//!
//! Invariant: a block is in at most one run, and that is the one that was put last.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::file::LogFile;

/// Blocks that one entry wrote.
#[derive(Debug)]
pub(super) struct Span {
    /// The file that it lies in.
    pub file: Arc<LogFile>,
    /// Seeds its sums.
    pub salt: u64,
    /// The first block.
    pub block: u64,
    /// Where its data begins in the file.
    pub at: u64,
    /// The sum of each of its blocks.
    pub sums: Box<[u64]>,
}

/// What blocks of a run hold.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// The file has the entry that says so.
    Zero(Arc<LogFile>),
    Data(Arc<Span>),
}

impl Content {
    /// The file that it lies in.
    pub(super) fn file(&self) -> &LogFile {
        match self {
            Self::Zero(file) => file,
            Self::Data(span) => &span.file,
        }
    }
}

#[derive(Debug, Clone)]
struct Run {
    end: u64,
    content: Content,
}

/// Runs by their first block.
#[derive(Debug, Default, Clone)]
pub(super) struct Runs(BTreeMap<u64, Run>);

impl Runs {
    /// Puts a run over whatever was there.
    pub(super) fn put(&mut self, start: u64, end: u64, content: Content) {
        if self.0.range_mut(..end).next_back().is_some_and(|(_, run)| run.end > start) {
            self.clear(start, end);
        }
        self.0.insert(start, Run { end, content });
    }

    /// Puts content in the place of the very same run: what it was before; or gives it back, if
    /// there is no such run.
    pub(super) fn swap(
        &mut self,
        start: u64,
        end: u64,
        content: Content,
    ) -> Result<Content, Content> {
        match self.0.get_mut(&start) {
            Some(run) if run.end == end => Ok(std::mem::replace(&mut run.content, content)),
            _ => Err(content),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes blocks out.
    fn clear(&mut self, start: u64, end: u64) {
        if let Some((_, run)) = self.0.range_mut(..start).next_back()
            && run.end > start
        {
            let tail = Run { end: run.end, content: run.content.clone() };
            run.end = start;
            if tail.end > end {
                self.0.insert(end, tail);
                return;
            }
        }
        while let Some((&first, run)) = self.0.range(start..end).next() {
            let tail = (run.end > end).then(|| run.clone());
            self.0.remove(&first);
            if let Some(tail) = tail {
                self.0.insert(end, tail);
            }
        }
    }

    /// Parts of `start` to `end`, in order; those without content are not in any run.
    pub(super) fn parts(
        &self,
        start: u64,
        end: u64,
        take: &mut dyn FnMut(u64, u64, Option<&Content>),
    ) {
        let mut at = start;
        let before = self.0.range(..start).next_back().filter(|(_, run)| run.end > start);
        for (&first, run) in before.into_iter().chain(self.0.range(start..end)) {
            let first = first.max(start);
            if first > at {
                take(at, first, None);
            }
            at = run.end.min(end);
            take(first, at, Some(&run.content));
        }
        if at < end {
            take(at, end, None);
        }
    }

    /// The first block from `from` on that is in a run.
    pub(super) fn next(&self, from: u64) -> Option<u64> {
        let before = self.0.range(..from).next_back().filter(|(_, run)| run.end > from);
        before.map(|_| from).or_else(|| self.0.range(from..).next().map(|(first, _)| *first))
    }

    /// Whether `block` is in a run, and up to where before `end` that is the same.
    pub(super) fn same(&self, block: u64, end: u64) -> (bool, u64) {
        let mut at = block;
        while let Some(until) = self.run_end(at).filter(|_| at < end) {
            at = until;
        }
        if at > block {
            return (true, at.min(end));
        }
        let next = self.0.range(block..end).next().map_or(end, |(first, _)| *first);
        (false, next)
    }

    /// Where the run ends that `block` is in.
    pub(super) fn run_end(&self, block: u64) -> Option<u64> {
        let before = self.0.range(..=block).next_back();
        before.map(|(_, run)| run.end).filter(|end| *end > block)
    }

    /// All runs, in order: first block, and the one behind the last.
    pub(super) fn all(&self) -> impl Iterator<Item = (u64, u64, &Content)> {
        self.0.iter().map(|(start, run)| (*start, run.end, &run.content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Zero or one of eight spans, as numbers.
    fn number(content: Option<&Content>) -> u64 {
        match content {
            None => 0,
            Some(Content::Zero(_)) => 1,
            Some(Content::Data(span)) => 2 + span.salt,
        }
    }

    #[test]
    fn equals_a_plain_array() {
        let mut state = 99u64;
        let mut random = move |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        let file = tempfile::tempfile().unwrap();
        let file = Arc::new(LogFile::new(1, "".into(), file));
        for _ in 0..300 {
            let (mut plain, mut runs) = ([0u64; 64], Runs::default());
            for _ in 0..40 {
                let start = random(64);
                let end = start + 1 + random(64 - start);
                let content = match random(3) {
                    0 => Content::Zero(Arc::clone(&file)),
                    _ => Content::Data(Arc::new(Span {
                        file: Arc::clone(&file),
                        salt: random(1 << 30),
                        block: start,
                        at: 0,
                        sums: Box::new([]),
                    })),
                };
                plain[start as usize..end as usize].fill(number(Some(&content)));
                // Another way for the same run.
                if let Err(content) = runs.swap(start, end, content) {
                    runs.put(start, end, content);
                }
                let (from, to) = (random(32), 32 + random(32));
                let mut seen = Vec::new();
                runs.parts(from, to, &mut |s, e, c| {
                    assert_eq!(s, from + seen.len() as u64);
                    seen.extend((s..e).map(|_| number(c)));
                });
                assert_eq!(seen, plain[from as usize..to as usize]);
                let same = plain[from as usize..to as usize].iter();
                let like = |n: &&u64| (**n != 0) == (plain[from as usize] != 0);
                let count = same.take_while(like).count() as u64;
                assert_eq!(runs.same(from, to), (plain[from as usize] != 0, from + count));
                let next = plain[from as usize..].iter().position(|n| *n != 0);
                assert_eq!(runs.next(from), next.map(|n| from + n as u64));
                let all: u64 = runs.all().map(|(s, e, _)| e - s).sum();
                assert_eq!(all, plain.iter().filter(|n| **n != 0).count() as u64);
            }
        }
    }
}
