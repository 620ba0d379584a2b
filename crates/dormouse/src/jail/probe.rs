//! Proof of the jail: a process that tries what it must not, before and after it goes in.
//!
//! Owns: the tries. Invariant: a try counts only if it went well before the jail, so that a
//! refusal after it is the jail's. Run as a process of its own (`dormouse jail-probe`), by
//! `doctor` and by tests; prints one line of JSON.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::{Resource, getppid, getrlimit, setrlimit, test_kill_process};
use serde::{Deserialize, Serialize};

use super::{FILE_MAX, Layer, Plan, enter};
use crate::out::say;

/// What became of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSaid {
    /// Its name.
    pub layer: String,
    /// Whether it holds.
    pub holds: bool,
    /// What it keeps, or why it does not hold.
    pub why: String,
}

/// What became of a try. `None`: it went well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Try {
    /// What was tried.
    pub what: String,
    /// Why it failed before the jail.
    pub before: Option<String>,
    /// Why it failed in the jail.
    pub after: Option<String>,
}

impl Try {
    /// It worked before, and does not any more.
    pub const fn is_kept(&self) -> bool {
        self.before.is_none() && self.after.is_some()
    }
}

/// What the process found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// All layers.
    pub layers: Vec<LayerSaid>,
    /// What a server must not do.
    pub refused: Vec<Try>,
    /// What it must do.
    pub allowed: Vec<Try>,
}

type Tried<'a> = (&'static str, Box<dyn Fn() -> io::Result<()> + 'a>);

/// Goes in, with `dir` as the store, and prints what it found. With `bucket` as the server of a
/// store in object storage does.
pub fn run(dir: &Path, bucket: bool, without: &[String]) -> Result<()> {
    let store = dir.join("store");
    fs::create_dir_all(store.join("vaults"))?;
    let mut plan = Plan::of_store(&store)?;
    for name in without {
        plan.without.push(Layer::of_name(name).with_context(|| format!("no layer {name}"))?);
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut refused = must_fail(dir, listener.local_addr()?)?;
    let mut allowed = must_work(&store, &listener);
    let storage = TcpListener::bind("127.0.0.1:0")?;
    if bucket {
        let (to, storage) = (listener.local_addr()?, storage.local_addr()?);
        plan.ports.push(storage.port());
        refused.push(("connect by sending", Box::new(move || send_first(to))));
        allowed.push((
            "connect to the object storage",
            Box::new(move || TcpStream::connect(storage).map(drop)),
        ));
    }
    let before = |all: &[Tried<'_>]| all.iter().map(|(_, run)| failure(run())).collect::<Vec<_>>();
    let (refused_before, allowed_before) = (before(&refused), before(&allowed));
    // It is read from a file the first time.
    crate::text::time_local(0);
    let standings = enter(&plan);
    let after = |all: &[Tried<'_>], before: Vec<Option<String>>| {
        let tried = |((what, run), before): (&Tried<'_>, _)| Try {
            what: (*what).to_owned(),
            before,
            after: failure(run()),
        };
        all.iter().zip(before).map(tried).collect()
    };
    let layers = standings.into_iter().map(|standing| LayerSaid {
        layer: standing.layer.name().to_owned(),
        holds: standing.held.is_ok(),
        why: standing.held.unwrap_or_else(|why| why),
    });
    let found = Found {
        layers: layers.collect(),
        refused: after(&refused, refused_before),
        allowed: after(&allowed, allowed_before),
    };
    say!("{}", serde_json::to_string(&found)?)
}

fn failure(tried: io::Result<()>) -> Option<String> {
    tried.err().map(|e| e.to_string())
}

/// What must fail in the jail.
fn must_fail(dir: &Path, to: SocketAddr) -> io::Result<Vec<Tried<'static>>> {
    // Opened before: that it cannot be in the jail shall not be what keeps a program from starting.
    let nowhere = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let parent = getppid();
    let beside = dir.join("beside");
    let large = dir.join("store/large");
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/bin/true"));
    Ok(vec![
        ("read /etc/passwd", Box::new(|| File::open("/etc/passwd")?.read(&mut [0]).map(drop))),
        ("list the root directory", Box::new(|| fs::read_dir("/").map(drop))),
        ("write a file beside the store", Box::new(move || fs::write(&beside, "x"))),
        ("open a connection", Box::new(move || TcpStream::connect(to).map(drop))),
        (
            "send a datagram",
            Box::new(|| {
                let socket = UdpSocket::bind("127.0.0.1:0")?;
                socket.send_to(b"x", socket.local_addr()?).map(drop)
            }),
        ),
        ("listen on another port", Box::new(|| TcpListener::bind("127.0.0.1:0").map(drop))),
        (
            "start a program",
            Box::new(move || {
                let mut command = Command::new(&program);
                command.arg("--version").stdin(nowhere.try_clone()?);
                command.stdout(nowhere.try_clone()?).stderr(nowhere.try_clone()?);
                command.status().map(drop)
            }),
        ),
        (
            "signal another process",
            // Of no effect.
            Box::new(move || Ok(test_kill_process(parent.ok_or(rustix::io::Errno::SRCH)?)?)),
        ),
        (
            "write beyond the limit of a file",
            Box::new(move || {
                File::create(&large)?.set_len(FILE_MAX + 1)?;
                fs::remove_file(&large)
            }),
        ),
        ("raise a limit", Box::new(|| Ok(setrlimit(Resource::Core, getrlimit(Resource::Core))?))),
    ])
}

/// A connection that is made by the first bytes to be sent.
fn send_first(to: SocketAddr) -> io::Result<()> {
    use rustix::net::{AddressFamily, SendFlags, SocketType, sendto, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    let fast_open = SendFlags::from_bits_retain(libc::MSG_FASTOPEN.cast_unsigned());
    sendto(&socket, b"x", fast_open, &to)?;
    Ok(())
}

/// What must go on in the jail: the work of a store and a server.
fn must_work<'a>(store: &Path, listener: &'a TcpListener) -> Vec<Tried<'a>> {
    let store = store.to_owned();
    vec![
        ("work with files of the store", Box::new(move || use_files(&store))),
        (
            "start a thread",
            Box::new(|| std::thread::Builder::new().spawn(|| ())?.join().map_err(|_| failed())),
        ),
        (
            "look for connections",
            Box::new(move || {
                listener.set_nonblocking(true)?;
                match listener.accept() {
                    Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
                    _ => Ok(()),
                }
            }),
        ),
    ]
}

fn failed() -> io::Error {
    io::Error::other("it did not end well")
}

fn use_files(store: &Path) -> io::Result<()> {
    let dir = store.join("vaults/new");
    fs::create_dir(&dir)?;
    let (a, b, c) = (dir.join("a"), dir.join("b"), store.join("c"));
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&a)?;
    file.write_all(b"some bytes")?;
    file.sync_all()?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
    file.set_len(4)?;
    fs::hard_link(&a, &b)?;
    fs::rename(&b, &c)?;
    File::open(&dir)?.sync_all()?;
    let (text, names) = (fs::read(&c)?, fs::read_dir(&dir)?.count());
    fs::remove_file(&a)?;
    fs::remove_file(&c)?;
    fs::remove_dir(&dir)?;
    if text == b"some" && names == 1 { Ok(()) } else { Err(failed()) }
}
