//! A disk by the driver `ublk_drv`: requests come over io_uring, without a socket or a file
//! system between.
//!
//! Invariant: a disk is there as long as nobody stops it, also when its process has died: requests
//! wait then, and another process serves them ([`Ublk::resume`]); those that were under way are
//! issued again. Leaves to others: when to serve again.

use std::fs::{File, OpenOptions};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::kernel::{self, Front, Options, Via};
use crate::{BlockDevice, Error, Result};

mod abi;
mod control;
mod memory;
mod queue;

use abi::{Info, Params};
use control::Control;
use queue::{Setup, Shared};

/// Requests that are under way at most.
const DEPTH: u16 = 64;
/// Bytes of a request at most.
const BUFFER: u32 = 512 << 10;
/// How long the kernel may take to notice that a process has died, or to make a device's file.
const PATIENCE: Duration = Duration::from_secs(15);

const FLAGS: u64 = abi::F_USER_RECOVERY
    | abi::F_USER_RECOVERY_REISSUE
    | abi::F_CMD_IOCTL_ENCODE
    | abi::F_UPDATE_SIZE;

/// Whether this kernel has it, and this process may use it.
pub fn probe() -> io::Result<()> {
    Control::open().map(drop)
}

/// Whether there is a disk of this number that was made with this label.
pub fn is_there(number: u32, label: &str) -> bool {
    let info = Control::open().and_then(|mut control| control.info(number));
    info.is_ok_and(|info| info.state != abi::DEAD && info.mark == mark(label))
}

/// Takes a disk away whose process has died.
pub fn remove(number: u32) -> Result<()> {
    let mut control = Control::open()?;
    match control.stop(number).and_then(|()| control.delete(number)) {
        Err(e) if e.raw_os_error() != Some(Errno::NODEV.raw_os_error()) => Err(e.into()),
        _ => Ok(()),
    }
}

/// A number that stands for a label (FNV-1a).
fn mark(label: &str) -> u64 {
    label.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A disk on `/dev/ublkbN`.
pub struct Ublk {
    info: Info,
    disk: Arc<dyn BlockDevice>,
    shared: Arc<Shared>,
}

impl Ublk {
    /// Gives the kernel a disk.
    pub fn attach(disk: Arc<dyn BlockDevice>, how: &Options) -> Result<Self> {
        let mut control = Control::open()?;
        let wanted = Info {
            queues: 1,
            depth: DEPTH,
            state: abi::DEAD,
            buffer_bytes: BUFFER,
            device: u32::MAX,
            flags: FLAGS,
            mark: mark(&how.label),
        };
        let info = control.add(&wanted)?;
        let started = Self::serve(info, disk, |disk| {
            control.set_params(info.device, &params(disk, info.buffer_bytes))
        })
        .and_then(|it| Ok(control.start(info.device).map(|()| it)?));
        if started.is_err() {
            // The first error is the one that tells why.
            let _ = control.delete(info.device);
        }
        started
    }

    /// Serves a disk whose process has died.
    pub fn resume(number: u32, disk: Arc<dyn BlockDevice>, _how: &Options) -> Result<Self> {
        let mut control = Control::open()?;
        let until = Instant::now() + PATIENCE;
        loop {
            match control.start_recovery(number) {
                Ok(()) => break,
                // It has not noticed yet.
                Err(e) if is(&e, Errno::BUSY) && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(e) => return Err(e.into()),
            }
        }
        let info = control.info(number)?;
        let it = Self::serve(info, disk, |_| Ok(()))?;
        control.end_recovery(number)?;
        Ok(it)
    }

    fn serve(
        info: Info,
        disk: Arc<dyn BlockDevice>,
        prepare: impl FnOnce(&dyn BlockDevice) -> io::Result<()>,
    ) -> Result<Self> {
        if info.depth == 0 || usize::from(info.depth) > abi::DEPTH_MAX || info.buffer_bytes == 0 {
            return Err(Error::Unsupported("a ublk device without a queue"));
        }
        prepare(&*disk)?;
        let shared = Shared::new(info.depth)?;
        queue::start(Setup {
            device: open(info.device)?,
            depth: info.depth,
            buffer_bytes: info.buffer_bytes,
            disk: Arc::clone(&disk),
            shared: Arc::clone(&shared),
        })?;
        Ok(Self { info, disk, shared })
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn params(disk: &dyn BlockDevice, buffer: u32) -> Params {
    let geometry = disk.geometry();
    Params {
        read_only: geometry.read_only,
        sectors: kernel::sectors(disk),
        // More than a page is no block size.
        block_shift: geometry.block.clamp(512, 4096).ilog2() as u8,
        max_sectors: buffer / kernel::SECTOR as u32,
    }
}

/// The device that its queue belongs to; its file may take a moment to appear.
fn open(number: u32) -> io::Result<File> {
    let path = format!("/dev/ublkc{number}");
    let until = Instant::now() + PATIENCE;
    loop {
        match OpenOptions::new().read(true).write(true).open(&path) {
            Err(e)
                if (e.kind() == io::ErrorKind::NotFound || is(&e, Errno::BUSY))
                    && Instant::now() < until =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened.map_err(|e| io::Error::new(e.kind(), format!("{path}: {e}"))),
        }
    }
}

impl Front for Ublk {
    fn via(&self) -> Via {
        Via::Ublk
    }

    fn number(&self) -> u32 {
        self.info.device
    }

    fn resized(&self) -> Result<()> {
        if self.info.flags & abi::F_UPDATE_SIZE == 0 {
            return Err(Error::Unsupported("ublk of this kernel cannot change a size"));
        }
        let sectors = kernel::sectors(&*self.disk);
        Ok(Control::open()?.update_size(self.info.device, sectors)?)
    }

    fn ended(&self, within: Duration) -> bool {
        self.shared.ended(within)
    }

    fn stop(&self, patience: Duration) -> Result<()> {
        let number = self.info.device;
        kernel::take_away(&self.path(), patience, &|| self.shared.refuse(), move || remove(number))
    }
}
