//! What a peer says to the NBD server: options, then requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dormouse_device::memory::MemoryDevice;
use dormouse_device::nbd::answer::Answer;
use dormouse_device::nbd::buffer::Out;
use dormouse_device::nbd::handshake::{Chosen, Handshake, Step, Tls};
use dormouse_device::nbd::protocol::{
    CHUNK_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, OPTIONS_MAX, REQUEST_LEN, REQUEST_MAGIC, Reader,
    SIMPLE_MAGIC, chunk, option,
};
use dormouse_device::nbd::request::{Agreed, Op, Request};
use dormouse_device::nbd::{Export, Exports};
use dormouse_device::{BlockDevice, Changes, Extent, Geometry, Result, Write, Zero};

use crate::Target;
use crate::input::Input;

/// A whole conversation.
pub const NBD: Target = Target {
    name: "nbd",
    what: "options and requests of an NBD client; the replies are read back",
    run: talk,
    seeds,
    len_max: 4096,
};

/// Bytes of each disk.
pub(super) const SIZE: u64 = 200 << 10;

/// A disk that insists on the promises that it was made.
pub(super) struct Strict {
    bytes: MemoryDevice,
    /// Whether something was written since the last flush.
    dirty: AtomicBool,
}

impl Strict {
    fn new(read_only: bool) -> Self {
        let mut bytes = vec![3; SIZE as usize];
        bytes[80 << 10..120 << 10].fill(0);
        Self { bytes: MemoryDevice::new(bytes, read_only), dirty: AtomicBool::new(false) }
    }

    pub(super) fn content(&self) -> Vec<u8> {
        self.bytes.content()
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::SeqCst)
    }

    fn changes(&self, at: u64, len: u64) {
        within(at, len);
        self.dirty.store(true, Ordering::SeqCst);
    }
}

fn within(at: u64, len: u64) {
    assert!(len > 0 && at.checked_add(len).is_some_and(|end| end <= SIZE), "{at}+{len}");
}

impl BlockDevice for Strict {
    fn geometry(&self) -> Geometry {
        self.bytes.geometry()
    }
    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        within(at, out.len() as u64);
        self.bytes.read(at, out)
    }
    /// Half of it, so that a server hands the other half over to another thread.
    fn ready(&self, at: u64, len: u64) -> bool {
        within(at, len);
        at % (8 << 10) < 4 << 10
    }
    fn prefetch(&self, at: u64, len: u64) -> Result<()> {
        within(at, len);
        Ok(())
    }
    fn write(&self, at: u64, bytes: &[u8], how: Write) -> Result<()> {
        self.changes(at, bytes.len() as u64);
        self.bytes.write(at, bytes, how)
    }
    fn zero(&self, at: u64, len: u64, how: Zero) -> Result<()> {
        self.changes(at, len);
        self.bytes.zero(at, len, how)
    }
    fn trim(&self, at: u64, len: u64) -> Result<()> {
        self.changes(at, len);
        self.bytes.trim(at, len)
    }
    fn flush(&self) -> Result<()> {
        self.dirty.store(false, Ordering::SeqCst);
        Ok(())
    }
    fn extents(&self, at: u64, len: u64, most: usize) -> Result<Vec<Extent>> {
        within(at, len);
        self.bytes.extents(at, len, most)
    }
    fn changes_since(&self, _: &str) -> Result<Arc<dyn Changes>> {
        Ok(Arc::new(Everything))
    }
}

struct Everything;

impl Changes for Everything {
    fn parts(&self, at: u64, len: u64, _: usize) -> Result<Vec<dormouse_device::Change>> {
        within(at, len);
        Ok(vec![dormouse_device::Change { len, changed: true }])
    }
}

/// A disk that is written, and one that is not.
pub(super) fn disks() -> [Arc<Strict>; 2] {
    [Arc::new(Strict::new(false)), Arc::new(Strict::new(true))]
}

