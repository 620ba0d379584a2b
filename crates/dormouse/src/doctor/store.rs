//! What is wrong with a store, as far as can be told without reading every record.
//!
//! Looks at state files, configuration, rights, free space, the lock, what was left behind, and
//! the ends of every vault's log. Changes nothing.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;
use dormouse_format::VaultId;
use dormouse_store::disk::DiskDir;
use dormouse_store::{Dir, Look};

use super::{Finding, Weight};
use crate::access::Roster;
use crate::exit::{Class, Failure, hint_of};
use crate::log::Log;
use crate::store_dir::StoreDir;
use crate::text::size;
use crate::{access, bucket};

/// Free space below this is too little: one segment and what goes with it.
const SPACE_LEAST: u64 = 256 << 20;

/// All that can be told of a store.
pub(super) fn look(path: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    match StoreDir::state_faults(path) {
        Ok(faults) => {
            for fault in faults {
                let about = fault.path.display().to_string();
                let why = fault.why.to_string();
                let error = anyhow::Error::from(Failure::from(fault));
                let class = crate::exit::class_of(&error);
                findings.push(Finding::wrong(class, about, why).advise(hint_of(&error)));
            }
        }
        Err(error) => findings.push(Finding::error("state files", &error)),
    }
    let store = match StoreDir::open(path) {
        Ok(store) => store,
        Err(error) => {
            if findings.is_empty() {
                findings.push(Finding::error(path.display().to_string(), &error));
            }
            return findings;
        }
    };
    if findings.is_empty() {
        findings.push(Finding::fine("state files", "all hold"));
    }
    if let Err(error) = store.config() {
        findings.push(Finding::error("server.toml", &error));
    }
    let running = lock(&store, &mut findings);
    rights(&store, &mut findings);
    space(&store, &mut findings);
    left_behind(&store, running, &mut findings);
    let about = store.note().map(|note| note.url.clone());
    match bucket::attach_to_read(store, &Log::silent()) {
        Ok(store) => {
            if let Some(url) = about {
                let found = "answers, and holds the store to which this directory is the state";
                findings.push(Finding::fine(url, found));
            }
            vaults(&store, running, &mut findings);
        }
        Err(error) => findings.push(Finding::error(about.unwrap_or_default(), &error)),
    }
    findings
}

/// Whether a process holds the store.
fn lock(store: &StoreDir, findings: &mut Vec<Finding>) -> bool {
    let by = fs::read_to_string(store.path().join("lock")).unwrap_or_default();
    match store.is_held() {
        Ok(true) => {
            let found = format!("held by process {}: a server runs, or a copy", by.trim());
            findings.push(Finding::fine("lock", found));
            true
        }
        Ok(false) => {
            // A number in the file means nothing: the system gives the lock back by itself.
            findings.push(Finding::fine("lock", "free"));
            false
        }
        Err(error) => {
            findings.push(Finding::error("lock", &error));
            false
        }
    }
}

fn rights(store: &StoreDir, findings: &mut Vec<Finding>) {
    for (name, beyond, least) in [("", 0o077, "0700"), ("server.key", 0o077, "0600")] {
        let path = store.path().join(name);
        let Ok(meta) = fs::metadata(&path) else { continue };
        let mode = meta.permissions().mode() & 0o7777;
        if mode & beyond != 0 {
            let found = format!("mode {mode:04o}: other users of this machine may look into it");
            let shown = path.display().to_string();
            let weight = if name.is_empty() { Weight::Note } else { Weight::Wrong };
            let finding = Finding { class: Class::Other, ..Finding::new(weight, &shown, found) };
            findings.push(finding.advise(format!("chmod {least} {shown}")));
        }
    }
}

fn space(store: &StoreDir, findings: &mut Vec<Finding>) {
    let Ok(stat) = rustix::fs::statvfs(store.path()) else { return };
    let (free, all) = (stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks * stat.f_frsize);
    let found = format!("{} of {}", size(free), size(all));
    let few_names = stat.f_files > 0 && stat.f_favail < 100;
    if free < SPACE_LEAST || few_names {
        let found = if few_names { format!("{found}, and no more files") } else { found };
        let to_do = "nothing more is taken from clients, and nothing is lost: make room, or bring \
                     the store to a larger disk";
        findings.push(Finding::wrong(Class::NoSpace, "free space", found).advise(to_do));
    } else if free < all / 20 {
        let to_do = "less than a twentieth is left: make room before clients are refused";
        findings.push(Finding::note("free space", found).advise(to_do));
    } else {
        findings.push(Finding::fine("free space", found));
    }
}

/// Files that no part of a store is.
fn left_behind(store: &StoreDir, running: bool, findings: &mut Vec<Finding>) {
    let names = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    for sub in ["", "clients", "invites"] {
        let dir = store.path().join(sub);
        for name in names(&dir).iter().filter(|n| n.contains(".tmp-") && !running) {
            let shown = dir.join(name).display().to_string();
            let found = "left by a write that was cut short";
            findings.push(Finding::note(shown, found).advise("the next change removes it"));
        }
    }
    let aside = names(&store.path().join("set-aside"));
    if !aside.is_empty() {
        let found = format!("{} files that did not hold: {}", aside.len(), aside.join(", "));
        let to_do = "kept to be looked at; remove them when nobody needs them";
        findings.push(Finding::note("set-aside", found).advise(to_do));
    }
    for name in names(&store.path().join("vaults")) {
        if VaultId::from_hex(&name).is_none() {
            let shown = store.path().join("vaults").join(name).display().to_string();
            findings.push(Finding::note(shown, "not a vault; no command looks at it"));
        }
    }
}

