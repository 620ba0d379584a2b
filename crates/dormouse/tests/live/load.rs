//! Programs that write to the mirrored file system, as long as they are held.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::program::Numbers;

/// Bytes of each file.
const FILE: u64 = 2 << 20;

pub struct Load {
    stop: Arc<AtomicBool>,
    /// What was done so far.
    steps: Arc<AtomicU64>,
    /// The longest step, in microseconds.
    longest: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Writes files, makes and removes some; every `sync`th step reaches the disk at once.
    pub fn start(at: &Path, mut numbers: Numbers, sync: u64) -> Self {
        let (stop, steps, longest) = (Arc::default(), Arc::default(), Arc::default());
        let mut load = Self { stop, steps, longest, thread: None };
        let (stop, steps) = (Arc::clone(&load.stop), Arc::clone(&load.steps));
        let longest = Arc::clone(&load.longest);
        let at = at.to_owned();
        load.thread = Some(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                step(&at, &mut numbers, sync);
                longest.fetch_max(began.elapsed().as_micros() as u64, Ordering::Relaxed);
                steps.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(500));
            }
        }));
        load
    }

    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest.load(Ordering::Relaxed))
    }

    /// Ends it, well; its steps.
    pub fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.steps()
    }
}

impl Drop for Load {
    /// Not waited for: it may stand before a frozen file system until that is thawed.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn step(at: &Path, numbers: &mut Numbers, sync: u64) {
    let name = |n: u64| -> PathBuf { at.join(format!("f{n}")) };
    match numbers.below(16) {
        0 => drop(std::fs::remove_file(name(numbers.below(8)))),
        1 => {
            let (from, to) = (numbers.below(8), numbers.below(8));
            let _ = std::fs::rename(name(from), name(to));
        }
        2 => {
            let directory = at.join(format!("d{}", numbers.below(4)));
            let _ = std::fs::create_dir(&directory);
            let _ = std::fs::write(directory.join(format!("s{}", numbers.below(16))), b"small");
        }
        3 => drop(std::fs::remove_dir_all(at.join(format!("d{}", numbers.below(4))))),
        _ => {
            let file = open(&name(numbers.below(8)));
            let length = 1 + numbers.below(24 << 10) as usize;
            let bytes = numbers.noise(length);
            file.write_all_at(&bytes, numbers.below(FILE)).unwrap();
            if numbers.below(sync) == 0 {
                file.sync_data().unwrap();
            }
        }
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap()
}
