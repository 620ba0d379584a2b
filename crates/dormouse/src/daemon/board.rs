//! What each volume's state is: written by the live loops, read by whoever asks.
//!
//! Owns: the statuses and their names, which are those of the JSON output and stay. Invariants:
//! who sets a status never waits for a reader: the lock is held for a copy and nothing else; what
//! is counted never goes back while the daemon lives.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Where a volume is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// There is no server; what changes is marked.
    NoConn,
    /// Everything is compared.
    Scanning,
    /// What was marked is sent until little is left.
    CatchUp,
    /// What is written is sent within a second.
    Live,
    /// One of the others was broken off, and everything is compared anew.
    Rescan,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::NoConn, Self::Scanning, Self::CatchUp, Self::Live, Self::Rescan];

    /// The name that people and scripts see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoConn => "NOCONN",
            Self::Scanning => "SCANNING",
            Self::CatchUp => "CATCHUP",
            Self::Live => "LIVE",
            Self::Rescan => "RESCAN",
        }
    }
}

/// The newest point of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastPoint {
    /// Its number.
    pub seq: u64,
    /// Its grade.
    pub grade: String,
    /// When the server got it, RFC 3339 in UTC.
    pub time: String,
}

/// What was counted since the daemon began with the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Points of all grades.
    pub points: u64,
    /// Of them frozen.
    pub frozen: u64,
    /// Of them settled.
    pub settled: u64,
    /// Of them fuzzy.
    pub fuzzy: u64,
    /// Freezes that did not work, or took too long.
    pub freezes_failed: u64,
    /// Read from the device.
    pub bytes_read: u64,
    /// Sent to the server.
    pub bytes_sent: u64,
    /// Bytes that crossed the link, both ways, with all that is not content.
    pub bytes_on_link: u64,
    /// Connections after the first.
    pub reconnects: u64,
    /// Full compares.
    pub scans: u64,
    /// Reads of the device that failed.
    pub read_errors: u64,
}

/// What is known of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// The volume's name.
    pub volume: String,
    /// The device, as it was named.
    pub device: String,
    /// Where it is on its way.
    pub state: State,
    /// Why it is there; empty where nothing is to be said.
    #[serde(default)]
    pub reason: String,
    /// Age of the oldest write that the server does not have.
    #[serde(default)]
    pub data_lag_ms: Option<u64>,
    /// Age of the newest consistent point.
    #[serde(default)]
    pub point_lag_ms: Option<u64>,
    /// What is marked and not yet acknowledged.
    #[serde(default)]
    pub backlog_bytes: u64,
    /// Discarded: zeros in the copy, and to be read when there is nothing else to do.
    #[serde(default)]
    pub recheck_bytes: u64,
    /// When the backlog will be gone, if that can be told.
    #[serde(default)]
    pub eta_s: Option<u64>,
    /// Read from the device, of late.
    #[serde(default)]
    pub read_bytes_per_s: u64,
    /// Sent to the server, of late.
    #[serde(default)]
    pub sent_bytes_per_s: u64,
    /// The newest point.
    #[serde(default)]
    pub last_point: Option<LastPoint>,
    /// When the server, or a mirror that failed, is tried again.
    #[serde(default)]
    pub next_try_s: Option<u64>,
    /// What somebody should know or do.
    #[serde(default)]
    pub notes: Vec<String>,
    /// What was counted.
    #[serde(default)]
    pub counters: Counters,
    /// How long ago this was set. Written by [`Board::all`]; what is set here counts for nothing.
    #[serde(default)]
    pub age_ms: u64,
}

impl VolumeStatus {
    /// A volume of which nothing more is known yet.
    pub fn new(volume: &str, device: &str, state: State, reason: &str) -> Self {
        Self {
            volume: volume.to_owned(),
            device: device.to_owned(),
            state,
            reason: reason.to_owned(),
            data_lag_ms: None,
            point_lag_ms: None,
            backlog_bytes: 0,
            recheck_bytes: 0,
            eta_s: None,
            read_bytes_per_s: 0,
            sent_bytes_per_s: 0,
            last_point: None,
            next_try_s: None,
            notes: Vec::new(),
            counters: Counters::default(),
            age_ms: 0,
        }
    }

    /// Whether more than numbers differ.
    fn is_news(&self, old: &Self) -> bool {
        (self.state, &self.reason, &self.last_point, &self.notes)
            != (old.state, &old.reason, &old.last_point, &old.notes)
    }
}

/// All volumes of a process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    volumes: BTreeMap<String, (VolumeStatus, Instant)>,
    /// Counts changes of more than numbers.
    version: u64,
}

impl Board {
    /// An empty board.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what is known of a volume.
    pub fn set(&self, status: &VolumeStatus) {
        self.put(&mut self.lock(), status.clone());
    }

