//! A network disk against plain bytes: written, flushed, resized, closed and opened again, while
//! the server comes and goes; its points are restored and compared.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::program::Numbers;
use common::{World, assert_fails};
use dormouse::create;
use dormouse::disk::DiskOptions;
use dormouse::exit::Class;
use dormouse::home::Home;
use dormouse::netdisk::{self, Durability, NetDisk, Opening, Options};
use dormouse::report::Report;
use dormouse::restore;
use dormouse_device::{BlockDevice, Write, Zero};

const SIZE: u64 = 6 << 20;

struct Stand {
    world: World,
    home: Home,
}

impl Stand {
    fn new() -> Self {
        let world = World::serving();
        let invite = world.invite("laptop");
        world.join("home", &invite).unwrap();
        let home = world.home("home");
        create::create(&home, "disk", SIZE, false).unwrap();
        Self { world, home }
    }

    fn open(&self, options: Options) -> anyhow::Result<NetDisk> {
        self.open_named("disk", options)
    }

    fn open_named(&self, name: &str, options: Options) -> anyhow::Result<NetDisk> {
        // Holds the whole disk: what is read while the server is away is here.
        let cache = Some((self.world.path("cache"), 64 << 20));
        self.open_cached(name, options, cache)
    }

    fn open_cached(
        &self,
        name: &str,
        options: Options,
        cache: Option<(PathBuf, u64)>,
    ) -> anyhow::Result<NetDisk> {
        let mut report = Report::new(false, true);
        let reading = DiskOptions { cache, ..DiskOptions::default() };
        Ok(netdisk::open(&self.home, &name.parse()?, options, &reading, &mut report)?.0)
    }

    fn restored(&self, when: &str) -> Vec<u8> {
        self.restored_from(&format!("disk{when}"))
    }

    fn restored_from(&self, what: &str) -> Vec<u8> {
        let dest = self.world.path("restored");
        let options = restore::Options {
            what: what.parse().unwrap(),
            dest: Some(dest.clone()),
            in_place: false,
            force: true,
            fuzzy: false,
            expect_head: None,
            json: false,
        };
        restore::run(&self.home, &options).unwrap();
        std::fs::read(&dest).unwrap()
    }
}

fn options(durability: Durability) -> Options {
    Options { durability, point_every: Duration::from_millis(100), ..Options::default() }
}

/// One random request, done to both.
fn request(disk: &NetDisk, plain: &mut [u8], random: &mut Numbers) {
    let size = plain.len() as u64;
    let aligned = random.below(3) > 0;
    let unit = if aligned { 4096 } else { 1 };
    let at = random.below(size / unit) * unit;
    let most = (size - at).min(if random.below(10) == 0 { 2 << 20 } else { 40_000 });
    let len = (random.below(most / unit) + 1).min(most / unit).max(1) * unit;
    let range = at as usize..(at + len) as usize;
    match random.below(10) {
        0 => {
            disk.zero(at, len, Zero::default()).unwrap();
            plain[range].fill(0);
        }
        1 => {
            disk.trim(at, len).unwrap();
            let whole = at.div_ceil(4096) * 4096..(at + len) / 4096 * 4096;
            if whole.start < whole.end {
                plain[whole.start as usize..whole.end as usize].fill(0);
            }
        }
        2 | 3 => {
            let mut out = vec![0xee; len as usize];
            disk.read(at, &mut out).unwrap();
            assert!(out == plain[range], "bytes {at} and {len} more");
        }
        _ => {
            let bytes = random.noise(len as usize);
            disk.write(at, &bytes, Write::default()).unwrap();
            plain[range].copy_from_slice(&bytes);
        }
    }
}

fn whole(disk: &NetDisk) -> Vec<u8> {
    let mut out = vec![0xee; disk.geometry().size as usize];
    disk.read(0, &mut out).unwrap();
    out
}

/// Every byte lies in a hole or not as the content is: what is told to be zero is zero.
fn check_extents(disk: &NetDisk, plain: &[u8]) {
    let mut at = 0;
    while at < plain.len() {
        for part in disk.extents(at as u64, (plain.len() - at) as u64, 7).unwrap() {
            let end = at + part.len as usize;
            assert!(part.len > 0 && (!part.zero || plain[at..end].iter().all(|b| *b == 0)));
            at = end;
        }
    }
    assert_eq!(at, plain.len());
}

