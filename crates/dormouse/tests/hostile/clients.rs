//! Clients that have not said who they are, and do not mean to. The real server bounds what
//! they cost, says in its log why it ended them, and serves the others meanwhile.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dormouse::home::Home;
use dormouse_format::limits::FRAME_MAX_UNAUTHENTICATED;
use dormouse_format::message::{Message, Refusal};
use rustix::net::{AddressFamily, SocketType};

use crate::common::program::{Place, Serving, log_of};
use crate::liar::Wire;
use crate::memory;

const FIRST_WAIT: Duration = Duration::from_secs(10);

/// A server with 'home' joined, and its account.
pub fn served(more: &[&str]) -> (Place, Serving, dormouse::home::Account) {
    let place = Place::new();
    let server = Serving::start_with(&place.path("store"), "127.0.0.1:0", more);
    place.join_server("home", "laptop", &server);
    place.run(&["recovery-kit", &place.name("kit")]).ok();
    let account = Home::locate(Some(place.path("home"))).unwrap().account().unwrap();
    (place, server, account)
}

/// Waits until the server's log has these words.
#[track_caller]
pub fn logged(place: &Place, words: &str) {
    let began = Instant::now();
    loop {
        let log = std::fs::read_to_string(log_of(&place.path("store"))).unwrap();
        if log.contains(words) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "'{words}' is not in: {log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Until the server closes: how long that took.
fn closed(mut socket: &TcpStream) -> Duration {
    let began = Instant::now();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut sink = [0; 4096];
    loop {
        match socket.read(&mut sink) {
            Ok(0) => return began.elapsed(),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return began.elapsed(),
            Err(e) => panic!("the server did not close: {e}"),
        }
    }
}

/// Sends a byte now and then until the server has had enough; how long that took.
fn trickle(mut send: impl FnMut() -> io::Result<()>) -> Duration {
    let began = Instant::now();
    while send().is_ok() {
        assert!(began.elapsed() < Duration::from_secs(60), "the server has no end of patience");
        std::thread::sleep(Duration::from_millis(100));
    }
    began.elapsed()
}

/// A TLS record that says it has 16 KiB of a handshake message of 60 KiB.
const HELLO: [u8; 9] = [22, 3, 1, 0x40, 0, 1, 0, 0xea, 0x60];

/// Ten seconds in all, not for each byte; for each part of coming in.
#[test]
fn a_trickle_has_ten_seconds_in_all() {
    let (place, server, account) = served(&[]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let socket = TcpStream::connect(&server.address).unwrap();
            (&socket).write_all(&HELLO).unwrap();
            let took = trickle(|| (&socket).write_all(&[0]));
            assert!(took < FIRST_WAIT + Duration::from_secs(3), "TLS: {took:?}");
        });
        scope.spawn(|| {
            let socket = TcpStream::connect(&server.address).unwrap();
            let took = closed(&socket);
            assert!(took < FIRST_WAIT + Duration::from_secs(3), "silence: {took:?}");
        });
        scope.spawn(|| {
            let mut wire = Wire::connect(&account, &server.address);
            let frame = [&(FRAME_MAX_UNAUTHENTICATED as u32).to_le_bytes()[..], &[2]].concat();
            wire.raw(&frame).unwrap();
            let took = trickle(|| wire.raw(&[0]));
            assert!(took < FIRST_WAIT + Duration::from_secs(3), "message: {took:?}");
        });
        scope.spawn(|| {
            let wire = Wire::connect(&account, &server.address);
            let took = closed(&wire.socket);
            assert!(took < FIRST_WAIT + Duration::from_secs(3), "no message: {took:?}");
        });
    });
    logged(&place, "said nothing");
    logged(&place, "no answer within 10 s");
    place.run(&["points"]).ok();
}

#[test]
fn garbage_and_half_a_connection_end_at_once() {
    let (place, server, account) = served(&[]);
    let long = vec![0x16; 1 << 20];
    for (bytes, words) in [
        (&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], "does not speak TLS"),
        (b"SSH-2.0-x\r\n", "does not speak TLS"),
        (&[0xff; 600], "does not speak TLS"),
        (&long, "handshake"),
        (&[22, 3, 1, 255, 255], "handshake"),
    ] {
        let socket = TcpStream::connect(&server.address).unwrap();
        let _ = (&socket).write_all(bytes);
        assert!(closed(&socket) < Duration::from_secs(3), "{bytes:?}");
        logged(&place, words);
    }
    // Half closed, before, within and after the handshake.
    let socket = TcpStream::connect(&server.address).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    assert!(closed(&socket) < Duration::from_secs(3));
    let socket = TcpStream::connect(&server.address).unwrap();
    (&socket).write_all(&HELLO).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    assert!(closed(&socket) < Duration::from_secs(3));
    let wire = Wire::connect(&account, &server.address);
    wire.socket.shutdown(Shutdown::Write).unwrap();
    assert!(closed(&wire.socket) < Duration::from_secs(3));
    logged(&place, "went away before it said who it is");
    place.run(&["points"]).ok();
}

