//! A point of a disk that is held still: freeze, take what is marked into memory, thaw, send.
//!
//! Invariant: while anything is frozen, this file reads the disk and the marks, and nothing else:
//! it writes no file, logs nothing, takes no lock, and asks nobody. Therefore it is safe to freeze
//! the file system that holds the program's own state. The point is `frozen` only if the hold
//! lasted until all was read, and nothing of it was written meanwhile. Leaves to others: freezing
//! itself ([`dormouse_track::freeze`]).

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dormouse_format::limits::{BLOCK_SIZE, LEAF_BLOCKS};
use dormouse_format::{TimeNs, point::Grade};
use dormouse_sync::leaf::{Claim, LeafData, Unread};
use dormouse_sync::live::{Moment, Unfrozen};
use dormouse_track::dirty::Dirty;
use dormouse_track::ebpf::all_left_frozen;
use dormouse_track::freeze::{
    FileSystem, FreezeError, Freezer, Roots, lock_memory, settle_writes, survey, thaw_all,
};

use super::REST_MAX;
use super::disk::Tracked;
use super::pilot::now;
use super::stale::Stale;
use crate::daemon::config::Hook;
use crate::engine::Leaves;
use crate::source::{ALIGN, AlignedBuf, Source};
use crate::{out, text};

/// The longest hold. Programs that write wait for so long at most.
const HOLD_MAX: Duration = Duration::from_secs(1);
/// Less than this is left to a freeze without another pass before it.
pub(super) const REST_SMALL: u64 = 4 << 20;
/// To write back takes no longer if nearly all is written.
const QUICK: Duration = Duration::from_millis(10);
/// Threads that read what is left.
const READERS: usize = 4;
/// The longest that a hook may take.
const HOOK_MAX: Duration = Duration::from_secs(60);

/// Why there is no point, and what is said about it.
pub(super) type Refusal = (Unfrozen, String);

/// What freezes, from the first freeze on.
#[derive(Default)]
pub(super) struct Freezing {
    freezer: Option<Freezer>,
    /// Memory for what is left; kept, because fresh memory costs time while all wait.
    memory: Option<AlignedBuf>,
}

/// What was taken while the disk stood still.
pub(super) struct Taken {
    pub(super) dirty: Dirty,
    /// Of each leaf: where its content begins in the memory.
    places: Vec<(u64, usize)>,
    memory: AlignedBuf,
    /// When all of it was so.
    pub(super) cut: Moment,
    pub(super) time: TimeNs,
    /// From the first file system that stood still to the last that went on.
    pub(super) said: String,
}

/// The file systems of the disk, if all that are written can be frozen.
pub(super) fn file_systems(
    tracked: &Tracked,
) -> Result<std::result::Result<Vec<FileSystem>, Refusal>> {
    let impossible = |why: String| Ok(Err((Unfrozen::Impossible, why)));
    let found = survey(&Roots::default(), tracked.disk.rdev)?;
    if let Some(unseen) = found.unseen.first() {
        return impossible(format!(
            "{} ({}) is mounted where it cannot be reached from here",
            unseen.name, unseen.kind
        ));
    }
    let all = found.file_systems;
    if let Some(cannot) = all.iter().find(|one| one.writable && !one.can_freeze()) {
        return impossible(format!(
            "{} cannot be frozen: {} does not support it",
            cannot.mount_point().display(),
            cannot.kind
        ));
    }
    if !all.iter().any(|one| one.writable) {
        return impossible("no file system of it is mounted writable".into());
    }
    Ok(Ok(all))
}

/// Has the file systems write back what they hold, so that freezing is quick. Whether it was
/// quick itself: then little was left.
pub(super) fn write_back(all: &[FileSystem]) -> Result<bool> {
    Ok(settle_writes(all)?.iter().sum::<Duration>() <= QUICK)
}

