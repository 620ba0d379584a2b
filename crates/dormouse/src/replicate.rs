//! `dormouse replicate STORE TARGET`: keeps another directory equal to a store, while a server
//! works on the store or not. `dormouse promote TARGET`: makes that copy a store of its own.
//!
//! Owns: what belongs to a second copy, and the mark that a directory is one. Invariants: nothing
//! else writes to a copy, so it stays a prefix of the store ([`StoreDir::lock`] refuses it);
//! the log comes before the state, for clients are worth nothing without their vault. The server's
//! key is a part of it: a copy can take the server's place, and must be guarded like it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dormouse_format::VaultId;
use dormouse_store::disk::DiskDir;
use dormouse_store::replica::{self, Followed, Healing};
use dormouse_store::{Fault, look};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::audit::following;
use crate::exit::{Class, Failure, fail};
use crate::log::Log;
use crate::out::{note, say};
use crate::store_dir::{REPLICA, StoreDir, no_bucket};
use crate::text::{hex, now_ns, size, time_utc};
use crate::{bucket, files};

/// What marks a directory as a second copy.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    /// Fingerprint of the server's key: whose copy it is.
    of: String,
    /// Where the store was.
    from: PathBuf,
    /// When the copy was last equal.
    #[serde(skip_serializing_if = "Option::is_none")]
    equal: Option<String>,
}

/// Runs `replicate`.
pub fn run(from: &Path, to: &Path, as_json: bool) -> Result<()> {
    let store = bucket::attach_to_read(StoreDir::open(from)?, &Log::stderr())?;
    let mark = Mark { of: hex(&store.fingerprint()?), from: store.path().to_owned(), equal: None };
    let target = Target::take(to, mark)?;
    let (mut total, mut failed) = (Followed::default(), Vec::new());
    for vault in store.vaults()? {
        match target.follow(&store, &vault) {
            Ok(done) => {
                for fault in &done.damaged {
                    tell_damage(&vault, fault, as_json)?;
                }
                total.segments += done.segments;
                total.copied += done.copied;
                total.bytes += done.bytes;
                total.damaged.extend(done.damaged);
            }
            // The other vaults are worth their copies all the same.
            Err(error) => failed.push(error.context(format!("vault {vault}"))),
        }
    }
    let state = target.state(&store)?;
    let audit = following::follow(store.path(), &target.path)?;
    if let Some(kept) = &audit.kept_in {
        note!(
            "the audit log of {} does not begin with what the copy has of it: somebody changed one of \
             them; the copy's is kept in {}",
            from.display(),
            kept.display()
        );
    }
    if let Some(first) = failed.pop() {
        for error in &failed {
            note!("{}", crate::exit::text_of(error));
        }
        return Err(first);
    }
    target.finish()?;
    let Followed { segments, copied, bytes, .. } = total;
    if as_json {
        say!(
            "{}",
            json!({
                "event": "done", "segments": segments, "copied": copied, "bytes": bytes,
                "state": state, "damaged": total.damaged.len(), "audit_bytes": audit.bytes,
            })
        )?;
    } else {
        let sent = size(bytes);
        say!("{segments} segments, {copied} of them copied ({sent}); {state} state files copied")?;
    }
    if total.damaged.is_empty() {
        return Ok(());
    }
    fail(
        Class::Damaged,
        format!(
            "{} damaged records in {} were copied as they are",
            total.damaged.len(),
            from.display()
        ),
        "check the disk; an older copy, if it has them whole, heals them: `dormouse scrub STORE \
         --repair-from OLDER`.\nA client that still has the content sends it again: `dormouse \
         mirror SOURCE --once --all`",
    )
}

fn tell_damage(vault: &VaultId, fault: &Fault, as_json: bool) -> Result<()> {
    let Fault { segment, offset, why } = fault;
    if as_json {
        let vault = vault.to_string();
        return say!(
            "{}",
            json!({ "event": "fault", "vault": vault, "segment": segment, "offset": offset, "why": why })
        );
    }
    say!("vault {vault}, segment {segment}, byte {offset}: {why}")
}

/// The second copy, taken for writing.
struct Target {
    path: PathBuf,
    mark: Mark,
    _lock: files::Lock,
}

impl Target {
    /// Takes a directory that is a copy of this store, or is to become one.
    fn take(path: &Path, mark: Mark) -> Result<Self> {
        no_bucket(path)?;
        let shown = path.display();
        if !path.join(REPLICA).exists() {
            let mut entries = std::fs::read_dir(path).into_iter().flatten();
            if path.exists() && (!path.is_dir() || entries.any(|e| !is_spare(e))) {
                return fail(
                    Class::Place,
                    format!("{shown} is not a second copy of a store, and it is not empty"),
                    "name a new or an empty directory; nothing was changed",
                );
            }
            files::make_dir(path)?;
        }
        let lock = files::Lock::take(&path.join("lock"))?.map_err(|pid| {
            Failure::new(Class::InUse, format!("{shown} is in use by process {pid}"))
                .hint("wait for it, or end it")
        })?;
        let target = Self { path: std::path::absolute(path)?, mark, _lock: lock };
        match read_mark(path)? {
            Some(there) if there.of != target.mark.of => fail(
                Class::Place,
                format!("{shown} is a second copy of another store, {}", there.from.display()),
                "name another directory; nothing was changed",
            ),
            Some(_) => Ok(target),
            None => target.write_mark().map(|()| target),
        }
    }

    fn write_mark(&self) -> Result<()> {
        let text = toml::to_string(&self.mark)?;
        files::replace(&self.path.join(REPLICA), text.as_bytes(), 0o600)
    }

