//! What is sent: a cut of the log, until the server has it; and on what the log builds.
//!
//! Invariant: a cut is a prefix of what was written. It is forgotten, and its files go, only after
//! the log says on which point it builds without it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, MutexGuard, PoisonError};

use dormouse_format::limits::BLOCK_SIZE;

use super::append::Entry;
use super::entry::{Base, FILE_HEAD, FileHead, HASH_SUMS, Kind, hash_sums};
use super::file::LogFile;
use super::read::read_content;
use super::runs::{Content, Runs};
use super::{BLOCK, Part, State, WriteLog, failed, files, private};
use crate::{Error, Result};

/// What was written up to one moment: a prefix of the log. It stays readable until it is
/// forgotten.
#[derive(Debug, Clone)]
pub struct Cut {
    runs: Arc<Runs>,
    /// The disk's size then.
    pub size: u64,
    /// Entries with a lower number are in it.
    pub seq: u64,
    /// The first file that is not of it.
    behind: u64,
}

impl WriteLog {
    /// What is written from now on builds on `base`, and so does what was written and not
    /// forgotten. That is durable when this returns: only then may a point be made under a new
    /// generation. For one thread.
    pub fn rebase(&self, base: Base) -> Result<()> {
        let _turn = self.turn();
        let part = self.next_file()?;
        let file = Arc::clone(&part.file);
        let mut state = self.state();
        state.base = Some(base);
        self.go_on_in(part, &mut state)?;
        drop(state);
        self.sync(&self.syncing(), &[file])
    }

    /// Takes what was written so far, together with what an earlier cut took and was not
    /// forgotten; `None` if there is nothing. For one thread.
    pub fn cut(&self) -> Result<Option<Cut>> {
        let _turn = self.turn();
        let state = self.state();
        if !state.touched {
            return Ok(state.old.is_some().then(|| state.as_cut()));
        }
        drop(state);
        let part = self.next_file()?;
        let file = Arc::clone(&part.file);
        let mut state = self.state();
        let now = std::mem::take(&mut state.now);
        let old = match state.old.take() {
            None => now,
            Some(old) => {
                let mut old = Arc::unwrap_or_clone(old);
                now.all().for_each(|(start, end, content)| old.put(start, end, content.clone()));
                old
            }
        };
        state.old = Some(Arc::new(old));
        state.touched = false;
        self.go_on_in(part, &mut state)?;
        let cut = state.as_cut();
        drop(state);
        // Before a point is made of it: so it is known to be of this log.
        self.sync(&self.syncing(), &[file])?;
        Ok(Some(cut))
    }

    /// Forgets a cut: the server has it. What was written since builds on `base`.
    pub fn forget(&self, cut: Cut, base: Base) -> Result<()> {
        let _turn = self.turn();
        let mut state = self.state();
        // Nobody sees one without the other.
        self.say_base(&mut state, base, false)?;
        let old = state.old.take();
        drop(state);
        let behind = cut.behind;
        drop((cut, old));
        // What cannot be removed takes room, and goes with the next cut.
        let _ = self.remove_first(|part| part.file.number < behind);
        Ok(())
    }

    /// What is written, and not forgotten, builds on this point, of the same generation: it has
    /// the same content as the one before, and what was forgotten.
    pub fn builds_on(&self, base: Base) -> Result<()> {
        let mut state = self.state();
        let with_cut = state.old.is_some();
        self.say_base(&mut state, base, with_cut)
    }

    /// Says on what the log builds, and whether a point may be made of a cut after that.
    pub(super) fn say_base(&self, state: &mut State, base: Base, with_cut: bool) -> Result<()> {
        if let Some(why) = state.ended {
            return Err(failed(why));
        }
        let kind = if with_cut { Kind::BaseOfCut } else { Kind::Base };
        let sums = Box::new(hash_sums(&base.hash));
        let entry = Entry { count: HASH_SUMS, sums, ..Entry::of(kind, base.seq) };
        self.append_now(state, vec![entry])?;
        state.base = Some(base);
        Ok(())
    }

    /// Takes turns: who begins files, or removes some.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file that was made ahead, or a new one. In one's turn.
    fn next_file(&self) -> Result<Part> {
        let spare = self.state().spare.take();
        spare.map_or_else(|| self.new_file(), Ok)
    }

    /// A new file, empty, whose name is durable: so a file that is missing was forgotten or has left, and
    /// one that was lost in a crash is seen by its name. In one's turn.
    pub(super) fn new_file(&self) -> Result<Part> {
        let number = self.state().take_number();
        let path = self.dir.join(files::name(number));
        let file = private().create_new(true).open(&path)?;
        if let Err(e) = File::open(&self.dir).and_then(|dir| dir.sync_all()) {
            let _ = std::fs::remove_file(&path);
            return Err(e.into());
        }
        Ok(Part { file: Arc::new(LogFile::new(number, path, file)), len: 0, synced: false })
    }

    /// Entries go into `part` from now on. A failure ends the log.
    pub(super) fn go_on_in(&self, part: Part, state: &mut State) -> Result<()> {
        if let Err(e) = self.write_head(&part, state) {
            state.ended.get_or_insert("the write log could not go on in a new file");
            self.tell_all();
            return Err(e);
        }
        state.begin(part);
        Ok(())
    }

    /// Writes where the log stands at the beginning of `part`. What does not follow it is not taken.
    pub(super) fn write_head(&self, part: &Part, state: &State) -> Result<()> {
        let Some(base) = state.base else { return Err(Error::Closed) };
        let (salt, size, seq, chain) = (self.salt, state.size, state.seq, state.chain);
        // What was cut, and is not forgotten, may become a point.
        let (number, after_cut) = (part.file.number, state.old.is_some());
        let head = FileHead { number, after_cut, salt, base, size, seq, chain };
        Ok(part.file.file.write_all_at(&head.encode(), 0)?)
    }
}

impl State {
    /// Entries go into a file that has its head.
    pub(super) fn begin(&mut self, part: Part) {
        self.files.push_back(Part { len: FILE_HEAD as u64, ..part });
        self.tail = FILE_HEAD as u64;
        self.bytes += FILE_HEAD as u64;
    }

    /// What was cut off last.
    fn as_cut(&self) -> Cut {
        let behind = self.files.back().map_or(0, |part| part.file.number);
        let runs = self.old.clone().unwrap_or_default();
        Cut { runs, size: self.size, seq: self.seq, behind }
    }

    const fn take_number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }
}

impl Cut {
    /// What it holds: first block, the one behind the last, and whether they are zeros.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64, bool)> {
        self.runs
            .all()
            .map(|(start, end, content)| (start, end, matches!(content, Content::Zero(_))))
    }

    /// The first block from `from` on that it holds.
    pub fn next(&self, from: u64) -> Option<u64> {
        self.runs.next(from)
    }

    /// Parts of `start` to `end` that it holds.
    pub fn held(&self, start: u64, end: u64, take: &mut dyn FnMut(u64, u64)) {
        self.runs.parts(start, end, &mut |start, end, content| {
            if content.is_some() {
                take(start, end);
            }
        });
    }

    /// Reads whole blocks, all of which it holds.
    pub fn read(&self, block: u64, out: &mut [u8]) -> Result<()> {
        let end = block + out.len() as u64 / BLOCK;
        let mut done = Ok(());
        self.runs.parts(block, end, &mut |start, stop, content| {
            let range = (start - block) as usize * BLOCK_SIZE..(stop - block) as usize * BLOCK_SIZE;
            if let (Some(content), Ok(())) = (content, &done) {
                done = read_content(start, content, &mut out[range]);
            }
        });
        done
    }
}