impl Freezing {
    /// Freezes, takes what is marked, thaws.
    pub(super) fn take(
        &mut self,
        tracked: &mut Tracked,
        stale: &Stale,
        all: &[FileSystem],
    ) -> Result<std::result::Result<Taken, Refusal>> {
        let freezer = match &mut self.freezer {
            Some(freezer) => freezer,
            none => {
                // Also after an upgrade, when this program's file has another content or none.
                let mut helper = Command::new("/proc/self/exe");
                helper.arg("freeze-helper");
                none.insert(Freezer::start(helper)?)
            }
        };
        let mut memory = self.memory.take().unwrap_or_else(fresh_memory);
        // Where it may not be, the deadline bounds what that can cost.
        let _locked = lock_memory();
        tracked.marks()?.set_freezing(true);
        let refusal = match hold(freezer, (tracked, stale), all, &mut memory) {
            Ok(Ok(Held { dirty, places, cut, time, said })) => {
                return Ok(Ok(Taken { dirty, places, memory, cut, time, said }));
            }
            Ok(Err(refusal)) => refusal,
            Err(error) => {
                // A helper that is gone is started anew; anything else is asked of it again.
                if matches!(error, FreezeError::HelperGone | FreezeError::Stopped) {
                    self.freezer = None;
                }
                let why = match &error {
                    FreezeError::TooSlow { .. } | FreezeError::Late { .. } => Unfrozen::Deadline,
                    FreezeError::Unsupported { .. } => Unfrozen::Impossible,
                    _ => Unfrozen::Failed,
                };
                (why, error.to_string())
            }
        };
        self.memory = Some(memory);
        Ok(Err(refusal))
    }

    /// The memory is used again.
    pub(super) fn give_back(&mut self, taken: Taken) {
        self.memory = Some(taken.memory);
    }
}

/// Memory whose every page is there.
fn fresh_memory() -> AlignedBuf {
    let mut memory = AlignedBuf::new(REST_MAX as usize);
    memory.iter_mut().step_by(ALIGN).for_each(|byte| *byte = 1);
    memory
}

/// What a hold has put into the memory: as [`Taken`].
struct Held {
    dirty: Dirty,
    places: Vec<(u64, usize)>,
    cut: Moment,
    time: TimeNs,
    said: String,
}

fn hold(
    freezer: &mut Freezer,
    (tracked, stale): (&mut Tracked, &Stale),
    all: &[FileSystem],
    memory: &mut AlignedBuf,
) -> std::result::Result<std::result::Result<Held, Refusal>, FreezeError> {
    let frozen = freezer.freeze(all, HOLD_MAX)?;
    let (cut, time, began) = (now(), text::now_ns(), Instant::now());
    let read = read_rest(tracked, stale, memory);
    let reading = began.elapsed();
    // From here on it goes on, whatever was read.
    let held = frozen.thaw()?;
    // (If there was an error, `dormouse thaw` looks once too often.)
    if let Ok(marks) = tracked.marks() {
        marks.set_freezing(false);
    }
    Ok(match read {
        Ok(Ok(_)) if !tracked.left_out.holds() => {
            Err((Unfrozen::Unproved, "what the kernel swaps to has changed".into()))
        }
        Ok(Ok((dirty, places))) => {
            let said = format!(
                "frozen for {:.1} ms ({:.1} ms until all stood still, {:.1} ms to read {} blocks)",
                (held.freezing + held.held).as_secs_f64() * 1e3,
                held.freezing.as_secs_f64() * 1e3,
                reading.as_secs_f64() * 1e3,
                dirty.blocks()
            );
            Ok(Held { dirty, places, cut, time, said })
        }
        Ok(Err(refusal)) => Err(refusal),
        Err(error) => Err((Unfrozen::Failed, format!("{error:#}"))),
    })
}

type Read = (Dirty, Vec<(u64, usize)>);

