//! The programs in the kernel that mark what is written to a disk.
//!
//! Owns: loading them, and the pins by which they and the bitmaps outlive the daemon.
//! Invariant: a directory of pins has its name only when all of it is there and the programs
//! run; a watch that is found again is the one that was recorded, or there is said to be a gap.
//! Leaves to others: what the marks mean ([`crate::marks`]).

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, EbpfLoader};

use crate::device::{Disk, Kind};
use crate::discards::{DISCARDS_WORDS, OPEN_WORDS, Ring};
use crate::error::{Error, Result};
use crate::mapped::Mapped;
use crate::marks::{CONTROL_WORDS, Marks, Range, left_frozen, no_longer_frozen};
use crate::record::{LINKS, Record};
use crate::sleep::Slept;

/// The programs, as `cargo xtask bpf` builds them from `bpf/track.bpf.c`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/track.bpf.o");
const PLACE: &str = "/sys/fs/bpf/dormouse";
/// `BPF_FS_MAGIC`.
const BPF_FS: u32 = 0xcafe_4a11;

/// Names of pins.
const CONTROL: &str = "control";
const BITS: &str = "marks";
const OPEN: &str = "open";
const DISCARDS: &str = "discards";
/// The bitmaps of a watch that marks all discards. A program that knows only those must not find the
/// others: it would not look at the ring.
const BITS_ALONE: &str = "bits";

/// Programs of a kind of device, and what each is attached to.
const fn programs(kind: Kind) -> [(&'static str, &'static str); LINKS] {
    match kind {
        Kind::Requests => [("rq_issue", "block_rq_issue"), ("rq_complete", "block_rq_complete")],
        Kind::Bios => [("bio_queue", "block_bio_queue"), ("bio_complete", "block_bio_complete")],
    }
}

/// Where pins are made by default; one directory for each watch.
pub fn place() -> &'static Path {
    Path::new(PLACE)
}

/// Why there is no unbroken watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// There is none: a first start, or another boot.
    None,
    /// Parts of it are gone.
    Parts,
    /// It was never recorded whose it is.
    Unrecorded,
    /// Other programs watch than those that were recorded.
    Links,
    /// It watched another disk, or another appearance of this one.
    Disk,
    /// The disk had another size.
    Size,
    /// Something was written that has no range.
    Everything,
    /// The machine may have hibernated.
    Hibernated,
}

impl Gap {
    /// For people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::None => "nothing has watched the disk since the machine started",
            Self::Parts => "a part of the tracker is gone",
            Self::Unrecorded => "the tracker has no record",
            Self::Links => "the tracker was not running all the time",
            Self::Disk => "the tracker watched another disk",
            Self::Size => "the disk has another size now",
            Self::Everything => "something was written whose place is not known",
            Self::Hibernated => "the machine may have hibernated",
        }
    }
}

/// Programs and bitmaps of one disk.
#[derive(Debug)]
pub struct Watch {
    control: Mapped,
    bits: Mapped,
    /// Where discards go; none in a watch that was begun by a program that knew nothing of it.
    discards: Option<[Mapped; 2]>,
    links: [u64; LINKS],
    directory: PathBuf,
}

impl Watch {
    /// Begins to watch; from the return on, no write is missed. An older watch of this
    /// directory ends first.
    pub fn begin(disk: &Disk, directory: &Path) -> Result<Self> {
        let parent = directory.parent().unwrap_or(directory);
        on_bpf_fs(parent)?;
        remove(directory)?;
        let mut watch = Self::beside(disk, directory)?;
        watch.take_name(directory)?;
        Ok(watch)
    }

    /// Begins a watch whose pins do not have their name yet.
    fn beside(disk: &Disk, directory: &Path) -> Result<Self> {
        let made = unfinished(directory);
        remove(&made)?;
        fs::create_dir(&made).map_err(|e| pin("make", &made, e))?;
        let watch = Self::load(disk, &made);
        if watch.is_err() {
            remove(&made)?;
        }
        watch
    }

    fn take_name(&mut self, directory: &Path) -> Result<()> {
        fs::rename(&self.directory, directory).map_err(|e| pin("name", directory, e))?;
        self.directory = directory.to_owned();
        Ok(())
    }

    /// Goes on under other pins; an older watch there ends.
    pub(crate) fn move_to(&mut self, directory: &Path) -> Result<()> {
        remove(directory)?;
        self.take_name(directory)
    }

