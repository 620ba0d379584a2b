//! Threads that open chunks, prove their blocks, keep them, and give them to who waits.
//!
//! Invariant: nothing is kept or given out of a chunk that does not hold as a whole.

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender};
use dormouse_crypt::seal::Opener;
use dormouse_format::limits::BLOCK_SIZE;
use dormouse_sync::history::Trust;
use dormouse_sync::read::{Event, OpenJob};

use super::Shared;

/// Blocks of jobs that go to one worker together: waking it costs more than a small chunk.
pub(super) const TOGETHER: u64 = 64;

/// Jobs, and by whose certificates.
pub(super) type Jobs = (Arc<Trust>, Vec<OpenJob>);

/// Starts them. They end when no more jobs can come.
pub(super) fn start(
    shared: &Arc<Shared>,
    jobs: &Receiver<Jobs>,
    events: &Sender<Vec<Event>>,
) -> Result<Vec<JoinHandle<()>>> {
    let one = |i| {
        let mut opener = Opener::new()?;
        let (shared, jobs, events) = (Arc::clone(shared), jobs.clone(), events.clone());
        let work = move || {
            for (trust, jobs) in jobs {
                let run = |job| open(&shared, &trust, &mut opener, job);
                if events.send(jobs.into_iter().map(run).collect()).is_err() {
                    return;
                }
            }
        };
        let builder = std::thread::Builder::new().name(format!("disk-open-{i}"));
        builder.spawn(work).context("cannot start a thread that opens chunks")
    };
    (0..crate::engine::workers()).map(one).collect()
}

fn open(shared: &Shared, trust: &Trust, opener: &mut Opener, job: OpenJob) -> Event {
    let blocks = &shared.blocks;
    let mut placements = job.placements.iter();
    let opened = job.run((trust, &blocks.secrets, &blocks.volume), opener, &mut |at, bytes| {
        let first = at / BLOCK_SIZE as u64;
        let Some(placement) = placements.next() else { return Ok(()) };
        // The owner of the volume may have changed it since the map was asked.
        let own = shared.own.read();
        own.valid(first, &placement.tags, &mut |part| {
            let (first, tags) = (first + part.start as u64, &placement.tags[part.clone()]);
            let bytes = &bytes[part.start * BLOCK_SIZE..part.end * BLOCK_SIZE];
            // Who waits first; then those to come.
            shared.waits.give(first, bytes);
            blocks.put(first, tags, bytes);
        });
        Ok::<(), std::convert::Infallible>(())
    });
    match opened {
        Ok(Ok(())) => Event::Opened(job),
        Err(error) => Event::Broken { job, error },
    }
}
