//! What can go wrong between here and the kernel.

use std::io;
use std::path::PathBuf;

/// An error of this crate, but for freezing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path is no block device.
    #[error("{0} is no block device")]
    NotADevice(PathBuf),
    /// The kernel tells nothing, or nothing that can be used, about a device.
    #[error("cannot learn about the device from {path}: {source}")]
    Sysfs {
        /// What was read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its writes complete on another device, which is not watched.
    #[error("{0} is the head of several paths: its writes cannot be watched")]
    Multipath(String),
    /// The kernel refuses eBPF.
    #[error("the kernel does not allow to {what} (eBPF needs root, or CAP_BPF and CAP_PERFMON)")]
    NotPermitted {
        /// What was tried.
        what: &'static str,
    },
    /// The kernel lacks something.
    #[error("this kernel cannot watch a disk: {0}")]
    Kernel(String),
    /// The place for pins is no BPF file system.
    #[error("{0} does not lie on a BPF file system")]
    NoBpfFs(PathBuf),
    /// Pins could not be made or used.
    #[error("cannot {what} {path}: {source}")]
    Pin {
        /// What was tried.
        what: &'static str,
        /// The pin.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
