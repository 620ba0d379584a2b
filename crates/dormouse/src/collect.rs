//! `dormouse collect STORE`, and a round of collection as the server runs it.
//!
//! Owns: what may be set (`server.toml`, flags), how fast a round goes, what is told of it.
//! Leaves to others: what goes (`dormouse_store::collect`), and when (`serve::collecting`).

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use dormouse_format::VaultId;
use dormouse_store::VaultStore;
use dormouse_store::collect::{Round, Rules};
use dormouse_sync::server::Registry;
use serde_json::json;

use crate::access::Access;
use crate::bucket;
use crate::daemon::quantity;
use crate::exit::{Class, Failure, fail};
use crate::log::Log;
use crate::out::say;
use crate::pace::Pace;
use crate::store_dir::{Config, StoreDir};
use crate::text::{now_ns, size};
use crate::when;

/// Bytes a second that a round reads and writes, unless something else is said: 16 MiB.
const RATE: NonZeroU64 = NonZeroU64::new(16 << 20).unwrap();

/// How a collection is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// What goes.
    pub rules: Rules,
    /// Bytes a second.
    pub rate: NonZeroU64,
}

impl Settings {
    /// What `server.toml` and flags say; flags count more.
    pub fn new(config: &Config, grace: Option<&str>, rate: Option<&str>) -> Result<Self> {
        let mut rules = Rules::default();
        if let Some(grace) = grace.or(config.collect_grace.as_deref()) {
            rules.grace_ns = when::duration_ns(grace).context("the grace of the collection")?;
        }
        let rate = match rate.or(config.collect_rate.as_deref()) {
            None => RATE,
            Some(rate) => quantity::rate(rate).context("the rate of the collection")?,
        };
        Ok(Self { rules, rate })
    }
}

/// Runs a round; `stopped` is asked again and again.
pub fn round(
    vault: &VaultStore,
    settings: &Settings,
    dry: bool,
    stopped: &dyn Fn() -> bool,
) -> dormouse_store::Result<Round> {
    let pace = Pace::new(settings.rate);
    let mut go_on = |bytes: u64| {
        pace.take(bytes);
        !stopped()
    };
    if dry {
        vault.plan_collection(now_ns(), &settings.rules, &mut go_on)
    } else {
        vault.collect(now_ns(), &settings.rules, &mut go_on)
    }
}

/// What a round did, in a line.
pub fn line(vault: &VaultId, round: &Round, dry: bool) -> String {
    let Round { segments, young, retired, retired_bytes, copied_bytes, dead_bytes, .. } = round;
    let gained = retired_bytes.saturating_sub(*copied_bytes);
    let (did, freed) = if dry { ("would retire", "to gain") } else { ("retired", "gained") };
    let mut line = format!(
        "vault {vault}: {did} {retired} of {segments} segments, {} written again, {freed} {}; {} of \
         old segments are dead, {young} segments are too young",
        size(*copied_bytes),
        size(gained),
        size(*dead_bytes),
    );
    for fault in &round.damaged {
        line += &format!("; {} stays: {}", fault.segment, fault.why);
    }
    if round.put_off {
        line += "; the rest waits for a client that is sending much";
    }
    line
}

/// What the command was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Nothing is changed.
    pub dry: bool,
    /// For how long what nothing refers to stays.
    pub grace: Option<&'a str>,
    /// Bytes a second.
    pub rate: Option<&'a str>,
    /// Figures as JSON lines.
    pub json: bool,
}

/// Runs the command.
pub fn run(store: &Path, asked: Asked<'_>) -> Result<()> {
    let store = StoreDir::open(store)?;
    let settings = Settings::new(&store.config()?, asked.grace, asked.rate)?;
    let _lock = store.lock().map_err(|e| {
        e.context("a server that runs collects by itself (server.toml); to do it by hand, stop it")
    })?;
    let store = bucket::attach_to_write(store, &Log::stderr())?;
    let access = Arc::new(Access::new(store.clone(), Log::stderr()));
    let done = store.can_collect().and_then(|()| rounds(&store, &access, &settings, asked));
    // Also after an error: what was put aside for a bucket is brought there.
    access.close();
    let damaged = done?;
    if damaged == 0 {
        return Ok(());
    }
    fail(
        Class::Damaged,
        format!("{damaged} segments hold damaged records that are needed, and stay"),
        "run `dormouse scrub STORE`: it tells which points they touch",
    )
}

/// A round over every vault; how many segments hold damaged records.
fn rounds(
    store: &StoreDir,
    access: &Access,
    settings: &Settings,
    asked: Asked<'_>,
) -> Result<usize> {
    let mut damaged = 0;
    for id in store.vaults()? {
        let opened = access.vault(&id).map_err(|refused| {
            Failure::new(Class::Damaged, format!("vault {id}: {}", refused.text))
                .hint("run `dormouse scrub STORE`")
        })?;
        let Some(vault) = opened else { continue };
        let round = round(&vault, settings, asked.dry, &|| false)
            .with_context(|| format!("vault {id} is not collected"))?;
        damaged += round.damaged.len();
        tell(&id, &round, asked)?;
    }
    Ok(damaged)
}

fn tell(id: &VaultId, round: &Round, asked: Asked<'_>) -> Result<()> {
    if !asked.json {
        return say!("{}", line(id, round, asked.dry));
    }
    let damaged: Vec<_> = round
        .damaged
        .iter()
        .map(|f| json!({ "segment": f.segment, "offset": f.offset, "why": f.why }))
        .collect();
    say!(
        "{}",
        json!({
            "event": "collected", "vault": id.to_string(), "dry_run": asked.dry,
            "segments": round.segments, "young": round.young, "dead_bytes": round.dead_bytes,
            "retired": round.retired, "retired_bytes": round.retired_bytes,
            "copied_bytes": round.copied_bytes, "put_off": round.put_off, "damaged": damaged,
        })
    )
}