    /// Goes on with the same disk in another size: the new watch sees all writes before the old
    /// one ends, and has its marks and its record. What the size itself changes is marked: the
    /// last block of both sizes, and what is new.
    pub fn resized(self, disk: &Disk) -> Result<Self> {
        let directory = self.directory.clone();
        let mut new = Self::beside(disk, &directory)?;
        let (from, to) = (self.marks()?, new.marks()?);
        to.take_over(&from);
        let blocks = |marks: &Marks<'_>| marks.range().sectors.div_ceil(8);
        let (old, now) = (blocks(&from), blocks(&to));
        let least = old.min(now).saturating_sub(1);
        to.mark(least, now - least);
        // The new watch has seen what completed later.
        let discarded = self.ring().map(|ring| ring.all(&from)).unwrap_or_default();
        discarded.iter().for_each(|run| to.mark(run.start, run.end - run.start));
        if let Some(record) = from.record() {
            let size = disk.size();
            let record = Record { size, links: new.links, everything: to.everything(), ..record };
            // If something had no range, it is not known here either.
            let same = from.record().is_some_and(|r| r.everything == from.everything());
            // A scan under way began with the old size.
            let complete = record.complete && same;
            to.set_record(&Record { complete, scanned: 0, ..record });
        }
        remove(&directory)?;
        new.take_name(&directory)?;
        Ok(new)
    }

    fn load(disk: &Disk, directory: &Path) -> Result<Self> {
        let words = 2 * disk.range.words().max(1);
        let entries = u32::try_from(words)
            .map_err(|_| Error::Kernel("the disk is larger than a bitmap can be".into()))?;
        let btf = Btf::from_sys_fs()
            .map_err(|e| Error::Kernel(format!("it tells nothing of its types (BTF): {e}")))?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf)).map_max_entries("BITS", entries);
        let mut loaded = loader.load(OBJECT).map_err(|e| refused("make a bitmap", &e))?;
        let mapped = |name: &str, pin_as: &str, words: usize| -> Result<Mapped> {
            let Some(Map::Array(data)) = loaded.map(name) else {
                return Err(Error::Kernel(format!("the map {name} is no array")));
            };
            let path = directory.join(pin_as);
            data.pin(&path).map_err(|e| pin("pin", &path, io::Error::other(e)))?;
            map_memory(data, words, &path)
        };
        let control = mapped("CONTROL", CONTROL, CONTROL_WORDS)?;
        let bits = mapped("BITS", BITS, entries as usize)?;
        let open = mapped("OPEN", OPEN, OPEN_WORDS)?;
        let discards = Some([open, mapped("DISCARDS", DISCARDS, DISCARDS_WORDS)?]);
        Marks::prepare(control.words(), &disk.range);
        let mut links = [0; LINKS];
        for (id, (name, tracepoint)) in links.iter_mut().zip(programs(disk.kind)) {
            let program = loaded.program_mut(name);
            let program = program.ok_or_else(|| Error::Kernel(format!("no program {name}")))?;
            let program: &mut BtfTracePoint =
                program.try_into().map_err(|e| refused("load a program", &e))?;
            program.load(tracepoint, &btf).map_err(|e| refused("load a program", &e))?;
            *id = attach(program, &directory.join(name))?;
        }
        Ok(Self { control, bits, discards, links, directory: directory.to_owned() })
    }

    /// Finds a watch that was begun before, by this process or another, and looks whether it is
    /// unbroken and belongs to this volume; the record is what was recorded last. It may be of a
    /// disk that was not compared to its end yet.
    pub fn find(
        disk: &Disk,
        directory: &Path,
        volume: &[u8; 16],
    ) -> Result<std::result::Result<(Self, Record), Gap>> {
        if !directory.exists() {
            return Ok(Err(Gap::None));
        }
        let Some(watch) = Self::open(disk, directory)? else { return Ok(Err(Gap::Parts)) };
        let Some(marks) = watch.try_marks() else { return Ok(Err(Gap::Parts)) };
        let Some(record) = marks.record() else { return Ok(Err(Gap::Unrecorded)) };
        let here = Range { sectors: marks.range().sectors, ..disk.range };
        let gap = if record.volume != *volume {
            Gap::Unrecorded
        } else if record.links != watch.links {
            Gap::Links
        } else if record.disk_sequence != disk.sequence || marks.range() != here {
            Gap::Disk
        } else if record.size != disk.size() || marks.range() != disk.range {
            Gap::Size
        } else if record.everything != marks.everything() {
            Gap::Everything
        } else if record.slept.hibernated(&Slept::now(), false) {
            Gap::Hibernated
        } else {
            return Ok(Ok((watch, record)));
        };
        Ok(Err(gap))
    }

    fn open(disk: &Disk, directory: &Path) -> Result<Option<Self>> {
        let mut links = [0; LINKS];
        for (id, (name, _)) in links.iter_mut().zip(programs(disk.kind)) {
            let Ok(link) = PinnedLink::from_pin(directory.join(name)) else { return Ok(None) };
            let info = FdLink::from(link).info();
            *id = u64::from(info.map_err(|e| refused("look at a program", &e))?.id());
        }
        let open = |name: &str| -> Option<MapData> { MapData::from_pin(directory.join(name)).ok() };
        let discards = open(OPEN).zip(open(DISCARDS));
        let bits = open(if discards.is_some() { BITS } else { BITS_ALONE });
        let (Some(control), Some(bits)) = (open(CONTROL), bits) else {
            return Ok(None);
        };
        let entries = bits.info().map_err(|e| refused("look at a bitmap", &e))?.max_entries();
        let map = |map: &MapData, words: usize| map_memory(map, words, directory);
        let control = map(&control, CONTROL_WORDS)?;
        let bits = map(&bits, entries as usize)?;
        let discards = match discards {
            Some((open, all)) => Some([map(&open, OPEN_WORDS)?, map(&all, DISCARDS_WORDS)?]),
            None => None,
        };
        Ok(Some(Self { control, bits, discards, links, directory: directory.to_owned() }))
    }

    fn try_marks(&self) -> Option<Marks<'_>> {
        Marks::over(self.control.words(), self.bits.words())
    }

    /// Its bitmaps.
    pub fn marks(&self) -> Result<Marks<'_>> {
        self.try_marks().ok_or_else(|| Error::Kernel("the bitmaps were changed".into()))
    }

    /// Where discards go, if this watch knows them from writes.
    pub fn ring(&self) -> Option<Ring<'_>> {
        let [open, discards] = self.discards.as_ref()?;
        Ring::over(self.control.words(), open.words(), discards.words())
    }

    /// Ids of the links that keep the programs running.
    pub const fn links(&self) -> [u64; LINKS] {
        self.links
    }

    /// Where it is pinned.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Ends the watch: nothing marks any more, and the memory is given back.
    pub fn end(self) -> Result<()> {
        remove(&self.directory)
    }
}