/// These, as 'a' and 'b'.
pub(super) fn exports(disks: &[Arc<Strict>; 2]) -> Exports {
    let export = |(name, device): (&str, &Arc<Strict>)| Export {
        name: name.to_owned(),
        description: "d".to_owned(),
        device: Arc::clone(device) as _,
    };
    Exports::new(["a", "b"].into_iter().zip(disks).map(export).collect()).unwrap()
}

fn talk(data: &[u8]) {
    let mut input = Input::new(data);
    let tls = if input.u8() & 1 == 1 { Tls::Required } else { Tls::Absent };
    let mut rest = input.rest();
    let mut handshake = Handshake::new(exports(&disks()), tls);
    for _ in 0..=OPTIONS_MAX + 1 {
        let mut out = Vec::new();
        let Ok(Some((taken, step))) = handshake.step(rest, &mut out) else { return };
        assert!(taken > 0 && taken <= rest.len());
        rest = &rest[taken..];
        match step {
            Step::More => option_replies(&out),
            Step::StartTls => {
                option_replies(&out);
                assert!(tls == Tls::Required);
                handshake.secured();
            }
            Step::Begin(chosen) => return requests(&chosen, rest),
            Step::End => return,
        }
    }
    panic!("options without end");
}

/// Each is whole.
fn option_replies(out: &[u8]) {
    let mut rest = Reader(out);
    while !rest.0.is_empty() {
        assert_eq!(rest.u64(), Some(OPTION_REPLY_MAGIC));
        rest.u32().unwrap();
        rest.u32().unwrap();
        rest.string().unwrap();
    }
}

fn requests(chosen: &Chosen, mut rest: &[u8]) {
    let agreed = Agreed { structured: chosen.structured, contexts: !chosen.contexts.is_empty() };
    while let Some(head) = rest.first_chunk::<REQUEST_LEN>() {
        let Ok(request) = Request::decode(head) else { return };
        let Some(payload) = rest.get(REQUEST_LEN..REQUEST_LEN + request.payload()) else { return };
        rest = &rest[REQUEST_LEN + payload.len()..];
        if request.is_end() {
            return;
        }
        let answer = Answer { chosen, cookie: request.cookie };
        let mut out = Out::default();
        let checked = request.check(&chosen.export.device.geometry(), agreed);
        match checked {
            Ok(op) => answer.perform(op, payload, &mut out, &mut |_| Ok::<(), ()>(())).unwrap(),
            Err(refused) => answer.error(refused.0, refused.1, None, &mut out),
        }
        reply(&request, checked.ok(), chosen.structured, out.filled());
    }
}

/// One reply, whole; a read brings every byte once, in order.
fn reply(request: &Request, op: Option<Op>, structured: bool, out: &[u8]) {
    let mut rest = Reader(out);
    let magic = rest.u32().unwrap();
    if magic == SIMPLE_MAGIC {
        let error = rest.u32().unwrap();
        assert_eq!(rest.u64(), Some(request.cookie));
        let data = match op {
            Some(Op::Read { len, .. }) if error == 0 => len as usize,
            _ => 0,
        };
        assert!(rest.0.len() == data && (data == 0 || !structured));
        return;
    }
    assert!(structured);
    rest = Reader(out);
    let mut at = request.at;
    loop {
        assert_eq!(rest.u32(), Some(CHUNK_MAGIC));
        let (flags, kind) = (rest.u16().unwrap(), rest.u16().unwrap());
        assert_eq!(rest.u64(), Some(request.cookie));
        let mut payload = Reader(rest.string().unwrap());
        match kind {
            chunk::OFFSET_DATA => {
                assert_eq!(payload.u64(), Some(at));
                at += payload.0.len() as u64;
            }
            chunk::OFFSET_HOLE => {
                assert_eq!(payload.u64(), Some(at));
                at += u64::from(payload.u32().unwrap());
            }
            chunk::BLOCK_STATUS => {
                payload.u32().unwrap();
                let mut told = 0;
                while let Some(len) = payload.u32() {
                    payload.u32().unwrap();
                    assert!(len > 0);
                    told += u64::from(len);
                }
                assert!(told > 0 && told <= request.len.into());
            }
            chunk::NONE => assert!(payload.0.is_empty()),
            _ => assert!(kind == chunk::ERROR || kind == chunk::ERROR_OFFSET),
        }
        if flags & chunk::DONE != 0 {
            break;
        }
    }
    assert!(rest.0.is_empty(), "nothing follows the last chunk");
    if matches!(op, Some(Op::Read { .. })) {
        assert_eq!(at, request.at + u64::from(request.len));
    }
}

