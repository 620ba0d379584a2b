//! A bucket in memory, state directories, and servers on them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dormouse_bucket::{Bucket, BucketDir, Durable, Error, Objects, Remote, Result, Settings, Who};
use dormouse_format::VaultId;
use dormouse_store::Dir;
use dormouse_store::disk::DiskDir;
use object_store::memory::InMemory;

use crate::faulty::Faulty;

pub const VAULT: VaultId = VaultId([9; 32]);

pub fn memory() -> Arc<dyn Objects> {
    let remote = Arc::new(Remote::over(Arc::new(InMemory::new()), "some/prefix").unwrap());
    dormouse_bucket::create(&*remote, "a-store").unwrap();
    remote
}

pub fn settings(durable: Durable) -> Settings {
    Settings {
        durable,
        put_every: Duration::ZERO,
        patience: Duration::from_secs(20),
        pause: Duration::from_millis(1),
        ..Settings::default()
    }
}

/// A machine with a state directory.
pub struct Machine {
    pub dir: tempfile::TempDir,
    pub holder: String,
    pub objects: Arc<Faulty>,
    pub settings: Settings,
}

static NONCE: AtomicU64 = AtomicU64::new(0);

impl Machine {
    pub fn new(holder: &str, objects: &Arc<Faulty>, settings: Settings) -> Self {
        let (dir, holder) = (tempfile::tempdir().unwrap(), holder.to_owned());
        Self { dir, holder, objects: objects.clone(), settings }
    }

    pub fn segments(&self) -> PathBuf {
        self.dir.path().join("segments")
    }

    pub fn try_start(&self, takeover: bool) -> Result<Bucket> {
        let who = Who { holder: self.holder.clone(), host: "test".into(), takeover };
        let nonce = format!("{}", NONCE.fetch_add(1, Ordering::Relaxed));
        let dir = self.dir.path().join("bucket");
        let objects: Arc<dyn Objects> = self.objects.clone();
        Bucket::open(objects, &who, self.settings, &dir, &nonce, Arc::new(|_| {}))
    }

    /// As a service manager does: again, until it starts.
    pub fn start(&self, takeover: bool) -> Bucket {
        loop {
            match self.try_start(takeover) {
                Err(Error::Away { .. }) => {}
                done => return done.unwrap(),
            }
        }
    }

    pub fn open(&self, bucket: &Bucket) -> Result<BucketDir> {
        let local = DiskDir::create_or_open(&self.segments()).unwrap();
        bucket.segments(VAULT, Arc::new(local))
    }

    /// Beside a server that writes.
    pub fn read(&self, objects: &Arc<dyn Objects>, settings: Settings) -> BucketDir {
        let (dir, tell) = (self.dir.path().join("bucket"), Arc::new(|_: &str| {}));
        let bucket = Bucket::read_only(objects.clone(), settings, &dir, tell).unwrap();
        self.open(&bucket).unwrap()
    }

    /// The machine burns down, and another takes its place.
    pub fn lose(&mut self) {
        self.dir = tempfile::tempdir().unwrap();
        self.holder.push('\'');
    }
}

pub fn name(number: u64) -> String {
    format!("{number:016}.seg")
}

/// All bytes of a segment; nothing if it is not there.
pub fn content(dir: &dyn Dir, number: u64) -> Vec<u8> {
    let Ok(file) = dir.open(&name(number)) else { return Vec::new() };
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}
