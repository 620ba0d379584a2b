//! Every damage that is tried, and how it is made.

use std::fmt;
use std::ops::RangeInclusive;

use super::judge::Damaged;
use super::sample::{Entry, Name, Place, Sample, entries};

/// One bit low, one high, all.
pub const MASKS: [u8; 3] = [0x01, 0x80, 0xff];

/// Kinds of damage, as tables call them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// A byte of a sealed segment.
    FlipSealed,
    /// A byte of the last segment.
    FlipLast,
    /// A byte of an index run.
    FlipIndex,
    /// A segment cut to a length.
    CutSegment,
    /// An index run cut to a length.
    CutIndex,
    /// Two records in each other's place.
    SwapRecords,
    /// Two segments in each other's place.
    SwapSegments,
    /// Two index runs in each other's place.
    SwapIndex,
    /// An earlier version of a segment, or none.
    OldSegment,
    /// An earlier version of an index run, or none, or one that was removed.
    OldIndex,
}

impl Row {
    /// What tables call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FlipSealed => "byte of a sealed segment",
            Self::FlipLast => "byte of the last segment",
            Self::FlipIndex => "byte of an index run",
            Self::CutSegment => "length of a segment",
            Self::CutIndex => "length of an index run",
            Self::SwapRecords => "two records exchanged",
            Self::SwapSegments => "two segments exchanged",
            Self::SwapIndex => "two index runs exchanged",
            Self::OldSegment => "segment old or missing",
            Self::OldIndex => "index run old or missing",
        }
    }
}

