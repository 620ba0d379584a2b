//! `dormouse clients STORE`: who has joined, what each may and uses, and which invites are open.

use anyhow::Result;
use dormouse_format::TimeNs;
use serde_json::{Value, json};

use super::show_json;
use crate::access::{self, InviteFile, Known, Listed, Roster};
use crate::out::{self, say};
use crate::serve::seen::Seen;
use crate::store_dir::StoreDir;
use crate::text::{now_ns, size, table, time_local, time_utc};

/// A client, with what is known beside its file.
struct Row<'a> {
    known: &'a Known,
    seen: Option<(TimeNs, usize)>,
    used: Option<u64>,
    quota: Option<u64>,
}

impl Row<'_> {
    fn json(&self) -> Value {
        let c = self.known;
        json!({
            "client": c.name,
            "role": c.role.name(),
            "fingerprint": c.fingerprint(),
            "vault": c.vault.to_string(),
            "writer": c.writer.to_string(),
            "joined": time_utc(c.created),
            "seen": self.seen.map(|(at, _)| time_utc(at)),
            "connections": self.seen.map_or(0, |(_, n)| n),
            "vault_bytes": self.used,
            "vault_quota": self.quota,
            "revoked": c.revoked.map(time_utc),
            "distrusted": c.distrusted,
        })
    }

    fn cells(&self) -> Vec<String> {
        let c = self.known;
        let state = match (c.revoked, self.seen) {
            (Some(at), _) if c.distrusted => format!("revoked, distrusted {}", time_local(at)),
            (Some(at), _) => format!("revoked {}", time_local(at)),
            (None, Some((_, 0)) | None) => "ok".to_owned(),
            (None, Some((_, n))) => format!("connected ({n})"),
        };
        vec![
            c.name.clone(),
            c.role.name().to_owned(),
            c.vault.to_string()[..12].to_owned(),
            time_local(c.created),
            self.seen.map_or_else(|| "-".into(), |(at, _)| time_local(at)),
            self.used.map_or_else(|| "?".into(), size),
            self.quota.map_or_else(|| "-".into(), size),
            c.fingerprint()[..16].to_owned(),
            state,
        ]
    }
}

/// Shows it.
pub fn clients(store: &StoreDir, as_json: bool) -> Result<()> {
    let now = now_ns();
    let roster = access::Roster::load(store)?;
    let default = store.config()?.quota()?;
    let mut known: Vec<&Known> = roster.all().collect();
    known.sort_by(|a, b| a.name.cmp(&b.name));
    let seen = Seen::read(store);
    let row = |known| row(store, known, &roster, &seen, default);
    let rows: Vec<Row<'_>> = known.into_iter().map(row).collect();
    let Listed { good: invites, faults } = access::invites(store)?;
    let open = |(_, i): &(String, InviteFile)| i.used_by.is_none() && !i.expired(now);
    let open: Vec<_> = invites.into_iter().filter(open).collect();
    if as_json {
        let invite = |(id, i): &(String, InviteFile)| {
            let role = i.role().map(|r| r.name());
            json!({ "invite": id, "client": i.name, "role": role, "expires": i.expires })
        };
        let clients: Vec<Value> = rows.iter().map(Row::json).collect();
        let invites: Vec<Value> = open.iter().map(invite).collect();
        show_json(&json!({ "clients": clients, "invites": invites }))?;
    } else {
        text(&rows, &open)?;
    }
    // What holds was shown first.
    drop(rows);
    roster.faults.into_iter().chain(faults).next().map_or(Ok(()), Err)
}

fn row<'a>(
    store: &StoreDir,
    known: &'a Known,
    roster: &Roster,
    seen: &Seen,
    default: Option<u64>,
) -> Row<'a> {
    Row {
        known,
        seen: seen.of(&known.name),
        used: store.vault_bytes(&known.vault),
        quota: roster.quota(&known.vault, default),
    }
}

fn text(rows: &[Row<'_>], open: &[(String, InviteFile)]) -> Result<()> {
    if rows.is_empty() {
        say!("no clients yet: `dormouse invite STORE CLIENT` invites one")?;
    } else {
        let head =
            ["CLIENT", "ROLE", "VAULT", "JOINED", "SEEN", "USED", "QUOTA", "FINGERPRINT", "STATE"];
        let cells: Vec<_> = rows.iter().map(Row::cells).collect();
        out::write(table(&head, &[5, 6], &cells).as_bytes())?;
    }
    for (id, invite) in open {
        let role = invite.role.as_deref().unwrap_or("writer");
        let (name, until) = (&invite.name, &invite.expires);
        say!("open invite {id} for '{name}', a {role}, until {until}")?;
    }
    Ok(())
}