#[test]
fn a_first_message_that_is_none() {
    let (place, server, account) = served(&[]);
    let over = (FRAME_MAX_UNAUTHENTICATED as u32 + 1).to_le_bytes();
    for frame in [
        &over[..],
        &u32::MAX.to_le_bytes(),
        &[0; 4],
        // An Enrol whose name has 4 GiB, and one with that many records.
        &[&197u32.to_le_bytes()[..], &[2], &[7; 160], &[255; 36]].concat(),
        &[&169u32.to_le_bytes()[..], &[2], &[7; 160], &[0; 4], &[255; 4]].concat(),
        &[1, 0, 0, 0, 0x7f],
    ] {
        let mut wire = Wire::connect(&account, &server.address);
        wire.raw(frame).unwrap();
        let said = wire.next().unwrap();
        let Some(Message::Error { refusal, .. }) = said else { panic!("{frame:?}: {said:?}") };
        assert_eq!(refusal, Refusal::Protocol);
        assert_eq!(wire.next().unwrap(), None);
    }
    for message in [Message::ListVolumes, Message::Barrier, Message::Done] {
        let mut wire = Wire::connect(&account, &server.address);
        let said = wire.ask(&message);
        assert!(matches!(said, Message::Error { refusal: Refusal::Protocol, .. }), "{said:?}");
    }
    logged(&place, "the first message is not one");
    logged(&place, "say who you are first");
    assert!(memory(server.child.id(), "VmHWM:").unwrap() < 64 << 20);
    place.run(&["points"]).ok();
}

/// Connections that come back at once when they are closed, from ten addresses, more than
/// there are places.
struct Crowd {
    stop: Arc<AtomicBool>,
    came: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    fn new(server: &str, number: u8) -> Self {
        let (stop, came) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let server: SocketAddr = server.parse().unwrap();
        let one = |n: u8| {
            let (stop, came) = (stop.clone(), came.clone());
            std::thread::spawn(move || {
                let from = SocketAddrV4::new(Ipv4Addr::new(127, 2, 0, 1 + n / 20), 0);
                while !stop.load(Ordering::Relaxed) {
                    let fd = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None);
                    let fd = fd.unwrap();
                    rustix::net::bind(&fd, &from).unwrap();
                    if rustix::net::connect(&fd, &server).is_err() {
                        continue;
                    }
                    came.fetch_add(1, Ordering::Relaxed);
                    let mut socket = TcpStream::from(fd);
                    let wait = Duration::from_millis(100);
                    socket.set_read_timeout(Some(wait)).unwrap();
                    let stays = |e: &io::Error| e.kind() == io::ErrorKind::WouldBlock;
                    while socket.read(&mut [0]).is_err_and(|e| stays(&e)) {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                }
            })
        };
        let threads = (0..number).map(one).collect();
        Self { stop, came, threads }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|t| t.join().unwrap());
    }
}

/// Two hundred strangers for 128 places: who comes then gets in, again and again.
#[test]
fn strangers_that_hold_all_places_keep_nobody_out() {
    let place = Place::new();
    let server = Serving::start_limited(&place.path("store"), "127.0.0.1:0", 1024);
    logged(&place, "only 1024 open files are allowed");
    place.join_server("home", "laptop", &server);
    std::fs::write(place.path("some"), vec![7; 1 << 20]).unwrap();
    let crowd = Crowd::new(&server.address, 200);
    let began = Instant::now();
    while crowd.came.load(Ordering::Relaxed) < 200 {
        assert!(began.elapsed() < Duration::from_secs(10), "they do not all come");
        std::thread::sleep(Duration::from_millis(10));
    }
    for _ in 0..5 {
        let began = Instant::now();
        place.run(&["volumes"]).ok();
        // A place changes hands after a second at most, and 72 may be before this one.
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
    place.mirror("some");
    let came = crowd.came.load(Ordering::Relaxed);
    let rate = came as f64 / began.elapsed().as_secs_f64();
    // Those without a hello have 250 ms each, and come back at once.
    assert!(rate < 4.0 * 128.0 * 1.5, "{came} came, {rate:.0} a second");
    drop(crowd);
    assert!(memory(server.child.id(), "VmHWM:").unwrap() < 64 << 20);
    place.restores("some", &vec![7; 1 << 20]);
    let log = std::fs::read_to_string(log_of(&place.path("store"))).unwrap();
    let lines = log.lines().count() as u64;
    assert!(lines < 200 + 21 * began.elapsed().as_secs(), "{lines} lines: strangers fill the log");
}

/// Each byte in a packet and a TLS record of its own.
#[test]
fn a_message_in_pieces_is_the_same_message() {
    let (_place, server, account) = served(&[]);
    let mut wire = Wire::connect(&account, &server.address);
    let hello = Message::Hello { instance: account.instance };
    let frames =
        [hello.encode(), Message::ListVolumes.encode(), Message::Barrier.encode()].concat();
    for byte in frames {
        wire.raw(&[byte]).unwrap();
    }
    assert!(matches!(wire.next().unwrap(), Some(Message::Welcome { .. })));
    assert_eq!(wire.next().unwrap(), Some(Message::Volumes { items: Vec::new() }));
    assert_eq!(wire.next().unwrap(), Some(Message::Durable));
    // And all of them at once, cut at each place.
    let frames = [hello.encode(), Message::ListVolumes.encode()].concat();
    for at in 1..frames.len() {
        let mut wire = Wire::connect(&account, &server.address);
        wire.raw(&frames[..at]).unwrap();
        wire.raw(&frames[at..]).unwrap();
        assert!(matches!(wire.next().unwrap(), Some(Message::Welcome { .. })), "{at}");
        assert!(matches!(wire.next().unwrap(), Some(Message::Volumes { .. })), "{at}");
    }
}
