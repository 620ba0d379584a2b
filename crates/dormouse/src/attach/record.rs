//! What is attached on this machine: a record for each device, in the runtime directory.
//!
//! Invariants: a record is there before the caller of `attach` hears of the device, and until the
//! device is gone; a process that has ended, or another one with its number, is never taken for
//! the one that serves; who changes something about a device holds its lock. Records do not
//! outlive the boot.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dormouse_device::kernel::Via;
use dormouse_format::TimeNs;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::files::{self, Lock};

/// Where records are, for tests.
const PLACE: &str = "DORMOUSE_ATTACHED";

/// A device, and who serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Where it is.
    pub device: PathBuf,
    /// By which way: as `--via` has it.
    pub via: String,
    /// Its number.
    pub number: u32,
    /// What the kernel was told that it is.
    pub label: String,
    /// VOLUME[@WHEN], as it was typed.
    pub what: String,
    /// The volume.
    pub volume: String,
    /// The point.
    pub point: u64,
    /// When the server received the point.
    pub time: TimeNs,
    /// The point's grade.
    pub grade: String,
    /// Bytes.
    pub size: u64,
    /// Where it is mounted by `--mount`.
    pub mount: Option<PathBuf>,
    /// The file that takes what is written, by `--overlay`.
    pub overlay: Option<PathBuf>,
    /// Whether the volume itself is written.
    #[serde(default)]
    pub written: bool,
    /// The process that serves it.
    pub pid: i32,
    /// When that process was started, as the kernel counts: with its number it is known for
    /// certain.
    pub started: u64,
    /// How taking it away went wrong, if it did.
    pub failed: Option<String>,
}

impl Record {
    /// By which way; none if another version of the program has made it.
    pub fn via(&self) -> Option<Via> {
        Via::named(&self.via)
    }

    /// A descriptor of the process that serves, if it lives.
    pub fn process(&self) -> Option<std::os::fd::OwnedFd> {
        let pid = Some(self.pid).filter(|pid| *pid > 0).and_then(Pid::from_raw)?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Looked at after the descriptor is there: it stays with that process.
        (started(self.pid)? == self.started).then_some(fd)
    }

    /// Whether it was dead and the kernel still has the disk, so that another may serve it.
    pub fn can_resume(&self) -> bool {
        let there = |via: Via| via.can_resume() && via.is_there(self.number, &self.label);
        self.process().is_none() && self.via().is_some_and(there)
    }
}

/// When a process was started; none if there is none, or it has ended and nobody has asked how.
pub fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may have any character.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// All records of this machine.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// Of this user: root has those of the machine.
    pub fn locate() -> Self {
        let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let of_user = || from("XDG_RUNTIME_DIR").filter(|_| !rustix::process::geteuid().is_root());
        let dir = from(PLACE)
            .or_else(|| of_user().map(|dir| dir.join("dormouse/attached")))
            .unwrap_or_else(|| "/run/dormouse/attached".into());
        Self { dir }
    }

    fn path(&self, device: &Path, ending: &str) -> PathBuf {
        let name = device.file_name().unwrap_or_default().to_string_lossy();
        self.dir.join(format!("{name}.{ending}"))
    }

    /// Takes the lock of a device; the owner's process id if another has it.
    pub fn lock(&self, device: &Path) -> Result<Result<Lock, String>> {
        files::make_dir(&self.dir)?;
        Lock::take(&self.path(device, "lock"))
    }

    /// Writes a record. The caller holds the lock.
    pub fn write(&self, record: &Record) -> Result<()> {
        files::make_dir(&self.dir)?;
        files::replace(&self.path(&record.device, "json"), &serde_json::to_vec(record)?, 0o600)
    }

    /// Removes what is kept of a device. The lock's file stays: others may be waiting for it.
    pub fn remove(&self, device: &Path) -> Result<()> {
        files::remove(&self.path(device, "json"))
    }

    /// What is wished of a device's process, or its answer.
    pub fn wish(&self, device: &Path) -> Result<Option<String>> {
        let bytes = files::read_opt(&self.path(device, "resize"))?;
        Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()))
    }

    /// Writes a wish, or an answer.
    pub fn write_wish(&self, device: &Path, text: &str) -> Result<()> {
        files::replace(&self.path(device, "resize"), text.as_bytes(), 0o600)
    }

    /// Removes a wish that was answered.
    pub fn remove_wish(&self, device: &Path) -> Result<()> {
        files::remove(&self.path(device, "resize"))
    }

    /// Where the process of a device logs to.
    pub fn log(&self, device: &Path) -> PathBuf {
        self.path(device, "log")
    }

    /// All, by the device's name. What cannot be understood is left alone.
    pub fn all(&self) -> Result<Vec<Record>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", self.dir.display())),
        };
        let mut records = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "json") {
                let Some(bytes) = files::read_opt(&path)? else { continue };
                records.extend(serde_json::from_slice::<Record>(&bytes).ok());
            }
        }
        records.sort_by(|a, b| a.device.cmp(&b.device));
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pid: i32, started: u64) -> Record {
        Record {
            device: "/dev/loop77".into(),
            via: "fuse".into(),
            number: 77,
            label: "root@17".into(),
            what: "root@latest".into(),
            volume: "root".into(),
            point: 17,
            time: 5,
            grade: "settled".into(),
            size: 4096,
            mount: Some("/mnt".into()),
            overlay: None,
            written: false,
            pid,
            started,
            failed: None,
        }
    }

    #[test]
    fn records_come_back_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records { dir: dir.path().join("attached") };
        assert!(records.all().unwrap().is_empty());
        let one = record(1, 2);
        let lock = records.lock(&one.device).unwrap().unwrap();
        assert!(records.lock(&one.device).unwrap().is_err(), "one at a time");
        records.write(&one).unwrap();
        std::fs::write(dir.path().join("attached/nbd0.json"), "{}").unwrap();
        assert_eq!(records.all().unwrap(), std::slice::from_ref(&one));
        assert_eq!(one.via(), Some(Via::Fuse));
        records.remove(&one.device).unwrap();
        records.remove(&one.device).unwrap();
        drop(lock);
        assert!(records.all().unwrap().is_empty());
    }

    #[test]
    fn another_process_of_the_same_number_is_not_it() {
        let own = std::process::id() as i32;
        let since = started(own).unwrap();
        assert!(record(own, since).process().is_some());
        assert!(record(own, since + 1).process().is_none());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let (pid, since) = (child.id() as i32, started(child.id() as i32));
        child.wait().unwrap();
        assert!(record(pid, since.unwrap_or(0)).process().is_none());
        assert!(record(-1, 0).process().is_none());
    }
}
