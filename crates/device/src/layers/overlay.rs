//! Copy on write: what is written is kept in a local file, and the disk below stays as it is.
//!
//! Owns: which blocks are in the file, and the order in which that becomes durable. Invariants: a
//! block's content is in the file, whole, before its bit is set, and durable before its bit is
//! written; bits are never cleared. So after a crash a bit that is lost means that the block below
//! is read, as before a write that was not flushed. After a flush that failed nothing is written any more.
//! Leaves to others: the file's layout ([`layout`]), the bits.

mod bits;
pub mod layout;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};

use self::bits::Bits;
use self::layout::{BLOCK, Layout};
use crate::file::FileDevice;
use crate::{BlockDevice, Change, Changes, Error, Extent, Geometry, Result, Write, Zero};

/// Blocks that share a lock.
const REGION: u64 = 256;
const LOCKS: usize = 64;

/// A writable disk over one that stays as it is.
pub struct Overlay {
    lower: Arc<dyn BlockDevice>,
    /// The file: layout, bitmap, content.
    file: Arc<dyn BlockDevice>,
    layout: Layout,
    bits: Arc<Bits>,
    /// Held while blocks of a region come into the file.
    regions: [Mutex<()>; LOCKS],
    flushing: Mutex<()>,
    broken: AtomicBool,
    /// Keeps the lock of the file.
    _lock: Option<File>,
}

impl core::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Overlay({:?})", self.layout)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Overlay {
    /// Over `lower`, in the file at `path`, which is made if it is not there. `identity` says what
    /// lies below: a file that was made over something else is refused.
    pub fn open(lower: Arc<dyn BlockDevice>, path: &Path, identity: &str) -> Result<Self> {
        let (file, new) = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => (file, false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mut how = OpenOptions::new();
                how.read(true).write(true).create_new(true).mode(0o600);
                (how.open(path)?, true)
            }
            Err(e) => return Err(e.into()),
        };
        let shown = path.display();
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| {
            let text = format!("the overlay {shown} is in use by another process ({e})");
            io::Error::new(io::ErrorKind::ResourceBusy, text)
        })?;
        let disk = |size| -> Result<Arc<dyn BlockDevice>> {
            if let Some(size) = size {
                file.set_len(size)?;
            }
            Ok(Arc::new(FileDevice::of(file.try_clone()?, false)?))
        };
        // What is empty was being made when its maker was stopped.
        let mut overlay = if new || file.metadata()?.len() == 0 {
            let layout = Layout::new(lower.geometry().size, identity)?;
            let overlay = Self::create_on(lower, disk(Some(layout.file_size()))?, layout)?;
            File::open(
                path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")),
            )?
            .sync_all()?;
            overlay
        } else {
            Self::open_on(lower, disk(None)?, identity).map_err(|e| match e {
                Error::Damaged(text) => Error::Damaged(format!("the overlay {shown}: {text}")),
                e => e,
            })?
        };
        overlay._lock = Some(file);
        Ok(overlay)
    }

    /// A new one on any disk of [`Layout::file_size`] bytes, all zeros.
    pub fn create_on(
        lower: Arc<dyn BlockDevice>,
        file: Arc<dyn BlockDevice>,
        layout: Layout,
    ) -> Result<Self> {
        file.write(0, &layout.encode(), Write { fua: true })?;
        let words = vec![0; layout.bitmap_size() as usize / 8];
        Ok(Self::with(lower, file, layout, words))
    }

    /// One that [`Self::create_on`] has made.
    pub fn open_on(
        lower: Arc<dyn BlockDevice>,
        file: Arc<dyn BlockDevice>,
        identity: &str,
    ) -> Result<Self> {
        let layout = Layout::read(&*file)?;
        layout.expect(lower.geometry().size, identity)?;
        let words = layout.bitmap(&*file)?;
        Ok(Self::with(lower, file, layout, words))
    }

    fn with(
        lower: Arc<dyn BlockDevice>,
        file: Arc<dyn BlockDevice>,
        layout: Layout,
        words: Vec<u64>,
    ) -> Self {
        Self {
            lower,
            file,
            layout,
            bits: Arc::new(Bits::new(words)),
            regions: std::array::from_fn(|_| Mutex::default()),
            flushing: Mutex::default(),
            broken: AtomicBool::new(false),
            _lock: None,
        }
    }

    /// Bytes of blocks that are in the file.
    pub fn kept(&self) -> u64 {
        self.bits.count() * BLOCK
    }

    /// Blocks that these bytes touch.
    const fn blocks(at: u64, len: u64) -> Range<u64> {
        at / BLOCK..(at + len).div_ceil(BLOCK)
    }

    /// Blocks that these bytes cover, the last one of the disk up to its end.
    fn covered(&self, at: u64, len: u64) -> Range<u64> {
        let end = at + len;
        let last = if end == self.layout.size { end.div_ceil(BLOCK) } else { end / BLOCK };
        at.div_ceil(BLOCK)..last
    }

    /// Keeps others from bringing these blocks into the file.
    fn hold(&self, blocks: &Range<u64>) -> Vec<MutexGuard<'_, ()>> {
        let regions = blocks.start / REGION..blocks.end.div_ceil(REGION);
        let wanted: BTreeSet<usize> =
            regions.take(LOCKS).map(|r| (r % LOCKS as u64) as usize).collect();
        wanted.into_iter().filter_map(|n| self.regions.get(n)).map(locked).collect()
    }

    fn usable(&self) -> Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            let text = "the overlay could not be made durable once, and is not written any more";
            return Err(Error::Damaged(text.into()));
        }
        Ok(())
    }

    /// Brings the block that holds byte `at` into the file, unless it is there; its lock is held.
    fn copy_up(&self, at: u64) -> Result<()> {
        let block = at / BLOCK;
        if self.bits.has(block) {
            return Ok(());
        }
        let mut content = [0; BLOCK as usize];
        let start = block * BLOCK;
        let len = (self.layout.size - start).min(BLOCK) as usize;
        self.lower.read(start, &mut content[..len])?;
        self.file.write(self.layout.data_at + start, &content[..len], Write::default())?;
        self.bits.set(block..block + 1);
        Ok(())
    }

    /// Does `put` with bytes of the file; blocks that they only touch are brought there before.
    fn change(&self, at: u64, len: u64, put: impl FnOnce(u64) -> Result<()>) -> Result<()> {
        self.usable()?;
        let (touched, covered) = (Self::blocks(at, len), self.covered(at, len));
        if touched.clone().all(|b| self.bits.has(b)) {
            return put(self.layout.data_at + at);
        }
        let _held = self.hold(&touched);
        if covered.start != touched.start {
            self.copy_up(at)?;
        }
        if covered.end != touched.end {
            self.copy_up(at + len - 1)?;
        }
        put(self.layout.data_at + at)?;
        self.bits.set(covered);
        Ok(())
    }
}

