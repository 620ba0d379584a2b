//! Room without the server: files in which nothing counts any more leave the log.
//!
//! Files leave from its front only, so what is left is the end of what was written, and is read like
//! any log. Invariant: when a file leaves, each of its blocks was written again later, all up to there
//! is durable, and so is an entry that says it: a state from before can never be what the log reads as, and
//! from there on all states are the same without the file. So the server's copy stays a prefix, and so
//! does what is read after a crash.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{Part, State, WriteLog};
use crate::{Error, Result};

/// A file may become so many times longer than asked for while the next one is being made.
const LONGER: u64 = 8;
/// Files leave when the log holds more than this part of what it may.
const FILLING: u64 = 4;

/// Files that have left are looked at so often, while somebody reads them.
const SWEEP_EVERY: Duration = Duration::from_millis(100);

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
            if state.left.is_empty() {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // Nobody says when the last reader of a file is gone.
            let waited = self.work.wait_timeout(state, SWEEP_EVERY);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            self.sweep();
            state = self.state();
        }
    }

    /// Makes the next file ahead, and lets the files go in which nothing counts any more: how many.
    /// For one thread, beside those that write.
    pub fn keep(&self) -> Result<usize> {
        // Where no file can be made, those that leave may make room for it.
        let spare = self.make_spare();
        self.rotate(&mut self.state());
        let Some((last, count)) = self.leaving(&self.state()) else { return spare.map(|()| 0) };
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
        spare.map(|()| count)
    }

    /// Goes on in the next file, if this one is long enough, and that one is there and takes its head.
    pub(super) fn rotate(&self, state: &mut State) {
        if state.tail < self.limits.part {
            return;
        }
        let Some(part) = state.spare.take() else { return };
        match self.write_head(&part, state) {
            Ok(()) => state.begin(part),
            Err(_) => state.spare = Some(part),
        }
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
        let removed = gone.into_iter().try_for_each(|file| {
            remove(&file.path)?;
            let mut state = self.state();
            let part = state.files.pop_front();
            state.left.extend(part);
            Ok(())
        });
        self.sweep();
        removed
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

/// Removes a file; one that somebody else removed is gone, too.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BLOCK, Base, Limits};
    use super::*;

    /// Whoever reads a file when it leaves gives its room back when it is done, also if nobody else
    /// does anything then.
    #[test]
    fn a_file_that_is_read_while_it_leaves_gives_its_room_back() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { bytes: 1 << 20, part: 64 << 10, wait: Some(Duration::ZERO) };
        let (log, _) = WriteLog::open(dir.path(), limits, 7).unwrap();
        let base = Base { volume: [1; 16], generation: 2, seq: 3, hash: [4; 32] };
        log.begin(base, 1 << 30).unwrap();
        let reader = Arc::clone(&log.state().files[0].file);
        for n in 0..200_u64 {
            log.write(n % 4, &vec![n as u8; BLOCK as usize]).unwrap();
            if n % 8 == 0 {
                log.make_spare().unwrap();
            }
        }
        let (full, _) = log.kept();
        assert!(log.keep().unwrap() > 5);
        let (kept, _) = log.kept();
        let held = reader.file.metadata().unwrap().len();
        assert!(kept < full && kept > held, "{kept} of {full}");
        std::thread::scope(|scope| {
            let keeper = scope.spawn(|| log.wait_to_keep());
            drop(reader);
            let began = std::time::Instant::now();
            while log.kept().0 > kept - held && began.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(10));
            }
            let left = log.kept().0;
            log.end("the test is over");
            assert!(!keeper.join().unwrap());
            assert!(left <= kept - held, "{left}, {held} less than {kept}");
        });
    }
}
