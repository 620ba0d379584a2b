//! What is there: volumes, points, clients, the state of this client.
//!
//! Owns: tables for people and JSON for scripts. Invariant: every volume and point
//! shown was verified ([`crate::remote`]); what was not asked for is counted, not
//! silently left out.

mod clients;

use anyhow::Result;
use dormouse_format::VolumeId;
use dormouse_format::point::StoredPoint;
use dormouse_sync::history::{Trust, hash_of};
use serde_json::{Value, json};

use crate::daemon::{self, status_socket};
use crate::exit::{Class, class_of};
use crate::home::{Account, Home};
use crate::keep;
use crate::kit::kit_reminder;
use crate::out::{self, note, say};
use crate::remote::{Freshness, Session, Span};
use crate::text::{hex, size, table, time_local, time_utc};
use crate::when;

pub use clients::clients;

fn show_json(value: &Value) -> Result<()> {
    say!("{value:#}")
}

/// `dormouse volumes`.
pub fn volumes(home: &Home, as_json: bool) -> Result<()> {
    let account = home.account()?;
    let mut session = Session::open(home, &account, None, Span::Seen)?;
    let listed = session.volumes().to_vec();
    for l in &listed {
        session.check_fresh(&l.volume.id, l.head.as_ref())?;
    }
    let kept = keep::told_by(&session.link)?;
    let trust = &session.trust;
    if as_json {
        let rows: Vec<Value> = listed
            .iter()
            .map(|l| {
                json!({
                    "volume": l.volume.name,
                    "deleted": kept.deletion(&l.volume.id, None).map(time_utc),
                    "id": l.volume.id.to_string(),
                    "created": time_utc(l.volume.created),
                    "writer": writer(trust, &l.volume.writer),
                    "head": l.head.as_ref().map(|p| point_json(trust, p)),
                })
            })
            .collect();
        return show_json(&json!(rows));
    }
    if listed.is_empty() {
        say!("no volumes yet: `dormouse mirror SOURCE --once` makes one")?;
        return Ok(());
    }
    let rows: Vec<Vec<String>> = listed
        .iter()
        .map(|l| {
            let head = l.head.as_ref();
            vec![
                l.volume.name.clone(),
                head.map_or_else(|| "-".into(), |p| size(p.point().size)),
                head.map_or_else(|| "-".into(), |p| p.point().seq.to_string()),
                head.map_or("-", |p| p.point().grade.name()).into(),
                head.map_or_else(|| "-".into(), |p| time_local(p.receipt)),
                writer(trust, &l.volume.writer),
            ]
        })
        .collect();
    let head = ["VOLUME", "SIZE", "POINT", "GRADE", "RECEIVED", "WRITER"];
    out::write(table(&head, &[1, 2], &rows).as_bytes())?;
    let of = |id: &VolumeId| listed.iter().find(|l| l.volume.id == *id);
    for (d, l) in kept.deletions.iter().filter_map(|d| Some((d, of(&d.volume)?))) {
        let (what, at) = (keep::what(d), time_local(d.effective));
        let name = &l.volume.name;
        say!(
            "{what} of '{name}' will be deleted at {at}; `dormouse undelete {name}` takes it back"
        )?;
    }
    Ok(())
}

fn writer(trust: &Trust, id: &dormouse_format::WriterId) -> String {
    trust.writer(id).map_or_else(|| id.to_string(), |cert| cert.name.clone())
}

fn point_json(trust: &Trust, stored: &StoredPoint) -> Value {
    let p = stored.point();
    json!({
        "point": p.seq,
        "grade": p.grade.name(),
        "checkpoint": p.is_checkpoint(),
        "received": time_utc(stored.receipt),
        "time": time_utc(p.time),
        "size": p.size,
        "writer": writer(trust, &p.writer),
        "hash": hash_of(&stored.signed).to_string(),
    })
}

