//! Where segments end, and what their entries say of what is durable.

use std::io;
use std::sync::{Arc, Mutex};

use dormouse_crypt::record;
use dormouse_format::record::HEADER_LEN;
use dormouse_format::segment::{self, TRAILER_LEN, Trailer};
use dormouse_store::Dir;

use crate::hooked::{Hook, Hooked};
use crate::kit::*;

/// Entries of a segment that is whole: where each begins, its bytes, and its `durable`.
fn entries(bytes: &[u8]) -> Vec<(usize, usize, u64)> {
    let mut found = Vec::new();
    let mut at = segment::HEADER_LEN;
    while let Some(head) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let Ok(header) = record::check_header(head) else { break };
        let len = header.record_len() + TRAILER_LEN;
        let trailer = bytes[at..at + len].last_chunk().unwrap();
        found.push((at, len, Trailer::decode(trailer).unwrap().durable));
        at += len;
    }
    found
}

/// A record that fills a segment to the byte belongs to it; one byte more, and it begins
/// the next.
#[test]
fn a_segment_takes_what_fits() {
    const SIZE: usize = 4096;
    for more in [0, 1, TRAILER_LEN - 1, TRAILER_LEN] {
        let kit = Kit::new(SIZE as u64, 1000);
        let store = kit.create();
        let name = kit.segments.list().unwrap().pop().unwrap();
        let used = kit.segments.get(&name).unwrap().len();
        let len = SIZE - used - HEADER_LEN - TRAILER_LEN + more;
        let chunk = chunk(chunk_of(1), kit.writer(0), kit.key(0), 64, len);
        store.put(&chunk, 1).unwrap();
        let names = kit.segments.list().unwrap();
        assert_eq!(names.len(), if more == 0 { 1 } else { 2 }, "{more} bytes too many");
        let all = entries(&kit.segments.get(names.last().unwrap()).unwrap());
        let (at, len, _) = *all.last().unwrap();
        assert_eq!(len, chunk.len() + TRAILER_LEN);
        assert_eq!(at, if more == 0 { used } else { segment::HEADER_LEN });
    }
}

type Once = Box<dyn FnOnce() + Send>;

/// Does something once, within a sync.
#[derive(Default)]
struct Slow(Mutex<Option<Once>>);

impl Hook for Slow {
    fn sync(&self) -> io::Result<()> {
        let hook = self.0.lock().unwrap().take();
        hook.into_iter().for_each(|hook| hook());
        Ok(())
    }
}

/// What comes while a sync is under way is not made durable by it.
#[test]
fn what_is_put_during_a_sync_is_not_called_durable() {
    let (kit, hook) = (Kit::new(1 << 20, 1000), Arc::new(Slow::default()));
    let dir = Hooked(kit.segments.clone(), Arc::clone(&hook));
    let store = Arc::new(kit.create_on(Box::new(dir), Box::new(kit.index.clone())));
    store.put(&kit.chunk(0, 1), 1).unwrap();
    let (during, other) = (kit.chunk(0, 2), Arc::clone(&store));
    *hook.0.lock().unwrap() = Some(Box::new(move || other.put(&during, 1).unwrap()));
    store.barrier().unwrap();
    assert!(hook.0.lock().unwrap().is_none(), "something was put during the sync");
    store.put(&kit.chunk(0, 3), 1).unwrap();
    let name = kit.segments.list().unwrap().pop().unwrap();
    let all = entries(&kit.segments.get(&name).unwrap());
    let [.., during, after] = all[..] else { panic!("{all:?}") };
    assert_eq!(after.2, during.0 as u64, "durable is what lay before the sync began");
    store.barrier().unwrap();
    store.put(&kit.chunk(0, 4), 1).unwrap();
    let all = entries(&kit.segments.get(&name).unwrap());
    assert_eq!(all.last().unwrap().2, (after.0 + after.1) as u64);
}
