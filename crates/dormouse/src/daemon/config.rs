//! The daemon's file: which devices are mirrored, and how.
//!
//! Owns: what a mirror can be told ([`MirrorConfig`], also of the command line), and what the
//! file can say ([`Config`]). Invariant: a value of these types is within its bounds, and two
//! mirrors of a file share neither device nor volume. Reading does not look at the machine:
//! that is [`super::check`]. Leaves to others: finding keys and places in the text ([`read`]).

mod read;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::exit::{Class, Failure};
use crate::{files, volume_name};

/// Where the file is unless the command line says otherwise.
pub const DEFAULT_FILE: &str = "/etc/dormouse/mirror.toml";
/// Points closer together than this are not asked for.
pub const POINT_EVERY_MIN: Duration = Duration::from_millis(100);
/// Nor further apart.
pub const POINT_EVERY_MAX: Duration = Duration::from_secs(24 * 3600);
/// Periodic compares closer together than this are not asked for.
pub const SCAN_EVERY_MIN: Duration = Duration::from_secs(10);
/// Less than this a second is no mirror: a chunk is up to 256 KiB.
pub const LIMIT_MIN: u64 = 16 << 10;
/// Problems of one file that are told.
const TOLD_MAX: usize = 40;

/// Whether file systems are held still for a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freeze {
    /// When a point cannot be had without.
    Auto,
    /// Never: points are settled, or fuzzy.
    Never,
}

/// What becomes of active swap on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// It is left out: zeros, but for its header.
    Skip,
    /// It is copied as anything else.
    Copy,
}

/// What is taken for a proof, after a reboot, that the disk was not written meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterReboot {
    /// A count of the disk that nothing can pass by; else all is compared.
    Prove,
    /// The disk's count of write commands, though discards may not be among them.
    Trust,
}

/// How it is known what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracker {
    /// Programs in the kernel mark each write.
    Ebpf,
    /// Everything is compared now and then.
    Scan,
}

/// A program that is run before or after a freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Its absolute path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

/// One device to be mirrored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorConfig {
    /// The block device, or a file.
    pub device: PathBuf,
    /// The volume's name.
    pub volume: String,
    /// How old the newest consistent point may become before one is made by freezing, if
    /// anything changed. Settled points come as often as they can be had.
    pub point_every: Duration,
    /// Whether file systems are frozen for points.
    pub freeze: Freeze,
    /// Bytes a second that may be sent; none is no limit.
    pub limit: Option<NonZeroU64>,
    /// Whether active swap is left out.
    pub swap: Swap,
    /// Whether a reboot needs a scan.
    pub after_reboot: AfterReboot,
    /// How changes are found.
    pub tracker: Tracker,
    /// Time between two compares, for [`Tracker::Scan`].
    pub scan_every: Duration,
    /// How hard zstd tries, 1 to 19.
    pub level: i32,
    /// Run before a freeze.
    pub hook_before: Option<Hook>,
    /// Run after it.
    pub hook_after: Option<Hook>,
    /// Take the volume over from another installation; said on the command line only, never in a
    /// file: it must not be repeated at each start.
    pub takeover: bool,
    /// Another disk than the one in the volume is meant; said on the command line only, too.
    pub same_disk: bool,
}

impl MirrorConfig {
    /// A mirror of this device, with everything else as it is by default.
    pub fn new(device: PathBuf) -> Self {
        Self {
            volume: volume_name::of_source(&device),
            device,
            point_every: Duration::from_secs(60),
            freeze: Freeze::Auto,
            limit: None,
            swap: Swap::Skip,
            after_reboot: AfterReboot::Prove,
            tracker: Tracker::Ebpf,
            scan_every: Duration::from_secs(15 * 60),
            level: 1,
            hook_before: None,
            hook_after: None,
            takeover: false,
            same_disk: false,
        }
    }
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the status socket is, if not in the home.
    pub status: Option<PathBuf>,
    /// Where metrics are served over HTTP.
    pub metrics: Option<SocketAddr>,
    /// The devices; at least one.
    pub mirrors: Vec<MirrorConfig>,
}

/// Something wrong in the file, with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The key, if it is about one.
    pub key: Option<String>,
    /// What is wrong, and what is allowed.
    pub message: String,
}

impl Config {
    /// Reads the text of a file; or everything that is wrong with it, by place.
    pub fn parse(text: &[u8]) -> Result<Self, Vec<Problem>> {
        read::config(text)
    }

    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self> {
        Self::parse(&bytes_of(path)?).map_err(|problems| failure(path, &problems).into())
    }
}

/// The bytes of a file that must be there.
pub fn bytes_of(path: &Path) -> Result<Vec<u8>> {
    files::read_opt(path)?.ok_or_else(|| {
        Failure::new(Class::NotFound, format!("there is no file {}", path.display()))
            .hint(
                "name the file of the mirrors; the least that it holds is\n    \
                 [[mirror]]\n    device = \"/dev/disk/by-id/…\"",
            )
            .into()
    })
}

/// All problems of a file as one error, a line each.
pub fn failure(path: &Path, problems: &[Problem]) -> Failure {
    let shown = path.display();
    let count = match problems.len() {
        1 => "an error".to_owned(),
        n => format!("{n} errors"),
    };
    let mut lines: Vec<String> = problems
        .iter()
        .take(TOLD_MAX)
        .map(|p| format!("{shown}:{}:{}: {}", p.line, p.column, p.message))
        .collect();
    if problems.len() > TOLD_MAX {
        lines.push(format!("and {} more", problems.len() - TOLD_MAX));
    }
    Failure::new(Class::Usage, format!("{shown} has {count}")).hint(lines.join("\n"))
}
