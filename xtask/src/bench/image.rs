//! The disk images of the benchmark, made once and kept.
//!
//! `base` is an ext4 file system filled with real files of this machine by `mke2fs -d`, a fair
//! sample of its software by a hash of the path. `changed` is the same image with 5 % of its
//! non-zero blocks replaced, half of them in runs of 16 and half alone, at places from a fixed
//! pseudo-random sequence. New content is another block of the image with every byte combined by
//! XOR with one key of that block: as compressible as real content, and equal to no block that is
//! already there. The file system of `changed` is not consistent, which no program here looks at.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::measure;
use crate::random::SplitMix;

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
const CHANGED_PERCENT: u64 = 5;
const RUN_BLOCKS: usize = 16;
const FILE_MAX: u64 = 200 * MIB;
const SEED: u64 = 0x6d6f_7573_6531;

/// The two images, and the path at which programs see them.
pub struct Images {
    base: PathBuf,
    changed: PathBuf,
    disk: PathBuf,
    /// Size of the disk.
    pub size: u64,
    /// Bytes in blocks that are not zero.
    pub used: u64,
    /// Bytes in blocks that `changed` replaced.
    pub replaced: u64,
}

impl Images {
    /// Makes the images in `directory`, or takes those of an earlier call.
    pub fn prepare(directory: &Path, quick: bool) -> Result<Self> {
        let (size, content) =
            if quick { (1024 * MIB, 330 * MIB) } else { (4096 * MIB, 1330 * MIB) };
        let base = directory.join(format!("base-{}.img", size / MIB));
        let changed = directory.join(format!("changed-{}.img", size / MIB));
        if !base.exists() || !changed.exists() {
            eprintln!("making the images");
            // Both appear under their names when they are whole.
            let (new_base, new_changed) =
                (directory.join("base.new"), directory.join("changed.new"));
            make_base(&new_base, &directory.join("staging"), size, content)?;
            make_changed(&new_base, &new_changed, size)?;
            fs::rename(&new_base, &base)?;
            fs::rename(&new_changed, &changed)?;
        }
        let (mut used, mut replaced) = (0, 0);
        each_block_pair(&base, &changed, size, |_, one, two| {
            used += u64::from(!is_zero(one)) * BLOCK as u64;
            replaced += u64::from(one != two) * BLOCK as u64;
            Ok(())
        })?;
        Ok(Self { base, changed, disk: directory.join("disk.img"), size, used, replaced })
    }

    /// The path that programs copy.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// Puts the first state of the disk in place.
    pub fn put_base(&self) -> Result<()> {
        self.put(&self.base)
    }

    /// Puts the second state of the disk in place.
    pub fn put_changed(&self) -> Result<()> {
        self.put(&self.changed)
    }

    /// One line for the reader.
    pub fn describe(&self) -> String {
        format!(
            "image: {} MiB, {} MiB of it not zero, {} MiB changed before the second copy",
            self.size / MIB,
            self.used / MIB,
            self.replaced / MIB
        )
    }

    /// Writes the blocks in which the disk differs from `source`, in place, and warms the page
    /// cache.
    fn put(&self, source: &Path) -> Result<()> {
        let disk = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.disk)
            .with_context(|| format!("cannot open {}", self.disk.display()))?;
        disk.set_len(self.size)?;
        each_block_pair(source, &self.disk, self.size, |offset, wanted, present| {
            if wanted == present { Ok(()) } else { disk.write_all_at(wanted, offset) }
        })?;
        // The time of the change must be seen by programs that trust it.
        disk.set_modified(std::time::SystemTime::now())?;
        measure::warm(&self.disk)
    }
}

fn make_base(image: &Path, staging: &Path, size: u64, content: u64) -> Result<()> {
    if staging.exists() {
        fs::remove_dir_all(staging)?;
    }
    let mut roots = vec![
        (PathBuf::from("/usr/lib"), 40),
        (PathBuf::from("/usr/bin"), 13),
        (PathBuf::from("/usr/share"), 15),
    ];
    let toolchains =
        env::home_dir().map(|home| home.join(".rustup/toolchains")).filter(|path| path.is_dir());
    roots.extend(toolchains.map(|path| (path, 32)));
    let shares: u64 = roots.iter().map(|(_, share)| share).sum();
    let mut staged = 0;
    for (number, (root, share)) in roots.iter().enumerate() {
        staged += stage(root, &staging.join(format!("{number}")), content * share / shares)?;
    }
    ensure!(
        staged >= content / 2,
        "this machine has too few files for the image: {} MiB of {} MiB",
        staged / MIB,
        content / MIB
    );
    let file = File::create(image).with_context(|| format!("cannot create {}", image.display()))?;
    file.set_len(size)?;
    let program =
        if Path::new("/usr/sbin/mke2fs").exists() { "/usr/sbin/mke2fs" } else { "mke2fs" };
    let output = Command::new(program)
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-E", "root_owner=0:0", "-d"])
        .args([staging, image])
        .output()
        .context("mke2fs is not installed: apt-get install e2fsprogs")?;
    ensure!(output.status.success(), "mke2fs: {}", String::from_utf8_lossy(&output.stderr).trim());
    fs::remove_dir_all(staging)?;
    Ok(())
}