fn vaults(store: &StoreDir, running: bool, findings: &mut Vec<Finding>) {
    let vaults = match store.vaults() {
        Ok(vaults) => vaults,
        Err(error) => return findings.push(Finding::error("vaults", &error)),
    };
    let known: BTreeSet<VaultId> = match access::clients(store) {
        Ok(listed) => listed.good.iter().map(|client| client.vault).collect(),
        Err(_) => vaults.iter().copied().collect(),
    };
    let quotas = Quotas::of(store);
    for vault in vaults {
        let about = format!("vault {vault}");
        if !known.contains(&vault) {
            let to_do = "its copies are whole, and nobody reaches them: `dormouse join --kit KIT` \
                         on a machine makes it a client of this vault again";
            findings.push(Finding::note(&about, "no client belongs to it").advise(to_do));
        }
        match look_at(store, &vault) {
            Ok(look) => {
                tell(&about, &look, running, findings);
                findings.extend(quotas.told(&vault, look.bytes));
            }
            Err(error) => {
                let to_do = format!(
                    "{}\n`dormouse scrub {}` tells which points are touched; a copy of the store \
                     brings a segment back",
                    hint_of(&error),
                    store.path().display()
                );
                let class = crate::exit::class_of(&error);
                let finding = Finding::wrong(class, about, format!("{error:#}"));
                findings.push(finding.advise(to_do.trim_start()));
            }
        }
    }
}

/// How much each vault may hold.
struct Quotas {
    roster: Roster,
    default: Option<u64>,
}

impl Quotas {
    /// Files that do not hold are told of with the others.
    fn of(store: &StoreDir) -> Self {
        let default = store.config().and_then(|config| config.quota()).unwrap_or_default();
        Self { roster: Roster::load(store).unwrap_or_default(), default }
    }

    fn told(&self, vault: &VaultId, bytes: u64) -> Option<Finding> {
        let quota = self.roster.quota(vault, self.default)?;
        let about = format!("vault {vault}");
        let found = format!("{} of its quota of {} are used", size(bytes), size(quota));
        let grant = "`dormouse grant STORE CLIENT --quota SIZE` allows more; `dormouse prune \
                     --dry-run --store STORE` shows what could go";
        Some(if bytes >= quota {
            let found = format!("{found}: nothing new is taken, and all can be read");
            Finding::wrong(Class::NoSpace, about, found).advise(grant)
        } else if bytes >= quota - quota / 10 {
            Finding::note(about, found).advise(grant)
        } else {
            Finding::fine(about, found)
        })
    }
}

fn look_at(store: &StoreDir, vault: &VaultId) -> Result<Look> {
    let segments = store.segments_to_read(vault)?;
    let index = DiskDir::open(&store.vault_path(vault).join("index")).ok();
    let index = index.as_ref().map(|dir| dir as &dyn Dir);
    Ok(dormouse_store::look(segments, index, vault)?)
}

fn tell(about: &str, look: &Look, running: bool, findings: &mut Vec<Finding>) {
    let index = match look.runs {
        0 => String::new(),
        runs => format!(", {runs} index runs"),
    };
    let found = format!("{} segments, {}{index}", look.segments, size(look.bytes));
    findings.push(Finding::fine(about, found));
    if let Some(torn) = look.unfinished.as_ref().filter(|_| !running) {
        let found = format!(
            "{}: {} bytes from {} on are of a write that was cut short; nobody was told of them",
            torn.segment, torn.bytes, torn.offset
        );
        let to_do = "nothing: the next start keeps them in a file of their own and goes on";
        findings.push(Finding::note(about, found).advise(to_do));
    }
    for fault in &look.damaged {
        let found = format!("{}, byte {}: {}", fault.segment, fault.offset, fault.why);
        let to_do = "check the disk; `dormouse scrub STORE` tells which points it touches, and \
                     `dormouse mirror SOURCE --once --all` on the client sends chunks again";
        findings.push(Finding::wrong(Class::Damaged, about, found).advise(to_do));
    }
    if !look.set_aside.is_empty() {
        let bytes = look.set_aside.iter().map(|(_, len)| len).sum();
        let found = format!(
            "{} files that earlier starts have set aside, {}",
            look.set_aside.len(),
            size(bytes)
        );
        let to_do = "never read again: remove them when nobody needs to look at them";
        findings.push(Finding::note(about, found).advise(to_do));
    }
    if !look.bad_runs.is_empty() && !running {
        let found = format!("index files that do not fit: {}", look.bad_runs.join(", "));
        findings
            .push(Finding::note(about, found).advise("nothing: the next start makes them anew"));
    }
}
