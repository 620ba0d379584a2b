//! The disk keeps what was synced, and loses the rest in every way.

use std::collections::HashSet;

use super::*;

fn disk() -> (Storage, Arc<dyn File>) {
    let disk = Storage::new(Image::default(), Box::new(()), 1);
    let file = disk.segments().create("a").unwrap();
    (disk, file)
}

#[test]
fn what_was_synced_stays_and_the_rest_is_kept_lost_or_torn() {
    let (disk, file) = disk();
    file.write_at(&[1; 2048], 0).unwrap();
    file.sync().unwrap();
    disk.segments().sync().unwrap();
    file.write_at(&[2; 1500], 700).unwrap();
    file.write_at(&[3; 100], 2100).unwrap();
    let mut seen = HashSet::new();
    for seed in 0..2000 {
        let image = disk.image().crashed(&mut Lcg(seed));
        let content = image.content(SEGMENTS, "a").unwrap().to_vec();
        assert!(content.len() >= 2048 && content.len() <= 2200);
        assert_eq!(content[..700], [1; 700], "synced, and not written since");
        let sectors = |range: std::ops::Range<usize>| content[range].iter().collect::<HashSet<_>>();
        for range in [700..1024, 1024..1536, 1536..2048] {
            assert_eq!(sectors(range).len(), 1, "a sector is in one piece");
        }
        seen.insert((content[800], content[1200], content[1600], content.len()));
    }
    for sector in [(1, 2, 1), (2, 1, 2), (1, 1, 1), (2, 2, 2), (1, 1, 2)] {
        assert!(seen.iter().any(|s| (s.0, s.1, s.2) == sector), "{sector:?}");
    }
    assert!(seen.iter().any(|s| s.3 == 2048) && seen.iter().any(|s| s.3 == 2200));
}

#[test]
fn names_become_durable_in_order() {
    let (disk, _) = disk();
    disk.segments().create("b").unwrap();
    disk.segments().rename("a", "c").unwrap();
    let mut seen = HashSet::new();
    for seed in 0..200 {
        let names = disk.image().crashed(&mut Lcg(seed)).names(SEGMENTS);
        seen.insert(names.into_iter().collect::<String>());
    }
    let expected = ["", "a", "ab", "bc"].map(str::to_owned);
    assert_eq!(seen, expected.into_iter().collect());
    disk.segments().sync().unwrap();
    let names = disk.image().crashed(&mut Lcg(1)).names(SEGMENTS);
    assert_eq!(names.into_iter().collect::<String>(), "bc");
}

struct FailSyncs;
impl Watch for FailSyncs {
    fn before(&mut self, op: &Op<'_>, _: &Image) -> Verdict {
        if op.kind == OpKind::Sync && op.index < 4 {
            return Verdict::Fail(ErrorKind::Other);
        }
        Verdict::Go
    }
}

#[test]
fn what_a_failed_sync_lost_no_later_sync_brings_back() {
    let mut lost = 0;
    for seed in 0..100 {
        let disk = Storage::new(Image::default(), Box::new(FailSyncs), seed);
        let file = disk.segments().create("a").unwrap();
        file.write_at(&[1; 4096], 0).unwrap();
        assert!(file.sync().is_err());
        disk.segments().sync().unwrap();
        file.sync().unwrap();
        let mut seen = [0; 4096];
        file.read_at(&mut seen, 0).unwrap();
        assert_eq!(seen, [1; 4096], "memory shows it");
        let image = disk.image().crashed(&mut Lcg(seed));
        lost += usize::from(image.content(SEGMENTS, "a").unwrap() != [1; 4096]);
    }
    assert!((30..100).contains(&lost), "{lost}");
}

struct CrashAt(u64);
impl Watch for CrashAt {
    fn before(&mut self, op: &Op<'_>, _: &Image) -> Verdict {
        if op.index == self.0 { Verdict::Crash } else { Verdict::Go }
    }
}

#[test]
fn after_a_crash_nothing_works_until_the_restart() {
    let disk = Storage::new(Image::default(), Box::new(CrashAt(2)), 1);
    let file = disk.segments().create("a").unwrap();
    file.write_at(&[1; 10], 0).unwrap();
    assert!(file.sync().is_err() && file.len().is_err() && disk.segments().list().is_err());
    assert!(disk.is_down());
    let back = disk.restart();
    assert!(back.segments().list().is_ok() && !back.is_down());
    assert!(file.len().is_err(), "what was open is gone");
}
