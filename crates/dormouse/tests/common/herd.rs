//! A herd: real clients (the program's own code, a thread each in this process) that come to a
//! server at once, and some that follow a disk meanwhile: network disks whose writes return when
//! their point is durable on the server. Shared by `tests/herd.rs` and `examples/herd.rs`.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse::disk::DiskOptions;
use dormouse::exit::{Class, class_of};
use dormouse::home::Home;
use dormouse::invite::Address;
use dormouse::netdisk::{self, Durability};
use dormouse::report::Report;
use dormouse::store_dir::StoreDir;
use dormouse::text::now_ns;
use dormouse::{access, create, join, mirror};
use dormouse_device::{BlockDevice, Write};

const HOUR: u64 = 3_600_000_000_000;
/// Clients that join at a time.
const JOINING: usize = 8;
/// Nobody waits longer than this.
const LIMIT: Duration = Duration::from_secs(600);
/// What a client waits before it tries again: at first, and at most.
const BACKOFF: (u64, u64) = (500, 8000);

/// Numbers that look random.
fn mixed(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) ^ (z >> 31)
}

/// Clients with a vault each.
pub struct Herd {
    homes: Vec<Home>,
    dir: PathBuf,
    /// Tries that ended because the server was not there, or not ready.
    pub tries: AtomicU64,
}

impl Herd {
    /// Has so many join.
    pub fn join(store: &Path, address: &str, dir: &Path, number: usize) -> Result<Self> {
        Self::join_named(store, address, dir, number, "client")
    }

    /// The same under names of their own.
    pub fn join_named(
        store: &Path,
        address: &str,
        dir: &Path,
        number: usize,
        called: &str,
    ) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let address: Address = address.parse()?;
        let home = |n: usize| Home::locate(Some(dir.join(format!("home{n}"))));
        let one = |n: usize| {
            let store = StoreDir::open(store)?;
            let name = format!("{called}{n}");
            let invite = access::invite(&store, &name, address.clone(), now_ns(), HOUR)?;
            join::join(&home(n)?, &invite.to_string(), None, None).map(drop)
        };
        std::thread::scope(|scope| {
            let join = |first| (first..number).step_by(JOINING).try_for_each(one);
            let all: Vec<_> = (0..JOINING).map(|n| scope.spawn(move || join(n))).collect();
            all.into_iter().try_for_each(|t| t.join().map_err(|_| anyhow::anyhow!("panic"))?)
        })?;
        let homes = (0..number).map(home).collect::<Result<_>>()?;
        Ok(Self { homes, dir: dir.to_owned(), tries: AtomicU64::new(0) })
    }

    fn image(&self, n: usize) -> PathBuf {
        self.dir.join(format!("image{n}"))
    }

    /// Writes new noise into every image: so many KiB, at a place of its own in each round.
    pub fn change(&self, round: u64, kib: usize, size: u64) -> Result<()> {
        for n in 0..self.homes.len() {
            let image = self.image(n);
            let mut how = std::fs::File::options();
            how.create(true).write(true).truncate(false);
            let file = how.open(&image).with_context(|| image.display().to_string())?;
            file.set_len(size)?;
            let seed = (round << 32) + n as u64;
            let bytes: Vec<u8> =
                (0..kib as u64 * 128).flat_map(|i| mixed(seed ^ mixed(i)).to_le_bytes()).collect();
            file.write_all_at(&bytes, round * bytes.len() as u64 % (size - bytes.len() as u64))?;
        }
        Ok(())
    }

    /// All copy at once; the time of each until its point is durable.
    pub fn come(&self) -> Result<Vec<Duration>> {
        let began = Instant::now();
        std::thread::scope(|scope| {
            let one = |n: usize| self.copy(n).map(|()| began.elapsed());
            let all = (0..self.homes.len()).map(|n| {
                let builder = std::thread::Builder::new().stack_size(1 << 20);
                builder.spawn_scoped(scope, move || one(n))
            });
            let all: Vec<_> = all.collect::<std::io::Result<_>>()?;
            let done = all.into_iter().map(|t| t.join().map_err(|_| anyhow::anyhow!("panic"))?);
            done.collect()
        })
    }

    /// `mirror --once`, and again as long as there is no server.
    fn copy(&self, n: usize) -> Result<()> {
        let options = mirror::Options {
            source: self.image(n),
            volume: Some("disk".into()),
            all: false,
            takeover: false,
            same_disk: false,
            level: 1,
            json: false,
            quiet: true,
            stop: None,
        };
        let (began, mut wait, mut tries) = (Instant::now(), BACKOFF.0, 0);
        loop {
            match mirror::copy(&self.homes[n], &options, &mut Report::new(false, true)) {
                Ok(_) => return Ok(()),
                Err(e) if class_of(&e) == Class::Unreachable => {
                    ensure!(began.elapsed() < LIMIT, "client {n} did not get in: {e:#}");
                    self.tries.fetch_add(1, Ordering::Relaxed);
                }
                Err(e) => return Err(e.context(format!("client {n}"))),
            }
            tries += 1;
            let jitter = mixed(n as u64 ^ (tries << 32)) % wait;
            std::thread::sleep(Duration::from_millis(wait / 2 + jitter));
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    /// Where the clients keep their keys.
    pub fn homes(&self) -> &[Home] {
        &self.homes
    }
}

/// A client that writes a block, waits until the server has it, and so on, so many times a second.
pub struct Live {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<(Instant, Duration)>>>,
}

impl Live {
    /// Begins, on a volume of its own.
    pub fn start(home: &Home, every: Duration) -> Result<Self> {
        create::create(home, "live", 16 << 20, true)?;
        let options = netdisk::Options {
            durability: Durability::Server,
            point_every: Duration::from_millis(1),
            ..netdisk::Options::default()
        };
        let mut report = Report::new(false, true);
        let disk = DiskOptions::default();
        let (disk, _) = netdisk::open(home, &"live".parse()?, options, &disk, &mut report)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("live".into()).spawn(move || {
            let mut all = Vec::new();
            let mut next = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                let block: Vec<u8> =
                    (0..512).flat_map(|i| mixed(next << 20 | i).to_le_bytes()).collect();
                disk.write(next % 4096 * 4096, &block, Write { fua: true })?;
                all.push((began, began.elapsed()));
                next += 1;
                std::thread::sleep(every.saturating_sub(began.elapsed()));
            }
            disk.close(Duration::from_secs(5))?;
            Ok(all)
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends; when each write began, and how long it took.
    pub fn end(self) -> Result<Vec<(Instant, Duration)>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("panic"))?
    }
}

/// The value at this part of the way from the least to the greatest.
pub fn quantile(all: &mut [Duration], part: f64) -> Duration {
    all.sort_unstable();
    let at = ((all.len().max(1) - 1) as f64 * part).round() as usize;
    all.get(at).copied().unwrap_or_default()
}
