//! The control device of `ublk_drv`: disks are made, started, stopped and removed.
//!
//! Invariant: a command is waited for; a buffer that it names lives until then.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::io::Errno;

use super::abi::{self, INFO, Info, PARAMS, Params};
use crate::kernel::about;

const CONTROL: &str = "/dev/ublk-control";

/// The control device, and a ring to send commands to it.
pub struct Control {
    file: File,
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
}

impl Control {
    /// Opens it.
    pub fn open() -> io::Result<Self> {
        let opened = OpenOptions::new().read(true).write(true).open(CONTROL);
        let file = opened.map_err(|e| {
            io::Error::new(e.kind(), format!("no ublk: {CONTROL}: {e}; is ublk_drv loaded?"))
        })?;
        let ring = IoUring::<squeue::Entry128, cqueue::Entry>::builder()
            .build(4)
            .map_err(|e| io::Error::new(e.kind(), format!("no io_uring, which ublk needs: {e}")))?;
        Ok(Self { file, ring })
    }

    /// Sends a command and waits for its end. `buffer` must be what the command expects.
    fn send(
        &mut self,
        command: u32,
        device: u32,
        buffer: Option<&mut [u8]>,
        data: u64,
    ) -> io::Result<()> {
        let (at, len) = buffer.map_or((0, 0), |b| (b.as_mut_ptr() as u64, b.len() as u16));
        let bytes = abi::control(device, at, len, data);
        let fd = types::Fd(self.file.as_raw_fd());
        let entry = opcode::UringCmd80::new(fd, command).cmd(bytes).build();
        #[allow(unsafe_code, reason = "io_uring hands memory to the kernel")]
        // SAFETY: the buffer is borrowed until the command's end, which is waited for below, and
        // the kernel uses no more of it than the length that it is told.
        unsafe {
            self.ring.submission().push(&entry).map_err(io::Error::other)?;
        }
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            let Some(ended) = self.ring.completion().next() else { continue };
            return match ended.result() {
                0.. => Ok(()),
                n => Err(io::Error::from_raw_os_error(n.saturating_neg())),
            };
        }
    }

    /// Makes a device; its number is in what comes back.
    pub fn add(&mut self, wanted: &Info) -> io::Result<Info> {
        let mut bytes = wanted.bytes();
        self.send(abi::control::ADD_DEV, wanted.device, Some(&mut bytes), 0)
            .map_err(|e| said("the kernel makes no ublk device", &e))?;
        Ok(Info::read(&bytes))
    }

    /// What a device is like now.
    pub fn info(&mut self, device: u32) -> io::Result<Info> {
        let mut bytes = [0; INFO];
        self.send(abi::control::GET_DEV_INFO, device, Some(&mut bytes), 0)?;
        Ok(Info::read(&bytes))
    }

    /// Says what a disk is like, before it is started.
    pub fn set_params(&mut self, device: u32, params: &Params) -> io::Result<()> {
        let mut bytes: [u8; PARAMS] = params.bytes();
        self.send(abi::control::SET_PARAMS, device, Some(&mut bytes), 0)
            .map_err(|e| said("the kernel refuses the disk's size or flags", &e))
    }

    /// Shows the disk. Its queues must have asked for requests, or will.
    pub fn start(&mut self, device: u32) -> io::Result<()> {
        self.send(abi::control::START_DEV, device, None, u64::from(std::process::id()))
            .map_err(|e| said("the ublk disk does not start", &e))
    }

    /// Changes the size of a disk that is there.
    pub fn update_size(&mut self, device: u32, sectors: u64) -> io::Result<()> {
        self.send(abi::control::UPDATE_SIZE, device, None, sectors)
            .map_err(|e| said("the ublk disk does not take the new size", &e))
    }

    /// Takes the disk away; what is under way is ended by its queues, or fails.
    pub fn stop(&mut self, device: u32) -> io::Result<()> {
        self.send(abi::control::STOP_DEV, device, None, 0)
    }

    /// Removes the device; where the kernel can (Linux 6.9), without waiting for those who still
    /// have it open.
    pub fn delete(&mut self, device: u32) -> io::Result<()> {
        match self.send(abi::control::DEL_DEV_ASYNC, device, None, 0) {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::OPNOTSUPP) => {
                self.send(abi::control::DEL_DEV, device, None, 0)
            }
            done => done,
        }
    }

    /// A device whose process has died gets ready for another.
    pub fn start_recovery(&mut self, device: u32) -> io::Result<()> {
        self.send(abi::control::START_USER_RECOVERY, device, None, 0)
    }

    /// The other process is there.
    pub fn end_recovery(&mut self, device: u32) -> io::Result<()> {
        self.send(abi::control::END_USER_RECOVERY, device, None, u64::from(std::process::id()))
    }
}

fn said(what: &str, error: &io::Error) -> io::Error {
    about(what, Errno::from_io_error(error).unwrap_or(Errno::IO))
}
