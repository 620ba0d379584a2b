//! One thing at a time.
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges, of which some have one")]

use super::*;

fn drained(double: &Double, discarded: &mut Discarded) -> Vec<Range<u64>> {
    let marks = double.marks();
    marks.carry_back();
    marks.cut();
    discarded.drain(&double.ring(), &marks, double.ring().put());
    discarded.pending.iter().cloned().collect()
}

/// The ring is empty, and no discard is under way.
pub fn nothing_new(double: &Double) -> bool {
    double.ring().spares(&double.marks(), &Dirty::of_range(0..double.marks().blocks()))
}

#[test]
fn what_comes_after_a_cut_proves_nothing_for_it() {
    let double = Double::of_blocks(1000);
    let (ring, marks) = (double.ring(), double.marks());
    let mut discarded = Discarded::default();
    let spares = |of: Range<u64>| ring.spares(&marks, &Dirty::of_range(of));
    double.put(100, 10);
    let before = ring.put();
    double.put(200, 10);
    assert!(spares(0..100) && !spares(109..110) && !spares(190..300));
    marks.cut();
    discarded.drain(&ring, &marks, before);
    assert!(!discarded.in_time() && spares(0..1000), "it is carried all the same");
    assert_eq!(discarded.zeros().0.blocks(), 20);
    drained(&double, &mut discarded);
    assert!(discarded.in_time());
    let disk = Disk::new(1000, false);
    let mut op = double.issue(400, 3, None);
    assert!(spares(403..500) && !spares(402..500), "it is under way");
    while !double.go_on(&mut op, &disk) {}
    assert!(spares(403..500) && !spares(402..500), "it is in the ring");
}

#[test]
fn a_discard_between_scattered_marks_takes_no_more_memory_than_it_may() {
    let double = Double::of_blocks(1000);
    let marks = double.marks();
    (0..500).for_each(|n| marks.mark(2 * n, 1));
    let free = marks.unmarked(&runs([0..1000]), 100);
    // A word is begun or it is not.
    assert!((100..200).contains(&free.len()), "{}", free.len());
    let left = Runs::of_dirty(&marks.all_marked());
    assert_eq!(left.or(&free).blocks(), 1000, "each is marked, or was found");
    assert_eq!(left.blocks() + free.blocks(), 1000);
}

fn runs<const N: usize>(ranges: [Range<u64>; N]) -> Runs {
    Runs::of(ranges.into())
}

#[test]
fn ranges_are_united_and_what_is_marked_is_read() {
    let double = Double::of_blocks(1000);
    let (ring, marks) = (double.ring(), double.marks());
    let mut discarded = Discarded::default();
    for (first, count) in [(100, 50), (120, 80), (700, 300), (100, 50), (990, 500)] {
        assert!(double.put(first, count));
    }
    marks.mark(110, 3);
    assert!(!nothing_new(&double) && discarded.work(&ring) > 0);
    assert_eq!(drained(&double, &mut discarded), [100..110, 113..200, 700..1000]);
    assert!(nothing_new(&double));
    assert_eq!(discarded.work(&ring), 3 * 4096, "three leaves have some");
    // A write that came later.
    marks.mark(800, 1);
    assert_eq!(drained(&double, &mut discarded), [100..110, 113..200, 700..800, 801..1000]);
    let (zeros, all) = discarded.zeros();
    assert!(all && zeros.blocks() == 396);
    discarded.sent(&ring, &marks, &zeros, &Dirty::default());
    assert_eq!((discarded.work(&ring), discarded.to_look_at()), (0, 396 * 4096));
    // Some was written meanwhile, and read by a pass.
    discarded.sent(&ring, &marks, &Runs::default(), &Dirty::of_blocks(113..200));
    assert_eq!(discarded.to_look_at(), 309 * 4096);
    let mut looked = Vec::new();
    let mut look = |most| {
        let not_zero = |run: &Range<u64>| -> Result<Vec<u64>, ()> {
            looked.push(run.clone());
            Ok(run.clone().filter(|block| *block == 105).collect())
        };
        discarded.look(&ring, &marks, most, not_zero).unwrap()
    };
    assert_eq!([look(7), look(500), look(500)], [7, 302, 0]);
    assert_eq!(looked, [100..107, 107..110, 700..800, 801..1000]);
    assert!(marks.is_marked(105) && !marks.is_marked(104));
    assert_eq!((discarded.to_look_at(), ring.all(&marks)), (0, Runs::default()));
}

#[test]
fn a_look_that_fails_is_made_again() {
    let double = Double::of_blocks(1000);
    let (ring, marks) = (double.ring(), double.marks());
    let mut discarded = Discarded::default();
    double.put(5, 5);
    drained(&double, &mut discarded);
    discarded.sent(&ring, &marks, &runs([5..10]), &Dirty::default());
    assert_eq!(discarded.look(&ring, &marks, 9, |_| Err("no")), Err("no"));
    assert_eq!(discarded.to_look_at(), 5 * 4096);
}

