//! What is kept on this machine and what is not; how much is put; what is bounded.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dormouse_bucket::{Durable, StateFile};
use dormouse_store::{Dir, File};

use crate::faulty::Faulty;
use crate::stand::{Machine, content, memory, name, settings};

fn fill(file: &dyn File, byte: u8, len: usize) {
    file.write_at(&vec![byte; len], 0).unwrap();
    file.sync().unwrap();
}

fn local(machine: &Machine) -> usize {
    let names = std::fs::read_dir(machine.segments()).unwrap();
    names.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().ends_with(".seg")).count()
}

#[test]
fn segments_that_are_put_make_room_and_are_read_from_the_bucket() {
    let objects = Faulty::over(memory(), 3, 0);
    let mut chosen = settings(Durable::Local);
    chosen.cache_max = 2 << 20;
    let machine = Machine::new("a", &objects, chosen);
    let bucket = machine.start(false);
    let dir = machine.open(&bucket).unwrap();
    let first = dir.create(&name(1)).unwrap();
    fill(&*first, 1, 400_000);
    for number in 2..=8 {
        fill(&*dir.create(&name(number)).unwrap(), number as u8, 400_000);
    }
    assert_eq!(bucket.drain(Duration::from_secs(10)), 0);
    let until = Instant::now() + Duration::from_secs(10);
    while local(&machine) > 3 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(local(&machine), 3, "1 MiB of those that are put, and the one that is written");
    let mut some = [0; 100];
    first.read_at(&mut some, 300_000).unwrap();
    assert_eq!(some, [1; 100], "a file that was open reads on");
    assert!(first.read_at(&mut some, 399_950).is_err(), "and ends where it ended");
    for number in 1..=8 {
        assert_eq!(content(&dir, number), vec![number as u8; 400_000]);
    }
    first.read_at(&mut some, 300_000).unwrap();
    objects.away.store(true, Ordering::SeqCst);
    first.read_at(&mut some, 300_050).unwrap();
    let cached = std::fs::read_dir(machine.dir.path().join("bucket/cache")).unwrap();
    let bytes: u64 = cached.map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes > 0 && bytes <= 1 << 20, "{bytes}");
}

#[test]
fn many_parts_become_one_object() {
    let objects = Faulty::over(memory(), 3, 0);
    let machine = Machine::new("a", &objects, settings(Durable::Remote));
    let bucket = machine.start(false);
    let dir = machine.open(&bucket).unwrap();
    let file = dir.create(&name(1)).unwrap();
    for i in 0..50 {
        file.write_at(&[i; 10], u64::from(i) * 10).unwrap();
        file.sync().unwrap();
    }
    fill(&*dir.create(&name(2)).unwrap(), 2, 10);
    let below = format!("vaults/{}/segments", crate::stand::VAULT);
    let objects_of = |n: u64| {
        let all = dormouse_bucket::Objects::list(&*objects, &below).unwrap();
        all.into_iter().filter(|i| i.name.contains(&name(n))).count()
    };
    let becomes = |n: usize, what: &str| {
        let until = Instant::now() + Duration::from_secs(10);
        while objects_of(1) > n && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(objects_of(1), n, "{what}");
    };
    becomes(3, "the whole, a fence, a close");
    drop((file, dir));
    let mut machine = machine;
    machine.lose();
    let bucket = machine.start(true);
    let dir = machine.open(&bucket).unwrap();
    assert_eq!(content(&dir, 1), (0..50).flat_map(|i| [i; 10]).collect::<Vec<u8>>());
    dir.remove(&name(1)).unwrap();
    becomes(2, "fence and close stay");
}

