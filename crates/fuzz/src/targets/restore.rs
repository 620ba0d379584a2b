//! A reader's end: a restore from a server whose answers are altered.
//!
//! The server is real, and so is the point. Whatever the answers become, no block is written
//! that is not the point's; and a restore that says it is done wrote all of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};

use dormouse_crypt::seal::Opener;
use dormouse_crypt::{Identity, hash, record};
use dormouse_format::extents::{Content, ExtentsWriter, Runs};
use dormouse_format::limits::{BLOCK_SIZE, CHUNK_BLOCKS_MAX};
use dormouse_format::message::{Base, Message};
use dormouse_format::point::{Point, StoredPoint};
use dormouse_format::record::Kind;
use dormouse_format::{Block, Hash, InstanceId, RecordId};
use dormouse_store::fuzzing::MapPage;
use dormouse_store::memory::MemDir;
use dormouse_store::{Options, VaultStore};
use dormouse_sync::fetch::{Action, Event, Fetch, Mode, Plan};
use dormouse_sync::history::Trust;
use dormouse_sync::leaf::LeafSet;

use crate::Target;
use crate::corpus;
use crate::input::Input;
use crate::targets::session::reader;
use crate::world::{VOLUME, World, block, world};

/// A restore.
pub const RESTORE: Target = Target {
    name: "restore",
    what: "a restore from a server whose answers are altered: no wrong block is written",
    run: |data| {
        run(data);
    },
    seeds,
    len_max: 2048,
};

const SIZE: u64 = 400 * BLOCK_SIZE as u64;

/// What is restored, and what it must become.
struct Source {
    store: Arc<VaultStore>,
    identity: Arc<Identity>,
    trust: Arc<Trust>,
    /// The checkpoint, and the delta point that builds on it.
    points: [StoredPoint; 2],
    /// The content of each: which block of all chunks' content stands where.
    content: [BTreeMap<Block, u8>; 2],
}

fn source() -> &'static Source {
    static SOURCE: OnceLock<Source> = OnceLock::new();
    SOURCE.get_or_init(Source::new)
}

/// Runs that give blocks of a chunk, with their true tags, to blocks from `start` on.
fn true_runs(w: &World, start: Block, chunk: usize, content: &mut BTreeMap<Block, u8>) -> Vec<u8> {
    let chunk = &w.chunks[chunk];
    let tags: Vec<_> = (0..chunk.count)
        .map(|i| {
            let at = start + u64::from(i);
            content.insert(at, i);
            w.secrets.tag(&VOLUME, at, &w.secrets.digest(&block(i)))
        })
        .collect();
    let mut out = ExtentsWriter::new();
    out.data(start, chunk.id, 0, &tags);
    out.take()
}

impl Source {
    fn new() -> Self {
        let w = world();
        let text = corpus::vectors("age_identity").remove(0);
        let identity: Identity = core::str::from_utf8(&text).unwrap().trim().parse().unwrap();
        let dirs = (Box::new(MemDir::new()), Box::new(MemDir::new()));
        let store = VaultStore::create(dirs.0, dirs.1, w.vault, 1, Options::default()).unwrap();
        w.bundle[..4].iter().for_each(|r| store.put(r, 1).unwrap());
        // Age draws its own randomness, so this record alone differs from run to run.
        let key = w.key.wrap(w.vault, &identity.recipient(), &w.writers[0], 1).unwrap();
        let writer = w.writers[0].writer_id();
        store.put(&record::plain(Kind::DataKey, writer, &key), 1).unwrap();
        store.create_volume(&w.volume, 1).unwrap();
        w.chunks.iter().for_each(|c| store.put(&c.record, 1).unwrap());
        let (points, content) = Self::commit(w, &store);
        let mut trust = Trust::new(w.authority.public());
        w.bundle[1..3].iter().for_each(|cert| trust.add_cert(cert).unwrap());
        let (store, identity, trust) = (Arc::new(store), Arc::new(identity), Arc::new(trust));
        Self { store, identity, trust, points, content }
    }

    fn commit(w: &World, store: &VaultStore) -> ([StoredPoint; 2], [BTreeMap<Block, u8>; 2]) {
        let signer = &w.writers[0];
        let instance = InstanceId([1; 16]);
        let g = store.open_write(&VOLUME, signer.writer_id(), instance, false, 2).unwrap();
        let mut first = BTreeMap::new();
        let runs = [true_runs(w, 10, 1, &mut first), true_runs(w, 300, 2, &mut first)];
        let mut page = MapPage::zero();
        let mut pending = store.begin(&VOLUME, g, Base::Checkpoint, SIZE).unwrap();
        for runs in &runs {
            page.apply(0, runs).unwrap();
            store.extents(&mut pending, runs, 3).unwrap();
        }
        let checkpoint = w.point(None, SIZE, w.root(SIZE, &page));
        store.commit(pending, &signer.sign_point(checkpoint), 3).unwrap();
        let mut second = first.clone();
        let runs = true_runs(w, 100, 0, &mut second);
        let mut pending = store.begin(&VOLUME, g, Base::Delta, SIZE).unwrap();
        store.extents(&mut pending, &runs, 4).unwrap();
        let delta = Point {
            checkpoint: 1,
            deltas: hash::delta(&checkpoint.root, SIZE, &runs),
            ..w.point(Some(&checkpoint), SIZE, checkpoint.root)
        };
        store.commit(pending, &signer.sign_point(delta), 4).unwrap();
        let points = [1, 2].map(|seq| store.point(&VOLUME, seq).unwrap());
        (points, [first, second])
    }
}

