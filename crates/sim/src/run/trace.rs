//! What happened, as lines and as one hash over them: the same seed gives the same.

use core::fmt;

/// The lines of a run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    /// How many.
    pub lines: u64,
    print: bool,
}

impl Trace {
    /// An empty trace; with `print` each line goes to standard error.
    pub const fn new(print: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, lines: 0, print }
    }

    /// Adds a line.
    #[expect(clippy::print_stderr, reason = "that is what it was asked for")]
    pub fn line(&mut self, now: u64, text: fmt::Arguments<'_>) {
        let line = format!("{:>9}.{:03} {text}", now / 1_000_000_000, now / 1_000_000 % 1000);
        self.lines += 1;
        for byte in line.bytes().chain([b'\n']) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.print {
            eprintln!("{line}");
        }
    }

    /// FNV-1a over all lines.
    pub const fn hash(&self) -> u64 {
        self.hash
    }
}
