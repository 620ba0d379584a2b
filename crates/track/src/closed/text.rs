//! The text of what is kept of a mirror that was closed: a word and its values a line.
//!
//! Invariant: what is read is exactly what was written, all of it and in its order, or nothing; no
//! line makes more memory than it is long. Who keeps the text proves that it is whole.

use std::fmt::Write;
use std::str::{FromStr, SplitAsciiWhitespace};

use super::{Closed, Count, Counted, Look, Samples};
use crate::device::Written;
use crate::dirty::Dirty;
use crate::disk_id::DiskId;

/// The first line: what this is, and its version.
const FIRST: &str = "closed 1";
/// More runs of blocks are not kept: a scan is soon as quick.
pub const RUNS_MAX: usize = 1 << 16;

impl Closed {
    /// As text, whose last line is not closed; none if it is too long to be kept.
    pub fn to_text(&self) -> Option<String> {
        let mut out = format!("{FIRST}\n");
        let look = &self.look;
        let _ = writeln!(out, "volume {}", hex(&self.volume));
        let _ = writeln!(out, "head {} {} {}", hex(&self.head), self.seq, self.generation);
        let _ = writeln!(out, "boot {}", look.boot);
        let _ = writeln!(out, "range {} {}", look.first, look.sectors);
        let _ = writeln!(out, "emulated {}", u8::from(look.emulated));
        if let Some(w) = look.written {
            let _ =
                writeln!(out, "written {} {} {} {}", w.writes, w.sectors, w.discards, w.flushes);
        }
        if let Some(c) = &look.counted {
            let n = &c.count;
            let flags = (u8::from(c.shared), u8::from(c.uncounted));
            let _ =
                writeln!(out, "serial {}\nmodel {}\nfirmware {}", c.serial, c.model, c.firmware);
            let _ = writeln!(out, "namespace {} {} {} {}", c.namespace, c.blocks, flags.0, flags.1);
            let counts = (n.writes, n.reads, n.power_cycles, n.unsafe_shutdowns);
            let (a, b, c, d) = counts;
            let _ = writeln!(out, "count {a} {b} {c} {d} {}", n.used);
        }
        for line in look.id.to_text().lines() {
            let _ = writeln!(out, "id {line}");
        }
        let _ = writeln!(out, "salt {}", hex(&self.samples.salt));
        for (block, check) in &self.samples.blocks {
            let _ = writeln!(out, "sample {block} {}", hex(check));
        }
        let runs = self.dirty.all_runs();
        if runs.len() > RUNS_MAX {
            return None;
        }
        for (first, count) in runs {
            let _ = writeln!(out, "dirty {first} {count}");
        }
        out.push_str("end");
        Some(out)
    }

    /// Of such a text.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut lines = Lines { rest: text.lines() };
        if lines.rest.next()? != FIRST {
            return None;
        }
        let volume = unhex(lines.only("volume")?)?;
        let mut words = lines.words("head")?;
        let (head, seq, generation) = (unhex(words.next()?)?, next(&mut words)?, next(&mut words)?);
        let boot = lines.only("boot")?.to_owned();
        let mut range = lines.words("range")?;
        let (first, sectors) = (next(&mut range)?, next(&mut range)?);
        let emulated = flag(lines.only("emulated")?)?;
        let written = lines.written();
        let counted = lines.counted();
        let mut id = String::new();
        while let Some(line) = lines.value("id") {
            id.push_str(line);
            id.push('\n');
        }
        let look =
            Look { boot, id: DiskId::from_text(&id)?, first, sectors, written, counted, emulated };
        let samples = lines.samples()?;
        let dirty = lines.dirty(sectors.div_ceil(8))?;
        let closed = Self { volume, head, seq, generation, look, samples, dirty };
        // What was passed over, or was there twice, makes another text.
        (closed.to_text()? == text).then_some(closed)
    }
}

struct Lines<'a> {
    rest: std::str::Lines<'a>,
}

impl<'a> Lines<'a> {
    /// The rest of the next line, if it begins with this word.
    fn value(&mut self, word: &str) -> Option<&'a str> {
        let mut ahead = self.rest.clone();
        let value = ahead.next()?.strip_prefix(word)?.strip_prefix(' ')?;
        self.rest = ahead;
        Some(value)
    }

    fn words(&mut self, word: &str) -> Option<SplitAsciiWhitespace<'a>> {
        self.value(word).map(str::split_ascii_whitespace)
    }

    fn only(&mut self, word: &str) -> Option<&'a str> {
        self.words(word)?.next()
    }

    fn written(&mut self) -> Option<Written> {
        let mut words = self.words("written")?;
        let mut number = || next(&mut words);
        let (writes, sectors, discards) = (number()?, number()?, number()?);
        Some(Written { writes, sectors, discards, flushes: number()? })
    }

    fn counted(&mut self) -> Option<Counted> {
        let serial = self.value("serial")?.to_owned();
        let model = self.value("model")?.to_owned();
        let firmware = self.value("firmware")?.to_owned();
        let mut words = self.words("namespace")?;
        let (namespace, blocks) = (next(&mut words)?, next(&mut words)?);
        let (shared, uncounted) = (flag(words.next()?)?, flag(words.next()?)?);
        let mut words = self.words("count")?;
        let mut number = || next(&mut words);
        let (writes, reads, power_cycles) = (number()?, number()?, number()?);
        let (unsafe_shutdowns, used) = (number()?, number()?);
        let count = Count { writes, reads, power_cycles, unsafe_shutdowns, used };
        Some(Counted { serial, model, firmware, namespace, blocks, shared, uncounted, count })
    }

    fn samples(&mut self) -> Option<Samples> {
        let salt = unhex(self.only("salt")?)?;
        let mut blocks: Vec<(u64, [u8; 16])> = Vec::new();
        while let Some(mut words) = self.words("sample") {
            let block = next(&mut words)?;
            if blocks.last().is_some_and(|(before, _)| *before >= block) {
                return None;
            }
            blocks.push((block, unhex(words.next()?)?));
        }
        Some(Samples { salt, blocks })
    }

    /// All of it lies below `end`.
    fn dirty(&mut self, end: u64) -> Option<Dirty> {
        let mut dirty = Dirty::default();
        let mut from = 0;
        while let Some(mut words) = self.words("dirty") {
            let (first, count): (u64, u64) = (next(&mut words)?, next(&mut words)?);
            let to = first.checked_add(count).filter(|to| *to <= end)?;
            if first < from || count == 0 {
                return None;
            }
            dirty.add_behind(first..to);
            from = to;
        }
        Some(dirty)
    }
}

fn next<T: FromStr>(words: &mut SplitAsciiWhitespace<'_>) -> Option<T> {
    words.next()?.parse().ok()
}

fn flag(word: &str) -> Option<bool> {
    match word {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(out)
}
