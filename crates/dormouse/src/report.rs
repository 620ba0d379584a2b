//! What a long command shows: a bar on a terminal, plain lines elsewhere, JSON
//! events on request. Results go to stdout, progress and notes to stderr.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use dormouse_format::limits::{BLOCK_SIZE, LEAF_BLOCKS};
use dormouse_sync::{copy, fetch};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::text;

const LEAF: u64 = LEAF_BLOCKS * BLOCK_SIZE as u64;
/// How often a line is written where there is no terminal.
const LINES: Duration = Duration::from_secs(10);
const JSON: Duration = Duration::from_secs(1);

/// The voice of one command.
#[derive(Debug)]
pub struct Report {
    json: bool,
    quiet: bool,
    bar: Option<ProgressBar>,
    last: Instant,
}

impl Report {
    /// How the command was told to speak.
    pub fn new(json: bool, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal() && !quiet && !json;
        let bar = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style =
                "{bar:30} {percent:>3}% {bytes}/{total_bytes} {bytes_per_sec} ETA {eta} {msg}";
            bar.set_style(
                ProgressStyle::with_template(style)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        });
        Self { json, quiet, bar, last: Instant::now() }
    }

    /// A JSON event, if these were asked for.
    pub fn event(&mut self, event: serde_json::Value) {
        if self.json {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{event}").and_then(|()| out.flush()).ok();
        }
    }

    /// A line of the result.
    pub fn line(&mut self, line: &str) {
        if !self.json && !self.quiet {
            writeln!(std::io::stdout().lock(), "{line}").ok();
        }
    }

    /// A note that is not the result.
    pub fn note(&mut self, note: &str) {
        if !self.quiet {
            match &self.bar {
                Some(bar) => bar.suspend(|| eprintln!("{note}")),
                None => eprintln!("{note}"),
            }
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
        let message = format!("sent {}", text::size(p.sent_bytes));
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
        let every = if self.json { JSON } else { LINES };
        if self.last.elapsed() < every {
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
