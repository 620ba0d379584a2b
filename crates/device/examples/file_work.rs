//! Random work on files with a model beside it: every read is compared.
//!
//! `file_work DIR SEED OPERATIONS` writes, cuts, punches, renames, removes, syncs and reads some
//! files below DIR, drops the system's cache now and then (as root), and reads everything at the
//! end. Fails at the first byte that is not as the model has it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

const FILES: u64 = 12;
const LEN_MAX: u64 = 2 << 20;
const WRITE_MAX: u64 = 128 << 10;

type Failed = Box<dyn std::error::Error>;

struct Numbers(u64);

impl Numbers {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

struct Work {
    dir: PathBuf,
    numbers: Numbers,
    /// What each file should hold; none if it should not be there.
    model: Vec<Option<Vec<u8>>>,
}

impl Work {
    fn path(&self, file: usize) -> PathBuf {
        self.dir.join(format!("file-{file}"))
    }

    fn open(&self, file: usize) -> std::io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.path(file))
    }

    fn step(&mut self) -> Result<(), Failed> {
        let file = self.numbers.below(FILES) as usize;
        match self.numbers.below(100) {
            0..50 => self.write(file),
            50..58 => self.cut(file),
            58..66 => self.punch(file),
            66..72 => self.rename(file),
            72..75 => self.remove(file),
            75..80 => Ok(self.open_if_there(file)?.map_or(Ok(()), |f| f.sync_all())?),
            80..81 => drop_cache(),
            _ => self.compare(file),
        }
    }

    fn open_if_there(&self, file: usize) -> std::io::Result<Option<File>> {
        if self.model[file].is_some() { self.open(file).map(Some) } else { Ok(None) }
    }

    fn write(&mut self, file: usize) -> Result<(), Failed> {
        let at = self.numbers.below(LEN_MAX - WRITE_MAX);
        let len = 1 + self.numbers.below(WRITE_MAX);
        let mut bytes = vec![0; len as usize];
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.numbers.next().to_le_bytes()[..part.len()]);
        }
        self.open(file)?.write_all_at(&bytes, at)?;
        let content = self.model[file].get_or_insert_default();
        let end = at as usize + bytes.len();
        content.resize(content.len().max(end), 0);
        content[at as usize..end].copy_from_slice(&bytes);
        Ok(())
    }

    fn cut(&mut self, file: usize) -> Result<(), Failed> {
        let len = self.numbers.below(LEN_MAX);
        if let Some(open) = self.open_if_there(file)? {
            open.set_len(len)?;
            self.model[file].get_or_insert_default().resize(len as usize, 0);
        }
        Ok(())
    }

    fn punch(&mut self, file: usize) -> Result<(), Failed> {
        let (at, len) = (self.numbers.below(LEN_MAX), 1 + self.numbers.below(WRITE_MAX));
        if let Some(open) = self.open_if_there(file)? {
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&open, how, at, len)?;
            let content = self.model[file].get_or_insert_default();
            let end = content.len().min((at + len) as usize);
            if (at as usize) < end {
                content[at as usize..end].fill(0);
            }
        }
        Ok(())
    }

    fn rename(&mut self, file: usize) -> Result<(), Failed> {
        let to = self.numbers.below(FILES) as usize;
        if to != file && self.model[file].is_some() {
            std::fs::rename(self.path(file), self.path(to))?;
            self.model[to] = self.model[file].take();
        }
        Ok(())
    }

    fn remove(&mut self, file: usize) -> Result<(), Failed> {
        if self.model[file].take().is_some() {
            std::fs::remove_file(self.path(file))?;
        }
        Ok(())
    }

    fn compare(&self, file: usize) -> Result<(), Failed> {
        let path = self.path(file);
        let Some(expected) = &self.model[file] else {
            return if path.exists() { Err(format!("{path:?} is there").into()) } else { Ok(()) };
        };
        let found = std::fs::read(&path)?;
        if found == *expected {
            return Ok(());
        }
        let at = found.iter().zip(expected).position(|(a, b)| a != b);
        let lens = (found.len(), expected.len());
        Err(format!("{path:?} differs at {at:?}; lengths {lens:?}").into())
    }
}

/// What is read next comes from the disk. Only root may; others read what is there.
fn drop_cache() -> Result<(), Failed> {
    rustix::fs::sync();
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "1");
    Ok(())
}

fn main() -> Result<(), Failed> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, seed, operations] = args.as_slice() else {
        return Err("file_work DIR SEED OPERATIONS".into());
    };
    let (seed, operations): (u64, u64) = (seed.parse()?, operations.parse()?);
    let model = (0..FILES).map(|_| None).collect();
    let mut work = Work { dir: Path::new(dir).to_owned(), numbers: Numbers(seed), model };
    for n in 0..operations {
        work.step().map_err(|e| format!("operation {n} of seed {seed}: {e}"))?;
    }
    drop_cache()?;
    for file in 0..FILES as usize {
        work.compare(file)?;
    }
    println!("{operations} operations, and all files are as they should be");
    Ok(())
}
