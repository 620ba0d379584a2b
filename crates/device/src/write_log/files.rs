//! The write log's files: reading them again after a stop.
//!
//! Invariant: what is taken is a prefix of what was written, and holds all that a flush had made
//! durable. Where that cannot be, since a flushed entry is damaged, nothing is taken.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dormouse_format::limits::BLOCK_SIZE;

use super::append::cut_off;
use super::entry::{
    Base, ENTRY_HEAD, EntryHead, FILE_HEAD, FileHead, Kind, block_sum, entry_sum, hash_of, u64_at,
};
use super::file::LogFile;
use super::runs::{Content, Runs, Span};
use crate::{Error, Result};

/// Bytes that are looked through at once for an entry behind a damaged one.
const WINDOW: usize = 4 << 20;

/// Numbers of files are below: as many as have 16 digits.
const NUMBER_END: u64 = 9_999_999_999_999_999;

/// Where a log stands.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub runs: Runs,
    /// The first file's header.
    pub first: Option<FileHead>,
    /// The files that are taken, in order, and their bytes.
    pub files: Vec<(Arc<LogFile>, u64)>,
    /// Files that follow what was lost, or whose making was cut: nothing in them counts.
    pub lost: Vec<PathBuf>,
    /// Whether there was anything in them: then no file behind them is the first.
    lost_bytes: bool,
    pub next_number: u64,
    /// The greatest of the files that are taken.
    pub generation: u64,
    /// On what it builds now.
    pub base: Base,
    /// Whether a point may have been made after that.
    pub after_cut: bool,
    /// Entries that change the disk.
    pub writes: u64,
    pub size: u64,
    pub seq: u64,
    pub chain: u64,
    /// Bytes of the files that are taken.
    pub bytes: u64,
    /// Bytes behind the last whole entry: never flushed.
    pub torn: u64,
}

/// The name of a file.
pub(super) fn name(number: u64) -> String {
    format!("{number:016}.log")
}

/// Reads a directory's log.
pub(super) fn replay(dir: &Path) -> Result<Replay> {
    let mut replay = Replay { next_number: 1, ..Replay::default() };
    for number in numbers(dir)? {
        let path = dir.join(name(number));
        if number >= NUMBER_END {
            // No log comes to it; the next file would have a name that is not read again.
            let path = path.display();
            return Err(Error::Damaged(format!("no file of a write log has the number of {path}")));
        }
        replay.next_number = number + 1;
        let file = File::open(&path)?;
        let file = Arc::new(LogFile::new(number, path, file));
        let len = file.file.metadata()?.len();
        let head = read_head(&file)?;
        let mut end = FILE_HEAD as u64;
        if let Some(head) = head.filter(|head| follows(&replay, head, number)) {
            (replay.base, replay.after_cut) = (head.base, head.after_cut);
            end = entries(&mut replay, &head, &file, len)?;
            replay.bytes += len;
            replay.first.get_or_insert(head);
            replay.generation = replay.generation.max(head.base.generation);
            replay.files.push((Arc::clone(&file), len));
        } else {
            replay.lost.push(file.path.clone());
            replay.lost_bytes |= len > 0;
        }
        replay.torn += len.saturating_sub(end);
        // What is left out must not say that something which was not taken was durable.
        let known = head.map_or(Ok(0), |head| known_durable(&file.file, head.salt, end, len))?;
        if known > replay.seq {
            let path = file.path.display();
            return Err(Error::Damaged(format!(
                "the write log {path} is damaged at byte {end} or before: entries that follow say \
                 that more was durable"
            )));
        }
    }
    Ok(replay)
}

/// The first file begins where it says, and is the lowest that is there in which anything is: the head of
/// the first is durable before anything else is written; another must go on where
/// the one before it ended.
fn follows(replay: &Replay, head: &FileHead, number: u64) -> bool {
    let goes_on = replay.chain == head.chain && replay.seq == head.seq;
    let first = replay.first.is_none() && !replay.lost_bytes;
    head.number == number && (first || goes_on && replay.first.is_some())
}

/// Removes all files of a log, whatever is in them: the last first, so that what a crash leaves is
/// a prefix still.
pub(super) fn remove(dir: &Path) -> Result<()> {
    for number in numbers(dir)?.into_iter().rev() {
        fs::remove_file(dir.join(name(number)))?;
    }
    Ok(File::open(dir)?.sync_all()?)
}

fn numbers(dir: &Path) -> Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let file = entry?.file_name();
        let number = file.to_str().and_then(|n| n.strip_suffix(".log")?.parse().ok());
        if let Some(number) = number.filter(|n| file.to_str() == Some(&name(*n))) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn read_head(file: &LogFile) -> Result<Option<FileHead>> {
    let mut bytes = [0; FILE_HEAD];
    match file.file.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    match FileHead::decode(&bytes) {
        None => Ok(None),
        Some(Ok(head)) => Ok(Some(head)),
        Some(Err(version)) => Err(Error::Damaged(format!(
            "the write log {} is of version {version}, made by a newer program",
            file.path.display()
        ))),
    }
}

