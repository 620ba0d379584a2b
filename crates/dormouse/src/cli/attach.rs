//! What `attach`, `detach` and `attached` are told.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use dormouse_device::kernel::Via;

use super::write::WriteArgs;
use crate::daemon::quantity;
use crate::disk::DiskOptions;
use crate::exit::{Class, fail};
use crate::files::{self, Lock};
use crate::home::Home;
use crate::netdisk;
use crate::when;

/// Of `attach`.
#[derive(Debug, Clone, Args)]
pub struct AttachArgs {
    /// VOLUME or VOLUME@WHEN; WHEN is a number, latest, yesterday, '2h ago', or a time
    #[arg(value_name = "VOLUME[@WHEN]")]
    pub what: String,
    /// Keep blocks that were read in this directory [default: one in the home]
    ///
    /// They are not encrypted there; only its owner may read them. They are used again next time,
    /// and checked whenever they are read.
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// How much it may take
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub cache_size: String,
    /// Keep nothing on this machine's disk
    #[arg(long, conflicts_with_all = ["cache", "fill"])]
    pub no_cache: bool,
    /// Pull what was not read yet into the cache, in the background
    #[arg(long)]
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
    /// Make a fork of this name there, and write that: a volume with a history of its own
    ///
    /// If the fork is there already, it goes on being written.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["write", "overlay", "expect_head"])]
    pub fork: Option<String>,
    /// Writing the volume itself.
    #[command(flatten)]
    pub writing: WriteArgs,
    /// Make it writable: what is written goes to this file, which is made if it is not there
    ///
    /// The point stays as it is. The file belongs to this point, and is used again next time.
    #[arg(long, value_name = "FILE")]
    pub overlay: Option<PathBuf>,
    /// Mount it there as well; read-only without --overlay
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// With --mount: this partition, not the whole disk
    #[arg(long, value_name = "N", requires = "mount")]
    pub partition: Option<u32>,
    /// By which way the kernel gets it [default: the best it has]
    #[arg(long, value_enum)]
    pub via: Option<ViaArg>,
    /// Stay, until SIGTERM: for systemd
    #[arg(long)]
    pub foreground: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Disks of one volume that can have a cache in the home at a time.
const CACHES: usize = 64;

impl AttachArgs {
    /// Whether a volume itself is written.
    pub const fn is_written(&self) -> bool {
        self.writing.write || self.fork.is_some()
    }

    /// How it is written, if it is.
    pub fn written(&self, reading: &DiskOptions) -> Result<Option<netdisk::Options>> {
        let write = self.is_written();
        WriteArgs { write, ..self.writing.clone() }.to_options(reading)
    }

    /// How the disk is opened.
    pub fn to_options(&self, home: &Home) -> Result<DiskOptions> {
        let size = quantity::size(&self.cache_size)?.get();
        let cache = match &self.cache {
            _ if self.no_cache => None,
            Some(dir) => Some(dir.clone()),
            None => Some(cache_in(home, &self.what)?),
        };
        Ok(DiskOptions {
            cache: cache.map(|dir| (dir, size)),
            timeout: self.timeout.as_deref().map(quantity::duration).transpose()?,
            fill: self.fill,
            fuzzy: self.fuzzy,
            expect_head: self.expect_head.clone(),
        })
    }
}

/// Where a disk keeps what was read: each needs a directory to itself, and what an earlier one of
/// the volume has read is used again.
fn cache_in(home: &Home, what: &str) -> Result<PathBuf> {
    let (volume, _) = when::split(what)?;
    for n in 0..CACHES {
        let name = if n == 0 { volume.clone() } else { format!("{volume}.{n}") };
        let dir = home.dir().join("cache").join(name);
        files::make_dir(&dir)?;
        if Lock::take(&dir.join("lock"))?.is_ok() {
            return Ok(dir);
        }
    }
    fail(
        Class::InUse,
        format!("{CACHES} disks of '{volume}' are in use, each with a cache"),
        "close some, or give `--no-cache`",
    )
}

/// `--via`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ViaArg {
    /// The driver ublk_drv (Linux 6.0)
    Ublk,
    /// The kernel's NBD client
    Nbd,
    /// A file system in user space and a loop device
    Fuse,
}

impl From<ViaArg> for Via {
    fn from(via: ViaArg) -> Self {
        match via {
            ViaArg::Ublk => Self::Ublk,
            ViaArg::Nbd => Self::Nbd,
            ViaArg::Fuse => Self::Fuse,
        }
    }
}

/// Of `detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// The device, the volume, or the directory that it is mounted on
    #[arg(value_name = "DEVICE|VOLUME|DIR")]
    pub what: String,
    /// Also while it is in use: whoever uses it gets errors
    #[arg(long)]
    pub force: bool,
}

/// Of `attached`.
#[derive(Debug, Args)]
pub struct AttachedArgs {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}
