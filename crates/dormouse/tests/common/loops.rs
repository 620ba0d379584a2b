//! Loop devices, and file systems to put on them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device on a file; detached when dropped.
pub struct Loop(pub PathBuf);

impl Loop {
    /// `None`, and a line that says why, where there are none.
    pub fn attach(file: &Path, more: &[&str]) -> Option<Self> {
        let mut losetup = Command::new("losetup");
        let out = match losetup.args(["--show", "-f"]).args(more).arg(file).output() {
            Ok(out) => out,
            Err(e) => {
                eprintln!("SKIPPED: no losetup here: {e}");
                return None;
            }
        };
        if !out.status.success() {
            eprintln!("SKIPPED: no loop devices here: {}", String::from_utf8_lossy(&out.stderr));
            return None;
        }
        Some(Self(String::from_utf8(out.stdout).unwrap().trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// A file of 16 MiB with an empty ext4; false, and a line that says why, if it cannot be.
pub fn make_ext4(path: &Path) -> bool {
    std::fs::File::create(path).unwrap().set_len(16 << 20).unwrap();
    let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(path).status();
    let made = made.is_ok_and(|s| s.success());
    if !made {
        eprintln!("SKIPPED: mke2fs is not here");
    }
    made
}
