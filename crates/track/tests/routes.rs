//! Changes of the network are noticed, in a network namespace of its own. Needs root and `ip`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::process::Command;
use std::thread;

use dormouse_track::routes::RouteWatch;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs `test` in a network with nothing but a loopback interface that is down; or says why not.
fn in_a_network_of_its_own(test: fn()) {
    if let Err(error) = Command::new("ip").arg("-V").output() {
        return eprintln!("SKIPPED: cannot run ip: {error} (apt-get install iproute2)");
    }
    let in_it = move || {
        #[allow(unsafe_code, reason = "only the network is unshared, and by this thread alone")]
        // SAFETY: unsafe only with UnshareFlags::FILES.
        let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
        match unshared {
            Ok(()) => test(),
            Err(error) => eprintln!("SKIPPED: no network namespace: {error} (needs root)"),
        }
    };
    thread::spawn(in_it).join().unwrap();
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn readable(watch: &RouteWatch) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&now)).unwrap() == 1
}

#[test]
fn a_route_an_address_and_an_interface_are_noticed() {
    in_a_network_of_its_own(|| {
        let watch = RouteWatch::new().unwrap();
        assert!(!readable(&watch) && !watch.drain().unwrap(), "nothing happened yet");
        for change in [
            "link set lo up",
            "link set lo alias door",
            "addr add 192.0.2.1/32 dev lo",
            "addr change 192.0.2.1/32 dev lo valid_lft 900 preferred_lft 900",
            "route add 198.51.100.0/24 dev lo",
            "route del 198.51.100.0/24 dev lo",
            "-6 addr add 2001:db8::1/128 dev lo nodad",
            "-6 addr change 2001:db8::1/128 dev lo valid_lft 900 preferred_lft 900",
            "-6 route add 2001:db8:1::/48 dev lo",
            "link set lo down",
        ] {
            ip(change);
            assert!(readable(&watch), "{change}");
            assert!(watch.drain().unwrap(), "{change}");
            assert!(!readable(&watch) && !watch.drain().unwrap(), "{change}: told once");
        }
    });
}

#[test]
fn what_the_kernel_dropped_is_news_too() {
    in_a_network_of_its_own(|| {
        let watch = RouteWatch::new().unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&watch, 1).unwrap();
        ip("link set lo up");
        let batch: String = (0..400)
            .map(|n| format!("route add 198.51.{}.{}/32 dev lo\n", n / 200, n % 200))
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), batch).unwrap();
        ip(&format!("-batch {}", file.path().display()));
        assert!(watch.drain().unwrap());
        assert!(!watch.drain().unwrap());
    });
}
