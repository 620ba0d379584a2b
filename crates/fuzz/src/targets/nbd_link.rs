//! A whole connection to the NBD server: its threads, buffers and pool, on a real socket.
//!
//! The same options and requests go to the parts without I/O, one after the other: what the server
//! sends must be that. One request at a time it must be the same bytes, and leave the same disk; many
//! at a time, each reply once, with the same verdict, and the same bytes if nothing was written.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use dormouse_device::nbd::answer::Answer;
use dormouse_device::nbd::buffer::Out;
use dormouse_device::nbd::handshake::{Chosen, Handshake, Step, Tls, hello};
use dormouse_device::nbd::protocol::{
    CHUNK_LEN, CHUNK_MAGIC, REQUEST_LEN, REQUEST_MAGIC, Reader, SIMPLE_LEN, SIMPLE_MAGIC, chunk,
    command, option,
};
use dormouse_device::nbd::request::{Agreed, Request};
use dormouse_device::nbd::{Server, Settings};

use super::nbd::{Strict, disks, exports, option_of};
use crate::Target;
use crate::input::Input;

/// A connection.
pub const LINK: Target = Target {
    name: "nbd-link",
    what: "a connection to the NBD server on a socket, beside its parts without I/O",
    run: talk,
    seeds,
    len_max: 1 << 10,
};

const OPTIONS_MAX: usize = 12;
const REQUESTS_MAX: usize = 40;
/// The longest that a reply may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a client says.
#[derive(Default)]
struct Talk {
    /// One request at a time.
    in_turn: bool,
    /// Flags and options.
    options: Vec<u8>,
    requests: Vec<Vec<u8>>,
    /// What follows the requests: no request.
    rest: Vec<u8>,
    /// Into pieces of so many bytes it is cut.
    piece: usize,
}

impl Talk {
    fn decode(input: &mut Input<'_>) -> Self {
        let how = input.u8();
        let piece = if how & 2 == 0 { usize::MAX } else { 1 + usize::from(input.u8()) };
        let mut talk = Self { in_turn: how & 1 == 1, piece, ..Self::default() };
        talk.options.extend(u32::from(how >> 6).to_be_bytes());
        for _ in 0..input.below(OPTIONS_MAX) {
            talk.options.extend(an_option(input));
        }
        for cookie in 0..input.below(REQUESTS_MAX) {
            talk.requests.push(a_request(cookie as u64, input));
        }
        talk.rest = input.rest().to_vec();
        talk
    }

    /// Whether the requests that were answered are these, and not other bytes that look like some.
    fn is_as_it_seems(&self, expected: &Expected) -> bool {
        let asked = expected.asked.len();
        let same = |(request, asked): (&Vec<u8>, &Request)| {
            let head = request.first_chunk::<REQUEST_LEN>().unwrap();
            Request::decode(head).as_ref() == Ok(asked)
        };
        asked > 0
            && asked <= self.requests.len()
            && self.requests.iter().zip(&expected.asked).all(same)
    }
}

fn an_option(input: &mut Input<'_>) -> Vec<u8> {
    let name = if input.flag() { &b"a"[..] } else { b"b" };
    let named = |after: &[u8]| [&1u32.to_be_bytes()[..], name, after].concat();
    let query = |text: &[u8]| [&(text.len() as u32).to_be_bytes()[..], text].concat();
    let one = named(&1u32.to_be_bytes());
    match input.below(12) {
        0 | 1 => option_of(option::STRUCTURED_REPLY, &[]),
        2 => option_of(option::SET_META_CONTEXT, &[one, query(b"base:allocation")].concat()),
        3 => option_of(option::SET_META_CONTEXT, &[one, query(b"dormouse:changed=1")].concat()),
        4 | 5 => option_of(option::GO, &named(&[0, 0])),
        6 => option_of(option::INFO, &named(&[0, 1, 0, 3])),
        7 => option_of(option::EXPORT_NAME, name),
        8 => option_of(option::LIST, &[]),
        9 => option_of(option::LIST_META_CONTEXT, &named(&[0; 4])),
        10 => option_of(u32::from(input.u8()), input.blob()),
        _ => input.blob().to_vec(),
    }
}

