//! Pages and nodes of the map.

use dormouse_format::RecordId;
use dormouse_format::extents::Runs;
use dormouse_format::limits::{LEVEL_MAX, PAGE_BLOCKS};
use dormouse_store::fuzzing::{MapPage, node, node_body, page, page_body};

use crate::Target;
use crate::corpus::{behind, vectors};
use crate::world::{records, world};

/// Pages.
pub const PAGE: Target = Target {
    name: "map-page",
    what: "a page of the map: its body, and a page that is patched",
    run: page_target,
    seeds: page_seeds,
    len_max: 4096,
};

fn page_target(data: &[u8]) {
    let Some((mask, bytes)) = data.split_first() else { return };
    let Ok((index, base, depth, runs)) = page(bytes) else { return };
    assert_eq!(page_body(index, base, depth, runs), bytes);
    let mut full = MapPage::zero();
    if full.apply(index, runs).is_err() {
        return;
    }
    assert!(index < 1 << 34 || runs.is_empty(), "runs beyond the largest volume");
    // From zeros, and as a patch: writing and reading again gives the same page.
    let again = |from: &MapPage, to: &MapPage| {
        let mut copy = from.clone();
        copy.apply(index, &to.diff(index, Some(from))).unwrap();
        assert!(copy == *to, "a patch does not give the page");
    };
    if runs.is_empty() {
        assert!(full == MapPage::zero());
        return;
    }
    let mut zero = MapPage::zero();
    zero.apply(index, &full.diff(index, None)).unwrap();
    assert!(zero == full, "the page's runs do not give the page");
    let mut other = full.clone();
    let first = index * PAGE_BLOCKS;
    other.clear(index, first + u64::from(*mask), first + u64::from(*mask) * 64);
    again(&full, &other);
    again(&other, &full);
    assert_eq!(full.hash(index) == other.hash(index), same_tags(&full, &other, index));
    leaves(&full, index, u64::from(*mask) << (mask % 57));
}

/// All tags of a page, as runs without hints.
fn same_tags(a: &MapPage, b: &MapPage, index: u64) -> bool {
    a.select(index, u64::MAX, false) == b.select(index, u64::MAX, false)
}

/// What the server gives out of a page are runs of what was asked for.
fn leaves(page: &MapPage, index: u64, mask: u64) {
    let with = page.select(index, mask, true);
    let mut copy = MapPage::zero();
    copy.apply(index, &with).unwrap();
    assert_eq!(copy.select(index, u64::MAX, false), page.select(index, mask, false));
    for run in Runs::new(&page.select(index, mask, false)) {
        let run = run.unwrap();
        let leaf = (run.start % PAGE_BLOCKS) / 256;
        assert!(mask >> leaf & 1 == 1 && (run.end() - 1) % PAGE_BLOCKS / 256 == leaf);
    }
}

fn page_seeds() -> Vec<Vec<u8>> {
    let mut out: Vec<_> = behind(3, vectors("page")).collect();
    let stored = records(world().full()).into_iter().filter(|r| r[4] == 2);
    out.extend(behind(200, stored.map(|r| r[112..].to_vec()).collect()));
    for (start, chunk) in [(0, 2), (250, 1), (16_320, 2)] {
        let runs = world().runs(start, chunk);
        out.push([&[1][..], &page_body(0, RecordId::ZERO, 0, &runs)].concat());
        out.push([&[64][..], &page_body(0, RecordId([1; 16]), 8, &runs)].concat());
    }
    out
}

/// Nodes.
pub const NODE: Target = Target {
    name: "map-node",
    what: "an inner node of the map",
    run: |bytes| {
        let Ok((place, children)) = node(bytes) else { return };
        assert_eq!(node_body(place, &children), bytes);
        assert!((2..=LEVEL_MAX).contains(&place.level), "level {}", place.level);
    },
    seeds: || {
        let mut all = [(dormouse_format::Hash::ZERO, RecordId::ZERO); 64];
        let place = |level, index| dormouse_format::geometry::Place { level, index };
        let empty = node_body(place(2, 0), &all);
        all.fill((dormouse_format::Hash([1; 32]), RecordId([2; 16])));
        let mut out = vec![empty, node_body(place(8, 3), &all), node_body(place(1, 3), &all)];
        out.extend(vectors("node"));
        out
    },
    len_max: 4096,
};
