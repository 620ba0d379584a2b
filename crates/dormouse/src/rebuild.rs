//! `dormouse rebuild STORE`: makes anew what can be made anew.
//!
//! For a lost machine's store in a bucket that is the whole state ([`crate::bucket::rebuild`]);
//! here, for a directory that is there. Owns: the order: state files first, then every vault's index, from its segments. Invariant:
//! segments are not touched but as at every start (an unfinished end is set aside); a state file
//! that does not hold is moved to `set-aside/`, never deleted; what cannot be made anew (a
//! client's key) is said by name, with what to do.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use dormouse_format::VaultId;
use dormouse_store::disk::DiskDir;
use dormouse_store::{Options, VaultStore};

use crate::cli::bucket::{LostArgs, RebuildArgs};
use crate::exit::{Class, fail};
use crate::log::Log;
use crate::out::{note, say};
use crate::store_dir::StoreDir;
use crate::{access, bucket};

/// Runs the command.
pub fn run(args: &RebuildArgs) -> Result<()> {
    if let Some(url) = bucket::url_of(&args.store) {
        return bucket::rebuild::run(url, args);
    }
    if args.lost != LostArgs::default() {
        return fail(
            Class::Usage,
            format!(
                "{} is a directory, and of the flags only --new-key goes with it",
                args.store.display()
            ),
            "for a machine that is lost: dormouse rebuild s3://BUCKET/PREFIX --state DIR",
        );
    }
    directory(&args.store, args.new_key)
}

fn directory(path: &Path, new_key: bool) -> Result<()> {
    for line in StoreDir::revive(path, new_key)? {
        note!("{line}");
    }
    let store = StoreDir::open(path)?;
    let _lock = store.lock()?;
    let log = Log::stderr();
    let store = bucket::attach_to_write(store, &log)?;
    let rebuilt = rebuild(&store);
    store.finish(&log);
    rebuilt
}

fn rebuild(store: &StoreDir) -> Result<()> {
    let vaults = store.vaults()?;
    for vault in &vaults {
        index(store, vault).with_context(|| format!("vault {vault}"))?;
    }
    let clients = access::clients(store)?.good;
    for vault in vaults.iter().filter(|v| clients.iter().all(|client| client.vault != **v)) {
        say!("vault {vault}: no client belongs to it any more; its copies are whole")?;
        note!(
            "its clients must join again: `dormouse join --kit KIT` with the recovery kit, or an \
             invite and a file of `dormouse vault export-writer`"
        );
    }
    Ok(())
}

/// Throws the index of a vault away, and opens the vault, which makes it anew.
fn index(store: &StoreDir, vault: &VaultId) -> Result<()> {
    let dir = store.vault_path(vault).join("index");
    if let Ok(entries) = fs::read_dir(&dir) {
        for entry in entries {
            let file = entry?.path();
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
    }
    let Some(segments) = store.segments(vault, false)? else { return Ok(()) };
    let index = Box::new(DiskDir::create_or_open(&dir)?);
    let (open, recovery) = VaultStore::open(segments, index, *vault, Options::default())?;
    for torn in &recovery.torn {
        note!("{}: {} bytes were not whole; kept in {}", torn.segment, torn.bytes, torn.kept_in);
    }
    for fault in &recovery.damaged {
        note!("{}, byte {}: {}", fault.segment, fault.offset, fault.why);
    }
    let stats = open.stats();
    open.close()?;
    store.drain();
    say!(
        "vault {vault}: index of {} segments and {} records; {} volumes, {} points",
        stats.segments,
        stats.records,
        stats.volumes,
        stats.points
    )
}