#[test]
fn what_is_written_is_read_and_each_flush_is_a_point() {
    let stand = Stand::new();
    let disk = stand.open(options(Durability::Server)).unwrap();
    let (mut plain, mut random) = (vec![0; SIZE as usize], Numbers(7));
    let mut points = Vec::new();
    for _ in 0..12 {
        for _ in 0..random.below(30) {
            request(&disk, &mut plain, &mut random);
        }
        if random.below(4) == 0 {
            let size = (1 + random.below(2 * SIZE / 4096)) * 4096;
            disk.resize(size).unwrap();
            plain.resize(size as usize, 0);
        }
        disk.flush().unwrap();
        points.push((disk.seen().point, plain.clone()));
        check_extents(&disk, &plain);
    }
    assert!(whole(&disk) == plain);
    let seen = disk.close(Duration::from_secs(20)).unwrap();
    assert!(disk.all_sent() && seen.points >= points.len() as u64 - 1);
    assert!(disk.write(0, &[1], Write::default()).is_err(), "closed");
    drop(disk);
    for (point, plain) in &points {
        assert!(stand.restored(&format!("@{point}")) == *plain, "point {point}");
    }
    assert!(stand.restored("") == plain);
    // The end made a checkpoint: nothing has to be replayed.
    let opening = Opening::new(&stand.home, "disk", options(Durability::Local)).unwrap();
    assert!(opening.head().point().is_checkpoint() && opening.left().is_none());
}

#[test]
fn what_was_not_sent_is_sent_the_next_time() {
    let mut stand = Stand::new();
    let (mut plain, mut random) = (vec![0; SIZE as usize], Numbers(11));
    for round in 0..6 {
        let disk = stand.open(options(Durability::Local)).unwrap();
        assert!(whole(&disk) == plain, "round {round}");
        for _ in 0..25 {
            request(&disk, &mut plain, &mut random);
        }
        if round % 2 == 0 {
            stand.world.stop();
        }
        for _ in 0..25 {
            request(&disk, &mut plain, &mut random);
        }
        disk.flush().unwrap();
        if round == 4 {
            stand.world.start();
            disk.close(Duration::from_secs(20)).unwrap();
            assert!(disk.all_sent(), "the server came back");
            drop(disk);
            assert!(stand.restored("") == plain);
            continue;
        }
        disk.close(Duration::from_millis(300)).unwrap();
        assert_eq!(disk.all_sent(), round % 2 == 1, "round {round}");
        drop(disk);
        if round % 2 == 0 {
            stand.world.start();
            let opening = Opening::new(&stand.home, "disk", options(Durability::Local)).unwrap();
            assert!(opening.left().unwrap().entries > 0);
        }
    }
    let disk = stand.open(options(Durability::Local)).unwrap();
    disk.close(Duration::from_secs(20)).unwrap();
    drop(disk);
    assert!(stand.restored("") == plain);
}

#[test]
fn a_flush_waits_for_the_server_or_not() {
    let mut stand = Stand::new();
    let timeout = Some(Duration::from_millis(200));
    let disk = stand.open(Options { timeout, ..options(Durability::Server) }).unwrap();
    stand.world.stop();
    disk.write(0, &[1; 4096], Write::default()).unwrap();
    let error = disk.flush().unwrap_err();
    assert!(matches!(error, dormouse_device::Error::TimedOut(_)), "{error}");
    stand.world.start();
    while disk.flush().is_err() {}
    assert!(disk.all_sent() && disk.seen().away.is_none());
    drop(disk);
    let disk = stand.open(options(Durability::Local)).unwrap();
    stand.world.stop();
    disk.write(4096, &[2; 4096], Write { fua: true }).unwrap();
    disk.flush().unwrap();
    assert!(!disk.all_sent());
}

