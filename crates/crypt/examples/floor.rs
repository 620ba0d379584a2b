//! What a first copy costs at least: `cargo run --release -p dormouse-crypt --example floor -- IMAGE`.
//!
//! Takes the blocks of an image that are not zero, cuts them as a copy does, leaves out
//! what is there twice, and times each step of the work alone, in memory, on all cores:
//! no reading, no link, no server, no disk. A copy cannot be faster than the sum of the
//! steps that it needs, nor smaller than what the level gives.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use dormouse_crypt::digest::{cuts, is_zero};
use dormouse_crypt::seal::{DataKey, SealFor, Sealer};
use dormouse_crypt::{OsRandom, SigningKey, VaultSecrets};
use dormouse_format::limits::{BLOCK_SIZE, CHUNK_BLOCKS_MAX, CHUNK_PAYLOAD_MAX};
use dormouse_format::{ChunkId, Digest, VaultId};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const LEVELS: [i32; 5] = [-1, 1, 2, 3, 4];

struct Chunk {
    id: ChunkId,
    digests: Vec<Digest>,
    bytes: Range<usize>,
}

fn main() -> Result<(), Failure> {
    let path = std::env::args().nth(1).ok_or("name an image")?;
    let (content, ends) = load(&path)?;
    let secrets = VaultSecrets::generate(&mut OsRandom);
    let chunks = cut(&content, &ends, &secrets);
    let unique: usize = chunks.iter().map(|c| c.bytes.len()).sum();
    let cores = std::thread::available_parallelism()?.get();
    println!(
        "{}: {} MiB not zero, {} MiB of them once, in {} chunks; {cores} cores",
        path,
        content.len() >> 20,
        unique >> 20,
        chunks.len()
    );
    let each =
        |what: &str, work: &(dyn Fn(&Chunk, &mut State) -> Result<usize, Failure> + Sync)| {
            let (seconds, bytes) = on_all_cores(cores, &chunks, work)?;
            println!("{what:34} {seconds:6.2} s {:6} MiB", bytes >> 20);
            Ok::<_, Failure>(())
        };
    each("digest", &|chunk, _| {
        secrets.digests(&content[chunk.bytes.clone()], &mut |_, digest| {
            std::hint::black_box(digest);
        });
        Ok(0)
    })?;
    for level in LEVELS {
        each(&format!("compress, zstd {level}"), &|chunk, state| {
            let zstd = state.zstd(level)?;
            let content = &content[chunk.bytes.clone()];
            let mut out = [0; CHUNK_PAYLOAD_MAX];
            // What does not shrink is kept as it is.
            Ok(zstd
                .compress_to_buffer(content, &mut out[..])
                .map_or(content.len(), |n| n.min(content.len())))
        })?;
    }
    let (key, signer) = (DataKey::generate(&mut OsRandom)?, SigningKey::generate(&mut OsRandom)?);
    let vault = VaultId(signer.public().0);
    each("compress (1), open, check, seal", &|chunk, state| {
        let writer = signer.writer_id();
        let who = SealFor { vault: &vault, writer, key: &key, secrets: &secrets };
        let content = &content[chunk.bytes.clone()];
        Ok(state.sealer()?.seal(who, chunk.id, &chunk.digests, content)?.len())
    })
}

/// Blocks that are not zero, one after the other, and where runs of them end.
fn load(path: &str) -> Result<(Vec<u8>, HashSet<usize>), Failure> {
    let (mut content, mut ends) = (Vec::new(), HashSet::new());
    let mut file = File::open(path)?;
    let mut block = [0; BLOCK_SIZE];
    while file.read_exact(&mut block).is_ok() {
        if is_zero(&block) {
            ends.insert(content.len());
        } else {
            content.extend_from_slice(&block);
        }
    }
    Ok((content, ends))
}

fn cut(content: &[u8], ends: &HashSet<usize>, secrets: &VaultSecrets) -> Vec<Chunk> {
    let (mut chunks, mut seen, mut digests) = (Vec::new(), HashSet::new(), Vec::new());
    let mut start = 0;
    for (i, block) in content.chunks_exact(BLOCK_SIZE).enumerate() {
        let digest = secrets.digest(block);
        digests.push(digest);
        let end = (i + 1) * BLOCK_SIZE;
        let last = cuts(&digest) || digests.len() == CHUNK_BLOCKS_MAX || ends.contains(&end);
        if last || end == content.len() {
            let digests = std::mem::take(&mut digests);
            let id = secrets.chunk_id(&digests);
            if seen.insert(id) {
                chunks.push(Chunk { id, digests, bytes: start..end });
            }
            start = end;
        }
    }
    chunks
}

/// What a thread keeps between chunks.
#[derive(Default)]
struct State {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    sealer: Option<Sealer>,
}

impl State {
    fn zstd(&mut self, level: i32) -> Result<&mut zstd::bulk::Compressor<'static>, Failure> {
        if self.zstd.is_none() {
            self.zstd = Some(zstd::bulk::Compressor::new(level)?);
        }
        self.zstd.as_mut().ok_or_else(|| "no compressor".into())
    }

    fn sealer(&mut self) -> Result<&mut Sealer, Failure> {
        if self.sealer.is_none() {
            self.sealer = Some(Sealer::new(1)?);
        }
        self.sealer.as_mut().ok_or_else(|| "no sealer".into())
    }
}

/// Seconds, and the sum of what `work` gave.
fn on_all_cores(
    cores: usize,
    chunks: &[Chunk],
    work: &(dyn Fn(&Chunk, &mut State) -> Result<usize, Failure> + Sync),
) -> Result<(f64, usize), Failure> {
    let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores)
            .map(|_| {
                scope.spawn(|| {
                    let mut state = State::default();
                    while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                        sum.fetch_add(work(chunk, &mut state)?, Ordering::Relaxed);
                    }
                    Ok::<_, Failure>(())
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "a thread failed")??;
        }
        Ok::<_, Failure>(())
    })?;
    Ok((began.elapsed().as_secs_f64(), sum.into_inner()))
}
