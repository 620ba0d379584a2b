//! Messages, and taking them off a stream.

use dormouse_format::Error;
use dormouse_format::limits::{FRAME_MAX, FRAME_MAX_UNAUTHENTICATED};
use dormouse_format::message::{Deframer, Message};

use crate::Target;
use crate::corpus::vectors;
use crate::input::Input;

/// One message.
pub const MESSAGE: Target = Target {
    name: "message",
    what: "every message of both sides",
    run: |bytes| {
        if let Ok(message) = Message::decode(bytes) {
            assert_eq!(message.encode()[4..], *bytes);
        }
    },
    seeds: || {
        let all = vectors("message_").into_iter().filter(|v| v.len() < 8192);
        all.filter_map(|v| Some(v.get(4..)?.to_vec())).collect()
    },
    len_max: 8192,
};

/// A stream of frames, cut anywhere.
pub const DEFRAMER: Target = Target {
    name: "deframer",
    what: "a stream of frames, cut at any places",
    run: deframer,
    seeds: deframer_seeds,
    len_max: 8192,
};

/// All messages up to the first error, and whether there was one.
fn drain(deframer: &mut Deframer, out: &mut Vec<Message>) -> Option<Error> {
    loop {
        match deframer.next_message() {
            Ok(Some(message)) => out.push(message),
            Ok(None) => return None,
            Err(error) => return Some(error),
        }
    }
}

fn deframer(data: &[u8]) {
    let mut input = Input::new(data);
    let limit = if input.flag() { FRAME_MAX } else { FRAME_MAX_UNAUTHENTICATED };
    let mut sizes = input.array::<8>().into_iter().cycle();
    let stream = input.rest();
    let mut whole = Deframer::new(limit);
    whole.push(stream);
    let mut expected = Vec::new();
    let end = drain(&mut whole, &mut expected);

    let mut pieces = Deframer::new(limit);
    let (mut rest, mut found, mut error) = (stream, Vec::new(), None);
    while error.is_none() && !rest.is_empty() {
        let size = usize::from(sizes.next().unwrap_or(0)) + 1;
        let (piece, after) = rest.split_at(size.min(rest.len()));
        pieces.push(piece);
        error = drain(&mut pieces, &mut found);
        rest = after;
    }
    assert_eq!((found, error), (expected, end));
}

fn deframer_seeds() -> Vec<Vec<u8>> {
    let small: Vec<Vec<u8>> = vectors("message_").into_iter().filter(|v| v.len() < 700).collect();
    let all = small.concat();
    let frames = vectors("frame_");
    let sizes = [[0; 8], [255; 8], [1, 9, 2, 8, 3, 7, 4, 6]];
    let stream = |flag: u8, s: &[u8; 8]| [&[flag][..], s, &all[..all.len().min(8000)]].concat();
    let mut out: Vec<_> = sizes.iter().flat_map(|s| [stream(0, s), stream(1, s)]).collect();
    out.extend(frames.iter().map(|f| [&[1][..], &sizes[2], f].concat()));
    out.extend(small.iter().map(|f| [&[1][..], &sizes[2], f, f].concat()));
    out
}
