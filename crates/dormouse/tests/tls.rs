//! Handshakes that must fail, each with its own reason, and links that end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use dormouse::exit::{Class, of_fault};
use dormouse::link::{Link, LinkError};
use dormouse::tls::{self, Fault, ServerTls, Shaken};
use dormouse_crypt::{OsRandom, SigningKey, hash};
use dormouse_format::limits::FRAME_MAX;
use dormouse_format::message::{ALPN, Deframer, Message};

const WAIT: Duration = Duration::from_secs(5);

fn key() -> SigningKey {
    SigningKey::generate(&mut OsRandom).unwrap()
}

type Side = Result<(TcpStream, Shaken), Fault>;

/// Shakes hands on loopback with the given protocol names and pin.
fn shake(server_alpn: &'static [u8], client_alpn: &[u8], right_pin: bool) -> (Side, Side) {
    let server = key();
    let pin = if right_pin { hash::fingerprint(&server.public()) } else { [7; 32] };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let socket = listener.accept().unwrap().0;
        let tls = ServerTls::with_alpn(&server, server_alpn).unwrap();
        tls.accept(&socket, WAIT).map(|s| (socket, s))
    });
    let socket = TcpStream::connect(address).unwrap();
    let client = tls::client_with_alpn(&socket, &key(), &pin, WAIT, client_alpn);
    let client = client.map(|s| (socket, s));
    (thread.join().unwrap(), client)
}

fn links() -> (Link, Link) {
    let (server, client) = shake(ALPN, ALPN, true);
    let start = |(socket, shaken): (TcpStream, Shaken)| {
        Link::start(socket, shaken.connection, Deframer::new(FRAME_MAX)).unwrap()
    };
    (start(server.unwrap()), start(client.unwrap()))
}

#[test]
fn both_sides_agree_on_what_proofs_sign() {
    let (server, client) = shake(ALPN, ALPN, true);
    let (server, client) = (server.unwrap().1.binding, client.unwrap().1.binding);
    assert_eq!(server.exporter, client.exporter);
    assert_eq!((server.client, server.server), (client.client, client.server));
    let other = shake(ALPN, ALPN, true).1.unwrap().1.binding;
    assert_ne!(other.exporter, client.exporter);
}

#[test]
fn another_version_is_told_on_both_sides() {
    let (server, client) = shake(ALPN, b"dormouse/2", true);
    let (server, client) = (server.unwrap_err(), client.unwrap_err());
    assert!(matches!(&server, Fault::Version(v) if v.contains("dormouse/2")), "{server}");
    assert!(matches!(client, Fault::Version(_)), "{client}");
    assert_eq!(of_fault(&client).0, Class::Version);
    let (_, client) = shake(b"dormouse/9", ALPN, true);
    assert!(matches!(client.unwrap_err(), Fault::Version(_)));
    let (server, _) = shake(ALPN, b"h2", true);
    assert_eq!(server.unwrap_err(), Fault::NotDormouse);
}

#[test]
fn a_wrong_server_key_names_both_fingerprints() {
    let (server, client) = shake(ALPN, ALPN, false);
    let Err(Fault::WrongKey { expected, found }) = client else { panic!("{client:?}") };
    assert_eq!(expected, "07".repeat(32));
    assert_ne!(found, expected);
    assert!(server.is_err());
}

#[test]
fn what_is_not_a_server_of_ours_is_told() {
    for (answer, fault) in [
        (&b"SSH-2.0-OpenSSH_9.2\r\n"[..], Fault::NotTls),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Fault::NotTls),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let mut socket = listener.accept().unwrap().0;
            socket.write_all(answer).unwrap();
            let _ = socket.read(&mut [0; 4096]);
            std::thread::sleep(Duration::from_millis(100));
        });
        let socket = TcpStream::connect(address).unwrap();
        assert_eq!(tls::client(&socket, &key(), &[0; 32], WAIT).unwrap_err(), fault);
        thread.join().unwrap();
    }
}

#[test]
fn a_silent_peer_costs_no_more_than_the_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let began = Instant::now();
    let limit = Duration::from_millis(300);
    let fault = tls::client(&socket, &key(), &[0; 32], limit).unwrap_err();
    assert!(matches!(fault, Fault::Timeout(_)), "{fault}");
    let peer = listener.accept().unwrap().0;
    let mut sink = [0; 4096];
    let _ = (&peer).read(&mut sink);
    let silent = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let accepted = listener.accept().unwrap().0;
    let fault = ServerTls::new(&key()).unwrap().accept(&accepted, limit).unwrap_err();
    assert!(matches!(fault, Fault::Timeout(_)), "{fault}");
    assert!(began.elapsed() < Duration::from_secs(3));
    drop(silent);
}

#[test]
fn messages_of_all_sizes_arrive_in_order_both_ways() {
    let (server, client) = links();
    std::thread::scope(|scope| {
        for (from, to) in [(&server, &client), (&client, &server)] {
            let record = |i: usize| vec![i as u8; (i * 7919) % 600_000];
            scope.spawn(move || {
                for i in 0..300 {
                    from.tx.send(Message::Put { record: record(i) }).unwrap();
                }
            });
            scope.spawn(move || {
                for i in 0..300 {
                    assert_eq!(to.rx.recv().unwrap(), Ok(Message::Put { record: record(i) }));
                }
            });
        }
    });
}

#[test]
fn a_link_that_is_dropped_says_goodbye_and_does_not_hang() {
    let (server, client) = links();
    client.tx.send(Message::Barrier).unwrap();
    drop(client);
    assert_eq!(server.rx.recv().unwrap(), Ok(Message::Barrier));
    assert_eq!(server.rx.recv().unwrap(), Err(LinkError::Closed));
    assert!(server.rx.recv().is_err());
    assert!(server.tx.send(Message::Durable).is_err());
}

#[test]
fn a_sender_that_waits_wakes_when_the_link_is_cut() {
    let (server, client) = links();
    let tx = client.tx.clone();
    let thread =
        std::thread::spawn(
            move || {
                while tx.send(Message::Put { record: vec![1; 1 << 20] }).is_ok() {}
            },
        );
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    server.cut();
    thread.join().unwrap();
    drop(client);
    drop(server);
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

#[test]
fn a_frame_over_the_limit_ends_the_link_before_it_is_kept() {
    let (server, client) = shake(ALPN, ALPN, true);
    let (socket, shaken) = server.unwrap();
    let server = Link::start(socket, shaken.connection, Deframer::new(1000)).unwrap();
    let (socket, shaken) = client.unwrap();
    let client = Link::start(socket, shaken.connection, Deframer::new(FRAME_MAX)).unwrap();
    client.tx.send(Message::Put { record: vec![0; 2000] }).unwrap();
    assert!(matches!(server.rx.recv().unwrap(), Err(LinkError::Protocol(_))));
}
