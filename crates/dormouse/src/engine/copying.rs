//! A copy: reads, digests and seals in worker threads.

use std::sync::Arc;

use anyhow::Result;
use crossbeam_channel::{Receiver, Sender, select, unbounded};
use dormouse_crypt::seal::{DataKey, SealFor, Sealer};
use dormouse_crypt::{SigningKey, VaultSecrets};
use dormouse_format::point::Grade;
use dormouse_format::{ChunkId, TimeNs, VaultId, VolumeId};
use dormouse_sync::copy::{self, Copy, Outcome};
use dormouse_sync::cut::Cut;
use dormouse_sync::leaf::Claim;

use super::{Leaves, Watch, wait, workers};
use crate::connect;
use crate::link::Link;
use crate::pace::Pace;

/// Bytes of records that a worker tells the engine of together.
const TOGETHER: usize = 256 << 10;

/// Who seals, with which key.
#[derive(Debug, Clone)]
pub struct Sealing {
    /// The vault.
    pub vault: VaultId,
    /// The volume in the tags: that of the first of a line of forks.
    pub tags: VolumeId,
    /// The writer.
    pub signer: Arc<SigningKey>,
    /// Digest and map key.
    pub secrets: Arc<VaultSecrets>,
    /// The session's data key.
    pub key: Arc<DataKey>,
    /// The zstd level.
    pub level: i32,
    /// How fast records may be made, if that is bounded.
    pub pace: Option<Arc<Pace>>,
}

enum CopyJob {
    Read { index: u64, claim: Claim },
    Seal { id: ChunkId, cut: Arc<Cut> },
}

/// Runs a copy to its end. `finish` is called when all was read, and says what grade
/// is earned; `show` is called now and then, and may end the copy by an error.
pub fn run_copy(
    link: &Link,
    copy: &mut Copy,
    sealing: &Sealing,
    source: &dyn Leaves,
    finish: &mut dyn FnMut() -> Result<(Grade, TimeNs)>,
    show: &mut dyn FnMut(&copy::Progress) -> Result<()>,
) -> Result<Outcome> {
    let (reads_tx, reads) = unbounded();
    let (seals_tx, seals) = unbounded();
    let (events_tx, events) = unbounded();
    std::thread::scope(|scope| {
        for n in 0..workers() {
            // Half of them read before they seal: if all sealed what they can first, no
            // questions would be under way when they are done, and all would wait for the
            // next answer. The window bounds what they read.
            let (first, then) = if n % 2 == 0 { (&reads, &seals) } else { (&seals, &reads) };
            let (first, then, events) = (first.clone(), then.clone(), events_tx.clone());
            scope.spawn(move || copy_worker(&first, &then, &events, sealing, source));
        }
        drop(events_tx);
        let jobs = (reads_tx, seals_tx);
        copy_loop(link, copy, jobs, &events, finish, show)
    })
}

type CopyEvents = Receiver<Result<Vec<copy::Event>>>;

fn copy_loop(
    link: &Link,
    copy: &mut Copy,
    jobs: (Sender<CopyJob>, Sender<CopyJob>),
    events: &CopyEvents,
    finish: &mut dyn FnMut() -> Result<(Grade, TimeNs)>,
    show: &mut dyn FnMut(&copy::Progress) -> Result<()>,
) -> Result<Outcome> {
    let mut actions = Vec::new();
    let mut watch = Watch::new(link);
    copy.start(&mut actions)?;
    loop {
        let mut next = None;
        let mut messages = Vec::new();
        for action in actions.drain(..) {
            match action {
                copy::Action::Send(message) => messages.push(message),
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
                    // It is durable: nothing that is said now may take that back.
                    let _ = show(copy.progress());
                    return Ok(outcome);
                }
            }
        }
        connect::send_all(link, messages)?;
        match next {
            Some(event) => copy.step(event, &mut actions)?,
            None => wait(link, events, copy::Event::Message, &mut |event| {
                Ok(copy.step(event, &mut actions)?)
            })?,
        }
        if watch.look(link, copy.asked())? {
            show(copy.progress())?;
        }
    }
}

fn copy_worker(
    first: &Receiver<CopyJob>,
    then: &Receiver<CopyJob>,
    events: &Sender<Result<Vec<copy::Event>>>,
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
    let mut done = Vec::new();
    let mut bytes = 0;
    // What is done is told together: waking the engine for each chunk costs more than
    // the chunk. But nothing waits while there is nothing to do.
    loop {
        let ready = first.try_recv().or_else(|_| then.try_recv()).ok();
        if !done.is_empty() && (ready.is_none() || bytes >= TOGETHER) {
            bytes = 0;
            if events.send(Ok(std::mem::take(&mut done))).is_err() {
                return;
            }
        }
        let job = ready.map_or_else(
            || {
                select! {
                    recv(first) -> job => job,
                    recv(then) -> job => job,
                }
            },
            Ok,
        );
        let Ok(job) = job else { return };
        match copy_job(job, &mut sealer, &mut scratch, sealing, source) {
            Ok(event) => {
                bytes += match &event {
                    copy::Event::Sealed { record, .. } => record.len(),
                    _ => TOGETHER,
                };
                done.push(event);
            }
            Err(e) => {
                events.send(Err(e)).ok();
                return;
            }
        }
    }
}

fn copy_job(
    job: CopyJob,
    sealer: &mut Sealer,
    scratch: &mut Vec<u8>,
    sealing: &Sealing,
    source: &dyn Leaves,
) -> Result<copy::Event> {
    match job {
        CopyJob::Read { index, claim } => {
            let data = source.read_leaf(index, claim)?;
            let hashes = data.hash(&sealing.secrets, &sealing.tags, index);
            Ok(copy::Event::Leaf { index, data: Arc::new(data), hashes })
        }
        CopyJob::Seal { id, cut } => {
            let who = SealFor {
                vault: &sealing.vault,
                writer: sealing.signer.writer_id(),
                key: &sealing.key,
                secrets: &sealing.secrets,
            };
            let record = sealer.seal(who, id, &cut.digests, cut.content(scratch))?;
            if let Some(pace) = &sealing.pace {
                pace.take(record.len() as u64);
            }
            Ok(copy::Event::Sealed { id, record })
        }
    }
}
