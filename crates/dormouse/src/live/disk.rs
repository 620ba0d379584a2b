//! A disk that is watched, and its blocks as the engine reads them.
//!
//! Owns: the watch, the open device, and what the server is known to have of it. Invariant:
//! what is read of a dirty leaf is read after its marks were taken.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use dormouse_crypt::hash;
use dormouse_format::limits::BLOCK_SIZE;
use dormouse_format::point::StoredPoint;
use dormouse_format::{VolumeId, geometry};
use dormouse_sync::history::hash_of;
use dormouse_sync::leaf::{Claim, LeafData, LeafSet};
use dormouse_sync::live::{Gap, Proof};
use dormouse_track::device::Disk;
use dormouse_track::dirty::Dirty;
use dormouse_track::discards::Discarded;
use dormouse_track::disk_id::DiskId;
use dormouse_track::early;
use dormouse_track::ebpf::{self, Watch};
use dormouse_track::marks::Marks;
use dormouse_track::record::Record;
use dormouse_track::sleep::Slept;

use super::closing;
use super::reboot::{self, Start};
use super::stale::Failed;
use super::swap::{self, LeftOut};
use crate::daemon::config::{self, MirrorConfig};
use crate::engine::Leaves;
use crate::exit::{Class, Failure};
use crate::home::Home;
use crate::leaves::{read_runs, runs_of};
use crate::source::Source;
use crate::text::hex;
use crate::which_disk;

/// A watched disk.
pub(super) struct Tracked {
    pub(super) disk: Disk,
    pub(super) source: Source,
    /// None only while it is replaced.
    pub(super) watch: Option<Watch>,
    pins: PathBuf,
    /// Why all must be compared, as long as it must.
    gap: Option<Gap>,
    pub(super) left_out: LeftOut,
    pub(super) discarded: Discarded,
    /// What was found of an earlier close, for people.
    pub(super) start: Option<Start>,
}

impl Tracked {
    /// Opens the device, and finds its watch or begins one.
    pub(super) fn open(home: &Home, config: &MirrorConfig) -> Result<Self> {
        let pins = ebpf::place().join(pins_name(home, &config.volume));
        let known = home.known_volume(&config.volume)?;
        let watch_of = |disk: &Disk| match &known {
            Some(id) => Watch::find(disk, &pins, &id.0).map_err(not_watched),
            None => Ok(Err(ebpf::Gap::None)),
        };
        let named = Disk::of(&config.device).map_err(not_watched);
        let disk = match named {
            // What was watched all the time is that disk, whatever lies on it now.
            Ok(disk) if config.same_disk || is_watched(&disk, &watch_of(&disk)?) => disk,
            named => {
                let recorded = known.map(|id| home.known_disk(&id)).transpose()?.flatten();
                which_disk::find(&config.volume, named, recorded.as_ref(), &config.device)?
            }
        };
        let source = Source::open_shared(&disk.path)?;
        let found = watch_of(&disk)?;
        let (watch, gap, start) = match found {
            Ok((watch, record)) => {
                known.map_or(Ok(()), |id| home.forget_closed(&id))?;
                early::end(&disk).map_err(not_watched)?;
                (watch, (!record.complete).then_some(Gap::Incomplete), None)
            }
            Err(gap) => {
                let (watch, start) =
                    reboot::begun(home, known.as_ref(), (&disk, &source), &pins, config)?;
                let gap = match start {
                    Some(Start::Unwritten(_)) => None,
                    _ => Some(of_gap(gap)),
                };
                (watch, gap, start)
            }
        };
        let left_out = LeftOut::new(config.swap == config::Swap::Skip);
        let discarded = Discarded::default();
        let watch = Some(watch);
        let mut tracked = Self { disk, source, watch, pins, gap, left_out, discarded, start };
        // What a pass carried that was not acknowledged.
        tracked.marks()?.carry_back();
        // First: what was left out by a daemon before this one is known by its marks.
        tracked.look_at_swap(true)?;
        tracked.find_discards()?;
        Ok(tracked)
    }

    fn watch(&self) -> Result<&Watch> {
        self.watch.as_ref().context("the tracker was lost when the disk changed its size")
    }

