//! An ext4 image of real files of this machine, made and changed without root and without a mount.
//!
//! `mke2fs -d` fills the image from a directory; `debugfs -w` changes it. Owns the choice of files:
//! the same machine and the same image size give the same choice, so that the steps after `make`
//! need no memory of it. The file system is clean by `e2fsck -f -n` after each step. Leaves to the
//! demo when each step runs and what it proves.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

const MIB: u64 = 1 << 20;
/// Content is at most this, and at most half of the image.
const CONTENT_MAX: u64 = 250 * MIB;
const LARGE_MAX: u64 = 60 * MIB;
const ADDED_MAX: u64 = 10 * MIB;
const SMALL_FILE_MAX: u64 = 8 * MIB;
/// Files looked at below one root; bounds the walk on a machine with a very large `/usr`.
const WALK_FILES_MAX: usize = 8_000;
/// Image sizes below this leave no room for the later steps.
pub const IMAGE_MIN: u64 = 64 * MIB;

/// The directory that `rename_directory` renames, before and after.
pub const DIRECTORY_OLD: &str = "/programs";
/// See [`DIRECTORY_OLD`].
pub const DIRECTORY_NEW: &str = "/programs-renamed";
/// The large file of the image.
pub const LARGE: &str = "/large.bin";
/// The second copy of [`LARGE`], written by `duplicate_large_file`.
pub const LARGE_COPY: &str = "/large-copy.bin";
/// The directory that `add_files` makes.
pub const ADDED: &str = "/added";

/// What a step put into the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Regular files.
    pub files: u64,
    /// Their bytes together.
    pub bytes: u64,
}

/// Makes `image`, of `size` bytes, with about 250 MiB of real files. What was at `image` is
/// replaced.
///
/// `scratch` is the demo's own directory; made if needed, and left empty by every step here.
pub fn make(image: &Path, scratch: &Path, size: u64) -> Result<Contents> {
    ensure!(
        size >= IMAGE_MIN,
        "an image of {size} bytes is too small for the demo: {IMAGE_MIN} bytes is the least"
    );
    let mke2fs = tool("mke2fs", "e2fsprogs")?;
    let plan = Plan::new(size)?;
    let staging = scratch.join("staging");
    remove_dir(&staging)?;
    let contents = plan.stage(&staging)?;

    let file = File::create(image).with_context(|| format!("cannot create {}", image.display()))?;
    file.set_len(size)
        .with_context(|| format!("cannot give {} its size of {size} bytes", image.display()))?;
    drop(file);
    let mut command = Command::new(mke2fs);
    command
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-E", "root_owner=0:0", "-d"])
        .arg(&staging)
        .arg(image)
        .arg(format!("{}k", size / 1024));
    run(command, "mke2fs")?;
    remove_dir(&staging)?;
    fsck(image)?;
    Ok(contents)
}

/// Writes about 10 MiB of files that the image does not hold yet into [`ADDED`].
pub fn add_files(image: &Path, scratch: &Path) -> Result<Contents> {
    let plan = Plan::new(image_size(image)?)?;
    let staging = scratch.join("added");
    remove_dir(&staging)?;
    create_dir(&staging)?;
    let mut script = format!("mkdir {ADDED}\n");
    let mut contents = Contents { files: 0, bytes: 0 };
    for (number, source) in plan.added.iter().enumerate() {
        let name = format!("{number:04}");
        contents.bytes += copy(&source.path, &staging.join(&name))?;
        contents.files += 1;
        script.push_str(&format!("write {name} {ADDED}/{name}\n"));
    }
    debugfs(image, &staging, &script)?;
    remove_dir(&staging)?;
    fsck(image)?;
    Ok(contents)
}