    fn follow(&self, store: &StoreDir, vault: &VaultId) -> Result<Followed> {
        let from = store.segments_to_read(vault)?;
        let to = self.path.join("vaults").join(vault.to_string()).join("segments");
        let to = DiskDir::create_or_open(&to)
            .with_context(|| format!("cannot make {}", to.display()))?;
        Ok(replica::follow(&*from, &to, vault)?)
    }

    /// Server key, clients, invites, header; and what the administrator has set.
    fn state(&self, store: &StoreDir) -> Result<u64> {
        let changed = store.copy_state(&self.path)?;
        let name = "server.toml";
        if let Some(text) = files::read_opt(&store.path().join(name))? {
            files::replace(&self.path.join(name), &text, 0o644)?;
        }
        Ok(changed)
    }

    fn finish(mut self) -> Result<()> {
        self.mark.equal = Some(time_utc(now_ns()));
        self.write_mark()
    }
}

/// What an empty directory may hold.
fn is_spare(entry: std::io::Result<std::fs::DirEntry>) -> bool {
    entry.is_ok_and(|entry| ["lost+found", "lock"].iter().any(|name| entry.file_name() == *name))
}

fn read_mark(path: &Path) -> Result<Option<Mark>> {
    let path = path.join(REPLICA);
    let Some(text) = files::read_text(&path)? else { return Ok(None) };
    let mark = toml::from_str(&text).map_err(|e| {
        let message = format!("{} cannot be understood: {}", path.display(), e.message());
        Failure::new(Class::Damaged, message)
            .hint("remove that directory and replicate anew, or bring the file back")
    })?;
    Ok(Some(mark))
}

/// Runs `promote`: the copy is checked, and is a store from then on.
pub fn promote(path: &Path) -> Result<()> {
    let store = StoreDir::open(path)?;
    let Some(mark) = read_mark(path)? else {
        return fail(
            Class::Place,
            format!("{} is no second copy", path.display()),
            "a store needs no promotion: `dormouse serve STORE`",
        );
    };
    store.state().must_hold()?;
    if store.note().is_some() {
        return fail(
            Class::Damaged,
            format!("the copying of the state to {} was cut short", path.display()),
            "run `dormouse replicate STORE TARGET` once more",
        );
    }
    for vault in store.vaults()? {
        let segments = DiskDir::open(&store.vault_path(&vault).join("segments"))?;
        let aside = replica::settle(&segments, &vault).with_context(|| format!("vault {vault}"))?;
        if let Some(first) = aside.first() {
            note!(
                "vault {vault}: the last `replicate` was cut short, or a segment is damaged: {} \
                 segments, from {first} on, do not follow those before them and are set aside \
                 in {}. Look at the newest points before you use it; if `replicate` was \
                 not cut short, heal it first: `scrub --repair-from` a store that is whole",
                aside.len(),
                store.vault_path(&vault).join("segments").display()
            );
        }
        look(Box::new(segments), None, &vault).with_context(|| format!("vault {vault}"))?;
    }
    files::remove(&store.path().join(REPLICA))?;
    let equal = mark.equal.as_deref().unwrap_or("never");
    say!(
        "{} is a store now; it was last equal to {}: {equal}",
        path.display(),
        mark.from.display()
    )?;
    note!(
        "never let the old server and this one run at the same time: clients would write to both.\n\
         Clients that reach it at another address: `dormouse retarget HOST:PORT`"
    );
    Ok(())
}

/// `scrub --repair-from`: heals every vault of a store, which is not in use. How many segments.
pub fn repair(store: &StoreDir, from: &Path, as_json: bool) -> Result<u64> {
    if let Some(note) = store.note() {
        return fail(
            Class::Place,
            format!(
                "{} is the state of the store in {}, where nothing is overwritten",
                store.path().display(),
                note.url
            ),
            "bring the damaged object back by the bucket's own versions or copies; or serve the \
             second copy in its place: `dormouse promote` it",
        );
    }
    let _lock = store.lock()?;
    let other = bucket::attach_to_read(StoreDir::open(from)?, &Log::stderr())?;
    let mut healed = 0;
    let there = other.vaults()?;
    for vault in store.vaults()?.iter().filter(|vault| there.contains(vault)) {
        let own = DiskDir::create_or_open(&store.vault_path(vault).join("segments"))?;
        let copy = other.segments_to_read(vault)?;
        let healing =
            replica::heal(&own, &*copy, vault).with_context(|| format!("vault {vault}"))?;
        healed += healing.healed.len() as u64;
        tell_healing(vault, &healing, as_json)?;
    }
    Ok(healed)
}

fn tell_healing(vault: &VaultId, healing: &Healing, as_json: bool) -> Result<()> {
    let id = vault.to_string();
    for one in &healing.healed {
        if as_json {
            let kept = &one.kept_in;
            let event =
                json!({ "event": "healed", "vault": id, "segment": one.segment, "kept_in": kept });
            say!("{event}")?;
        } else {
            let kept = one.kept_in.as_deref().map_or_else(
                || "it was missing".to_owned(),
                |kept| format!("what was there is kept in {kept}"),
            );
            say!("vault {vault}, segment {}: healed; {kept}", one.segment)?;
        }
    }
    for left in &healing.left {
        if as_json {
            let event =
                json!({ "event": "left", "vault": id, "segment": left.segment, "why": left.why });
            say!("{event}")?;
        } else {
            say!("vault {vault}, segment {}: not healed: {}", left.segment, left.why)?;
        }
    }
    Ok(())
}
