//! Reading: the newest content of a block, where it was written here.
//!
//! Invariant: what is given out has the sum with which it was written.

use std::os::unix::fs::FileExt;

use dormouse_format::limits::BLOCK_SIZE;

use super::entry::block_sum;
use super::runs::Content;
use super::{BLOCK, WriteLog};
use crate::{Error, Result};

impl WriteLog {
    /// Reads `out`, whole blocks from `block` on, where they were written here; `missing` gets
    /// the first block and the number of those that were not.
    pub fn read(&self, block: u64, out: &mut [u8], missing: &mut Vec<(u64, u64)>) -> Result<()> {
        let end = block + out.len() as u64 / BLOCK;
        let mut found = Vec::new();
        {
            let state = self.state();
            state.now.parts(block, end, &mut |start, stop, content| match content {
                Some(content) => found.push((start, stop, content.clone())),
                None => match &state.old {
                    Some(old) => {
                        old.parts(start, stop, &mut |start, stop, content| match content {
                            Some(content) => found.push((start, stop, content.clone())),
                            None => missing.push((start, stop - start)),
                        })
                    }
                    None => missing.push((start, stop - start)),
                },
            });
        }
        for (start, stop, content) in found {
            let range = (start - block) as usize * BLOCK_SIZE..(stop - block) as usize * BLOCK_SIZE;
            read_content(start, &content, &mut out[range])?;
        }
        Ok(())
    }

    /// Whether `block` was written here, and up to where before `end` that is so.
    pub fn held(&self, block: u64, end: u64) -> (bool, u64) {
        let state = self.state();
        let new = state.now.same(block, end);
        if new.0 {
            return new;
        }
        state.old.as_ref().map_or(new, |old| old.same(block, new.1))
    }

    /// Whether `block`, which was written here, is zeros, and up to where that is one run.
    pub fn zeros(&self, block: u64) -> (bool, u64) {
        let state = self.state();
        let (held, end) = state.now.same(block, u64::MAX);
        let runs = if held { Some(&state.now) } else { state.old.as_deref() };
        let mut found = (false, end);
        if let Some(runs) = runs {
            runs.parts(block, block + 1, &mut |_, _, content| {
                found.0 = matches!(content, Some(Content::Zero(_)));
            });
            found.1 = found.1.min(runs.run_end(block).unwrap_or(end));
        }
        found
    }
}

pub(super) fn read_content(block: u64, content: &Content, out: &mut [u8]) -> Result<()> {
    let Content::Data(span) = content else {
        out.fill(0);
        return Ok(());
    };
    span.file.file.read_exact_at(out, span.at + (block - span.block) * BLOCK)?;
    for (bytes, number) in out.chunks_exact(BLOCK_SIZE).zip(block..) {
        let sum = span.sums.get((number - span.block) as usize);
        if sum != Some(&block_sum(span.salt, number, bytes)) {
            return Err(Error::Damaged(format!("block {number} is damaged in the write log")));
        }
    }
    Ok(())
}
