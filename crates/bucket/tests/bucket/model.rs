//! Random histories: append, sync, new segment, remove, crash, loss of the machine, while the
//! bucket fails. Judged against plain vectors.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dormouse_bucket::{Bucket, BucketDir, Durable};
use dormouse_store::{Dir, File};

use crate::faulty::{Faulty, Numbers};
use crate::stand::{Machine, content, memory, name, settings};

/// What was written and what was acknowledged of each segment.
#[derive(Default, Clone)]
struct Expected {
    written: Vec<u8>,
    acknowledged: usize,
}

/// A segment that was removed after a note of it was durable.
struct Removed {
    number: u64,
    expected: Expected,
    /// Where the note ends.
    note: (u64, usize),
}

struct Run {
    numbers: Numbers,
    machine: Machine,
    bucket: Bucket,
    dir: Option<BucketDir>,
    head: Option<Arc<dyn File>>,
    number: u64,
    model: BTreeMap<u64, Expected>,
    removed: Vec<Removed>,
    durable: Durable,
}

impl Run {
    fn new(seed: u64, durable: Durable, rate: u64) -> Self {
        let objects = Faulty::over(memory(), seed, rate);
        let mut chosen = settings(durable);
        // Some are evicted, some packed.
        chosen.cache_max = 30_000;
        chosen.parts_max = 2;
        let machine = Machine::new("holder", &objects, chosen);
        let bucket = machine.start(false);
        let (numbers, model) = (Numbers(seed), BTreeMap::new());
        let (dir, head, number, removed) = (None, None, 0, Vec::new());
        let mut run = Self { numbers, machine, bucket, dir, head, number, model, removed, durable };
        run.open();
        run.next_segment();
        run
    }

    fn dir(&self) -> &BucketDir {
        self.dir.as_ref().unwrap()
    }

    fn open(&mut self) {
        self.dir = Some(self.machine.open(&self.bucket).unwrap());
        // Of those whose note is lost nobody knows that they were removed: they are there again.
        let mut gone = BTreeSet::new();
        let mut known = Vec::new();
        for removed in std::mem::take(&mut self.removed).into_iter().rev() {
            let (at, end) = removed.note;
            if gone.contains(&at) || content(self.dir(), at).len() >= end {
                gone.insert(removed.number);
                known.insert(0, removed);
            } else {
                self.model.insert(removed.number, removed.expected);
            }
        }
        self.removed = known;
        // As the store does with segments that it knows to be retired.
        let listed = self.dir().list().unwrap();
        for number in gone.into_iter().filter(|n| listed.contains(&name(*n))) {
            self.dir().remove(&name(number)).unwrap();
        }
    }

    fn append(&mut self) {
        let len = 1 + self.numbers.below(3000) as usize;
        let byte = self.numbers.next() as u8;
        let bytes: Vec<u8> = (0..len).map(|i| byte.wrapping_add(i as u8)).collect();
        let expected = self.model.get_mut(&self.number).unwrap();
        let head = self.head.as_ref().unwrap();
        head.write_at(&bytes, expected.written.len() as u64).unwrap();
        expected.written.extend(bytes);
    }

    fn sync(&mut self) {
        self.head.as_ref().unwrap().sync().unwrap();
        let expected = self.model.get_mut(&self.number).unwrap();
        expected.acknowledged = expected.written.len();
    }

    fn next_segment(&mut self) {
        if self.number > 0 {
            self.append();
            self.sync();
        }
        self.begin();
    }

    fn begin(&mut self) {
        self.number += 1;
        self.model.insert(self.number, Expected::default());
        self.head = Some(self.dir().create(&name(self.number)).unwrap());
        self.append();
        self.sync();
        self.dir().sync().unwrap();
    }

    fn remove(&mut self) {
        let sealed: Vec<u64> = self.model.keys().copied().filter(|n| *n < self.number).collect();
        if sealed.len() > 3 {
            let number = sealed[self.numbers.below(sealed.len() as u64) as usize];
            self.append();
            self.sync();
            let note = (self.number, self.model[&self.number].acknowledged);
            self.dir().remove(&name(number)).unwrap();
            let expected = self.model.remove(&number).unwrap();
            self.removed.push(Removed { number, expected, note });
        }
    }

