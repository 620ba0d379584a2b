//! What an NVMe disk says of itself, and counts: asked by three commands that change nothing.
//!
//! Owns: these commands, and where in their answers the numbers lie. Invariant: an answer that the
//! disk refused, or that has a number no `u64` holds, is no answer. Leaves to others: what the
//! numbers prove ([`crate::closed`]).

use std::ffi::c_void;
use std::fs;
use std::os::fd::AsFd;

use rustix::io::{Errno, Result};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

use crate::closed::{Count, Counted};
use crate::device::Disk;

const IDENTIFY: u8 = 0x06;
const GET_LOG_PAGE: u8 = 0x02;
/// Of [`IDENTIFY`].
const NAMESPACE: u32 = 0;
const CONTROLLER: u32 = 1;
/// Of [`GET_LOG_PAGE`].
const SMART: u32 = 0x02;
/// All namespaces of the controller: writes are counted for all of them together.
const ALL: u32 = u32::MAX;
const IDENTIFY_BYTES: usize = 4096;
const SMART_BYTES: usize = 512;
const TIMEOUT_MS: u32 = 5000;

const ADMIN: Opcode = opcode::read_write::<Admin>(b'N', 0x41);

/// `struct nvme_passthru_cmd` of the kernel.
#[repr(C)]
#[derive(Default)]
struct Admin {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    words_2_3: [u32; 2],
    metadata: u64,
    address: u64,
    metadata_len: u32,
    data_len: u32,
    words_10_15: [u32; 6],
    timeout_ms: u32,
    result: u32,
}

const _: () = assert!(size_of::<Admin>() == 72);

#[allow(unsafe_code, reason = "an ioctl has no safe form")]
// SAFETY: the opcode is that of this structure, which stays where it is during the call.
unsafe impl Ioctl for &mut Admin {
    /// The status that the disk gave; 0 is success.
    type Output = u32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        ADMIN
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut::<Admin>(self).cast()
    }

    unsafe fn output_from_ptr(status: IoctlOutput, _: *mut c_void) -> Result<u32> {
        Ok(status.unsigned_abs())
    }
}

/// Asks one thing of the disk.
fn ask<const N: usize>(
    device: impl AsFd,
    opcode: u8,
    namespace: u32,
    word_10: u32,
) -> Result<[u8; N]> {
    let mut answer = [0; N];
    let mut command = Admin {
        opcode,
        namespace,
        address: answer.as_mut_ptr() as u64,
        data_len: N as u32,
        words_10_15: [word_10, 0, 0, 0, 0, 0],
        timeout_ms: TIMEOUT_MS,
        ..Admin::default()
    };
    #[allow(unsafe_code, reason = "an ioctl has no safe form")]
    // SAFETY: the kernel writes at most `data_len` bytes to `address`, which are `answer`'s; both
    // it and the command live until the call returns.
    let status = unsafe { ioctl(device, &mut command) }?;
    if status == 0 { Ok(answer) } else { Err(Errno::IO) }
}

/// What an NVMe disk says of itself now; none of a disk that is no such one, or does not say.
/// `device` is the disk, or a part of it, open for reading.
pub fn counted(disk: &Disk, device: impl AsFd) -> Option<Counted> {
    let (_, whole) = disk.directories();
    if !disk.name.starts_with("nvme") {
        return None;
    }
    let text = |name: &str| Some(fs::read_to_string(whole.join(name)).ok()?.trim().to_owned());
    let namespace: u32 = text("nsid")?.parse().ok()?;
    let local = text("device/transport").is_some_and(|transport| transport == "pcie");
    let zoned = text("queue/zoned").is_some_and(|zoned| zoned != "none");
    let controller = ask(&device, IDENTIFY, 0, CONTROLLER).ok()?;
    let own = ask(&device, IDENTIFY, namespace, NAMESPACE).ok()?;
    let mut counted = of_answers(namespace, &controller, &own);
    counted.shared |= !local || zoned;
    counted.count = count(&device, namespace)?;
    Some(counted)
}

