//! Seccomp: which system calls there are, for the server and for a stranger's thread.
//!
//! Owns: the two lists. Invariant: what is not listed does not exist (`ENOSYS`), so that the C
//! library falls back to what is: in this way no thread is made by `clone3`, whose flags no
//! filter sees. Nothing listed makes a process or executable memory, and no socket or connection
//! but for a store in object storage ([`outside`]).
//! Paths are not looked at here: that is Landlock's.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Plan;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
type Error = Box<dyn std::error::Error + Send + Sync>;

/// What every thread needs: memory, locks, time, its own end.
const BASE: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
];

/// What a server needs beside: the files of its store, and sockets that it was given or accepts.
const SERVER: &[libc::c_long] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_getuid,
    libc::SYS_linkat,
    libc::SYS_listen,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_renameat2,
    libc::SYS_rt_sigaction,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sync_file_range,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Older forms of the same.
#[cfg(target_arch = "x86_64")]
const BASE_OLD: &[libc::c_long] = &[libc::SYS_poll, libc::SYS_time];
#[cfg(target_arch = "x86_64")]
const SERVER_OLD: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_newfstatat,
    libc::SYS_open,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const BASE_OLD: &[libc::c_long] = &[];
#[cfg(target_arch = "aarch64")]
const SERVER_OLD: &[libc::c_long] = &[libc::SYS_newfstatat, libc::SYS_renameat];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const SERVER_OLD: &[libc::c_long] = &[libc::SYS_newfstatat];

/// What a stranger's thread does with its socket, and with no other file.
const SOCKET: &[libc::c_long] = &[
    libc::SYS_close,
    libc::SYS_getsockopt,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_write,
    libc::SYS_writev,
];

/// What a client of object storage needs beside: waiting for many answers in one thread.
const REMOTE: &[libc::c_long] = &[
    libc::SYS_connect,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
];
#[cfg(target_arch = "x86_64")]
const REMOTE_OLD: &[libc::c_long] = &[libc::SYS_epoll_wait];
#[cfg(not(target_arch = "x86_64"))]
const REMOTE_OLD: &[libc::c_long] = &[];
/// What the C library needs to ask for a name.
const NAMES: &[libc::c_long] = &[libc::SYS_recvmsg, libc::SYS_sendmmsg, libc::SYS_sendmsg];

/// From here on this process makes the system calls that its plan needs, and no others.
pub(super) fn enter(plan: &Plan) -> Result<String, String> {
    let program = rules_of(plan).and_then(compile).map_err(|e| e.to_string())?;
    seccompiler::apply_filter(&program).map_err(|e| e.to_string())?;
    match rustix::thread::secure_computing_mode() {
        Ok(rustix::thread::SecureComputingMode::Filter) => {
            let but = match (plan.names, plan.ports.is_empty()) {
                (true, _) => " but to resolve names",
                (false, false) => " but TCP",
                (false, true) => "",
            };
            Ok(format!("no process, no program, no socket{but}, no executable memory"))
        }
        other => Err(format!("the kernel says {other:?} of the filter")),
    }
}

/// From here on this thread can use this socket, and nothing else of the process but its memory.
pub fn only_socket(socket: impl AsFd) -> Result<(), String> {
    let fd = u64::from(socket.as_fd().as_raw_fd().unsigned_abs());
    let program = rules_of_stranger(fd).and_then(compile).map_err(|e| e.to_string())?;
    seccompiler::apply_filter(&program).map_err(|e| e.to_string())
}

fn compile(rules: Rules) -> Result<BpfProgram, Error> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    Ok(SeccompFilter::new(rules, absent, SeccompAction::Allow, arch)?.try_into()?)
}

/// Argument `index`, under `mask`, has this value. The lower half: no argument here has more.
fn is(index: u8, mask: u64, value: u64) -> Result<SeccompCondition, Error> {
    let masked = SeccompCmpOp::MaskedEq(mask);
    Ok(SeccompCondition::new(index, SeccompCmpArgLen::Dword, masked, value)?)
}

fn bits(flags: libc::c_int) -> u64 {
    u64::from(flags.cast_unsigned())
}

const ALL: u64 = u32::MAX as u64;

/// Allows a call where one argument has one of these values.
fn one_of(
    rules: &mut Rules,
    call: libc::c_long,
    index: u8,
    values: &[libc::c_int],
) -> Result<(), Error> {
    let rule = |value: &libc::c_int| Ok(SeccompRule::new(vec![is(index, ALL, bits(*value))?])?);
    let all = values.iter().map(rule).collect::<Result<Vec<_>, Error>>()?;
    rules.insert(call, all);
    Ok(())
}

/// Allows calls whatever their arguments are.
fn plain<'a>(rules: &mut Rules, calls: impl IntoIterator<Item = &'a libc::c_long>) {
    rules.extend(calls.into_iter().map(|call| (*call, Vec::new())));
}

/// What is common to both: no memory is made executable, and a signal goes to this process only.
/// Memory that is mapped has the flags `mapped`.
fn rules_of_both(mapped: libc::c_int) -> Result<Rules, Error> {
    let mut rules = Rules::new();
    plain(&mut rules, BASE.iter().chain(BASE_OLD));
    let no_code = || is(2, bits(libc::PROT_EXEC), 0);
    let map = SeccompRule::new(vec![no_code()?, is(3, bits(mapped), bits(mapped))?])?;
    rules.insert(libc::SYS_mmap, vec![map]);
    rules.insert(libc::SYS_mprotect, vec![SeccompRule::new(vec![no_code()?])?]);
    // The end of a program that finds itself wrong.
    let own = libc::c_int::try_from(std::process::id())?;
    one_of(&mut rules, libc::SYS_tgkill, 0, &[own])?;
    Ok(rules)
}

