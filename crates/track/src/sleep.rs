//! How the machine has slept: in memory, or by an image on disk.
//!
//! Owns: telling hibernation from suspending. While a machine is suspended nobody writes to its disks
//! unseen. When it hibernates, the image is written after the bitmaps are in it, and while it is off
//! another system may write anything; so the marks that wake up with it do not tell all.
//! Invariant: what is not known to be a mere suspend counts as hibernation.
//!
//! The kernel does not say that it has hibernated. But the clocks tell how long it slept in all
//! (`CLOCK_BOOTTIME` goes on meanwhile, `CLOCK_MONOTONIC` does not), and it counts how often it was
//! suspended. A sleep that this count does not explain was another kind of sleep.

use std::fs;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Two readings of the clocks differ by less for other reasons.
const TOLERANCE_MS: u64 = 500;

/// All sleep since the machine was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slept {
    /// How long.
    pub ms: u64,
    /// How often it was suspended; 0 where the kernel does not tell.
    pub suspends: u64,
}

impl Slept {
    /// Until now.
    pub fn now() -> Self {
        let ms = |time: Timespec| time.tv_sec * 1000 + time.tv_nsec / 1_000_000;
        let monotonic = ms(clock_gettime(ClockId::Monotonic));
        let slept = ms(clock_gettime(ClockId::Boottime)) - monotonic;
        let text = fs::read_to_string("/sys/power/suspend_stats/success").unwrap_or_default();
        Self { ms: u64::try_from(slept).unwrap_or(0), suspends: text.trim().parse().unwrap_or(0) }
    }

    /// Whether it may have hibernated between this and `now`. One sleep is told from another only
    /// if it is looked each time the machine wakes: `looked` says that it was.
    pub const fn hibernated(&self, now: &Self, looked: bool) -> bool {
        let slept = now.ms > self.ms + TOLERANCE_MS || now.ms + TOLERANCE_MS < self.ms;
        slept && !(looked && now.suspends == self.suspends + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_that_is_no_suspend_is_hibernation() {
        let at = |ms, suspends| Slept { ms, suspends };
        let before = at(10_000, 3);
        for (now, looked, hibernated) in [
            (at(10_000, 3), true, false),
            (at(10_400, 3), false, false),
            (at(70_000, 4), true, false),
            // The image was written; the count knows nothing of it.
            (at(70_000, 3), true, true),
            // One of two sleeps may have been one; nobody was there to look.
            (at(70_000, 5), true, true),
            (at(70_000, 4), false, true),
            // An image brings old clocks back.
            (at(2_000, 3), true, true),
        ] {
            assert_eq!(before.hibernated(&now, looked), hibernated, "{now:?} {looked}");
        }
        assert!(!Slept::now().hibernated(&Slept::now(), false), "this machine is awake");
    }
}
