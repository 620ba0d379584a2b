//! Tests of the store through what it offers to others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod append;
mod collect;
mod faults;
mod forks;
mod gain;
mod hooked;
mod index;
mod kit;
mod model;
mod recovery;
mod replica;
mod rules;
mod scrub;
