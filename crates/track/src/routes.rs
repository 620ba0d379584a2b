//! Tells when the network has changed: a route, an address or an interface came or went.
//!
//! Owns: a socket to the kernel's routing messages. They are not read, only counted as news:
//! what the network is like now is found out by trying. Invariant: a change is not missed; when
//! the kernel had to drop messages, that is news too. Leaves to others: what is done about it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with,
};

/// Groups of messages, as bits; linux/rtnetlink.h.
const RTMGRP_LINK: u32 = 0x1;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV4_ROUTE: u32 = 0x40;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;
const RTMGRP_IPV6_ROUTE: u32 = 0x400;
const GROUPS: u32 =
    RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE;
/// Messages taken at once: a flood must not hold up who asks. The rest is news next time.
const DRAIN_MAX: usize = 4096;

/// Watches the network of the namespace that it was made in. Needs no rights.
#[derive(Debug)]
pub struct RouteWatch {
    socket: OwnedFd,
}

impl RouteWatch {
    /// Begins to watch.
    pub fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No protocol is protocol 0: NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self { socket })
    }

    /// Whether something changed since the last time. Does not wait: poll the descriptor.
    pub fn drain(&self) -> io::Result<bool> {
        let mut changed = false;
        for _ in 0..DRAIN_MAX {
            // What does not fit is cut off by the kernel: nobody reads it.
            match recv(&self.socket, &mut [0u8; 16], RecvFlags::empty()) {
                Ok(_) | Err(Errno::NOBUFS) => changed = true,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(changed)
    }
}

impl AsFd for RouteWatch {
    /// Readable when there is news.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