/// An option as a client sends it.
pub(super) fn option_of(kind: u32, data: &[u8]) -> Vec<u8> {
    let len = data.len() as u32;
    [&OPTION_MAGIC.to_be_bytes()[..], &kind.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

fn request_of(kind: u16, flags: u16, at: u64, len: u32) -> Vec<u8> {
    let (magic, cookie) = (REQUEST_MAGIC.to_be_bytes(), 7u64.to_be_bytes());
    let (flags, kind) = (flags.to_be_bytes(), kind.to_be_bytes());
    let (at, len) = (at.to_be_bytes(), len.to_be_bytes());
    [&magic[..], &flags, &kind, &cookie, &at, &len].concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let flags = 3u32.to_be_bytes();
    let go = |name: &[u8]| [&(name.len() as u32).to_be_bytes()[..], name, &[0, 1, 0, 3]].concat();
    let queries = |name: &[u8], all: &[&str]| {
        let mut data = [&(name.len() as u32).to_be_bytes()[..], name].concat();
        data.extend((all.len() as u32).to_be_bytes());
        all.iter().for_each(|q| {
            data.extend((q.len() as u32).to_be_bytes());
            data.extend(q.as_bytes());
        });
        data
    };
    let begin = |name: &[u8]| {
        let contexts = queries(name, &["base:allocation", "dormouse:changed=5"]);
        [
            &[0][..],
            &flags,
            &option_of(option::STRUCTURED_REPLY, &[]),
            &option_of(option::SET_META_CONTEXT, &contexts),
            &option_of(option::GO, &go(name)),
        ]
        .concat()
    };
    let mut out = vec![
        [&[0][..], &flags, &option_of(option::LIST, &[]), &option_of(option::ABORT, &[])].concat(),
        [&[1][..], &flags, &option_of(option::LIST, &[]), &option_of(option::STARTTLS, &[])]
            .concat(),
        [&[0][..], &flags, &option_of(option::INFO, &go(b"b")), &option_of(99, b"x")].concat(),
        [&[0][..], &flags, &option_of(option::LIST_META_CONTEXT, &queries(b"a", &[]))].concat(),
        [&[0][..], &flags, &option_of(option::EXPORT_NAME, b"a"), &request_of(0, 0, 1, 600)]
            .concat(),
    ];
    for name in [&b"a"[..], b"b"] {
        let mut all = begin(name);
        for (kind, bits) in (0..9u16).flat_map(|k| [(k, 0), (k, 1), (k, 4), (k, 8), (k, 18)]) {
            let len = if kind == 1 { 5 } else { 70_000 };
            let at = if kind == 3 { 0 } else { 4000 };
            let request = request_of(kind, bits, at, if kind == 3 { 0 } else { len });
            out.push([&begin(name)[..], &request, b"hello"].concat());
            if kind != 2 && all.len() < 3500 {
                all.extend(request);
                all.extend(if kind == 1 { &b"hello"[..] } else { b"" });
            }
        }
        out.push(all);
        out.push(
            [&begin(name)[..], &request_of(0, 0, u64::MAX, 2), &request_of(7, 0, SIZE, 1)].concat(),
        );
    }
    out
}
