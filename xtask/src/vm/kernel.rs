//! Debian's kernel: the package is fetched once by apt, unpacked, and kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The package's name, as apt is asked for it.
const PATTERN: &str = r"^linux-image-6\.12\..*-cloud-amd64$";

/// A kernel and its modules.
pub struct Kernel {
    root: PathBuf,
    version: String,
    /// The path of each module, by its name.
    modules: Vec<(String, PathBuf)>,
}

impl Kernel {
    /// The one that is there, or a new one.
    pub fn fetch(place: &Path) -> Result<Self> {
        let root = place.join("kernel");
        if !root.join("lib/modules").is_dir() {
            unpack(place, &newest()?, &root)?;
        }
        let mut versions = fs::read_dir(root.join("lib/modules"))?;
        let version = versions.next().context("the kernel's package has no modules")??;
        let version = version.file_name().to_string_lossy().into_owned();
        let mut modules = Vec::new();
        collect(&root.join("lib/modules").join(&version), &mut modules)?;
        Ok(Self { root, version, modules })
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Where its package is unpacked.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is booted.
    pub fn file(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.version))
    }

    /// A module and those that it needs, in the order in which they are loaded: names and bytes.
    /// None of it where the kernel has it built in.
    pub fn module(&self, name: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let Some((_, path)) = self.modules.iter().find(|(known, _)| known == name) else {
            let builtin = self.root.join("lib/modules").join(&self.version).join("modules.builtin");
            let text = fs::read_to_string(&builtin).unwrap_or_default().replace('-', "_");
            if text.contains(&format!("/{name}.ko")) {
                return Ok(Vec::new());
            }
            bail!("the kernel has no module {name}");
        };
        let bytes = unpacked(path)?;
        let mut all = Vec::new();
        for needed in depends(&bytes) {
            all.extend(self.module(&needed)?);
        }
        all.push((name.to_owned(), bytes));
        Ok(all)
    }
}

/// All modules below a directory.
fn collect(directory: &Path, modules: &mut Vec<(String, PathBuf)>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let (path, kind) = entry.and_then(|e| Ok((e.path(), e.file_type()?)))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if kind.is_dir() {
            collect(&path, modules)?;
        } else if let Some((stem, "" | ".xz")) = name.split_once(".ko") {
            modules.push((stem.replace('-', "_"), path));
        }
    }
    Ok(())
}

fn unpacked(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|ending| ending == "ko") {
        return Ok(fs::read(path)?);
    }
    let out = Command::new("xz").arg("-dc").arg(path).stderr(Stdio::inherit()).output();
    let out = out.context("cannot start xz: apt-get install xz-utils")?;
    ensure!(out.status.success(), "xz cannot unpack {}", path.display());
    Ok(out.stdout)
}

/// The modules that one needs: `depends=a,b` among the texts that it carries.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let text = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(text).replace('-', "_");
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The name of the newest package that apt knows.
fn newest() -> Result<String> {
    for update in [false, true] {
        if update {
            let apt = Command::new("apt-get").args(["update", "-qq"]).status();
            ensure!(apt.is_ok_and(|s| s.success()), "apt-get update failed");
        }
        let out = Command::new("apt-cache").args(["search", PATTERN]).output()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let names = text.lines().filter_map(|line| line.split_whitespace().next());
        if let Some(newest) = names.max_by_key(|name| numbers(name)) {
            return Ok(newest.to_owned());
        }
    }
    bail!("apt knows no package {PATTERN}: Debian's sources are needed")
}

/// The numbers in a name: they order versions.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// Where a package is unpacked; it is fetched if it is not there.
pub fn package(place: &Path, name: &str) -> Result<PathBuf> {
    let root = place.join(name);
    if !root.is_dir() {
        unpack(place, name, &root)?;
    }
    Ok(root)
}

/// Fetches a package and unpacks it; there is no half of it.
fn unpack(place: &Path, name: &str, to: &Path) -> Result<()> {
    println!("fetching {name}");
    let fresh = place.join(format!("{name}.new"));
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh)?;
    let apt = Command::new("apt-get").args(["download", "-qq", name]).current_dir(&fresh).status();
    ensure!(apt.is_ok_and(|s| s.success()), "apt-get download {name} failed");
    let mut files = fs::read_dir(&fresh)?.filter_map(|entry| Some(entry.ok()?.path()));
    let deb = files.find(|path| path.extension().is_some_and(|ending| ending == "deb"));
    let deb = deb.with_context(|| format!("apt-get download {name} left no package"))?;
    let root = fresh.join("root");
    let dpkg = Command::new("dpkg").arg("-x").arg(&deb).arg(&root).status();
    ensure!(dpkg.is_ok_and(|s| s.success()), "dpkg -x {} failed", deb.display());
    fs::rename(&root, to)?;
    Ok(fs::remove_dir_all(&fresh)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs() {
        assert_eq!(depends(b"x\0license=GPL\0depends=a-b,c\0name=d\0"), ["a_b", "c"]);
        assert!(depends(b"x\0depends=\0name=d\0").is_empty());
        assert!(depends(b"x").is_empty());
    }

    #[test]
    fn versions_are_ordered_by_number() {
        assert!(numbers("linux-image-6.12.100+1-x") > numbers("linux-image-6.12.38+2-x"));
    }
}
