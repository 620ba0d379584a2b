//! A disk by FUSE and a loop device: for kernels that have neither ublk nor NBD.
//!
//! Owns: a file system with one file, mounted nowhere (a mount that has no path, so nobody else
//! gets at the file, and a killed process leaves none behind), and a loop device on that file.
//! Invariant: nothing is kept in memory twice: the loop device reads and writes directly, and the
//! file system keeps nothing. When the process dies requests fail at once, and the loop device
//! stays, useless, until [`remove`].
//! Leaves to others: what is done with the device.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::kernel::{self, Front, Options, Via, about};
use crate::{BlockDevice, Result};

mod loop_device;
mod session;
mod wire;

use session::Session;

const FUSE: &str = "/dev/fuse";

/// Whether this kernel has it, and this process may use it.
pub fn probe() -> io::Result<()> {
    open_fuse()?;
    fs_context().map(drop)?;
    loop_device::probe()
}

fn open_fuse() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(FUSE, flags, Mode::empty()).map_err(|e| about(format!("no FUSE: {FUSE}"), e))
}

fn fs_context() -> io::Result<OwnedFd> {
    rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| about("a FUSE file system cannot be mounted", e))
}

/// Whether a loop device of this number and name is there.
pub fn is_there(number: u32, label: &str) -> bool {
    loop_device::file_on(number).is_some_and(|file| file == format!("/{}", file_name(label)))
}

/// Takes a loop device away whose process has died.
pub fn remove(number: u32) -> Result<()> {
    Ok(loop_device::clear(number)?)
}

/// A disk on a loop device.
pub struct FuseLoop {
    number: u32,
    session: Arc<Session>,
    /// The file, only to ask for its size.
    file: OwnedFd,
    /// Keeps the file system until the loop device is gone.
    _mount: OwnedFd,
}

impl FuseLoop {
    /// Gives the kernel a disk.
    pub fn attach(disk: Arc<dyn BlockDevice>, how: &Options) -> Result<Self> {
        let read_only = disk.geometry().read_only;
        let name = file_name(&how.label);
        let (fuse, mount) = mount()?;
        let session = Session::start(fuse, disk, &name)?;
        let open = |flags| {
            rustix::fs::openat(&mount, name.as_str(), flags | OFlags::CLOEXEC, Mode::empty())
                .map_err(|e| about("the file behind the loop device cannot be opened", e))
        };
        let file = open(OFlags::PATH)?;
        let backing = open(if read_only { OFlags::RDONLY } else { OFlags::RDWR })?;
        let number = loop_device::configure(backing.as_fd(), read_only, &how.label)?;
        Ok(Self { number, session, file, _mount: mount })
    }
}

impl Front for FuseLoop {
    fn via(&self) -> Via {
        Via::Fuse
    }

    fn number(&self) -> u32 {
        self.number
    }

    fn resized(&self) -> Result<()> {
        // The answer tells the kernel the size; the loop device looks at what it then knows.
        rustix::fs::fstat(&self.file).map_err(io::Error::from)?;
        Ok(loop_device::size_changed(self.number)?)
    }

    fn ended(&self, within: Duration) -> bool {
        self.session.ended(within)
    }

    fn stop(&self, patience: Duration) -> Result<()> {
        let number = self.number;
        let done =
            kernel::take_away(&self.path(), patience, &|| self.session.refuse(), move || {
                remove(number)
            });
        // Whoever still has the device open is not waited for.
        if !self.session.ended(Duration::from_millis(500)) {
            self.session.refuse();
        }
        done
    }
}

/// A name that shows in lists which disk it is, and is one for a file.
fn file_name(label: &str) -> String {
    let name: String =
        label.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).take(60).collect();
    if matches!(name.as_str(), "" | "." | "..") { "disk".to_owned() } else { name }
}

/// A FUSE file system that is mounted without a path.
fn mount() -> io::Result<(OwnedFd, OwnedFd)> {
    let fuse = open_fuse()?;
    let context = fs_context()?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&fuse).to_string();
    let user = rustix::process::geteuid().as_raw().to_string();
    let group = rustix::process::getegid().as_raw().to_string();
    let settings = [
        ("source", "dormouse"),
        ("fd", &fd),
        ("rootmode", "40000"),
        ("user_id", &user),
        ("group_id", &group),
    ];
    let set = || -> rustix::io::Result<OwnedFd> {
        for (key, value) in settings {
            rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?;
        }
        rustix::mount::fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    let mount = set().map_err(|e| about("a FUSE file system cannot be mounted", e))?;
    Ok((fuse, mount))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_becomes_a_file_name() {
        assert_eq!(file_name("root@17"), "root@17");
        assert_eq!(file_name("a/b\n"), "a_b_");
        assert_eq!(file_name(".."), "disk");
        assert_eq!(file_name(&"x".repeat(300)).len(), 60);
    }
}
