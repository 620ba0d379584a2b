//! A vault's segments in object storage, over a back end in memory with faults: what was
//! acknowledged is there after crashes, after the loss of this machine, and beside a second server.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod faulty;
mod kept;
mod model;
mod servers;
mod stand;
