//! Layouts and numbers of `ublk_drv` (linux/ublk_cmd.h). Pure.
//!
//! Numbers are written as bytes, at the offsets that the kernel's structures have on 64-bit
//! little-endian machines.

/// The commands of the control device: `_IOWR('u', number, struct ublksrv_ctrl_cmd)`, or `_IOR`.
pub mod control {
    use super::{io_read, io_read_write};
    pub const GET_DEV_INFO: u32 = io_read(0x02, 32);
    pub const ADD_DEV: u32 = io_read_write(0x04, 32);
    pub const DEL_DEV: u32 = io_read_write(0x05, 32);
    pub const START_DEV: u32 = io_read_write(0x06, 32);
    pub const STOP_DEV: u32 = io_read_write(0x07, 32);
    pub const SET_PARAMS: u32 = io_read_write(0x08, 32);
    pub const START_USER_RECOVERY: u32 = io_read_write(0x10, 32);
    pub const END_USER_RECOVERY: u32 = io_read_write(0x11, 32);
    pub const DEL_DEV_ASYNC: u32 = io_read(0x14, 32);
    pub const UPDATE_SIZE: u32 = io_read_write(0x15, 32);
}

/// Takes the first request of a tag.
pub const FETCH_REQ: u32 = io_read_write(0x20, 16);
/// Ends the request of a tag, and takes the next.
pub const COMMIT_AND_FETCH_REQ: u32 = io_read_write(0x21, 16);

/// A disk whose process died is kept, and its requests are issued again.
pub const F_USER_RECOVERY: u64 = 1 << 3;
pub const F_USER_RECOVERY_REISSUE: u64 = 1 << 4;
/// Commands are encoded as ioctl numbers.
pub const F_CMD_IOCTL_ENCODE: u64 = 1 << 6;
/// The size can be changed (Linux 6.16).
pub const F_UPDATE_SIZE: u64 = 1 << 10;

/// The state of a device without a disk; others are 1, live, and 2, waiting for a process.
pub const DEAD: u16 = 0;

/// What is asked of the disk.
pub mod op {
    pub const READ: u8 = 0;
    pub const WRITE: u8 = 1;
    pub const FLUSH: u8 = 2;
    pub const DISCARD: u8 = 3;
    pub const WRITE_ZEROES: u8 = 5;
    /// Flags beside it.
    pub const FUA: u32 = 1 << 13;
    pub const NO_UNMAP: u32 = 1 << 15;
}

/// Bytes of a request's description.
pub const DESCRIPTION: usize = 24;
/// The most tags of a queue: where the next queue's descriptions begin.
pub const DEPTH_MAX: usize = 4096;

const fn io_read_write(number: u32, size: u32) -> u32 {
    3 << 30 | size << 16 | (b'u' as u32) << 8 | number
}

const fn io_read(number: u32, size: u32) -> u32 {
    2 << 30 | size << 16 | (b'u' as u32) << 8 | number
}

/// A command to the control device: `struct ublksrv_ctrl_cmd`, and space.
pub fn control(device: u32, buffer: u64, len: u16, data: u64) -> [u8; 80] {
    let mut out = [0; 80];
    out[0..4].copy_from_slice(&device.to_le_bytes());
    // Not for one queue.
    out[4..6].copy_from_slice(&u16::MAX.to_le_bytes());
    out[6..8].copy_from_slice(&len.to_le_bytes());
    out[8..16].copy_from_slice(&buffer.to_le_bytes());
    out[16..24].copy_from_slice(&data.to_le_bytes());
    out
}

/// A command to a queue: `struct ublksrv_io_cmd`, and space.
pub fn io(tag: u16, result: i32, buffer: u64) -> [u8; 80] {
    let mut out = [0; 80];
    out[2..4].copy_from_slice(&tag.to_le_bytes());
    out[4..8].copy_from_slice(&result.to_le_bytes());
    out[8..16].copy_from_slice(&buffer.to_le_bytes());
    out
}

/// What a device is like: `struct ublksrv_ctrl_dev_info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    pub queues: u16,
    pub depth: u16,
    pub state: u16,
    pub buffer_bytes: u32,
    /// `u32::MAX` asks for one that is free.
    pub device: u32,
    pub flags: u64,
    /// Not looked at by the kernel: who made it.
    pub mark: u64,
}

/// Bytes of [`Info`].
pub const INFO: usize = 64;

impl Info {
    /// As the kernel reads it.
    pub fn bytes(&self) -> [u8; INFO] {
        let mut out = [0; INFO];
        out[0..2].copy_from_slice(&self.queues.to_le_bytes());
        out[2..4].copy_from_slice(&self.depth.to_le_bytes());
        out[4..6].copy_from_slice(&self.state.to_le_bytes());
        out[8..12].copy_from_slice(&self.buffer_bytes.to_le_bytes());
        out[12..16].copy_from_slice(&self.device.to_le_bytes());
        // The process that serves is told at the start.
        out[16..20].copy_from_slice(&(-1i32).to_le_bytes());
        out[24..32].copy_from_slice(&self.flags.to_le_bytes());
        out[32..40].copy_from_slice(&self.mark.to_le_bytes());
        out
    }

