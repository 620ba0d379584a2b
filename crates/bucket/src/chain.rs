//! What lies in the bucket of one vault, by segment, and what comes next.
//!
//! Pure: over names and sizes. The parts of a vault are one chain: those of the first segment in
//! order of their number, a part that closes it, those of the next. Each is put by
//! create-if-absent under the next name of the chain, so whoever holds an older end of it cannot
//! put anything: the name is taken. Invariant: parts that end a chain (fence, close, cut) are
//! never removed; what lies outside of the chain was put late by a server that was fenced, or
//! belongs to a segment that was removed, and is passed over.

use std::collections::BTreeMap;

use dormouse_format::VaultId;

use crate::error::{Error, Result};
use crate::names::{self, Name};
use crate::objects::Item;
use crate::part::{DATA_AT, Kind};

/// Bytes of a segment within an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) object: Name,
    /// Where they begin in the segment.
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// Where they begin in the object.
    pub(crate) at: u64,
}

/// What the bucket has of a segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Parts with bytes, in order; they cover 0 to `end`.
    pub(crate) parts: Vec<Piece>,
    /// Bytes of the segment that count.
    pub(crate) end: u64,
    /// Number of the next part.
    pub(crate) next: u32,
    /// Whether nothing more is put.
    pub(crate) closed: bool,
    /// Whether there is an object with the whole segment.
    pub(crate) whole: bool,
    /// Parts that a whole object has made needless.
    pub(crate) spare: Vec<u32>,
}

impl Stored {
    /// Whether any byte of it is there.
    pub(crate) const fn is_there(&self) -> bool {
        self.end > 0
    }

    /// Takes in a part that was put.
    pub(crate) fn push(&mut self, number: u64, kind: Kind, offset: u64, len: u64) {
        let object = Name::Part(number, self.next);
        self.next += 1;
        match kind {
            Kind::Data => {
                self.parts.push(Piece { object, offset, len, at: DATA_AT });
                self.end = offset + len;
            }
            Kind::Close => self.closed = true,
            Kind::Cut => self.cut(offset),
            Kind::Fence => {}
        }
    }

    fn cut(&mut self, to: u64) {
        self.end = self.end.min(to);
        self.parts.retain(|p| p.offset < to);
        if let Some(last) = self.parts.last_mut() {
            last.len = last.len.min(to - last.offset);
        }
    }

    /// The objects that hold a range of the segment, with where in them.
    pub(crate) fn pieces(&self, number: u64, offset: u64, len: u64) -> Vec<Piece> {
        let end = offset + len;
        if self.whole {
            return vec![Piece { object: Name::Whole(number), offset, len, at: offset }];
        }
        let within = |p: &&Piece| p.offset < end && p.offset + p.len > offset;
        let cut = |p: &Piece| {
            let from = p.offset.max(offset);
            let len = (p.offset + p.len).min(end) - from;
            Piece { object: p.object, offset: from, len, at: p.at + (from - p.offset) }
        };
        self.parts.iter().filter(within).map(cut).collect()
    }
}

/// Where the chain of a vault goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) segment: u64,
    pub(crate) part: u32,
}

/// What the objects of a vault's segments come to. `cut_at` reads the offset of a cut.
pub(crate) fn read(
    vault: &VaultId,
    items: &[Item],
    mut cut_at: impl FnMut(u64, u32) -> Result<u64>,
) -> Result<BTreeMap<u64, Stored>> {
    let below = names::segments(vault);
    let mut wholes = BTreeMap::new();
    let mut parts: BTreeMap<u64, BTreeMap<u32, u64>> = BTreeMap::new();
    for item in items {
        let name = item.name.strip_prefix(&below).and_then(|n| n.strip_prefix('/'));
        match name.and_then(Name::read) {
            Some(Name::Whole(n)) => drop(wholes.insert(n, item.size)),
            Some(Name::Part(n, part)) => drop(parts.entry(n).or_default().insert(part, item.size)),
            // Not ours: left alone.
            None => {}
        }
    }
    let mut out = BTreeMap::new();
    for (number, size) in wholes {
        let mut stored = Stored { end: size, closed: true, whole: true, ..Stored::default() };
        for (part, size) in parts.remove(&number).unwrap_or_default() {
            stored.next = part + 1;
            if matches!(Kind::of_size(size), Some((Kind::Data, _))) {
                stored.spare.push(part);
            }
        }
        out.insert(number, stored);
    }
    let newest = out.keys().chain(parts.keys()).max().copied();
    for (number, parts) in parts {
        let stored = segment(vault, number, &parts, newest == Some(number), &mut cut_at)?;
        out.insert(number, stored);
    }
    Ok(out)
}

