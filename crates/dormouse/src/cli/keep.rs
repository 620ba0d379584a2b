//! Flags of the commands about what is kept.

use std::path::PathBuf;

use clap::Args;

use crate::keep::{Place, Pruning, Setting};

/// Where the store is.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Store")]
pub struct PlaceArgs {
    /// The store's directory, for who runs it; without this, over the link as an administrator
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// The vault, by the first digits of its id, where a store has several
    #[arg(long, value_name = "ID", requires = "store")]
    pub vault: Option<String>,
}

impl PlaceArgs {
    /// The place.
    pub fn place(&self) -> Place {
        Place { store: self.store.clone(), vault: self.vault.clone() }
    }
}

/// Of `retention`.
#[derive(Debug, Args)]
pub struct RetentionArgs {
    /// The volume; without it, all are shown
    #[arg(required_if_eq("default", "true"))]
    pub volume: Option<String>,
    /// Such as all:24h,hourly:7d,daily:30d,weekly:1y; none takes it back
    pub policy: Option<String>,
    /// Of all volumes that have none of their own: `retention --default POLICY`
    #[arg(long, conflicts_with = "policy")]
    pub default: bool,
    /// How long what was set before keeps what it keeps, too; at least a day without --store
    #[arg(long, value_name = "DURATION", default_value = "7d")]
    pub grace: String,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Where the store is.
    #[command(flatten)]
    pub place: PlaceArgs,
}

impl RetentionArgs {
    /// What is to be set, or shown.
    pub fn setting(&self) -> Setting {
        let (default, grace) = (self.default, self.grace.clone());
        let (volume, policy) = match default {
            true => (None, self.volume.clone()),
            false => (self.volume.clone(), self.policy.clone()),
        };
        Setting { volume, default, policy, grace }
    }
}

/// Of `prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// The volume; without it, all
    pub volume: Option<String>,
    /// Say what would go, and let nothing go
    #[arg(long)]
    pub dry_run: bool,
    /// The server's clock is right, though it does not look so: go on
    #[arg(long, conflicts_with = "dry_run")]
    pub clock_is_right: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Where the store is.
    #[command(flatten)]
    pub place: PlaceArgs,
}

impl PruneArgs {
    /// How.
    pub fn how(&self) -> Pruning<'_> {
        let (dry_run, clock_is_right) = (self.dry_run, self.clock_is_right);
        Pruning { volume: self.volume.as_deref(), dry_run, clock_is_right }
    }
}

/// Of `delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// VOLUME, VOLUME@N, or VOLUME@WHEN..WHEN; WHEN is a number or a time
    #[arg(value_name = "VOLUME[@WHEN..WHEN]")]
    pub what: String,
    /// How long it can be undone; at least a day without --store
    #[arg(long, value_name = "DURATION", default_value = "7d")]
    pub grace: String,
    /// Where the store is.
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// Of `undelete`.
#[derive(Debug, Args)]
pub struct UndeleteArgs {
    /// The volume
    pub volume: String,
    /// Where the store is.
    #[command(flatten)]
    pub place: PlaceArgs,
}
