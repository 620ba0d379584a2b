//! A vault looked at from outside: what opening it would find and do, without doing it.
//!
//! Invariant: nothing is written, so it is safe beside a server; what that server writes
//! meanwhile may look unfinished. Not every record is read: that is what [`crate::scrub`] does.

use dormouse_format::VaultId;

use super::Fault;
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::index::run::Run;
use crate::log::gaps::Retirees;
use crate::log::recover::recover;
use crate::log::{Segments, name, number};
use crate::replica::retired_of;

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
    /// Segments that are there.
    pub segments: u64,
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
    look.segments = found.sealed.len() as u64 + 1;
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
    let whole = look.segments == found.active.number;
    let retired = if whole { Retirees::new() } else { retired_of(&*segments.dir, vault)? };
    found.check_chain(&retired)?;
    let chain = |number| found.chain_after(number, &retired);
    let mut covered = Vec::new();
    for file in index.map_or_else(|| Ok(Vec::new()), Dir::list).unwrap_or_default() {
        let Some(dir) = index.filter(|_| file.ends_with(".run")) else { continue };
        let fits = Run::open(dir, &file, vault).ok().map(|run| run.range).filter(|range| {
            chain(range.first.wrapping_sub(1)) == Some(range.before)
                && chain(range.last) == Some(range.chain)
        });
        match fits {
            Some(range) => covered.push(range.first..=range.last),
            None => look.bad_runs.push(file),
        }
    }
    look.runs = covered.len() as u64;
    let sealed = found.sealed.iter().map(|sealed| sealed.header.number);
    let open = |number: &u64| !retired.contains_key(number);
    let uncovered = |number: &u64| covered.iter().all(|range| !range.contains(number));
    look.uncovered = sealed.filter(open).filter(uncovered).count() as u64;
    Ok(look)
}
