//! Tells which blocks of a local disk have changed, and holds its file systems still.
//!
//! Owns: the dirty bitmaps and the programs in the kernel that set them, what is known of a
//! block device, and freezing. Invariant: a mark cannot fail and cannot be dropped; a gap in
//! watching is noticed, never hoped away. Leaves to others: what is done about a dirty block
//! (`dormouse_sync`), and when (`dormouse`).

pub mod closed;
pub mod device;
pub mod dirty;
pub mod discards;
pub mod disk_id;
pub mod early;
pub mod ebpf;
mod error;
pub mod freeze;
pub mod look;
mod mapped;
pub mod marks;
pub mod nvme;
pub mod priority;
pub mod record;
pub mod routes;
pub mod runs;
pub mod sleep;
pub mod swap;
pub mod sweep;

pub use error::{Error, Result};
