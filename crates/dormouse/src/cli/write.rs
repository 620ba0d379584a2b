//! Flags of what opens a volume for writing: which promise a flush makes, and how often points
//! are made.

use anyhow::Result;
use clap::Args;

use crate::daemon::quantity;
use crate::disk::DiskOptions;
use crate::exit::{Class, fail};
use crate::netdisk::{Durability, LOG_BYTES_MAX, LOG_BYTES_MIN, Options};

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
    /// What may be written before the server has it; then writes wait [default: a quarter of what is
    /// free where the home is, at most 4GiB]
    #[arg(long, value_name = "SIZE", requires = "write")]
    pub log_size: Option<String>,
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
        let log_bytes = self.log_size.as_deref().map(log_bytes).transpose()?;
        Ok(Some(Options {
            durability: if self.sync { Durability::Server } else { Durability::Local },
            point_every: quantity::duration(&self.point_every)?,
            log_bytes,
            timeout: reading.timeout,
            discard: self.discard_log,
            takeover: self.takeover,
            ..Options::default()
        }))
    }
}

fn log_bytes(size: &str) -> Result<u64> {
    let bytes = quantity::size(size)?.get();
    if !(LOG_BYTES_MIN..=LOG_BYTES_MAX).contains(&bytes) {
        let message = format!("--log-size {size} is out of range");
        return fail(Class::Usage, message, "from 16MiB to 4GiB");
    }
    Ok(bytes)
}
