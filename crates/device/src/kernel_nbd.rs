//! A disk by the kernel's NBD client: it is told of it over generic netlink, and sends requests
//! over a pair of Unix sockets.
//!
//! Owns: the commands, and the connection. Invariant: requests have no time limit; when this
//! process dies the kernel keeps them for [`Options::dead`], and another process may go on
//! ([`KernelNbd::resume`]). Leaves to others: what is said on the connection ([`crate::nbd`]).

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::kernel::{self, Front, Options, Via, about};
use crate::{BlockDevice, Error, Result};

mod netlink;

use netlink::{Attributes, Family, find_u32};

const FAMILY: &str = "nbd";
const VERSION: u8 = 1;

/// Commands of linux/nbd-netlink.h.
mod command {
    pub const CONNECT: u8 = 1;
    pub const DISCONNECT: u8 = 2;
    pub const RECONFIGURE: u8 = 3;
}

/// Attributes of linux/nbd-netlink.h.
mod attribute {
    pub const INDEX: u16 = 1;
    pub const SIZE_BYTES: u16 = 2;
    pub const BLOCK_SIZE_BYTES: u16 = 3;
    pub const SERVER_FLAGS: u16 = 5;
    pub const SOCKETS: u16 = 7;
    pub const DEAD_CONN_TIMEOUT: u16 = 8;
    pub const BACKEND_IDENTIFIER: u16 = 10;
    /// Within `SOCKETS`.
    pub const SOCK_ITEM: u16 = 1;
    pub const SOCK_FD: u16 = 1;
}

/// What the server can do: flags of the NBD protocol.
mod flag {
    pub const HAS_FLAGS: u64 = 1;
    pub const READ_ONLY: u64 = 1 << 1;
    pub const SEND_FLUSH: u64 = 1 << 2;
    pub const SEND_FUA: u64 = 1 << 3;
    pub const SEND_TRIM: u64 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u64 = 1 << 6;
}

/// How often the kernel looks whether a request was lost with its connection, in milliseconds;
/// else it would be 30 s until it issues one again.
const LOOK_EVERY_MS: u32 = 10_000;
/// How long the kernel may take to notice that a process has died.
const PATIENCE: Duration = Duration::from_secs(15);

/// Whether this kernel has it, and this process may use it.
pub fn probe() -> io::Result<()> {
    family().map(drop)
}

fn family() -> io::Result<Family> {
    Family::open(FAMILY).map_err(|e| io::Error::new(e.kind(), format!("no NBD client: {e}")))
}

