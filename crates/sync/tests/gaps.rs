//! Points that expired: what a reader believes of what is left, and of a server that lies.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

use std::sync::Arc;

use dormouse_crypt::{SigningKey, record};
use dormouse_format::keeping::Bridge;
use dormouse_format::message::{Keep, Kept, Message};
use dormouse_format::point::{Point, SignedPoint, StoredPoint};
use dormouse_format::record::Kind;
use dormouse_format::{Hash, Seq, VolumeId};
use dormouse_sim::machine::Machine;
use dormouse_sim::{Disk, Lcg, World, noise};
use dormouse_store::VaultStore;
use dormouse_sync::Error;
use dormouse_sync::bridge::Bridges;
use dormouse_sync::error::Result;
use dormouse_sync::history::{Points, Proof, SeenGone, Trust, hash_of};
use dormouse_sync::server::Registry;

const LEFT_OUT: &str = "the server leaves it out, and shows others";

/// A volume whose checkpoints are 1, 4, 7, 10 …, with two deltas behind each; the newest is a
/// checkpoint.
struct Past {
    world: World,
    machine: Machine,
    volume: VolumeId,
    points: Vec<StoredPoint>,
    models: Vec<Disk>,
}

impl Past {
    fn new(seed: u64, checkpoints: u64) -> Self {
        let mut world = World::new(seed);
        let machine = world.machine();
        let volume = world.volume(&machine, "disk");
        let mut random = Lcg(seed);
        let mut model = Disk::new(1 << 20);
        model.write(0, noise(&mut random));
        world.copy(&machine, volume, &model).unwrap();
        let mut models = vec![model.clone()];
        for n in 1..checkpoints {
            for delta in 1..3 {
                let block = n * 2 + delta;
                model.write(block, noise(&mut random));
                world.copy_changes(&machine, volume, &model, &[block]).unwrap();
                models.push(model.clone());
            }
            if n % 2 == 0 {
                world.checkpoint(&machine, volume).unwrap();
            } else {
                world.copy(&machine, volume, &model).unwrap();
            }
            models.push(model.clone());
        }
        let points = world.points(&machine, volume).unwrap();
        let checkpoint = |p: &StoredPoint| p.point().is_checkpoint();
        assert!(points.iter().all(|p| checkpoint(p) == (p.point().seq % 3 == 1)));
        Self { world, machine, volume, points, models }
    }

    fn store(&self) -> Arc<VaultStore> {
        self.world.registry.vault(&self.machine.vault).unwrap().unwrap()
    }

    fn expire(&self, ranges: &[(Seq, Seq)]) {
        let ranges: Vec<_> = ranges.iter().map(|(a, b)| *a..=*b).collect();
        self.store().expire(&self.volume, &ranges, self.world.now).unwrap();
    }

    fn point(&self, seq: Seq) -> &StoredPoint {
        &self.points[seq as usize - 1]
    }

    /// What the server says: points, expired ranges, records of bridges.
    fn told(&mut self, from: Seq) -> Told {
        let volume = self.volume;
        let mut wire = self.world.hello(&self.machine).unwrap();
        let Message::Points { points } = wire.ask(&Points::question(volume, from)).unwrap() else {
            panic!("points");
        };
        let gaps = Message::Keep(Keep::GetGaps { volume, from: 1, to: Seq::MAX });
        let Message::Kept(Kept::Gaps { ranges }) = wire.ask(&gaps).unwrap() else { panic!("gaps") };
        let question = Message::Keep(Keep::GetBridges { volume, from: 1, to: Seq::MAX });
        let mut bridges = Vec::new();
        let mut answer = wire.ask(&question).unwrap();
        while let Message::Record { record } = answer {
            bridges.push(record);
            answer = wire.answer().unwrap();
        }
        assert_eq!(answer, Message::Done);
        Told { points, ranges, bridges }
    }