fn rules_of_server() -> Result<Rules, Error> {
    let mut rules = rules_of_both(0)?;
    plain(&mut rules, SERVER.iter().chain(SERVER_OLD));
    // Threads, and nothing that is a process of its own.
    let thread = bits(libc::CLONE_THREAD);
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![is(0, thread, thread)?])?]);
    // Limits are asked for, and never set.
    let ask = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![ask])?]);
    let requests = [libc::FIONBIO as libc::c_int, libc::TCGETS as libc::c_int];
    one_of(&mut rules, libc::SYS_ioctl, 1, &requests)?;
    // Both ends of one pair: nobody else is reached by it.
    one_of(&mut rules, libc::SYS_socketpair, 0, &[libc::AF_UNIX])?;
    let commands =
        [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL];
    one_of(&mut rules, libc::SYS_fcntl, 1, &commands)?;
    // To give up more, for the threads of strangers; and names.
    let options = [
        libc::PR_SET_NAME,
        libc::PR_SET_NO_NEW_PRIVS,
        libc::PR_GET_NO_NEW_PRIVS,
        libc::PR_GET_SECCOMP,
        libc::PR_SET_VMA,
    ];
    one_of(&mut rules, libc::SYS_prctl, 0, &options)?;
    let more = [libc::SECCOMP_SET_MODE_FILTER.cast_signed()];
    one_of(&mut rules, libc::SYS_seccomp, 0, &more)?;
    Ok(rules)
}

fn rules_of(plan: &Plan) -> Result<Rules, Error> {
    let mut rules = rules_of_server()?;
    if plan.names || !plan.ports.is_empty() {
        plain(&mut rules, REMOTE.iter().chain(REMOTE_OLD));
        outside(&mut rules, plan)?;
    }
    Ok(rules)
}

/// Sockets that lead outside. Landlock looks at `connect` of TCP sockets only: so there are no
/// others (multipath TCP is another protocol), and nothing connects by sending.
fn outside(rules: &mut Rules, plan: &Plan) -> Result<(), Error> {
    let mut sockets = Vec::new();
    let flags = bits(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
    let mut socket = |family: libc::c_int, kind: libc::c_int, protocol: libc::c_int| {
        sockets.push(SeccompRule::new(vec![
            is(0, ALL, bits(family))?,
            is(1, ALL & !flags, bits(kind))?,
            is(2, ALL, bits(protocol))?,
        ])?);
        Ok::<_, Error>(())
    };
    for family in [libc::AF_INET, libc::AF_INET6] {
        for protocol in [0, libc::IPPROTO_TCP] {
            socket(family, libc::SOCK_STREAM, protocol)?;
        }
        if plan.names {
            for protocol in [0, libc::IPPROTO_UDP] {
                socket(family, libc::SOCK_DGRAM, protocol)?;
            }
        }
    }
    if plan.names {
        // The caches of the system's resolver.
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            socket(libc::AF_UNIX, kind, 0)?;
        }
        plain(rules, NAMES);
        let asked = is(1, ALL, libc::FIONREAD)?;
        rules.entry(libc::SYS_ioctl).or_default().push(SeccompRule::new(vec![asked])?);
    }
    rules.insert(libc::SYS_socket, sockets);
    let no_fast_open = is(3, bits(libc::MSG_FASTOPEN), 0)?;
    rules.insert(libc::SYS_sendto, vec![SeccompRule::new(vec![no_fast_open])?]);
    Ok(())
}

fn rules_of_stranger(fd: u64) -> Result<Rules, Error> {
    let mut rules = rules_of_both(libc::MAP_ANONYMOUS)?;
    for call in SOCKET {
        rules.insert(*call, vec![SeccompRule::new(vec![is(0, ALL, fd)?])?]);
    }
    // To who is connected, and to nobody else.
    let nobody = SeccompCondition::new(4, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_sendto, vec![SeccompRule::new(vec![is(0, ALL, fd)?, nobody])?]);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    #[test]
    fn all_filters_fit_into_the_kernel() {
        let bucket = Plan { ports: vec![443], ..Plan::default() };
        let names = Plan::of_names().unwrap();
        let all = [Plan::default(), bucket, names].map(|plan| rules_of(&plan).unwrap());
        for rules in all.into_iter().chain([rules_of_stranger(7).unwrap()]) {
            let program = compile(rules).unwrap();
            assert!(program.len() > 50 && program.len() < 4096, "{}", program.len());
        }
    }

    #[test]
    fn a_strangers_thread_has_its_socket_and_nothing_else() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let mut other = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        // What is refused inside works outside.
        assert!(File::open("/etc/passwd").is_ok() && (&file).write_all(b"x").is_ok());
        there.write_all(b"hello").unwrap();
        let thread = thread::spawn(move || {
            only_socket(&here).unwrap();
            let mut said = [0; 5];
            here.read_exact(&mut said).unwrap();
            here.write_all(&said).unwrap();
            let memory = vec![1_u8; 8 << 20];
            let refused = [
                File::open("/etc/passwd").err(),
                (&file).write_all(b"y").err(),
                other.0.write_all(b"z").err(),
                std::net::TcpListener::bind("127.0.0.1:0").err(),
                std::process::Command::new("true").status().err(),
                thread::Builder::new().spawn(|| ()).err(),
            ];
            (memory.len(), refused.map(|error| error.map(|e| e.raw_os_error())), file, other)
        });
        let (len, refused, ..) = thread.join().unwrap();
        assert_eq!(len, 8 << 20);
        for error in &refused[..5] {
            assert_eq!(*error, Some(Some(libc::ENOSYS)), "{refused:?}");
        }
        assert!(refused[5].is_some(), "{refused:?}");
        let mut back = [0; 5];
        there.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"hello");
    }
}
