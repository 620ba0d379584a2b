//! Runs the engines of `dormouse-sync`: gives their actions to worker threads, to
//! the link and to the disk, and brings back what happened.
//!
//! Owns: threads and channels of one copy or restore. Invariant: the engine bounds
//! what is under way; the channels here add no more than that. Leaves to others:
//! what to do (`dormouse-sync`), the wire (`link`), files and devices.

use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender, select, unbounded};
use dormouse_crypt::seal::{DataKey, Opener, SealFor, Sealer};
use dormouse_crypt::{SigningKey, VaultSecrets};
use dormouse_format::limits::{BLOCK_SIZE, LEAF_BLOCKS};
use dormouse_format::message::Message;
use dormouse_format::point::Grade;
use dormouse_format::{Block, ChunkId, Tag, TimeNs, VaultId, VolumeId};
use dormouse_sync::copy::{self, Copy, Outcome};
use dormouse_sync::cut::Cut;
use dormouse_sync::fetch::{self, Fetch, OpenJob};
use dormouse_sync::history::Trust;
use dormouse_sync::leaf::{Budget, Claim, LeafData};

use crate::connect;
use crate::link::{Link, LinkError, Received};

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

/// Who seals, with which key.
#[derive(Debug, Clone)]
pub struct Sealing {
    /// The vault.
    pub vault: VaultId,
    /// The volume.
    pub volume: VolumeId,
    /// The writer.
    pub signer: Arc<SigningKey>,
    /// Digest and map key.
    pub secrets: Arc<VaultSecrets>,
    /// The session's data key.
    pub key: Arc<DataKey>,
    /// The zstd level.
    pub level: i32,
}

enum CopyJob {
    Read { index: u64, claim: Claim },
    Seal { id: ChunkId, cut: Arc<Cut> },
}

/// Runs a copy to its end. `finish` is called when all was read, and says what grade
/// is earned.
pub fn run_copy(
    link: &Link,
    copy: &mut Copy,
    sealing: &Sealing,
    source: &dyn Leaves,
    finish: &mut dyn FnMut() -> Result<(Grade, TimeNs)>,
    show: &mut dyn FnMut(&copy::Progress),
) -> Result<Outcome> {
    let (reads_tx, reads) = unbounded();
    let (seals_tx, seals) = unbounded();
    let (events_tx, events) = unbounded();
    std::thread::scope(|scope| {
        for _ in 0..workers() {
            let (reads, seals, events) = (reads.clone(), seals.clone(), events_tx.clone());
            scope.spawn(move || copy_worker(&reads, &seals, &events, sealing, source));
        }
        drop(events_tx);
        let jobs = (reads_tx, seals_tx);
        copy_loop(link, copy, jobs, &events, finish, show)
    })
}

type CopyEvents = Receiver<Result<copy::Event>>;

fn copy_loop(
    link: &Link,
    copy: &mut Copy,
    jobs: (Sender<CopyJob>, Sender<CopyJob>),
    events: &CopyEvents,
    finish: &mut dyn FnMut() -> Result<(Grade, TimeNs)>,
    show: &mut dyn FnMut(&copy::Progress),
) -> Result<Outcome> {
    let mut actions = Vec::new();
    let mut shown = Instant::now();
    copy.start(&mut actions)?;
    loop {
        let mut next = None;
        for action in actions.drain(..) {
            match action {
                copy::Action::Send(message) => connect::send(link, message)?,
                copy::Action::Read { index, claim } => {
                    jobs.0.send(CopyJob::Read { index, claim }).ok();
                }
                copy::Action::Seal { id, cut } => {
                    jobs.1.send(CopyJob::Seal { id, cut }).ok();
                }
                copy::Action::Finish => {
                    let (grade, time) = finish()?;
                    next = Some(copy::Event::Finished { grade, time });
                }
                copy::Action::Done(outcome) => {
                    show(copy.progress());
                    return Ok(outcome);
                }
            }
        }
        let event = match next {
            Some(event) => Some(event),
            None => wait(link, events, |m| Ok(copy::Event::Message(m)))?,
        };
        if let Some(event) = event {
            copy.step(event, &mut actions)?;
        }
        if shown.elapsed() >= TICK {
            shown = Instant::now();
            show(copy.progress());
        }
    }
}

/// The next event of the link or the workers; `None` after a while without one.
fn wait<E>(
    link: &Link,
    events: &Receiver<Result<E>>,
    wrap: impl Fn(Message) -> Result<E>,
) -> Result<Option<E>> {
    let from_link = |received: std::result::Result<Received, _>| match received {
        Ok(Ok(message)) => wrap(message),
        Ok(Err(e)) => Err(connect::link_failure(&e).into()),
        Err(crossbeam_channel::RecvError) => Err(connect::link_failure(&LinkError::Closed).into()),
    };
    select! {
        recv(link.rx) -> received => from_link(received).map(Some),
        recv(events) -> event => event.context("the worker threads ended")?.map(Some),
        default(TICK) => Ok(None),
    }
}

