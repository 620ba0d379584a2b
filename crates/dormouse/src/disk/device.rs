//! The disk itself: what a front end reads.
//!
//! Invariant: a read that finds all of its blocks on this machine takes no other thread's time;
//! one that does not waits for the blocks that are missing, and for no others.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use dormouse_device::{BlockDevice, Change, Changes, Error, Extent, Geometry, Result};
use dormouse_format::Block;
use dormouse_format::geometry::blocks;
use dormouse_format::limits::BLOCK_SIZE;
use dormouse_format::point::StoredPoint;

use super::Shared;
use super::ahead::Streams;
use super::blocks::{Missing, PIECE};
use super::pilot::Command;
use super::waits::{Fault, Wait};
use crate::netdisk::Below;
use crate::text::now_ns;
use crate::when::{self, When};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Blocks that may be asked for ahead and not be here yet (64 MiB).
const AHEAD_MAX: u64 = 16_384;

/// A point of a volume.
pub(super) struct Disk {
    pub(super) shared: Arc<Shared>,
    pub(super) size: AtomicU64,
    pub(super) timeout: Option<Duration>,
    pub(super) commands: Sender<Command>,
    pub(super) streams: Streams,
    /// The newest points up to this one, to compare with.
    pub(super) points: Vec<StoredPoint>,
    pub(super) threads: Vec<JoinHandle<()>>,
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Close);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The blocks that hold these bytes.
const fn covering(at: u64, len: u64) -> Range<Block> {
    at / BLOCK..(at + len).div_ceil(BLOCK)
}

impl Disk {
    fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    fn until(&self) -> Option<Instant> {
        self.timeout.map(|timeout| Instant::now() + timeout)
    }

    fn check(&self, at: u64, len: u64) -> Result<()> {
        let end = at.checked_add(len);
        if len == 0 || end.is_none_or(|end| end > self.size()) {
            return Err(Error::Range { at, len });
        }
        Ok(())
    }

    /// Reads whole blocks.
    fn read_blocks(&self, first: Block, out: &mut [u8]) -> Result<()> {
        let all = first..first + (out.len() / BLOCK_SIZE) as u64;
        let mut pieces = out.chunks_mut(PIECE * BLOCK_SIZE).zip((all.start..).step_by(PIECE));
        pieces.try_for_each(|(out, first)| {
            let mut missing = Missing::all(out.len() / BLOCK_SIZE);
            self.shared.blocks.get(first, out, &mut missing);
            let missed = !missing.is_empty();
            let range = first..first + (out.len() / BLOCK_SIZE) as u64;
            if let Some(ahead) = self.streams.read(&range, missed) {
                self.ahead(ahead);
            }
            if !missed {
                return Ok(());
            }
            // The rest of this read is asked for before it is waited for.
            let rest = range.end..all.end.min(range.end + 2 * PIECE as u64);
            if !rest.is_empty() {
                self.ahead(rest);
            }
            self.fetch(first, out, &mut missing)
        })
    }

    /// Gets what is missing, and waits for it.
    fn fetch(&self, first: Block, out: &mut [u8], missing: &mut Missing) -> Result<()> {
        let until = self.until();
        while !missing.is_empty() {
            if let Some(why) = self.shared.refused() {
                return Err(Error::Damaged(why));
            }
            let mut waits = Vec::new();
            let mut from = 0;
            while let Some(run) = missing.run(from) {
                from = run.end;
                let wait = self.shared.waits.add(first + run.start as u64, run.len())?;
                let (id, count) = (wait.id, run.len() as u64);
                let command = Command::Read { id, first: first + run.start as u64, count };
                waits.push((wait, run));
                self.commands.send(command).map_err(|_| Error::Closed)?;
            }
            let done = waits.iter().try_for_each(|(wait, run)| {
                let out = &mut out[run.start * BLOCK_SIZE..run.end * BLOCK_SIZE];
                self.wait(wait, until, out, missing, run.start)
            });
            for (wait, _) in &waits {
                self.shared.waits.remove(wait.id);
                if done.is_err() {
                    let _ = self.commands.send(Command::Cancel(wait.id));
                }
            }
            done?;
            // What has not come is on this machine.
            self.shared.blocks.get(first, out, missing);
        }
        Ok(())
    }

