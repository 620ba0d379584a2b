//! Files of a write log with any bytes: read, and compared with what a second reader makes of them.

use dormouse_device::Error;
use dormouse_device::write_log::{Base, Left, Limits, WriteLog};

use crate::Target;
use crate::input::Input;
use crate::log_reader::{self, BLOCK, Entry, Header, Reading, Refused, block_sum};
use crate::scratch::Scratch;

/// Files of a log.
pub const FILES: Target = Target {
    name: "log-files",
    what: "files of a write log: raw, and with sums that hold; compared with a second reader",
    run: files,
    seeds,
    len_max: 8 << 10,
};

const LIMITS: Limits = Limits { bytes: 1 << 30, part: 1 << 20, wait: None };
const FILES_MAX: usize = 4;
/// Entries with data in one input: each is a block and more.
const DATA_MAX: usize = 24;
/// Numbers that a file may have.
const NUMBERS_END: u64 = 10u64.pow(16) - 1;
/// Blocks that are compared.
const EDGES_MAX: usize = 64;

type Files = Vec<(u64, Vec<u8>)>;

fn files(data: &[u8]) {
    let mut input = Input::new(data);
    let mut files = if input.flag() { repaired(&mut input) } else { raw(&mut input) };
    files.sort_by_key(|(number, _)| *number);
    files.dedup_by_key(|(number, _)| *number);
    let scratch = Scratch::default();
    for (number, bytes) in &files {
        scratch.put(&format!("{number:016}.log"), bytes);
    }
    judge(&scratch, &files);
}

fn raw(input: &mut Input<'_>) -> Files {
    let mut files = Vec::new();
    while !input.is_empty() && files.len() < FILES_MAX {
        files.push((input.number(), input.blob().to_vec()));
    }
    files
}

/// What the next header and entry say of themselves, until the input says otherwise.
struct Line {
    header: Header,
    seq: u64,
    durable: u64,
    chain: u64,
    data: usize,
}

fn repaired(input: &mut Input<'_>) -> Files {
    let header = Header { number: 1, salt: 7, size: 64 << 12, generation: 2, ..Header::default() };
    let mut line = Line { header, seq: 0, durable: 0, chain: 0, data: 0 };
    let mut files = Vec::new();
    while !input.is_empty() && files.len() < FILES_MAX {
        let odd = input.u8();
        let change = |bit: u8, to: &mut u64, input: &mut Input<'_>| {
            if odd & bit != 0 {
                *to = input.number();
            }
        };
        change(1, &mut line.header.number, input);
        change(2, &mut line.header.size, input);
        change(4, &mut line.seq, input);
        change(8, &mut line.header.generation, input);
        change(16, &mut line.header.point, input);
        (line.header.seq, line.header.chain) = (line.seq, line.chain);
        line.header.after_cut = (odd >> 5) & 1;
        let version = if odd >> 6 == 3 { u32::from(input.u8()) } else { 1 };
        let mut bytes = line.header.bytes(version);
        while !input.is_empty() && entry(input, &mut line, &mut bytes) {}
        files.push((line.header.number, bytes));
        (line.header.number, line.header.salt) =
            (line.header.number.wrapping_add(1), line.header.salt + 1);
    }
    files
}

/// Appends an entry, or what might be one; false at the end of the file.
fn entry(input: &mut Input<'_>, line: &mut Line, bytes: &mut Vec<u8>) -> bool {
    let kind = input.u8() % 10;
    let (mut table, mut data) = (Vec::new(), Vec::new());
    let (block, count) = match kind {
        0 | 1 if line.data < DATA_MAX => {
            let (block, count) = (input.number(), 1 + input.below(3));
            data = vec![input.u8(); count * BLOCK];
            line.data += count;
            let blocks = data.chunks(BLOCK).zip(0..);
            table = blocks
                .map(|(b, n)| block_sum(line.header.salt, block.wrapping_add(n), b))
                .collect();
            (block, count as u64)
        }
        2 => (input.number(), input.number()),
        3 => (input.number(), 0),
        4 | 5 => {
            table = (0..4).map(|n| n * 3).collect();
            (input.number(), 4)
        }
        6 => {
            bytes.extend(input.blob());
            return true;
        }
        7 => {
            line.durable = if input.flag() { line.seq } else { input.number() };
            return true;
        }
        8 => {
            (line.seq, line.chain) = (line.seq ^ input.number(), line.chain ^ input.number());
            return true;
        }
        _ => return false,
    };
    let (seq, durable, chain) = (line.seq, line.durable, line.chain);
    let entry = Entry { kind: kind.max(1), block, count, seq, durable, chain, table, data };
    let (whole, sum) = entry.bytes(line.header.salt);
    bytes.extend(whole);
    (line.seq, line.chain) = (seq.wrapping_add(1), sum);
    true
}

