//! The mirrors of a daemon: one thread each, started, stopped and started again.
//!
//! Owns: which mirrors run, and when one that failed is tried again. Invariants: a mirror that
//! fails, or panics, ends no other; an unchanged mirror is not touched by a reload; a volume has
//! one thread at a time, and so has a device: a mirror starts when whatever had either has ended.
//! Never waits: the caller tells of ends and of time. Leaves to others: what a mirror does.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use crossbeam_channel::{Receiver, Sender};

use super::board::{State, VolumeStatus};
use super::config::MirrorConfig;
use super::{Context, Run};
use crate::exit::hint_of;
use crate::log::{Entry, Level};

/// Before a mirror that failed is tried again; doubled with each failure.
const WAIT_FIRST: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_secs(300);
/// A mirror that ran this long had got over what made it fail before.
const RAN_WELL: Duration = Duration::from_secs(600);

/// The end of a mirror's thread.
#[derive(Debug)]
pub struct Ended {
    volume: String,
    result: Result<()>,
}

/// All mirrors.
pub struct Supervisor {
    run: Run,
    /// Whether a mirror that failed is tried again.
    again: bool,
    /// For each mirror with another log and stop.
    context: Context,
    mirrors: BTreeMap<String, Mirror>,
    ended: (Sender<Ended>, Receiver<Ended>),
}

/// One mirror; known by its volume.
struct Mirror {
    /// What shall run, if anything.
    wanted: Option<MirrorConfig>,
    running: Option<Running>,
    /// Failures in a row.
    failures: u32,
    /// It waits until then, after a failure.
    next_try: Option<Instant>,
}

struct Running {
    config: MirrorConfig,
    since: Instant,
    /// Never carries anything: it is dropped to stop the mirror.
    stop: Option<Sender<()>>,
}

impl Supervisor {
    /// Without any mirror yet.
    pub fn new(run: Run, context: Context) -> Self {
        let ended = crossbeam_channel::unbounded();
        Self { run, again: true, context, mirrors: BTreeMap::new(), ended }
    }

    /// The same, but a mirror that fails has ended: the caller tells of it.
    #[must_use]
    pub fn without_retries(mut self) -> Self {
        self.again = false;
        self
    }

    /// Where ends are told; each goes to [`Self::on_end`].
    pub fn ends(&self) -> Receiver<Ended> {
        self.ended.1.clone()
    }

    /// From now on these shall run, and no others.
    pub fn want(&mut self, configs: Vec<MirrorConfig>, now: Instant) {
        let mut new: BTreeMap<String, MirrorConfig> =
            configs.into_iter().map(|c| (c.volume.clone(), c)).collect();
        for (volume, mirror) in &mut self.mirrors {
            let wanted = new.remove(volume);
            if wanted == mirror.wanted {
                continue;
            }
            let log = self.context.log.of_volume(volume);
            log.line(if wanted.is_some() { "changed" } else { "mirrored no more" });
            (mirror.wanted, mirror.failures, mirror.next_try) = (wanted, 0, None);
            if let Some(running) = &mut mirror.running {
                running.stop = None;
            }
        }
        for (volume, config) in new {
            let mirror =
                Mirror { wanted: Some(config), running: None, failures: 0, next_try: None };
            self.mirrors.insert(volume, mirror);
        }
        self.forget();
        self.tick(now);
    }

    /// Stops all of them.
    pub fn stop_all(&mut self) {
        for mirror in self.mirrors.values_mut() {
            mirror.wanted = None;
            if let Some(running) = &mut mirror.running {
                running.stop = None;
            }
        }
        self.forget();
    }

    /// Volumes whose threads run.
    pub fn running(&self) -> Vec<&str> {
        let running = self.mirrors.iter().filter(|(_, m)| m.running.is_some());
        running.map(|(volume, _)| volume.as_str()).collect()
    }

    /// Starts what is due, and counts down what waits.
    pub fn tick(&mut self, now: Instant) {
        let busy: Vec<_> = self.mirrors.values().filter_map(|m| m.running.as_ref()).collect();
        let mut busy: Vec<_> = busy.iter().map(|r| r.config.device.clone()).collect();
        for (volume, mirror) in &mut self.mirrors {
            let (Some(config), None) = (&mirror.wanted, &mirror.running) else { continue };
            if let Some(next_try) = mirror.next_try.filter(|next| *next > now) {
                let left = next_try - now;
                self.context.board.update(volume, |s| s.next_try_s = Some(left.as_secs()));
            } else if !busy.contains(&config.device) {
                busy.push(config.device.clone());
                mirror.next_try = None;
                let config = config.clone();
                let running = start(&self.run, &self.context, &self.ended.0, config, now);
                mirror.running = Some(running);
            }
        }
    }

