//! Ranges of segments that are not on this machine, kept in files for when they are read again.
//!
//! Invariant: the files are never more than the bound, and nothing in them is believed: a piece
//! carries a check of its own and its name, and one that does not hold is fetched again. Only
//! ranges of segments that do not change any more come here. Files are not synced: after a
//! power cut a piece is whole or does not hold.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use dormouse_crypt::hash;
use dormouse_format::VaultId;

use crate::shared::lock;

/// Bytes of a piece.
pub(crate) const PIECE: u64 = 256 << 10;
const CHECK: usize = 16;

/// Which piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) vault: VaultId,
    pub(crate) segment: u64,
    pub(crate) piece: u64,
}

impl Key {
    fn name(&self) -> String {
        format!("{}-{:016}-{:06}", self.vault, self.segment, self.piece)
    }

    fn read(name: &str) -> Option<Self> {
        let mut parts = name.split('-');
        let vault = VaultId::from_hex(parts.next()?)?;
        let (segment, piece) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let key = Self { vault, segment, piece };
        (key.name() == name).then_some(key)
    }

    fn check(&self, bytes: &[u8]) -> [u8; CHECK] {
        hash::body_check(&[self.name().as_bytes(), bytes].concat())
    }
}

/// What is kept, in the order in which it was used.
#[derive(Debug, Default)]
struct Kept {
    by_key: HashMap<Key, (u64, u64)>,
    by_age: BTreeMap<u64, Key>,
    bytes: u64,
    now: u64,
}

impl Kept {
    fn touch(&mut self, key: Key, len: u64) {
        self.forget(&key);
        self.now += 1;
        self.by_key.insert(key, (self.now, len));
        self.by_age.insert(self.now, key);
        self.bytes += len;
    }

    fn forget(&mut self, key: &Key) {
        if let Some((age, len)) = self.by_key.remove(key) {
            self.by_age.remove(&age);
            self.bytes -= len;
        }
    }
}

/// Pieces in a directory.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    max: u64,
    kept: Mutex<Kept>,
}

impl Cache {
    /// Opens a directory, and takes over what is in it.
    pub(crate) fn open(dir: &Path, max: u64) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut kept = Kept::default();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let key = entry.file_name().to_str().and_then(Key::read);
            match (key, entry.metadata()) {
                (Some(key), Ok(meta)) => kept.touch(key, meta.len()),
                // Half a piece of a process that died.
                _ => fs::remove_file(entry.path())?,
            }
        }
        let cache = Self { dir: dir.to_owned(), max, kept: Mutex::new(kept) };
        cache.shrink();
        Ok(cache)
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(key.name())
    }

    /// Whether a piece is there, by name.
    pub(crate) fn has(&self, key: &Key) -> bool {
        lock(&self.kept).by_key.contains_key(key)
    }

    /// A piece, if it is there and holds.
    pub(crate) fn get(&self, key: &Key) -> Option<Vec<u8>> {
        if !self.has(key) {
            return None;
        }
        let mut bytes = fs::read(self.path(key)).unwrap_or_default();
        let at = bytes.len().checked_sub(CHECK);
        let holds = at.is_some_and(|at| key.check(&bytes[..at]) == bytes[at..]);
        if !holds {
            self.remove(key);
            return None;
        }
        lock(&self.kept).touch(*key, bytes.len() as u64);
        bytes.truncate(bytes.len() - CHECK);
        Some(bytes)
    }

    /// Keeps a piece. What cannot be written is not kept.
    pub(crate) fn put(&self, key: &Key, bytes: &[u8]) {
        let whole = [bytes, &key.check(bytes)].concat();
        if whole.len() as u64 > self.max {
            return;
        }
        let path = self.path(key);
        let tmp = path.with_extension(format!("tmp{:?}", std::thread::current().id()));
        let written = fs::write(&tmp, &whole).and_then(|()| fs::rename(&tmp, &path));
        if written.is_err() {
            let _ = fs::remove_file(&tmp);
            return;
        }
        lock(&self.kept).touch(*key, whole.len() as u64);
        self.shrink();
    }

    fn remove(&self, key: &Key) {
        lock(&self.kept).forget(key);
        let _ = fs::remove_file(self.path(key));
    }

    fn shrink(&self) {
        loop {
            let mut kept = lock(&self.kept);
            if kept.bytes <= self.max {
                return;
            }
            let Some((_, key)) = kept.by_age.pop_first() else { return };
            kept.forget(&key);
            drop(kept);
            let _ = fs::remove_file(self.path(&key));
        }
    }

    /// Forgets a segment that was removed.
    pub(crate) fn forget(&self, vault: &VaultId, segment: u64) {
        let of = |k: &&Key| k.vault == *vault && k.segment == segment;
        let keys: Vec<Key> = lock(&self.kept).by_key.keys().filter(of).copied().collect();
        for key in keys {
            self.remove(&key);
        }
    }

    #[cfg(test)]
    fn bytes(&self) -> u64 {
        lock(&self.kept).bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(piece: u64) -> Key {
        Key { vault: VaultId([5; 32]), segment: 3, piece }
    }

    #[test]
    fn pieces_are_kept_within_the_bound_and_by_use() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 350).unwrap();
        for piece in 0..3 {
            cache.put(&key(piece), &[piece as u8; 100]);
        }
        assert_eq!(cache.get(&key(0)), Some(vec![0; 100]));
        cache.put(&key(3), &[3; 100]);
        assert_eq!(cache.get(&key(1)), None, "the one that was not used for longest went");
        assert!(cache.bytes() <= 350);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        let again = Cache::open(dir.path(), 350).unwrap();
        assert_eq!(again.get(&key(0)), Some(vec![0; 100]));
        assert_eq!(Cache::open(dir.path(), 120).unwrap().bytes(), 116, "a smaller bound holds too");
        again.forget(&VaultId([5; 32]), 3);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_does_not_hold_is_not_given_out() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 10_000).unwrap();
        cache.put(&key(0), b"some bytes");
        cache.put(&key(1), b"other bytes");
        let (a, b) = (dir.path().join(key(0).name()), dir.path().join(key(1).name()));
        fs::rename(&b, &a).unwrap();
        assert_eq!(cache.get(&key(0)), None, "another piece under this name");
        assert_eq!(cache.get(&key(1)), None, "gone");
        cache.put(&key(0), b"some bytes");
        fs::write(&a, b"some bytez").unwrap();
        assert_eq!(cache.get(&key(0)), None);
        assert!(!a.exists());
    }
}
