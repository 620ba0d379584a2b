//! `dormouse export`: flags and their help.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use dormouse_device::layers::spec::Spec;

use super::write::WriteArgs;
use crate::daemon::quantity;
use crate::disk::DiskOptions;
use crate::export::{Options, Tls};

/// Of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// VOLUME or VOLUME@WHEN, several of them; clients know them by this name
    #[arg(value_name = "VOLUME[@WHEN]", required = true)]
    pub what: Vec<String>,
    /// Where to listen: unix:PATH or HOST:PORT
    #[arg(long, value_name = "unix:PATH|HOST:PORT", required_unless_present = "run")]
    pub nbd: Option<String>,
    /// Let clients write: what they write is kept in this file, and nowhere else
    ///
    /// Made if it is not there. It belongs to one volume at one point, and is as large as what
    /// was written. For one volume.
    #[arg(long, value_name = "FILE")]
    pub overlay: Option<PathBuf>,
    /// Writing the volume itself.
    #[command(flatten)]
    pub writing: WriteArgs,
    /// Keep blocks that were read in this directory
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// How much it may take
    #[arg(long, value_name = "SIZE", default_value = "4GiB", requires = "cache")]
    pub cache_size: String,
    /// Pull what was not read yet into the cache, in the background
    #[arg(long, requires = "cache")]
    pub fill: bool,
    /// Fail reads for which the server has no answer for that long [default: wait]
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,
    /// A fuzzy point may be chosen
    #[arg(long)]
    pub fuzzy: bool,
    /// The history must hold the point with this hash, whatever this machine knows of it
    #[arg(long, value_name = "HASH")]
    pub expect_head: Option<String>,
    /// Speak TLS only, with ca-cert.pem, server-cert.pem and server-key.pem of this directory
    ///
    /// Clients must show a certificate of the same authority.
    #[arg(long, value_name = "DIR")]
    pub tls_certificates: Option<PathBuf>,
    /// Clients need no certificate: whoever reaches the port may read
    #[arg(long, requires = "tls_certificates")]
    pub tls_any_client: bool,
    /// Listen beyond this machine without TLS
    #[arg(long, conflicts_with = "tls_certificates")]
    pub insecure: bool,
    /// Write the process's number there when clients can connect
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Run this with a shell when clients can connect, and end with it; $uri is the first disk
    #[arg(long, value_name = "COMMAND")]
    pub run: Option<String>,
    /// Events as JSON lines
    #[arg(long)]
    pub json: bool,
    /// For tests: delay=5ms, fault=write:1/100, log, check-writes
    #[arg(long, value_name = "LAYER", hide = true)]
    pub layer: Vec<Spec>,
}

impl ExportArgs {
    /// What the command is told.
    pub fn to_options(self) -> Result<Options> {
        let size = quantity::size(&self.cache_size)?.get();
        let disk = DiskOptions {
            cache: self.cache.map(|dir| (dir, size)),
            timeout: self.timeout.as_deref().map(quantity::duration).transpose()?,
            fill: self.fill,
            fuzzy: self.fuzzy,
            expect_head: self.expect_head,
        };
        Ok(Options {
            what: self.what,
            nbd: self.nbd,
            overlay: self.overlay,
            writing: self.writing.to_options(&disk)?,
            disk,
            tls: self.tls_certificates.map(|dir| Tls { dir, any_client: self.tls_any_client }),
            insecure: self.insecure,
            pid_file: self.pid_file,
            run: self.run,
            json: self.json,
            layers: self.layer,
        })
    }
}
