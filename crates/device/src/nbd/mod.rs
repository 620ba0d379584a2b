//! A network block device: disks for every program that speaks NBD.
//!
//! Owns: the server's side of the protocol, from the greeting to the last reply, over Unix and
//! TCP sockets. Invariants: every length and number from a peer is bounded before it is used;
//! a device sees only requests within its size; a peer that breaks the protocol, is slow, or
//! says nothing costs its own connection and nobody else's; a stop finishes what has begun.
//! Leaves to others: the disks ([`BlockDevice`]), and TLS ([`StartTls`], the program).
//!
//! Parts without I/O: [`protocol`] (numbers and layouts), [`options`] and [`handshake`] (until a
//! disk is chosen), [`request`] (what is asked of it), [`context`] (what is told about it).
//! Parts with: [`answer`] (a request is carried out), [`connection`], [`pool`], [`server`],
//! [`socket`].

pub mod answer;
pub mod buffer;
mod connection;
pub mod context;
pub mod handshake;
pub mod options;
mod pool;
pub mod protocol;
pub mod request;
pub mod server;
pub mod socket;
mod transmission;

use std::sync::Arc;

use crate::BlockDevice;
use protocol::{NAME_MAX, flags};

pub use server::{Limits, Listener, Server, Settings};
pub use socket::{Socket, StartTls, Stream, Wait};
pub use transmission::serve_transmission;

/// A disk under a name.
#[derive(Clone)]
pub struct Export {
    /// What peers ask for.
    pub name: String,
    /// What it is, for people.
    pub description: String,
    /// The disk.
    pub device: Arc<dyn BlockDevice>,
}

impl Export {
    /// What may be done with it; a part depends on what was agreed on before.
    pub fn flags(&self, structured: bool) -> u16 {
        let mut bits = flags::HAS_FLAGS | flags::SEND_FLUSH | flags::SEND_FUA | flags::SEND_CACHE;
        // A flush covers what returned before it, whichever connection it came from.
        bits |= flags::CAN_MULTI_CONN;
        bits |= match self.device.geometry().read_only {
            true => flags::READ_ONLY,
            false => flags::SEND_TRIM | flags::SEND_WRITE_ZEROES | flags::SEND_FAST_ZERO,
        };
        if structured {
            bits |= flags::SEND_DF;
        }
        bits
    }
}

impl core::fmt::Debug for Export {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Export").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All disks of a server.
#[derive(Debug, Clone, Default)]
pub struct Exports(Vec<Arc<Export>>);

impl Exports {
    /// These; an error tells the name that cannot be used.
    pub fn new(exports: Vec<Export>) -> Result<Self, String> {
        let mut all: Vec<Arc<Export>> = Vec::new();
        for export in exports {
            let name = &export.name;
            if name.len() > NAME_MAX || export.description.len() > NAME_MAX {
                return Err(format!("a name or description has over {NAME_MAX} bytes"));
            }
            if all.iter().any(|e| e.name == *name) {
                return Err(format!("'{name}' is named twice"));
            }
            all.push(Arc::new(export));
        }
        Ok(Self(all))
    }

    /// The one of this name. The empty name is the only one there is, if nothing has it.
    pub fn find(&self, name: &str) -> Option<&Arc<Export>> {
        let named = self.0.iter().find(|e| e.name == name);
        named.or(if name.is_empty() && self.0.len() == 1 { self.0.first() } else { None })
    }

    /// All.
    pub fn all(&self) -> &[Arc<Export>] {
        &self.0
    }
}
