//! The chain over segments that were retired.
//!
//! Pure. Invariant: a segment that is missing, or follows another than the one before it, is
//! explained by a record 'retired', or it is a break. Used by recovery and by scrub, so
//! both judge alike.

use std::collections::BTreeMap;

use dormouse_format::collect::{Retired, RetiredSegment};
use dormouse_format::seeded::seeded;

/// Segments that were retired, by number.
pub(crate) type Retirees = BTreeMap<u64, RetiredSegment>;

/// The segments of a record 'retired', by number.
pub(crate) fn retirees(body: &[u8]) -> dormouse_format::Result<Retirees> {
    Ok(Retired::decode(body)?.segments.into_iter().map(|s| (s.number, s)).collect())
}

/// A segment that is here: what links it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) number: u64,
    /// What its header says of the one before, if it can be read.
    pub(crate) before: Option<[u8; 16]>,
    /// The check of its header, likewise.
    pub(crate) check: Option<[u8; 16]>,
    /// Its last chain value, if it is sure.
    pub(crate) chain: Option<[u8; 16]>,
}

/// Where the chain does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Break {
    /// From this number on segments are missing that nothing explains.
    Missing(u64),
    /// This one does not follow the one before it.
    Unlinked(u64),
    /// This one has the number of another that was retired.
    Exchanged(u64),
}

/// All breaks between segments in order of number.
pub(crate) fn breaks(links: impl IntoIterator<Item = Link>, retired: &Retirees) -> Vec<Break> {
    let mut out = Vec::new();
    let mut next = 1;
    let mut before = Some([0; 16]);
    for link in links {
        let mut missing = false;
        while next < link.number {
            match retired.get(&next) {
                Some(gone) => {
                    if before.is_some_and(|b| b != gone.before) {
                        out.push(Break::Unlinked(next));
                    }
                    before = Some(gone.chain);
                }
                None => {
                    if !missing && !seeded("gap-unexplained") {
                        out.push(Break::Missing(next));
                    }
                    (missing, before) = (true, None);
                }
            }
            next += 1;
        }
        let unlinked = before.zip(link.before).is_some_and(|(is, says)| is != says);
        if unlinked && !seeded("before-unchecked") {
            out.push(Break::Unlinked(link.number));
        }
        let gone = retired.get(&link.number).map(|gone| gone.check);
        if gone.zip(link.check).is_some_and(|(gone, check)| gone != check) {
            out.push(Break::Exchanged(link.number));
        }
        (next, before) = (link.number + 1, link.chain);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segment n says [n - 1; 16] of the one before, and ends with [n; 16].
    fn link(number: u8) -> Link {
        let (before, own) = (Some([number - 1; 16]), Some([number; 16]));
        Link { number: number.into(), before, check: own, chain: own }
    }

    fn gone(numbers: &[u8]) -> Retirees {
        let of = |n: &u8| {
            let (before, check, chain) = ([n - 1; 16], [*n; 16], [*n; 16]);
            (u64::from(*n), RetiredSegment { number: u64::from(*n), before, check, chain })
        };
        numbers.iter().map(of).collect()
    }

    #[test]
    fn a_gap_is_explained_or_a_break() {
        let here = |numbers: &[u8]| numbers.iter().map(|n| link(*n)).collect::<Vec<_>>();
        assert_eq!(breaks(here(&[1, 2, 3]), &gone(&[])), []);
        assert_eq!(breaks(here(&[3, 6]), &gone(&[1, 2, 4, 5])), []);
        assert_eq!(breaks(here(&[2, 3]), &gone(&[1, 2])), [], "not removed yet");
        assert_eq!(breaks(here(&[3, 6]), &gone(&[1, 2, 5])), [Break::Missing(4)]);
        assert_eq!(breaks(here(&[2]), &gone(&[])), [Break::Missing(1)]);
        assert_eq!(breaks(here(&[1, 4]), &gone(&[])), [Break::Missing(2)], "once");
    }

    #[test]
    fn the_chain_is_followed_over_a_gap() {
        let mut other = gone(&[2, 3]);
        other.get_mut(&2).unwrap().before = [9; 16];
        assert_eq!(breaks([link(1), link(4)], &other), [Break::Unlinked(2)]);
        let mut other = gone(&[2, 3]);
        other.get_mut(&3).unwrap().chain = [9; 16];
        assert_eq!(breaks([link(1), link(4)], &other), [Break::Unlinked(4)]);
        let mut other = gone(&[2]);
        other.get_mut(&2).unwrap().check = [9; 16];
        assert_eq!(breaks([link(1), link(2)], &other), [Break::Exchanged(2)]);
        let unsure = Link { chain: None, ..link(1) };
        assert_eq!(breaks([unsure, link(2)], &gone(&[])), []);
    }
}
