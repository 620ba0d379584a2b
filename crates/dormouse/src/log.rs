//! The log of a server or daemon: one line for each event.
//!
//! Owns: what an event is made of, and its form as a plain line with the time on standard error.
//! Leaves to others: the journal of systemd ([`crate::journal`]).

use std::sync::Arc;

use serde_json::json;

use crate::journal::Journal;
use crate::out::note;
use crate::text::{now_ns, time_local, time_utc};

/// How much an event matters; the numbers are those of syslog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Level {
    /// Something failed.
    Error = 3,
    /// Something may fail, or is not as it should be.
    Warning = 4,
    /// Worth knowing: a state has changed.
    Notice = 5,
    /// Everything else.
    Info = 6,
}

/// One event, with what it is about where that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// How much it matters.
    pub level: Level,
    /// What happened.
    pub message: &'a str,
    /// The volume.
    pub volume: Option<&'a str>,
    /// The volume's state.
    pub state: Option<&'a str>,
    /// The point's number.
    pub point: Option<u64>,
    /// The client.
    pub client: Option<&'a str>,
    /// Where it connects from.
    pub peer: Option<&'a str>,
}

impl<'a> Entry<'a> {
    /// An event about nothing in particular.
    pub const fn new(level: Level, message: &'a str) -> Self {
        Self { level, message, volume: None, state: None, point: None, client: None, peer: None }
    }

    /// The same about a state.
    #[must_use]
    pub const fn state(mut self, state: &'a str) -> Self {
        self.state = Some(state);
        self
    }

    /// The same about a point.
    #[must_use]
    pub const fn point(mut self, point: u64) -> Self {
        self.point = Some(point);
        self
    }

    /// The same about a client that connects from there.
    #[must_use]
    pub const fn client(mut self, client: &'a str, peer: &'a str) -> Self {
        self.client = Some(client);
        self.peer = Some(peer);
        self
    }

    /// As a line for people, without the time.
    pub fn line(&self) -> String {
        let mut line = String::new();
        for part in [self.volume, self.peer].into_iter().flatten() {
            line.push_str(part);
            line.push_str(": ");
        }
        if let Some(client) = self.client {
            line.push_str(&format!("client '{client}': "));
        }
        line + self.message
    }

    /// As one line of JSON, for programs.
    pub fn json(&self, time: &str) -> String {
        let level = match self.level {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Notice => "notice",
            Level::Info => "info",
        };
        let mut value = json!({ "time": time, "level": level, "message": self.message });
        let texts = [("volume", self.volume), ("state", self.state), ("client", self.client)];
        for (key, text) in texts.into_iter().chain([("peer", self.peer)]) {
            if let Some(text) = text {
                value[key] = text.into();
            }
        }
        if let Some(point) = self.point {
            value["point"] = point.into();
        }
        value.to_string()
    }
}

/// Where events go. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    write: Arc<dyn Fn(&Entry<'_>) + Send + Sync>,
    volume: Option<Arc<str>>,
}

impl Log {
    /// To a function of the caller, with all that is known of each event.
    pub fn entries(write: impl Fn(&Entry<'_>) + Send + Sync + 'static) -> Self {
        Self { write: Arc::new(write), volume: None }
    }

    /// To the journal if standard error leads there, else to standard error with the time.
    pub fn system() -> Self {
        match Journal::of_stderr() {
            Some(journal) => Self::entries(move |entry| journal.write(entry)),
            None => Self::stderr(),
        }
    }

    /// To standard error, with the time.
    pub fn stderr() -> Self {
        Self::to(|line| note!("{} {line}", time_local(now_ns())))
    }

    /// To standard error, as lines of JSON.
    pub fn json() -> Self {
        Self::entries(|entry| note!("{}", entry.json(&time_utc(now_ns()))))
    }

    /// To nowhere.
    pub fn silent() -> Self {
        Self::entries(|_| {})
    }

    /// To a function of the caller, as lines.
    pub fn to(write: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self::entries(move |entry| write(&entry.line()))
    }

    /// The same log, whose events are about this volume.
    #[must_use]
    pub fn of_volume(&self, volume: &str) -> Self {
        Self { write: Arc::clone(&self.write), volume: Some(volume.into()) }
    }

    /// Writes one line that just informs.
    pub fn line(&self, line: &str) {
        self.event(&Entry::new(Level::Info, line));
    }

    /// Writes one event.
    pub fn event(&self, entry: &Entry<'_>) {
        (self.write)(&Entry { volume: entry.volume.or(self.volume.as_deref()), ..*entry });
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn an_event_as_json_has_what_is_known_and_one_line() {
        let entry = Entry::new(Level::Warning, "a\n\"b\"").client("c", "1.2.3.4:5").point(7);
        let line = entry.json("T");
        assert!(!line.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = json!({
            "time": "T", "level": "warning", "message": "a\n\"b\"", "client": "c",
            "peer": "1.2.3.4:5", "point": 7,
        });
        assert_eq!(value, expected);
        assert_eq!(entry.line(), "1.2.3.4:5: client 'c': a\n\"b\"");
    }

    #[test]
    fn an_event_carries_its_volume() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&lines);
        let log = Log::to(move |line| to.lock().unwrap().push(line.to_owned()));
        log.line("a");
        let of = log.of_volume("root");
        of.line("b");
        of.event(&Entry { volume: Some("home"), ..Entry::new(Level::Error, "c") });
        assert_eq!(*lines.lock().unwrap(), ["a", "root: b", "home: c"]);
    }
}
