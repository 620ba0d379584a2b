//! `dormouse mirror DEVICE` in the foreground.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::Result;
use crossbeam_channel::bounded;
use dormouse_sync::live::{Freeze, View};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{Audience, Counters, Order};
use crate::cli::MirrorArgs;
use crate::home::Home;
use crate::log::Log;
use crate::{text, volume_name};

const EVERY: Duration = Duration::from_secs(1);

struct Lines {
    log: Log,
    told: RefCell<Instant>,
}

impl Audience for Lines {
    fn seen(&self, view: &View, counters: &Counters) {
        if self.told.borrow().elapsed() < EVERY {
            return;
        }
        *self.told.borrow_mut() = Instant::now();
        let lag = |lag: Option<Duration>| {
            lag.map_or_else(|| "-".to_owned(), |lag| format!("{:.1} s", lag.as_secs_f64()))
        };
        self.log.line(&format!(
            "{}: data {} behind, point {} behind, backlog {}, points {} frozen {} settled {} fuzzy",
            view.state.name(),
            lag(view.data_lag),
            lag(view.point_lag),
            text::size(view.backlog),
            counters.frozen,
            counters.settled,
            counters.fuzzy,
        ));
    }

    fn line(&self, text: &str) {
        self.log.line(text);
    }
}

/// Runs until SIGINT or SIGTERM.
pub fn run(home: &Home, args: &MirrorArgs) -> Result<()> {
    let order = Order {
        device: args.source.clone(),
        volume: args.volume.clone().unwrap_or_else(|| volume_name::of_source(&args.source)),
        freeze: Freeze::Auto {
            every: std::env::var("EVERY")
                .map_or(Duration::from_secs(60), |s| Duration::from_secs(s.parse().unwrap_or(60))),
        },
        hook_before: None,
        hook_after: None,
        limit: None,
        level: args.level,
        takeover: args.takeover,
    };
    let (sender, stop) = bounded(2);
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            let _ = sender.send(());
        }
    });
    let lines = Lines { log: Log::stderr(), told: RefCell::new(Instant::now()) };
    super::run(home, &order, &stop, &lines)
}