#[test]
fn who_takes_the_volume_over_is_not_overwritten() {
    let mut stand = Stand::new();
    let disk = stand.open(options(Durability::Local)).unwrap();
    stand.world.stop();
    disk.write(0, &[1; 4096], Write::default()).unwrap();
    disk.flush().unwrap();
    drop(disk);
    stand.world.start();
    // Another command of this home writes to it meanwhile.
    let other = stand.world.path("other");
    std::fs::write(&other, [3; 8192]).unwrap();
    mirror(&stand.home, &other);
    let opened = stand.open(options(Durability::Local)).map(|_| ());
    assert_fails(opened, Class::InUse, "was written otherwise");
    let discard = Options { discard: true, ..options(Durability::Local) };
    let opening = Opening::new(&stand.home, "disk", discard).unwrap();
    assert!(opening.left().is_none());
    drop(opening);
    assert!(stand.restored("") == [3; 8192]);
}

/// A log that cannot be read is refused, and the way out that is named works.
#[test]
fn a_damaged_log_is_refused_and_can_be_given_up() {
    let mut stand = Stand::new();
    let disk = stand.open(options(Durability::Server)).unwrap();
    disk.write(0, &[1; 4096], Write::default()).unwrap();
    disk.flush().unwrap();
    stand.world.stop();
    disk.write(0, &[2; 4096], Write::default()).unwrap();
    disk.close(Duration::from_millis(50)).unwrap();
    drop(disk);
    stand.world.start();
    let log = netdisk::log_dir(&stand.home, "disk");
    std::fs::write(log.join("9999999999999999.log"), b"x").unwrap();
    let local = options(Durability::Local);
    assert_fails(stand.open(local.clone()).map(|_| ()), Class::Damaged, "--discard-log");
    let opening = Opening::new(&stand.home, "disk", Options { discard: true, ..local }).unwrap();
    assert!(opening.left().is_none());
    drop(opening);
    assert!(stand.restored("")[..4096] == [1; 4096]);
}

fn mirror(home: &Home, source: &Path) {
    mirror_to(home, source, "disk");
}

fn mirror_to(home: &Home, source: &Path, volume: &str) {
    let options = dormouse::mirror::Options {
        source: source.to_owned(),
        volume: Some(volume.into()),
        all: false,
        takeover: false,
        same_disk: false,
        level: 1,
        json: false,
        quiet: true,
        stop: None,
    };
    let mut report = Report::new(false, true);
    dormouse::mirror::copy(home, &options, &mut report).unwrap();
}

#[test]
fn empty_volumes_are_made_and_resized() {
    let stand = Stand::new();
    let again = create::create(&stand.home, "disk", SIZE, false);
    assert_fails(again, Class::InUse, "is there already");
    assert_fails(create::create(&stand.home, "odd", 4097, false), Class::Usage, "4097");
    assert_fails(create::create(&stand.home, "no/name", 4096, false), Class::Usage, "no/name");
    assert!(stand.restored("") == vec![0; SIZE as usize]);
    create::resize(&stand.home, "disk", 2 * SIZE, false, false).unwrap();
    let less = create::resize(&stand.home, "disk", 4096, false, false);
    assert_fails(less, Class::Usage, "is less");
    assert_eq!(stand.restored("").len() as u64, 2 * SIZE);
    create::resize(&stand.home, "disk", 4096, true, false).unwrap();
    assert_eq!(stand.restored("").len(), 4096);
    assert_eq!(stand.restored("@1").len() as u64, SIZE);
    let none = Opening::new(&stand.home, "none", Options::default()).map(|_| ());
    assert_fails(none, Class::NotFound, "no volume 'none'");
    // A huge one is made at once, and takes nothing.
    create::create(&stand.home, "huge", 1 << 50, false).unwrap();
    // What was restored is not touched by reads beyond it.
    let file = std::fs::File::open(stand.world.path("restored")).unwrap();
    assert!(file.read_at(&mut [0], SIZE).unwrap() == 0 || !stand.restored("").is_empty());
}

