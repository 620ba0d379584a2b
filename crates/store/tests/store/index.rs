//! The index: runs, merging, loss and damage.

use dormouse_store::{Dir, Options, VaultStore, disk::DiskDir};

use crate::kit::*;

const N: u64 = 3000;

fn filled() -> (Kit, VaultStore) {
    let kit = Kit::new(4000, 64);
    let store = kit.create();
    (0..N).for_each(|seed| store.put(&kit.chunk(0, seed), 1).unwrap());
    (kit, store)
}

fn all_there(kit: &Kit, store: &VaultStore) {
    for seed in 0..N {
        assert_eq!(
            store.chunk(&chunk_of(seed), &dormouse_format::WriterId::ZERO, 0).unwrap(),
            Some(kit.chunk(0, seed)),
            "{seed}"
        );
    }
    let ids: Vec<_> = (N..N + 500).map(chunk_of).collect();
    assert!(store.have(&kit.writer(0), &ids, false).unwrap().iter().all(|h| !h));
}

#[test]
fn runs_merge_and_stay_few() {
    let (kit, store) = filled();
    let stats = store.stats();
    assert!(stats.index_in_memory < 200, "{stats:?}");
    assert!((2..16).contains(&stats.index_runs), "{stats:?}");
    assert_eq!(stats.index_in_memory + stats.index_in_runs, N);
    all_there(&kit, &store);
    store.close().unwrap();
    let (store, recovery) = kit.open();
    assert!(recovery.index_rebuilt < 30, "runs are used again: {recovery:?}");
    assert_eq!(store.stats().index_in_memory + store.stats().index_in_runs, N);
    all_there(&kit, &store);
    (N..N + 300).for_each(|seed| store.put(&kit.chunk(0, seed), 1).unwrap());
    assert_eq!(store.stats().index_in_memory + store.stats().index_in_runs, N + 300);
}

/// Who shares memory with others may be told to keep less, and more again.
#[test]
fn what_is_kept_in_memory_may_change() {
    let kit = Kit::new(4000, 1 << 20);
    let store = kit.create();
    (0..N).for_each(|seed| store.put(&kit.chunk(0, seed), 1).unwrap());
    assert_eq!((store.stats().index_in_memory, store.stats().index_runs), (N, 0));
    store.keep_index(300);
    let stats = store.stats();
    // What is left is of the segment that is written.
    assert!(stats.index_in_memory < 100 && stats.index_runs == 1, "{stats:?}");
    assert_eq!(stats.index_in_memory + stats.index_in_runs, N);
    all_there(&kit, &store);
    (N..N + 600).for_each(|seed| store.put(&kit.chunk(0, seed), 1).unwrap());
    assert!(store.stats().index_in_memory <= 400 && store.stats().index_runs > 1);
    store.keep_index(1 << 20);
    let runs = store.stats().index_runs;
    (N + 600..N + 1200).for_each(|seed| store.put(&kit.chunk(0, seed), 1).unwrap());
    assert_eq!(store.stats().index_runs, runs);
    assert!(store.stats().index_in_memory >= 600);
}

#[test]
fn any_lost_or_damaged_run_is_made_again() {
    let (kit, store) = filled();
    store.close().unwrap();
    for name in kit.index.list().unwrap() {
        let whole = kit.index.get(&name).unwrap();
        let cuts = [0, 1, whole.len() / 2, whole.len() - 1];
        let torn = cuts.iter().map(|n| whole[..*n].to_vec());
        let flips = [0, 5000, whole.len() - 100, whole.len() - 1].map(|at: usize| {
            let mut bad = whole.clone();
            let at = at.min(whole.len() - 1);
            bad[at] ^= 1;
            bad
        });
        for bad in torn.chain(flips) {
            let index = kit.index.snapshot();
            index.set(&name, bad);
            let kit = Kit { index, segments: kit.segments.clone(), ..Kit::new(4000, 64) };
            let (store, _) = kit.open();
            all_there(&kit, &store);
            assert!(store.stats().index_runs < 20, "{:?}", store.stats());
        }
        let index = kit.index.snapshot();
        index.remove(&name).unwrap();
        let kit = Kit { index, segments: kit.segments.clone(), ..Kit::new(4000, 64) };
        all_there(&kit, &kit.open().0);
    }
}

#[test]
fn a_run_that_breaks_while_it_is_used_is_made_again() {
    let (kit, store) = filled();
    for name in kit.index.list().unwrap() {
        let file = kit.index.open(&name).unwrap();
        let len = file.len().unwrap();
        for at in (0..len).step_by(997) {
            file.write_at(&[0xAA], at).unwrap();
        }
    }
    all_there(&kit, &store);
}

#[test]
fn runs_of_another_log_are_not_used() {
    let (kit, store) = filled();
    store.close().unwrap();
    let other =
        Kit { segments: Default::default(), index: Default::default(), ..Kit::new(4000, 64) };
    let store = other.create();
    (9000..9000 + N).for_each(|seed| store.put(&other.chunk(0, seed), 1).unwrap());
    store.close().unwrap();
    let mixed = Kit { index: other.index.clone(), ..Kit::new(4000, 64) };
    let mixed = Kit { segments: kit.segments.clone(), ..mixed };
    all_there(&mixed, &mixed.open().0);
}

/// The figures of a large store; run by hand, in release: prints rates and memory.
#[test]
#[ignore = "a measurement"]
fn measure() {
    let n: u64 = 1_500_000;
    let path = std::env::temp_dir().join(format!("dormouse-measure-{}", std::process::id()));
    let dir = |s: &str| Box::new(DiskDir::create_or_open(&path.join(s)).unwrap());
    let kit = Kit { options: Options::default(), ..Kit::new(0, 0) };
    let store = kit.create_on(dir("segments"), dir("index"));
    let memory = || {
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = text.lines().find(|l| l.starts_with("VmRSS")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let rss = memory();
    let start = std::time::Instant::now();
    (0..n).for_each(|s| store.put(&kit.chunk(0, s), 1).unwrap());
    let stats = store.stats();
    println!(
        "{} puts/s, {} KiB more memory, {stats:?}",
        n / start.elapsed().as_secs().max(1),
        memory() - rss
    );
    let start = std::time::Instant::now();
    let ids: Vec<_> = (0..200_000).map(|i| chunk_of(i * 7)).collect();
    assert!(store.have(&kit.writer(0), &ids, false).unwrap().iter().all(|h| *h));
    println!("{:.0} hits/s", 200_000.0 / start.elapsed().as_secs_f64());
    let start = std::time::Instant::now();
    let ids: Vec<_> = (n..n + 200_000).map(chunk_of).collect();
    assert!(store.have(&kit.writer(0), &ids, false).unwrap().iter().all(|h| !h));
    println!("{:.0} misses/s", 200_000.0 / start.elapsed().as_secs_f64());
    let big: Vec<_> = (0..4000u64)
        .map(|i| chunk(chunk_of(1 << 40 | i), kit.writer(0), kit.key(0), 64, 65536))
        .collect();
    let start = std::time::Instant::now();
    big.iter().for_each(|r| store.put(r, 1).unwrap());
    store.barrier().unwrap();
    let mb = 4000.0 * 65536.0 / 1e6;
    println!("{:.0} MB/s appended and synced", mb / start.elapsed().as_secs_f64());
    store.close().unwrap();
    drop(store);
    let start = std::time::Instant::now();
    VaultStore::open(dir("segments"), dir("index"), kit.vault, kit.options).unwrap();
    println!("opened in {:.2} s", start.elapsed().as_secs_f64());
    std::fs::remove_dir_all(path).unwrap();
}
