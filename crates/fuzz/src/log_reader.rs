//! A second reader of the write log, written after docs/format.md, 'Write log', alone.
//!
//! Owns: what the files of a log mean, slowly and plainly; and entries and headers whose sums
//! hold, whatever they say. Invariant: it shares no code with the reader that it judges.

use twox_hash::XxHash3_64;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Bytes of a file's header.
pub const HEADER: usize = 128;
/// Bytes of an entry before its table.
pub const ENTRY: usize = 56;
/// Greatest size of a disk, in bytes.
pub const SIZE_MAX: u64 = 1 << 60;
/// Numbers of entries are below.
pub const SEQ_MAX: u64 = 1 << 62;

/// A file's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Its number.
    pub number: u64,
    /// The byte at 12.
    pub after_cut: u8,
    /// Seeds all sums.
    pub salt: u64,
    /// Volume.
    pub volume: [u8; 16],
    /// Generation.
    pub generation: u64,
    /// The newest point.
    pub point: u64,
    /// Its hash.
    pub hash: [u8; 32],
    /// The disk's size.
    pub size: u64,
    /// The first entry's number.
    pub seq: u64,
    /// The sum of the entry before.
    pub chain: u64,
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it does: 1 data, 2 zeros, 3 size, 4 base, 5 base with a cut.
    pub kind: u8,
    /// First block, size or point.
    pub block: u64,
    /// Blocks.
    pub count: u64,
    /// Its number.
    pub seq: u64,
    /// Entries below are durable.
    pub durable: u64,
    /// The sum of the entry before.
    pub chain: u64,
    /// Its table.
    pub table: Vec<u64>,
    /// Its data.
    pub data: Vec<u8>,
}

/// What a block was made to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The first block.
    pub start: u64,
    /// The one behind the last.
    pub end: u64,
    /// Its bytes; `None`: zeros.
    pub data: Option<Vec<u8>>,
}

/// What a log reads as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Files that count.
    pub files: usize,
    /// Changes in their order.
    pub changes: Vec<Change>,
    /// Entries that change the disk.
    pub entries: u64,
    /// The disk's size.
    pub size: u64,
    /// The number of the next entry.
    pub seq: u64,
    /// The sum of the last entry.
    pub chain: u64,
    /// The point on which it builds.
    pub point: u64,
    /// That point's hash.
    pub hash: [u8; 32],
    /// Whether a point may have been made after that.
    pub after_cut: bool,
    /// The greatest generation.
    pub generation: u64,
    /// Bytes that do not count.
    pub torn: u64,
}

impl Reading {
    /// What a block holds; `None` if it was not written.
    pub fn block(&self, number: u64) -> Option<Vec<u8>> {
        let holds = |c: &&Change| c.start <= number && number < c.end;
        let change = self.changes.iter().rev().find(holds)?;
        Some(change.data.as_ref().map_or_else(
            || vec![0; BLOCK],
            |data| data[(number - change.start) as usize * BLOCK..][..BLOCK].to_vec(),
        ))
    }

    /// Blocks at which something begins or ends, and their neighbours.
    pub fn edges(&self) -> Vec<u64> {
        let around = |n: u64| [n.saturating_sub(1), n, n + 1];
        let mut all: Vec<u64> =
            self.changes.iter().flat_map(|c| [around(c.start), around(c.end)]).flatten().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Why a log is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// What was durable does not count.
    Damaged,
    /// A newer version.
    Newer,
}

/// A number of a file at its place.
fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A block's sum at its place.
pub fn block_sum(salt: u64, block: u64, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(salt ^ block.wrapping_mul(0x9e37_79b9_7f4a_7c15), bytes)
}

impl Header {
    /// As it lies in a file; its sum holds.
    pub fn bytes(&self, version: u32) -> Vec<u8> {
        let mut out = b"DORMWLG1".to_vec();
        out.extend(version.to_le_bytes());
        out.extend([self.after_cut, 0, 0, 0]);
        out.extend(self.number.to_le_bytes());
        out.extend(self.salt.to_le_bytes());
        out.extend(self.volume);
        out.extend(self.generation.to_le_bytes());
        out.extend(self.point.to_le_bytes());
        out.extend(self.hash);
        for n in [self.size, self.seq, self.chain] {
            out.extend(n.to_le_bytes());
        }
        out.extend(XxHash3_64::oneshot(&out).to_le_bytes());
        out
    }

    /// Reads it; `None` if it does not hold.
    fn read(bytes: &[u8]) -> Result<Option<Self>, Refused> {
        let Some(b) = bytes.get(..HEADER) else { return Ok(None) };
        let holds = XxHash3_64::oneshot(&b[..120]) == number(b, 120);
        if !holds || &b[..8] != b"DORMWLG1" || b[12] > 1 || b[13..16] != [0, 0, 0] {
            return Ok(None);
        }
        if b[8..12] != [1, 0, 0, 0] {
            return Err(Refused::Newer);
        }
        let header = Self {
            number: number(b, 16),
            after_cut: b[12],
            salt: number(b, 24),
            volume: b[32..48].try_into().unwrap(),
            generation: number(b, 48),
            point: number(b, 56),
            hash: b[64..96].try_into().unwrap(),
            size: number(b, 96),
            seq: number(b, 104),
            chain: number(b, 112),
        };
        Ok(Some(header).filter(|h| h.size <= SIZE_MAX && h.seq < SEQ_MAX))
    }
}

impl Entry {
    /// As it lies in a file, and its sum, which holds.
    pub fn bytes(&self, salt: u64) -> (Vec<u8>, u64) {
        let mut out = b"DWLE".to_vec();
        out.extend([self.kind, 0, 0, 0]);
        for n in [self.block, self.count, self.seq, self.durable, self.chain] {
            out.extend(n.to_le_bytes());
        }
        let table: Vec<u8> = self.table.iter().flat_map(|n| n.to_le_bytes()).collect();
        let seed = XxHash3_64::oneshot_with_seed(salt, &out);
        let sum = XxHash3_64::oneshot_with_seed(seed, &table);
        out.extend(sum.to_le_bytes());
        out.extend(table);
        out.extend(&self.data);
        (out, sum)
    }

