//! What systemd is told: `sd_notify`.
//!
//! Owns: the socket, the texts and the watchdog's clock. Invariants: where no manager listens
//! nothing happens; a sign of life is sent only when it is due, from the loop whose life it is.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The manager that started this process, if it listens.
#[derive(Debug, Default)]
pub struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    /// How often a sign of life is due.
    every: Option<Duration>,
    last: Option<Instant>,
    status: String,
}

impl Notify {
    /// As the environment says.
    pub fn from_env() -> Self {
        let var = |name| std::env::var_os(name);
        let pid = std::process::id().to_string();
        // A watchdog of another process, such as of who started this one, is not ours.
        let ours = var("WATCHDOG_PID").is_none_or(|of| of == *pid);
        let watchdog = var("WATCHDOG_USEC").filter(|_| ours);
        Self::new(var("NOTIFY_SOCKET").as_deref(), watchdog.as_deref())
    }

    /// With the values of `NOTIFY_SOCKET` and `WATCHDOG_USEC`.
    fn new(socket: Option<&OsStr>, watchdog_us: Option<&OsStr>) -> Self {
        let to = socket.and_then(address).and_then(|address| {
            let socket = UnixDatagram::unbound().ok()?;
            // The manager reads at once; if it does not, it is not waited for.
            socket.set_nonblocking(true).ok()?;
            Some((socket, address))
        });
        let every = watchdog_us
            .and_then(|t| t.to_str()?.parse::<u64>().ok())
            .filter(|us| *us > 0)
            .map(|us| Duration::from_micros(us / 2));
        Self { to, every, last: None, status: String::new() }
    }

    fn send(&self, text: &str) {
        if let Some((socket, address)) = &self.to {
            // There is nobody else to tell.
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }

    /// All is up.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// The configuration is read again; [`Self::ready`] says when that is done.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let us = now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={us}"));
    }

    /// The stop has begun.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// One line for `systemctl status`; sent when it differs from the last.
    pub fn status(&mut self, text: &str) {
        let text = text.replace('\n', " ");
        if text != self.status {
            self.send(&format!("STATUS={text}"));
            self.status = text;
        }
    }

    /// How often [`Self::alive`] wants to be called, if a watchdog runs.
    pub const fn every(&self) -> Option<Duration> {
        self.every
    }

    /// A sign of life, if it is due.
    pub fn alive(&mut self, now: Instant) {
        let Some(every) = self.every else { return };
        if self.last.is_none_or(|last| now.saturating_duration_since(last) >= every) {
            self.send("WATCHDOG=1");
            self.last = Some(now);
        }
    }
}

/// A path, or with `@` in front a name in the abstract name space.
fn address(text: &OsStr) -> Option<SocketAddr> {
    match text.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
        [b'/', ..] => SocketAddr::from_pathname(text).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Manager(UnixDatagram);

    impl Manager {
        /// Everything that was said until now.
        fn heard(&self) -> Vec<String> {
            let mut bytes = [0; 512];
            let next = || self.0.recv(&mut bytes).ok().map(|n| bytes[..n].to_vec());
            std::iter::from_fn(next).map(|b| String::from_utf8(b).unwrap()).collect()
        }
    }

    #[test]
    fn everything_is_said_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("dormouse-test-{}", std::process::id());
        let by_name = SocketAddr::from_abstract_name(&name).unwrap();
        let sockets = [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (UnixDatagram::bind_addr(&by_name).unwrap(), format!("@{name}").into()),
        ];
        for (socket, address) in sockets {
            socket.set_nonblocking(true).unwrap();
            let manager = Manager(socket);
            let mut notify = Notify::new(Some(&address), None);
            notify.ready();
            notify.status("1 volume: LIVE");
            notify.status("1 volume: LIVE");
            notify.status("a\nREADY=0");
            notify.stopping();
            let expected = ["READY=1", "STATUS=1 volume: LIVE", "STATUS=a READY=0", "STOPPING=1"];
            assert_eq!(manager.heard(), expected);
            notify.reloading();
            let said = manager.heard();
            let us = said[0].strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
            let now = clock_gettime(ClockId::Monotonic).tv_sec.unsigned_abs();
            assert!(now - us.parse::<u64>().unwrap() / 1_000_000 <= 1, "{us}");
            notify.alive(Instant::now());
            assert!(manager.heard().is_empty(), "no watchdog was asked for");
        }
    }

    #[test]
    fn signs_of_life_come_at_half_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = Manager(UnixDatagram::bind(&path).unwrap());
        manager.0.set_nonblocking(true).unwrap();
        let mut notify = Notify::new(Some(path.as_os_str()), Some(OsStr::new("10000000")));
        assert_eq!(notify.every(), Some(Duration::from_secs(5)));
        let start = Instant::now();
        let mut at = |ms| {
            notify.alive(start + Duration::from_millis(ms));
            manager.heard().len()
        };
        assert_eq!([at(0), at(10), at(4999), at(5000), at(5001), at(10_000)], [1, 0, 0, 1, 0, 1]);
    }

    #[test]
    fn nobody_listens() {
        for socket in [None, Some(OsStr::new("")), Some(OsStr::new("/none")), Some(OsStr::new("x"))]
        {
            let mut notify = Notify::new(socket, Some(OsStr::new("x")));
            notify.ready();
            notify.alive(Instant::now());
            assert_eq!(notify.every(), None);
        }
    }
}