    fn wait(
        &self,
        wait: &Wait,
        until: Option<Instant>,
        out: &mut [u8],
        missing: &mut Missing,
        skip: usize,
    ) -> Result<()> {
        match wait.wait(until, out, missing, skip) {
            Some(how) => Ok(how?),
            None => Err(self.too_late()),
        }
    }

    fn too_late(&self) -> Error {
        let seconds = self.timeout.unwrap_or_default().as_secs_f64();
        let why = self.shared.away().unwrap_or_else(|| "the server is too slow".to_owned());
        Error::TimedOut(format!("{seconds} s are over: {why}"))
    }

    fn ahead(&self, range: Range<Block>) {
        let end = range.end.min(blocks(self.size()));
        let here = |block: &Block| self.shared.blocks.holds(*block);
        let Some(first) = (range.start..end).find(|block| !here(block)) else { return };
        if self.shared.ahead.load(Ordering::Relaxed) < AHEAD_MAX {
            let _ = self.commands.send(Command::Ahead { first, count: end - first });
        }
    }

    /// Asks for ranges, and waits for the answer.
    fn ranges(
        &self,
        with: Option<usize>,
        at: u64,
        len: u64,
        most: usize,
    ) -> Result<Vec<(u64, bool)>> {
        self.check(at, len)?;
        let range = covering(at, len);
        if let Some(why) = self.shared.refused() {
            return Err(Error::Damaged(why));
        }
        // Each long read asks first: it costs no other thread's time when all is here.
        let known = with.is_none() && range.end - range.start <= PIECE as u64;
        let known = known.then(|| self.shared.blocks.runs(range.clone())).flatten();
        let mut parts = match known {
            Some(parts) => parts,
            None => self.survey(with, &range, most)?,
        };
        parts.truncate(most.max(1));
        // From blocks to bytes: the first and the last may count in part.
        let mut from = at;
        let mut end = range.start * BLOCK;
        let mut bytes = Vec::with_capacity(parts.len());
        for (blocks, what) in parts {
            end += blocks * BLOCK;
            let until = end.min(at + len);
            bytes.push((until - from, what));
            from = until;
        }
        Ok(bytes)
    }

    /// Asks the pilot for ranges of blocks.
    fn survey(
        &self,
        with: Option<usize>,
        range: &Range<Block>,
        most: usize,
    ) -> Result<Vec<(u64, bool)>> {
        let (answer, answered) = bounded(1);
        let (first, count) = (range.start, range.end - range.start);
        let command = Command::Survey { with, first, count, most: most.max(1), answer };
        self.commands.send(command).map_err(|_| Error::Closed)?;
        self.answer(&answered)?.map_err(|e| Error::Damaged(e.to_string()))
    }

    fn answer<T>(&self, answered: &crossbeam_channel::Receiver<T>) -> Result<T> {
        use crossbeam_channel::RecvTimeoutError::{Disconnected, Timeout};
        let received = match self.until() {
            Some(until) => answered.recv_deadline(until),
            None => answered.recv().map_err(|_| Disconnected),
        };
        received.map_err(|e| match e {
            Timeout => self.too_late(),
            Disconnected => self.shared.refused().map_or(Error::Closed, Error::Damaged),
        })
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Lost(why) => Self::Damaged(why),
            Fault::Closed => Self::Closed,
        }
    }
}

/// A disk, shared with what compares it.
pub(super) struct Attached(pub(super) Arc<Disk>);

