//! What others are told of a mirror: its status on the board, and events in the log.
//!
//! Invariant: never waits, and says nothing while file systems are frozen (nobody asks it then).

use std::time::Instant;

use dormouse_format::point::Grade;
use dormouse_sync::live::{PointSeen, View};

use super::reboot::Start;
use crate::daemon::board::{Board, Counters, LastPoint, State, VolumeStatus};
use crate::daemon::config::MirrorConfig;
use crate::home::Home;
use crate::log::{Entry, Level, Log};
use crate::{kit, text};

pub(super) struct Teller {
    board: Board,
    log: Log,
    volume: String,
    device: String,
    state: &'static str,
    reason: String,
    /// Counters at a moment, for rates.
    before: Option<(Instant, Counters)>,
    rates: (u64, u64),
    reminder: Option<String>,
    /// While a scan waits until the server lets it begin: how many are before it.
    pub(super) queued: Option<u32>,
    /// What was found at the start of an earlier close.
    start: Option<String>,
    /// What is said of swap that is left out.
    pub(super) swap: Option<String>,
    /// Bytes that were discarded and not looked at.
    pub(super) discarded: u64,
    pub(super) counters: Counters,
}

impl Teller {
    pub(super) fn new(config: &MirrorConfig, home: &Home, board: Board, log: Log) -> Self {
        Self {
            board,
            log,
            volume: config.volume.clone(),
            device: config.device.display().to_string(),
            state: "",
            reason: String::new(),
            before: None,
            rates: (0, 0),
            reminder: kit::kit_reminder(home),
            queued: None,
            start: None,
            swap: None,
            discarded: 0,
            counters: Counters::default(),
        }
    }

    /// Whether the disk was written since its mirror was closed.
    pub(super) fn started(&mut self, start: Option<&Start>) {
        let text = match start {
            None => return,
            Some(Start::Unwritten(what)) => {
                format!("no scan: the disk was not written since its mirror was closed ({what})")
            }
            Some(Start::Unproved(why)) => format!("a scan, since the start of the machine: {why}"),
        };
        self.log.event(&Entry::new(Level::Notice, &text));
        self.start = Some(text);
    }

    /// Something that is not as it should be.
    pub(super) fn warn(&self, text: &str) {
        self.log.event(&Entry::new(Level::Warning, text));
    }

    /// Something that somebody may want to know.
    pub(super) fn notice(&self, text: &str) {
        self.log.event(&Entry::new(Level::Notice, text));
    }

    /// A point that holds the disk still.
    pub(super) fn frozen(&self, seq: u64, text: &str) {
        self.log.event(&Entry::new(Level::Info, &format!("point {seq}: {text}")).point(seq));
    }

    pub(super) fn count(&mut self, point: &PointSeen) {
        self.counters.points += 1;
        *match point.grade {
            Grade::Settled => &mut self.counters.settled,
            Grade::Fuzzy => &mut self.counters.fuzzy,
            _ => &mut self.counters.frozen,
        } += 1;
    }

    /// How it stands.
    pub(super) fn seen(&mut self, view: &View) {
        let state = view.state.name();
        let reason = match view.detail.as_str() {
            "" => view.state.reason().to_owned(),
            detail => format!("{}: {detail}", view.state.reason()),
        };
        // Between CATCHUP and LIVE it goes to and fro: not worth a line of the log each time.
        let following = |state: &str| matches!(state, "LIVE" | "CATCHUP");
        if state != self.state && !(following(state) && following(self.state)) {
            let text = format!("{state}: {reason}");
            self.log.event(&Entry::new(Level::Notice, &text).state(state));
        }
        self.state = state;
        self.reason.clone_from(&reason);
        let status = self.status(view, reason);
        self.board.set(&status);
    }

    fn status(&mut self, view: &View, reason: String) -> VolumeStatus {
        self.rate();
        let ms = |lag: std::time::Duration| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
        let state = State::ALL.into_iter().find(|s| s.name() == view.state.name());
        let mut status =
            VolumeStatus::new(&self.volume, &self.device, state.unwrap_or(State::NoConn), &reason);
        status.data_lag_ms = view.data_lag.map(ms);
        status.point_lag_ms = view.point_lag.map(ms);
        status.backlog_bytes = view.backlog;
        status.recheck_bytes = self.discarded;
        status.eta_s = view.eta.map(|eta| eta.as_secs());
        (status.read_bytes_per_s, status.sent_bytes_per_s) = self.rates;
        status.last_point = view.consistent.or(view.point).map(|point| LastPoint {
            seq: point.seq,
            grade: point.grade.name().to_owned(),
            time: text::time_utc(point.time),
        });
        status.next_try_s = view.next_try.map(|wait| wait.as_secs());
        status.notes = self.notes(view);
        status.counters = self.counters;
        status
    }

    fn notes(&self, view: &View) -> Vec<String> {
        let mut notes: Vec<String> =
            self.reminder.iter().chain(&self.start).chain(&self.swap).cloned().collect();
        let scanning = matches!(view.state, dormouse_sync::live::State::Scanning(_));
        if let Some(ahead) = self.queued.filter(|_| scanning) {
            notes.push(format!("waiting for the server: {ahead} others scan first"));
        }
        if view.stale > 0 {
            notes.push(format!("{} blocks of the device cannot be read", view.stale));
        }
        if let Some((why, detail)) = &view.unfrozen {
            let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
            notes.push(format!("no frozen point: {}{detail}", why.text()));
        }
        if let dormouse_sync::live::State::NoConn(away) = view.state
            && !away.way_out().is_empty()
        {
            notes.push(away.way_out().to_owned());
        }
        notes
    }

    /// Bytes a second, over the last second or two.
    fn rate(&mut self) {
        let now = Instant::now();
        let Some((at, before)) = self.before else {
            self.before = Some((now, self.counters));
            return;
        };
        let passed = now.duration_since(at).as_millis().max(1) as u64;
        if passed >= 1000 {
            let each = |now: u64, before: u64| now.saturating_sub(before) * 1000 / passed;
            self.rates = (
                each(self.counters.bytes_read, before.bytes_read),
                each(self.counters.bytes_sent, before.bytes_sent),
            );
            self.before = Some((now, self.counters));
        }
    }
}