    /// A thread has ended: as it was told, or by a failure that is tried again. The failure.
    pub fn on_end(&mut self, ended: Ended, now: Instant) -> Option<anyhow::Error> {
        let Ended { volume, result } = ended;
        let mirror = self.mirrors.get_mut(&volume)?;
        let running = mirror.running.take()?;
        let log = self.context.log.of_volume(&volume);
        let stopped = running.stop.is_none();
        let failure = match result {
            Ok(()) if stopped => None,
            Ok(()) => Some(anyhow!("it ended without being told to")),
            Err(error) => Some(error),
        };
        match &failure {
            None => log.line("stopped"),
            // What goes wrong on the way out is not tried again.
            Some(error) if stopped => {
                log.event(&Entry::new(Level::Error, &format!("while it stopped: {error:#}")));
            }
            Some(_) if !self.again => mirror.wanted = None,
            Some(error) => {
                if now.saturating_duration_since(running.since) >= RAN_WELL {
                    mirror.failures = 0;
                }
                let wait = WAIT_FIRST.saturating_mul(1 << mirror.failures.min(16)).min(WAIT_MAX);
                mirror.failures += 1;
                mirror.next_try = Some(now + wait);
                self.context.board.update(&volume, |status| failed(status, error, wait));
                let text = format!("{error:#}; tried again in {} s", wait.as_secs());
                log.event(&Entry::new(Level::Error, &text));
            }
        }
        self.forget();
        self.tick(now);
        failure
    }

    /// Forgets mirrors that shall not run, and do not.
    fn forget(&mut self) {
        let board = &self.context.board;
        self.mirrors.retain(|volume, mirror| {
            let stays = mirror.wanted.is_some() || mirror.running.is_some();
            if !stays {
                board.remove(volume);
            }
            stays
        });
    }
}

/// What a mirror that failed shows until it is tried again.
fn failed(status: &mut VolumeStatus, error: &anyhow::Error, wait: Duration) {
    let hint = hint_of(error).lines().map(str::trim).collect::<Vec<_>>().join(" ");
    *status = VolumeStatus {
        last_point: status.last_point.take(),
        counters: status.counters,
        next_try_s: Some(wait.as_secs()),
        notes: Some(hint).filter(|h| !h.is_empty()).into_iter().collect(),
        ..VolumeStatus::new(
            &status.volume,
            &status.device,
            State::NoConn,
            &format!("failed: {error:#}"),
        )
    };
}

/// Starts a mirror's thread; if there can be none, that is its end.
fn start(
    run: &Run,
    context: &Context,
    ended: &Sender<Ended>,
    config: MirrorConfig,
    now: Instant,
) -> Running {
    let volume = config.volume.clone();
    let (stop, stopped) = crossbeam_channel::bounded(0);
    let context = Context {
        log: context.log.of_volume(&volume),
        stop: stopped,
        home: context.home.clone(),
        board: context.board.clone(),
    };
    let device = config.device.display().to_string();
    let old = context.board.all().into_iter().find(|s| s.volume == volume);
    let mut status = VolumeStatus::new(&volume, &device, State::NoConn, "starting");
    // What was counted does not go back.
    status.counters = old.map(|s| s.counters).unwrap_or_default();
    context.board.set(&status);
    context.log.line(&format!("mirrors {device}"));
    let (run, mirrored, tell) = (run.clone(), config.clone(), ended.clone());
    let thread = std::thread::Builder::new().name(volume.clone()).spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| run(&mirrored, &context)));
        let result = result.unwrap_or_else(|_| Err(anyhow!("it panicked: that is a bug")));
        // Nobody listens any more when the daemon is gone already.
        let _ = tell.send(Ended { volume: mirrored.volume.clone(), result });
    });
    if let Err(error) = thread {
        let error = anyhow!(error).context("no thread for it");
        let _ = ended.send(Ended { volume, result: Err(error) });
    }
    Running { config, since: now, stop: Some(stop) }
}

#[cfg(test)]
mod tests;
