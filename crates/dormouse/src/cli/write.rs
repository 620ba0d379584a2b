//! Flags of what opens a volume for writing: which promise a flush makes, and how often points
//! are made.

use anyhow::Result;
use clap::Args;

use crate::daemon::quantity;
use crate::disk::DiskOptions;
use crate::netdisk::{Durability, Options};

/// Of `attach` and `export`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Writing")]
pub struct WriteArgs {
    /// Write the volume itself: each write goes to the server, with history
    #[arg(long, conflicts_with_all = ["overlay", "expect_head", "fuzzy"])]
    pub write: bool,
    /// A flush is done when the server has everything
    #[arg(long, requires = "write", conflicts_with = "writeback")]
    pub sync: bool,
    /// A flush is done when this machine's disk has everything; it is sent soon [default]
    #[arg(long, requires = "write")]
    pub writeback: bool,
    /// A point at most this often; with --sync each flush makes one
    #[arg(long, value_name = "DURATION", default_value = "1s", requires = "write")]
    pub point_every: String,
    /// What may be written before the server has it; then writes wait
    #[arg(long, value_name = "SIZE", default_value = "1GiB", requires = "write")]
    pub log_size: String,
    /// Give up what was written here, and not sent, before the last stop
    #[arg(long, requires = "write")]
    pub discard_log: bool,
    /// Take the volume over from the writer that holds it
    #[arg(long, requires = "write")]
    pub takeover: bool,
}

impl WriteArgs {
    /// How it is written, if it is.
    pub fn to_options(&self, reading: &DiskOptions) -> Result<Option<Options>> {
        if !self.write {
            return Ok(None);
        }
        Ok(Some(Options {
            durability: if self.sync { Durability::Server } else { Durability::Local },
            point_every: quantity::duration(&self.point_every)?,
            log_bytes: quantity::size(&self.log_size)?.get().max(16 << 20),
            timeout: reading.timeout,
            discard: self.discard_log,
            takeover: self.takeover,
            ..Options::default()
        }))
    }
}
