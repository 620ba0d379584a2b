//! The cache's files: what is altered in them is never given out.

use super::*;

const BLOCKS: usize = 40;

struct Stand {
    dir: tempfile::TempDir,
    secrets: Arc<VaultSecrets>,
    content: Vec<u8>,
}

impl Stand {
    fn new() -> Self {
        let secrets = Arc::new(VaultSecrets::generate(&mut OsRandom));
        let content = (0..BLOCKS * BLOCK_SIZE).map(|i| (i / 7 + i / BLOCK_SIZE) as u8).collect();
        Self { dir: tempfile::tempdir().unwrap(), secrets, content }
    }

    fn open(&self) -> CacheFile {
        let (dir, secrets) = (self.dir.path(), Arc::clone(&self.secrets));
        let cache = CacheFile::open(dir, LEAST, secrets, VolumeId([3; 16])).unwrap();
        for (tag, block) in self.tags().iter().zip(0..) {
            cache.prove(block, tag);
        }
        cache
    }

    fn tags(&self) -> Vec<Tag> {
        let blocks = self.content.chunks(BLOCK_SIZE).zip(0..);
        let tag = |(bytes, block)| {
            self.secrets.tag(&VolumeId([3; 16]), block, &self.secrets.digest(bytes))
        };
        blocks.map(tag).collect()
    }

    /// Which blocks are there; each must be right.
    fn read(&self, cache: &CacheFile) -> Vec<usize> {
        let mut out = vec![0; self.content.len()];
        let mut there = Vec::new();
        cache.read(0, &mut out, &mut |i, _| there.push(i));
        for i in &there {
            let range = i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE;
            assert_eq!(out[range.clone()], self.content[range], "block {i}");
        }
        there
    }

    fn alter(&self, at: u64) {
        let data = open(&self.dir.path().join("data")).unwrap();
        let mut byte = [0];
        data.read_exact_at(&mut byte, at).unwrap();
        data.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }
}

#[test]
fn what_is_altered_is_never_given_out_however_often_it_was_checked() {
    let stand = Stand::new();
    let cache = stand.open();
    cache.put(0, &stand.tags(), &stand.content);
    let all: Vec<usize> = (0..BLOCKS).collect();
    // By its digests, then by its sums.
    assert_eq!((stand.read(&cache), stand.read(&cache)), (all.clone(), all.clone()));
    let sums = |cache: &CacheFile| -> usize {
        let of =
            |s: &Mutex<Shard>| s.lock().unwrap().sums.iter().filter(|s| **s != Sum::NONE).count();
        cache.shards.iter().map(of).sum()
    };
    assert_eq!(sums(&cache), BLOCKS, "it is not read by its sums");
    stand.alter(17 * BLOCK_SIZE as u64 + 9);
    let left: Vec<usize> = all.iter().copied().filter(|i| *i != 17).collect();
    assert_eq!(stand.read(&cache), left);
    assert_eq!((cache.damaged(), sums(&cache)), (1, BLOCKS - 1));
    assert_eq!(stand.read(&cache), left);
    // Put anew, it is there again; and sums end with the process.
    cache.put(0, &stand.tags(), &stand.content);
    assert_eq!(stand.read(&cache), all);
    drop(cache);
    stand.alter(3 * BLOCK_SIZE as u64);
    let cache = stand.open();
    assert_eq!(sums(&cache), 0);
    assert_eq!(stand.read(&cache).len(), BLOCKS - 1);
}

#[test]
fn a_place_that_has_another_block_does_not_keep_its_sum() {
    let stand = Stand::new();
    let cache = stand.open();
    cache.put(0, &stand.tags(), &stand.content);
    stand.read(&cache);
    // The map has other content now; then it is put.
    let (tag, bytes) = (stand.tags()[5], vec![5; BLOCK_SIZE]);
    let new = stand.secrets.tag(&VolumeId([3; 16]), 5, &stand.secrets.digest(&bytes));
    assert!(!cache.prove(5, &new));
    assert!(!stand.read(&cache).contains(&5));
    cache.put(5, &[new], &bytes);
    let mut out = vec![0; BLOCK_SIZE];
    for _ in 0..2 {
        let mut there = false;
        cache.read(5, &mut out, &mut |_, _| there = true);
        assert!(there && out == bytes);
    }
    assert!(!cache.prove(5, &tag));
}
