//! `dormouse daemon`: mirrors of several devices in one process.
//!
//! Owns: the main loop, and what it answers to: signals, the ends of mirrors, the service
//! manager. Invariants: a file with errors changes nothing; a stop is bounded, and a second
//! signal ends at once; the loop itself never waits for a mirror, a server or a reader. Leaves to
//! others: the mirrors' threads ([`supervisor`]), what a mirror does ([`crate::live`]), and how
//! their states are told ([`board`], [`status_socket`], [`metrics`]).

pub mod board;
pub mod check;
pub mod config;
pub mod doorway;
pub mod http;
pub mod metrics;
pub mod metrics_http;
pub mod notify;
pub mod quantity;
pub mod status;
pub mod status_socket;
pub mod supervisor;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use crossbeam_channel::{Receiver, select};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::exit::{Class, fail, text_of};
use crate::home::Home;
use crate::log::{Entry, Level, Log};
use board::{Board, State};
use config::{Config, MirrorConfig};
use metrics_http::MetricsHttp;
use notify::Notify;
use status_socket::StatusSocket;
use supervisor::Supervisor;

/// How long a stop waits for the mirrors.
pub const STOP_WAIT: Duration = Duration::from_secs(80);
/// The longest time between two looks at what is due.
const TICK: Duration = Duration::from_secs(1);

/// What a mirror gets.
#[derive(Debug, Clone)]
pub struct Context {
    /// The keys and state of this machine.
    pub home: Home,
    /// Where it tells its state.
    pub board: Board,
    /// Where it tells events; they carry its volume.
    pub log: Log,
    /// Never carries anything: it is closed when the mirror must stop.
    pub stop: Receiver<()>,
}

/// Mirrors one device until told to stop.
pub type Run = Arc<dyn Fn(&MirrorConfig, &Context) -> Result<()> + Send + Sync>;

/// What is mirrored.
#[derive(Debug, Clone)]
pub enum Mirrors {
    /// What a file says; it is read again on SIGHUP.
    File(PathBuf),
    /// This device. Its failure is that of the process.
    One(MirrorConfig),
}

/// What others tell the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Stop; a second time: at once.
    Stop,
    /// Read the file again.
    Reload,
}

/// What a daemon is made of.
pub struct Options {
    /// The home.
    pub home: Home,
    /// What is mirrored.
    pub mirrors: Mirrors,
    /// What mirrors a device.
    pub run: Run,
    /// Where events go.
    pub log: Log,
    /// How long a stop may take.
    pub stop_wait: Duration,
}

/// `dormouse daemon`, and `dormouse mirror DEVICE`: until SIGTERM or SIGINT.
pub fn run(home: Home, mirrors: Mirrors) -> Result<()> {
    // What is wrong for all mirrors is told at once, with its exit code.
    home.account()?;
    let run: Run = Arc::new(crate::live::run);
    let options = Options { home, mirrors, run, log: Log::system(), stop_wait: STOP_WAIT };
    run_with(options, &signals()?)
}