/// Renames [`DIRECTORY_OLD`] to [`DIRECTORY_NEW`], within the root directory.
///
/// A link to the inode under the new name, then the old name goes: reference counts and `..` stay
/// right because the parent is the same.
pub fn rename_directory(image: &Path, scratch: &Path) -> Result<()> {
    create_dir(scratch)?;
    let script = format!("ln {DIRECTORY_OLD} {DIRECTORY_NEW}\nunlink {DIRECTORY_OLD}\n");
    debugfs(image, scratch, &script)?;
    fsck(image)
}

/// The bytes that [`LARGE`] has in an image of this size, where enough files are found.
pub fn large_size(image_size: u64) -> u64 {
    LARGE_MAX.min(content_size(image_size) / 4)
}

fn content_size(image_size: u64) -> u64 {
    CONTENT_MAX.min(image_size / 2)
}

/// Writes the content of [`LARGE`] a second time, as [`LARGE_COPY`]; returns its bytes.
pub fn duplicate_large_file(image: &Path, scratch: &Path) -> Result<u64> {
    create_dir(scratch)?;
    let staged = scratch.join("large.bin");
    debugfs(image, scratch, &format!("dump {LARGE} large.bin\n"))?;
    let bytes = fs::metadata(&staged)
        .with_context(|| format!("debugfs did not write {}", staged.display()))?
        .len();
    debugfs(image, scratch, &format!("write large.bin {LARGE_COPY}\n"))?;
    fs::remove_file(&staged).with_context(|| format!("cannot remove {}", staged.display()))?;
    fsck(image)?;
    Ok(bytes)
}

/// Checks the file system in `image` without changing it; anything but clean is an error.
pub fn fsck(image: &Path) -> Result<()> {
    let mut command = Command::new(tool("e2fsck", "e2fsprogs")?);
    command.args(["-f", "-n"]).arg(image);
    run(command, "e2fsck")
        .with_context(|| format!("the file system in {} is not clean", image.display()))?;
    Ok(())
}

/// The files that go into an image.
struct Plan {
    groups: Vec<Group>,
    large: Vec<Source>,
    large_size: u64,
    added: Vec<Source>,
}

/// One directory of the image.
struct Group {
    name: &'static str,
    files: Vec<Source>,
}

#[derive(Clone)]
struct Source {
    path: PathBuf,
    size: u64,
}

impl Plan {
    fn new(image_size: u64) -> Result<Self> {
        let content_size = content_size(image_size);
        let large_size = large_size(image_size);
        let roots = roots();
        let group_size = (content_size - large_size) / roots.len() as u64;
        let mut added_size = ADDED_MAX.min(content_size / 8);
        let mut plan =
            Self { groups: Vec::new(), large: Vec::new(), large_size, added: Vec::new() };
        let mut left_over = Vec::new();
        for (name, root) in roots {
            let mut found = walk(&root);
            // By a hash of the path: a fair sample of the tree, the same one each time.
            found.sort_by_key(|source| (path_hash(&source.path), source.size));
            let mut rest = found.into_iter();
            if plan.added.is_empty() {
                plan.added = take(&mut rest, added_size);
                added_size = 0;
            }
            let files = take(&mut rest, group_size);
            left_over.extend(rest);
            plan.groups.push(Group { name, files });
        }
        // The large file prefers one real file; else it is a concatenation.
        let one = left_over
            .iter()
            .find(|source| source.size >= large_size && source.size <= 4 * large_size);
        plan.large = match one {
            Some(source) => vec![source.clone()],
            None => take_past(left_over.into_iter(), large_size),
        };
        let found = total(&plan.large).min(large_size)
            + plan.groups.iter().map(|g| total(&g.files)).sum::<u64>();
        ensure!(
            found >= content_size / 4 && !plan.added.is_empty() && !plan.large.is_empty(),
            "the demo needs about {} MiB of readable files under /usr, and found {} MiB",
            content_size / 4 / MIB,
            found / MIB
        );
        Ok(plan)
    }

