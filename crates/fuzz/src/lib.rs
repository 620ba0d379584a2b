//! Fuzz targets of Dormouse: one function from bytes to nothing for each decoder.
//!
//! Owns: the table of targets, what each asserts, and the seeds of their corpora.
//! Invariant: a target depends on its input alone, so that a file replays what the fuzzer
//! saw; it asserts what must hold of *every* input, and panics if it does not.
//! Two kinds: *raw* targets hand the input to the decoder; *repaired* ones put what the
//! input says under checks and signatures that hold, so that the fuzzer reaches what lies
//! behind them. The program that runs them is `src/bin/fuzz.rs`; `cargo xtask fuzz` builds it.
//! Never shipped.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod corpus;
pub mod input;
pub mod log_reader;
pub mod scratch;
pub mod targets;
pub mod world;

/// One fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in `corpus/`.
    pub name: &'static str,
    /// What it decodes.
    pub what: &'static str,
    /// Runs it; a panic is a fault found.
    pub run: fn(&[u8]),
    /// Inputs that a corpus begins with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Longest input that the fuzzer tries.
    pub len_max: usize,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    targets::format::SEGMENT,
    targets::format::RECORD,
    targets::format::EXTENTS,
    targets::format::DELTA,
    targets::format::POINT,
    targets::format::VAULT,
    targets::message::MESSAGE,
    targets::message::DEFRAMER,
    targets::nbd::NBD,
    targets::nbd_link::LINK,
    targets::write_log::LIFE,
    targets::log_files::FILES,
    targets::chunk::CHUNK,
    targets::map::PAGE,
    targets::map::NODE,
    targets::index::INDEX,
    targets::store::RAW,
    targets::store::LOG,
    targets::session::SESSION,
    targets::restore::RESTORE,
    targets::text::INVITE,
    targets::text::ADDRESS,
    targets::text::WHEN,
    targets::text::NAMES,
    targets::files::KIT,
    targets::files::WRITER,
    targets::files::CONFIG,
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|t| t.name == name)
}
