//! The live mirror of a real device: it follows, goes on after whatever dies, holds the disk
//! still, and says what keeps it from that. Needs root, loop devices and eBPF; says so loudly
//! where it cannot run.
//!
//! `DORMOUSE_LIVE_KILLS=200` for a long run of kills, `DORMOUSE_LIVE_SEED=N` for the same one
//! again (as far as a machine's timing lets it).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

#[path = "../common/mod.rs"]
mod common;
mod discards;
mod disks;
mod follows;
mod frozen;
mod load;
mod refusals;
mod restarts;
mod resumed;
mod revoked;
mod stand;
mod swap;
mod unread;
