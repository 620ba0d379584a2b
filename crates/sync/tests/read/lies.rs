//! A server that lies about one thing: who needs it gets an error, nobody a wrong byte, and
//! others go on.

use dormouse_crypt::record;
use dormouse_format::extents::{Content, ExtentsWriter, Runs};
use dormouse_format::limits::{BLOCK_SIZE, LEAF_BLOCKS, PAGE_BLOCKS};
use dormouse_format::message::{Message, Refusal};
use dormouse_format::record::{Kind, split};
use dormouse_format::{ChunkId, RecordId, Tag, WriterId};
use dormouse_sim::reading::Reading;
use dormouse_sim::wire::Lied;
use dormouse_sim::{Disk, Lcg, Liar, World, noise};
use dormouse_sync::error::{Error, Result};
use dormouse_sync::read::{Limits, Priority};

use super::model::{Past, assert_got, assert_right, turn};

/// Four pages, the second of which is empty; a checkpoint, two deltas, a checkpoint of them.
fn past(seed: u64) -> Past {
    let mut world = World::new(seed);
    let machine = world.machine();
    let volume = world.volume(&machine, "disk");
    let mut random = Lcg(seed);
    let mut model = Disk::new(4 * PAGE_BLOCKS * BLOCK_SIZE as u64);
    for page in [0, 2, 3] {
        for leaf in 0..3 {
            let first = page * PAGE_BLOCKS + leaf * LEAF_BLOCKS;
            (first..first + 20).for_each(|b| model.write(b, noise(&mut random)));
        }
    }
    world.copy(&machine, volume, &model).unwrap();
    let mut models = vec![model.clone()];
    for changed in [[3, 4, 5], [5, 6, 2 * PAGE_BLOCKS + 3]] {
        changed.iter().for_each(|b| model.write(*b, noise(&mut random)));
        world.copy_changes(&machine, volume, &model, &changed).unwrap();
        models.push(model.clone());
    }
    world.checkpoint(&machine, volume).unwrap();
    models.push(model);
    let points = world.points(&machine, volume).unwrap();
    Past { world, machine, volume, models, points }
}

/// Where the lie is about (page 0, leaf 0), another leaf of that page, and another page.
const PLACES: [u64; 3] = [0, LEAF_BLOCKS, 3 * PAGE_BLOCKS];

fn read(reading: &mut Reading, place: u64) -> u64 {
    reading.read(place..place + 30, Priority::Demand)
}

/// Reads the three places of a point from a liar. What came of each; none if it was not
/// answered because the link had to end. After that, from an honest server, all is right.
fn lied(past: &mut Past, at: usize, mut liar: Liar) -> [Option<Result<()>>; 3] {
    let model = past.models[at].clone();
    let mut reading = past.reading(at, Limits::default());
    let ids = PLACES.map(|place| read(&mut reading, place));
    let mut wire = past.link();
    // One answer that ends the link says nothing about the rest.
    let _ = reading.turn(&mut Lied { wire: &mut wire, liar: &mut liar }, usize::MAX);
    let done = ids.map(|id| reading.got[&id].done.clone());
    ids.iter().for_each(|id| assert_right(&reading, *id, &model));
    let mut wire = past.link();
    reading.restart(&past.points[at]).unwrap();
    turn(&mut reading, &mut wire);
    for ((id, done), place) in ids.iter().zip(&done).zip(PLACES) {
        match done {
            Some(Err(_)) => {}
            _ => assert_got(&reading, *id, &model, place..place + 30),
        }
    }
    // A lie is not kept; what the point itself does not hold is.
    if at != 2 {
        for place in PLACES {
            let id = read(&mut reading, place);
            turn(&mut reading, &mut wire);
            assert_got(&reading, id, &model, place..place + 30);
        }
    }
    done
}

fn ask(f: impl FnMut(&mut Message) + 'static) -> Liar {
    Liar { ask: Some(Box::new(f)), answer: None }
}

fn answer(f: impl FnMut(&mut Message) + 'static) -> Liar {
    Liar { ask: None, answer: Some(Box::new(f)) }
}

fn map_error(what: &'static str) -> Option<Result<()>> {
    Some(Err(Error::Map { seq: 4, what }))
}

const NODE: Option<&str> = Some("a node's hash");
const LEAF: &str = "a leaf's hash";
const FINE: Option<Result<()>> = Some(Ok(()));

#[test]
fn without_a_lie_all_is_read() {
    let mut past = past(1);
    for at in 0..4 {
        assert_eq!(lied(&mut past, at, Liar::default()), [FINE, FINE, FINE]);
    }
}

