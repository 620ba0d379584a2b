//! A mirror without a tracker: all is compared, now and then.
//!
//! For where the kernel allows no programs, or the source is a file. Invariant: a point says
//! what it earned, as with `--once`.

use std::time::Duration;

use anyhow::Result;
use crossbeam_channel::RecvTimeoutError;

use crate::daemon::Context;
use crate::daemon::board::{LastPoint, State, VolumeStatus};
use crate::daemon::config::MirrorConfig;
use crate::exit::{away_of, hint_of};
use crate::log::{Entry, Level};
use crate::mirror::{self, Copied, Options};
use crate::report::Report;
use crate::text;

/// After a server that was not there.
const AGAIN: Duration = Duration::from_secs(60);

/// Compares, waits, compares, until `context.stop` says so.
pub(super) fn run(config: &MirrorConfig, context: &Context) -> Result<()> {
    let mut options = Options {
        source: config.device.clone(),
        volume: Some(config.volume.clone()),
        all: false,
        takeover: config.takeover,
        same_disk: config.same_disk,
        level: config.level,
        json: false,
        quiet: true,
        stop: Some(context.stop.clone()),
    };
    let device = config.device.display().to_string();
    let mut status = VolumeStatus::new(&config.volume, &device, State::Scanning, "comparing all");
    loop {
        context.board.set(&status);
        status.counters.scans += 1;
        let wait = match mirror::copy(&context.home, &options, &mut Report::new(false, true)) {
            Ok(copied) => {
                options.takeover = false;
                options.same_disk = false;
                made(&mut status, &copied);
                let every = text::lasting(config.scan_every.as_millis() as u64);
                let text = match copied.why_fuzzy {
                    None => format!("compared; again each {every}"),
                    Some(why) => format!("compared, but only fuzzy: {why}; again each {every}"),
                };
                (status.state, status.reason) = (State::Live, text);
                config.scan_every
            }
            Err(error) => {
                if context.stop.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected) {
                    return Ok(());
                }
                // What is not about the server is not mended by waiting here.
                if away_of(&error).is_none() {
                    return Err(error);
                }
                let text = format!("{error:#}");
                context.log.event(&Entry::new(Level::Warning, &text));
                let hint = hint_of(&error).to_owned();
                status.notes = Some(hint).filter(|h| !h.is_empty()).into_iter().collect();
                (status.state, status.reason) = (State::NoConn, text);
                AGAIN.min(config.scan_every)
            }
        };
        context.log.event(&Entry::new(Level::Notice, &status.reason).state(status.state.name()));
        status.next_try_s = Some(wait.as_secs());
        context.board.set(&status);
        if context.stop.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
            return Ok(());
        }
        status.next_try_s = None;
        (status.state, status.reason) = (State::Scanning, "comparing all".into());
    }
}

fn made(status: &mut VolumeStatus, copied: &Copied) {
    let (outcome, counters) = (&copied.outcome, &mut status.counters);
    let point = &outcome.point.point;
    counters.points += 1;
    match copied.why_fuzzy {
        None => counters.settled += 1,
        Some(_) => counters.fuzzy += 1,
    }
    counters.bytes_read += outcome.progress.read;
    counters.bytes_sent += outcome.progress.sent_bytes;
    status.notes.clear();
    status.last_point = Some(LastPoint {
        seq: point.seq,
        grade: point.grade.name().to_owned(),
        time: text::time_utc(outcome.receipt),
    });
}
