//! A log healed from a second copy of it.
//!
//! Invariants: the bytes that are put back are those that were there: a segment takes another's
//! place only if both are of one history, each record that still verifies is in the new one at
//! its place, and what follows it still does. What was there is kept under another name.

use dormouse_format::VaultId;
use dormouse_format::seeded::seeded;

use super::{Judged, bytes_of, judge, retired_of};
use crate::Fault;
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::log::walk::{self, Walk};
use crate::log::{name, numbers};

/// A segment that was healed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healed {
    /// Name of its file.
    pub segment: String,
    /// The file that has the damaged bytes now; none if the segment was missing.
    pub kept_in: Option<String>,
}

/// What healing came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Healing {
    /// Segments that are whole again.
    pub healed: Vec<Healed>,
    /// What could not be healed, and why.
    pub left: Vec<Fault>,
}

/// Heals a vault's log from a second copy. Nobody else writes to it.
pub fn heal(own: &dyn Dir, other: &dyn Dir, vault: &VaultId) -> Result<Healing> {
    let mut healing = Healing::default();
    let have = numbers(own)?;
    // A whole log is never shorter than what was copied of it.
    let last = have.last().copied().max(numbers(other)?.last().copied()).unwrap_or(0);
    let (retired, retired_there) = (retired_of(own, vault)?, retired_of(other, vault)?);
    let mut before = Some([0; 16]);
    for number in 1..=last {
        let place = Place { number, vault, before, last: number == last };
        let bytes = bytes_of(own, number)?;
        let theirs = bytes_of(other, number)?;
        // What the copy says counts where neither has the segment any more.
        let neither = bytes.is_none() && theirs.is_none();
        let there = retired_there.get(&number).filter(|_| neither);
        if let Some(gone) = retired.get(&number).or(there) {
            before = Some(gone.chain);
            continue;
        }
        let copied = theirs.as_deref().and_then(|theirs| place.whole(theirs));
        if let Some(whole) = bytes.as_deref().and_then(|bytes| place.fits(bytes)) {
            // What was synced last and rotted looks like a write that was cut short, but not to
            // who has a copy of it.
            let shorter = |copied: &Whole<'_>| !whole.sealed && copied.begins_as(&whole);
            if !copied.as_ref().is_some_and(shorter) {
                before = Some(whole.chain);
                continue;
            }
        }
        let healed = copied
            .ok_or_else(|| "the copy does not have it whole either".to_owned())
            .and_then(|copied| place.healed(bytes.as_deref(), copied.bytes))
            .and_then(|(healed, chain)| match after(own, number, vault)? {
                Some(next) if next != chain => {
                    Err("the segment after it does not follow it".into())
                }
                _ => Ok((healed, chain)),
            });
        before = match healed {
            Ok((healed, chain)) => {
                healing.healed.push(replace(own, number, &healed, bytes.is_some())?);
                Some(chain)
            }
            Err(why) => {
                healing.left.push(Fault { segment: name(number), offset: 0, why });
                None
            }
        };
    }
    Ok(healing)
}

/// What the next segment says that this one's last chain value is, if there is one that holds.
fn after(
    own: &dyn Dir,
    number: u64,
    vault: &VaultId,
) -> core::result::Result<Option<[u8; 16]>, String> {
    let next = bytes_of(own, number + 1).map_err(|e| e.to_string())?;
    let header = next.and_then(|next| walk::header(&next, number + 1, vault).ok());
    Ok(header.map(|header| header.before))
}

/// A segment's place in the log that is healed.
struct Place<'a> {
    number: u64,
    vault: &'a VaultId,
    /// The chain value of the segment before, if that is whole.
    before: Option<[u8; 16]>,
    last: bool,
}

/// The whole entries of a segment.
struct Whole<'a> {
    bytes: &'a [u8],
    chain: [u8; 16],
    sealed: bool,
}

impl Whole<'_> {
    /// Whether this has all of the other, and more.
    fn begins_as(&self, other: &Whole<'_>) -> bool {
        self.bytes.len() > other.bytes.len() && self.bytes.starts_with(other.bytes)
    }
}

impl Place<'_> {
    /// The whole entries, if nothing is damaged.
    fn whole<'b>(&self, bytes: &'b [u8]) -> Option<Whole<'b>> {
        let Judged { end, chain, sealed, damaged, broken } =
            judge(bytes, self.number, self.vault).ok()?;
        let good = broken.is_none() && damaged.is_empty();
        good.then_some(Whole { bytes: &bytes[..end], chain, sealed })
    }

    /// The same, if it is what belongs here.
    fn fits<'b>(&self, bytes: &'b [u8]) -> Option<Whole<'b>> {
        let header = walk::header(bytes, self.number, self.vault).ok()?;
        let follows = self.before.is_none_or(|before| header.before == before);
        self.whole(bytes).filter(|whole| follows && (whole.sealed || self.last))
    }

    /// The copy's bytes, then what this log has beyond them, and the chain value at the end; or
    /// why that must not take the place of what is there.
    fn healed(
        &self,
        own: Option<&[u8]>,
        copied: &[u8],
    ) -> core::result::Result<(Vec<u8>, [u8; 16]), String> {
        let check = |bytes: &[u8]| {
            walk::header(bytes, self.number, self.vault).ok().map(|header| header.check)
        };
        let known = own.and_then(check);
        if known.map_or(self.before.is_none(), |known| Some(known) != check(copied)) {
            return Err("nothing shows that the copy's segment is of this log".into());
        }
        let mut healed = copied.to_vec();
        healed.extend(own.iter().flat_map(|own| own.get(copied.len()..)).flatten());
        if own.is_some_and(|own| !self.keeps(own, &healed)) && !seeded("heal-hides") {
            return Err("the copy lacks records that are whole here".into());
        }
        let chain = self.fits(&healed).map(|whole| whole.chain);
        chain
            .map(|chain| (healed, chain))
            .ok_or_else(|| "what the copy has of it does not fit".to_owned())
    }

    /// Whether each record that still verifies lies in the healed segment, at its place.
    fn keeps(&self, own: &[u8], healed: &[u8]) -> bool {
        let Ok(header) = walk::header(healed, self.number, self.vault) else { return false };
        let mut walk = Walk::new(own, &header);
        loop {
            let at = walk.at;
            match walk.step() {
                Ok(None) => return true,
                Ok(Some(_)) if own.get(at..walk.at) == healed.get(at..walk.at) => {}
                Ok(Some(_)) => return false,
                Err(_) => {
                    if !walk.resume() {
                        return true;
                    }
                }
            }
        }
    }
}

/// Puts a healed segment in its place; what was there is kept.
fn replace(own: &dyn Dir, number: u64, bytes: &[u8], there: bool) -> Result<Healed> {
    let segment = name(number);
    let failed = |e| Error::io(format!("healing {}", name(number)), e);
    let names = own.list().map_err(failed)?;
    let making = format!("{segment}.healing");
    if names.contains(&making) {
        own.remove(&making).map_err(failed)?;
    }
    let file = own.create(&making).map_err(failed)?;
    file.write_at(bytes, 0).map_err(failed)?;
    file.sync().map_err(failed)?;
    let free = (1..).map(|n: u64| format!("{segment}.damaged-{n}")).find(|n| !names.contains(n));
    let kept_in = free.filter(|_| there);
    if let Some(kept_in) = &kept_in {
        own.rename(&segment, kept_in).map_err(failed)?;
        own.sync().map_err(failed)?;
    }
    own.rename(&making, &segment).map_err(failed)?;
    own.sync().map_err(failed)?;
    Ok(Healed { segment, kept_in })
}
