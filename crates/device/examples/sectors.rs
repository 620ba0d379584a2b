//! Writes a disk whose every sector says when it was written, and judges what is left of it.
//!
//! `sectors write DISK SEED [--blocks N] [--writes N]` writes blocks of 4 KiB past the system's
//! cache, in an order that the seed decides, flushes now and then, and prints `flushed SEQUENCE`
//! when a flush has returned. `sectors verify DISK SEED [--blocks N] [--at-least SEQUENCE]
//! [--prefix] [--boundary]` fails if a sector holds anything but a write of its own address; if
//! one lacks a write that was flushed at `--at-least`; with `--prefix`, if the disk is not as it
//! was after some one write; with `--boundary`, if no flush came right after that one.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

const SECTOR: usize = 512;
const BLOCK: usize = 4096;
const MAGIC: &[u8; 8] = b"sectors1";
/// A flush comes after one in so many writes.
const FLUSH_EVERY: u64 = 12;
const DIRECT: i32 = libc::O_DIRECT;

type Failed = Box<dyn std::error::Error>;

/// Numbers that look random: the same for the same two.
const fn mixed(seed: u64, n: u64) -> u64 {
    let mut z = seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What a seed decides.
#[derive(Clone, Copy)]
struct Plan {
    seed: u64,
    blocks: u64,
}

impl Plan {
    /// The block that the write with this number goes to; the first is 1.
    const fn block(self, sequence: u64) -> u64 {
        mixed(self.seed, sequence * 2) % self.blocks
    }

    /// Whether a flush comes after it.
    const fn flushes(self, sequence: u64) -> bool {
        mixed(self.seed, sequence * 2 + 1).is_multiple_of(FLUSH_EVERY)
    }
}

/// A sector as the write with this number makes it.
fn sector(seed: u64, address: u64, sequence: u64) -> [u8; SECTOR] {
    let mut out = [0; SECTOR];
    out[..8].copy_from_slice(MAGIC);
    out[8..16].copy_from_slice(&seed.to_le_bytes());
    out[16..24].copy_from_slice(&address.to_le_bytes());
    out[24..32].copy_from_slice(&sequence.to_le_bytes());
    for (n, word) in out[32..].chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&mixed(seed ^ address, sequence ^ (n as u64) << 48).to_le_bytes());
    }
    out
}

/// The write that a sector is of; 0 if it was never written.
fn sequence_of(bytes: &[u8; SECTOR], seed: u64, address: u64) -> Result<u64, Failed> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let number: [u8; 8] = bytes[24..32].try_into()?;
    let sequence = u64::from_le_bytes(number);
    if *bytes != sector(seed, address, sequence) {
        return Err(format!("sector {address} holds what was never written there").into());
    }
    Ok(sequence)
}

/// Bytes of a block, where the system wants them for direct writes.
struct Aligned(Vec<u8>, usize);

impl Aligned {
    fn new() -> Self {
        let bytes = vec![0; BLOCK * 2];
        let at = bytes.as_ptr().align_offset(BLOCK);
        Self(bytes, at)
    }

    fn block(&mut self) -> &mut [u8] {
        &mut self.0[self.1..self.1 + BLOCK]
    }
}

fn write(path: &str, plan: Plan, writes: u64) -> Result<(), Failed> {
    let disk = OpenOptions::new().write(true).custom_flags(DIRECT).open(path)?;
    let mut buffer = Aligned::new();
    for sequence in 1..=writes {
        let block = plan.block(sequence);
        for (n, bytes) in buffer.block().chunks_exact_mut(SECTOR).enumerate() {
            bytes.copy_from_slice(&sector(plan.seed, block * 8 + n as u64, sequence));
        }
        disk.write_all_at(buffer.block(), block * BLOCK as u64)?;
        if plan.flushes(sequence) {
            disk.sync_data()?;
            println!("flushed {sequence}");
        }
    }
    disk.sync_data()?;
    println!("flushed {writes}");
    Ok(())
}

/// What is judged.
#[derive(Default)]
struct Wanted {
    at_least: u64,
    prefix: bool,
    boundary: bool,
}

fn verify(path: &str, plan: Plan, wanted: &Wanted) -> Result<(), Failed> {
    let disk = File::open(path)?;
    let mut found = Vec::new();
    let mut bytes = [0; SECTOR];
    for address in 0..plan.blocks * 8 {
        disk.read_exact_at(&mut bytes, address * SECTOR as u64)?;
        found.push(sequence_of(&bytes, plan.seed, address)?);
    }
    let newest = found.iter().copied().max().unwrap_or(0);
    judge(plan, &found, newest, wanted)?;
    println!("verified: the newest write is {newest}, {} were flushed", wanted.at_least);
    Ok(())
}