    /// Header and table at the front of these bytes, if they can be and their sum holds; no data.
    fn head(bytes: &[u8], salt: u64) -> Option<(Self, u64)> {
        let fixed = bytes.get(..ENTRY)?;
        if fixed[..4] != *b"DWLE" || fixed[5..8] != [0, 0, 0] {
            return None;
        }
        let [block, count, seq, durable, chain, sum] =
            [8, 16, 24, 32, 40, 48].map(|at| number(fixed, at));
        let kind = fixed[4];
        let within = |end: Option<u64>| end.is_some_and(|end| end <= SIZE_MAX / BLOCK as u64);
        let possible = match kind {
            1 => (1..=256).contains(&count) && within(block.checked_add(count)),
            2 => count > 0 && within(block.checked_add(count)),
            3 => count == 0 && block <= SIZE_MAX,
            4 | 5 => count == 4,
            _ => false,
        };
        if !possible {
            return None;
        }
        let numbers = if matches!(kind, 1 | 4 | 5) { count as usize } else { 0 };
        let raw = bytes.get(ENTRY..ENTRY + numbers * 8)?;
        let seed = XxHash3_64::oneshot_with_seed(salt, &fixed[..48]);
        if XxHash3_64::oneshot_with_seed(seed, raw) != sum {
            return None;
        }
        let table = raw.chunks(8).map(|n| number(n, 0)).collect();
        Some((Self { kind, block, count, seq, durable, chain, table, data: Vec::new() }, sum))
    }

    /// The whole entry at the front of these bytes: its bytes, and its sum.
    fn whole(bytes: &[u8], salt: u64) -> Option<(Self, usize, u64)> {
        let (mut entry, sum) = Self::head(bytes, salt)?;
        let (from, blocks) =
            (ENTRY + entry.table.len() * 8, if entry.kind == 1 { entry.count } else { 0 });
        let end = from + blocks as usize * BLOCK;
        entry.data = bytes.get(from..end)?.to_vec();
        let mut sums = entry.data.chunks(BLOCK).zip(entry.block..).zip(&entry.table);
        sums.all(|((data, n), sum)| block_sum(salt, n, data) == *sum).then_some((entry, end, sum))
    }
}

/// Reads the files of a log, in the order of their numbers.
pub fn read(files: &[(u64, Vec<u8>)]) -> Result<Reading, Refused> {
    let mut reading = Reading::default();
    let mut lost = false;
    for (n, bytes) in files {
        let header = Header::read(bytes)?;
        let mut at = HEADER;
        let counts = |h: &Header| {
            let lowest = reading.files == 0 && !lost;
            let goes_on = reading.files > 0 && (h.seq, h.chain) == (reading.seq, reading.chain);
            h.number == *n && (lowest || goes_on)
        };
        match header.filter(counts) {
            Some(header) => at = take(&mut reading, &header, bytes),
            None => lost |= !bytes.is_empty(),
        }
        reading.torn += bytes.len().saturating_sub(at) as u64;
        let Some(header) = header else { continue };
        let claims = (at..bytes.len()).filter_map(|at| Entry::head(&bytes[at..], header.salt));
        if claims.map(|(entry, _)| entry.durable).any(|durable| durable > reading.seq) {
            return Err(Refused::Damaged);
        }
    }
    Ok(reading)
}

/// A file's entries; where they end.
fn take(reading: &mut Reading, header: &Header, bytes: &[u8]) -> usize {
    if reading.files == 0 {
        (reading.size, reading.seq, reading.chain) = (header.size, header.seq, header.chain);
    }
    reading.files += 1;
    reading.generation = reading.generation.max(header.generation);
    (reading.point, reading.hash) = (header.point, header.hash);
    reading.after_cut = header.after_cut == 1;
    let mut at = HEADER;
    while let Some((entry, len, sum)) = Entry::whole(&bytes[at..], header.salt) {
        if (entry.seq, entry.chain) != (reading.seq, reading.chain) {
            break;
        }
        at += len;
        (reading.seq, reading.chain) = (entry.seq + 1, sum);
        apply(reading, entry);
    }
    at
}

fn apply(reading: &mut Reading, entry: Entry) {
    let (start, end) = (entry.block, entry.block.saturating_add(entry.count));
    reading.entries += u64::from(entry.kind < 4);
    match entry.kind {
        1 => reading.changes.push(Change { start, end, data: Some(entry.data) }),
        2 => reading.changes.push(Change { start, end, data: None }),
        3 => {
            // What is cut off comes back as zeros.
            let (new, old) = (entry.block, reading.size);
            let (start, end) = (new.div_ceil(BLOCK as u64), old.div_ceil(BLOCK as u64));
            if start < end {
                reading.changes.push(Change { start, end, data: None });
            }
            reading.size = new;
        }
        kind => {
            reading.point = entry.block;
            reading.after_cut = kind == 5;
            for (to, n) in reading.hash.chunks_mut(8).zip(&entry.table) {
                to.copy_from_slice(&n.to_le_bytes());
            }
        }
    }
}
