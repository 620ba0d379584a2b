//! Two servers on one bucket: at most one writes, and nothing that was acknowledged is lost.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bucket::{Durable, Error, Item, Objects, Put, Result};
use dormouse_store::Dir;

use crate::faulty::Faulty;
use crate::stand::{Machine, content, memory, name, settings};

fn two(durable: Durable) -> (Machine, Machine, Arc<Faulty>) {
    let objects = Faulty::over(memory(), 1, 0);
    let a = Machine::new("a", &objects, settings(durable));
    (a, Machine::new("b", &objects, settings(durable)), objects)
}

#[test]
fn a_second_server_is_refused_until_the_first_has_ended_or_is_taken_over() {
    let (a, b, _) = two(Durable::Remote);
    let first = a.start(false);
    let error = b.try_start(false).unwrap_err();
    assert!(matches!(error, Error::Held { ref holder, .. } if holder == "a"), "{error}");
    // The same state directory is the same server: its process was killed.
    drop(first);
    let first = a.start(false);
    assert_eq!(first.finish(), 0);
    let second = b.start(false);
    assert!(second.generation() > first.generation());
    assert!(matches!(a.try_start(false), Err(Error::Held { .. })));
    let third = a.start(true);
    assert!(matches!(second.check(), Err(Error::Lost { .. })));
    third.check().unwrap();
}

#[test]
fn a_server_that_was_taken_over_acknowledges_nothing_more() {
    let (a, b, _) = two(Durable::Remote);
    let (first, written) = (a.start(false), AtomicUsize::new(0));
    let dir = a.open(&first).unwrap();
    let file = dir.create(&name(1)).unwrap();
    let (error, seen) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for at in 0_usize..10_000 {
                file.write_at(&[at as u8], at as u64).unwrap_or_default();
                if let Err(error) = file.sync() {
                    return error.to_string();
                }
                written.store(at + 1, Ordering::SeqCst);
            }
            "it was never refused".to_owned()
        });
        while written.load(Ordering::SeqCst) < 20 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let second = b.start(true);
        let dir = b.open(&second).unwrap();
        let before = written.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(50));
        let after = written.load(Ordering::SeqCst);
        assert!(after <= before + 1, "{after} after {before}: it went on");
        (writer.join().unwrap(), content(&dir, 1))
    });
    assert!(error.contains("another server has taken the bucket over"), "{error}");
    let written = written.load(Ordering::SeqCst);
    assert!(seen.len() >= written, "{} of {written}", seen.len());
    assert!(seen.iter().enumerate().all(|(i, b)| *b == i as u8));
}

#[test]
fn what_another_server_wrote_meanwhile_is_not_mixed_with_what_lies_here() {
    let (a, b, objects) = two(Durable::Local);
    let first = a.start(false);
    let dir = a.open(&first).unwrap();
    let file = dir.create(&name(1)).unwrap();
    file.write_at(b"both know this", 0).unwrap();
    file.sync().unwrap();
    assert_eq!(first.drain(Duration::from_secs(5)), 0);
    objects.away.store(true, Ordering::SeqCst);
    file.write_at(b", only a knows this", 14).unwrap();
    file.sync().unwrap();
    assert!(first.backlog() > 0);
    drop((file, dir));
    assert!(first.finish() > 0, "it knows that something is only here");
    // A put that was under way at the stop fails before the storage is back.
    std::thread::sleep(Duration::from_millis(300));
    objects.away.store(false, Ordering::SeqCst);
    let second = b.start(true);
    let dir = b.open(&second).unwrap();
    assert_eq!(content(&dir, 1), b"both know this");
    let file = dir.open(&name(1)).unwrap();
    file.write_at(b", b goes on", 14).unwrap();
    file.sync().unwrap();
    assert_eq!(second.drain(Duration::from_secs(5)), 0);
    drop((file, dir));
    assert_eq!(second.finish(), 0);
    let again = a.start(false);
    let dir = a.open(&again).unwrap();
    assert_eq!(content(&dir, 1), b"both know this, b goes on");
    let aside = dir.list().unwrap().into_iter().find(|n| n.contains(".aside-")).unwrap();
    assert_eq!(
        std::fs::read(a.segments().join(aside)).unwrap(),
        b"both know this, only a knows this"
    );
}

/// Looks, waits, then writes: create-if-absent of a careless back end.
struct Careless(Arc<dyn Objects>);

impl Objects for Careless {
    fn put_new(&self, name: &str, bytes: Bytes) -> Result<Put> {
        if self.0.get(name, None)?.is_some() {
            return Ok(Put::Taken);
        }
        std::thread::sleep(Duration::from_millis(20));
        self.0.delete(name)?;
        self.0.put_new(name, bytes)?;
        Ok(Put::Made)
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>> {
        self.0.get(name, range)
    }

    fn list(&self, below: &str) -> Result<Vec<Item>> {
        self.0.list(below)
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.0.delete(name)
    }
}

#[test]
fn a_back_end_whose_create_does_not_exclude_is_refused() {
    let objects = Faulty::over(Arc::new(Careless(memory())), 1, 0);
    let machine = Machine::new("a", &objects, settings(Durable::Local));
    let error = machine.try_start(false).unwrap_err();
    assert!(matches!(error, Error::NotAtomic { .. }), "{error}");
    assert!(objects.list("leases").unwrap().is_empty(), "nothing was taken");
}
