//! Keeps the server's state in the bucket: clients, invites and roles, as they change.
//!
//! Owns: one thread that looks each second whether anything changed, also by commands beside the
//! server. Invariant: a snapshot is put at the start before a client is served, so that an older
//! server's comes no more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use dormouse_bucket::{Bucket, Durable, StateFile};
use dormouse_crypt::Recipient;

use super::{Options, files};
use crate::exit::text_of;
use crate::log::Log;
use crate::store_dir::StoreDir;

/// How often it is looked for changes.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked for a newer lease, where nothing is put.
const LOOK_LEASE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Saving {
    bucket: Arc<Bucket>,
    store: StoreDir,
    key_to: Option<Recipient>,
    log: Log,
    /// What the bucket has.
    saved: Mutex<Vec<StateFile>>,
    /// Whether the last try failed, and was told of.
    failed: AtomicBool,
    stop: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Saving {
    fn save(&self, first: bool) -> Result<()> {
        let mut saved = lock(&self.saved);
        let now = files::collect(&self.store, self.key_to.as_ref())?;
        if first || files::differs(&now, &saved) {
            self.bucket.save_state(&now, first)?;
            *saved = now;
        }
        Ok(())
    }

    /// Tells of the first of several failures.
    fn try_save(&self) {
        match self.save(false) {
            Ok(()) => self.failed.store(false, Ordering::Relaxed),
            Err(error) => {
                if !self.failed.swap(true, Ordering::Relaxed) {
                    let text = text_of(&error);
                    self.log.line(&format!("the server's state is not in the bucket yet: {text}"));
                }
            }
        }
    }

    fn run(&self) {
        let mut lease = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            std::thread::park_timeout(LOOK);
            self.try_save();
            if lease.elapsed() >= LOOK_LEASE {
                // Told of by the bucket.
                let _ = self.bucket.check();
                lease = Instant::now();
            }
        }
    }
}

/// The thread, and a way to ask it.
#[derive(Debug)]
pub(super) struct Saver {
    saving: Arc<Saving>,
    wait: bool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Saver {
    pub(super) fn start(
        bucket: Arc<Bucket>,
        store: StoreDir,
        options: &Options,
        log: Log,
    ) -> Result<Self> {
        let saving = Arc::new(Saving {
            bucket,
            store,
            key_to: options.key_to.clone(),
            log,
            saved: Mutex::default(),
            failed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        saving.save(true)?;
        let own = saving.clone();
        let thread = std::thread::Builder::new().name("state".into()).spawn(move || own.run())?;
        let wait = options.settings.durable == Durable::Remote;
        Ok(Self { saving, wait, thread: Mutex::new(Some(thread)) })
    }

    /// Something has changed.
    pub(super) fn changed(&self) -> Result<()> {
        if self.wait {
            return self.saving.save(false);
        }
        if let Some(thread) = &*lock(&self.thread) {
            thread.thread().unpark();
        }
        Ok(())
    }

    /// Puts what is not put yet, once, and ends.
    pub(super) fn stop(&self) {
        self.saving.stop.store(true, Ordering::Release);
        let Some(thread) = lock(&self.thread).take() else { return };
        thread.thread().unpark();
        let _ = thread.join();
        self.saving.try_save();
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.saving.stop.store(true, Ordering::Release);
        if let Some(thread) = &*lock(&self.thread) {
            thread.thread().unpark();
        }
    }
}
