//! A second copy whose last run was cut short becomes whole again without its source.
//!
//! Invariant: what stays is a prefix of the source's log, and holds all that the last whole run
//! brought, for a run only adds behind it until it is whole. What is beyond is kept under another
//! name; a run that comes brings it again.

use dormouse_format::VaultId;
use dormouse_format::seeded::seeded;
use dormouse_format::segment;

use super::{Judged, bytes_of, judge, retired_of};
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::log::gaps::{Break, Link, breaks};
use crate::log::{name, numbers, walk};

/// Sets aside what a run that was cut short has left behind a gap, or half: the names it has now.
/// Nobody else uses the copy.
pub fn settle(copy: &dyn Dir, vault: &VaultId) -> Result<Vec<String>> {
    let mut aside = Vec::new();
    // What is set aside may have explained a gap before it.
    while let Some(cut) = first_break(copy, vault)?.filter(|_| !seeded("copy-unsettled")) {
        for number in numbers(copy)?.into_iter().filter(|n| *n >= cut) {
            let (from, to) = (name(number), format!("{}.unfinished", name(number)));
            let failed = |e| Error::io(format!("setting {from} aside"), e);
            if copy.list().map_err(failed)?.contains(&to) {
                copy.remove(&to).map_err(failed)?;
            }
            copy.rename(&from, &to).map_err(failed)?;
            aside.push(to);
        }
        copy.sync().map_err(|e| Error::io("setting segments aside", e))?;
    }
    Ok(aside)
}

/// The first number from which on the copy is no part of a whole log.
fn first_break(copy: &dyn Dir, vault: &VaultId) -> Result<Option<u64>> {
    let there = numbers(copy)?;
    let (mut links, mut half) = (Vec::new(), None);
    for number in &there {
        let bytes = bytes_of(copy, *number)?.unwrap_or_default();
        let Ok(segment::Header { before, check, .. }) = walk::header(&bytes, *number, vault) else {
            half = Some(*number);
            break;
        };
        let Judged { chain, sealed, .. } = judge(&bytes, *number, vault)?;
        let chain = sealed.then_some(chain);
        links.push(Link { number: *number, before: Some(before), check: Some(check), chain });
        if !sealed {
            half = there.iter().copied().find(|n| n > number);
            break;
        }
    }
    let broken = breaks(links, &retired_of(copy, vault)?).first().map(|b| match b {
        Break::Missing(n) | Break::Unlinked(n) | Break::Exchanged(n) => *n,
    });
    // What is missing cannot be set aside: what is behind it is.
    let broken = broken.and_then(|n| there.iter().copied().find(|there| *there >= n));
    Ok(broken.into_iter().chain(half).min())
}
