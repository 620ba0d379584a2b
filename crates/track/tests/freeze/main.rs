//! Freezing real file systems on loop devices, and everything that can die meanwhile.
//!
//! Needs root and loop devices; says so on stderr where these are not there. This binary also
//! plays the helper and the daemon that is killed: it starts itself again in these roles.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

mod deaths;
mod holds;
mod hurry;
mod memory;
mod roles;
mod slow;
mod stand;
mod surveys;