    pub(super) fn marks(&self) -> Result<Marks<'_>> {
        self.watch()?.marks().map_err(not_watched)
    }

    pub(super) fn size(&self) -> u64 {
        self.source.size()
    }

    pub(super) fn blocks(&self) -> u64 {
        geometry::blocks(self.size())
    }

    /// By what it is known.
    pub(super) fn id(&self) -> DiskId {
        which_disk::of_source(&self.disk, &self.source)
    }

    /// Bytes that are marked, and to be sent; and what discards cost.
    pub(super) fn dirty(&self) -> Result<u64> {
        let marked = self.left_out.work(&self.marks()?) * BLOCK_SIZE as u64;
        Ok(marked + self.discarded_work())
    }

    /// Whether the copy, the marks and what was discarded are the disk.
    pub(super) const fn is_whole(&self) -> bool {
        self.gap.is_none()
    }

    /// Whether the kernel swaps to something else on the disk now.
    pub(super) fn look_at_swap(&mut self, again: bool) -> Result<bool> {
        let watch = self.watch.as_ref().context("there is no tracker")?;
        Ok(self.left_out.look(&self.disk, &watch.marks().map_err(not_watched)?, again))
    }

    /// Whether the marks are all that the server can lack, with this head; and, if so, on
    /// record that the next points are made under `generation`.
    pub(super) fn prove(
        &mut self,
        volume: &VolumeId,
        head: Option<&StoredPoint>,
        generation: u64,
    ) -> Result<Proof> {
        if head.is_none() {
            return Ok(self.broken(Gap::FirstCopy));
        }
        if let Some(gap) = self.gap.filter(|gap| *gap != Gap::Incomplete) {
            return Ok(Proof::Broken(gap));
        }
        let (Some(record), Some(head)) = (self.record()?, head) else {
            return Ok(self.broken(Gap::NoRecord));
        };
        let (point, found) = (head.point(), hash_of(&head.signed).0);
        // The point that was being made when the daemon or the link ended: it was made here,
        // and what it carried is still marked.
        let ours = point.prev.0 == record.head && point.generation == record.generation;
        if record.volume != volume.0 || (found != record.head && !ours) {
            return Ok(self.broken(Gap::OtherHead));
        }
        self.set_record(&Record { head: found, seq: point.seq, generation, ..record })?;
        // Then a scan goes on where its last point on record ended.
        Ok(if record.complete { Proof::Unbroken } else { self.broken(Gap::Incomplete) })
    }

    fn broken(&mut self, gap: Gap) -> Proof {
        self.gap = Some(gap);
        Proof::Broken(gap)
    }

    pub(super) fn record(&self) -> Result<Option<Record>> {
        Ok(self.marks()?.record())
    }

    pub(super) fn set_record(&self, record: &Record) -> Result<()> {
        self.marks()?.set_record(record);
        Ok(())
    }

    /// Begins anew, before all of the disk is read: an empty bitmap, and on record that the
    /// copy is not whole. What is compared next goes on from `head`. A disk that has changed its
    /// size is opened again.
    pub(super) fn begin_scan(
        &mut self,
        volume: &VolumeId,
        generation: u64,
        head: Option<&StoredPoint>,
    ) -> Result<()> {
        let disk = self.disk.again().map_err(not_watched)?;
        // What is behind the bitmap once is so for good: a fresh one.
        if disk != self.disk || self.marks()?.beyond() > 0 {
            self.source = Source::open_shared(&disk.path)?;
            self.watch = Some(Watch::begin(&disk, &self.pins).map_err(not_watched)?);
            self.disk = disk;
        }
        let marks = self.marks()?;
        // It was shown to go on from what this side knew; from now on the server must show it.
        let (head, seq) = head.map_or(([0; 32], 0), |p| (hash_of(&p.signed).0, p.point().seq));
        let record = Record {
            volume: volume.0,
            disk_sequence: self.disk.sequence,
            size: self.disk.size(),
            links: self.watch()?.links(),
            head,
            seq,
            generation,
            complete: false,
            scanned: 0,
            everything: marks.everything(),
            slept: Slept::now(),
        };
        marks.set_record(&record);
        self.clear()?;
        self.look_at_swap(true)?;
        let watch = self.watch.as_ref().context("there is no tracker")?;
        self.left_out.before_scan(&watch.marks().map_err(not_watched)?);
        self.gap = Some(Gap::Incomplete);
        Ok(())
    }

    /// The page at which a scan goes on; 0 if it begins anew.
    pub(super) fn scanned(&self) -> Result<u64> {
        let record = self.record()?.filter(|_| self.gap == Some(Gap::Incomplete));
        Ok(record.map_or(0, |record| record.scanned))
    }

    /// These pages were compared, and are in this point, which is durable.
    pub(super) fn has_scanned(&self, pages: u64, head: [u8; 32], seq: u64) -> Result<()> {
        if let Some(record) = self.record()? {
            self.set_record(&Record { head, seq, scanned: pages, ..record })?;
        }
        Ok(())
    }

    /// The scan is done: from now on marks tell all.
    pub(super) fn end_scan(&mut self, head: [u8; 32], seq: u64) -> Result<()> {
        if let Some(record) = self.record()? {
            self.set_record(&Record { head, seq, complete: true, scanned: 0, ..record })?;
        }
        self.gap = None;
        Ok(())
    }

    /// This point is durable.
    pub(super) fn acknowledged(&self, head: [u8; 32], seq: u64) -> Result<()> {
        if let Some(record) = self.record()? {
            self.set_record(&Record { head, seq, ..record })?;
        }
        Ok(())
    }

    /// What has become of the disk since it was last looked at.
    pub(super) fn change(&mut self) -> Result<Option<Change>> {
        let disk = self.disk.again().map_err(not_watched)?;
        if disk != self.disk {
            return self.changed(disk).map(Some);
        }
        // A watch that goes on from a scan under way has to be unbroken, too.
        if self.gap.is_some_and(|gap| gap != Gap::Incomplete) {
            return Ok(None);
        }
        let before = self.gap;
        let (marks, record) = (self.marks()?, self.record()?);
        let slept = Slept::now();
        if record.is_some_and(|r| r.slept.hibernated(&slept, true)) {
            self.gap = Some(Gap::OtherBoot);
            return Ok(self.gap.map(Change::Gap));
        }
        if let Some(record) = record.filter(|r| r.slept.suspends != slept.suspends) {
            marks.set_record(&Record { slept, ..record });
        }
        if record.is_some_and(|r| r.everything != marks.everything()) {
            self.gap = Some(Gap::Everything);
        } else if marks.beyond() > 0 {
            // It was longer for a moment, and was not looked at then.
            self.gap = Some(Gap::Resized);
        }
        Ok(self.gap.filter(|gap| before != Some(*gap)).map(Change::Gap))
    }

    /// The device is another one, or has another size.
    fn changed(&mut self, disk: Disk) -> Result<Change> {
        if !disk.is_same_but_for_size(&self.disk) {
            return Err(Failure::new(
                Class::Place,
                format!("{} is another disk now", disk.path.display()),
            )
            .hint("name it by a link that stays with the disk: /dev/disk/by-id/…")
            .into());
        }
        let old = self.watch.take().context("there is no tracker")?;
        self.watch = Some(old.resized(&disk).map_err(not_watched)?);
        // What it knew is marked.
        self.discarded = Discarded::default();
        self.source = Source::open_shared(&disk.path)?;
        self.disk = disk;
        self.look_at_swap(true)?;
        let gap = match self.gap {
            None => Gap::Everything,
            Some(Gap::Incomplete) => Gap::Resized,
            Some(_) => return Ok(Change::Size(self.size())),
        };
        if self.record()?.is_some_and(|r| !r.complete) {
            self.gap = Some(gap);
            return Ok(Change::Gap(gap));
        }
        Ok(Change::Size(self.size()))
    }

    /// A clean close: keeps in the home what spares the next start a scan, also after a reboot. What
    /// was done, for people; none where there is nothing to be kept.
    pub(super) fn close(&self, home: &Home, config: &MirrorConfig) -> Result<Option<String>> {
        if self.gap.is_some() {
            return Ok(None);
        }
        let of = (&self.disk, &self.source);
        closing::keep(home, of, self.watch()?, config.after_reboot).map(Some)
    }

    /// Whether the machine has not slept since that was looked at: only then a watch proves anything.
    pub(super) fn is_awake(&self) -> Result<bool> {
        let before = self.record()?.map_or_else(Slept::now, |record| record.slept);
        Ok(!before.hibernated(&Slept::now(), false))
    }

    /// Whether each write that was begun has left its mark: none is under way, and none had no place
    /// in the bitmap.
    pub(super) fn all_is_marked(&self) -> bool {
        let ended = (0..8).any(|_| self.disk.writes_in_flight().is_ok_and(|n| n == 0));
        let Ok(marks) = self.marks() else { return false };
        let everything = marks.record().map_or(0, |record| record.everything);
        ended && marks.everything() == everything && marks.beyond() == 0
    }
}

