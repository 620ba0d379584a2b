//! A vault looked at from outside: what opening it would find and do, without doing it.
//!
//! Invariant: nothing is written, so it is safe beside a server; what that server writes
//! meanwhile may look unfinished. Not every record is read: that is what [`crate::scrub`] does.

use dormouse_format::VaultId;

use super::Fault;
use super::open::chain_after;
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::index::run::Run;
use crate::log::recover::recover;
use crate::log::{Segments, name, number};

/// The end of a write that was cut short: opening the vault sets it aside, for nobody was told
/// that it is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Name of the segment's file.
    pub segment: String,
    /// Where it begins.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// What opening a vault would find.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// Number of the newest segment.
    pub newest: u64,
    /// Bytes of all segments.
    pub bytes: u64,
    /// What a write has left at the end.
    pub unfinished: Option<Unfinished>,
    /// Damaged records of the newest segment.
    pub damaged: Vec<Fault>,
    /// Files that earlier openings have set aside, and their bytes.
    pub set_aside: Vec<(String, u64)>,
    /// Index runs that fit the log.
    pub runs: u64,
    /// Segments that no run covers, but for the newest.
    pub uncovered: u64,
    /// Index files that do not fit.
    pub bad_runs: Vec<String>,
}

/// Looks at the segments and the index of a vault. An error says why it cannot be opened.
pub fn look(segments: Box<dyn Dir>, index: Option<&dyn Dir>, vault: &VaultId) -> Result<Look> {
    let segments = Segments::new(segments.into());
    let mut look = Look::default();
    let failed = |e| Error::io("listing the segments", e);
    for file in segments.dir.list().map_err(failed)? {
        let of = |e| Error::io(file.clone(), e);
        let len = segments.dir.open(&file).and_then(|f| f.len()).map_err(of)?;
        if number(&file).is_some() {
            look.bytes += len;
        } else {
            look.set_aside.push((file, len));
        }
    }
    look.set_aside.sort();
    let found = recover(&segments, vault)?;
    look.newest = found.active.number;
    look.unfinished = found.left_over().map(|(number, offset, bytes)| Unfinished {
        segment: name(number),
        offset,
        bytes,
    });
    let fault = |(at, why): &(crate::RecordRef, Error)| {
        let (segment, offset) = (name(at.segment()), at.offset());
        Fault { segment, offset, why: why.to_string() }
    };
    look.damaged = found.damaged.iter().map(fault).collect();
    let mut covered = 0;
    for file in index.map_or_else(|| Ok(Vec::new()), Dir::list).unwrap_or_default() {
        let Some(dir) = index.filter(|_| file.ends_with(".run")) else { continue };
        let fits = Run::open(dir, &file, vault).ok().map(|run| run.range).filter(|range| {
            chain_after(&found, range.first.wrapping_sub(1)) == Some(range.before)
                && chain_after(&found, range.last) == Some(range.chain)
        });
        match fits {
            Some(range) => {
                look.runs += 1;
                covered += (range.last + 1).saturating_sub(range.first);
            }
            None => look.bad_runs.push(file),
        }
    }
    look.uncovered = look.newest.saturating_sub(1).saturating_sub(covered);
    Ok(look)
}