/// `dormouse points [VOLUME]`; fuzzy ones only with `all`.
pub fn points(home: &Home, volume: Option<&str>, all: bool, as_json: bool) -> Result<()> {
    let account = home.account()?;
    let name = volume.map(when::split).transpose()?.map(|(name, _)| name);
    let mut session = Session::open(home, &account, name.as_deref(), Span::All)?;
    let listed = match &name {
        Some(name) => vec![session.volume(name)?.clone()],
        None => session.volumes().to_vec(),
    };
    let (mut rows, mut values, mut hidden, mut to_be_deleted) = (Vec::new(), Vec::new(), 0, 0);
    for l in &listed {
        let (points, fresh) = session.history(&l.volume.id)?;
        if fresh == Freshness::Unproven && !points.is_empty() {
            note!("{}: {}", l.volume.name, Freshness::UNPROVEN);
        }
        let kept = keep::told_by(&session.link)?;
        let trust = &session.trust;
        for stored in points {
            let deleted = kept.deletion(&l.volume.id, Some(stored.point().seq));
            to_be_deleted += usize::from(deleted.is_some());
            if !all && !stored.point().grade.consistent() {
                hidden += 1;
                continue;
            }
            if as_json {
                let mut value = point_json(trust, &stored);
                value["volume"] = json!(l.volume.name);
                value["deleted"] = json!(deleted.map(time_utc));
                values.push(value);
            } else {
                rows.push(point_row(&l.volume.name, trust, &stored));
            }
        }
    }
    if as_json {
        return show_json(&json!(values));
    }
    if rows.is_empty() {
        say!("no points yet")?;
    } else {
        let head = ["VOLUME", "POINT", "RECEIVED", "GRADE", "SIZE", "WRITER"];
        out::write(table(&head, &[1, 4], &rows).as_bytes())?;
    }
    if to_be_deleted > 0 {
        say!("({to_be_deleted} points are to be deleted; `dormouse retention` says when)")?;
    }
    if hidden > 0 {
        say!("({hidden} fuzzy points are not shown; --all shows them)")?;
    }
    Ok(())
}

fn point_row(volume: &str, trust: &Trust, stored: &StoredPoint) -> Vec<String> {
    let p = stored.point();
    vec![
        volume.to_owned(),
        p.seq.to_string(),
        time_local(stored.receipt),
        p.grade.name().into(),
        size(p.size),
        writer(trust, &p.writer),
    ]
}

/// Connects, and compares each volume's head with what this machine knows.
fn look(home: &Home, account: &Account) -> Result<()> {
    let mut session = Session::open(home, account, None, Span::Seen)?;
    for l in session.volumes().to_vec() {
        session.check_fresh(&l.volume.id, l.head.as_ref())?;
    }
    Ok(())
}

fn show_home(home: &Home, account: &Account) -> Result<()> {
    let (identity, authority) = home.has_offline_keys();
    let here = |b| if b { "on this machine" } else { "not on this machine" };
    say!("home       {}", home.dir().display())?;
    say!("client     {} (writer {})", account.name, account.writer())?;
    say!("vault      {}", account.vault)?;
    say!("target     {}", account.target)?;
    say!("server key {}", hex(&account.server))?;
    say!("identity   {}", here(identity))?;
    say!("authority  {}", here(authority))
}

/// `dormouse status`: what this home is, whether the server answers, and whether its volumes
/// go on from what this machine knows.
pub fn status(home: &Home, as_json: bool, accept_state: bool) -> Result<()> {
    if accept_state {
        for line in home.accept_state()? {
            out::note!("{line}");
        }
    }
    let account = home.account()?;
    let (identity, authority) = home.has_offline_keys();
    let daemons = status_socket::documents(home);
    if !as_json {
        // The server may keep one waiting.
        show_home(home, &account)?;
        say!("\n{}", daemon::status::text(&daemons))?;
    }
    let reached = look(home, &account);
    let state = reached.as_ref().map_or_else(|e| format!("{e:#}"), |()| "reached".into());
    if as_json {
        show_json(&json!({
            "home": home.dir().display().to_string(),
            "client": account.name,
            "target": account.target.to_string(),
            "server_fingerprint": hex(&account.server),
            "vault": account.vault.to_string(),
            "writer": account.writer().to_string(),
            "trust_group": account.trust_group,
            "identity_here": identity,
            "authority_here": authority,
            "kit_exported": account.kit_exported,
            "reached": reached.as_ref().map_or_else(|e| class_of(e) == Class::Damaged, |()| true),
            "state": state,
            "exit_class": reached.as_ref().map_or_else(|e| class_of(e) as u8, |()| 0),
            "daemons": daemons,
        }))?;
    } else {
        say!("server     {state}")?;
        if let Some(reminder) = kit_reminder(home) {
            say!("reminder   {reminder}")?;
        }
    }
    reached
}