/// Whether it is the same appearance of the same disk that the watch is about.
fn is_watched<T>(disk: &Disk, found: &std::result::Result<T, ebpf::Gap>) -> bool {
    use ebpf::Gap::{Everything, Hibernated, Size};
    disk.sequence != 0 && matches!(found, Ok(_) | Err(Size | Everything | Hibernated))
}

/// What has become of a disk.
pub(super) enum Change {
    /// The marks do not tell all any more.
    Gap(Gap),
    /// It has this size now; what that changes is marked.
    Size(u64),
}

/// `dormouse untrack`: ends the watch that outlives the daemon. Whether there was one.
pub fn untrack(home: &Home, volume: &str) -> Result<bool> {
    let _lock = home.lock_named(&format!("volume-{volume}"))?;
    let pins = ebpf::place().join(pins_name(home, volume));
    let there = pins.exists();
    ebpf::remove(&pins).map_err(not_watched)?;
    // Nor does it go on from the last close.
    home.known_volume(volume)?.map_or(Ok(()), |id| home.forget_closed(&id))?;
    Ok(there)
}

/// One directory of pins for each volume of each home. (Dots are not allowed in its name.)
pub(super) fn pins_name(home: &Home, volume: &str) -> String {
    let key = format!("{}\0{volume}", home.dir().display());
    let hash = hash::body_check(key.as_bytes());
    format!("{}-{}", volume.replace('.', "_"), hex(&hash[..8]))
}