    /// What a reader that has seen this head makes of it.
    fn read(&mut self, told: &Told, from: Seq, seen: Option<SignedPoint>) -> Result<Read> {
        let trust = self.world.trust(&self.machine)?;
        told.read(&trust, self.volume, from, seen)
    }

    fn bridge(&self, by: &SigningKey, from: &StoredPoint, to: &SignedPoint) -> Vec<u8> {
        let bridge = Bridge {
            vault: self.machine.vault,
            volume: self.volume,
            writer: by.writer_id(),
            from: from.point().seq,
            from_hash: hash_of(&from.signed),
            from_root: from.point().root,
            to: to.point.seq,
            to_hash: hash_of(to),
        };
        record::plain(Kind::Bridge, bridge.writer, &by.sign_body(&bridge))
    }
}

type Read = (Vec<Seq>, Proof);

#[derive(Clone)]
struct Told {
    points: Vec<StoredPoint>,
    ranges: Vec<(Seq, Seq)>,
    bridges: Vec<Vec<u8>>,
}

impl Told {
    fn read(
        &self,
        trust: &Trust,
        volume: VolumeId,
        from: Seq,
        seen: Option<SignedPoint>,
    ) -> Result<Read> {
        let mut points = Points::from(trust, volume, from).after(seen);
        assert!(points.add(&self.points)?);
        let mut proof = Proof::default();
        if points.missing().is_some() {
            let mut bridges = Bridges::new(trust, volume);
            self.bridges.iter().try_for_each(|b| bridges.offer(b))?;
            proof = points.prove(&self.ranges, &bridges)?;
        }
        let all = points.done(self.points.last())?;
        Ok((all.iter().map(|p| p.point().seq).collect(), proof))
    }

    fn without(&self, seqs: &[Seq]) -> Self {
        let mut told = self.clone();
        told.points.retain(|p| !seqs.contains(&p.point().seq));
        told
    }

    fn saying(&self, ranges: &[(Seq, Seq)]) -> Self {
        Self { ranges: ranges.to_vec(), ..self.clone() }
    }
}

fn refused(seq: Seq, why: &'static str) -> Result<Read> {
    Err(Error::Point { seq, why })
}

const UNBRIDGED: &str =
    "points before it are said to have expired, and no writer's word leads over them";

#[test]
fn each_checkpoint_has_its_bridge_and_what_expired_is_led_over() {
    let mut past = Past::new(1, 6);
    let told = past.told(1);
    assert_eq!(told.bridges.len(), 5, "one for each checkpoint but the first");
    assert_eq!(past.read(&told, 1, None).unwrap(), ((1..=16).collect(), Proof::default()));
    // Deltas of one, all of the next two; and the beginning.
    past.expire(&[(3, 3), (4, 9)]);
    let told = past.told(1);
    assert_eq!(told.ranges, [(3, 9)]);
    let left: Vec<_> = [1, 2].into_iter().chain(10..=16).collect();
    assert_eq!(past.read(&told, 1, None).unwrap(), (left, Proof::default()));
    past.expire(&[(1, 2)]);
    let told = past.told(1);
    assert_eq!(past.read(&told, 1, None).unwrap(), ((10..=16).collect(), Proof::default()));
    // It outlives the process, and what is left comes back.
    past.world.registry.reopen(past.machine.vault).unwrap();
    let again = past.told(1);
    assert_eq!((again.ranges, again.bridges), (told.ranges, told.bridges));
    for seq in 10..=16 {
        let pair = [*past.point(seq), *past.point(past.point(seq).point().checkpoint)];
        let mut disk = Disk::default();
        let (machine, mode) = (&past.machine, dormouse_sync::fetch::Mode::Fresh);
        past.world.restore_to(machine, past.volume, pair, mode, &mut disk).unwrap();
        assert!(disk == past.models[seq as usize - 1], "point {seq}");
    }
}