    fn stage(&self, staging: &Path) -> Result<Contents> {
        let mut contents = Contents { files: 0, bytes: 0 };
        create_dir(staging)?;
        for group in &self.groups {
            for (number, source) in group.files.iter().enumerate() {
                // 256 files in a directory, as on a real system, under names that cannot collide.
                let directory = staging.join(group.name).join(format!("{:02}", number / 256));
                create_dir(&directory)?;
                let name = source.path.file_name().unwrap_or(OsStr::new("file"));
                let mut target = format!("{number:05}-").into_bytes();
                target.extend_from_slice(name.as_encoded_bytes());
                target.truncate(200);
                contents.bytes += copy(&source.path, &directory.join(bytes_as_path(&target)))?;
                contents.files += 1;
            }
        }
        contents.bytes += self.stage_large(&staging.join(LARGE.trim_start_matches('/')))?;
        contents.files += 1;
        Ok(contents)
    }

    fn stage_large(&self, target: &Path) -> Result<u64> {
        let mut out =
            File::create(target).with_context(|| format!("cannot create {}", target.display()))?;
        let mut left = self.large_size;
        for source in &self.large {
            let file = File::open(&source.path)
                .with_context(|| format!("cannot read {}", source.path.display()))?;
            left -= io::copy(&mut file.take(left), &mut out).with_context(|| {
                format!("cannot copy {} to {}", source.path.display(), target.display())
            })?;
        }
        Ok(self.large_size - left)
    }
}

/// The directories of the image and where their files come from.
fn roots() -> Vec<(&'static str, PathBuf)> {
    let mut roots = vec![
        ("documents", PathBuf::from("/usr/share")),
        ("programs", PathBuf::from("/usr/bin")),
        ("libraries", PathBuf::from("/usr/lib")),
    ];
    let rustup = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".rustup")))
        .map(|home| home.join("toolchains"))
        .filter(|toolchains| fs::read_dir(toolchains).is_ok());
    roots.extend(rustup.map(|toolchains| ("toolchain", toolchains)));
    roots
}

/// Readable, non-empty regular files below `root`, breadth first in the order of their names; what
/// cannot be read is passed over. Symbolic links are not followed.
fn walk(root: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    let mut waiting = VecDeque::from([root.to_path_buf()]);
    while let Some(directory) = waiting.pop_front() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                waiting.push_back(entry.path());
            } else if metadata.is_file() && metadata.len() > 0 && File::open(entry.path()).is_ok() {
                found.push(Source { path: entry.path(), size: metadata.len() });
            }
            if found.len() >= WALK_FILES_MAX {
                return found;
            }
        }
    }
    found
}

/// Files until `size` is reached; larger ones than a small file stay behind.
fn take(files: &mut std::vec::IntoIter<Source>, size: u64) -> Vec<Source> {
    let mut taken = Vec::new();
    let mut left = size;
    let mut behind = Vec::new();
    for source in files.by_ref() {
        if source.size <= SMALL_FILE_MAX.min(left) {
            left -= source.size;
            taken.push(source);
        } else {
            behind.push(source);
        }
    }
    *files = behind.into_iter();
    taken
}

/// Files until `size` is passed.
fn take_past(files: impl Iterator<Item = Source>, size: u64) -> Vec<Source> {
    let mut sum = 0;
    files
        .take_while(|source| {
            let wanted = sum < size;
            sum += source.size;
            wanted
        })
        .collect()
}

fn total(files: &[Source]) -> u64 {
    files.iter().map(|source| source.size).sum()
}

/// FNV-1a, 64 bits.
fn path_hash(path: &Path) -> u64 {
    path.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn bytes_as_path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(OsStr::from_bytes(bytes))
}

fn image_size(image: &Path) -> Result<u64> {
    Ok(fs::metadata(image)
        .with_context(|| format!("cannot find the image {}", image.display()))?
        .len())
}

