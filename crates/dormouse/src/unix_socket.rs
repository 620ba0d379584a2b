//! Unix sockets at a path.
//!
//! Invariants: mode 0600 from the first moment; a socket has its final name only when it answers,
//! so one that refuses is left over from a process that is dead, and may be removed. Paths may be
//! longer than an address of a socket.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::exit::{Class, fail};
use crate::files;

const BACKLOG: i32 = 64;
/// Until a process that is asked whether it is there must have taken the connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// Removes what a dead process has left at a place; an error if something else is there, or
/// if `who` still answers for `what`.
pub fn make_free(path: &Path, who: &str, what: &str) -> Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let shown = path.display();
    if !found.file_type().is_socket() && !found.file_type().is_symlink() {
        return fail(
            Class::Place,
            format!("{shown} is there already, and is no socket"),
            format!("name another place for {what}, or remove it"),
        );
    }
    if connect(path, PATIENCE).map_or_else(|e| !nobody_will_answer(&e), |_| true) {
        return fail(
            Class::InUse,
            format!("{who} answers on {shown}"),
            format!("name another place for {what}, or end that process"),
        );
    }
    std::fs::remove_file(path).with_context(|| format!("cannot remove {shown}"))
}

/// Calls `with` with a name for the path that is short enough for an address of a socket.
fn with_address<T>(
    path: &Path,
    with: impl FnOnce(&SocketAddrUnix) -> rustix::io::Result<T>,
) -> io::Result<T> {
    let name = path.file_name().unwrap_or_default();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = File::from(rustix::fs::open(files::parent(path), flags, Mode::empty())?);
    let mut short = OsString::from(format!("/proc/self/fd/{}/", dir.as_raw_fd()));
    short.push(name);
    Ok(with(&SocketAddrUnix::new(Path::new(&short))?)?)
}

/// A listening socket that others cannot open, under its name only once it listens.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = socket()?;
    // What is set here is what the file gets.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let _ = std::fs::remove_file(&new);
    with_address(&new, |address| rustix::net::bind(&socket, address))?;
    let done = rustix::net::listen(&socket, BACKLOG)
        .map_err(io::Error::from)
        .and_then(|()| std::fs::rename(&new, path));
    if done.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    done?;
    let listener = UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn socket() -> io::Result<std::os::fd::OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Connects, and waits no longer than that there or later.
pub fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let stream = UnixStream::from(socket()?);
    stream.set_write_timeout(Some(patience))?;
    stream.set_read_timeout(Some(patience))?;
    with_address(path, |address| rustix::net::connect(&stream, address))?;
    Ok(stream)
}

/// Whether an error of [`connect`] says that a socket is left over.
pub fn nobody_will_answer(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound)
}