#[test]
fn a_server_cannot_hide_points_by_calling_them_expired() {
    let mut past = Past::new(2, 5);
    past.expire(&[(5, 6)]);
    let told = past.told(1);
    assert!(past.read(&told, 1, None).is_ok());
    // Left out, and not said to have expired.
    assert_eq!(past.read(&told.without(&[8, 9]), 1, None), refused(8, LEFT_OUT));
    assert_eq!(past.read(&told.saying(&[(5, 5)]), 1, None), refused(5, LEFT_OUT));
    // The newest cannot have.
    let head = past.points.last().copied();
    let mut tail = told.without(&[12, 13]);
    tail.ranges.push((12, 13));
    let trust = past.world.trust(&past.machine).unwrap();
    let mut points = Points::from(&trust, past.volume, 1);
    points.add(&tail.points).unwrap();
    let mut bridges = Bridges::new(&trust, past.volume);
    tail.bridges.iter().for_each(|b| bridges.offer(b).unwrap());
    points.prove(&tail.ranges, &bridges).unwrap();
    assert_eq!(points.done(head.as_ref()), Err(Error::Fork { seq: 13 }));
    // Nor what a point that is shown is built on.
    for (hidden, first) in [(&[7][..], 5), (&[8], 8), (&[7, 8], 5)] {
        let mut lie = told.without(hidden);
        lie.ranges = vec![(1, 13)];
        assert_eq!(past.read(&lie, 1, None), refused(first, LEFT_OUT), "{hidden:?}");
    }
    // Whole groups it can: who did not see them cannot tell. The head is as fresh as before.
    let mut lie = told.without(&[7, 8, 9]);
    lie.ranges = vec![(5, 9)];
    assert!(past.read(&lie, 1, None).is_ok());
}

#[test]
fn a_gap_needs_a_bridge_of_a_certified_writer() {
    let mut past = Past::new(3, 5);
    past.expire(&[(4, 9)]);
    let told = past.told(1);
    for left in 0..told.bridges.len() {
        let mut lie = told.clone();
        lie.bridges.remove(left);
        let read = past.read(&lie, 1, None);
        // The first three lead over the gap; the last one over nothing.
        match left {
            0 => assert_eq!(read.unwrap().1.unbridged, [(4, 9)], "no bridge was made so far"),
            1 | 2 => assert_eq!(read, refused(10, UNBRIDGED), "without bridge {left}"),
            _ => assert_eq!(read.unwrap().1, Proof::default()),
        }
    }
    // By a stranger, by the server's own hand, of another volume, or altered.
    let (from, to) = (*past.point(1), past.point(10).signed);
    let stranger = SigningKey::from_seed([77; 32]).unwrap();
    let forged = past.bridge(&stranger, &from, &to);
    let mut claimed = past.bridge(&past.machine.signer, &from, &to);
    let last = claimed.len() - 1;
    claimed[last] ^= 1;
    let claimed = record::plain(Kind::Bridge, past.machine.writer(), &claimed[112..]);
    let mut elsewhere = World::new(9);
    let other = elsewhere.machine();
    let foreign = past.bridge(&other.signer, &from, &to);
    for bad in [forged, claimed, foreign] {
        let mut lie = told.clone();
        lie.bridges.truncate(1);
        lie.bridges.push(bad);
        assert_eq!(past.read(&lie, 1, None), refused(10, UNBRIDGED));
    }
    // A true one from 1 to 10 would do.
    let mut short = told.clone();
    short.bridges = vec![past.bridge(&past.machine.signer, &from, &to)];
    assert_eq!(past.read(&short, 1, None).unwrap().1, Proof::default());
}