#[test]
fn forks_begin_as_their_origin_and_go_their_own_way() {
    let stand = Stand::new();
    let fork = |what: &str, name: &str| {
        dormouse::fork::run(&stand.home, &what.parse().unwrap(), name, false, false)
    };
    let (mut plain, mut random) = (vec![0; SIZE as usize], Numbers(23));
    let disk = stand.open(options(Durability::Server)).unwrap();
    let mut points = Vec::new();
    for _ in 0..3 {
        (0..20).for_each(|_| request(&disk, &mut plain, &mut random));
        disk.flush().unwrap();
        points.push((disk.seen().point, plain.clone()));
    }
    disk.close(Duration::from_secs(20)).unwrap();
    drop(disk);
    let stored = store_bytes(&stand);
    // Of points between checkpoints, and of the checkpoint at the end.
    for (at, (point, plain)) in points.iter().enumerate() {
        fork(&format!("disk@{point}"), &format!("f{at}")).unwrap();
        assert!(stand.restored_from(&format!("f{at}")) == *plain, "point {point}");
    }
    fork("disk", "last").unwrap();
    assert!(stand.restored_from("last") == plain);
    assert!(store_bytes(&stand) - stored < 200_000, "a fork copies nothing");
    // A fork of a fork that went on, and each is what it was.
    let mut forked = points[1].1.clone();
    let disk = stand.open_named("f1", options(Durability::Local)).unwrap();
    (0..40).for_each(|_| request(&disk, &mut forked, &mut random));
    disk.close(Duration::from_secs(20)).unwrap();
    assert!(disk.all_sent());
    drop(disk);
    fork("f1", "again").unwrap();
    for (what, plain) in [("f1", &forked), ("again", &forked), ("f1@1", &points[1].1)] {
        assert!(stand.restored_from(what) == *plain, "{what}");
    }
    assert!(stand.restored("") == plain && stand.restored_from("f2") == points[2].1);
    assert_fails(fork("disk", "f1"), Class::InUse, "is there already");
    assert_fails(fork("nothing", "new"), Class::NotFound, "no volume 'nothing'");
    assert_fails(fork("disk@99", "new"), Class::NotFound, "99");
    // A scan of something else onto a fork shares its tags, too.
    let other = stand.world.path("other");
    std::fs::write(&other, &forked).unwrap();
    mirror_to(&stand.home, &other, "last");
    assert!(stand.restored_from("last") == forked);
}

/// Of any size: what a fork costs does not depend on it.
#[test]
fn a_fork_of_a_tebibyte_is_there_at_once() {
    let stand = Stand::new();
    create::create(&stand.home, "huge", 1 << 40, false).unwrap();
    let disk = stand.open_cached("huge", options(Durability::Local), None).unwrap();
    let places = [0, 1 << 30, 1 << 39, (1 << 40) - 4096u64];
    for (n, at) in (1..).zip(places) {
        disk.write(at, &[n; 4096], Write::default()).unwrap();
    }
    disk.close(Duration::from_secs(20)).unwrap();
    assert!(disk.all_sent());
    drop(disk);
    let (stored, begun) = (store_bytes(&stand), std::time::Instant::now());
    dormouse::fork::run(&stand.home, &"huge".parse().unwrap(), "twin", false, false).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(store_bytes(&stand) - stored < 100_000, "a fork copies nothing");
    let twin = stand.open_cached("twin", options(Durability::Local), None).unwrap();
    assert_eq!(twin.geometry().size, 1 << 40);
    for (n, at) in (1..).zip(places) {
        let mut out = [0xee; 4096];
        twin.read(at, &mut out).unwrap();
        assert_eq!(out, [n; 4096]);
    }
}

fn store_bytes(stand: &Stand) -> u64 {
    let files = common::snapshot(&stand.world.path("store"));
    files.iter().map(|(_, bytes)| bytes.len() as u64).sum()
}