fn copy_worker(
    reads: &Receiver<CopyJob>,
    seals: &Receiver<CopyJob>,
    events: &Sender<Result<copy::Event>>,
    sealing: &Sealing,
    source: &dyn Leaves,
) {
    let mut sealer = match Sealer::new(sealing.level) {
        Ok(sealer) => sealer,
        Err(e) => {
            events.send(Err(e.into())).ok();
            return;
        }
    };
    let mut scratch = Vec::new();
    // What is to be sealed goes first: it frees memory and feeds the link.
    while let Ok(job) = seals.try_recv().or_else(|_| {
        select! {
            recv(seals) -> job => job,
            recv(reads) -> job => job,
        }
    }) {
        let event = match job {
            CopyJob::Read { index, claim } => source.read_leaf(index, claim).map(|data| {
                let hashes = data.hash(&sealing.secrets, &sealing.volume, index);
                copy::Event::Leaf { index, data: Arc::new(data), hashes }
            }),
            CopyJob::Seal { id, cut } => {
                let who = SealFor {
                    vault: &sealing.vault,
                    writer: sealing.signer.writer_id(),
                    key: &sealing.key,
                    secrets: &sealing.secrets,
                };
                sealer
                    .seal(who, id, &cut.digests, cut.content(&mut scratch))
                    .map(|record| copy::Event::Sealed { id, record })
                    .map_err(Into::into)
            }
        };
        let failed = event.is_err();
        if events.send(event).is_err() || failed {
            return;
        }
    }
}

enum FetchJob {
    Open(OpenJob),
    Zero { start: Block, count: u64 },
    ReadLocal { index: u64 },
}

/// For whom blocks are opened.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Certified writers.
    pub trust: Arc<Trust>,
    /// Digest and map key.
    pub secrets: Arc<VaultSecrets>,
    /// The volume.
    pub volume: VolumeId,
}

/// Runs a restore to its end. Without a target everything is checked and nothing written.
pub fn run_fetch(
    link: &Link,
    fetch: &mut Fetch,
    opening: &Opening,
    target: Option<&dyn Target>,
    show: &mut dyn FnMut(&fetch::Progress),
) -> Result<()> {
    let (jobs_tx, jobs) = unbounded();
    let (events_tx, events) = unbounded();
    std::thread::scope(|scope| {
        for _ in 0..workers() {
            let (jobs, events) = (jobs.clone(), events_tx.clone());
            scope.spawn(move || fetch_worker(&jobs, &events, opening, target));
        }
        drop(events_tx);
        fetch_loop(link, fetch, jobs_tx, &events, show)
    })
}

fn fetch_loop(
    link: &Link,
    fetch: &mut Fetch,
    jobs: Sender<FetchJob>,
    events: &Receiver<Result<Option<fetch::Event>>>,
    show: &mut dyn FnMut(&fetch::Progress),
) -> Result<()> {
    let mut actions = Vec::new();
    let mut shown = Instant::now();
    // Zeroing is not an event of the engine, but must be over before the end.
    let mut zeroing = 0u64;
    let mut done = false;
    fetch.start(&mut actions)?;
    loop {
        for action in actions.drain(..) {
            match action {
                fetch::Action::Send(message) => connect::send(link, message)?,
                fetch::Action::Open(job) => {
                    jobs.send(FetchJob::Open(job)).ok();
                }
                fetch::Action::Zero { start, count } => {
                    zeroing += 1;
                    jobs.send(FetchJob::Zero { start, count }).ok();
                }
                fetch::Action::ReadLocal { index } => {
                    jobs.send(FetchJob::ReadLocal { index }).ok();
                }
                fetch::Action::Done => done = true,
            }
        }
        if done && zeroing == 0 {
            show(fetch.progress());
            return Ok(());
        }
        match wait(link, events, |m| Ok(Some(fetch::Event::Message(m))))? {
            Some(Some(event)) => fetch.step(event, &mut actions)?,
            Some(None) => zeroing -= 1,
            None => {}
        }
        if shown.elapsed() >= TICK {
            shown = Instant::now();
            show(fetch.progress());
        }
    }
}

fn fetch_worker(
    jobs: &Receiver<FetchJob>,
    events: &Sender<Result<Option<fetch::Event>>>,
    opening: &Opening,
    target: Option<&dyn Target>,
) {
    let mut opener = match Opener::new() {
        Ok(opener) => opener,
        Err(e) => {
            events.send(Err(e.into())).ok();
            return;
        }
    };
    for job in jobs {
        let event = fetch_job(job, opening, target, &mut opener);
        let failed = event.is_err();
        if events.send(event).is_err() || failed {
            return;
        }
    }
}

fn fetch_job(
    job: FetchJob,
    opening: &Opening,
    target: Option<&dyn Target>,
    opener: &mut Opener,
) -> Result<Option<fetch::Event>> {
    match job {
        FetchJob::Open(job) => {
            let who = (&*opening.trust, &*opening.secrets, &opening.volume);
            let mut write = |at: u64, bytes: &[u8]| match target {
                Some(target) => target.write(at, bytes),
                None => Ok(()),
            };
            match job.run(who, opener, &mut write) {
                Ok(Ok(())) => Ok(Some(fetch::Event::Opened { blocks: job.blocks })),
                Ok(Err(disk)) => Err(disk),
                Err(error) => Ok(Some(fetch::Event::Broken { job, error })),
            }
        }
        FetchJob::Zero { start, count } => {
            if let Some(target) = target {
                target.zero(start * BLOCK_SIZE as u64, count * BLOCK_SIZE as u64)?;
            }
            Ok(None)
        }
        FetchJob::ReadLocal { index } => {
            let claim = Budget::default().claim(Claim::WHOLE);
            let mut tags = Box::new([Tag::ZERO; LEAF_BLOCKS as usize]);
            if let Some(target) = target {
                let data = target.read_leaf(index, claim)?;
                *tags = data.hash(&opening.secrets, &opening.volume, index).tags;
            }
            Ok(Some(fetch::Event::Local { index, tags }))
        }
    }
}
