//! The socket on which a daemon tells what its volumes do, and who asks there.
//!
//! Owns: the place, `run/status-PID.sock` in the home; the protocol: a peer sends one line,
//! `status` or `watch`, and gets one JSON document a line ([`Document`]), or for `watch` one each
//! second and whenever something new is known. Invariants: mode 0600 from the first moment; a
//! socket has its final name only when it answers, so one that does not is left over from a
//! daemon that is dead and is removed; a slow reader holds up nobody but itself.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::board::{Board, VolumeStatus};
use super::doorway::{self, Doorway, PATIENCE, Stopping};
use crate::files;
use crate::home::Home;
use crate::log::Log;
use crate::unix_socket;

/// Longest line that a peer may send.
const REQUEST_MAX: usize = 64;
/// Longest document that is read.
const DOCUMENT_MAX: u64 = 16 << 20;
/// Between two documents, whatever happens.
const GAP: Duration = Duration::from_millis(100);
/// Between two documents if nothing new is known.
const EVERY: Duration = Duration::from_secs(1);
/// How long one peer may watch before it has to come again.
const WATCH_MAX: Duration = Duration::from_secs(3600);

/// What one daemon tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Its process.
    pub pid: u32,
    /// Its version of the program.
    pub version: String,
    /// Its volumes, by name.
    pub volumes: Vec<VolumeStatus>,
}

/// A socket that answers until it is dropped.
#[derive(Debug)]
pub struct StatusSocket {
    path: PathBuf,
    /// In the home, where the socket is elsewhere.
    link: Option<PathBuf>,
    _doorway: Doorway,
}

/// Where the sockets of a home's daemons are.
fn directory(home: &Home) -> PathBuf {
    home.dir().join("run")
}

impl StatusSocket {
    /// Listens at `at`, or in the home; in either case it is found through the home.
    pub fn open(home: &Home, at: Option<&Path>, board: &Board, log: &Log) -> Result<Self> {
        static OPENED: AtomicUsize = AtomicUsize::new(0);
        let run = directory(home);
        files::make_dir(&run)?;
        remove_left_over(&run);
        let pid = std::process::id();
        let own = match OPENED.fetch_add(1, Ordering::Relaxed) {
            0 => run.join(format!("status-{pid}.sock")),
            n => run.join(format!("status-{pid}-{n}.sock")),
        };
        let path = at.unwrap_or(&own).to_owned();
        let cannot = || format!("cannot listen on the status socket {}", path.display());
        unix_socket::make_free(&path, "another daemon", "the status socket")?;
        let listener = unix_socket::listen(&path).with_context(cannot)?;
        let link = at.map(|_| own);
        if let Some(link) = &link {
            let _ = std::fs::remove_file(link);
            std::os::unix::fs::symlink(&path, link)
                .with_context(|| format!("cannot make {}", link.display()))?;
        }
        let board = board.clone();
        let answer = move |stream, stopping: &Stopping| answer(stream, &board, stopping);
        let doorway = Doorway::open(listener, "status", log, answer).with_context(cannot)?;
        Ok(Self { path, link, _doorway: doorway })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        for path in self.link.iter().chain([&self.path]) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes sockets of daemons that are dead.
fn remove_left_over(run: &Path) {
    for path in sockets(run) {
        reach(&path);
    }
}

/// Connects to a daemon; what a dead one has left is removed.
fn reach(path: &Path) -> Option<UnixStream> {
    let reached = connect(path);
    if reached.as_ref().is_err_and(unix_socket::nobody_will_answer) {
        let _ = std::fs::remove_file(path);
    }
    reached.ok()
}

/// Connects, and waits no longer than [`PATIENCE`] there or later.
fn connect(path: &Path) -> io::Result<UnixStream> {
    unix_socket::connect(path, PATIENCE)
}

fn sockets(run: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "sock")).collect();
    found.sort();
    found
}

fn answer(mut stream: UnixStream, board: &Board, stopping: &Stopping) -> io::Result<()> {
    let request = doorway::read_until(&mut stream, REQUEST_MAX, |b| b.contains(&b'\n'))?;
    match request.as_slice() {
        b"status\n" => tell(&mut stream, board),
        b"watch\n" => watch(&mut stream, board, stopping),
        _ => {
            doorway::write_all(&mut stream, b"{\"error\":\"say status or watch, and a newline\"}\n")
        }
    }
}

fn tell(stream: &mut UnixStream, board: &Board) -> io::Result<()> {
    let document = Document {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        volumes: board.all(),
    };
    let mut line = serde_json::to_vec(&document)?;
    line.push(b'\n');
    doorway::write_all(stream, &line)
}

fn watch(stream: &mut UnixStream, board: &Board, stopping: &Stopping) -> io::Result<()> {
    let until = Instant::now() + WATCH_MAX;
    let mut version = board.version();
    while !stopping.now() && Instant::now() < until {
        tell(stream, board)?;
        std::thread::sleep(GAP);
        version = board.wait_news(version, EVERY.saturating_sub(GAP));
    }
    Ok(())
}

/// A daemon that was asked.
#[derive(Debug)]
pub struct Asked {
    /// Where it was found.
    pub path: PathBuf,
    stream: UnixStream,
    /// Of a line that is not whole yet.
    part: Vec<u8>,
}

/// Asks every daemon of a home that is not in `known`, by `status` or `watch`; what dead ones
/// left is removed.
pub fn ask(home: &Home, request: &str, known: &[PathBuf]) -> Vec<Asked> {
    let all = sockets(&directory(home)).into_iter();
    let new = all.filter(|path| !known.contains(path));
    let ask = |path: PathBuf| {
        let mut stream = reach(&path)?;
        io::Write::write_all(&mut stream, format!("{request}\n").as_bytes()).ok()?;
        Some(Asked { path, stream, part: Vec::new() })
    };
    new.filter_map(ask).collect()
}

impl Asked {
    /// The newest document that has come; the first one is waited for. None if there is none
    /// any more.
    pub fn newest(&mut self) -> Option<Document> {
        let mut bytes = [0; 16 << 10];
        loop {
            match io::Read::read(&mut self.stream, &mut bytes) {
                Ok(n) if n > 0 => self.part.extend_from_slice(&bytes[..n]),
                _ => return None,
            }
            if self.part.len() as u64 > DOCUMENT_MAX {
                return None;
            }
            let Some(end) = self.part.iter().rposition(|b| *b == b'\n') else { continue };
            let rest = self.part.split_off(end + 1);
            let whole = std::mem::replace(&mut self.part, rest);
            let line = whole[..end].rsplit(|b| *b == b'\n').next().unwrap_or_default();
            return serde_json::from_slice(line).ok();
        }
    }
}

impl std::os::fd::AsFd for Asked {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// What all daemons of a home tell now.
pub fn documents(home: &Home) -> Vec<Document> {
    ask(home, "status", &[]).into_iter().filter_map(|mut asked| asked.newest()).collect()
}

#[cfg(test)]
mod tests;
