//! Names of objects. Invariant: what is read back is exactly what was written.

use dormouse_format::VaultId;

/// What makes a prefix a store.
pub(crate) const STORE: &str = "store";
/// Where leases lie.
pub(crate) const LEASES: &str = "leases";
/// Where the server's state lies.
pub(crate) const STATE: &str = "state";
/// Where create-if-absent is tried.
pub(crate) const PROBE: &str = "probe";

/// An object of a vault's segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    /// A whole segment.
    Whole(u64),
    /// A part of one: segment, number of the part.
    Part(u64, u32),
}

/// Where a vault's segments lie.
pub(crate) fn segments(vault: &VaultId) -> String {
    format!("vaults/{vault}/segments")
}

/// Name of a segment's file.
pub(crate) fn file(number: u64) -> String {
    format!("{number:016}.seg")
}

/// Number of the segment with this file name.
pub(crate) fn number(file: &str) -> Option<u64> {
    digits(file.strip_suffix(".seg")?, 16)
}

/// A name with a number of 16 digits.
pub(crate) fn numbered(below: &str, number: u64) -> String {
    format!("{below}/{number:016}")
}

/// The number of a name made by [`numbered`].
pub(crate) fn number_of(name: &str, below: &str) -> Option<u64> {
    digits(name.strip_prefix(below)?.strip_prefix('/')?, 16)
}

fn digits(text: &str, count: usize) -> Option<u64> {
    let fits = text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    if fits { text.parse().ok() } else { None }
}

impl Name {
    /// Below the directory of the segments.
    pub(crate) fn read(name: &str) -> Option<Self> {
        match name.split_once(".part-") {
            None => number(name).map(Self::Whole),
            Some((seg, part)) => {
                let part = u32::try_from(digits(part, 8)?).ok()?;
                number(seg).map(|n| Self::Part(n, part))
            }
        }
    }

    /// The whole name.
    pub(crate) fn of(self, vault: &VaultId) -> String {
        let below = segments(vault);
        match self {
            Self::Whole(n) => format!("{below}/{}", file(n)),
            Self::Part(n, part) => format!("{below}/{}.part-{part:08}", file(n)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_none() {
        let vault = VaultId([7; 32]);
        for name in [Name::Whole(1), Name::Part(12, 0), Name::Part(u64::from(u32::MAX), 99_999_999)]
        {
            let text = name.of(&vault);
            let below = text.strip_prefix(&segments(&vault)).unwrap().strip_prefix('/').unwrap();
            assert_eq!(Name::read(below), Some(name));
        }
        let bad = "1.seg 0000000000000001.seg.torn-0 0000000000000001.seg.part-1 \
                   0000000000000001.seg.part-+0000001 000000000000000+.seg x";
        for name in bad.split(' ') {
            assert_eq!(Name::read(name), None, "{name}");
        }
        assert_eq!(number_of(&numbered("state", 5), "state"), Some(5));
        assert_eq!(number_of("state/0000000000000005.x", "state"), None);
    }
}