/// The store removes a segment when it has noted why, and the bucket must know that first.
#[test]
fn a_segment_goes_from_the_bucket_after_what_was_written_before_it_was_removed() {
    let objects = Faulty::over(memory(), 3, 0);
    let machine = Machine::new("a", &objects, settings(Durable::Local));
    let bucket = machine.start(false);
    let dir = machine.open(&bucket).unwrap();
    fill(&*dir.create(&name(1)).unwrap(), 1, 1000);
    let head = dir.create(&name(2)).unwrap();
    fill(&*head, 2, 10);
    assert_eq!(bucket.drain(Duration::from_secs(10)), 0);
    objects.no_puts.store(true, Ordering::SeqCst);
    head.write_at(b"it is retired", 10).unwrap();
    head.sync().unwrap();
    dir.remove(&name(1)).unwrap();
    assert!(dir.open(&name(1)).is_err() && !dir.list().unwrap().contains(&name(1)));
    std::thread::sleep(Duration::from_millis(300));
    assert!(objects.deleted.lock().unwrap().iter().all(|n| !n.contains(&name(1))));
    // A machine that is lost now has noted it in vain.
    let other = Machine::new("b", &objects, settings(Durable::Local));
    bucket.stop();
    drop((head, dir));
    objects.no_puts.store(false, Ordering::SeqCst);
    let second = other.start(true);
    let there = other.open(&second).unwrap();
    assert_eq!((content(&there, 1), content(&there, 2)), (vec![1; 1000], vec![2; 10]));
    // Beside the same machine that comes back, nothing is known of it either: it removes it again.
    drop(there);
    let head = b"it is retired";
    let there = other.open(&second).unwrap();
    let file = there.open(&name(2)).unwrap();
    file.write_at(head, 10).unwrap();
    file.sync().unwrap();
    there.remove(&name(1)).unwrap();
    let gone = || objects.deleted.lock().unwrap().iter().any(|n| n.contains(&name(1)));
    let until = Instant::now() + Duration::from_secs(10);
    while !gone() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(gone());
}

/// Object storage whose key may not remove: it goes on, and nothing waits for it.
#[test]
fn where_nothing_may_be_removed_the_server_goes_on() {
    let objects = Faulty::over(memory(), 3, 0);
    objects.no_deletes.store(true, Ordering::SeqCst);
    let mut chosen = settings(Durable::Remote);
    chosen.parts_max = 1;
    let machine = Machine::new("a", &objects, chosen);
    let bucket = machine.start(false);
    assert!(!bucket.removes());
    let dir = machine.open(&bucket).unwrap();
    let file = dir.create(&name(1)).unwrap();
    for i in 0..5 {
        file.write_at(&[i; 10], u64::from(i) * 10).unwrap();
        file.sync().unwrap();
    }
    fill(&*dir.create(&name(2)).unwrap(), 2, 10);
    let whole = format!("vaults/{}/segments/{}", crate::stand::VAULT, name(1));
    let until = Instant::now() + Duration::from_secs(10);
    while dormouse_bucket::Objects::get(&*objects, &whole, None).unwrap().is_none() {
        assert!(Instant::now() < until, "it is not packed");
        std::thread::sleep(Duration::from_millis(5));
    }
    dir.remove(&name(1)).unwrap();
    assert!(!dir.list().unwrap().contains(&name(1)));
    fill(&*dir.create(&name(3)).unwrap(), 3, 10);
    assert_eq!(bucket.drain(Duration::from_secs(10)), 0);
    drop((file, dir));
    bucket.finish();
    // The next start finds it, and cannot remove it either.
    let bucket = machine.start(false);
    let dir = machine.open(&bucket).unwrap();
    assert_eq!(content(&dir, 1).len(), 50);
    dir.remove(&name(1)).unwrap();
    assert_eq!(content(&dir, 3), vec![3; 10]);
    objects.no_deletes.store(false, Ordering::SeqCst);
    assert!(machine.start(false).removes());
}

