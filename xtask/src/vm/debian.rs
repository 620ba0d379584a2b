//! A Debian that starts as one on a machine of its own does: its initramfs is made by initramfs-tools,
//! its services are run by systemd.
//!
//! Owns: its root, made once by mmdebstrap from the sources of this machine's apt, and kept. Invariant:
//! there is no half of it, and nothing stays mounted here. Leaves to others: what is put into it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::kernel::Kernel;
use super::machine;

/// Beside those without which there is no Debian.
const PACKAGES: &str = "systemd-sysv,udev,kmod,initramfs-tools,busybox,e2fsprogs";
/// Mounts end with it. `$0` is the root, `$1` what is run there.
const INSIDE: &str = r#"mount -t proc proc "$0/proc"; exec chroot "$0" /bin/sh -ec "$1""#;

/// A root.
pub struct Debian {
    root: PathBuf,
}

/// Why none can be made here.
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("only root can make a Debian".into());
    }
    let needed = ["mmdebstrap", "unshare", "chroot", "mke2fs"];
    let missing = needed.into_iter().find(|name| machine::find(name).is_none());
    missing.map(|name| format!("{name} is not here (packages mmdebstrap, util-linux, e2fsprogs)"))
}

impl Debian {
    /// The one that is there, or a new one; with a kernel's modules.
    pub fn made(place: &Path, kernel: &Kernel) -> Result<Self> {
        let root = place.join("debian");
        if !root.is_dir() {
            let fresh = place.join("debian.new");
            let _ = fs::remove_dir_all(&fresh);
            make(place, &fresh)?;
            let made = Self { root: fresh };
            made.take_kernel(kernel)?;
            fs::rename(&made.root, &root)?;
        }
        Ok(Self { root })
    }

    /// Modules and configuration, as the kernel's package would leave them.
    fn take_kernel(&self, kernel: &Kernel) -> Result<()> {
        for (from, to) in [("lib/modules", "usr/lib/"), ("boot", ".")] {
            let mut copy = Command::new("cp");
            copy.arg("-a").arg(kernel.root().join(from)).arg(self.root.join(to));
            done(&mut copy)?;
        }
        self.run(&format!("depmod {}", kernel.version()))
    }

    /// Writes a file of it.
    pub fn file(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let path = self.root.join(path.trim_start_matches('/'));
        let parent = path.parent().context("a file has no directory")?;
        fs::create_dir_all(parent)?;
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(mode))?)
    }

    /// Runs a line of shell in it.
    pub fn run(&self, line: &str) -> Result<()> {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--", "/bin/sh", "-ec", INSIDE]).arg(&self.root).arg(line);
        done(unshare.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))
    }

    /// Has initramfs-tools make what it boots from; copies that to a file.
    pub fn initrd(&self, kernel: &Kernel, to: &Path) -> Result<()> {
        let made = self.root.join(format!("boot/initrd.img-{}", kernel.version()));
        let _ = fs::remove_file(&made);
        self.run(&format!("update-initramfs -c -k {}", kernel.version()))?;
        fs::copy(&made, to).with_context(|| format!("no {}", made.display()))?;
        Ok(())
    }

    /// Writes a disk with all of it.
    pub fn disk(&self, to: &Path, bytes: u64) -> Result<()> {
        fs::File::create(to)?.set_len(bytes)?;
        done(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&self.root).arg(to))
    }
}

fn make(place: &Path, to: &Path) -> Result<()> {
    println!("making a Debian");
    let sources = sources()?;
    let list = place.join("debian.list");
    fs::write(&list, &sources)?;
    let suite = sources.split_whitespace().nth(2).unwrap_or_default();
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--quiet", "--mode=root", "--variant=essential"]);
    mmdebstrap.arg(format!("--include={PACKAGES}"));
    for spare in ["doc", "man", "locale"] {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{spare}/*"));
    }
    done(mmdebstrap.arg(suite).arg(to).arg(&list))
}

/// Where this machine's apt finds Debian, as it would be written in its own list.
fn sources() -> Result<String> {
    let format = "--format=deb $(REPO_URI) $(RELEASE) $(COMPONENT)";
    let wanted = ["Created-By: Packages", "Origin: Debian"];
    let out = Command::new("apt-get").arg("indextargets").arg(format).args(wanted).output();
    let out = out.context("cannot start apt-get")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure!(text.starts_with("deb "), "apt-get knows no sources of Debian");
    Ok(text)
}

/// Runs a program; what it says is told if it fails.
fn done(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command.output().with_context(|| format!("cannot start {name}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{name} {}: {said}", out.status);
    Ok(())
}