/// What sysfs has on a disk.
fn known(number: u32, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/sys/block/nbd{number}/{name}")).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

/// Whether there is a disk of this number that was made with this label.
pub fn is_there(number: u32, label: &str) -> bool {
    known(number, "pid").is_some() && known(number, "backend").is_some_and(|it| it == label)
}

/// Takes a disk away, whoever serves it. Requests that still wait fail.
pub fn remove(number: u32) -> Result<()> {
    let what = Attributes::default().u32(attribute::INDEX, number);
    match family()?.ask(command::DISCONNECT, VERSION, &what) {
        // There is none.
        Err(e) if is(&e, Errno::INVAL) || is(&e, Errno::NOENT) => Ok(()),
        done => Ok(done.map(drop)?),
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// A disk on `/dev/nbdN`.
pub struct KernelNbd {
    number: u32,
    label: String,
    disk: Arc<dyn BlockDevice>,
    connection: Arc<Connection>,
}

/// Whether the kernel still has it.
#[derive(Default)]
struct Connection {
    ended: Mutex<bool>,
    news: Condvar,
}

impl KernelNbd {
    /// Gives the kernel a disk.
    pub fn attach(disk: Arc<dyn BlockDevice>, how: &Options) -> Result<Self> {
        let geometry = disk.geometry();
        let changes = if geometry.read_only {
            flag::READ_ONLY
        } else {
            flag::SEND_FUA | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES
        };
        let flags = flag::HAS_FLAGS | flag::SEND_FLUSH | changes;
        let (ours, kernels) = UnixStream::pair()?;
        // Sectors stay addressable, so that tables of partitions are found where they are.
        let what = Attributes::default()
            .u64(attribute::SIZE_BYTES, kernel::sectors(&*disk) * kernel::SECTOR)
            .u64(attribute::BLOCK_SIZE_BYTES, kernel::SECTOR)
            .u64(attribute::SERVER_FLAGS, flags)
            .u64(attribute::DEAD_CONN_TIMEOUT, how.dead.as_secs());
        let what = identified(what, &how.label, Some(&kernels));
        // Served first: the kernel reads the disk's partitions before it answers.
        let connection = serve(ours, &disk)?;
        let answer = family()?.ask(command::CONNECT, VERSION, &what).map_err(|e| {
            about(
                "the kernel's NBD client does not take the disk",
                Errno::from_io_error(&e).unwrap_or(Errno::IO),
            )
        })?;
        let Some(number) = find_u32(&answer, attribute::INDEX) else {
            return Err(Error::Unsupported("NBD of this kernel does not tell a disk's number"));
        };
        let every = format!("/sys/block/nbd{number}/queue/io_timeout");
        // Without it requests are only issued again later.
        let _ = std::fs::write(every, LOOK_EVERY_MS.to_string());
        Ok(Self { number, label: how.label.clone(), disk, connection })
    }

    /// Serves a disk whose process has died.
    pub fn resume(number: u32, disk: Arc<dyn BlockDevice>, how: &Options) -> Result<Self> {
        let (ours, kernels) = UnixStream::pair()?;
        let what = Attributes::default().u32(attribute::INDEX, number);
        let what = identified(what, &how.label, Some(&kernels));
        let connection = serve(ours, &disk)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match family()?.ask(command::RECONFIGURE, VERSION, &what) {
                Ok(_) => break,
                // It has not noticed yet that the old connection is dead.
                Err(e) if is(&e, Errno::NOSPC) && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Self { number, label: how.label.clone(), disk, connection })
    }
}

/// With who serves it, and on which socket.
fn identified(what: Attributes, label: &str, socket: Option<&UnixStream>) -> Attributes {
    let what = what.text(attribute::BACKEND_IDENTIFIER, label);
    let Some(socket) = socket else { return what };
    let fd = Attributes::default().u32(attribute::SOCK_FD, socket.as_raw_fd().unsigned_abs());
    let item = Attributes::default().nested(attribute::SOCK_ITEM, &fd);
    what.nested(attribute::SOCKETS, &item)
}

/// Answers requests in a thread of its own.
fn serve(stream: UnixStream, disk: &Arc<dyn BlockDevice>) -> io::Result<Arc<Connection>> {
    let connection = Arc::new(Connection::default());
    let (own, disk) = (Arc::clone(&connection), Arc::clone(disk));
    std::thread::Builder::new().name("kernel-nbd".into()).spawn(move || {
        // How it ended changes nothing: the kernel has closed its side, or will.
        let _ = crate::nbd::serve_transmission(stream.into(), disk);
        *own.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        own.news.notify_all();
    })?;
    Ok(connection)
}

impl Front for KernelNbd {
    fn via(&self) -> Via {
        Via::Nbd
    }

    fn number(&self) -> u32 {
        self.number
    }

    fn resized(&self) -> Result<()> {
        let bytes = kernel::sectors(&*self.disk) * kernel::SECTOR;
        let what = Attributes::default()
            .u32(attribute::INDEX, self.number)
            .u64(attribute::SIZE_BYTES, bytes);
        family()?.ask(command::RECONFIGURE, VERSION, &identified(what, &self.label, None))?;
        Ok(())
    }

    fn ended(&self, within: Duration) -> bool {
        let ended = self.connection.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.connection.news.wait_timeout_while(ended, within, |ended| !*ended);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn stop(&self, patience: Duration) -> Result<()> {
        let number = self.number;
        // To be disconnected is what makes waiting requests fail.
        kernel::take_away(&self.path(), patience, &|| (), move || remove(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_two_levels_down() {
        let (socket, _other) = UnixStream::pair().unwrap();
        let what = identified(Attributes::default(), "root@17", Some(&socket));
        let bytes = what.as_bytes();
        let inner = netlink::find(bytes, attribute::SOCKETS).unwrap();
        let item = netlink::find(inner, attribute::SOCK_ITEM).unwrap();
        let fd = u32::try_from(socket.as_raw_fd()).unwrap();
        assert_eq!(find_u32(item, attribute::SOCK_FD), Some(fd));
        let label = netlink::find(bytes, attribute::BACKEND_IDENTIFIER).unwrap();
        assert_eq!(label, b"root@17\0");
    }
}
