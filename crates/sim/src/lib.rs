//! The simulator: the real store and both ends of the protocol, on disks, links,
//! clocks and randomness that a seed decides.
//!
//! Owns: faults, the model of what must be, and the checkers that compare. Leaves to
//! others: everything that is judged. Never shipped.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a test tool: its own failure ends it"
)]
#![allow(missing_debug_implementations)]

pub mod crash;
pub mod drive;
pub mod flips;
pub mod histories;
pub mod machine;
pub mod objects;
pub mod random;
pub mod reading;
pub mod registry;
pub mod run;
pub mod source;
pub mod storage;
pub mod wire;
pub mod world;

pub use machine::Machine;
pub use random::{Lcg, noise};
pub use source::Disk;
pub use wire::Liar;
pub use world::World;
