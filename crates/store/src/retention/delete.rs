//! Whether points may be deleted by hand, and which others are in the way.
//!
//! Invariant: what stays can be read. A deletion never takes more than was named, and nothing
//! that stays needs what it takes: a range that would break this is refused with a way out.

use dormouse_format::Seq;

use super::Seen;

/// Why a range of points cannot go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InTheWay {
    /// No point is in the range.
    Nothing,
    /// The newest point, on which the next one builds, is in it, or needs what is in it.
    Newest {
        /// The checkpoint that it builds on.
        checkpoint: Seq,
        /// It.
        newest: Seq,
    },
    /// Points that stay are built on it.
    Needed {
        /// The first that goes.
        first: Seq,
        /// The last that is built on it.
        last: Seq,
    },
    /// A fork begins with this point, or with one that needs it.
    Fork {
        /// The fork's point.
        seq: Seq,
    },
}

/// That these points may go, all of them and nothing else. `pinned` are points that forks
/// begin with.
pub fn check(points: &[Seen], first: Seq, last: Seq, pinned: &[Seq]) -> Result<(), InTheWay> {
    let goes = |seq: Seq| (first..=last).contains(&seq);
    let Some(lowest) = points.iter().find(|p| goes(p.seq)) else {
        return Err(InTheWay::Nothing);
    };
    // Read with all from its checkpoint on.
    let needs = |p: &Seen| p.checkpoint <= last && p.seq >= first;
    if let Some(newest) = points.last().filter(|p| needs(p)) {
        return Err(InTheWay::Newest { checkpoint: newest.checkpoint, newest: newest.seq });
    }
    if let Some(fork) = points.iter().find(|p| pinned.contains(&p.seq) && needs(p)) {
        return Err(InTheWay::Fork { seq: fork.seq });
    }
    let broken = points.iter().rev().find(|p| p.seq > last && p.checkpoint <= last);
    match broken {
        Some(p) => Err(InTheWay::Needed { first: lowest.seq, last: p.seq }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checkpoints 1, 4 and 8; the newest is 10.
    fn points() -> Vec<Seen> {
        let checkpoint = |seq| match seq {
            1..4 => 1,
            4..8 => 4,
            _ => 8,
        };
        let seen = |seq| Seen { seq, checkpoint: checkpoint(seq), consistent: true, receipt: seq };
        (1..=10).map(seen).collect()
    }

    #[test]
    fn what_others_need_stays() {
        let p = points();
        for (first, last) in [(1, 3), (2, 3), (3, 3), (4, 7), (6, 7), (1, 7), (2, 7)] {
            assert_eq!(check(&p, first, last, &[]), Ok(()), "{first}..={last}");
        }
        let needed = |first, last| Err(InTheWay::Needed { first, last });
        assert_eq!(check(&p, 1, 2, &[]), needed(1, 3));
        assert_eq!(check(&p, 2, 5, &[]), needed(2, 7));
        assert_eq!(check(&p, 4, 4, &[]), needed(4, 7));
        let newest = Err(InTheWay::Newest { checkpoint: 8, newest: 10 });
        for (first, last) in [(8, 8), (10, 10), (1, 10), (9, 99), (4, 8)] {
            assert_eq!(check(&p, first, last, &[]), newest, "{first}..={last}");
        }
        assert_eq!(check(&p, 11, 20, &[]), Err(InTheWay::Nothing));
        assert_eq!(check(&[], 1, 2, &[]), Err(InTheWay::Nothing));
    }

    #[test]
    fn a_fork_holds_its_point_and_what_that_needs() {
        let p = points();
        let fork = Err(InTheWay::Fork { seq: 6 });
        for (first, last) in [(6, 7), (4, 7), (5, 7), (1, 7)] {
            assert_eq!(check(&p, first, last, &[6]), fork, "{first}..={last}");
        }
        assert_eq!(check(&p, 7, 7, &[6]), Ok(()));
        assert_eq!(check(&p, 1, 3, &[6]), Ok(()));
    }
}