/// Copies content only: no owner, no mode, so that a set-user-id program arrives as a plain file.
fn copy(source: &Path, target: &Path) -> Result<u64> {
    let mut from =
        File::open(source).with_context(|| format!("cannot read {}", source.display()))?;
    let mut to =
        File::create(target).with_context(|| format!("cannot create {}", target.display()))?;
    io::copy(&mut from, &mut to)
        .with_context(|| format!("cannot copy {} to {}", source.display(), target.display()))
}

fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path)
        .with_context(|| format!("cannot create the directory {}", path.display()))
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove the directory {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Runs a script of debugfs commands on `image`, with `directory` as working directory.
///
/// debugfs exits with 0 when a command failed, so anything on standard error beyond its own version
/// line counts as failure.
fn debugfs(image: &Path, directory: &Path, script: &str) -> Result<()> {
    let image = std::path::absolute(image)?;
    let mut command = Command::new(tool("debugfs", "e2fsprogs")?);
    command.args(["-w", "-f", "-"]).arg(&image).current_dir(directory);
    let errors = run_with_input(command, "debugfs", script)?;
    let errors: Vec<_> = errors.lines().filter(|line| !line.starts_with("debugfs ")).collect();
    ensure!(errors.is_empty(), "debugfs failed on {}: {}", image.display(), errors.join("; "));
    Ok(())
}

fn run(command: Command, name: &str) -> Result<String> {
    run_with_input(command, name, "")
}

/// Runs a program in the C locale, feeds it `input`, and returns its standard error.
fn run_with_input(mut command: Command, name: &str, input: &str) -> Result<String> {
    let mut child = command
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let mut stdin = child.stdin.take().with_context(|| format!("{name} has no standard input"))?;
    let input = input.to_owned();
    // On its own thread, so that neither pipe can fill up while the other is waited for.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {name}"))?;
    // A program that ends early leaves a broken pipe; its exit status tells the rest.
    let written = writer.join().is_ok_and(|result| result.is_ok());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() || !written {
        let said = String::from_utf8_lossy(&output.stdout);
        bail!("{name} ended with {}: {}", output.status, tail(&format!("{said}{errors}")));
    }
    Ok(errors)
}

/// The last lines of a program's output, for an error message.
fn tail(output: &str) -> String {
    let lines: Vec<_> = output.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].join("; ")
}

/// Finds a program in PATH, or where Debian keeps administrators' programs.
fn tool(name: &str, package: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let administrators = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(administrators)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            format!(
                "{name} is missing, neither in PATH nor in /usr/sbin: apt-get install {package}"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = tool("no-such-program", "some-package").unwrap_err().to_string();
        assert!(
            error.contains("no-such-program") && error.contains("apt-get install some-package"),
            "{error}"
        );
    }

    #[test]
    fn the_large_file_of_the_usual_image_is_60_mib() {
        assert_eq!(large_size(512 * MIB), 60 * MIB);
        assert_eq!(large_size(IMAGE_MIN), 8 * MIB);
    }

    #[test]
    fn an_image_that_is_too_small_is_refused() {
        let error =
            make(Path::new("never-made"), Path::new("never-made"), MIB).unwrap_err().to_string();
        assert!(error.contains("too small"), "{error}");
        assert!(!Path::new("never-made").exists());
    }

    #[test]
    fn the_choice_of_files_is_the_same_each_time() {
        let paths = |plan: &Plan| -> Vec<_> {
            plan.groups
                .iter()
                .flat_map(|g| &g.files)
                .chain(&plan.added)
                .map(|s| s.path.clone())
                .collect()
        };
        let (Ok(one), Ok(two)) = (Plan::new(IMAGE_MIN), Plan::new(IMAGE_MIN)) else {
            eprintln!("SKIPPED: this machine has too few files under /usr");
            return;
        };
        assert_eq!(paths(&one), paths(&two));
        let mut all = paths(&one);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), paths(&one).len(), "no file is taken twice");
    }
}
