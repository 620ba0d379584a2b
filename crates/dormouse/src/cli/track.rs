//! `dormouse track`: for the start of a machine, when there is no home and no network, and for its end.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;

use crate::home::Home;
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
    /// Keep what is known of the disks of mirrors that have ended, so that the next start needs no scan
    ///
    /// For the stop of a machine, when the file systems on these disks are unmounted and the home can
    /// still be written: dormouse-close.service.
    Save,
}

impl TrackCommand {
    /// Runs the command.
    pub fn run(&self, home: Option<&Path>) -> Result<()> {
        match self {
            Self::Pin { devices } => devices.iter().try_for_each(|device| {
                Ok(say!("{} is watched: {}", device.display(), live::pin(device)?)?)
            }),
            Self::Save => {
                let home = Home::locate(home.map(Path::to_owned))?;
                live::save(&home)?.iter().try_for_each(|line| Ok(say!("{line}")?))
            }
        }
    }
}
