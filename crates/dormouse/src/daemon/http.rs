//! As much of HTTP/1 as it takes to hand out a few texts.
//!
//! Invariant: one request a connection, a head of 8 KiB at most, and the time of a [`doorway`]; a
//! body is never read. Leaves to others: which paths there are, and what they say.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use super::doorway;

/// Longest head of a request.
pub(super) const HEAD_MAX: usize = 8 << 10;

/// What is at a path.
#[derive(Debug)]
pub struct Page {
    /// Whether it is good news: 200, else 503.
    pub well: bool,
    /// Its type.
    pub kind: &'static str,
    /// What it says.
    pub body: String,
}

/// Answers one request with the page of its path, if there is one.
pub fn answer<S: Read + Write + AsFd>(
    stream: &mut S,
    there: &str,
    page: impl Fn(&[u8]) -> Option<Page>,
) -> io::Result<()> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let head = doorway::read_until(stream, HEAD_MAX, is_whole)?;
    let (status, kind, body) = match asked(&head) {
        Asked::Get(path) => match page(path) {
            Some(Page { well: true, kind, body }) => ("200 OK", kind, body),
            Some(Page { kind, body, .. }) => ("503 Service Unavailable", kind, body),
            None => ("404 Not Found", TEXT, format!("there is only {there}\n")),
        },
        Asked::Other => ("404 Not Found", TEXT, format!("there is only {there}\n")),
        Asked::TooLong => {
            ("431 Request Header Fields Too Large", TEXT, "too much is asked\n".into())
        }
        Asked::Nonsense => ("400 Bad Request", TEXT, "that is not HTTP\n".into()),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    doorway::write_all(stream, answer.as_bytes())?;
    Ok(rustix::net::shutdown(&*stream, rustix::net::Shutdown::Write)?)
}

pub(super) enum Asked<'a> {
    Get(&'a [u8]),
    Other,
    TooLong,
    Nonsense,
}

fn is_whole(head: &[u8]) -> bool {
    head.windows(4).any(|w| w == b"\r\n\r\n") || head.windows(2).any(|w| w == b"\n\n")
}

pub(super) fn asked(head: &[u8]) -> Asked<'_> {
    if !is_whole(head) {
        return if head.len() >= HEAD_MAX { Asked::TooLong } else { Asked::Nonsense };
    }
    let line = head.split(|b| *b == b'\n').next().unwrap_or_default();
    let words: Vec<&[u8]> = line.trim_ascii_end().split(|b| *b == b' ').collect();
    match words.as_slice() {
        [method, path, version] if version.starts_with(b"HTTP/1.") => {
            let path = path.split(|b| *b == b'?').next().unwrap_or_default();
            if *method == b"GET" { Asked::Get(path) } else { Asked::Other }
        }
        _ => Asked::Nonsense,
    }
}
