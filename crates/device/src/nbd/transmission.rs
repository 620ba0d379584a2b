//! A connection without a handshake: both sides know the disk, as the kernel does that was told
//! of it by other means.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::buffer::In;
use super::connection::{self, Ended, Shared};
use super::handshake::Chosen;
use super::pool::{Budget, Pool};
use super::{Export, Exports, Settings, Socket};
use crate::BlockDevice;

/// Answers requests with simple replies until the peer ends the connection, or breaks the
/// protocol. What was begun has ended then, and what was written is flushed.
pub fn serve_transmission(socket: OwnedFd, device: Arc<dyn BlockDevice>) -> Result<(), Ended> {
    let settings = Settings::default();
    let shared = Shared {
        exports: Exports::default(),
        pool: Pool::new(settings.limits.workers),
        budget: Arc::new(Budget::new(settings.limits.memory)),
        stopping: AtomicBool::new(false),
        settings,
    };
    let export = Export { name: String::new(), description: String::new(), device };
    let chosen = Chosen { export: Arc::new(export), structured: false, contexts: Vec::new() };
    connection::serve(&shared, Box::new(Socket::new(socket)), chosen, In::default())
}
