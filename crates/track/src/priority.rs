//! How urgent this thread's reads and writes are to the disk's scheduler.
//!
//! Threads that it starts later are as urgent as it was then.

use std::io;

/// `IOPRIO_WHO_PROCESS`: a thread by its id; 0 is the one that calls.
const WHO_THREAD: libc::c_int = 1;
/// `IOPRIO_CLASS_BE`, at the level that goes last of its class. Not the idle class: on a disk
/// that is always busy nothing would be read at all, and the copy would never catch up.
const BEST_EFFORT_LAST: libc::c_int = 2 << 13 | 7;

/// Lets everybody else's reads and writes go first.
pub fn last_at_the_disk() -> io::Result<()> {
    #[allow(unsafe_code, reason = "the kernel offers this by a system call only")]
    // SAFETY: three integers by value; no memory is involved.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_THREAD, 0, BEST_EFFORT_LAST) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_this_thread() -> libc::c_long {
        #[allow(unsafe_code, reason = "the other half of what is tested")]
        // SAFETY: two integers by value.
        unsafe {
            libc::syscall(libc::SYS_ioprio_get, WHO_THREAD, 0)
        }
    }

    #[test]
    fn threads_that_are_started_later_are_last_too() {
        std::thread::spawn(|| {
            let before = of_this_thread();
            last_at_the_disk().unwrap();
            assert_ne!(of_this_thread(), before);
            let of_child = std::thread::spawn(of_this_thread).join().unwrap();
            assert_eq!(of_child, libc::c_long::from(BEST_EFFORT_LAST));
        })
        .join()
        .unwrap();
    }
}
