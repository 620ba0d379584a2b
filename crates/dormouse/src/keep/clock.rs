//! The clocks of the machine that keeps the store, and the mark of what was believed of them.
//!
//! Owns: the file `expiry-clock` of a store. Invariant: it is written only when the clock was
//! believed, or an administrator said that it is right. Leaves to others: the judgement
//! (`dormouse_store::retention::clock`).

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result};
use dormouse_format::message::Refusal;
use dormouse_store::retention::clock::{Clocks, Mark};
use dormouse_sync::server::Refused;
use rustix::time::{ClockId, clock_gettime};

use crate::files;
use crate::text::now_ns;

const FILE: &str = "expiry-clock";

/// The mark of a store.
#[derive(Debug)]
pub struct ClockFile {
    path: PathBuf,
    /// One at a time reads and writes it.
    one: Mutex<()>,
}

impl ClockFile {
    /// Of the store in this directory.
    pub fn of(store: &std::path::Path) -> Self {
        prepare();
        Self { path: store.join(FILE), one: Mutex::new(()) }
    }

    /// Whether points may expire by this clock. `confirmed`: it is right, from now on.
    pub fn holds(&self, confirmed: bool) -> Result<(), Refused> {
        self.judge(confirmed, &clocks())
    }

    fn judge(&self, confirmed: bool, now: &Clocks) -> Result<(), Refused> {
        let _one = self.one.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |e: anyhow::Error| Refused::new(Refusal::Internal, format!("{e:#}"));
        let text = files::read_within(&self.path, 4096).map_err(failed)?;
        let known = text.map(|text| Mark::from_text(&String::from_utf8_lossy(&text)));
        let judged = match known {
            // Nothing has expired yet, or the operator has taken it away.
            None => Ok(Mark::new(*now)),
            Some(_) if confirmed => Ok(Mark::new(*now)),
            Some(known) => known.and_then(|mark| mark.judge(*now)),
        };
        let mark = judged.map_err(|doubt| {
            let text = format!(
                "nothing expires: {doubt}. If the clock is right, an administrator says so: \
                 dormouse prune --clock-is-right"
            );
            Refused::new(Refusal::Conflict, text)
        })?;
        if !confirmed && known == Some(Ok(mark)) {
            return Ok(());
        }
        files::replace(&self.path, mark.to_text().as_bytes(), 0o600).map_err(failed)
    }
}

/// Reads once what a jail may hide later.
pub fn prepare() {
    let _ = boot();
}

fn clocks() -> Clocks {
    let since_boot = clock_gettime(ClockId::Boottime);
    let since_boot = since_boot.tv_sec as u64 * 1_000_000_000 + since_boot.tv_nsec as u64;
    Clocks { wall: now_ns(), since_boot, boot: boot() }
}

/// Names this start of the machine; zeros where the kernel does not say, and then only the
/// clocks tell one start from another.
fn boot() -> [u8; 16] {
    static BOOT: OnceLock<[u8; 16]> = OnceLock::new();
    *BOOT.get_or_init(|| read_boot().unwrap_or_default())
}

fn read_boot() -> Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    crate::text::unhex_array(&hex).context("the boot's id is none")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000_000_000;

    #[test]
    fn a_doubt_stays_until_it_is_confirmed() {
        let dir = tempfile::tempdir().unwrap();
        let clock = ClockFile::of(dir.path());
        let at = |hours: u64, since: u64| Clocks {
            wall: (1000 + hours) * HOUR,
            since_boot: since * HOUR,
            boot: [1; 16],
        };
        clock.judge(false, &at(0, 1)).unwrap();
        clock.judge(false, &at(1, 2)).unwrap();
        for _ in 0..2 {
            let refused = clock.judge(false, &at(9, 3)).unwrap_err();
            assert_eq!(refused.refusal, Refusal::Conflict);
            assert!(refused.text.contains("7 h 0 min further"), "{}", refused.text);
            assert!(refused.text.contains("--clock-is-right"), "{}", refused.text);
        }
        clock.judge(true, &at(9, 3)).unwrap();
        clock.judge(false, &at(10, 4)).unwrap();
        assert!(clock.judge(false, &at(3, 5)).unwrap_err().text.contains("gone back"));
        std::fs::write(dir.path().join(FILE), "x").unwrap();
        assert!(clock.judge(false, &at(10, 4)).unwrap_err().text.contains("cannot be read"));
        assert!(clocks().since_boot > 0 && boot() != [0; 16]);
    }
}
