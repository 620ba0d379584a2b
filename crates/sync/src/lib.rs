//! Both ends of Dormouse's protocol, without I/O.
//!
//! Owns: what is asked and answered, in which order, and what is believed.
//! Invariant: the client believes nothing that is not under a signed root; the
//! server accepts nothing that is not proved. Time, randomness and I/O come in
//! as arguments.
//! Leaves to others: sockets, threads, disks (the program), and what lies in the
//! store (`dormouse-store`).
#![forbid(unsafe_code)]
#![allow(clippy::large_enum_variant, reason = "messages move by value, and few live at once")]

pub mod bridge;
pub mod checkpoint;
mod chunks;
pub mod copy;
pub mod cut;
pub mod error;
pub mod fetch;
pub mod history;
pub mod leaf;
pub mod live;
pub mod map;
pub mod overlay;
pub mod read;
pub mod server;

pub use error::{Error, Result};
