//! Loop devices: a file as a block device (linux/loop.h). No program is needed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, ioctl};

use crate::kernel::{Via, about};

const LOOP_CLR_FD: Opcode = 0x4c01;
const LOOP_SET_CAPACITY: Opcode = 0x4c07;
const LOOP_CONFIGURE: Opcode = 0x4c0a;
const LOOP_CTL_GET_FREE: Opcode = 0x4c82;

const READ_ONLY: u32 = 1;
const PARTSCAN: u32 = 8;
const DIRECT_IO: u32 = 16;

/// How often another free device is tried, when somebody else was faster.
const TRIES: usize = 64;
const CONTROL: &str = "/dev/loop-control";

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

/// Whether there are loop devices, and this process may make some.
pub fn probe() -> io::Result<()> {
    control().map(drop)
}

fn control() -> io::Result<File> {
    let opened = OpenOptions::new().read(true).write(true).open(CONTROL);
    opened.map_err(|e| io::Error::new(e.kind(), format!("no loop devices: {CONTROL}: {e}")))
}

fn open(number: u32, write: bool) -> io::Result<File> {
    let path = Via::Fuse.path(number);
    let opened = OpenOptions::new().read(true).write(write).open(&path);
    opened.map_err(|e| io::Error::new(e.kind(), format!("cannot open {}: {e}", path.display())))
}

/// A name as the kernel keeps it, cut to what it has room for.
fn label_bytes(label: &str) -> [u8; 64] {
    let mut name = [0; 64];
    // The last byte stays zero.
    for (to, from) in name[..63].iter_mut().zip(label.bytes()) {
        *to = from;
    }
    name
}

/// Puts a file on a free loop device, and returns its number.
pub fn configure(file: BorrowedFd<'_>, read_only: bool, label: &str) -> io::Result<u32> {
    let flags = PARTSCAN | DIRECT_IO | if read_only { READ_ONLY } else { 0 };
    let info = Info {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags,
        file_name: label_bytes(label),
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let fd = file.as_raw_fd().unsigned_abs();
    let config = Config { fd, block_size: 512, info, reserved: [0; 8] };
    let control = control()?;
    for _ in 0..TRIES {
        let number = free(&control)?;
        match set_up(&open(number, !read_only)?, config) {
            Err(Errno::BUSY) => {}
            done => {
                return done
                    .map(|()| number)
                    .map_err(|e| about(format!("setting up loop device {number}"), e));
            }
        }
    }
    Err(io::Error::other("no loop device stays free for long enough"))
}

/// The number of a free device. The kernel makes one where there is none.
fn free(control: &File) -> io::Result<u32> {
    let fd = control.as_raw_fd();
    #[allow(unsafe_code, reason = "the number is what the system call returns")]
    // SAFETY: this request takes no argument and touches no memory of this process.
    let number = unsafe { libc::ioctl(fd, LOOP_CTL_GET_FREE as _) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

fn set_up(device: &File, config: Config) -> Result<(), Errno> {
    #[allow(unsafe_code, reason = "an ioctl has no safe form")]
    // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, which `Config` is.
    unsafe {
        ioctl(device, Setter::<LOOP_CONFIGURE, Config>::new(config))
    }
}

/// The path of the file on a device, as its file system has it; none if there is none. Taken from
/// sysfs: the device itself answers nothing when its file system is dead.
pub fn file_on(number: u32) -> Option<String> {
    let path = format!("/sys/block/loop{number}/loop/backing_file");
    Some(std::fs::read_to_string(path).ok()?.trim_end_matches('\n').to_owned())
}

/// Has a device look at its file's size again.
pub fn size_changed(number: u32) -> io::Result<()> {
    let device = open(number, false)?;
    request::<LOOP_SET_CAPACITY>(device.as_fd())
        .map_err(|e| about(format!("loop device {number} cannot take the new size"), e))
}

/// Takes the file off a device; now, or when nobody has it open any more.
pub fn clear(number: u32) -> io::Result<()> {
    let device = open(number, false)?;
    match request::<LOOP_CLR_FD>(device.as_fd()) {
        // Nothing is on it.
        Ok(()) | Err(Errno::NXIO) => Ok(()),
        Err(e) => Err(about(format!("loop device {number} cannot be cleared"), e)),
    }
}

fn request<const OPCODE: Opcode>(device: BorrowedFd<'_>) -> Result<(), Errno> {
    #[allow(unsafe_code, reason = "an ioctl has no safe form")]
    // SAFETY: these requests use no memory of this process; their argument is not looked at.
    unsafe {
        ioctl(device, IntegerSetter::<OPCODE>::new_usize(0))
    }
}
