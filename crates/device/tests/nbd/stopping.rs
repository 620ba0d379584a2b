//! How a server ends.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dormouse_device::layers::spec::Spec;
use dormouse_device::nbd::Limits;
use dormouse_device::{BlockDevice, Geometry, Result, Write as How};

use crate::client::{Chunk, Client, memory, serve};

/// Counts writes and flushes, and what was written before the last flush.
#[derive(Default)]
struct Counted {
    writes: AtomicU64,
    flushed: AtomicU64,
}

impl BlockDevice for Counted {
    fn geometry(&self) -> Geometry {
        Geometry { size: 1 << 20, block: 4096, read_only: false }
    }
    fn read(&self, _: u64, out: &mut [u8]) -> Result<()> {
        out.fill(0);
        Ok(())
    }
    fn write(&self, _: u64, _: &[u8], _: How) -> Result<()> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        self.flushed.store(self.writes.load(Ordering::SeqCst), Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn what_is_under_way_is_answered_and_flushed() {
    let disk = Arc::new(Counted::default());
    let slow = "delay=write:300ms".parse::<Spec>().unwrap().wrap(disk.clone());
    let mut running = serve(&[("disk", slow)], Limits::default());
    let mut client = running.connect();
    client.go("disk", true);
    for n in 0..10 {
        client.ask(1, 0, n * 4096, 4096, &[1; 4096]);
    }
    while running.server.as_ref().unwrap().connections() == 0 {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    assert!(running.server.take().unwrap().stop());
    assert!(begun.elapsed() < Duration::from_secs(5));
    for _ in 0..10 {
        assert!(matches!(client.part(0), (_, Chunk::None, true)));
    }
    client.is_closed();
    assert_eq!(disk.flushed.load(Ordering::SeqCst), 10);
    assert!(UnixStream::connect(&running.socket).is_err(), "nobody listens");
}

#[test]
fn a_peer_that_leaves_has_its_writes_flushed() {
    let disk = Arc::new(Counted::default());
    let running = serve(&[("disk", disk.clone())], Limits::default());
    for gently in [true, false] {
        let before = disk.writes.load(Ordering::SeqCst);
        let mut client = running.connect();
        client.go("disk", false);
        assert_eq!(client.writes(0, 0, &[1; 512]), 0);
        if gently {
            client.ask(2, 0, 0, 0, &[]);
        }
        drop(client);
        let begun = Instant::now();
        while disk.flushed.load(Ordering::SeqCst) != before + 1 {
            assert!(begun.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Connections come and go while a server ends, some of them silent, some half-way
/// (as in CVE-2024-7409).
#[test]
fn a_stop_among_connections_takes_a_bounded_time() {
    for _ in 0..10 {
        let limits = Limits { stop: Duration::from_secs(2), ..Limits::default() };
        let mut running = serve(&[("disk", memory(1 << 20))], limits);
        let socket = running.socket.clone();
        let ending = Arc::new(AtomicU64::new(0));
        let noise: Vec<_> = (0..4)
            .map(|n| {
                let (socket, ending) = (socket.clone(), Arc::clone(&ending));
                std::thread::spawn(move || {
                    let mut kept = Vec::new();
                    while ending.load(Ordering::SeqCst) == 0 {
                        let Ok(stream) = UnixStream::connect(&socket) else { break };
                        if n == 0 {
                            kept.push(stream);
                            kept.truncate(20);
                        }
                    }
                })
            })
            .collect();
        let mut client = Client::connect(&socket);
        client.go("disk", true);
        let begun = Instant::now();
        assert!(running.server.take().unwrap().stop(), "it did not end in time");
        let took = begun.elapsed();
        ending.store(1, Ordering::SeqCst);
        noise.into_iter().for_each(|t| t.join().unwrap());
        assert!(took < Duration::from_secs(3), "{took:?}");
        client.is_closed();
    }
}

/// A peer that asks for much and takes nothing does not keep a server from ending.
#[test]
fn a_peer_that_does_not_read_is_cut() {
    let limits = Limits { stop: Duration::from_millis(300), ..Limits::default() };
    let mut running = serve(&[("disk", memory(1 << 20))], limits);
    let mut client = running.connect();
    client.go("disk", true);
    for _ in 0..200 {
        client.ask(0, 4, 0, 1 << 20, &[]);
    }
    running.is_well();
    let begun = Instant::now();
    assert!(!running.server.take().unwrap().stop(), "it was cut");
    assert!(begun.elapsed() < Duration::from_secs(3));
}

/// As a kernel does: no handshake, both agree beforehand.
#[test]
fn a_socket_can_be_served_without_a_handshake() {
    let running = serve(&[("disk", memory(1 << 20))], Limits::default());
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = running.server.as_ref().unwrap();
    server.serve(OwnedFd::from(theirs), "disk").unwrap();
    let mut client = Client::raw(&running.socket);
    client.stream = ours;
    assert_eq!(client.read(512, 512).unwrap(), [2; 512]);
    let (_, other) = UnixStream::pair().unwrap();
    assert!(server.serve(OwnedFd::from(other), "none").is_err());
}