#[test]
fn a_node_of_an_older_map_fails_what_lies_below_it() {
    let mut past = past(2);
    let all = map_error(NODE.unwrap());
    let top = ask(|m| match m {
        Message::GetNode { seq, place, .. } if place.level == 2 => *seq = 1,
        _ => {}
    });
    assert_eq!(lied(&mut past, 3, top), [all.clone(), all.clone(), all.clone()]);
    let page = ask(|m| match m {
        Message::GetNode { seq, place, .. } if place.level == 1 && place.index == 0 => *seq = 1,
        _ => {}
    });
    assert_eq!(lied(&mut past, 3, page), [all.clone(), all.clone(), FINE]);
    let other = ask(|m| match m {
        Message::GetNode { place, .. } if place.level == 1 && place.index == 3 => place.index = 2,
        _ => {}
    });
    assert_eq!(lied(&mut past, 3, other), [FINE, FINE, all.clone()]);
    let empty = answer(|m| {
        if let Message::Node { mask, hashes } = m {
            (*mask, *hashes) = (0, Vec::new());
        }
    });
    assert_eq!(lied(&mut past, 3, empty), [all.clone(), all.clone(), all]);
}

/// Writes runs again with chunk, index and tags altered, of the leaf at this block.
fn altered(
    runs: &[u8],
    first: u64,
    mut f: impl FnMut(&mut ChunkId, &mut u8, &mut [Tag]),
) -> Vec<u8> {
    let mut out = ExtentsWriter::new();
    for run in Runs::new(runs) {
        let run = run.unwrap();
        let here = run.start / LEAF_BLOCKS == first / LEAF_BLOCKS;
        match run.content {
            Content::Zero => out.zero(run.start, run.count),
            Content::Tags(_) => panic!("hints were asked for"),
            Content::Data { mut chunk, mut first, tags } => {
                let mut tags: Vec<Tag> = tags.iter().collect();
                if here {
                    f(&mut chunk, &mut first, &mut tags);
                }
                out.data(run.start, chunk, first, &tags);
            }
        }
    }
    out.take()
}

#[test]
fn one_bad_leaf_spoils_no_other_of_its_page() {
    let mut past = past(3);
    for place in [0, 1] {
        let lie = answer(move |m| {
            if let Message::Leaves { runs } = m {
                *runs = altered(runs, PLACES[place], |_, _, tags| tags[0].0[0] ^= 1);
            }
        });
        let mut right = [FINE, FINE, FINE];
        right[place] = map_error(LEAF);
        assert_eq!(lied(&mut past, 3, lie), right);
    }
    let lie = answer(|m| {
        if let Message::Leaves { runs } = m {
            runs.clear();
        }
    });
    let all = map_error(LEAF);
    assert_eq!(lied(&mut past, 3, lie), [all.clone(), all.clone(), all]);
    let lie = ask(|m| match m {
        Message::GetLeaves { seq, page, .. } if *page == 0 => *seq = 1,
        _ => {}
    });
    assert_eq!(lied(&mut past, 3, lie), [map_error(LEAF), FINE, FINE]);
}

#[track_caller]
fn is_chunk_error(done: &Option<Result<()>>) {
    assert!(matches!(done, Some(Err(Error::Chunk { .. }))), "{done:?}");
}

/// Hints are under no hash: the blocks that they lead to are proved by their tags.
#[test]
fn a_false_hint_fails_those_who_follow_it() {
    let mut past = past(4);
    // Where the chunk of another place is.
    for shift in [false, true] {
        let mut other: Option<ChunkId> = None;
        let lie = answer(move |m| {
            if let Message::Leaves { runs } = m {
                *runs = altered(runs, 0, |chunk, first, tags| {
                    let own = *chunk;
                    if !shift {
                        *chunk = other.unwrap_or(RecordId([9; 16]));
                    } else if *first == 0 && tags.len() < 64 {
                        *first = 1;
                    } else {
                        *first = first.saturating_sub(1);
                    }
                    other = Some(own);
                });
            }
        });
        let done = lied(&mut past, 3, lie);
        is_chunk_error(&done[0]);
        assert_eq!(done[1..], [FINE, FINE]);
    }
}

#[test]
fn a_bad_or_foreign_record_fails_those_who_want_its_chunk() {
    let mut past = past(5);
    // The first chunk that is asked for lies at the first place.
    let is_chunk = |m: &Message| matches!(m, Message::Record { record } if split(record).unwrap().0.kind == Kind::Chunk);
    let lies: [fn(&mut Message, &[u8]); 4] = [
        |m, _| {
            let Message::Record { record } = m else { return };
            *record.last_mut().unwrap() ^= 1;
        },
        |m, _| {
            let Message::Record { record } = m else { return };
            let id = split(record).unwrap().0.id;
            *m = Message::Absent { id };
        },
        |m, other| {
            let Message::Record { record } = m else { return };
            *record = other.to_vec();
        },
        |m, _| {
            let Message::Record { record } = m else { return };
            record.truncate(20);
        },
    ];
    let model = past.models[3].clone();
    let digest = past.machine.secrets.digest(&model.blocks[&0]);
    let tag = past.machine.secrets.tag(&past.volume, 0, &digest);
    for lie in lies {
        let mut bad: Option<ChunkId> = None;
        let mut other = Vec::new();
        let lie = answer(move |m| {
            if let Message::Leaves { runs } = m {
                altered(runs, 0, |chunk, _, tags| {
                    if tags.contains(&tag) {
                        bad = Some(*chunk);
                    }
                });
            }
            if is_chunk(m) {
                let Message::Record { record } = &*m else { return };
                let id = split(record).unwrap().0.id;
                if Some(id) == bad {
                    lie(m, &other);
                } else {
                    other.clone_from(record);
                }
            }
        });
        let done = lied(&mut past, 3, lie);
        let failed = matches!(
            done[0],
            Some(Err(Error::Chunk { .. } | Error::Protocol { .. } | Error::Crypt(_)))
        );
        assert!(failed, "{done:?}");
        assert_eq!(done[1..], [FINE, FINE]);
    }
}

