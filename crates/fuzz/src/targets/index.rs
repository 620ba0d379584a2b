//! Runs of the index: a cache, so whatever it says is either refused or harmless.

use dormouse_format::{RecordId, WriterId};
use dormouse_store::fuzzing::{index_run, write_index_run};
use dormouse_store::memory::MemDir;
use dormouse_store::{Dir, Options, VaultStore};

use crate::Target;
use crate::input::Input;
use crate::targets::store::exercise;
use crate::world::{segments, world};

/// Index runs.
pub const INDEX: Target = Target {
    name: "index-run",
    what: "a run of the index; raw, and with checks that hold; and a store that stands on it",
    run: index,
    seeds: index_seeds,
    len_max: 16 << 10,
};

const NAME: &str = "0000000000000001-0000000000000001.run";

fn index(data: &[u8]) {
    let mut input = Input::new(data);
    let dir = MemDir::new();
    let sorted = match input.u8() % 3 {
        0 => {
            dir.set(NAME, input.rest().to_vec());
            false
        }
        1 => repaired(&mut input, &dir, true),
        _ => repaired(&mut input, &dir, false),
    };
    let found = index_run(&dir, NAME, &world().vault);
    if sorted {
        let all = found.as_ref().expect("a run whose checks hold cannot be read");
        assert!(all.iter().all(|(_, found)| *found), "an entry is not found by its id");
    }
    stand_on(dir);
}

/// A run of entries out of the input, at both ends fitting the first segment of the store.
fn repaired(input: &mut Input<'_>, dir: &MemDir, sort: bool) -> bool {
    let first = &segments(world().full())[0].1;
    let chain = *first[..first.len() - 32].last_chunk::<32>().unwrap();
    let mut end = [0; 16];
    end.copy_from_slice(&chain[8..24]);
    let known: Vec<RecordId> = world().chunks.iter().map(|c| c.id).collect();
    let writers = [WriterId::ZERO, world().writers[0].writer_id()];
    let mut entries = Vec::new();
    while !input.is_empty() && entries.len() < 400 {
        let mut raw = [0; 32];
        let id = match input.u8() {
            n @ 0..4 => known[usize::from(n) % known.len()],
            n => RecordId([n; 16]),
        };
        raw[..16].copy_from_slice(&id.0);
        raw[16] = input.u8();
        raw[20..24].copy_from_slice(&u32::from(input.u16()).to_le_bytes());
        raw[24..28].copy_from_slice(&(input.number() as u32).to_le_bytes());
        raw[28] = input.u8() % 16;
        raw[29] = input.u8();
        raw[30] = input.u8() % 3;
        entries.push(raw);
    }
    if sort {
        let order = |raw: &[u8; 32]| (raw[..16].to_vec(), raw[16], [raw[21], raw[20]]);
        entries.sort_by_key(order);
    }
    let w = world();
    write_index_run(dir, &w.vault, (1, 1), ([0; 16], end), &writers, &entries).unwrap();
    sort
}

/// A store that finds this file in its index.
fn stand_on(index: MemDir) {
    let dir = world().full().snapshot();
    let options = Options { segment_size: 3 << 10, index_entries: 16 };
    let boxed: Box<dyn Dir> = Box::new(index.clone());
    let (store, _) = VaultStore::open(Box::new(dir.clone()), boxed, world().vault, options)
        .expect("a bad index keeps the store from being opened");
    exercise(&store);
}

fn index_seeds() -> Vec<Vec<u8>> {
    let mut out = vec![
        [&[1][..], &[0, 1, 128, 0, 5, 1, 1, 1]].concat(),
        [&[2][..], &[9, 1, 0, 3, 255, 1, 1, 1], &[0, 1, 128, 0, 5, 1, 1, 2]].concat(),
        [&[1][..], &(0..255).flat_map(|i| [i, 1, i, 1, 9, 1, 1, 1]).collect::<Vec<u8>>()].concat(),
    ];
    for seed in out.clone() {
        let dir = MemDir::new();
        let mut input = Input::new(&seed);
        let sort = input.u8() == 1;
        repaired(&mut input, &dir, sort);
        out.push([&[0][..], &dir.get(NAME).unwrap()].concat());
    }
    out
}