impl BlockDevice for Overlay {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.layout.size, block: BLOCK as u32, read_only: false }
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        for (run, here) in self.bits.runs(at, out.len() as u64) {
            let part = (run.start - at) as usize..(run.end - at) as usize;
            let Some(part) = out.get_mut(part) else { break };
            if here {
                self.file.read(self.layout.data_at + run.start, part)?;
            } else {
                self.lower.read(run.start, part)?;
            }
        }
        Ok(())
    }

    fn ready(&self, at: u64, len: u64) -> bool {
        self.bits
            .runs(at, len)
            .all(|(run, here)| here || self.lower.ready(run.start, run.end - run.start))
    }

    fn write_ready(&self, at: u64, len: u64) -> bool {
        let covered = self.covered(at, len);
        let edges = [at, at + len - 1].map(|at| at / BLOCK);
        let there = |b: u64| covered.contains(&b) || self.bits.has(b);
        edges.into_iter().all(|b| there(b) || self.lower.ready(b * BLOCK, 1))
    }

    fn prefetch(&self, at: u64, len: u64) -> Result<()> {
        for (run, here) in self.bits.runs(at, len) {
            if !here {
                self.lower.prefetch(run.start, run.end - run.start)?;
            }
        }
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8], how: Write) -> Result<()> {
        self.change(at, bytes.len() as u64, |at| self.file.write(at, bytes, Write::default()))?;
        if how.fua { self.flush() } else { Ok(()) }
    }

    fn zero(&self, at: u64, len: u64, how: Zero) -> Result<()> {
        self.change(at, len, |at| self.file.zero(at, len, Zero { fua: false, ..how }))?;
        if how.fua { self.flush() } else { Ok(()) }
    }

    fn trim(&self, at: u64, len: u64) -> Result<()> {
        // What is not covered stays as it is.
        let covered = self.covered(at, len);
        let end = (covered.end * BLOCK).min(self.layout.size);
        let start = covered.start * BLOCK;
        if start >= end {
            return Ok(());
        }
        match self.zero(start, end - start, Zero { fast: true, ..Zero::default() }) {
            Err(Error::Unsupported(_)) => Ok(()),
            done => done,
        }
    }

    fn flush(&self) -> Result<()> {
        let _one = locked(&self.flushing);
        self.usable()?;
        // Bits as they are now: the content that they speak of was written before.
        let pages = self.bits.take_stale();
        let durable = || {
            self.file.flush()?;
            if pages.is_empty() {
                return Ok(());
            }
            for (at, bytes) in &pages {
                self.file.write(self.layout.bitmap_at() + at, bytes, Write::default())?;
            }
            self.file.flush()
        };
        durable().inspect_err(|_| self.broken.store(true, Ordering::Relaxed))
    }

    fn extents(&self, at: u64, len: u64, most: usize) -> Result<Vec<Extent>> {
        let mut extents = Vec::new();
        for (run, here) in self.bits.runs(at, len) {
            let most = most - extents.len();
            if most == 0 {
                break;
            }
            let len = run.end - run.start;
            let part = if here {
                self.file.extents(self.layout.data_at + run.start, len, most)?
            } else {
                self.lower.extents(run.start, len, most)?
            };
            let told: u64 = part.iter().map(|e| e.len).sum();
            extents.extend(part);
            if told < len {
                break;
            }
        }
        Ok(extents)
    }

    fn changes_since(&self, point: &str) -> Result<Arc<dyn Changes>> {
        let lower = self.lower.changes_since(point)?;
        Ok(Arc::new(OverlayChanges { lower, bits: Arc::clone(&self.bits) }))
    }
}

/// What changed below, and all that is in the file.
struct OverlayChanges {
    lower: Arc<dyn Changes>,
    bits: Arc<Bits>,
}

impl Changes for OverlayChanges {
    fn parts(&self, at: u64, len: u64, most: usize) -> Result<Vec<Change>> {
        let mut parts = Vec::new();
        for (run, here) in self.bits.runs(at, len) {
            let (most, len) = (most - parts.len(), run.end - run.start);
            let part = match here {
                _ if most == 0 => break,
                true => vec![Change { len, changed: true }],
                false => self.lower.parts(run.start, len, most)?,
            };
            let told: u64 = part.iter().map(|p| p.len).sum();
            parts.extend(part);
            if told < len {
                break;
            }
        }
        Ok(parts)
    }
}