    /// As the kernel wrote it.
    pub fn read(bytes: &[u8; INFO]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        Self {
            queues: u16_at(0),
            depth: u16_at(2),
            state: u16_at(4),
            buffer_bytes: u32_at(8),
            device: u32_at(12),
            flags: u64::from(u32_at(24)) | u64::from(u32_at(28)) << 32,
            mark: u64::from(u32_at(32)) | u64::from(u32_at(36)) << 32,
        }
    }
}

/// What the kernel is to know of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    pub read_only: bool,
    pub sectors: u64,
    /// The unit that costs least, as a power of two.
    pub block_shift: u8,
    pub max_sectors: u32,
}

/// Bytes of [`Params`]: `struct ublk_params` up to and with what is told of discards.
pub const PARAMS: usize = 60;
const BASIC: u32 = 1;
const DISCARD: u32 = 2;
const READ_ONLY: u32 = 1;
const VOLATILE_CACHE: u32 = 1 << 2;
const FUA: u32 = 1 << 3;
/// The most sectors of one discard: 1 GiB.
const DISCARD_SECTORS: u32 = 1 << 21;

impl Params {
    /// As the kernel reads them.
    pub fn bytes(&self) -> [u8; PARAMS] {
        let mut out = [0; PARAMS];
        let types = if self.read_only { BASIC } else { BASIC | DISCARD };
        let attributes = if self.read_only { READ_ONLY } else { VOLATILE_CACHE | FUA };
        out[0..4].copy_from_slice(&(PARAMS as u32).to_le_bytes());
        out[4..8].copy_from_slice(&types.to_le_bytes());
        out[8..12].copy_from_slice(&attributes.to_le_bytes());
        // Sectors stay addressable, so that tables of partitions are found where they are.
        out[12] = 9;
        out[13] = self.block_shift;
        out[14] = self.block_shift;
        out[15] = self.block_shift;
        out[16..20].copy_from_slice(&self.max_sectors.to_le_bytes());
        out[24..32].copy_from_slice(&self.sectors.to_le_bytes());
        if !self.read_only {
            out[44..48].copy_from_slice(&(1u32 << self.block_shift).to_le_bytes());
            out[48..52].copy_from_slice(&DISCARD_SECTORS.to_le_bytes());
            out[52..56].copy_from_slice(&DISCARD_SECTORS.to_le_bytes());
            out[56..58].copy_from_slice(&1u16.to_le_bytes());
        }
        out
    }
}

/// A request: `struct ublksrv_io_desc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    pub op: u8,
    /// Those of [`op`].
    pub flags: u32,
    pub sectors: u32,
    pub first: u64,
}

impl Description {
    /// As the kernel wrote it.
    pub fn read(bytes: &[u8; DESCRIPTION]) -> Self {
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let word = u32_at(0);
        Self {
            op: word as u8,
            flags: word & !0xff,
            sectors: u32_at(4),
            first: u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_numbers_of_the_kernels_header() {
        assert_eq!(control::ADD_DEV, 0xc020_7504);
        assert_eq!(control::GET_DEV_INFO, 0x8020_7502);
        assert_eq!(FETCH_REQ, 0xc010_7520);
        assert_eq!(COMMIT_AND_FETCH_REQ, 0xc010_7521);
    }

    #[test]
    fn a_device_is_written_and_read_again() {
        let info = Info {
            queues: 1,
            depth: 64,
            state: 2,
            buffer_bytes: 1 << 19,
            device: 5,
            flags: F_USER_RECOVERY | 1 << 40,
            mark: 0x0123_4567_89ab_cdef,
        };
        assert_eq!(Info::read(&info.bytes()), info);
    }

    #[test]
    fn a_request_is_read() {
        let mut bytes = [0; DESCRIPTION];
        bytes[..4].copy_from_slice(&(1 | op::FUA).to_le_bytes());
        bytes[4..8].copy_from_slice(&8u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&0x1_2345_6789u64.to_le_bytes());
        let request = Description::read(&bytes);
        let expected =
            Description { op: op::WRITE, flags: op::FUA, sectors: 8, first: 0x1_2345_6789 };
        assert_eq!(request, expected);
    }

    #[test]
    fn a_read_only_disk_discards_nothing() {
        let disk = Params { read_only: true, sectors: 2048, block_shift: 12, max_sectors: 1024 };
        let bytes = disk.bytes();
        assert_eq!((bytes[4], bytes[8], &bytes[40..]), (1, 1, &[0u8; 20][..]));
        let bytes = Params { read_only: false, ..disk }.bytes();
        assert_eq!((bytes[4], bytes[8]), (3, 12));
        assert_eq!(u64::from_le_bytes(bytes[24..32].try_into().unwrap()), 2048);
    }
}
