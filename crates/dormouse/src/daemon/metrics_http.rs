//! Metrics over HTTP: `GET /metrics`, and nothing else.
//!
//! Leaves to others: HTTP ([`super::http`]) and the metrics.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::Result;

use super::board::Board;
use super::doorway::Doorway;
use super::http::{self, Page};
use super::metrics;
use crate::exit::{Class, Failure};
use crate::log::Log;

/// A server of metrics that answers until it is dropped.
#[derive(Debug)]
pub struct MetricsHttp {
    address: SocketAddr,
    _doorway: Doorway,
}

impl MetricsHttp {
    /// Listens there.
    pub fn open(at: SocketAddr, board: &Board, log: &Log) -> Result<Self> {
        let failure = |e: io::Error| {
            Failure::new(Class::Place, format!("cannot serve metrics on {at}: {e}"))
                .hint("name another address of this machine with `metrics`, or none")
        };
        let listener = TcpListener::bind(at).map_err(failure)?;
        listener.set_nonblocking(true).map_err(failure)?;
        let address = listener.local_addr().map_err(failure)?;
        let board = board.clone();
        let doorway =
            Doorway::open(listener, "metrics", log, move |stream, _| answer(stream, &board))
                .map_err(failure)?;
        Ok(Self { address, _doorway: doorway })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

fn answer(mut stream: TcpStream, board: &Board) -> io::Result<()> {
    http::answer(&mut stream, "GET /metrics", |path| {
        let body = || metrics::render(&board.all());
        (path == b"/metrics").then(|| Page {
            well: true,
            kind: metrics::CONTENT_TYPE,
            body: body(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::board::{State, VolumeStatus};
    use crate::daemon::http::{Asked, HEAD_MAX, asked};
    use std::io::{Read, Write};

    fn serving() -> (MetricsHttp, Board) {
        let board = Board::new();
        board.set(&VolumeStatus::new("root", "/dev/x", State::Live, ""));
        let at = "127.0.0.1:0".parse().unwrap();
        (MetricsHttp::open(at, &board, &Log::silent()).unwrap(), board)
    }

    fn get(http: &MetricsHttp, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(http.address()).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn metrics_are_got_and_nothing_else() {
        let (http, board) = serving();
        let answer = get(&http, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
        // But for the age, which moves on.
        let still = |text: &str| {
            let lines = text.lines().filter(|l| !l.starts_with("dormouse_status_age"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(still(body), still(&metrics::render(&board.all())));
        for (request, status) in [
            (&b"GET /metrics?x HTTP/1.0\n\n"[..], "200"),
            (b"GET / HTTP/1.1\r\n\r\n", "404"),
            (b"GET /metrics/ HTTP/1.1\r\n\r\n", "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "404"),
            (b"GET /metrics\r\n\r\n", "400"),
            (b"GET /metrics HTTP/2\r\n\r\n", "400"),
            (b"\xff\xfe\r\n\r\n", "400"),
            (b"\r\n\r\n", "400"),
        ] {
            let answer = get(&http, request);
            let shown = String::from_utf8_lossy(request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}: {answer}");
        }
        let long = [b"GET /metrics HTTP/1.1\r\n".as_slice(), &vec![b'x'; HEAD_MAX]].concat();
        assert!(matches!(asked(&long[..HEAD_MAX]), Asked::TooLong));
        // Who says nothing more is not answered with metrics.
        assert!(matches!(asked(b"GET /metrics HTTP/1.1\r\n"), Asked::Nonsense));
    }

    #[test]
    fn an_address_in_use_is_told() {
        let (http, board) = serving();
        let error = MetricsHttp::open(http.address(), &board, &Log::silent()).unwrap_err();
        let text = crate::exit::text_of(&error);
        assert!(text.contains(&http.address().to_string()) && text.contains("\n  name"), "{text}");
        let address = http.address();
        drop(http);
        assert!(TcpStream::connect(address).is_err(), "it is closed");
    }
}
