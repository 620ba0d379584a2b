//! The server's state in the bucket: what a lost machine needs beside the segments.
//!
//! Owns: numbered snapshots of small files. Invariant: a snapshot is whole; the newest number
//! counts; a number is taken once, so an older server's snapshot never comes after a newer
//! server's first. Which files, and what is secret in them, is the caller's.

use bytes::Bytes;
use dormouse_crypt::hash;
use dormouse_format::codec::{Reader, Writer};

use crate::error::{Error, Result};
use crate::names;
use crate::objects::{Objects, Put};

const MAGIC: [u8; 8] = *b"DORMSTA1";
const VERSION: u32 = 1;
const CHECK: usize = 16;
const FILES_MAX: usize = 1 << 20;
const FILE_MAX: usize = 16 << 20;
const NAME_MAX: usize = 1024;
/// Snapshots that are kept.
const KEPT: u64 = 32;

/// A file of the server's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFile {
    /// Its path below the state directory, with '/'.
    pub name: String,
    /// Its mode.
    pub mode: u32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

fn encode(generation: u64, files: &[StateFile]) -> Bytes {
    let mut out = Writer::default();
    out.bytes(&MAGIC).u32(VERSION).u32(files.len() as u32).u64(generation);
    for file in files {
        out.blob(file.name.as_bytes()).u32(file.mode).blob(&file.bytes);
    }
    let check = hash::body_check(&out.0);
    out.bytes(&check);
    out.done().into()
}

/// Whether a name stays below the directory that it is put in.
fn is_inside(name: &str) -> bool {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    name.split('/').all(plain)
}

fn decode(name: &str, object: &[u8]) -> Result<Vec<StateFile>> {
    let bad = |why: String| Error::damaged(name, why);
    let failed = |e: dormouse_format::Error| Error::damaged(name, e.to_string());
    let at = object.len().checked_sub(CHECK).ok_or_else(|| bad("it is too short".into()))?;
    let (body, check) = object.split_at(at);
    if body.get(..8) != Some(&MAGIC[..]) || hash::body_check(body) != *check {
        return Err(bad("its check does not hold".into()));
    }
    let mut read = Reader::new(&body[8..], "state");
    let version = read.u32().map_err(failed)?;
    if version > VERSION {
        return Err(Error::Newer { object: name.into(), found: version, known: VERSION });
    }
    let count = read.u32().map_err(failed)? as usize;
    read.u64().map_err(failed)?;
    if count > FILES_MAX {
        return Err(bad("it has too many files".into()));
    }
    let mut files = Vec::new();
    for _ in 0..count {
        let name = read.text(NAME_MAX).map_err(failed)?;
        let mode = read.u32().map_err(failed)?;
        let bytes = read.blob(FILE_MAX).map_err(failed)?.to_vec();
        if !is_inside(&name) {
            return Err(bad(format!("it has a file named '{}'", name.escape_debug())));
        }
        files.push(StateFile { name, mode, bytes });
    }
    read.end().map_err(failed)?;
    Ok(files)
}

fn newest_number(objects: &dyn Objects) -> Result<u64> {
    let items = objects.list(names::STATE)?;
    let numbers = items.iter().filter_map(|i| names::number_of(&i.name, names::STATE));
    Ok(numbers.max().unwrap_or(0))
}

/// The newest snapshot; nothing if none was put.
pub(crate) fn newest(objects: &dyn Objects) -> Result<Vec<StateFile>> {
    let number = newest_number(objects)?;
    if number == 0 {
        return Ok(Vec::new());
    }
    let name = names::numbered(names::STATE, number);
    let object = objects.get(&name, None)?.ok_or_else(|| Error::damaged(&name, "it vanished"))?;
    decode(&name, &object)
}

/// The writing end.
#[derive(Debug)]
pub(crate) struct Snapshots {
    generation: u64,
    next: u64,
}

/// What putting a snapshot came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Saved {
    Done,
    /// The number is taken: another server goes on here.
    Lost(String),
}

impl Snapshots {
    pub(crate) fn open(objects: &dyn Objects, generation: u64) -> Result<Self> {
        Ok(Self { generation, next: newest_number(objects)? + 1 })
    }

    /// Puts a snapshot. At the beginning of a lease numbers that are taken are passed over.
    pub(crate) fn save(
        &mut self,
        objects: &dyn Objects,
        files: &[StateFile],
        first: bool,
    ) -> Result<Saved> {
        let object = encode(self.generation, files);
        loop {
            let name = names::numbered(names::STATE, self.next);
            if objects.put_new(&name, object.clone())? == Put::Taken {
                // An answer may have been lost: then it is this one.
                let same = objects.get(&name, None)?.as_ref() == Some(&object);
                if !same && first {
                    self.next += 1;
                    continue;
                }
                if !same {
                    return Ok(Saved::Lost(format!("{name} was put by another")));
                }
            }
            self.next += 1;
            if let Some(old) = self.next.checked_sub(KEPT + 1).filter(|n| *n > 0) {
                // Needed by nobody; where nothing may be removed, it stays.
                let _ = objects.delete(&names::numbered(names::STATE, old));
            }
            return Ok(Saved::Done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> StateFile {
        StateFile { name: name.into(), mode: 0o600, bytes: name.as_bytes().to_vec() }
    }

    #[test]
    fn snapshots_are_read_back_and_every_byte_counts() {
        let files = vec![file("clients/a.toml"), file("manifest.toml")];
        let object = encode(3, &files);
        assert_eq!(decode("state/1", &object).unwrap(), files);
        for at in 0..object.len() {
            let mut bad = object.to_vec();
            bad[at] ^= 1;
            assert!(decode("state/1", &bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        for name in ["../x", "/x", "a/../x", "", "a//b", "."] {
            assert!(decode("state/1", &encode(1, &[file(name)])).is_err(), "{name}");
        }
    }
}
