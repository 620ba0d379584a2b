//! Where the server's metrics and health are asked for: `/metrics` and `/health`.
//!
//! Invariant: only from this machine: a Unix socket of mode 0600, or a port on loopback. Leaves to
//! others: HTTP ([`crate::daemon::http`]) and what is said ([`super::counters`]).

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Result;

use super::{Shared, counters};
use crate::daemon::doorway::Doorway;
use crate::daemon::http::{self, Page};
use crate::daemon::metrics::CONTENT_TYPE;
use crate::exit::{Class, Failure};
use crate::unix_socket;

/// `--metrics`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A Unix socket.
    Unix(PathBuf),
    /// A port on loopback.
    Tcp(SocketAddr),
}

impl FromStr for Place {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let bad = |why: &str| {
            Failure::new(Class::Usage, format!("'{text}' is no place for metrics: {why}"))
                .hint("it is such as unix:/run/dormouse/metrics.sock or 127.0.0.1:9448")
        };
        match text.strip_prefix("unix:") {
            Some("") => Err(bad("the path is missing")),
            Some(path) => Ok(Self::Unix(path.into())),
            None => match text.parse::<SocketAddr>() {
                Ok(at) if at.ip().is_loopback() => Ok(Self::Tcp(at)),
                Ok(_) => {
                    Err(bad("it is not on loopback; put a proxy in front to show them elsewhere"))
                }
                Err(_) => Err(bad("neither unix:PATH nor an address and port")),
            },
        }
    }
}

/// Answers until it is dropped.
#[derive(Debug)]
pub(super) struct Pages {
    _doorway: Doorway,
    /// The socket's path, which goes with it.
    path: Option<PathBuf>,
    /// Where it listens, if that is a port.
    pub(super) address: Option<SocketAddr>,
}

impl Drop for Pages {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A socket on which nobody answers yet: made before the jail, which lets none be made.
pub(super) enum Ready {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener, SocketAddr),
}

impl Ready {
    /// Listens there.
    pub(super) fn open(place: &Place) -> Result<Self> {
        let open = |what: &str, e: io::Error| {
            Failure::new(Class::Place, format!("cannot serve metrics on {what}: {e}"))
                .hint("name another place with --metrics, or none")
        };
        match place {
            Place::Unix(path) => {
                unix_socket::make_free(path, "a process", "the metrics")?;
                let failed = |e| open(&path.display().to_string(), e);
                Ok(Self::Unix(unix_socket::listen(path).map_err(failed)?, path.clone()))
            }
            Place::Tcp(at) => {
                let failed = |e| open(&at.to_string(), e);
                let listener = TcpListener::bind(at).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?;
                Ok(Self::Tcp(listener, address))
            }
        }
    }
}

impl Pages {
    /// Begins to answer.
    pub(super) fn begin(ready: Ready, shared: &Arc<Shared>) -> Result<Self> {
        let (shared, log) = (shared.clone(), shared.log.clone());
        Ok(match ready {
            Ready::Unix(listener, path) => {
                let answer = move |mut stream, _: &_| answer(&mut stream, &shared);
                let doorway = Doorway::open(listener, "metrics", &log, answer)?;
                Self { _doorway: doorway, path: Some(path), address: None }
            }
            Ready::Tcp(listener, address) => {
                let answer = move |mut stream, _: &_| answer(&mut stream, &shared);
                let doorway = Doorway::open(listener, "metrics", &log, answer)?;
                Self { _doorway: doorway, path: None, address: Some(address) }
            }
        })
    }
}

fn answer<S: Read + Write + AsFd>(stream: &mut S, shared: &Shared) -> io::Result<()> {
    http::answer(stream, "GET /metrics and GET /health", |path| match path {
        b"/metrics" => {
            Some(Page { well: true, kind: CONTENT_TYPE, body: counters::render(shared) })
        }
        b"/health" => {
            let (well, body) = counters::health(shared);
            Some(Page { well, kind: "text/plain; charset=utf-8", body })
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_stay_on_this_machine() {
        let place = |text: &str| text.parse::<Place>();
        assert_eq!(place("unix:/a b"), Ok(Place::Unix("/a b".into())));
        assert_eq!(place("[::1]:1"), Ok(Place::Tcp("[::1]:1".parse().unwrap())));
        for bad in ["", "unix:", "/a", "0.0.0.0:9", "10.0.0.1:9", "localhost:9", "127.0.0.1"] {
            assert_eq!(place(bad).unwrap_err().class, Class::Usage, "{bad}");
        }
    }
}