fn a_request(cookie: u64, input: &mut Input<'_>) -> Vec<u8> {
    let (kind, flags) = (u16::from(input.u8() % 10), u16::from(input.u8() & 31));
    let (at, len) = match input.u8() {
        255 => (input.number(), input.number() as u32),
        from => (u64::from(from) << 9, u32::from(input.u16()) * 3),
    };
    let mut out = REQUEST_MAGIC.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(at.to_be_bytes());
    out.extend(len.to_be_bytes());
    if kind == command::WRITE {
        // One that is too long ends the connection: it needs no bytes.
        out.extend(vec![cookie as u8; (len as usize).min(200 << 10)]);
    }
    out
}

/// What the parts without I/O say: to the options, and to each request until the end.
struct Expected {
    options: Vec<u8>,
    replies: Vec<Vec<u8>>,
    /// The requests that were answered.
    asked: Vec<Request>,
    /// Whether the end is one that the protocol knows: else replies under way may be lost.
    good: bool,
    disks: [Arc<Strict>; 2],
}

fn expected(talk: &Talk) -> Expected {
    let disks = disks();
    let mut expected =
        Expected { options: hello().to_vec(), replies: vec![], asked: vec![], good: true, disks };
    let mut handshake = Handshake::new(exports(&expected.disks), Tls::Absent);
    let all = [&talk.options[..], &talk.requests.concat(), &talk.rest].concat();
    let mut rest = all.as_slice();
    // What was meant as an option may be taken for the requests behind it, and the other way round.
    let chosen = loop {
        match handshake.step(rest, &mut expected.options) {
            Ok(Some((taken, Step::More))) => rest = &rest[taken..],
            Ok(Some((taken, Step::Begin(chosen)))) => {
                rest = &rest[taken..];
                break chosen;
            }
            _ => return expected,
        }
    };
    requests(&chosen, rest, &mut expected);
    expected
}

fn requests(chosen: &Chosen, mut rest: &[u8], expected: &mut Expected) {
    let agreed = Agreed { structured: chosen.structured, contexts: !chosen.contexts.is_empty() };
    while let Some(head) = rest.first_chunk::<REQUEST_LEN>() {
        let Ok(request) = Request::decode(head) else {
            expected.good = false;
            return;
        };
        let Some(payload) = rest.get(REQUEST_LEN..REQUEST_LEN + request.payload()) else { return };
        rest = &rest[REQUEST_LEN + payload.len()..];
        if request.is_end() {
            return;
        }
        let (answer, mut out) = (Answer { chosen, cookie: request.cookie }, Out::default());
        match request.check(&chosen.export.device.geometry(), agreed) {
            Ok(op) => answer.perform(op, payload, &mut out, &mut |_| Ok::<(), ()>(())).unwrap(),
            Err(refused) => answer.error(refused.0, refused.1, None, &mut out),
        }
        expected.asked.push(request);
        expected.replies.push(out.filled().to_vec());
    }
}

fn talk(data: &[u8]) {
    let talk = Talk::decode(&mut Input::new(data));
    let expected = expected(&talk);
    let served = disks();
    let server = Server::new(exports(&served), Settings::default());
    let (client, theirs) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    server.take(theirs.into(), "the fuzzer").unwrap();
    let in_turn = talk.in_turn && talk.is_as_it_seems(&expected);
    if in_turn {
        one_by_one(client, &talk, &expected);
    } else {
        all_at_once(client, &talk, &expected);
    }
    assert!(server.stop(), "it does not end");
    for (served, expected) in served.iter().zip(&expected.disks) {
        assert!(!served.is_dirty(), "what was written was not flushed at the end");
        assert!(!in_turn || served.content() == expected.content());
    }
}

/// Sends; whoever has hung up hears no more.
fn send(client: &mut UnixStream, bytes: &[u8], piece: usize) {
    for piece in bytes.chunks(piece) {
        if client.write_all(piece).is_err() {
            return;
        }
    }
}

/// Takes so much, or what there is until the end.
fn take(client: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    match client.take(len as u64).read_to_end(&mut out) {
        Ok(_) => {}
        // It had not read everything when it hung up.
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        Err(e) => panic!("{e}"),
    }
    out
}