    /// Changes what is known of a volume, if it is here.
    pub fn update(&self, volume: &str, change: impl FnOnce(&mut VolumeStatus)) {
        let mut inner = self.lock();
        if let Some((status, _)) = inner.volumes.get(volume) {
            let mut status = status.clone();
            change(&mut status);
            self.put(&mut inner, status);
        }
    }

    fn put(&self, inner: &mut Inner, status: VolumeStatus) {
        let news = |old: &VolumeStatus| status.is_news(old);
        if inner.volumes.get(&status.volume).is_none_or(|(old, _)| news(old)) {
            inner.version += 1;
            self.0.news.notify_all();
        }
        inner.volumes.insert(status.volume.clone(), (status, Instant::now()));
    }

    /// A volume is mirrored no more.
    pub fn remove(&self, volume: &str) {
        let mut inner = self.lock();
        if inner.volumes.remove(volume).is_some() {
            inner.version += 1;
            self.0.news.notify_all();
        }
    }

    /// All volumes by name, each with its age.
    pub fn all(&self) -> Vec<VolumeStatus> {
        let mut all: Vec<_> = self.lock().volumes.values().cloned().collect();
        let now = Instant::now();
        let age = |set: Instant| now.saturating_duration_since(set).as_millis();
        for (status, set) in &mut all {
            status.age_ms = u64::try_from(age(*set)).unwrap_or(u64::MAX);
        }
        all.into_iter().map(|(status, _)| status).collect()
    }

    /// Counts changes of more than numbers.
    pub fn version(&self) -> u64 {
        self.lock().version
    }

    /// Waits until more than numbers has changed since `version`, or the time is over; the
    /// version now.
    pub fn wait_news(&self, version: u64, wait: Duration) -> u64 {
        let inner = self.lock();
        let done = self.0.news.wait_timeout_while(inner, wait, |inner| inner.version == version);
        done.unwrap_or_else(PoisonError::into_inner).0.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(volume: &str) -> VolumeStatus {
        VolumeStatus::new(volume, "/dev/x", State::Live, "")
    }

    #[test]
    fn the_names_are_those_that_scripts_know() {
        let mut full = status("root");
        full.data_lag_ms = Some(700);
        full.last_point = Some(LastPoint { seq: 17, grade: "frozen".into(), time: "t".into() });
        full.notes.push("n".into());
        let json = serde_json::to_value(&full).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "volume": "root", "device": "/dev/x", "state": "LIVE", "reason": "",
                "data_lag_ms": 700, "point_lag_ms": null, "backlog_bytes": 0, "recheck_bytes": 0, "eta_s": null,
                "read_bytes_per_s": 0, "sent_bytes_per_s": 0,
                "last_point": { "seq": 17, "grade": "frozen", "time": "t" },
                "next_try_s": null, "notes": ["n"], "age_ms": 0,
                "counters": {
                    "points": 0, "frozen": 0, "settled": 0, "fuzzy": 0, "freezes_failed": 0,
                    "bytes_read": 0, "bytes_sent": 0, "bytes_on_link": 0, "reconnects": 0, "scans": 0,
                    "read_errors": 0,
                },
            })
        );
        assert_eq!(serde_json::from_value::<VolumeStatus>(json).unwrap(), full);
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
        // A status of a newer or older daemon is still read.
        let least = r#"{"volume":"v","device":"d","state":"RESCAN","new":1}"#;
        assert_eq!(serde_json::from_str::<VolumeStatus>(least).unwrap().state, State::Rescan);
    }

    #[test]
    fn volumes_are_set_changed_and_removed() {
        let board = Board::new();
        board.set(&status("b"));
        board.set(&status("a"));
        board.update("b", |s| s.backlog_bytes = 5);
        board.update("none", |s| s.backlog_bytes = 5);
        let all = board.all();
        let told: Vec<_> = all.iter().map(|s| (s.volume.as_str(), s.backlog_bytes)).collect();
        assert_eq!(told, [("a", 0), ("b", 5)]);
        std::thread::sleep(Duration::from_millis(5));
        assert!(board.all().iter().all(|s| s.age_ms >= 5));
        board.remove("a");
        board.remove("a");
        assert_eq!(board.all().len(), 1);
    }

    #[test]
    fn news_wake_and_numbers_do_not() {
        let board = Board::new();
        let soon = Duration::from_millis(1);
        board.set(&status("a"));
        let version = board.wait_news(0, Duration::from_secs(60));
        assert_eq!(version, 1);
        board.update("a", |s| s.backlog_bytes += 1);
        assert_eq!(board.wait_news(version, soon), version);
        board.update("a", |s| s.state = State::Rescan);
        assert_eq!(board.wait_news(version, soon), version + 1);
        board.remove("none");
        assert_eq!(board.wait_news(version + 1, soon), version + 1);
        let waiter = {
            let board = board.clone();
            std::thread::spawn(move || board.wait_news(version + 1, Duration::from_secs(60)))
        };
        board.remove("a");
        assert_eq!(waiter.join().unwrap(), version + 2);
    }
}