/// One that has taken its place on another processor, and not filled it yet, holds up nobody.
#[test]
fn a_place_that_is_not_filled_yet_is_waited_for() {
    let double = Double::of_blocks(1000);
    let (ring, mut discarded) = (double.ring(), Discarded::default());
    double.put(1, 1);
    let late = double.control(at::PUT).fetch_add(1, Ordering::SeqCst);
    double.put(5, 1);
    assert_eq!(drained(&double, &mut discarded), [1..2, 5..6]);
    assert!(!nothing_new(&double), "one is under way");
    assert_eq!(ring.taken(), late);
    // What lies behind it is not taken again: it was written since, and that was sent.
    double.marks().mark(5, 1);
    assert_eq!(drained(&double, &mut discarded), [1..2]);
    double.marks().clear();
    assert_eq!(drained(&double, &mut discarded), [1..2]);
    ring.fill(late, 9, 2);
    assert_eq!(drained(&double, &mut discarded), [1..2, 9..11]);
    assert!(nothing_new(&double) && ring.taken() == ring.put());
}

#[test]
fn the_ring_goes_round_and_what_finds_no_room_is_marked() {
    let double = Double::of_blocks(1 << 22);
    let (ring, marks) = (double.ring(), double.marks());
    let mut discarded = Discarded::default();
    let mut put = 0;
    while double.put(put * 2, 1) {
        put += 1;
    }
    assert!(put as usize > RING_MAX / 2 && (put as usize) < RING_MAX, "{put}");
    assert_eq!(drained(&double, &mut discarded).len() as u64, put);
    // Round again, with more than the lists can hold.
    let again = put;
    while double.put(put * 2, 1) {
        put += 1;
    }
    assert!(put > again + RING_MAX as u64 / 2);
    assert_eq!(drained(&double, &mut discarded).len(), LIST_MAX);
    assert_eq!(marks.dirty_blocks(), put - LIST_MAX as u64);
    assert!(marks.is_marked(put * 2 - 2) && !marks.is_marked(0));
    assert_eq!(ring.all(&marks).len(), LIST_MAX);
    // Both lists share the room.
    let zeros = discarded.zeros().0.first_leaves(100);
    assert_eq!(zeros.blocks(), 100 * 128);
    discarded.sent(&ring, &marks, &zeros, &Dirty::default());
    assert!(double.put((1 << 22) - 1, 1));
    drained(&double, &mut discarded);
    assert_eq!(discarded.recheck, zeros);
    assert_eq!(discarded.pending.len() + zeros.len(), LIST_MAX);
    assert!(marks.is_marked((1 << 22) - 1));
}

/// What a daemon that was killed had taken out is marked; what was put into the ring since is not.
#[test]
fn a_daemon_that_comes_back_finds_all_of_it() {
    let double = Double::of_blocks(1000);
    let (ring, marks) = (double.ring(), double.marks());
    let mut discarded = Discarded::default();
    double.put(10, 10);
    drained(&double, &mut discarded);
    discarded.sent(&ring, &marks, &runs([10..20]), &Dirty::default());
    double.put(50, 10);
    drained(&double, &mut discarded);
    double.put(80, 10);
    assert_eq!(ring.all(&marks), runs([10..20, 50..60, 80..90]));
    let mut next = Discarded::left(&ring, &marks);
    assert_eq!(next.to_look_at(), 10 * 4096);
    assert_eq!(marks.all_marked(), Dirty::of_blocks(50..60));
    assert_eq!(drained(&double, &mut next), [80..90], "what nobody had taken out");
    // A scan forgets it all.
    marks.clear();
    double.put(300, 1);
    next.forget(&ring);
    assert!(ring.all(&marks).is_empty() && nothing_new(&double));
    assert_eq!(Discarded::left(&ring, &marks).to_look_at(), 0);
}

#[test]
fn memory_that_is_not_in_order_marks_everything() {
    let double = Double::of_blocks(1000);
    let (ring, marks) = (double.ring(), double.marks());
    assert!(Ring::over(&[], &[], &[]).is_none());
    let everything = |what: &str| {
        assert_eq!(marks.all_marked(), Dirty::of_blocks(0..1000), "{what}");
        marks.clear();
    };
    double.control(at::PUT).store(u64::MAX, Ordering::SeqCst);
    assert_eq!(ring.all(&marks).blocks(), 1000);
    let mut discarded = Discarded::default();
    assert!(drained(&double, &mut discarded).is_empty());
    everything("the ring");
    assert!(drained(&double, &mut discarded).is_empty());
    assert_eq!(marks.dirty_blocks(), 0, "it goes on");
    double.control(at::LISTS).store(7, Ordering::SeqCst);
    Discarded::left(&ring, &marks);
    everything("the lists");
}

/// The end of one is never seen: after some time it is marked, and its place is free.
#[test]
fn a_discard_that_never_ends_is_given_up() {
    let double = Double::of_blocks(1000);
    let (ring, marks) = (double.ring(), double.marks());
    let mut discarded = Discarded::default();
    let _lost = double.issue(7, 5, None);
    assert_eq!(ring.all(&marks), runs([7..12]), "under way");
    let open = || double.control(at::OPEN).load(Ordering::SeqCst);
    for _ in 0..LOST_AFTER {
        drained(&double, &mut discarded);
    }
    assert_eq!((marks.dirty_blocks(), open()), (0, 1));
    drained(&double, &mut discarded);
    assert_eq!((marks.all_marked(), open()), (Dirty::of_blocks(7..12), 0));
    assert_eq!(double.place(0)[0].load(Ordering::SeqCst), 0);
}