/// Takes a file's whole entries; where they end.
fn entries(replay: &mut Replay, head: &FileHead, file: &Arc<LogFile>, len: u64) -> Result<u64> {
    if replay.first.is_none() {
        (replay.size, replay.seq, replay.chain) = (head.size, head.seq, head.chain);
    }
    let mut from = io::BufReader::with_capacity(1 << 20, &file.file);
    io::copy(&mut from.by_ref().take(FILE_HEAD as u64), &mut io::sink())?;
    let mut at = FILE_HEAD as u64;
    let mut data = Vec::new();
    while let Some((entry, sums)) = entry(&mut from, head.salt, at, len, replay, &mut data)? {
        let begin = at + (ENTRY_HEAD + 8 * sums.len()) as u64;
        at = begin + data.len() as u64;
        if entry.is_base() {
            (replay.base.seq, replay.base.hash) = (entry.block, hash_of(&sums));
            replay.after_cut = entry.kind == Kind::BaseOfCut;
        }
        take(replay, &entry, file, || Span {
            file: Arc::clone(file),
            salt: head.salt,
            block: entry.block,
            at: begin,
            sums: sums.into_boxed_slice(),
        });
    }
    Ok(at)
}

/// The next entry, if it is whole and follows what was taken.
fn entry(
    from: &mut impl Read,
    salt: u64,
    at: u64,
    len: u64,
    replay: &Replay,
    data: &mut Vec<u8>,
) -> Result<Option<(EntryHead, Vec<u64>)>> {
    data.clear();
    let mut fixed = [0; ENTRY_HEAD];
    if len - at < ENTRY_HEAD as u64 {
        return Ok(None);
    }
    from.read_exact(&mut fixed)?;
    let Some(head) = EntryHead::decode(&fixed) else { return Ok(None) };
    let (table, body) = (head.sums() * 8, head.data());
    if len - at - (ENTRY_HEAD as u64) < (table + body) as u64 {
        return Ok(None);
    }
    let mut whole = fixed.to_vec();
    whole.resize(ENTRY_HEAD + table, 0);
    from.read_exact(&mut whole[ENTRY_HEAD..])?;
    let next = head.seq == replay.seq && head.chain == replay.chain;
    if !next || entry_sum(salt, &whole) != head.sum {
        return Ok(None);
    }
    data.resize(body, 0);
    from.read_exact(data)?;
    let sums: Vec<u64> = whole[ENTRY_HEAD..].chunks_exact(8).map(|sum| u64_at(sum, 0)).collect();
    // A table without data holds no sums of blocks.
    let mut blocks = data.chunks_exact(BLOCK_SIZE).zip(&sums).zip(head.block..);
    let good = blocks.all(|((bytes, sum), block)| block_sum(salt, block, bytes) == *sum);
    if !good {
        data.clear();
        return Ok(None);
    }
    Ok(Some((head, sums)))
}

fn take(replay: &mut Replay, entry: &EntryHead, file: &Arc<LogFile>, span: impl FnOnce() -> Span) {
    let end = entry.block.saturating_add(entry.count);
    match entry.kind {
        Kind::Data => replay.runs.put(entry.block, end, Content::Data(Arc::new(span()))),
        Kind::Zero => replay.runs.put(entry.block, end, Content::Zero(Arc::clone(file))),
        Kind::Base | Kind::BaseOfCut => {}
        Kind::Size => {
            if let Some((from, to)) = cut_off(replay.size, entry.block) {
                replay.runs.put(from, to, Content::Zero(Arc::clone(file)));
            }
            replay.size = entry.block;
        }
    }
    replay.writes += u64::from(!entry.is_base());
    replay.seq = entry.seq + 1;
    replay.chain = entry.sum;
}

/// The most that any entry's header from `at` on says was durable.
fn known_durable(file: &File, salt: u64, mut at: u64, len: u64) -> Result<u64> {
    let head_max = ENTRY_HEAD + 8 * super::entry::BLOCKS_MAX as usize;
    let mut window = vec![0; WINDOW + head_max];
    let mut known = 0;
    while at < len {
        let got = window.len().min((len - at) as usize);
        file.read_exact_at(&mut window[..got], at)?;
        for start in 0..got.min(WINDOW) {
            known = known.max(durable_at(&window[start..got], salt).unwrap_or(0));
        }
        at += WINDOW as u64;
    }
    Ok(known)
}

/// What an entry's header that begins here says was durable, if one does.
fn durable_at(bytes: &[u8], salt: u64) -> Option<u64> {
    let fixed: &[u8; ENTRY_HEAD] = bytes.first_chunk()?;
    let head = EntryHead::decode(fixed)?;
    let whole = bytes.get(..ENTRY_HEAD + head.sums() * 8)?;
    (entry_sum(salt, whole) == head.sum).then_some(head.durable)
}
