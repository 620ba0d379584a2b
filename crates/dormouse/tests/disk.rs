//! A point as a disk: its bytes at once, through lost servers and links, from a cache that is
//! believed in nothing.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "disk/cached.rs"]
mod cached;
mod common;
#[path = "disk/lost.rs"]
mod lost;
#[path = "disk/points.rs"]
mod points;
#[path = "disk/stand.rs"]
mod stand;