    /// The process dies; what was written and not synced may be there in part.
    fn crash(&mut self) {
        self.head = None;
        self.dir = None;
        self.bucket.stop();
        let path = self.machine.segments().join(name(self.number));
        let expected = self.model.get_mut(&self.number).unwrap();
        let lost = (expected.written.len() - expected.acknowledged) as u64;
        let stays = expected.acknowledged as u64 + self.numbers.below(lost + 1);
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(stays).unwrap();
        self.bucket = self.machine.start(false);
        self.open();
        self.recover();
    }

    /// What the store does: cuts what it takes for unfinished, and writes the rest again.
    fn recover(&mut self) {
        let there = content(self.dir(), self.number);
        let expected = self.model.get_mut(&self.number).unwrap();
        let acknowledged = &expected.written[..expected.acknowledged];
        assert!(there.starts_with(acknowledged), "segment {}", self.number);
        let file = self.dir.as_ref().unwrap().open(&name(self.number)).unwrap();
        let keep = expected.acknowledged
            + self.numbers.below((there.len() - expected.acknowledged) as u64 + 1) as usize;
        file.set_len(keep as u64).unwrap();
        file.write_at(&there[..keep], 0).unwrap();
        file.sync().unwrap();
        expected.written = there[..keep].to_vec();
        expected.acknowledged = keep;
        self.head = Some(file);
    }

    /// Everything here is gone. What only this machine had is lost, from some byte on.
    fn lose_machine(&mut self) {
        self.head = None;
        self.dir = None;
        self.bucket.stop();
        self.machine.lose();
        self.bucket = self.machine.start(true);
        self.open();
        let newest = self.number;
        if self.durable == Durable::Local {
            self.forget_what_is_lost();
        }
        if self.number > 0 {
            self.recover();
        }
        // What is followed by another segment is sealed: nothing is added to it.
        if self.number < newest {
            self.begin();
        }
    }

    /// The bucket holds a prefix of what was acknowledged.
    fn forget_what_is_lost(&mut self) {
        let mut lost = false;
        let mut newest = 0;
        for (number, expected) in &mut self.model {
            let there = content(self.dir.as_ref().unwrap(), *number);
            let n = there.len();
            assert!(expected.written.starts_with(&there), "segment {number}");
            assert!(!lost || there.is_empty(), "segment {number} follows one that is cut");
            lost |= n < expected.written.len();
            expected.acknowledged = n;
            if n > 0 {
                newest = *number;
            }
        }
        self.model.retain(|n, _| *n <= newest);
        self.number = newest;
    }

    fn check(&self) {
        let mut listed = self.dir().list().unwrap();
        listed.retain(|n| n.ends_with(".seg"));
        listed.sort();
        let names: Vec<String> = self.model.keys().map(|n| name(*n)).collect();
        assert_eq!(listed, names);
        for (number, expected) in &self.model {
            let there = content(self.dir(), *number);
            assert!(there.starts_with(&expected.written[..expected.acknowledged]), "{number}");
            assert_eq!(there, expected.written, "segment {number}");
        }
    }

    fn step(&mut self) {
        match self.numbers.below(40) {
            0..=15 => self.append(),
            16..=27 => self.sync(),
            28..=32 => self.next_segment(),
            33..=34 => self.remove(),
            35..=36 => self.crash(),
            37 => self.lose_machine(),
            _ => self.check(),
        }
    }
}

fn histories(durable: Durable, seeds: std::ops::Range<u64>, rate: u64) {
    for seed in seeds {
        let told = Told(seed);
        let mut run = Run::new(seed, durable, rate);
        for _ in 0..60 {
            run.step();
        }
        run.machine.objects.rate.store(0, Ordering::Relaxed);
        run.sync();
        run.check();
        assert_eq!(run.bucket.drain(std::time::Duration::from_secs(20)), 0);
        run.machine.lose();
        run.bucket = run.machine.start(true);
        run.open();
        run.check();
        drop(told);
    }
}

/// Names the seed when a test fails.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

fn count() -> u64 {
    std::env::var("DORMOUSE_BUCKET_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(25)
}

#[test]
fn what_the_bucket_has_acknowledged_survives_everything() {
    histories(Durable::Remote, 0..count(), 60);
}

#[test]
fn what_this_disk_has_acknowledged_survives_crashes_and_the_bucket_has_a_prefix() {
    histories(Durable::Local, 1000..1000 + count(), 60);
}