/// Signals of this process, from now on.
fn signals() -> Result<Receiver<Signal>> {
    let cannot = "cannot listen for signals";
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context(cannot)?;
    let (tell, told) = crossbeam_channel::unbounded();
    let forward = move || {
        for number in signals.forever() {
            let signal = if number == SIGHUP { Signal::Reload } else { Signal::Stop };
            if tell.send(signal).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(forward).context(cannot)?;
    Ok(told)
}

/// The same with parts of the caller's, until a signal, or the closing of its channel.
pub fn run_with(options: Options, signals: &Receiver<Signal>) -> Result<()> {
    let mut daemon = Daemon::start(options)?;
    let ends = daemon.supervisor.ends();
    while daemon.goes_on()? {
        select! {
            recv(signals) -> signal => match signal.unwrap_or(Signal::Stop) {
                Signal::Reload => daemon.reload(),
                Signal::Stop => daemon.stop()?,
            },
            recv(ends) -> ended => {
                if let Ok(ended) = ended {
                    let failure = daemon.supervisor.on_end(ended, Instant::now());
                    daemon.after(failure);
                }
            }
            default(daemon.wait()) => {}
        }
    }
    daemon.failure.map_or(Ok(()), Err)
}

struct Daemon {
    mirrors: Mirrors,
    home: Home,
    log: Log,
    board: Board,
    stop_wait: Duration,
    supervisor: Supervisor,
    notify: Notify,
    /// Where status and metrics are told, and by what.
    status: (Option<PathBuf>, StatusSocket),
    metrics: (Option<SocketAddr>, Option<MetricsHttp>),
    /// Why the last reload changed nothing.
    reload_failed: bool,
    /// When the stop that has begun is over.
    stop_until: Option<Instant>,
    /// What the process ends with.
    failure: Option<anyhow::Error>,
}

impl Daemon {
    fn start(options: Options) -> Result<Self> {
        let Options { home, mirrors, run, log, stop_wait } = options;
        let config = config_of(&mirrors)?;
        let board = Board::new();
        let status = StatusSocket::open(&home, config.status.as_deref(), &board, &log)?;
        let metrics = open_metrics(config.metrics, &board, &log)?;
        let stop = crossbeam_channel::never();
        let context = Context { home: home.clone(), board: board.clone(), log: log.clone(), stop };
        let mut supervisor = Supervisor::new(run, context);
        if matches!(mirrors, Mirrors::One(_)) {
            supervisor = supervisor.without_retries();
        }
        supervisor.want(config.mirrors, Instant::now());
        let notify = Notify::from_env();
        notify.ready();
        Ok(Self {
            mirrors,
            home,
            log,
            board,
            stop_wait,
            supervisor,
            notify,
            status: (config.status, status),
            metrics: (config.metrics, metrics),
            reload_failed: false,
            stop_until: None,
            failure: None,
        })
    }

    /// Does what is due; false when all is over.
    fn goes_on(&mut self) -> Result<bool> {
        let now = Instant::now();
        self.notify.alive(now);
        let summary = self.summary();
        self.notify.status(&summary);
        let Some(until) = self.stop_until else {
            self.supervisor.tick(now);
            return Ok(true);
        };
        if now >= until {
            self.give_up(&format!("did not stop within {} s", self.stop_wait.as_secs()))?;
        }
        Ok(!self.supervisor.running().is_empty())
    }

    fn wait(&self) -> Duration {
        let due = self.notify.every().map_or(TICK, |every| TICK.min(every / 2));
        let until = self.stop_until.map(|u| u.saturating_duration_since(Instant::now()));
        until.map_or(due, |until| due.min(until))
    }

    fn stop(&mut self) -> Result<()> {
        if self.stop_until.is_some() {
            return self.give_up("still ran when a second signal came");
        }
        self.log.line("stopping");
        self.begin_stop();
        Ok(())
    }

    fn begin_stop(&mut self) {
        self.notify.stopping();
        self.stop_until = Some(Instant::now() + self.stop_wait);
        self.supervisor.stop_all();
    }

    /// The process ends although mirrors run.
    fn give_up(&self, why: &str) -> Result<()> {
        let running = self.supervisor.running();
        if running.is_empty() {
            return Ok(());
        }
        fail(
            Class::Other,
            format!("the mirror of {} {why}", running.join(", ")),
            "nothing is lost: what was not acknowledged is found again at the next start",
        )
    }

    /// A mirror has ended, perhaps with a failure.
    fn after(&mut self, failure: Option<anyhow::Error>) {
        if let (Mirrors::One(_), Some(error)) = (&self.mirrors, failure) {
            self.failure = Some(error);
            if self.stop_until.is_none() {
                self.begin_stop();
            }
        }
    }

    /// Reads the file again. Whatever is wrong, what ran goes on.
    fn reload(&mut self) {
        if self.stop_until.is_some() {
            return;
        }
        self.notify.reloading();
        let done = self.reload_file();
        self.reload_failed = done.is_err();
        if let Err(error) = done {
            let text = format!("not reloaded, the old goes on: {}", text_of(&error));
            self.log.event(&Entry::new(Level::Error, &text));
        }
        self.notify.ready();
    }

    fn reload_file(&mut self) -> Result<()> {
        let Mirrors::File(path) = &self.mirrors else {
            return fail(Class::Usage, "there is no file to read again", "");
        };
        let config = Config::load(path)?;
        if config.metrics != self.metrics.0 {
            let metrics = open_metrics(config.metrics, &self.board, &self.log)?;
            self.metrics = (config.metrics, metrics);
        }
        if config.status != self.status.0 {
            let at = config.status.as_deref();
            let status = StatusSocket::open(&self.home, at, &self.board, &self.log)?;
            self.status = (config.status, status);
        }
        self.log.line(&format!("{} was read again", path.display()));
        self.supervisor.want(config.mirrors, Instant::now());
        Ok(())
    }

    /// One line for the service manager.
    fn summary(&self) -> String {
        let all = self.board.all();
        let count = |state| all.iter().filter(|v| v.state == state).count();
        let states: Vec<String> = State::ALL
            .into_iter()
            .filter(|state| count(*state) > 0)
            .map(|state| format!("{} {}", count(state), state.name()))
            .collect();
        let mut text = match states.as_slice() {
            [] => "no volumes".to_owned(),
            states => states.join(", "),
        };
        if self.reload_failed {
            text.push_str("; the last reload failed, see the log");
        }
        if self.stop_until.is_some() {
            text.push_str("; stopping");
        }
        text
    }
}

/// What is to be done.
fn config_of(mirrors: &Mirrors) -> Result<Config> {
    match mirrors {
        Mirrors::File(path) => Config::load(path),
        Mirrors::One(mirror) => {
            Ok(Config { status: None, metrics: None, mirrors: vec![mirror.clone()] })
        }
    }
}

fn open_metrics(at: Option<SocketAddr>, board: &Board, log: &Log) -> Result<Option<MetricsHttp>> {
    let metrics = at.map(|at| MetricsHttp::open(at, board, log)).transpose()?;
    if let Some(metrics) = &metrics {
        log.line(&format!("metrics are at http://{}/metrics", metrics.address()));
    }
    Ok(metrics)
}

/// The file that is meant.
pub fn file_or_default(file: Option<&Path>) -> PathBuf {
    file.unwrap_or_else(|| Path::new(config::DEFAULT_FILE)).to_owned()
}