/// The writer's machine was put back once, and made another history from point 4 on.
#[test]
fn another_branch_is_not_taken_for_the_rest() {
    let mut past = Past::new(4, 5);
    past.expire(&[(5, 9)]);
    let told = past.told(1);
    let signer = Arc::clone(&past.machine.signer);
    let beside = |like: &StoredPoint, prev: Hash| {
        let point = Point { prev, time: 1, root: Hash([9; 32]), ..*like.point() };
        StoredPoint { signed: signer.sign_point(point), ..*like }
    };
    let other_7 = beside(past.point(7), Hash([1; 32]));
    let other_10 = beside(past.point(10), Hash([2; 32]));
    let mut lie = told.without(&[10, 11, 12, 13]);
    lie.points.push(other_10);
    // The true bridges, and those of the other branch, which does not begin at this 4 …
    lie.bridges.push(past.bridge(&signer, &other_7, &other_10.signed));
    assert_eq!(past.read(&lie, 1, None), refused(10, UNBRIDGED));
    // … and who has seen what is gone in it does not take it either.
    let seen = Some(past.point(10).signed);
    let trust = past.world.trust(&past.machine).unwrap();
    let mut points = Points::from(&trust, past.volume, 10).after(seen);
    points.add(&[other_10]).unwrap();
    assert!(points.missing().is_none(), "it has the number of the one that was seen");
}

#[test]
fn a_head_that_was_seen_and_has_expired() {
    let mut past = Past::new(5, 5);
    past.expire(&[(4, 9)]);
    let seen = |past: &Past, seq| Some(past.point(seq).signed);
    let gone = |seq, from| Some(SeenGone { seq, from });
    for from_start in [true, false] {
        for (seq, from) in [(4, 4), (5, 4), (6, 4), (7, 7), (9, 7)] {
            let asked = if from_start { 1 } else { seq };
            let told = past.told(asked);
            let head = seen(&past, seq);
            let (_, proof) = past.read(&told, asked, head).unwrap();
            assert_eq!(proof.seen, gone(seq, Some(from)), "{seq}");
            assert_eq!(proof.unbridged, []);
            // One that is on no such line.
            let point = Point { time: 5, root: Hash([3; 32]), ..past.point(seq).signed.point };
            let other = Some(past.machine.signer.sign_point(point));
            assert_eq!(past.read(&told, asked, other), refused(10, UNBRIDGED), "{seq}");
        }
    }
    // One that is still there needs nothing.
    let told = past.told(1);
    let head = seen(&past, 11);
    assert_eq!(past.read(&told, 1, head).unwrap().1, Proof::default());
    // A server that goes back: nothing is behind the head that was seen.
    let mut back = told.without(&[10, 11, 12, 13]);
    back.ranges = vec![(4, 13)];
    let (listed, proof) = past.read(&back, 1, seen(&past, 11)).unwrap();
    assert_eq!((listed.last(), proof), (Some(&3), Proof::default()));
    let checked =
        dormouse_sync::history::check_anchor(seen(&past, 11).as_ref(), Some(past.point(3)), None);
    assert_eq!(checked, Err(Error::Rollback { seen: 11, shown: 3 }));
}

/// A history of a time when no bridges were made: it is read, and it is said so.
#[test]
fn an_old_history_without_bridges_is_read_with_a_note() {
    let mut past = Past::new(6, 5);
    past.expire(&[(2, 9)]);
    let mut told = past.told(1);
    told.bridges.clear();
    let (_, proof) = past.read(&told, 1, None).unwrap();
    assert_eq!(proof.unbridged, [(2, 9)]);
    let head = Some(past.point(6).signed);
    let (_, proof) = past.read(&told, 1, head).unwrap();
    assert_eq!(proof.seen, Some(SeenGone { seq: 6, from: None }));
}

/// What is asked names all that is missing.
#[test]
fn the_questions_reach_over_all_gaps() {
    let mut past = Past::new(7, 6);
    past.expire(&[(2, 3), (8, 12)]);
    let told = past.told(1);
    let trust = past.world.trust(&past.machine).unwrap();
    let mut points = Points::from(&trust, past.volume, 1).after(Some(past.point(9).signed));
    points.add(&told.points).unwrap();
    let volume = past.volume;
    let bridges = Message::Keep(Keep::GetBridges { volume, from: 1, to: 13 });
    assert_eq!(points.missing(), Some(((2, 12), bridges)));
    assert!(points.done(None).is_err(), "without a proof it is no history");
}