/// Takes the marks and reads what they name. Nothing of it may be written meanwhile.
fn read_rest(
    tracked: &mut Tracked,
    stale: &Stale,
    memory: &mut AlignedBuf,
) -> Result<std::result::Result<Read, Refusal>> {
    // What was discarded goes with the next pass.
    tracked.cut()?;
    let marks = tracked.marks()?;
    let left_out = tracked.left_out.blocks();
    let (mut dirty, whole) = marks.carried(usize::MAX, REST_MAX / BLOCK_SIZE as u64 + 1, left_out);
    dirty.truncate(tracked.blocks());
    stale.spare(&mut dirty);
    if !whole || dirty.blocks() * BLOCK_SIZE as u64 > memory.len() as u64 {
        let text = "more was written than fits into memory: sent first, and tried again".into();
        return Ok(Err((Unfrozen::TooLarge, text)));
    }
    let mut places = Vec::with_capacity(dirty.leaves());
    let mut jobs = Vec::new();
    let (mut rest, mut start) = (&mut memory[..], 0);
    for (leaf, words) in dirty.iter() {
        let len = words.iter().map(|w| w.count_ones() as usize).sum::<usize>() * BLOCK_SIZE;
        let (own, behind) = rest.split_at_mut(len);
        places.push((*leaf, start));
        jobs.push((*leaf, own));
        (rest, start) = (behind, start + len);
    }
    read_all(&tracked.source, &dirty, jobs)?;
    let still = tracked.all_is_marked() && tracked.discards_spare(&dirty)?;
    if !still || marks.marked_again(&dirty) > 0 {
        return Ok(Err((Unfrozen::Unproved, String::new())));
    }
    Ok(Ok((dirty, places)))
}

fn read_all(source: &Source, dirty: &Dirty, mut jobs: Vec<(u64, &mut [u8])>) -> Result<()> {
    let each = jobs.len().div_ceil(READERS).max(1);
    std::thread::scope(|scope| {
        let readers: Vec<_> = jobs
            .chunks_mut(each)
            .map(|some| {
                scope.spawn(move || -> Result<()> {
                    for (leaf, own) in some {
                        read_leaf(source, dirty, *leaf, own)?;
                    }
                    Ok(())
                })
            })
            .collect();
        readers
            .into_iter()
            .try_for_each(|r| r.join().unwrap_or_else(|_| anyhow::bail!("a reader ended")))
    })
}

fn read_leaf(source: &Source, dirty: &Dirty, leaf: u64, mut own: &mut [u8]) -> Result<()> {
    for (first, count) in dirty.runs(leaf) {
        let (now, rest) = own.split_at_mut(usize::from(count) * BLOCK_SIZE);
        let at = (leaf * LEAF_BLOCKS + u64::from(first)) * BLOCK_SIZE as u64;
        source.read_at(at, now)?;
        own = rest;
    }
    Ok(())
}

impl Leaves for Taken {
    fn read_leaf(&self, index: u64, mut claim: Claim) -> Result<LeafData> {
        let runs = self.dirty.runs(index);
        let len = runs.iter().map(|(_, n)| usize::from(*n)).sum::<usize>() * BLOCK_SIZE;
        let found = self.places.binary_search_by_key(&index, |(leaf, _)| *leaf).ok();
        let start = found.map(|i| self.places[i].1);
        let bytes = start.and_then(|start| self.memory.get(start..start + len));
        let bytes = bytes.context("a leaf that was not taken is asked for")?.to_vec();
        claim.shrink(len as u64);
        Ok(LeafData { runs, bytes, skip: 0, unread: Unread::default(), claim })
    }
}

impl Taken {
    /// What was earned.
    pub(super) const GRADE: Grade = Grade::Frozen;
}

/// Runs a hook to its end; an error if it fails or takes too long.
pub(super) fn run_hook(hook: &Hook) -> Result<()> {
    let name = PathBuf::from(&hook.program);
    let shown = name.display();
    let mut child = Command::new(&hook.program)
        .args(&hook.args)
        .stdin(std::process::Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start the hook {shown}"))?;
    let until = Instant::now() + HOOK_MAX;
    loop {
        if let Some(status) = child.try_wait()? {
            anyhow::ensure!(status.success(), "the hook {shown} ended with {status}");
            return Ok(());
        }
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            anyhow::bail!(
                "the hook {shown} took more than {} s, and was killed",
                HOOK_MAX.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `dormouse thaw`: what a mirror left frozen that was killed together with its helper.
pub fn thaw_left() -> Result<()> {
    for left in all_left_frozen()? {
        let found = survey(&Roots::default(), left.rdev)?;
        let thawed = thaw_all(&found.file_systems);
        for point in &thawed.thawed {
            out::say!("thawed {}", point.display())?;
        }
        if let Some(error) = thawed.faults.into_iter().next() {
            return Err(error.into());
        }
        left.done();
    }
    Ok(())
}