fn judge(plan: Plan, found: &[u64], newest: u64, wanted: &Wanted) -> Result<(), Failed> {
    if newest < wanted.at_least {
        return Err(format!("write {} was flushed, the newest is {newest}", wanted.at_least).into());
    }
    // Of each block the last write up to a flush, and up to the newest.
    let mut flushed = vec![0; plan.blocks as usize];
    let mut last = flushed.clone();
    for sequence in 1..=newest {
        let block = plan.block(sequence) as usize;
        last[block] = sequence;
        if sequence <= wanted.at_least {
            flushed[block] = sequence;
        }
    }
    for (address, sequence) in found.iter().enumerate() {
        let (block, sequence) = (address / 8, *sequence);
        if sequence > 0 && plan.block(sequence) as usize != block {
            return Err(format!("write {sequence} never went to sector {address}").into());
        }
        if sequence < flushed[block] {
            let lost = flushed[block];
            return Err(format!("sector {address} has write {sequence}: {lost} was flushed").into());
        }
        if wanted.prefix && sequence != last[block] {
            let text = format!("write {} is missing in sector {address}", last[block]);
            return Err(format!("{text}, but write {newest} is there").into());
        }
    }
    if wanted.boundary && newest > 0 && !plan.flushes(newest) {
        return Err(format!("no flush came after write {newest}").into());
    }
    Ok(())
}

fn main() -> Result<(), Failed> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [what, path, seed, rest @ ..] = args.as_slice() else {
        return Err("sectors write|verify DISK SEED …".into());
    };
    let mut plan = Plan { seed: seed.parse()?, blocks: 1024 };
    let (mut writes, mut wanted) = (u64::MAX, Wanted::default());
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        let mut number = || rest.next().and_then(|n| n.parse().ok()).ok_or("a number is missing");
        match word.as_str() {
            "--blocks" => plan.blocks = number()?,
            "--writes" => writes = number()?,
            "--at-least" => wanted.at_least = number()?,
            "--prefix" => wanted.prefix = true,
            "--boundary" => wanted.boundary = true,
            _ => return Err(format!("what is {word}?").into()),
        }
    }
    match what.as_str() {
        "write" => write(path, plan, writes),
        "verify" => verify(path, plan, &wanted),
        _ => Err(format!("what is {what}?").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { seed: 3, blocks: 16 };

    /// The disk after some writes.
    fn after(writes: u64) -> Vec<u64> {
        let mut found = vec![0; 128];
        for sequence in 1..=writes {
            let first = PLAN.block(sequence) as usize * 8;
            found[first..first + 8].fill(sequence);
        }
        found
    }

    fn judged(found: &[u64], at_least: u64, prefix: bool) -> Result<(), String> {
        let newest = *found.iter().max().unwrap();
        let wanted = Wanted { at_least, prefix, boundary: false };
        judge(PLAN, found, newest, &wanted).map_err(|e| e.to_string())
    }

    #[test]
    fn a_prefix_is_good_and_each_lost_sector_is_found() {
        for writes in [0, 1, 40, 41] {
            judged(&after(writes), writes, true).unwrap();
        }
        let whole = after(40);
        for lost in 0..whole.len() {
            let mut found = whole.clone();
            if found[lost] == 0 {
                continue;
            }
            found[lost] = after(39)[lost].min(found[lost] - 1);
            if PLAN.block(found[lost]) as usize != lost / 8 {
                found[lost] = 0;
            }
            assert!(judged(&found, 40, false).is_err(), "sector {lost} was flushed");
            assert!(judged(&found, 0, true).is_err() || found == after(39), "sector {lost}");
        }
        assert!(judged(&after(39), 40, false).is_err());
        judged(&after(41), 40, false).unwrap();
    }

    #[test]
    fn a_boundary_is_a_write_before_a_flush() {
        let wanted = Wanted { at_least: 0, prefix: true, boundary: true };
        let good: Vec<u64> = (1..60).filter(|n| PLAN.flushes(*n)).collect();
        assert!(!good.is_empty() && good.len() < 30);
        for n in 1..60 {
            assert_eq!(judge(PLAN, &after(n), n, &wanted).is_ok(), good.contains(&n), "{n}");
        }
    }

    #[test]
    fn every_flipped_byte_of_a_sector_is_found() {
        let good = sector(3, 9, 77);
        assert_eq!(sequence_of(&good, 3, 9).unwrap(), 77);
        for at in 0..SECTOR {
            let mut bad = good;
            bad[at] ^= 1;
            assert!(sequence_of(&bad, 3, 9).is_err(), "byte {at}");
        }
        assert!(sequence_of(&good, 3, 10).is_err(), "another address");
        assert_eq!(sequence_of(&[0; SECTOR], 3, 9).unwrap(), 0);
    }
}
