//! A disk whose server begins to lie: who reads gets an error or the right bytes, never others,
//! and once the server is honest again all is read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse::disk::{self, DiskOptions};
use dormouse::home::Home;
use dormouse::report::Report;
use dormouse_device::BlockDevice;
use dormouse_format::Hash;
use dormouse_format::message::{Message, Refusal};
use dormouse_format::record::{Kind, split};

use crate::common::program::Numbers;
use crate::liar::Lie;
use crate::{MIB, Stage};

fn open(stage: &Stage, what: &str) -> Arc<dyn BlockDevice> {
    let home = Home::locate(Some(stage.place.path("home"))).unwrap();
    let timeout = Some(Duration::from_secs(20));
    let options = DiskOptions { timeout, ..DiskOptions::default() };
    let mut report = Report::new(false, true);
    disk::open(&home, &what.parse().unwrap(), &options, &mut report).unwrap().device
}

/// Reads here and there: how many reads were answered, and how many failed. No byte is wrong.
fn read(disk: &dyn BlockDevice, image: &[u8], seed: u64) -> (u32, u32) {
    let mut numbers = Numbers(seed);
    let (mut right, mut failed) = (0, 0);
    for _ in 0..6 {
        // In the first page, or in the second.
        let first = [0, 67 * MIB as u64][numbers.below(2) as usize];
        let at = first + numbers.below(MIB as u64 - 9000);
        let mut out = vec![0xaa; 9000];
        match disk.read(at, &mut out) {
            Ok(()) => {
                assert!(out == image[at as usize..at as usize + 9000], "wrong bytes at {at}");
                right += 1;
            }
            Err(_) => failed += 1,
        }
    }
    (right, failed)
}

/// What is read under a lie, of a disk that was opened before; then of the same disk without.
fn lied(stage: &Stage, lie: Lie) -> (u32, u32) {
    let image = &stage.versions[2];
    let disk = open(stage, "v@3");
    stage.liar.lie(lie);
    let told = read(&*disk, image, 5);
    stage.liar.lie(Lie::none());
    let until = Instant::now() + Duration::from_secs(60);
    while read(&*disk, image, 6).1 > 0 {
        assert!(Instant::now() < until, "it never heals");
        std::thread::sleep(Duration::from_millis(50));
    }
    told
}

fn chunks(f: impl Fn(&mut Vec<u8>) + Send + 'static) -> Lie {
    Lie::answer(move |m| match m {
        Message::Record { record } if split(record).unwrap().0.kind == Kind::Chunk => f(record),
        _ => {}
    })
}

#[test]
fn a_server_that_begins_to_lie_gets_no_wrong_byte_through() {
    let stage = Stage::new();
    let lies = [
        chunks(|record| *record.last_mut().unwrap() ^= 1),
        chunks(|record| record.truncate(record.len() / 2)),
        Lie::answer(|m| {
            if let Message::Node { hashes, .. } = m {
                hashes[0] = Hash([3; 32]);
            }
        }),
        Lie::answer(|m| {
            if let Message::Leaves { runs } = m
                && let Some(last) = runs.last_mut()
            {
                *last ^= 1;
            }
        }),
        Lie::answer(|m| match m {
            Message::Record { record } if split(record).unwrap().0.kind == Kind::Chunk => {
                *m = Message::Durable;
            }
            _ => {}
        }),
        Lie::answer(|m| {
            if matches!(m, Message::Leaves { .. }) {
                *m = Message::Error { refusal: Refusal::Damaged, text: "so it says".into() };
            }
        }),
    ];
    for lie in lies {
        let (right, failed) = lied(&stage, lie);
        assert!(failed > 0, "{right} reads, none of which failed");
    }
    // An older map under the newer point: that which did not change is the same in both.
    let older = Lie::ask(|m| match m {
        Message::GetNode { seq, .. } | Message::GetLeaves { seq, .. } => *seq = 1,
        _ => {}
    });
    lied(&stage, older);
    assert_eq!(lied(&stage, Lie::none()), (6, 0));
}

/// One chunk that is bad hurts those who read it.
#[test]
fn one_bad_chunk_fails_its_readers_alone() {
    let stage = Stage::new();
    let mut bad = None;
    let lie = Lie::answer(move |m| {
        let Message::Record { record } = m else { return };
        let (header, _) = split(record).unwrap();
        if header.kind == Kind::Chunk && *bad.get_or_insert(header.id) == header.id {
            *record.last_mut().unwrap() ^= 1;
        }
    });
    let (right, failed) = lied(&stage, lie);
    assert!(failed >= 1 && right >= 4, "{right} right, {failed} failed");
}
