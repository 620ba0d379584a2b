//! Short waits inside the kernel while it freezes.
//!
//! A freeze waits for three grace periods of RCU, one after the other, two of them with writers
//! held already. Measured, that is 30 ms of a freeze that else takes less than 1 ms. The kernel
//! has a switch for the whole system that makes them short, at the price of an interrupt on each
//! processor (`/sys/kernel/rcu_expedited`; `rcu_normal` overrules it, for machines that cannot
//! bear that). It is on only from the start of a freeze to its last file system.
//!
//! Invariant: whoever turns it on had found it off, and turns it off; where it is on already, it is
//! left alone. So several users of it end where they began. Leaves to others: when.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// The switch, open: nothing is opened while something is frozen.
pub struct Hurry {
    switch: Option<File>,
    on: bool,
}

impl Hurry {
    /// Finds the switch; without it freezes just take longer.
    pub fn new() -> Hurry {
        let switch = OpenOptions::new().read(true).write(true).open(SWITCH).ok();
        Hurry { switch, on: false }
    }

    /// Whether there is a switch, and the right to it.
    pub fn is_possible(&self) -> bool {
        self.switch.is_some()
    }

    /// Whether the switch is off.
    pub fn is_calm(&self) -> bool {
        let mut text = [0; 2];
        let read = self.switch.as_ref().map(|switch| switch.read_at(&mut text, 0));
        matches!(read, Some(Ok(1..))) && text[0] == b'0'
    }

    /// Turns it on, if it is off.
    pub fn start(&mut self) {
        self.on = self.is_calm() && self.set(b"1");
    }

    /// Turns it off, if [`start`](Self::start) turned it on.
    pub fn stop(&mut self) {
        if self.on {
            self.calm();
            self.on = false;
        }
    }

    /// Turns it off for a helper that cannot any more.
    pub fn calm(&self) {
        self.set(b"0");
    }

    fn set(&self, value: &[u8]) -> bool {
        self.switch.as_ref().is_some_and(|switch| switch.write_at(value, 0).is_ok())
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        self.stop();
    }
}
