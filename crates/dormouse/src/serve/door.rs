//! Where the server listens: an address of its own, or a socket that was handed over.
//!
//! Owns: the protocol of systemd's socket activation (`LISTEN_PID`, `LISTEN_FDS`), in which a
//! server needs no right to make a socket at all.

use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::Result;
use rustix::io::FdFlags;
use rustix::net::sockopt;

use crate::exit::{Class, Failure, fail};

/// The first descriptor that is handed over.
const FIRST: i32 = 3;

/// Listens at an address.
pub(super) fn listen(at: &str) -> Result<TcpListener> {
    TcpListener::bind(at).map_err(|e| failure(at, &e).into())
}

fn failure(listen: &str, error: &io::Error) -> Failure {
    let (class, hint) = match error.kind() {
        io::ErrorKind::AddrInUse => {
            (Class::InUse, "end what listens there, or name another port with --listen")
        }
        io::ErrorKind::PermissionDenied => {
            (Class::NotAuthorised, "ports below 1024 need root; 7447 does not")
        }
        _ => (Class::Usage, "--listen wants ADDRESS:PORT of this machine, such as 0.0.0.0:7447"),
    };
    Failure::new(class, format!("cannot listen on {listen}: {error}")).hint(hint)
}

/// The listening socket that the service manager has handed over, if it has.
pub(super) fn handed() -> Result<Option<TcpListener>> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(None);
    }
    match number("LISTEN_FDS") {
        None | Some(0) => return Ok(None),
        Some(1) => {}
        Some(n) => {
            return fail(
                Class::Usage,
                format!("{n} sockets were handed over, and the server takes one"),
                "give the .socket unit one ListenStream=; [::]:7447 listens for IPv4 too",
            );
        }
    }
    #[allow(unsafe_code, reason = "the number is all that the service manager tells")]
    // SAFETY: by the protocol of the two variables, which name this process, the descriptor is
    // open and belongs to nobody else here; this is called once, before any other is made of it.
    let socket = unsafe { OwnedFd::from_raw_fd(FIRST) };
    let fit = rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC).and_then(|()| {
        Ok((sockopt::socket_acceptconn(&socket)?, sockopt::socket_domain(&socket)?))
    });
    let internet = [rustix::net::AddressFamily::INET, rustix::net::AddressFamily::INET6];
    match fit {
        Ok((true, family)) if internet.contains(&family) => Ok(Some(TcpListener::from(socket))),
        _ => fail(
            Class::Usage,
            "what was handed over is not a TCP socket that listens",
            "the .socket unit needs ListenStream= with a port, and Accept=no",
        ),
    }
}