/// An altered answer; none if there is nothing that a codec would take.
fn altered(op: u8, honest: &Message, input: &mut Input<'_>) -> Option<Message> {
    match op {
        200..=209 => {
            let mut bytes = honest.encode().split_off(4);
            let at = usize::from(input.u16()) % bytes.len();
            bytes[at] ^= input.u8();
            bytes.truncate(bytes.len() - usize::from(input.u8() / 200));
            Message::decode(&bytes).ok()
        }
        210..=214 => Message::decode(input.blob()).ok(),
        215..=219 => {
            let mask = input.u64();
            let hashes = vec![Hash([input.u8() | 1; 32]); mask.count_ones() as usize];
            Some(Message::Node { mask, hashes })
        }
        220..=229 => Some(Message::Leaves { runs: input.blob().to_vec() }),
        230..=239 => {
            let kind = Kind::ALL[input.below(14)];
            let writer = world().writers[0].writer_id();
            Some(Message::Record { record: record::plain(kind, writer, input.blob()) })
        }
        240..=246 => {
            let chunk = &world().chunks[input.below(3)];
            Some(Message::Record { record: chunk.record.clone() })
        }
        247..=250 => Some(Message::Absent { id: RecordId([input.u8(); 16]) }),
        251..=253 => Some(other_hints(honest, input)),
        _ => Some(Message::Done),
    }
}

/// Leaves whose tags are right, under another chunk and index: hints are under no hash.
fn other_hints(honest: &Message, input: &mut Input<'_>) -> Message {
    let Message::Leaves { runs } = honest else { return honest.clone() };
    let mut out = ExtentsWriter::new();
    for run in Runs::new(runs).flatten() {
        let Content::Data { first, tags, .. } = run.content else { continue };
        let tags: Vec<_> = tags.iter().collect();
        let chunk = &world().chunks[input.below(3)];
        let room = CHUNK_BLOCKS_MAX - tags.len();
        let first = first.wrapping_add(input.u8()).min(room as u8);
        out.data(run.start, chunk.id, first, &tags);
    }
    Message::Leaves { runs: out.take() }
}

/// Whether the restore came to its end.
pub fn run(data: &[u8]) -> bool {
    let source = source();
    let mut input = Input::new(data);
    let which = input.below(2);
    let (point, checkpoint) = (source.points[which], source.points[0]);
    let mode = if input.flag() { Mode::Overwrite } else { Mode::Fresh };
    let keep_going = input.flag();
    let plan = Plan { point, checkpoint, mode, local: LeafSet::new(0), keep_going };
    let mut fetch = Fetch::new(plan, source.trust.clone(), source.identity.clone()).unwrap();
    let mut written = BTreeMap::new();
    let ended = steps(source, &mut fetch, &mut input, &mut written);
    let expected = &source.content[which];
    for (at, bytes) in &written {
        let there = expected.get(at).map(|seed| block(*seed));
        assert_eq!(Some(bytes), there.as_ref(), "block {at} is not the point's");
    }
    if ended && fetch.faults().is_empty() {
        assert_eq!(written.len(), expected.len(), "blocks are missing at the end");
    }
    ended
}

fn steps(
    source: &Source,
    fetch: &mut Fetch,
    input: &mut Input<'_>,
    written: &mut BTreeMap<Block, Vec<u8>>,
) -> bool {
    let w = world();
    let mut session = reader(source.store.clone());
    let mut opener = Opener::new().unwrap();
    let (mut actions, mut todo, mut inbox) = (Vec::new(), VecDeque::new(), VecDeque::new());
    if fetch.start(&mut actions).is_err() {
        return false;
    }
    for _ in 0..2000 {
        todo.extend(actions.drain(..));
        let event = match todo.pop_front() {
            Some(Action::Send(question)) => {
                session.handle(9, question, &mut |answer| inbox.push_back(answer));
                continue;
            }
            Some(Action::Open(job)) => {
                let mut write = |at: u64, bytes: &[u8]| {
                    let blocks = (at / BLOCK_SIZE as u64..).zip(bytes.chunks(BLOCK_SIZE));
                    written.extend(blocks.map(|(at, bytes)| (at, bytes.to_vec())));
                    Ok::<(), ()>(())
                };
                match job.run((&source.trust, &w.secrets, &VOLUME), &mut opener, &mut write) {
                    Ok(_) => Event::Opened { blocks: job.blocks },
                    Err(error) => Event::Broken { job, error },
                }
            }
            Some(Action::Zero { start, count }) => {
                let gone = written.range(start..start + count).next().is_some();
                assert!(!gone, "a block is made zero that was written");
                continue;
            }
            Some(Action::ReadLocal { .. }) => panic!("nothing is there to be read"),
            Some(Action::Done) => return true,
            None => {
                let Some(honest) = inbox.pop_front() else { return false };
                let op = input.u8();
                if op == 199 {
                    inbox.push_front(honest.clone());
                }
                let answer = if op < 200 { Some(honest) } else { altered(op, &honest, input) };
                let Some(answer) = answer else { return false };
                Event::Message(answer)
            }
        };
        if fetch.step(event, &mut actions).is_err() {
            return false;
        }
    }
    false
}

fn seeds() -> Vec<Vec<u8>> {
    let mut out = vec![vec![0], vec![1], vec![0, 1, 1], vec![1, 1, 0]];
    for at in 0..8 {
        for op in [199, 200, 210, 215, 220, 230, 240, 247, 251, 255] {
            let altered = [op, 9, 0, 3, 0, 1, 2, 0, 5, 5, 1, 1];
            out.push([&[0, 0, 0][..], &vec![0; at], &[op, 2, 7, 2, 0]].concat());
            out.push([&[1, 0, 1][..], &vec![0; at], &altered].concat());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else nothing would be judged.
    #[test]
    fn honest_answers_bring_everything_back() {
        assert!(seeds().iter().take(4).all(|seed| run(seed)));
    }
}