/// Blocks say which write they are of. Whoever reads one sees no older write than those that
/// were over before the read began, while points are made and what was kept is given up.
#[test]
fn no_read_is_older_than_a_write_that_was_over() {
    const BLOCKS: u64 = 256;
    let stand = Stand::new();
    let every = Options { point_every: Duration::from_millis(1), ..options(Durability::Local) };
    // Without a cache, so that what was changed has to be fetched.
    let disk = stand.open_cached("disk", every, None).unwrap();
    let over: Vec<AtomicU64> = (0..BLOCKS).map(|_| AtomicU64::new(0)).collect();
    let stop = AtomicU64::new(0);
    let (reads, points) = std::thread::scope(|scope| {
        let reader = |seed| {
            let (disk, over, stop) = (&disk, &over, &stop);
            move || {
                let (mut random, mut reads) = (Numbers(seed), 0u64);
                while stop.load(Ordering::SeqCst) == 0 {
                    let first = random.below(BLOCKS - 4);
                    let least: Vec<u64> =
                        (0..4).map(|i| over[(first + i) as usize].load(Ordering::SeqCst)).collect();
                    let mut out = vec![0; 4 * 4096];
                    disk.read(first * 4096, &mut out).unwrap();
                    for (block, least) in out.chunks(4096).zip(least) {
                        let write = u64::from_le_bytes(block[..8].try_into().unwrap());
                        assert!(write >= least, "write {write} is read, {least} was over");
                        assert!(block.chunks(8).all(|part| part == &block[..8]), "torn");
                    }
                    reads += 1;
                }
                reads
            }
        };
        let readers = [scope.spawn(reader(1)), scope.spawn(reader(2))];
        let mut random = Numbers(3);
        for write in 1..200_000u64 {
            if write > 6000 && disk.seen().points > 10 {
                break;
            }
            let block = random.below(BLOCKS);
            let bytes = write.to_le_bytes().repeat(512);
            disk.write(block * 4096, &bytes, Write::default()).unwrap();
            over[block as usize].store(write, Ordering::SeqCst);
            if write % 16 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        stop.store(1, Ordering::SeqCst);
        (readers.map(|r| r.join().unwrap()), disk.seen().points)
    });
    assert!(reads.iter().all(|n| *n > 50) && points > 10, "{reads:?} reads, {points} points");
    println!("{reads:?} reads, {points} points");
}

/// The home as a power cut would leave it: copied at some moment. The server may be one point
/// ahead of it, made out of the log; what is found is not older than the last flush. A copy that
/// is older than that is refused.
#[test]
fn a_home_of_a_moment_goes_on_and_an_old_one_is_refused() {
    let mut stand = Stand::new();
    let (mut plain, mut random) = (vec![0; SIZE as usize], Numbers(31));
    let every = Options { point_every: Duration::from_millis(1), ..options(Durability::Local) };
    for round in 0..10 {
        let disk = stand.open_cached("disk", every.clone(), None).unwrap();
        assert!(whole(&disk) == plain, "round {round}");
        let copy = stand.world.path(&format!("home-{round}"));
        for _ in 0..3 {
            (0..random.below(12)).for_each(|_| request(&disk, &mut plain, &mut random));
            std::thread::sleep(Duration::from_millis(random.below(8)));
        }
        // At any moment of a point's making: it may be durable, and nobody here was told.
        stand.world.stop();
        for _ in 0..random.below(4) {
            // Whole blocks: the rest of others could not be read now.
            let (at, bytes) = (random.below(SIZE / 4096) as usize * 4096, random.noise(4096));
            disk.write(at as u64, &bytes, Write::default()).unwrap();
            plain[at..at + 4096].copy_from_slice(&bytes);
        }
        disk.flush().unwrap();
        copy_dir(stand.home.dir(), &copy);
        // Without a word: only the copy remains.
        disk.close(Duration::ZERO).unwrap();
        drop(disk);
        stand.world.start();
        if round == 9 {
            let disk = stand.open_cached("disk", every.clone(), None).unwrap();
            for _ in 0..5 {
                request(&disk, &mut plain, &mut random);
                disk.write(0, &random.noise(4096), Write::default()).unwrap();
                std::thread::sleep(Duration::from_millis(30));
            }
            disk.close(Duration::from_secs(20)).unwrap();
            drop(disk);
            let old = Home::locate(Some(copy)).unwrap();
            let opened = Opening::new(&old, "disk", every.clone()).map(|_| ());
            assert_fails(opened, Class::InUse, "was written otherwise");
            return;
        }
        std::fs::remove_dir_all(stand.home.dir()).unwrap();
        std::fs::rename(&copy, stand.home.dir()).unwrap();
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    // Files of the log in their order: a later one is not there without the ones before.
    let mut entries: Vec<_> = std::fs::read_dir(from).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let dest = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &dest);
        } else if let Err(e) = std::fs::copy(&path, &dest) {
            assert_eq!(e.kind(), std::io::ErrorKind::NotFound);
        }
    }
}
