//! The live mirror of one device: the copy follows the disk.
//!
//! Owns: the loop that does what `dormouse_sync::live` decides, with a real disk, tracker, link
//! and clock. Invariants: a mark is forgotten only when the point that carries it is durable on
//! the server, and on record beside the marks; the grade of a point is what was proved. Leaves to
//! others: what is done next (`dormouse_sync::live`), marks and freezing (`dormouse_track`), and
//! what several mirrors share ([`crate::daemon`]).

mod closing;
mod connecting;
mod discards;
mod disk;
mod freezing;
mod jobs;
mod pilot;
mod reboot;
mod scanning;
mod stale;
mod swap;
mod telling;

use std::sync::Arc;

use anyhow::Result;
use dormouse_crypt::{OsRandom, Random};
use dormouse_sync::live::{Event, Freeze, Live, Settings};
use dormouse_track::priority::last_at_the_disk;
use dormouse_track::routes::RouteWatch;

use crate::daemon::Context;
use crate::daemon::config::{self, MirrorConfig};
use crate::log::{Entry, Level};
use crate::pace::Pace;
use crate::volume_name;
use disk::Tracked;
use jobs::Worker;
use pilot::Pilot;
use telling::Teller;

pub use disk::untrack;
pub use freezing::thaw_left;
pub use reboot::{pin, save};

/// Most bytes that are held in memory while file systems are frozen.
pub(crate) const REST_MAX: u64 = 16 << 20;

/// Mirrors a device until `context.stop` says so, and a clean stop is done.
pub fn run(config: &MirrorConfig, context: &Context) -> Result<()> {
    if config.tracker == config::Tracker::Scan {
        return scanning::run(config, context);
    }
    let Context { home, board, log, stop } = context;
    let account = Arc::new(home.account()?);
    volume_name::check(&config.volume)?;
    let _lock = home.lock_named(&format!("volume-{}", config.volume))?;
    // The engine's threads are started by this one. Where it is not allowed, it goes on as others.
    let _ = last_at_the_disk();
    let tracked = Tracked::open(home, config)?;
    let moved = MirrorConfig { device: tracked.disk.path.clone(), ..config.clone() };
    if moved.device != config.device {
        let text = format!(
            "the disk of '{}' is {} now: {} is gone, or another one",
            config.volume,
            moved.device.display(),
            config.device.display()
        );
        log.event(&Entry::new(Level::Warning, &text));
    }
    let config = &moved;
    let settings = Settings {
        size: tracked.size(),
        freeze: match config.freeze {
            config::Freeze::Auto => Freeze::Auto { every: config.point_every },
            config::Freeze::Never => Freeze::Never,
        },
        rest_max: REST_MAX,
        seed: u64::from_le_bytes(OsRandom.array()),
    };
    let mut teller = Teller::new(config, home, board.clone(), log.clone());
    teller.started(tracked.start.as_ref());
    // Without it the server is tried again all the same, only later.
    let routes = RouteWatch::new().ok();
    let mut pilot = Pilot::new(Live::new(settings), stop, routes, teller);
    if config.takeover {
        pilot.tell(Event::Try { takeover: true });
    }
    let pace = config.limit.map(|rate| Arc::new(Pace::new(rate)));
    let mut worker = Worker::new(home.clone(), account, config.clone(), pace, tracked);
    pilot.fly(&mut worker)?;
    worker.end(log)
}