const fn of_gap(gap: ebpf::Gap) -> Gap {
    match gap {
        ebpf::Gap::None | ebpf::Gap::Hibernated => Gap::OtherBoot,
        ebpf::Gap::Unrecorded => Gap::NoRecord,
        ebpf::Gap::Parts | ebpf::Gap::Links => Gap::TrackerGone,
        ebpf::Gap::Disk => Gap::OtherDisk,
        ebpf::Gap::Size => Gap::OtherSize,
        ebpf::Gap::Everything => Gap::Everything,
    }
}

/// With the way out.
pub(super) fn not_watched(error: dormouse_track::Error) -> anyhow::Error {
    use dormouse_track::Error as E;
    let hint = match &error {
        E::NotADevice(_) => "a file can be copied with --once; live are block devices only",
        E::Sysfs { .. } => "check the path; `lsblk` shows the disks of this machine",
        E::NotPermitted { .. } => {
            "run as root, or with these capabilities; or let it compare now and then: --tracker scan"
        }
        E::NoBpfFs(_) => "mount it: mount -t bpf bpf /sys/fs/bpf; or use --tracker scan",
        E::Multipath(_) | E::Kernel(_) => "let it compare now and then: --tracker scan",
        _ => "the tracker's pins lie in /sys/fs/bpf/dormouse; --tracker scan does without them",
    };
    Failure::new(Class::Place, error.to_string()).hint(hint).into()
}

/// Blocks of a disk, read as they are now; those that it does not give are left out.
pub(super) struct Reading<'a> {
    pub(super) source: &'a Source,
    /// These blocks; or all.
    pub(super) only: Option<&'a Dirty>,
    /// These are not read: they are left out of all, and zeros in a part.
    pub(super) zeros: &'a Dirty,
    pub(super) read: &'a AtomicU64,
    pub(super) failed: &'a Failed,
}

/// The leaves that have a dirty block.
pub(super) fn leaf_set(size: u64, dirty: &Dirty) -> LeafSet {
    let mut set = LeafSet::new(size);
    dirty.iter().for_each(|(leaf, _)| set.add(*leaf));
    set
}

impl Leaves for Reading<'_> {
    fn read_leaf(&self, index: u64, claim: Claim) -> Result<LeafData> {
        let source = self.source;
        let runs = match self.only {
            Some(dirty) => dirty.runs(index),
            None => runs_of(index, source.size(), |from| source.next_range(from))?,
        };
        let mut parts = swap::parts(&runs, &self.zeros.runs(index));
        parts.retain(|(_, zero)| self.only.is_some() || !zero);
        let runs = parts.iter().map(|(run, _)| *run).collect();
        let data = read_runs(claim, runs, |run, out| {
            if parts.contains(&(run, true)) {
                out.fill(0);
                return Ok(vec![run]);
            }
            self.failed.read(source, index, run, out)
        })?;
        let zeros =
            parts.iter().filter(|(_, zero)| *zero).map(|((_, n), _)| u64::from(*n)).sum::<u64>();
        let zeros = zeros * BLOCK_SIZE as u64;
        self.read.fetch_add(data.data_len().saturating_sub(zeros), Ordering::Relaxed);
        Ok(data)
    }
}
