//! The NBD server: its protocol word by word, hostile peers, and real ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod client;
mod hostile;
mod known_faults;
mod multi;
mod peers;
mod replies;
mod stopping;
