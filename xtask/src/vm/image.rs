//! What a machine boots from: files in memory, written as a cpio archive ("newc").
//!
//! Invariant: a program comes with every library that it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::kernel::Kernel;

/// Modules that every machine needs, for its disks.
const ALWAYS: &[&str] = &["virtio_blk"];
const BUSYBOX: &str = "/bin/busybox";

/// The first program: mounts, modules, the script, the end.
const INIT: &str = include_str!("scenes/init.sh");

/// Files of a machine, by their path without the first slash.
pub struct Image {
    files: BTreeMap<String, (u32, Vec<u8>)>,
    /// In the order in which they are loaded.
    modules: Vec<String>,
}

impl Image {
    /// With a shell, and what disks need.
    pub fn new(kernel: &Kernel) -> Result<Self> {
        let mut image = Self { files: BTreeMap::new(), modules: Vec::new() };
        let busybox = fs::read(BUSYBOX)
            .with_context(|| format!("cannot read {BUSYBOX}: apt-get install busybox-static"))?;
        image.file(BUSYBOX, &busybox, 0o755);
        image.program(Path::new("/bin/dash"), "/usr/bin/dash")?;
        image.file("/init", INIT.as_bytes(), 0o755);
        image.file("/etc/passwd", b"root:x:0:0::/:/bin/sh\n", 0o644);
        for module in ALWAYS {
            image.module(kernel, module)?;
        }
        Ok(image)
    }

    /// A file.
    pub fn file(&mut self, path: &str, bytes: &[u8], mode: u32) {
        let path = path.trim_start_matches('/').to_owned();
        self.files.insert(path, (0o100_000 | mode, bytes.to_vec()));
    }

    /// A program and its libraries.
    pub fn program(&mut self, from: &Path, to: &str) -> Result<()> {
        self.file(to, &stripped(from)?, 0o755);
        let out = Command::new("ldd").arg(from).output().context("cannot start ldd")?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(!text.contains("not found"), "{} lacks a library: {text}", from.display());
        for path in text.split_whitespace().filter(|word| word.starts_with('/')) {
            let path = path.trim_end_matches(':');
            if !self.files.contains_key(path.trim_start_matches('/')) {
                self.file(path, &fs::read(path)?, 0o755);
            }
        }
        Ok(())
    }

    /// A module of the kernel, and those that it needs.
    pub fn module(&mut self, kernel: &Kernel, name: &str) -> Result<()> {
        for (name, bytes) in kernel.module(name)? {
            if !self.modules.contains(&name) {
                self.file(&format!("/modules/{name}.ko"), &bytes, 0o644);
                self.modules.push(name);
            }
        }
        Ok(())
    }

    /// Writes the archive.
    pub fn write(mut self, to: &Path) -> Result<()> {
        let order = self.modules.join("\n") + "\n";
        self.file("/modules/order", order.as_bytes(), 0o644);
        let mut out = std::io::BufWriter::new(fs::File::create(to)?);
        let mut number = 0;
        let mut entry = |name: &str, mode: u32, bytes: &[u8]| -> std::io::Result<()> {
            number += 1;
            write_entry(&mut out, number, name, mode, bytes)
        };
        for directory in directories(&self.files) {
            entry(&directory, 0o040_755, b"")?;
        }
        for (name, (mode, bytes)) in &self.files {
            entry(name, *mode, bytes)?;
        }
        entry("TRAILER!!!", 0, b"")?;
        Ok(out.flush()?)
    }
}

/// A program without what only debuggers read: nine tenths of it, which would have to be unpacked.
pub fn stripped(from: &Path) -> Result<Vec<u8>> {
    let to = std::env::temp_dir().join(format!("dormouse-stripped-{}", std::process::id()));
    let strip = Command::new("strip").arg("-g").arg("-o").arg(&to).arg(from).output();
    // No strip here, or no program that it knows: as it is.
    let done = strip.is_ok_and(|out| out.status.success());
    let bytes = fs::read(if done { &to } else { from });
    let _ = fs::remove_file(&to);
    bytes.with_context(|| format!("cannot read {}", from.display()))
}

/// Every directory that a file is in, and some that must be there; parents first.
fn directories(files: &BTreeMap<String, (u32, Vec<u8>)>) -> BTreeSet<String> {
    let mut all: BTreeSet<String> =
        ["dev", "proc", "sys", "tmp", "run", "mnt"].map(str::to_owned).into();
    for name in files.keys() {
        let parts: Vec<&str> = name.split('/').collect();
        all.extend((1..parts.len()).map(|n| parts[..n].join("/")));
    }
    all
}

fn write_entry(
    out: &mut impl Write,
    number: usize,
    name: &str,
    mode: u32,
    bytes: &[u8],
) -> std::io::Result<()> {
    // Number, mode, user, group, links, time, length, four of devices, length of the name, sum.
    let fields = [number, mode as usize, 0, 0, 1, 0, bytes.len(), 0, 0, 0, 0, name.len() + 1, 0];
    out.write_all(b"070701")?;
    for field in fields {
        write!(out, "{field:08x}")?;
    }
    out.write_all(name.as_bytes())?;
    let padding = [0; 4];
    // The name ends with a zero; header and name, and the content, are padded to four bytes.
    let head = 110 + name.len() + 1;
    out.write_all(&padding[..1 + (4 - head % 4) % 4])?;
    out.write_all(bytes)?;
    out.write_all(&padding[..(4 - bytes.len() % 4) % 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded() {
        for (name, bytes) in [("a", &b""[..]), ("ab", b"x"), ("abc", b"xyz"), ("abcd", b"wxyz")] {
            let mut out = Vec::new();
            write_entry(&mut out, 1, name, 0o100_644, bytes).unwrap();
            assert_eq!(out.len() % 4, 0, "{name}");
            assert_eq!(&out[110..110 + name.len()], name.as_bytes());
            assert!(bytes.is_empty() || out[out.len() - 4..].starts_with(&bytes[..1]));
        }
    }

    #[test]
    fn parents_come_first() {
        let files = BTreeMap::from([("a/b/c".to_owned(), (0, Vec::new()))]);
        let all: Vec<String> = directories(&files).into_iter().collect();
        let at = |name: &str| all.iter().position(|n| n == name).unwrap();
        assert!(at("a") < at("a/b"));
    }
}
