//! Room without the server: files in which nothing counts any more leave the log.
//!
//! Files leave from its front only, so what is left is the end of what was written, and is read like
//! any log. Invariant: when a file leaves, each of its blocks was written again later, all up to there
//! is durable, and so is an entry that says it: a state from before can never be what the log reads as, and
//! from there on all states are the same without the file. So the server's copy stays a prefix, and so
//! does what is read after a crash.

use std::sync::{Arc, PoisonError};

use super::{Part, State, WriteLog};
use crate::{Error, Result};

/// A file may become so many times longer than asked for while the next one is being made.
const LONGER: u64 = 8;
/// Files leave when the log holds more than this part of what it may.
const FILLING: u64 = 4;

impl WriteLog {
    /// Waits until there is something to do for [`Self::keep`]; false when the log has ended.
    pub fn wait_to_keep(&self) -> bool {
        let mut state = self.state();
        loop {
            if state.ended.is_some() {
                return false;
            }
            if self.wants_spare(&state) || self.leaving(&state).is_some() {
                return true;
            }
            state.keeper_waits = true;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Makes the next file ahead, and lets the files go in which nothing counts any more: how many.
    /// For one thread, beside those that write.
    pub fn keep(&self) -> Result<usize> {
        self.make_spare()?;
        self.rotate(&mut self.state())?;
        let Some((last, count)) = self.leaving(&self.state()) else { return Ok(0) };
        self.flush()?;
        // Said by an entry: who reads less than was durable then knows that it is damaged.
        let mut state = self.state();
        let base = state.base.ok_or(Error::Closed)?;
        let with_cut = state.old.is_some();
        self.say_base(&mut state, base, with_cut)?;
        drop(state);
        self.flush()?;
        let _turn = self.turn();
        self.remove_first(|part| part.file.number <= last)?;
        Ok(count)
    }

    /// Goes on in the next file, if this one is long enough and that one is there.
    pub(super) fn rotate(&self, state: &mut State) -> Result<()> {
        if state.tail < self.limits.part {
            return Ok(());
        }
        state.spare.take().map_or(Ok(()), |part| self.go_on_in(part, state))
    }

    /// Tells the keeper that there is something to do, if there is.
    pub(super) fn call_keeper(&self, state: &mut State) {
        if state.keeper_waits && (self.wants_spare(state) || self.leaving(state).is_some()) {
            state.keeper_waits = false;
            self.work.notify_all();
        }
    }

    /// Removes the first files, those for which this holds, but never the one that is written. In one's turn.
    pub(super) fn remove_first(&self, goes: impl Fn(&Part) -> bool) -> Result<()> {
        let state = self.state();
        let older = state.files.iter().take(state.files.len().saturating_sub(1));
        let gone: Vec<_> =
            older.take_while(|part| goes(part)).map(|part| Arc::clone(&part.file)).collect();
        drop(state);
        for file in gone {
            std::fs::remove_file(&file.path)?;
            let mut state = self.state();
            let part = state.files.pop_front();
            state.left.extend(part);
        }
        self.sweep();
        Ok(())
    }

    /// Gives back the room of files that have left and that nobody reads any more.
    fn sweep(&self) {
        let mut state = self.state();
        let left = std::mem::take(&mut state.left);
        let read = |part: &Part| Arc::strong_count(&part.file) > 1;
        let (read, free): (Vec<_>, Vec<_>) = left.into_iter().partition(read);
        state.left = read;
        drop(state);
        let bytes: u64 = free.iter().map(|part| part.len).sum();
        // This takes the file system some time.
        drop(free);
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(bytes);
        self.call_keeper(&mut state);
        drop(state);
        self.room.notify_all();
    }

    pub(super) fn make_spare(&self) -> Result<()> {
        let _turn = self.turn();
        if self.wants_spare(&self.state()) {
            let part = self.new_file()?;
            self.state().spare = Some(part);
        }
        Ok(())
    }

    /// Whether the next file is needed now, and is not there.
    pub(super) const fn wants_file(&self, state: &State) -> bool {
        state.spare.is_none() && state.tail >= self.limits.part.saturating_mul(LONGER)
    }

    /// Whether it is time to make the next file: before it is needed.
    const fn wants_spare(&self, state: &State) -> bool {
        state.spare.is_none() && state.tail >= self.limits.part / 2
    }

    /// The last file of those at the front in which nothing counts any more, and how many they are, if it
    /// is time for them to go.
    fn leaving(&self, state: &State) -> Option<(u64, usize)> {
        if state.bytes <= self.limits.bytes / FILLING {
            return None;
        }
        let older = state.files.iter().take(state.files.len().saturating_sub(1));
        let idle = older.take_while(|part| part.file.live() == 0);
        idle.enumerate().last().map(|(n, part)| (part.file.number, n + 1))
    }
}
