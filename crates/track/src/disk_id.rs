//! By what a disk is known again: numbers of the hardware, and of what lies on it.
//!
//! Owns: what is looked at, and when two looks were at one disk. Invariant: two disks that differ in
//! a number that both have are never taken for one. No I/O but of sysfs: the first bytes of the disk
//! are given. Leaves to others: where an id is kept, and what is done about another disk.
//!
//! **What decides.** A disk with a serial number, a world wide name, a uuid of device mapper or md, or
//! (for a loop device) a file behind it, is known by these, whatever lies on it: it may be made anew
//! meanwhile. One of them must be as it was, and none may differ. Only where there was none it is known
//! by its content: a partition table, file system or volume with a uuid. Where there was neither, its
//! size must be the same, and it is not known at all: [`Verdict::Unknown`].

mod content;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::device::Disk;

pub use content::HEAD;

/// Numbers of hardware, and where they are in sysfs.
const HARDWARE: [(&str, &[&str]); 5] = [
    ("wwid", &["wwid", "device/wwid", "device/cid"]),
    ("serial", &["serial", "device/serial"]),
    ("dm", &["dm/uuid"]),
    ("md", &["md/uuid"]),
    ("loop", &["loop/backing_file"]),
];
/// Which part of a disk: another part is another disk.
const PART: [&str; 2] = ["partition", "partuuid"];
/// Longer ones are cut.
const VALUE_MAX: usize = 256;
/// More is not read from a text.
const IDS_MAX: usize = 64;

/// By what a disk is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskId {
    /// Bytes. It may change.
    pub size: u64,
    ids: BTreeMap<String, String>,
}

/// Whether a disk is the one that was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Same,
    /// It is not, or nothing speaks for it where something did.
    Other,
    /// Neither has anything to be known by.
    Unknown,
}

impl DiskId {
    /// Of a disk that begins with these bytes, [`HEAD`] of them if it is that large.
    pub fn of(disk: &Disk, head: &[u8]) -> Self {
        let mut id = Self::of_hardware(disk);
        for (kind, value) in content::ids(head) {
            id.add(kind, &value);
        }
        id
    }

    /// Of a disk, without its content.
    pub fn of_hardware(disk: &Disk) -> Self {
        let mut id = Self { size: disk.size(), ids: BTreeMap::new() };
        let (own, whole) = disk.directories();
        for (kind, files) in HARDWARE {
            let text = files.iter().find_map(|file| value_in(&whole.join(file)));
            text.into_iter().for_each(|text| id.add(kind, &text));
        }
        if own != whole {
            value_in(&own.join("partition")).into_iter().for_each(|n| id.add("partition", &n));
            let uevent = fs::read_to_string(own.join("uevent")).unwrap_or_default();
            let uuid = uevent.lines().find_map(|line| line.strip_prefix("PARTUUID="));
            uuid.into_iter().for_each(|uuid| id.add("partuuid", uuid));
        }
        id
    }

    fn add(&mut self, kind: &str, value: &str) {
        let shown = |c: char| if c.is_control() { '?' } else { c };
        let value: String = value.trim().chars().map(shown).take(VALUE_MAX).collect();
        // Some give zeros or blanks where they have no number.
        if value.chars().any(|c| c.is_alphanumeric() && c != '0') {
            self.ids.insert(kind.to_owned(), value);
        }
    }

    /// Whether `found` is this disk, as it was recorded.
    pub fn judge(&self, found: &Self) -> Verdict {
        match self.judge_hardware(found) {
            Some(verdict) => verdict,
            None => match (self.content().next(), self.compare(found, self.content())) {
                (_, Some(true)) => Verdict::Same,
                (Some(_), _) => Verdict::Other,
                (None, _) if self.size == found.size => Verdict::Unknown,
                (None, _) => Verdict::Other,
            },
        }
    }

    /// The same by hardware alone, if that decides.
    pub fn judge_hardware(&self, found: &Self) -> Option<Verdict> {
        let is_part = |i: &Self| i.ids.contains_key(PART[0]);
        let part = PART.iter().copied().filter(|kind| self.ids.contains_key(*kind));
        if is_part(self) != is_part(found) || self.compare(found, part) == Some(false) {
            return Some(Verdict::Other);
        }
        let kinds = || HARDWARE.iter().map(|h| h.0).filter(|kind| self.ids.contains_key(*kind));
        match (kinds().next(), self.compare(found, kinds())) {
            (None, _) => None,
            (Some(_), Some(true)) => Some(Verdict::Same),
            (Some(_), _) => Some(Verdict::Other),
        }
    }

    fn content(&self) -> impl Iterator<Item = &str> {
        let other = |kind: &&str| !HARDWARE.iter().any(|h| h.0 == *kind) && !PART.contains(kind);
        self.ids.keys().map(String::as_str).filter(other)
    }

    /// Whether all that both have of these kinds is equal; none if they have none in common.
    fn compare<'a>(&self, found: &Self, kinds: impl Iterator<Item = &'a str>) -> Option<bool> {
        let both = kinds.filter_map(|kind| Some((self.ids.get(kind)?, found.ids.get(kind)?)));
        both.map(|(a, b)| a == b).reduce(|a, b| a && b)
    }

    /// As text: a kind and a value a line.
    pub fn to_text(&self) -> String {
        let mut text = format!("size {}\n", self.size);
        for (kind, value) in &self.ids {
            let _ = writeln!(text, "{kind} {value}");
        }
        text
    }

    /// Of such a text; kinds that are not known count for nothing.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut lines = text.lines().take(IDS_MAX).map(|line| line.split_once(' '));
        let size = lines.next()??;
        let size = (size.0 == "size").then(|| size.1.parse().ok())??;
        let mut id = Self { size, ids: BTreeMap::new() };
        for line in lines {
            let (kind, value) = line?;
            if kind == "size" {
                return None;
            }
            id.add(kind, value);
        }
        Some(id)
    }

    /// For people: what it is known by.
    pub fn told(&self) -> String {
        let known: Vec<String> = self.ids.iter().map(|(k, v)| format!("{k} {v}")).collect();
        if known.is_empty() { "no number at all".into() } else { known.join(", ") }
    }
}

fn value_in(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests;
