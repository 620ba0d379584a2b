//! `STORE/seen.json`: who is connected, and who was seen when.
//!
//! Owns: the file. Invariant: nothing depends on it: it may be removed, and is made again. It is
//! written by the server, at most once a second, for `dormouse clients`, which says what it says
//! only of a server that is alive.

use std::collections::BTreeMap;
use std::path::Path;

use dormouse_format::TimeNs;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::store_dir::StoreDir;
use crate::text::{parse_time, time_utc};

const NAME: &str = "seen.json";

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The server's process.
    pid: u32,
    clients: BTreeMap<String, Row>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    connections: usize,
    seen: String,
}

impl Seen {
    /// What a server of this process has to say.
    pub(super) fn new(clients: BTreeMap<String, (usize, TimeNs)>) -> Self {
        let row = |(connections, seen)| Row { connections, seen: time_utc(seen) };
        let clients = clients.into_iter().map(|(name, of)| (name, row(of))).collect();
        Self { pid: std::process::id(), clients }
    }

    /// Reads it; nothing if it is not there or says nothing.
    pub fn read(store: &StoreDir) -> Self {
        let text = files::read_text(&store.path().join(NAME)).ok().flatten();
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    /// Writes it. It is not synced: who wants it reads what there is.
    pub(super) fn write(&self, store: &StoreDir) -> std::io::Result<()> {
        let path = store.path().join(NAME);
        let new = path.with_extension("json.new");
        std::fs::write(&new, serde_json::to_string(self)?)?;
        std::fs::rename(&new, &path)
    }

    /// When each client was seen last.
    pub(super) fn times(&self) -> BTreeMap<String, TimeNs> {
        let rows = self.clients.iter();
        rows.filter_map(|(name, row)| Some((name.clone(), parse_time(&row.seen)?))).collect()
    }

    /// When a client was seen last, and how many connections it has now; none if the server that
    /// wrote this is gone.
    pub fn of(&self, client: &str) -> Option<(TimeNs, usize)> {
        let row = self.clients.get(client)?;
        let connections = if self.alive() { row.connections } else { 0 };
        Some((parse_time(&row.seen)?, connections))
    }

    fn alive(&self) -> bool {
        self.pid != 0 && Path::new("/proc").join(self.pid.to_string()).exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_a_server_that_is_gone_are_none() {
        let of = |clients| Seen::new(BTreeMap::from(clients));
        let mut seen = of([("a".to_owned(), (2, 1_000_000_000))]);
        assert_eq!(seen.of("a"), Some((1_000_000_000, 2)));
        assert_eq!(seen.of("b"), None);
        // Beyond the largest process number.
        seen.pid = u32::MAX;
        assert_eq!(seen.of("a"), Some((1_000_000_000, 0)));
        assert_eq!(seen.times()["a"], 1_000_000_000);
    }
}