/// Its count alone.
fn count(device: impl AsFd, namespace: u32) -> Option<Count> {
    let dwords = (SMART_BYTES / 4) as u32 - 1;
    let smart = ask(&device, GET_LOG_PAGE, ALL, dwords << 16 | SMART).ok()?;
    let own: [u8; IDENTIFY_BYTES] = ask(&device, IDENTIFY, namespace, NAMESPACE).ok()?;
    of_smart(&smart, word(&own, 16))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn half(bytes: &[u8], at: usize) -> u32 {
    (word(bytes, at) & u64::from(u32::MAX)) as u32
}

/// From what the controller and the namespace say of themselves.
fn of_answers(
    namespace: u32,
    controller: &[u8; IDENTIFY_BYTES],
    own: &[u8; IDENTIFY_BYTES],
) -> Counted {
    let text = |from: usize, to: usize| {
        let text = String::from_utf8_lossy(&controller[from..to]);
        let shown = text.trim().chars().map(|c| if c.is_control() { '?' } else { c });
        shown.collect::<String>()
    };
    // Several ports, several controllers, virtual functions; and the same of the namespace.
    let shared = controller[76] & 0b111 != 0 || own[30] & 1 != 0;
    // Write Uncorrectable, Dataset Management, Write Zeroes, Copy.
    let commands = half(controller, 520) & 0b1_0000_1110 != 0;
    // Format, management of namespaces, Sanitize.
    let wipes = half(controller, 256) & 0b1010 != 0 || half(controller, 328) & 0b111 != 0;
    Counted {
        serial: text(4, 24),
        model: text(24, 64),
        firmware: text(64, 72),
        namespace,
        blocks: word(own, 0),
        shared,
        uncounted: commands || wipes,
        count: Count::default(),
    }
}

/// From the page of a disk's health.
fn of_smart(smart: &[u8; SMART_BYTES], used: u64) -> Option<Count> {
    let number = |at: usize| (word(smart, at + 8) == 0).then(|| word(smart, at));
    Some(Count {
        reads: number(64)?,
        writes: number(80)?,
        power_cycles: number(112)?,
        unsafe_shutdowns: number(144)?,
        used,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    #[test]
    fn numbers_are_found_where_the_standard_has_them() {
        let mut smart = [0; SMART_BYTES];
        for (at, value) in [(32, 1_u64), (48, 2), (64, 3), (80, 4), (96, 5), (112, 6), (144, 8)] {
            put(&mut smart, at, &value.to_le_bytes());
        }
        let count = Count { reads: 3, writes: 4, power_cycles: 6, unsafe_shutdowns: 8, used: 9 };
        assert_eq!(of_smart(&smart, 9), Some(count));
        for at in [64, 80, 112, 144] {
            let mut large = smart;
            large[at + 15] = 1;
            assert_eq!(of_smart(&large, 9), None, "{at}");
        }
    }

    #[test]
    fn what_a_controller_may_do_unseen_is_known() {
        let mut controller = [0; IDENTIFY_BYTES];
        let mut own = [0; IDENTIFY_BYTES];
        put(&mut controller, 4, b"S64DNX0R            ");
        put(&mut controller, 24, b"Disk 980                                ");
        put(&mut controller, 64, b"1B4\x07    ");
        put(&mut own, 0, &77_u64.to_le_bytes());
        let plain = of_answers(5, &controller, &own);
        assert_eq!(
            (&*plain.serial, &*plain.model, &*plain.firmware),
            ("S64DNX0R", "Disk 980", "1B4?")
        );
        assert_eq!((plain.namespace, plain.blocks), (5, 77));
        assert!(!plain.shared && !plain.uncounted);
        for (at, bit, shared) in [
            (76, 0, true),
            (76, 1, true),
            (76, 2, true),
            (520, 1, false),
            (520, 2, false),
            (520, 3, false),
            (521, 0, false),
            (256, 1, false),
            (256, 3, false),
            (328, 0, false),
            (328, 2, false),
        ] {
            let mut other = controller;
            other[at] |= 1 << bit;
            let found = of_answers(5, &other, &own);
            assert_eq!((found.shared, found.uncounted), (shared, !shared), "{at} {bit}");
        }
        // Compare, Verify: they change nothing.
        controller[520] = 0b1000_0001;
        assert!(!of_answers(5, &controller, &own).uncounted);
        own[30] = 1;
        assert!(of_answers(5, &controller, &own).shared);
    }
}
