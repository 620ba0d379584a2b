//! Single blocks of a point, in any order: against a plain array, through lost links, and from
//! a server that lies.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "read/lies.rs"]
mod lies;
#[path = "read/model.rs"]
mod model;