impl BlockDevice for Attached {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.0.size(), block: BLOCK_SIZE as u32, read_only: true }
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let disk = &*self.0;
        disk.check(at, out.len() as u64)?;
        if at.is_multiple_of(BLOCK) && out.len().is_multiple_of(BLOCK_SIZE) {
            return disk.read_blocks(at / BLOCK, out);
        }
        let range = covering(at, out.len() as u64);
        let mut whole = [0; BLOCK_SIZE];
        let mut at = at;
        let mut out = out;
        // A part of the first block, whole ones, a part of the last.
        for block in [range.start, range.end - 1] {
            if !at.is_multiple_of(BLOCK) || out.len() < BLOCK_SIZE {
                if out.is_empty() {
                    break;
                }
                disk.read_blocks(at / BLOCK, &mut whole)?;
                let skip = (at % BLOCK) as usize;
                let n = out.len().min(BLOCK_SIZE - skip);
                let (head, rest) = out.split_at_mut(n);
                head.copy_from_slice(&whole[skip..skip + n]);
                (at, out) = (at + n as u64, rest);
            }
            if block == range.start {
                let n = out.len() / BLOCK_SIZE * BLOCK_SIZE;
                let (middle, rest) = out.split_at_mut(n);
                if n > 0 {
                    disk.read_blocks(at / BLOCK, middle)?;
                }
                (at, out) = (at + n as u64, rest);
            }
        }
        Ok(())
    }

    fn ready(&self, at: u64, len: u64) -> bool {
        self.0.shared.blocks.holds_all(covering(at, len))
    }

    fn prefetch(&self, at: u64, len: u64) -> Result<()> {
        self.0.check(at, len)?;
        self.0.ahead(covering(at, len));
        Ok(())
    }

    fn extents(&self, at: u64, len: u64, most: usize) -> Result<Vec<Extent>> {
        let parts = self.0.ranges(None, at, len, most)?;
        Ok(parts.into_iter().map(|(len, zero)| Extent { len, hole: zero, zero }).collect())
    }

    fn changes_since(&self, point: &str) -> Result<Arc<dyn Changes>> {
        let unknown = |why: String| Error::Io(std::io::Error::other(why));
        let points = &self.0.points;
        let when = When(Some(point.to_owned()));
        let at =
            when::resolve(points, &when, now_ns(), true).map_err(|e| unknown(format!("{e:#}")))?;
        let point = points[at];
        let base = points.iter().find(|p| p.point().seq == point.point().checkpoint);
        let Some(checkpoint) = base else {
            return Err(unknown("that point is too old to be compared with here".into()));
        };
        let (answer, answered) = bounded(1);
        let (point, checkpoint) = (Box::new(point), Box::new(*checkpoint));
        let command = Command::View { point, checkpoint, answer };
        self.0.commands.send(command).map_err(|_| Error::Closed)?;
        let view = self.0.answer(&answered)?.map_err(|e| Error::Damaged(e.to_string()))?;
        Ok(Arc::new(Since { disk: Arc::clone(&self.0), view }))
    }
}

impl Attached {
    /// Has the pilot change what it reads by, and waits until it has.
    fn change(
        &self,
        command: impl FnOnce(Sender<dormouse_sync::Result<()>>) -> Command,
    ) -> Result<()> {
        let (answer, answered) = bounded(1);
        self.0.commands.send(command(answer)).map_err(|_| Error::Closed)?;
        let done = answered.recv().map_err(|_| Error::Closed)?;
        done.map_err(|e| Error::Damaged(e.to_string()))
    }
}

impl Below for Attached {
    fn apply(&self, size: u64, extents: &[Vec<u8>]) -> Result<()> {
        let extents = extents.to_vec();
        self.change(|answer| Command::Apply { size, extents, answer })?;
        self.0.size.store(size, Ordering::SeqCst);
        Ok(())
    }

    fn rebase(&self, checkpoint: &StoredPoint) -> Result<()> {
        let checkpoint = Box::new(*checkpoint);
        self.change(|answer| Command::Rebase { checkpoint, answer })
    }

    fn offer(&self, block: Block, bytes: &[u8]) {
        self.0.shared.blocks.offer(block, bytes);
    }
}

/// What changed since another point.
struct Since {
    disk: Arc<Disk>,
    view: usize,
}

impl Changes for Since {
    fn parts(&self, at: u64, len: u64, most: usize) -> Result<Vec<Change>> {
        let parts = self.disk.ranges(Some(self.view), at, len, most)?;
        Ok(parts.into_iter().map(|(len, changed)| Change { len, changed }).collect())
    }
}