/// What the log makes of the files is what the second reader makes of them; and it goes on.
fn judge(scratch: &Scratch, files: &Files) {
    let used_up = files.iter().any(|(number, _)| *number >= NUMBERS_END);
    let expected = if used_up { Err(Refused::Damaged) } else { log_reader::read(files) };
    let reading = match (WriteLog::open(scratch.path(), LIMITS, 99), expected) {
        (Err(Error::Damaged(_)), Err(_)) => return,
        (Ok((log, left)), Ok(reading)) => {
            same(&log, left, &reading);
            go_on(&log, &reading);
            reading
        }
        (found, expected) => panic!("{:?}, and not {expected:?}", found.map(|(_, left)| left)),
    };
    // What did not count does not come back, and what was written since is there.
    let again = log_reader::read(&numbered(scratch)).unwrap();
    assert_eq!(again.entries, reading.entries + 1);
    let (log, left) = WriteLog::open(scratch.path(), LIMITS, 5).unwrap();
    same(&log, left, &again);
    assert_eq!(block(&log, 3), Some(vec![0xab; BLOCK]));
    drop(log);
    WriteLog::remove(scratch.path()).unwrap();
    assert!(WriteLog::open(scratch.path(), LIMITS, 5).unwrap().1.is_none());
}

/// The log's files as they are now.
fn numbered(scratch: &Scratch) -> Files {
    let number = |(name, bytes): (String, Vec<u8>)| {
        Some((name.strip_suffix(".log")?.parse().unwrap(), bytes))
    };
    scratch.files().into_iter().filter_map(number).collect()
}

fn same(log: &WriteLog, left: Option<Left>, reading: &Reading) {
    let Some(left) = left else { return assert_eq!(reading.files, 0) };
    assert_eq!(left.entries, reading.entries);
    assert_eq!(left.torn, reading.torn);
    assert_eq!((left.size, left.generation), (reading.size, reading.generation));
    assert_eq!((left.base.seq, left.base.hash), (reading.point, reading.hash));
    assert_eq!(left.after_cut, reading.after_cut);
    assert_eq!(log.size(), reading.size);
    for number in reading.edges().into_iter().take(EDGES_MAX) {
        let expected = reading.block(number);
        assert_eq!(block(log, number), expected, "block {number}");
        assert_eq!(log.held(number, number + 1).0, expected.is_some());
    }
}

/// A block, if the log has it.
fn block(log: &WriteLog, number: u64) -> Option<Vec<u8>> {
    let (mut out, mut missing) = (vec![0xee; BLOCK], Vec::new());
    log.read(number, &mut out, &mut missing).unwrap();
    missing.is_empty().then_some(out)
}

/// It is written, flushed and cut like any other.
fn go_on(log: &WriteLog, reading: &Reading) {
    log.begin(Base { generation: 9, ..Base::default() }, 64 << 12).unwrap();
    assert_eq!(log.pending(), reading.entries > 0);
    log.write(3, &[0xab; BLOCK]).unwrap();
    let cut = log.cut().unwrap().unwrap();
    let mut out = vec![0; BLOCK];
    cut.read(3, &mut out).unwrap();
    assert_eq!(out, [0xab; BLOCK]);
    log.flush().unwrap();
}

fn seeds() -> Vec<Vec<u8>> {
    let repaired = |ops: &[&[u8]]| [&[1][..], &ops.concat()].concat();
    let (data, zero, size): (&[u8], &[u8], &[u8]) = (&[0, 3, 1, 9], &[2, 5, 4], &[3, 252, 9, 0]);
    let (base, durable, end): (&[u8], &[u8], &[u8]) = (&[5, 7], &[7, 1], &[9]);
    let mut out = vec![
        repaired(&[&[0], data, zero, data, size, base, end, &[0], data, durable, zero]),
        repaired(&[&[0], data, durable, data, &[6, 60, 0], &[0; 60], zero]),
        repaired(&[&[0], data, &[8, 1, 1], zero, end, &[0], zero]),
        repaired(&[&[0], data, end, &[1, 9], data]),
        repaired(&[&[0], &[2, 254, 1], &[2, 253, 253], &[3, 254], &[0, 254, 0, 1]]),
        // Numbers at their ends: of a file, of an entry, of a point, of a size.
        repaired(&[&[1, 254], data]),
        repaired(&[&[4, 254], data, zero]),
        repaired(&[&[2, 254], zero]),
        repaired(&[&[16, 254, 8, 254], zero, &[4, 254]]),
        repaired(&[&[192, 2], data]),
    ];
    for seed in out.clone() {
        let mut input = Input::new(&seed[1..]);
        let mut raw = vec![0];
        for (number, bytes) in self::repaired(&mut input) {
            raw.extend([255]);
            raw.extend(number.to_le_bytes());
            raw.extend((bytes.len().min(4000) as u16).to_le_bytes());
            raw.extend(&bytes[..bytes.len().min(4000)]);
        }
        out.push(raw);
    }
    out
}
