//! Every way in which a disk can have been written unseen is a reason; and only then there is none.

use super::*;

fn look() -> Look {
    let count = Count { writes: 1000, reads: 500, power_cycles: 7, unsafe_shutdowns: 2, used: 90 };
    let counted = Counted {
        serial: "S 64".into(),
        model: "Disk 980".into(),
        firmware: "1B4".into(),
        namespace: 1,
        blocks: 4096,
        shared: false,
        uncounted: false,
        count,
    };
    Look {
        boot: "one".into(),
        id: DiskId::from_text("size 2097152\nserial S 64\nwwid eui.01\n").unwrap(),
        first: 0,
        sectors: 4096,
        written: Some(Written { writes: 40, sectors: 900, discards: 3, flushes: 9 }),
        counted: Some(counted),
        emulated: false,
    }
}

/// Of the next boot.
fn next() -> Look {
    let mut next = look();
    next.boot = "two".into();
    next.written = Some(Written { flushes: 4, ..Written::default() });
    let count = &mut next.counted.as_mut().unwrap().count;
    count.reads += 60;
    count.power_cycles += 1;
    next
}

fn count(look: &mut Look) -> &mut Count {
    &mut counted(look).count
}

fn counted(look: &mut Look) -> &mut Counted {
    look.counted.as_mut().unwrap()
}

type Change = fn(&mut Look);

/// What may become of a disk, and what is said of it under either trust.
const CHANGES: &[(&str, Change, Why)] = &[
    ("other number", |l| l.id = id("size 2097152\nserial S 65\n"), Why::OtherDisk),
    ("no number", |l| l.id = id("size 2097152\n"), Why::OtherDisk),
    ("a part of it", |l| l.first = 8, Why::OtherDisk),
    ("shorter", |l| l.sectors -= 1, Why::OtherSize),
    ("other size", |l| l.id = id("size 2097664\nserial S 64\n"), Why::OtherSize),
    ("no count", |l| l.counted = None, Why::NoCount),
    ("other controller", |l| counted(l).serial.push('x'), Why::OtherDisk),
    ("other model", |l| counted(l).model.push('x'), Why::OtherDisk),
    ("other namespace", |l| counted(l).namespace = 2, Why::OtherDisk),
    ("formatted otherwise", |l| counted(l).blocks = 8192, Why::OtherSize),
    ("other firmware", |l| counted(l).firmware.push('x'), Why::Firmware),
    ("a second port", |l| counted(l).shared = true, Why::Shared),
    ("written once", |l| count(l).writes += 1, Why::Written(1)),
    ("written often", |l| count(l).writes += 1 << 40, Why::Written(1 << 40)),
    ("writes went back", |l| count(l).writes -= 1, Why::WentBack),
    ("reads went back", |l| count(l).reads = 499, Why::WentBack),
    ("power cycles went back", |l| count(l).power_cycles = 6, Why::WentBack),
    ("cuts went back", |l| count(l).unsafe_shutdowns = 1, Why::WentBack),
    ("begun anew", |l| *count(l) = Count::default(), Why::WentBack),
    ("power cut", |l| count(l).unsafe_shutdowns += 1, Why::PowerCut),
    ("less in use", |l| count(l).used -= 1, Why::Used),
    ("more in use", |l| count(l).used += 1, Why::Used),
    ("a write here", |l| l.written.as_mut().unwrap().writes += 1, Why::WrittenHere),
    ("sectors here", |l| l.written.as_mut().unwrap().sectors += 8, Why::WrittenHere),
    ("a discard here", |l| l.written.as_mut().unwrap().discards += 1, Why::WrittenHere),
    ("no statistics", |l| l.written = None, Why::NoStatistics),
];

fn id(text: &str) -> DiskId {
    DiskId::from_text(text).unwrap()
}

#[test]
fn what_was_not_written_is_known_in_the_next_boot_and_in_the_same() {
    for trust in [Trust::Proof, Trust::Count] {
        assert_eq!(judge(&look(), &next(), trust), Ok(()));
        let mut later = look();
        count(&mut later).reads += 5;
        later.written.as_mut().unwrap().flushes += 1;
        assert_eq!(judge(&look(), &later, trust), Ok(()), "the same boot");
    }
}

#[test]
fn each_change_alone_is_a_reason() {
    for (what, change, why) in CHANGES {
        for trust in [Trust::Proof, Trust::Count] {
            let mut now = next();
            change(&mut now);
            assert_eq!(judge(&look(), &now, trust), Err(*why), "{what}");
            let mut now = look();
            now.boot = "one".into();
            change(&mut now);
            assert_eq!(judge(&look(), &now, trust), Err(*why), "{what}, in the same boot");
        }
        assert!(!why.text().is_empty());
    }
}

