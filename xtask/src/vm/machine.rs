//! An emulated machine: booted, listened to, ended.
//!
//! Invariant: it does not outlive its handle, and no scene hangs for ever.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const QEMU: &str = "qemu-system-x86_64";
/// MiB of memory: all files of a machine lie there.
const MEMORY: &str = "1024";
/// What the first program says last, with the script's status.
const END: &str = "MACHINE-END ";
/// Faults of processors that need care are not those of an emulated one, whose timer may be late on a
/// machine that has much else to do.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check";

/// Why no machine can be emulated here.
pub fn missing() -> Option<String> {
    let needed = [
        (QEMU, "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("apt-get", "apt"),
        ("dpkg", "dpkg"),
        ("xz", "xz-utils"),
    ];
    let missing = needed.iter().filter(|(program, _)| find(program).is_none());
    let missing: Vec<String> =
        missing.map(|(program, package)| format!("{program} (package {package})")).collect();
    (!missing.is_empty()).then(|| format!("not installed: {}", missing.join(", ")))
}

/// Where a program is.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/sbin", "/usr/sbin"].map(PathBuf::from);
    let mut places = std::env::split_paths(&path).chain(more).map(|dir| dir.join(name));
    places.find(|path| path.is_file())
}

/// Arguments for a disk by an emulated NVMe controller, which counts the writes of its guests as long
/// as qemu runs: the count goes on over their starts.
pub fn nvme(file: &Path) -> [String; 4] {
    let drive = format!("if=none,id=nvme,format=raw,discard=unmap,file={}", file.display());
    ["-drive".into(), drive, "-device".into(), "nvme,drive=nvme,serial=dormouse-1".into()]
}

/// One that runs.
pub struct Machine {
    qemu: Child,
    log: PathBuf,
    since: Instant,
}

impl Machine {
    /// Boots a kernel; disks are `/dev/vda` and so on.
    pub fn boot(kernel: &Path, initrd: &Path, disks: &[&Path]) -> Result<Self> {
        Self::boot_with(kernel, initrd, disks, "", &["-no-reboot".into()])
    }

    /// The same with more arguments, of the kernel and of qemu. Without `-no-reboot` it may start
    /// itself anew.
    pub fn boot_with(
        kernel: &Path,
        initrd: &Path,
        disks: &[&Path],
        arguments: &str,
        more: &[String],
    ) -> Result<Self> {
        let log = initrd.with_extension("log");
        let mut qemu = Command::new(QEMU);
        qemu.args(["-M", "q35", "-cpu", "max", "-smp", "2"])
            .args(["-accel", "tcg,thread=multi", "-m", MEMORY, "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-serial", "stdio", "-nic", "none"])
            .args(["-append", &format!("{KERNEL_ARGUMENTS} {arguments}")])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initrd);
        for (n, disk) in disks.iter().enumerate() {
            let file = format!("if=none,id=d{n},format=raw,file={}", disk.display());
            let device = format!("virtio-blk-pci,drive=d{n}");
            qemu.args(["-drive", &file, "-device", &device]);
        }
        qemu.args(more);
        let out = File::create(&log)?;
        qemu.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let qemu = qemu.spawn().with_context(|| format!("cannot start {QEMU}"))?;
        Ok(Self { qemu, log, since: Instant::now() })
    }

    /// What it has said so far.
    pub fn said(&self) -> Result<String> {
        let bytes = std::fs::read(&self.log)?;
        Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
    }

    /// Waits for its end; the status of its script.
    pub fn wait(mut self, limit: Duration, log: &mut String) -> Result<i32> {
        while self.qemu.try_wait()?.is_none() {
            if self.since.elapsed() > limit {
                log.push_str(&self.said()?);
                bail!("not done after {} s", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let said = self.said()?;
        log.push_str(&said);
        let status =
            said.lines().rev().find_map(|line| line.strip_prefix(END)?.trim().parse().ok());
        status.context("the machine has ended without a word about its script")
    }

    /// Waits until it has said something that fits, and gives it so long.
    pub fn wait_for(&mut self, limit: Duration, fits: impl Fn(&str) -> bool) -> Result<String> {
        loop {
            let said = self.said()?;
            if fits(&said) {
                return Ok(said);
            }
            if self.qemu.try_wait()?.is_some() || self.since.elapsed() > limit {
                bail!("what was waited for has not come; the machine said:\n{said}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes its power away; what it has said until then.
    pub fn cut_power(mut self) -> Result<String> {
        self.qemu.kill()?;
        self.qemu.wait()?;
        self.said()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