/// Deltas belong to all of a point: a lie about them fails all that is read of it.
#[test]
fn altered_or_missing_deltas_open_nothing() {
    let mut past = past(6);
    let mut seen = 0;
    let lies = [
        ask(|m| {
            if let Message::GetDeltas { seq, .. } = m {
                *seq -= 1;
            }
        }),
        answer(|m| match m {
            Message::Record { record } if split(record).unwrap().0.kind == Kind::Delta => {
                let (header, body) = split(record).unwrap();
                let (prefix, runs) = dormouse_format::delta::decode(body).unwrap();
                let runs = altered(runs, 0, |_, _, tags| tags[0].0[0] ^= 1);
                let body = dormouse_format::delta::encode(&prefix, &runs);
                *record = record::plain(header.kind, header.writer, &body);
            }
            _ => {}
        }),
        answer(move |m| match m {
            Message::Record { record } if split(record).unwrap().0.kind == Kind::Delta => {
                seen += 1;
                if seen == 1 {
                    *m = Message::Done;
                }
            }
            _ => {}
        }),
    ];
    for lie in lies {
        let done = lied(&mut past, 2, lie);
        let what = "the running hash of its deltas";
        assert_eq!(done[0], Some(Err(Error::Map { seq: 3, what })), "{done:?}");
        assert!(done.iter().all(|d| matches!(d, Some(Err(_)))), "{done:?}");
    }
}

#[test]
fn a_bad_data_keys_record_fails_what_it_seals_and_is_asked_for_again() {
    let mut past = past(7);
    let lies: [fn(&mut Vec<u8>); 4] = [
        |record| record.truncate(20),
        |record| record[130] ^= 1,
        |record| *record = record::plain(Kind::DataKey, WriterId::ZERO, &[1, 2, 3]),
        |record| *record = record::plain(Kind::Cert, WriterId::ZERO, &[1, 2, 3]),
    ];
    for lie in lies {
        let lie = answer(move |m| match m {
            Message::Record { record } if split(record).unwrap().0.kind == Kind::DataKey => {
                lie(record);
            }
            _ => {}
        });
        lied(&mut past, 0, lie).iter().for_each(is_chunk_error);
    }
}

/// A refusal about one thing, and a refusal to go on.
#[test]
fn what_is_refused_fails_or_waits_for_another_link() {
    let mut past = past(8);
    let refuse = |refusal: Refusal| {
        let mut page = None;
        // The first answer about leaves is that about page 0.
        answer(move |m| {
            if matches!(m, Message::Leaves { .. }) && page.replace(0).is_none() {
                *m = Message::Error { refusal, text: "no".into() };
            }
        })
    };
    let Some(Err(Error::Refused { refusal, .. })) =
        &lied(&mut past, 0, one_leaf(Refusal::NotFound))[0]
    else {
        panic!("not refused")
    };
    assert_eq!(*refusal, Refusal::NotFound);
    // Of several leaves each is asked for alone: nothing is lost.
    assert_eq!(lied(&mut past, 0, refuse(Refusal::NotFound)), [FINE, FINE, FINE]);
    for refusal in [Refusal::Stopping, Refusal::Revoked, Refusal::Internal] {
        // It is asked again on the next link, where it is answered: `lied` looks.
        assert!(lied(&mut past, 0, refuse(refusal)).iter().all(Option::is_none));
    }
    // An answer that fits no question ends the link, and fails who asked: no liar can keep
    // somebody asking for ever.
    let lie = answer(|m| {
        if let Message::Node { .. } = m {
            *m = Message::Durable;
        }
    });
    let what = "an answer that does not fit the question";
    let failed = Some(Err(Error::Protocol { what }));
    assert_eq!(lied(&mut past, 0, lie), [failed.clone(), failed.clone(), failed]);
}

/// Refuses leaf 0 of page 0, whenever it is asked for.
fn one_leaf(refusal: Refusal) -> Liar {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;
    let asked: Rc<RefCell<VecDeque<bool>>> = Rc::default();
    let heard = asked.clone();
    Liar {
        ask: Some(Box::new(move |m| {
            if let Message::GetLeaves { page, mask, .. } = m {
                heard.borrow_mut().push_back(*page == 0 && *mask & 1 == 1);
            }
        })),
        answer: Some(Box::new(move |m| {
            if let Message::Leaves { .. } = m
                && asked.borrow_mut().pop_front() == Some(true)
            {
                *m = Message::Error { refusal, text: "no".into() };
            }
        })),
    }
}