/// A damage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Case<'a> {
    /// A byte is changed.
    Flip(&'a Name, usize, u8),
    /// A file is cut to this length.
    Cut(&'a Name, usize),
    /// Two records change places.
    Records((&'a Name, Entry), (&'a Name, Entry)),
    /// Two files change places.
    Files(&'a Name, &'a Name),
    /// This earlier version of a file is put back.
    Old(&'a Name, usize),
    /// A file is gone.
    Gone(&'a Name),
}

/// Anywhere in a file: what is exchanged or cut moves the rest.
const WHOLE: RangeInclusive<u64> = 0..=u64::MAX;

fn shown(name: &Name) -> String {
    let dir = if name.0 == Place::Segments { "segments" } else { "index" };
    format!("{dir}/{}", name.1)
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flip(name, at, mask) => write!(f, "{} byte {at} mask {mask:#04x}", shown(name)),
            Self::Cut(name, len) => write!(f, "{} cut to {len} bytes", shown(name)),
            Self::Records((a, x), (b, y)) => {
                write!(f, "records {} {} and {} {} exchanged", shown(a), x.at, shown(b), y.at)
            }
            Self::Files(a, b) => write!(f, "{} and {} exchanged", shown(a), shown(b)),
            Self::Old(name, version) => write!(f, "{} version {version} put back", shown(name)),
            Self::Gone(name) => write!(f, "{} removed", shown(name)),
        }
    }
}

/// All damages, with their rows.
pub fn all(sample: &Sample) -> Vec<(Row, Case<'_>)> {
    let mut out = Vec::new();
    for (name, bytes) in &sample.files {
        let (flip, cut, gone) = match name.0 {
            Place::Index => (Row::FlipIndex, Row::CutIndex, Row::OldIndex),
            Place::Segments if name == sample.last() => {
                (Row::FlipLast, Row::CutSegment, Row::OldSegment)
            }
            Place::Segments => (Row::FlipSealed, Row::CutSegment, Row::OldSegment),
        };
        let places = (0..bytes.len()).flat_map(|at| MASKS.map(|mask| Case::Flip(name, at, mask)));
        out.extend(places.map(|case| (flip, case)));
        out.extend((0..bytes.len()).map(|len| (cut, Case::Cut(name, len))));
        out.push((gone, Case::Gone(name)));
    }
    for (name, versions) in &sample.versions {
        let row = if name.0 == Place::Index { Row::OldIndex } else { Row::OldSegment };
        out.extend((0..versions.len()).map(|i| (row, Case::Old(name, i))));
    }
    for (place, row) in [(Place::Segments, Row::SwapSegments), (Place::Index, Row::SwapIndex)] {
        out.extend(pairs(&sample.names(place)).map(|(a, b)| (row, Case::Files(a, b))));
    }
    let places: Vec<_> = sample
        .names(Place::Segments)
        .into_iter()
        .flat_map(|n| entries(&sample.files[n]).into_iter().map(move |e| (n, e)))
        .collect();
    out.extend(pairs(&places).map(|(a, b)| (Row::SwapRecords, Case::Records(a, b))));
    out
}

fn pairs<T: Copy>(all: &[T]) -> impl Iterator<Item = (T, T)> {
    (0..all.len()).flat_map(move |i| (i + 1..all.len()).map(move |j| (all[i], all[j])))
}

/// Where a fault in this byte is to be named: in the parts that it belongs to.
fn part(bytes: &[u8], at: usize) -> RangeInclusive<u64> {
    let entries = entries(bytes);
    let Some(last) = entries.iter().rfind(|e| e.at <= at) else { return 0..=0 };
    // A seal and the tail behind it prove each other.
    let end = if at + 1 >= last.at + last.len || entries.last() == Some(last) {
        bytes.len()
    } else {
        last.at + last.len
    };
    last.at as u64..=end as u64
}

impl<'a> Case<'a> {
    /// Whether it is of this file alone.
    pub fn is_of(&self, file: &Name) -> bool {
        matches!(self, Self::Flip(n, ..) | Self::Cut(n, _) | Self::Old(n, _) | Self::Gone(n) if *n == file)
    }

    /// The damaged store.
    pub fn build(&self, sample: &'a Sample) -> Damaged<'a> {
        let mut files = sample.files.clone();
        let spots = match self {
            Self::Flip(name, at, mask) => {
                let bytes = files.get_mut(*name).unwrap();
                bytes[*at] ^= mask;
                let segment = name.0 == Place::Segments;
                let range = if segment { part(&sample.files[*name], *at) } else { WHOLE };
                vec![(*name, range)]
            }
            Self::Cut(name, len) => {
                files.get_mut(*name).unwrap().truncate(*len);
                vec![(*name, WHOLE)]
            }
            Self::Records(a, b) => {
                exchange(&mut files, *a, *b);
                vec![(a.0, WHOLE), (b.0, WHOLE)]
            }
            Self::Files(a, b) => {
                let (x, y) = (sample.files[*a].clone(), sample.files[*b].clone());
                files.insert((*a).clone(), y);
                files.insert((*b).clone(), x);
                vec![(*a, 0..=0), (*b, 0..=0)]
            }
            Self::Old(name, version) => {
                files.insert((*name).clone(), sample.versions[*name][*version].clone());
                vec![(*name, WHOLE)]
            }
            Self::Gone(name) => {
                files.remove(*name);
                vec![(*name, WHOLE)]
            }
        };
        let shorter = matches!(self, Self::Cut(..) | Self::Old(..) | Self::Gone(..));
        let cut = shorter && spots.iter().any(|(name, _)| *name == sample.last());
        Damaged { files, spots, cut }
    }
}

fn exchange(
    files: &mut std::collections::BTreeMap<Name, Vec<u8>>,
    (a, x): (&Name, Entry),
    (b, y): (&Name, Entry),
) {
    let first = files[a][x.at..x.at + x.len].to_vec();
    let second = files[b][y.at..y.at + y.len].to_vec();
    // The later one first, so that the other stays where it is.
    files.get_mut(b).unwrap().splice(y.at..y.at + y.len, first);
    files.get_mut(a).unwrap().splice(x.at..x.at + x.len, second);
}
