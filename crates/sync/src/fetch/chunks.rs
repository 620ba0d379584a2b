//! The second stage: chunks are asked for within a window, and what comes is handed out.
//!
//! Invariant: blocks and chunks under way are bounded, however few blocks are wanted of each.

use dormouse_format::limits::GET_MAX;

use super::{Action, Fetch, Question};
use crate::chunks::{Asked, Chunks, Next, OpenJob, Want};
use crate::error::{Error, Result};

/// Blocks asked for and not yet written, at most (96 MiB).
const WINDOW: u64 = 24_576;
/// Chunks asked for and not yet written, at most. A chunk that one block is wanted of may
/// have 64, and the server says how long its record is: up to 257 KiB each, 1 GiB together.
const CHUNKS: usize = 4096;

impl Fetch {
    pub(super) fn ask_chunks(&mut self, actions: &mut Vec<Action>) {
        let mut ids = Vec::new();
        while ids.len() < GET_MAX && self.under_way < WINDOW && self.open < CHUNKS {
            let Some(want) = self.want.pop_front() else { break };
            ids.push(want.id);
            self.open += 1;
            self.under_way += want.blocks;
            self.questions.push_back(Question::Of(Asked::Chunk(want)));
        }
        if !ids.is_empty() {
            actions.push(Action::Send(self.chunks.question(0, ids)));
        }
    }

    pub(super) fn chunk(
        &mut self,
        want: Want,
        bytes: Vec<u8>,
        actions: &mut Vec<Action>,
    ) -> Result<()> {
        Chunks::check(&want, &bytes)?;
        self.progress.chunks += 1;
        self.progress.received += bytes.len() as u64;
        let mut next = Vec::new();
        self.chunks.record(want, bytes, &mut next)?;
        self.go_on(next, actions)
    }

    pub(super) fn broken(
        &mut self,
        job: OpenJob,
        error: Error,
        actions: &mut Vec<Action>,
    ) -> Result<()> {
        let next = self.chunks.broken(job, error);
        self.go_on([next], actions)
    }

    pub(super) fn go_on(
        &mut self,
        next: impl IntoIterator<Item = Next>,
        actions: &mut Vec<Action>,
    ) -> Result<()> {
        for next in next {
            match next {
                Next::Ask(message, asked) => {
                    actions.push(Action::Send(message));
                    self.questions.push_back(Question::Of(asked));
                }
                Next::Open(job) => actions.push(Action::Open(job)),
                Next::Lost(want, error) => {
                    self.settled(want.blocks);
                    self.fault(error)?;
                }
            }
        }
        Ok(())
    }

    fn fault(&mut self, e: Error) -> Result<()> {
        self.progress.bad += 1;
        if !self.plan.keep_going {
            return Err(e);
        }
        if self.faults.len() < 10_000 {
            self.faults.push(e);
        }
        Ok(())
    }
}
