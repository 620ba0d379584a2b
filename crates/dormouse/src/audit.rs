//! `STORE/audit.log`: who may do what, and who decided so.
//!
//! Owns: the file and the form of its lines, one JSON object each. Invariants: lines are only
//! added; a line is synced before whoever caused it is told that it is done; one that a crash cut is
//! shown as such, and the next begins on a line of its own. Whoever can write in the store can change
//! it: it tells of what was done by the rules.
//! Leaves to others: what is worth a line.

pub mod following;
pub mod keeping;

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Map, Value, json};

use crate::files;
use crate::out::{self, say};
use crate::store_dir::StoreDir;
use crate::text::{now_ns, parse_time, table, time_local, time_utc};

/// The file's name.
pub const NAME: &str = "audit.log";
/// Longest line that is shown.
const LINE_MAX: u64 = 64 << 10;

/// One event. Build it up, then [`Event::write`].
#[derive(Debug, Clone)]
pub struct Event {
    fields: Map<String, Value>,
}

impl Event {
    /// An event: `what` was done to `client`, by whom, from where.
    pub fn new(what: &str, client: &str, by: &str, from: &str) -> Self {
        let mut event = Self { fields: Map::new() };
        for (key, value) in [("event", what), ("client", client), ("by", by), ("from", from)] {
            event = event.with(key, value);
        }
        event
    }

    /// By whoever runs the store: `uid` gave the server an order.
    pub fn by_order(what: &str, uid: u32) -> Self {
        Self::new(what, "-", &format!("uid {uid}"), "order")
    }

    /// By whoever runs this command, on this machine.
    pub fn by_command(what: &str, client: &str) -> Self {
        let uid = rustix::process::getuid().as_raw();
        let sudo = std::env::var("SUDO_USER").ok();
        let by =
            sudo.map_or_else(|| format!("uid {uid}"), |name| format!("uid {uid} (sudo by {name})"));
        Self::new(what, client, &by, "command")
    }

    /// The same with one more field.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(key.to_owned(), value.into());
        self
    }

    /// Adds it to a store's log, durably.
    pub fn write(mut self, store: &StoreDir) -> Result<()> {
        self.fields.insert("time".into(), time_utc(now_ns()).into());
        append(&store.path().join(NAME), &Value::Object(self.fields).to_string())
    }
}

fn append(path: &Path, line: &str) -> Result<()> {
    let what = || format!("cannot write {}", path.display());
    let new = !path.exists();
    let open = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path);
    let mut file = open.with_context(what)?;
    // Commands and the server may write at once; a cut line must be seen before the next is added.
    flock(&file, FlockOperation::LockExclusive).map_err(std::io::Error::from).with_context(what)?;
    let cut = ends_within_a_line(&mut file).with_context(what)?;
    let text = format!("{}{line}\n", if cut { "\n" } else { "" });
    file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).with_context(what)?;
    if new {
        files::sync_dir(files::parent(path)).with_context(what)?;
    }
    Ok(())
}

fn ends_within_a_line(file: &mut std::fs::File) -> std::io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// Calls `with` for each line: what it says, or `None` if it is no whole line of this log.
fn each(path: &PathBuf, mut with: impl FnMut(Option<Value>) -> Result<()>) -> Result<()> {
    let what = || format!("cannot read {}", path.display());
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(what),
    };
    let mut lines = BufReader::new(file);
    loop {
        let mut line = Vec::new();
        let read = (&mut lines).take(LINE_MAX).read_until(b'\n', &mut line).with_context(what)?;
        if read == 0 {
            return Ok(());
        }
        let value = serde_json::from_slice::<Value>(&line).ok();
        with(value.filter(|v| v.is_object() && line.ends_with(b"\n")))?;
    }
}

/// `dormouse audit STORE`.
pub fn run(store: &StoreDir, as_json: bool) -> Result<()> {
    let path = store.path().join(NAME);
    let (mut rows, mut bad) = (Vec::new(), 0_u64);
    each(&path, |value| {
        match value {
            Some(value) if as_json => say!("{value}")?,
            Some(value) => rows.push(row(&value)),
            None => bad += 1,
        }
        Ok(())
    })?;
    if !as_json && rows.is_empty() {
        say!("nothing yet")?;
    } else if !as_json {
        out::write(
            table(&["TIME", "EVENT", "CLIENT", "BY", "FROM", "MORE"], &[], &rows).as_bytes(),
        )?;
    }
    if bad > 0 {
        out::note!("{bad} lines of {} are not whole, and were left out", path.display());
    }
    Ok(())
}

fn row(value: &Value) -> Vec<String> {
    let text = |key: &str| shown(value.get(key));
    let time = text("time");
    let time = parse_time(&time).map_or(time, time_local);
    let named = ["time", "event", "client", "by", "from"];
    let rest =
        value.as_object().into_iter().flatten().filter(|(k, _)| !named.contains(&k.as_str()));
    let more: Vec<String> = rest.map(|(k, v)| format!("{k} {}", shown(Some(v)))).collect();
    vec![time, text("event"), text("client"), text("by"), text("from"), more.join(", ")]
}

/// A value without what a terminal obeys.
fn shown(value: Option<&Value>) -> String {
    let text = match value {
        None => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => json!(other).to_string(),
    };
    dormouse_sync::error::plain(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<Option<String>> {
        let mut all = Vec::new();
        each(&path.to_owned(), |v| {
            all.push(v.map(|v| shown(v.get("event"))));
            Ok(())
        })
        .unwrap();
        all
    }

    #[test]
    fn lines_are_added_and_a_cut_one_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        append(&path, "{\"event\":\"join\"}").unwrap();
        append(&path, "{\"event\":\"grant\"}").unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        append(&path, "{\"event\":\"revoke\"}").unwrap();
        let said = |t: &str| Some(t.to_owned());
        assert_eq!(lines(&path), [said("join"), None, said("revoke")]);
        assert!(std::fs::read(&path).unwrap().starts_with(&whole[..whole.len() - 5]));
    }

    #[test]
    fn what_a_client_is_called_moves_no_cursor() {
        let value = json!({ "event": "join", "client": "\u{1b}[2J", "role": "reader" });
        let row = row(&value);
        assert_eq!(row[2], "\u{fffd}[2J");
        assert_eq!(row[5], "role reader");
    }
}
