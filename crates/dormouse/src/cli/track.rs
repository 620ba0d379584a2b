//! `dormouse track`: for an initramfs, which has no home and no network.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;

use crate::live;
use crate::out::say;

/// Of `track`.
#[derive(Debug, Subcommand)]
pub enum TrackCommand {
    /// Watch disks from now on; what mirrors them later goes on from here
    ///
    /// For an initramfs, before root is mounted. Needs a BPF file system on /sys/fs/bpf, and nothing else.
    Pin {
        /// The disks, or parts of disks, exactly as they are mirrored
        #[arg(required = true)]
        devices: Vec<PathBuf>,
    },
}

impl TrackCommand {
    /// Runs the command.
    pub fn run(&self, _home: Option<&Path>) -> Result<()> {
        let Self::Pin { devices } = self;
        for device in devices {
            say!("{} is watched: {}", device.display(), live::pin(device)?)?;
        }
        Ok(())
    }
}