fn one_by_one(mut client: UnixStream, talk: &Talk, expected: &Expected) {
    send(&mut client, &talk.options, talk.piece);
    assert!(take(&mut client, expected.options.len()) == expected.options);
    for (number, request) in talk.requests.iter().enumerate() {
        send(&mut client, request, talk.piece);
        let due = expected.replies.get(number).map_or(&[][..], Vec::as_slice);
        assert!(take(&mut client, due.len()) == due, "reply {number}");
    }
    send(&mut client, &talk.rest, talk.piece);
    let _ = client.shutdown(Shutdown::Write);
    assert!(take(&mut client, usize::MAX).is_empty(), "a reply to nothing");
}

fn all_at_once(mut client: UnixStream, talk: &Talk, expected: &Expected) {
    let mut reader = client.try_clone().unwrap();
    let said = std::thread::scope(|scope| {
        let said = scope.spawn(move || take(&mut reader, usize::MAX));
        send(&mut client, &talk.options, talk.piece);
        send(&mut client, &talk.requests.concat(), talk.piece);
        send(&mut client, &talk.rest, talk.piece);
        let _ = client.shutdown(Shutdown::Write);
        said.join().unwrap()
    });
    assert!(said.starts_with(&expected.options), "the options are answered otherwise");
    let mut open: BTreeMap<u64, (&Request, &[u8])> = BTreeMap::new();
    for (request, reply) in expected.asked.iter().zip(&expected.replies) {
        if open.insert(request.cookie, (request, reply)).is_some() {
            // Raw bytes: which reply is whose is not known.
            return;
        }
    }
    let writes =
        |r: &&Request| matches!(r.kind, command::WRITE | command::TRIM | command::WRITE_ZEROES);
    let still = !expected.asked.iter().any(|r| writes(&r));
    let mut rest = &said[expected.options.len()..];
    while !rest.is_empty() {
        let (cookie, len, verdict) = reply(rest, &open);
        let (_, due) = open.remove(&cookie).expect("a reply to nothing, or a second one");
        assert_eq!(verdict, reply(due, &BTreeMap::from([(cookie, (&expected.asked[0], due))])).2);
        assert!(!still || rest[..len] == *due, "reply {cookie}");
        rest = &rest[len..];
    }
    assert!(open.is_empty() || !expected.good, "{} replies are missing", open.len());
}

/// The first reply of these bytes: its cookie, its length, and the error in it.
fn reply(bytes: &[u8], open: &BTreeMap<u64, (&Request, &[u8])>) -> (u64, usize, u32) {
    let mut head = Reader(bytes);
    if head.u32() == Some(SIMPLE_MAGIC) {
        let (error, cookie) = (head.u32().unwrap(), head.u64().unwrap());
        let (request, due) = open[&cookie];
        let reads = request.kind == command::READ && error == 0 && due.len() > SIMPLE_LEN;
        return (cookie, SIMPLE_LEN + if reads { request.len as usize } else { 0 }, error);
    }
    let (mut at, mut error) = (0, 0);
    loop {
        let mut head = Reader(&bytes[at..]);
        assert_eq!(head.u32(), Some(CHUNK_MAGIC));
        let (flags, kind, cookie) = (head.u16().unwrap(), head.u16().unwrap(), head.u64().unwrap());
        let payload = head.string().unwrap();
        at += CHUNK_LEN + payload.len();
        if kind & (1 << 15) != 0 {
            error = Reader(payload).u32().unwrap();
        }
        if flags & chunk::DONE != 0 {
            return (cookie, at, error);
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for how in [0xc0, 0xc1, 0xc2, 0xc3u8] {
        for structured in [0u8, 1] {
            let mut seed = vec![how];
            if how & 2 != 0 {
                seed.push(6);
            }
            // Structured replies and a context, or none of it; then the disk.
            seed.push(3 * structured + u8::from(structured == 0));
            if structured == 1 {
                seed.extend([1, 0, 1, 2]);
            }
            seed.extend([1, 4, 30]);
            for n in 0..30u8 {
                seed.extend([
                    [0, 1, 7, 3, 6, 4, 5, 0][usize::from(n % 8)],
                    n & 1,
                    n.wrapping_mul(9),
                    n.wrapping_mul(7),
                    n % 3,
                ]);
            }
            out.push(seed.clone());
            seed.extend([1, 2, 3]);
            out.push(seed);
        }
    }
    out.push([&[0x40, 3][..], &[1, 8, 0, 6, 1, 7, 5], &[0, 0, 3, 9, 0].repeat(5)].concat());
    out
}