#[test]
fn no_two_changes_hide_each_other() {
    for (first, one, _) in CHANGES {
        for (second, other, _) in CHANGES {
            let mut now = next();
            one(&mut now);
            // The second may need what the first took away.
            if now.counted.is_none() || now.written.is_none() {
                continue;
            }
            // A count that began anew cannot go back further.
            if count(&mut now).writes == 0 {
                continue;
            }
            other(&mut now);
            // One that takes back what the other did leaves the disk as it was, for all that shows.
            let said = judge(&look(), &now, Trust::Count);
            assert_eq!(said.is_ok(), now == next(), "{first}, {second}: {said:?}");
        }
    }
}

/// What another boot's kernel has written says nothing here, and cannot make up for what this one has.
#[test]
fn statistics_are_those_of_one_boot() {
    let mut now = next();
    now.written = look().written;
    assert_eq!(judge(&look(), &now, Trust::Count), Err(Why::WrittenHere));
    let mut now = look();
    now.written = next().written;
    assert_eq!(judge(&look(), &now, Trust::Count), Err(Why::WrittenHere));
}

#[test]
fn a_count_that_can_be_passed_by_is_no_proof() {
    type Both = fn(&mut Look, &mut Look);
    let changes: &[(Both, Why)] = &[
        (|a, _| counted(a).uncounted = true, Why::Uncounted),
        (|_, b| counted(b).uncounted = true, Why::Uncounted),
        (|a, _| a.emulated = true, Why::Emulated),
        (|_, b| b.emulated = true, Why::Emulated),
    ];
    for (change, why) in changes {
        let (mut before, mut after) = (look(), next());
        change(&mut before, &mut after);
        assert_eq!(judge(&before, &after, Trust::Proof), Err(*why));
        assert_eq!(judge(&before, &after, Trust::Count), Ok(()));
        assert!(why.way_out().contains("after-reboot"));
    }
    let (mut before, mut after) = (look(), next());
    counted(&mut before).shared = true;
    assert_eq!(judge(&before, &after, Trust::Count), Err(Why::Shared));
    // A disk that counts nothing is not called another one.
    before.counted = None;
    before.id = id("size 2097152\n");
    after.id = before.id.clone();
    assert_eq!(judge(&before, &after, Trust::Count), Err(Why::NoCount));
}

fn closed() -> Closed {
    Closed {
        volume: *b"0123456789abcdef",
        head: std::array::from_fn(|i| i as u8),
        seq: 9,
        generation: 4,
        look: look(),
        samples: Samples { salt: [7; 16], blocks: vec![(0, [1; 16]), (511, [2; 16])] },
        dirty: Dirty::of_blocks([0, 1, 2, 255, 256, 257, 511]),
    }
}

#[test]
fn the_text_comes_back_and_no_part_of_it_does() {
    let mut bare = closed();
    bare.look.counted = None;
    bare.look.written = None;
    bare.dirty = Dirty::default();
    bare.samples.blocks.clear();
    for closed in [closed(), bare] {
        let text = closed.to_text().unwrap();
        assert_eq!(Closed::from_text(&text).as_ref(), Some(&closed));
        let lines: Vec<&str> = text.lines().collect();
        for without in 0..lines.len() {
            let mut less = lines.clone();
            let line = less.remove(without);
            // What is optional, or one of several, may be missing: another text, and another meaning.
            let read = Closed::from_text(&less.join("\n"));
            assert_ne!(read, Some(closed.clone()), "{line}");
            let mut more = lines.clone();
            more.insert(without, lines[without]);
            assert_eq!(Closed::from_text(&more.join("\n")), None, "{line} twice");
        }
        for end in 0..text.len() {
            assert_eq!(Closed::from_text(&text[..end]), None, "{end}");
        }
    }
    assert!(closed().to_text().unwrap().starts_with("closed 1\nvolume 3031"));
}

#[test]
fn marks_beyond_the_disk_or_out_of_order_are_refused() {
    let text = closed().to_text().unwrap();
    for (from, to) in [
        ("dirty 511 1", "dirty 511 2"),
        ("dirty 511 1", "dirty 511 18446744073709551615"),
        ("dirty 511 1", "dirty 511 0"),
        ("dirty 511 1", "dirty 2 1"),
        ("dirty 511 1", "dirty 258 1"),
        ("emulated 0", "emulated 2"),
        ("closed 1", "closed 2"),
        ("sample 511", "sample +511"),
    ] {
        assert!(text.contains(from));
        assert_eq!(Closed::from_text(&text.replace(from, to)), None, "{to}");
    }
}

#[test]
fn what_is_marked_all_over_is_not_kept() {
    let mut closed = closed();
    closed.dirty = Dirty::of_blocks((0..=text::RUNS_MAX as u64).map(|n| n * 2));
    assert_eq!(closed.to_text(), None);
}
