//! Runs the engines of `dormouse-sync`: gives their actions to worker threads, to
//! the link and to the disk, and brings back what happened.
//!
//! Owns: threads and channels of one copy or restore. Invariant: the engine bounds
//! what is under way; the channels here add no more than that. Leaves to others:
//! what to do (`dormouse-sync`), the wire (`link`), files and devices.

mod checkpointing;
mod copying;
mod fetching;

use std::num::NonZero;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, select};
use dormouse_format::message::Message;
use dormouse_sync::leaf::{Claim, LeafData};

use crate::connect;
use crate::link::{Link, LinkError};
use crate::patience::Patience;

pub use checkpointing::run_checkpoint;
pub use copying::{Sealing, run_copy};
pub use fetching::{Opening, run_fetch};

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(200);

/// A disk that is read leaf by leaf.
pub trait Leaves: Send + Sync {
    /// Reads what a leaf holds; holes may be left out.
    fn read_leaf(&self, index: u64, claim: Claim) -> Result<LeafData>;
}

/// A disk that is written.
pub trait Target: Leaves {
    /// Writes bytes.
    fn write(&self, at: u64, bytes: &[u8]) -> Result<()>;
    /// Makes bytes zero.
    fn zero(&self, at: u64, len: u64) -> Result<()>;
}

/// How many worker threads there are.
pub fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, NonZero::get)
}

/// Ends a run whose server keeps it waiting: see [`Patience`].
struct Watch {
    patience: Patience,
    looked: Instant,
}

impl Watch {
    fn new(link: &Link) -> Self {
        Self { patience: Patience::new(link), looked: Instant::now() }
    }

    /// Whether it is time to look again, and to show how far it is; an error if the server
    /// keeps one waiting. `asked` is how many questions were answered, and how many are open.
    fn look(&mut self, link: &Link, asked: (u64, usize)) -> Result<bool> {
        if self.looked.elapsed() < TICK {
            return Ok(false);
        }
        self.looked = Instant::now();
        self.patience.watch(link, asked.0, asked.1)?;
        Ok(true)
    }
}

/// Waits for the link or the workers, a while at most, and gives out what came.
fn wait<E>(
    link: &Link,
    events: &Receiver<Result<Vec<E>>>,
    wrap: impl Fn(Message) -> E,
    take: &mut dyn FnMut(E) -> Result<()>,
) -> Result<()> {
    let mut message = link.rx.taken();
    if message.is_none() {
        select! {
            recv(link.rx.batches()) -> batch => match batch {
                Ok(batch) => message = link.rx.add(batch),
                Err(_) => return Err(connect::link_failure(&LinkError::Closed).into()),
            },
            recv(events) -> events => {
                let events = events.context("the worker threads ended")??;
                return events.into_iter().try_for_each(take);
            }
            default(TICK) => {}
        }
    }
    // All of a batch, before anything is done about it: what follows goes together too.
    while let Some(received) = message {
        match received {
            Ok(message) => take(wrap(message))?,
            Err(e) => return Err(connect::link_failure(&e).into()),
        }
        message = link.rx.taken();
    }
    Ok(())
}
