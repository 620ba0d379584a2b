//! What a long command shows: a bar on a terminal, plain lines elsewhere, JSON
//! events on request. Results go to stdout, progress and notes to stderr.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use dormouse_format::limits::{BLOCK_SIZE, LEAF_BLOCKS};
use dormouse_sync::{copy, fetch};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::{out, text};

const LEAF: u64 = LEAF_BLOCKS * BLOCK_SIZE as u64;
/// How often a line is written where there is no terminal.
const LINES: Duration = Duration::from_secs(10);
const JSON: Duration = Duration::from_secs(1);

/// The bar of a terminal.
const BAR: &str = "{bar:30} {percent:>3}% {bytes}/{total_bytes} {bytes_per_sec} ETA {eta} {msg}";

/// The voice of one command.
pub struct Report {
    json: bool,
    quiet: bool,
    bar: Option<ProgressBar>,
    every: Duration,
    last: Instant,
    out: Box<dyn Write>,
    err: Box<dyn Write>,
    /// What of the result could not be written, the first time.
    lost: Option<anyhow::Error>,
}

impl core::fmt::Debug for Report {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Report(json: {}, quiet: {})", self.json, self.quiet)
    }
}

impl Report {
    /// How the command was told to speak.
    pub fn new(json: bool, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal() && !quiet && !json;
        let bar = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template(BAR);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        let (out, err) = (Box::new(std::io::stdout()), Box::new(std::io::stderr()));
        let every = if json { JSON } else { LINES };
        Self { json, quiet, bar, every, last: Instant::now(), out, err, lost: None }
    }

    /// A JSON event, if these were asked for.
    pub fn event(&mut self, event: serde_json::Value) {
        if self.json {
            self.say(&event);
        }
    }

    /// A line of the result.
    pub fn line(&mut self, line: &str) {
        if !self.json && !self.quiet {
            self.say(&line);
        }
    }

    /// What cannot be written does not end the work: a copy is worth more than its report.
    fn say(&mut self, text: &dyn core::fmt::Display) {
        if self.lost.is_none() {
            let written = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
            self.lost = written.err().map(|e| out::failed(&e));
        }
    }

    /// Whether all of the result could be written; asked when the work is done.
    pub fn said(self) -> anyhow::Result<()> {
        self.lost.map_or(Ok(()), Err)
    }

    /// A note that is not the result.
    pub fn note(&mut self, note: &str) {
        if !self.quiet {
            let err = &mut self.err;
            let mut write = || writeln!(err, "{note}").ok();
            match &self.bar {
                Some(bar) => bar.suspend(&mut write),
                None => write(),
            };
        }
    }

    /// Takes the bar off the screen.
    pub fn clear(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// A copy goes on: `total` leaves in all.
    pub fn copying(&mut self, p: &copy::Progress, total: u64) {
        let message = match p.queued {
            Some(ahead) => format!("waiting for the server: {ahead} others scan first"),
            None => format!("sent {}", text::size(p.sent_bytes)),
        };
        self.show(p.leaves.min(total) * LEAF, total * LEAF, &message);
    }

    /// A restore or a check goes on, through `size` bytes of a point.
    pub fn fetching(&mut self, p: &fetch::Progress, size: u64) {
        let message = format!("received {}", text::size(p.received));
        self.show(p.at.min(size), size, &message);
    }

    fn show(&mut self, at: u64, total: u64, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(at);
            bar.set_message(message.to_owned());
            return;
        }
        if self.last.elapsed() < self.every {
            return;
        }
        self.last = Instant::now();
        if self.json {
            self.event(json!({ "event": "progress", "at": at, "total": total }));
        } else {
            let percent = (at * 100).checked_div(total).unwrap_or(100);
            self.note(&format!("{percent}% of {}, {message}", text::size(total)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What goes to stdout and stderr of a copy that is half done, and ends.
    fn said(json: bool, quiet: bool, every: Duration) -> (String, String) {
        let (out, err) = (Shared::default(), Shared::default());
        let mut report = Report {
            json,
            quiet,
            bar: None,
            every,
            last: Instant::now(),
            out: Box::new(out.clone()),
            err: Box::new(err.clone()),
            lost: None,
        };
        let half = copy::Progress { leaves: 5, sent_bytes: 2048, ..Default::default() };
        report.copying(&half, 10);
        report.event(json!({ "event": "done" }));
        report.line("copied");
        let text = |s: Shared| String::from_utf8(s.0.lock().unwrap().clone()).unwrap();
        (text(out), text(err))
    }

    #[test]
    fn progress_is_lines_on_stderr_or_events_on_stdout() {
        let at_once = Duration::ZERO;
        let (out, err) = said(false, false, at_once);
        assert_eq!((&*out, &*err), ("copied\n", "50% of 10.0 MiB, sent 2.0 KiB\n"));
        let (out, err) = said(true, false, at_once);
        let events: Vec<serde_json::Value> =
            out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let progress = json!({ "event": "progress", "at": 5 * LEAF, "total": 10 * LEAF });
        assert_eq!((events, &*err), (vec![progress, json!({ "event": "done" })], ""));
        assert_eq!(said(false, true, at_once), Default::default());
        assert_eq!(said(false, false, LINES), ("copied\n".into(), String::new()));
    }

    #[test]
    fn the_bar_has_bytes_rate_and_time_left() {
        assert!(ProgressStyle::with_template(BAR).is_ok());
        for part in ["{bytes}", "{total_bytes}", "{bytes_per_sec}", "{eta}"] {
            assert!(BAR.contains(part));
        }
    }
}