/// Who reads beside a server sees what it has packed, written and removed since.
#[test]
fn a_reader_beside_the_server_looks_again() {
    let objects = Faulty::over(memory(), 3, 0);
    let mut chosen = settings(Durable::Remote);
    chosen.parts_max = 1;
    let machine = Machine::new("a", &objects, chosen);
    let bucket = machine.start(false);
    let dir = machine.open(&bucket).unwrap();
    let file = dir.create(&name(1)).unwrap();
    for i in 0..5 {
        file.write_at(&[i; 10], u64::from(i) * 10).unwrap();
        file.sync().unwrap();
    }
    let reader = Machine::new("r", &objects, chosen);
    let reading = reader.read(&bucket_of(&objects), chosen);
    let open = reading.open(&name(1)).unwrap();
    fill(&*dir.create(&name(2)).unwrap(), 2, 10);
    let packed = || objects.deleted.lock().unwrap().iter().any(|n| n.contains(&name(1)));
    let until = Instant::now() + Duration::from_secs(10);
    while !packed() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut some = [9; 10];
    open.read_at(&mut some, 20).unwrap();
    assert_eq!(some, [2; 10], "its part is gone, and it is read from the whole");
    assert!(reading.list().unwrap().contains(&name(2)));
    open.sync().unwrap();
    assert!(reading.create(&name(3)).is_err() && reading.remove(&name(1)).is_err());
    dir.remove(&name(1)).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while reading.list().unwrap().contains(&name(1)) {
        assert!(Instant::now() < until, "it is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn bucket_of(objects: &std::sync::Arc<Faulty>) -> std::sync::Arc<dyn dormouse_bucket::Objects> {
    objects.clone()
}

#[test]
fn a_live_volume_costs_about_a_put_a_second() {
    let objects = Faulty::over(memory(), 3, 0);
    let mut chosen = settings(Durable::Remote);
    chosen.put_every = Duration::from_secs(1);
    let machine = Machine::new("a", &objects, chosen);
    let bucket = machine.start(false);
    let dir = machine.open(&bucket).unwrap();
    let file = dir.create(&name(1)).unwrap();
    let (before, since) = (objects.puts.load(Ordering::Relaxed), Instant::now());
    std::thread::scope(|scope| {
        // Commits of several clients share a put.
        for _ in 0..4 {
            scope.spawn(|| {
                while since.elapsed() < Duration::from_secs(4) {
                    file.write_at(b"x", file.len().unwrap()).unwrap();
                    file.sync().unwrap();
                }
            });
        }
    });
    let puts = objects.puts.load(Ordering::Relaxed) - before;
    let seconds = since.elapsed().as_secs();
    assert!(puts >= 10 && puts <= 10 + seconds + 1, "{puts} in {seconds} s, with 10 to begin with");
}

#[test]
fn the_backlog_is_bounded_and_a_stop_ends_the_waiting() {
    let objects = Faulty::over(memory(), 3, 0);
    let mut chosen = settings(Durable::Local);
    chosen.backlog_max = 1000;
    let machine = Machine::new("a", &objects, chosen);
    let bucket = machine.start(false);
    let dir = machine.open(&bucket).unwrap();
    let file = dir.create(&name(1)).unwrap();
    objects.away.store(true, Ordering::SeqCst);
    fill(&*file, 1, 900);
    file.write_at(&[2; 200], 900).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| file.sync());
        std::thread::sleep(Duration::from_millis(200));
        assert!(!waits.is_finished(), "beyond the bound it waits");
        assert_eq!(bucket.backlog(), 1100);
        objects.away.store(false, Ordering::SeqCst);
        waits.join().unwrap().unwrap();
    });
    objects.away.store(true, Ordering::SeqCst);
    file.write_at(&[3; 2000], 1100).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| file.sync());
        std::thread::sleep(Duration::from_millis(100));
        bucket.stop();
        assert!(waits.join().unwrap().unwrap_err().to_string().contains("stopping"));
    });
}

#[test]
fn what_a_killed_server_has_left_is_put_at_the_next_start() {
    let objects = Faulty::over(memory(), 3, 0);
    let machine = Machine::new("a", &objects, settings(Durable::Local));
    let bucket = machine.start(false);
    let dir = machine.open(&bucket).unwrap();
    let file = dir.create(&name(1)).unwrap();
    objects.away.store(true, Ordering::SeqCst);
    fill(&*file, 7, 5000);
    bucket.stop();
    drop((file, dir));
    objects.away.store(false, Ordering::SeqCst);
    let bucket = machine.start(false);
    let local = dormouse_store::disk::DiskDir::create_or_open(&machine.segments()).unwrap();
    let local = std::sync::Arc::new(local);
    assert_eq!(bucket.push(crate::stand::VAULT, local, Duration::from_secs(10)).unwrap(), 0);
    assert_eq!(bucket.finish(), 0);
    let other = Machine::new("b", &objects, settings(Durable::Local));
    let bucket = other.start(false);
    assert_eq!(content(&other.open(&bucket).unwrap(), 1), vec![7; 5000]);
}

#[test]
fn the_newest_state_comes_back_and_an_older_server_cannot_add_one() {
    let objects = Faulty::over(memory(), 3, 0);
    let (a, b) = (
        Machine::new("a", &objects, settings(Durable::Local)),
        Machine::new("b", &objects, settings(Durable::Local)),
    );
    let state = |text: &str| {
        let bytes = text.as_bytes().to_vec();
        vec![StateFile { name: "clients/x.toml".into(), mode: 0o600, bytes }]
    };
    let first = a.start(false);
    first.save_state(&state("first"), true).unwrap();
    for i in 0..40 {
        first.save_state(&state(&format!("{i}")), false).unwrap();
    }
    assert_eq!(first.newest_state().unwrap(), state("39"));
    assert!(dormouse_bucket::Objects::list(&*objects, "state").unwrap().len() < 35);
    let second = b.start(true);
    second.save_state(&state("second"), true).unwrap();
    let error = first.save_state(&state("late"), false).unwrap_err();
    assert!(matches!(error, dormouse_bucket::Error::Lost { .. }), "{error}");
    assert_eq!(second.newest_state().unwrap(), state("second"));
}