/// A disk whose file systems a daemon was freezing when it ended.
#[derive(Debug)]
pub struct LeftFrozen {
    /// Device number of the whole disk, as in `st_rdev`.
    pub rdev: u64,
    control: Mapped,
}

impl LeftFrozen {
    /// Nothing of it is frozen any more.
    pub fn done(self) {
        no_longer_frozen(self.control.words());
    }
}

/// Disks that a daemon has left while it froze them, of all watches.
pub fn all_left_frozen() -> Result<Vec<LeftFrozen>> {
    let names = match fs::read_dir(PLACE) {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(pin("read", place(), e)),
    };
    let mut all = Vec::new();
    for name in names {
        let path = name.map_err(|e| pin("read", place(), e))?.path();
        // One that is being made or removed now has no control page.
        let Ok(map) = MapData::from_pin(path.join(CONTROL)) else { continue };
        let control = map_memory(&map, CONTROL_WORDS, &path)?;
        if let Some(dev) = left_frozen(control.words()) {
            let rdev = rustix::fs::makedev((dev >> 20) as u32, (dev & 0xf_ffff) as u32);
            all.push(LeftFrozen { rdev, control });
        }
    }
    Ok(all)
}

/// Where pins are made until all are there. (Dots are not allowed in these names.)
fn unfinished(directory: &Path) -> PathBuf {
    let mut name = directory.as_os_str().to_owned();
    name.push("-unfinished");
    name.into()
}

fn attach(program: &mut BtfTracePoint, path: &Path) -> Result<u64> {
    let refuse = |e: ProgramError| refused("attach a program", &e);
    let link = program.attach().map_err(refuse)?;
    let link = FdLink::from(program.take_link(link).map_err(refuse)?);
    let id = link.info().map_err(|e| refused("look at a program", &e))?.id();
    link.pin(path).map_err(|e| pin("pin", path, io::Error::other(e)))?;
    Ok(u64::from(id))
}

fn map_memory(map: &MapData, words: usize, path: &Path) -> Result<Mapped> {
    Mapped::new(map.fd().as_fd(), words).map_err(|e| pin("map", path, e))
}

/// Ends the watch that is pinned in a directory, if there is one.
pub fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(pin("remove", directory, e)),
        _ => Ok(()),
    }
}

fn on_bpf_fs(directory: &Path) -> Result<()> {
    let no = || Error::NoBpfFs(directory.to_owned());
    let above = directory.parent().unwrap_or(directory);
    if rustix::fs::statfs(above).map_err(|_| no())?.f_type as u32 != BPF_FS {
        return Err(no());
    }
    match fs::create_dir(directory) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(pin("make", directory, e)),
        _ => Ok(()),
    }
}

fn pin(what: &'static str, path: &Path, source: io::Error) -> Error {
    if source.kind() == io::ErrorKind::PermissionDenied {
        return Error::NotPermitted { what: "pin programs" };
    }
    Error::Pin { what, path: path.to_owned(), source }
}

/// A refusal of the kernel; the rights are told from the rest.
fn refused(what: &'static str, error: &(dyn std::error::Error + 'static)) -> Error {
    let mut cause = Some(error);
    while let Some(e) = cause {
        let io = e.downcast_ref::<io::Error>();
        if io.is_some_and(|e| e.kind() == io::ErrorKind::PermissionDenied) {
            return Error::NotPermitted { what };
        }
        cause = e.source();
    }
    let mut text = error.to_string();
    // The verifier's report is long, and its end says what is wrong.
    if text.len() > 2000 {
        let from = text.len() - 2000;
        let from = (from..text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text = format!("…{}", &text[from..]);
    }
    Error::Kernel(format!("cannot {what}: {text}"))
}
