//! A loop device of its own, and pins; all of it is gone when dropped.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use dormouse_track::ebpf;
use rustix::fs::{CWD, FileType, Mode};

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub struct Place {
    directory: Option<tempfile::TempDir>,
    pub device: PathBuf,
    name: String,
}

impl Place {
    /// None, and a loud line, where there are no rights or tools.
    pub fn new(size: u64) -> Option<Self> {
        let skip = |why: &str| {
            eprintln!("SKIPPED: {why}: the tracker is not tested here");
            None
        };
        if !rustix::process::geteuid().is_root() {
            return skip("not root");
        }
        if !Path::new("/sys/kernel/btf/vmlinux").exists() {
            return skip("this kernel has no BTF");
        }
        let bpf = ebpf::place().parent().unwrap();
        let mounted = std::fs::read_to_string("/proc/mounts").unwrap();
        if !mounted.lines().any(|l| l.split(' ').nth(1) == bpf.to_str()) {
            let out = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(bpf).output().unwrap();
            if !out.status.success() {
                return skip("no BPF file system");
            }
        }
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = directory.path().join("disk");
        std::fs::File::create(&file).unwrap().set_len(size).unwrap();
        let out = Command::new("losetup").args(["-P", "-f", "--show"]).arg(&file).output();
        let Some(out) = out.ok().filter(|out| out.status.success()) else {
            return skip("no loop device");
        };
        let device = PathBuf::from(String::from_utf8(out.stdout).unwrap().trim());
        Some(Self { directory: Some(directory), device, name: name() })
    }

    /// A partition of this one, as a place. Its node is made here: nobody else may do so.
    pub fn part(&self, number: u32) -> Self {
        let disk = self.device.file_name().unwrap().to_str().unwrap();
        let in_sysfs = format!("/sys/block/{disk}/{disk}p{number}/dev");
        wait_for(Path::new(&in_sysfs));
        let text = std::fs::read_to_string(in_sysfs).unwrap();
        let (major, minor) = text.trim().split_once(':').unwrap();
        let device = self.path(&format!("part{number}"));
        let rdev = rustix::fs::makedev(major.parse().unwrap(), minor.parse().unwrap());
        let (kind, mode) = (FileType::BlockDevice, Mode::RUSR | Mode::WUSR);
        rustix::fs::mknodat(CWD, &device, kind, mode, rdev).unwrap();
        Self { directory: None, device, name: name() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.as_ref().unwrap().path().join(name)
    }

    pub fn pins(&self) -> PathBuf {
        ebpf::place().join(&self.name)
    }

    pub fn partition(&self, table: &str) {
        let mut child = Command::new("sfdisk")
            .arg("-q")
            .arg(&self.device)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), table.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        // A kernel that reads no tables itself has to be told; one that does has done it.
        let _ = Command::new("partx").arg("-a").arg(&self.device).output();
    }

    pub fn resize(&self, size: u64) {
        let file = std::fs::OpenOptions::new().write(true).open(self.path("disk")).unwrap();
        file.set_len(size).unwrap();
        assert!(Command::new("losetup").arg("-c").arg(&self.device).status().unwrap().success());
    }
}

fn name() -> String {
    format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

fn wait_for(path: &Path) {
    for _ in 0..100 {
        if path.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("{} does not appear", path.display());
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = ebpf::remove(&self.pins());
        if self.directory.is_some() {
            let _ = Command::new("partx").arg("-d").arg(&self.device).output();
            let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
        }
    }
}

/// Whether a program is here; a loud line if not.
pub fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED: no {program} here");
    }
    found
}

/// Runs a program, if it is here; it must succeed.
pub fn run(program: &str, with: impl FnOnce(&mut Command) -> &mut Command) -> Option<Output> {
    if !has(program) {
        return None;
    }
    let out = with(&mut Command::new(program)).output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{program}: {text}");
    Some(out)
}
