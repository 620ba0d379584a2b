//! A restore: chunks are opened, proved and written in worker threads.

use std::sync::Arc;

use anyhow::Result;
use crossbeam_channel::{Receiver, Sender, unbounded};
use dormouse_crypt::VaultSecrets;
use dormouse_crypt::seal::Opener;
use dormouse_format::limits::{BLOCK_SIZE, LEAF_BLOCKS};
use dormouse_format::{Block, Tag, VolumeId};
use dormouse_sync::fetch::{self, Fetch, OpenJob};
use dormouse_sync::history::Trust;
use dormouse_sync::leaf::{Budget, Claim};

use super::{Target, Watch, wait, workers};
use crate::connect;
use crate::link::Link;

/// Blocks that one worker opens before it writes them.
const TOGETHER: u64 = 256;
/// Bytes that are written at once, about.
const WRITE_TOGETHER: usize = 1 << 20;

enum FetchJob {
    Open(Vec<OpenJob>),
    Zero { start: Block, count: u64 },
    ReadLocal { index: u64 },
}

/// What a worker tells; `None` is blocks made zero, of which the engine does not hear.
type Happened = Option<fetch::Event>;

/// For whom blocks are opened.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Certified writers.
    pub trust: Arc<Trust>,
    /// Digest and map key.
    pub secrets: Arc<VaultSecrets>,
    /// The volume in the tags: that of the first of a line of forks.
    pub tags: VolumeId,
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
    events: &Receiver<Result<Vec<Happened>>>,
    show: &mut dyn FnMut(&fetch::Progress),
) -> Result<()> {
    let mut actions = Vec::new();
    let mut watch = Watch::new(link);
    // Zeroing is not an event of the engine, but must be over before the end.
    let mut zeroing = 0u64;
    let mut done = false;
    fetch.start(&mut actions)?;
    loop {
        let mut messages = Vec::new();
        let mut group = Group::default();
        for action in actions.drain(..) {
            match action {
                fetch::Action::Send(message) => messages.push(message),
                fetch::Action::Open(job) => group.add(job, &jobs),
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
        group.end(&jobs);
        connect::send_all(link, messages)?;
        if done && zeroing == 0 {
            show(fetch.progress());
            return Ok(());
        }
        let wrap = |message| Some(fetch::Event::Message(message));
        wait(link, events, wrap, &mut |happened| {
            match happened {
                Some(event) => fetch.step(event, &mut actions)?,
                None => zeroing -= 1,
            }
            Ok(())
        })?;
        if watch.look(link, fetch.asked())? {
            show(fetch.progress());
        }
    }
}

/// Chunks that follow one another and are opened by one worker, so that they are
/// written together.
#[derive(Default)]
struct Group {
    jobs: Vec<OpenJob>,
    blocks: u64,
}

impl Group {
    fn add(&mut self, job: OpenJob, to: &Sender<FetchJob>) {
        self.blocks += job.blocks;
        self.jobs.push(job);
        if self.blocks >= TOGETHER {
            self.end(to);
        }
    }

    fn end(&mut self, to: &Sender<FetchJob>) {
        self.blocks = 0;
        if !self.jobs.is_empty() {
            to.send(FetchJob::Open(std::mem::take(&mut self.jobs))).ok();
        }
    }
}

fn fetch_worker(
    jobs: &Receiver<FetchJob>,
    events: &Sender<Result<Vec<Happened>>>,
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
    let mut gather = Gather { target, at: 0, bytes: Vec::new() };
    for job in jobs {
        let happened = fetch_job(job, opening, &mut gather, &mut opener);
        let failed = happened.is_err();
        if events.send(happened).is_err() || failed {
            return;
        }
    }
}

fn fetch_job(
    job: FetchJob,
    opening: &Opening,
    gather: &mut Gather<'_>,
    opener: &mut Opener,
) -> Result<Vec<Happened>> {
    match job {
        FetchJob::Open(jobs) => {
            let who = (&*opening.trust, &*opening.secrets, &opening.tags);
            let mut happened = Vec::with_capacity(jobs.len());
            for job in jobs {
                let event = match job.run(who, opener, &mut |at, bytes| gather.add(at, bytes)) {
                    Ok(written) => {
                        written?;
                        fetch::Event::Opened { blocks: job.blocks }
                    }
                    Err(error) => fetch::Event::Broken { job, error },
                };
                happened.push(Some(event));
            }
            gather.flush()?;
            Ok(happened)
        }
        FetchJob::Zero { start, count } => {
            if let Some(target) = gather.target {
                target.zero(start * BLOCK_SIZE as u64, count * BLOCK_SIZE as u64)?;
            }
            Ok(vec![None])
        }
        FetchJob::ReadLocal { index } => {
            let claim = Budget::default().claim(Claim::WHOLE);
            let mut tags = Box::new([Tag::ZERO; LEAF_BLOCKS as usize]);
            if let Some(target) = gather.target {
                let data = target.read_leaf(index, claim)?;
                *tags = data.hash(&opening.secrets, &opening.tags, index).tags;
            }
            Ok(vec![Some(fetch::Event::Local { index, tags })])
        }
    }
}

/// Proved blocks on their way to the target: what is adjacent is written at once.
struct Gather<'a> {
    target: Option<&'a dyn Target>,
    at: u64,
    bytes: Vec<u8>,
}

impl Gather<'_> {
    fn add(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        if self.target.is_none() {
            return Ok(());
        }
        if self.at + self.bytes.len() as u64 != at || self.bytes.len() >= WRITE_TOGETHER {
            self.flush()?;
            self.at = at;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let written = match self.target {
            Some(target) if !self.bytes.is_empty() => target.write(self.at, &self.bytes),
            _ => Ok(()),
        };
        self.bytes.clear();
        written
    }
}
