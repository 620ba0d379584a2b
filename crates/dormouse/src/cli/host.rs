//! The command line of what looks after the server's machine and its stores.

use std::path::PathBuf;

use clap::Args;

/// Of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The store's directory
    pub store: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Of `jail-probe`.
#[derive(Debug, Args)]
pub struct JailProbeArgs {
    /// A directory of its own
    pub dir: PathBuf,
    /// As the server of a store in object storage
    #[arg(long)]
    pub bucket: bool,
    /// A layer that is left out
    #[arg(long, value_name = "LAYER")]
    pub without: Vec<String>,
}

/// Of `name-helper`.
#[derive(Debug, Args)]
pub struct NameHelperArgs {
    /// The only name that it resolves
    pub host: String,
}

/// Of `replicate`.
#[derive(Debug, Args)]
pub struct ReplicateArgs {
    /// The store's directory
    pub store: PathBuf,
    /// The second copy's directory: new, empty, or a copy of this store
    pub target: PathBuf,
    /// As JSON lines
    #[arg(long)]
    pub json: bool,
}

/// Of `promote`.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// The second copy's directory
    pub target: PathBuf,
}
