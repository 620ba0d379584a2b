//! What is sent: a cut of the log, until the server has it; and on what the log builds.
//!
//! Invariant: a cut is a prefix of what was written. It is forgotten, and its files go, only after
//! the log says on which point it builds without it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use dormouse_format::limits::BLOCK_SIZE;

use super::append::Entry;
use super::entry::{Base, FILE_HEAD, FileHead, HASH_SUMS, Kind, hash_sums};
use super::read::read_content;
use super::runs::{Content, Runs};
use super::{BLOCK, Part, State, WriteLog, files, private};
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
        let part = self.new_file()?;
        let file = Arc::clone(&part.file);
        let mut state = self.state();
        state.base = Some(base);
        // What was cut, and is not forgotten, is tried again.
        let after_cut = state.old.is_some();
        self.go_on_in(part, after_cut, &mut state)?;
        drop(state);
        Ok(file.sync_data()?)
    }

    /// Takes what was written so far, together with what an earlier cut took and was not
    /// forgotten; `None` if there is nothing. For one thread.
    pub fn cut(&self) -> Result<Option<Cut>> {
        if !self.pending() {
            return Ok(None);
        }
        let mut state = self.state();
        if state.touched {
            drop(state);
            let part = self.new_file()?;
            let file = Arc::clone(&part.file);
            state = self.state();
            self.go_on_in(part, true, &mut state)?;
            let now = std::mem::take(&mut state.now);
            let old = match state.old.take() {
                None => now,
                Some(old) => {
                    let mut old = Arc::unwrap_or_clone(old);
                    now.all()
                        .for_each(|(start, end, content)| old.put(start, end, content.clone()));
                    old
                }
            };
            state.old = Some(Arc::new(old));
            state.touched = false;
            drop(state);
            // Before a point is made of it: so it is known to be of this log.
            file.sync_data()?;
            state = self.state();
        }
        let behind = state.files.back().map_or(0, |part| part.number);
        let runs = state.old.clone().unwrap_or_default();
        Ok(Some(Cut { runs, size: state.size, seq: state.seq, behind }))
    }

    /// Forgets a cut: the server has it. What was written since builds on `base`.
    pub fn forget(&self, cut: Cut, base: Base) -> Result<()> {
        let old = self.state().old.take();
        if let Err(e) = self.builds_on(base) {
            self.state().old = old;
            return Err(e);
        }
        let behind = cut.behind;
        drop((cut, old));
        let mut state = self.state();
        while state.files.front().is_some_and(|part| part.number < behind) {
            let Some(part) = state.files.pop_front() else { break };
            let len = part.file.metadata().map_or(0, |m| m.len());
            state.bytes = state.bytes.saturating_sub(len);
            std::fs::remove_file(&part.path)?;
        }
        self.room.notify_all();
        Ok(())
    }

    /// What is written, and not forgotten, builds on this point, of the same generation: it has
    /// the same content as the one before, and what was forgotten.
    pub fn builds_on(&self, base: Base) -> Result<()> {
        let sums = hash_sums(&base.hash);
        let kind = {
            let mut state = self.state();
            state.base = Some(base);
            if state.old.is_some() { Kind::BaseOfCut } else { Kind::Base }
        };
        let sums = Box::new(sums);
        self.append(vec![Entry { count: HASH_SUMS, sums, ..Entry::of(kind, base.seq) }])
    }

    /// A new file, empty, whose name is durable: so a file that is missing was forgotten, and
    /// one that was lost in a crash is seen by its name.
    fn new_file(&self) -> Result<Part> {
        let number = self.state().take_number();
        let path = self.dir.join(files::name(number));
        let file = private().create_new(true).open(&path)?;
        File::open(&self.dir)?.sync_all()?;
        Ok(Part { number, path, file: Arc::new(file), synced: false })
    }

    /// Entries go into `part` from now on.
    fn go_on_in(&self, part: Part, after_cut: bool, state: &mut State) -> Result<()> {
        let Some(base) = state.base else { return Err(Error::Closed) };
        let (salt, size, seq, chain) = (self.salt, state.size, state.seq, state.chain);
        let number = part.number;
        let head = FileHead { number, after_cut, salt, base, size, seq, chain };
        if let Err(e) = part.file.write_all_at(&head.encode(), 0) {
            state.ended = Some("the write log could not go on in a new file");
            self.room.notify_all();
            return Err(e.into());
        }
        state.files.push_back(part);
        state.tail = FILE_HEAD as u64;
        state.bytes += FILE_HEAD as u64;
        Ok(())
    }
}

impl State {
    const fn take_number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }
}

impl Cut {
    /// What it holds: first block, the one behind the last, and whether they are zeros.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64, bool)> {
        self.runs.all().map(|(start, end, content)| (start, end, matches!(content, Content::Zero)))
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
