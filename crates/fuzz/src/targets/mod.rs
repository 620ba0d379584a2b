//! The targets, by the crate or the file that they try.

pub mod chunk;
pub mod files;
pub mod format;
pub mod index;
pub mod log_files;
pub mod map;
pub mod message;
pub mod nbd;
pub mod nbd_link;
pub mod restore;
pub mod session;
pub mod store;
pub mod text;
pub mod write_log;