/// A segment that is there in parts only. What comes behind a missing part does not count: the
/// segment was being removed, or it is damaged; the store can tell. But what the newest segment
/// lacks would look like writes that were never finished, so there it is damage.
fn segment(
    vault: &VaultId,
    number: u64,
    parts: &BTreeMap<u32, u64>,
    newest: bool,
    cut_at: &mut impl FnMut(u64, u32) -> Result<u64>,
) -> Result<Stored> {
    let mut stored = Stored::default();
    let mut whole = true;
    for (&part, &size) in parts {
        let name = || Name::Part(number, part).of(vault);
        let Some((kind, len)) = Kind::of_size(size) else {
            return Err(Error::damaged(name(), format!("no part has {size} bytes")));
        };
        whole &= part == stored.next;
        if !whole {
            stored.closed |= kind == Kind::Close;
            stored.next = part + 1;
            stored.spare.extend((kind == Kind::Data).then_some(part));
            continue;
        }
        let offset = if kind == Kind::Cut { cut_at(number, part)? } else { stored.end };
        if stored.closed && kind != Kind::Fence {
            return Err(Error::damaged(name(), "it follows the end of its segment"));
        }
        stored.push(number, kind, offset, len);
    }
    // Without any bytes it is one that was removed.
    if newest && !whole && (stored.is_there() || !stored.spare.is_empty()) {
        let why = "parts before it are missing; bring them back from a copy";
        let last = Name::Part(number, stored.next - 1).of(vault);
        return Err(Error::damaged(last, why));
    }
    Ok(stored)
}

/// Where the next object of the chain goes.
pub(crate) fn end(segments: &BTreeMap<u64, Stored>) -> End {
    match segments.last_key_value() {
        None => End { segment: 1, part: 0 },
        Some((number, stored)) if stored.closed => End { segment: number + 1, part: 0 },
        Some((number, stored)) => End { segment: *number, part: stored.next },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VAULT: VaultId = VaultId([1; 32]);

    fn item(name: Name, size: u64) -> Item {
        Item { name: name.of(&VAULT), size }
    }

    fn read_all(items: &[Item]) -> Result<BTreeMap<u64, Stored>> {
        read(&VAULT, items, |_, _| Ok(150))
    }

    #[test]
    fn a_chain_goes_on_where_it_ends() {
        assert_eq!(end(&BTreeMap::new()), End { segment: 1, part: 0 });
        let mut items = vec![item(Name::Part(1, 0), 113), item(Name::Part(1, 1), 128 + 100)];
        let found = read_all(&items).unwrap();
        assert_eq!(end(&found), End { segment: 1, part: 2 });
        assert_eq!(found[&1].end, 100);
        items.push(item(Name::Part(1, 2), 128 + 100));
        items.push(item(Name::Part(1, 3), 115));
        items.push(item(Name::Part(1, 4), 128 + 10));
        let found = read_all(&items).unwrap();
        assert_eq!(found[&1].end, 160, "cut at 150, and 10 more");
        let pieces = found[&1].pieces(1, 90, 65);
        let told: Vec<_> = pieces.iter().map(|p| (p.object, p.offset, p.len, p.at)).collect();
        assert_eq!(
            told,
            [
                (Name::Part(1, 1), 90, 10, 218),
                (Name::Part(1, 2), 100, 50, 128),
                (Name::Part(1, 4), 150, 5, 128)
            ]
        );
        items.push(item(Name::Part(1, 5), 114));
        assert_eq!(end(&read_all(&items).unwrap()), End { segment: 2, part: 0 });
        items.push(item(Name::Whole(1), 160));
        let found = read_all(&items).unwrap();
        assert_eq!(end(&found), End { segment: 2, part: 0 });
        assert_eq!(found[&1].spare, [1, 2, 4], "what ends a chain stays");
        assert_eq!(found[&1].pieces(1, 90, 65).len(), 1);
    }

    #[test]
    fn what_is_missing_is_named_and_what_is_left_over_does_not_count() {
        let hole = [item(Name::Part(3, 0), 228), item(Name::Part(3, 2), 228)];
        let error = read_all(&hole).unwrap_err().to_string();
        assert!(error.contains("part-00000002") && error.contains("missing"), "{error}");
        // Of older ones the store can tell whether they were removed.
        let older = [&hole[..], &[item(Name::Part(4, 0), 228)]].concat();
        let found = read_all(&older).unwrap();
        assert_eq!((found[&3].end, &found[&3].spare[..]), (100, &[2][..]));
        let late = [item(Name::Part(2, 5), 228), item(Name::Part(3, 0), 228)];
        let found = read_all(&late).unwrap();
        assert!(!found[&2].is_there());
        assert_eq!(found[&2].spare, [5]);
        let removed = [item(Name::Part(3, 0), 113), item(Name::Part(3, 4), 114)];
        let found = read_all(&removed).unwrap();
        assert!(!found[&3].is_there());
        assert_eq!(end(&found), End { segment: 4, part: 0 });
        let after = [item(Name::Part(3, 0), 228), item(Name::Part(3, 1), 114)];
        let after = [&after[..], &[item(Name::Part(3, 2), 228)]].concat();
        assert!(read_all(&after).unwrap_err().to_string().contains("follows the end"));
        assert!(read_all(&[item(Name::Part(3, 0), 12)]).is_err());
    }
}