/// Copies files below `root` to `target` until `budget`; the choice is by a hash of the path.
fn stage(root: &Path, target: &Path, budget: u64) -> Result<u64> {
    let mut files = Vec::new();
    walk(root, &mut files);
    files.sort_by_key(|(path, _)| path_hash(path));
    let mut left = budget;
    for (path, size) in files {
        if size > left.min(FILE_MAX) {
            continue;
        }
        let copy = target.join(path.strip_prefix(root)?);
        let parent = copy.parent().context("a file has a directory")?;
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        let Ok(mut source) = File::open(&path) else { continue };
        let mut file =
            File::create(&copy).with_context(|| format!("cannot create {}", copy.display()))?;
        left = left.saturating_sub(io::copy(&mut source, &mut file)?);
    }
    Ok(budget - left)
}

fn walk(directory: &Path, files: &mut Vec<(PathBuf, u64)>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            walk(&entry.path(), files);
        } else if metadata.is_file() && metadata.len() > 0 {
            files.push((entry.path(), metadata.len()));
        }
    }
}

fn make_changed(base: &Path, changed: &Path, size: u64) -> Result<()> {
    let mut used = Vec::new();
    each_block_pair(base, base, size, |offset, block, _| {
        if !is_zero(block) {
            used.push(offset);
        }
        Ok(())
    })?;
    let wanted = used.len() as u64 * CHANGED_PERCENT / 100;
    let mut random = SplitMix::new(SEED);
    let mut chosen = BTreeSet::new();
    while (chosen.len() as u64) < wanted / 2 {
        let start = random.below(used.len());
        chosen.extend(used.iter().skip(start).take(RUN_BLOCKS).copied());
    }
    while (chosen.len() as u64) < wanted {
        chosen.insert(used[random.below(used.len())]);
    }

    let source = File::open(base)?;
    let target =
        File::create(changed).with_context(|| format!("cannot create {}", changed.display()))?;
    target.set_len(size)?;
    let mut donor = vec![0; BLOCK];
    each_block_pair(base, base, size, |offset, block, _| {
        if !chosen.contains(&offset) {
            return if is_zero(block) { Ok(()) } else { target.write_all_at(block, offset) };
        }
        loop {
            source.read_exact_at(&mut donor, used[random.below(used.len())])?;
            let key = 1 + random.below(255) as u8;
            donor.iter_mut().for_each(|byte| *byte ^= key);
            if !is_zero(&donor) && donor != block {
                return target.write_all_at(&donor, offset);
            }
        }
    })
}

/// Calls `each` with offset and content of every block of two files of `size` bytes.
fn each_block_pair(
    one: &Path,
    two: &Path,
    size: u64,
    mut each: impl FnMut(u64, &[u8], &[u8]) -> io::Result<()>,
) -> Result<()> {
    let open =
        |path: &Path| File::open(path).with_context(|| format!("cannot read {}", path.display()));
    let (one, two) = (open(one)?, open(two)?);
    let (mut buffer_one, mut buffer_two) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    for base in (0..size).step_by(MIB as usize) {
        one.read_exact_at(&mut buffer_one, base)?;
        two.read_exact_at(&mut buffer_two, base)?;
        let blocks = buffer_one.chunks_exact(BLOCK).zip(buffer_two.chunks_exact(BLOCK));
        for (index, (block_one, block_two)) in blocks.enumerate() {
            each(base + (index * BLOCK) as u64, block_one, block_two)?;
        }
    }
    Ok(())
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().fold(0, |bits, byte| bits | byte) == 0
}

/// FNV-1a, 64 bits.
fn path_hash(path: &Path) -> u64 {
    path.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
