//! Handshakes that must fail, each with its own reason, and links that end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse::exit::{Class, of_fault};
use dormouse::link::{Link, LinkError};
use dormouse::tls::{self, Fault, ServerTls, Shaken};
use dormouse_crypt::{OsRandom, SigningKey, hash, keys};
use dormouse_format::limits::FRAME_MAX;
use dormouse_format::message::{ALPN, Deframer, Message};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, HandshakeKind, ServerConfig,
    ServerConnection, SignatureScheme,
};

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

/// Accepts any raw key: what a client may be that does not check as ours does.
#[derive(Debug)]
struct Credulous(Arc<CryptoProvider>);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(spki.as_ref());
        let known = &self.0.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, dss, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn certified(key: &SigningKey) -> Arc<CertifiedKey> {
    let pkcs8 = PrivatePkcs8KeyDer::from(key.pkcs8().to_vec());
    let private = ring::default_provider().key_provider.load_private_key(pkcs8.into()).unwrap();
    Arc::new(CertifiedKey::new(vec![keys::to_spki(&key.public()).into()], private))
}

/// A client of rustls as it comes, with resumption; without a key if `key` is none.
fn plain_client(key: Option<&SigningKey>) -> Arc<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous(provider)));
    let mut config = match key {
        Some(key) => config.with_client_cert_resolver(Arc::new(
            rustls::client::AlwaysResolvesClientRawPublicKeys::new(certified(key)),
        )),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

/// Connects, reads one byte, and with it all that a server sends after a handshake.
fn connect_plain(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> std::io::Result<Option<HandshakeKind>> {
    let name = ServerName::try_from("dormouse").unwrap();
    let mut tls = ClientConnection::new(config.clone(), name).unwrap();
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(WAIT))?;
    rustls::Stream::new(&mut tls, &mut socket).read_exact(&mut [0])?;
    Ok(tls.handshake_kind())
}

#[test]
fn nothing_is_resumed_even_for_a_client_that_would() {
    let server = key();
    let client = plain_client(Some(&key()));
    let tls = ServerTls::new(&server).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        [(); 2].map(|()| {
            let mut socket = listener.accept().unwrap().0;
            let Connection::Server(mut tls) = tls.accept(&socket, WAIT).unwrap().connection else {
                panic!("a server is the server");
            };
            rustls::Stream::new(&mut tls, &mut socket).write_all(b"x").unwrap();
            tls.handshake_kind()
        })
    });
    for _ in 0..2 {
        assert_eq!(connect_plain(address, &client).unwrap(), Some(HandshakeKind::Full));
    }
    assert_eq!(thread.join().unwrap(), [Some(HandshakeKind::Full); 2]);

    // Such a client does resume at a server that lets it.
    let client = plain_client(None);
    let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(certified(&server));
    let provider = Arc::new(ring::default_provider());
    let mut lenient = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    lenient.alpn_protocols = vec![ALPN.to_vec()];
    let lenient = Arc::new(lenient);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        for _ in 0..2 {
            let mut socket = listener.accept().unwrap().0;
            let mut tls = ServerConnection::new(lenient.clone()).unwrap();
            rustls::Stream::new(&mut tls, &mut socket).write_all(b"x").unwrap();
        }
    });
    let kinds = [(); 2].map(|()| connect_plain(address, &client).unwrap());
    assert_eq!(kinds, [Some(HandshakeKind::Full), Some(HandshakeKind::Resumed)]);
    thread.join().unwrap();
}

#[test]
fn a_client_without_a_key_is_refused() {
    let tls = ServerTls::new(&key()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let socket = listener.accept().unwrap().0;
        tls.accept(&socket, WAIT).map(|_| ())
    });
    let refused = connect_plain(address, &plain_client(None)).unwrap_err();
    assert!(refused.to_string().contains("alert"), "{refused}");
    assert!(thread.join().unwrap().is_err());
}

/// A ClientHello as TLS 1.2 has it, with our protocol's name: no supported_versions. Written
/// by hand, because the TLS here is built without 1.2.
fn hello_of_tls_12() -> Vec<u8> {
    let with_len = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &with_len(body)].concat();
    let alpn = [&[ALPN.len() as u8][..], ALPN].concat();
    let extensions = [
        extension(10, &with_len(&[0, 0x1d])),    // groups: x25519
        extension(11, &[1, 0]),                  // points: uncompressed
        extension(13, &with_len(&[8, 7, 4, 3])), // signatures: Ed25519, ECDSA
        extension(16, &with_len(&alpn)),         // application protocols
        extension(23, &[]),                      // extended master secret
        extension(19, &[1, 2]),                  // client's key: raw
        extension(20, &[1, 2]),                  // server's key: raw
    ]
    .concat();
    // ECDHE-ECDSA with AES-256-GCM and AES-128-GCM.
    let suites = [0xc0, 0x2c, 0xc0, 0x2b];
    let body = [&[3, 3][..], &[7; 32], &[0], &with_len(&suites), &[1, 0], &with_len(&extensions)];
    let body = body.concat();
    let hello = [&[1, 0][..], &with_len(&body)].concat();
    [&[22, 3, 1][..], &with_len(&hello)].concat()
}

#[test]
fn tls_12_is_refused() {
    let tls = ServerTls::new(&key()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(WAIT)).unwrap();
    client.write_all(&hello_of_tls_12()).unwrap();
    let socket = listener.accept().unwrap().0;
    let fault = tls.accept(&socket, WAIT).unwrap_err();
    drop(socket);
    assert_eq!(fault, Fault::NotDormouse);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    // An alert, fatal: protocol_version. A hello that could not be read would be decode_error.
    assert_eq!((answer[0], &answer[3..]), (21, &[0, 2, 2, 70][..]), "{answer:?}");
}

/// A server's link that may rest, and the raw other side of it.
fn resting() -> (Link, TcpStream, Connection) {
    let (server, client) = shake(ALPN, ALPN, true);
    let (socket, shaken) = server.unwrap();
    let (deframer, quiet) = (Deframer::new(FRAME_MAX), Duration::from_millis(50));
    let link = Link::start_resting(socket, shaken.connection, deframer, quiet).unwrap();
    link.may_rest(true);
    let (socket, shaken) = client.unwrap();
    (link, socket, shaken.connection)
}

fn say(socket: &mut TcpStream, connection: &mut Connection, bytes: &[u8]) {
    connection.writer().write_all(bytes).unwrap();
    while connection.wants_write() {
        connection.write_tls(socket).unwrap();
    }
}

#[test]
fn a_link_rests_and_loses_nothing_not_even_half_a_message() {
    let (mut link, mut socket, mut connection) = resting();
    let frame = Message::Barrier.encode();
    for round in 0..3 {
        say(&mut socket, &mut connection, &frame[..2]);
        assert!(link.rx.recv_timeout(WAIT).is_err(), "round {round}: it ends without an error");
        assert!(link.rest().unwrap());
        // While it rests.
        say(&mut socket, &mut connection, &frame[2..]);
        link.wake().unwrap();
        assert_eq!(link.rx.recv_timeout(WAIT).unwrap(), Ok(Message::Barrier));
        link.tx.send(Message::Durable).unwrap();
        let mut answer = vec![0; Message::Durable.encode().len()];
        while connection.reader().read(&mut answer).is_err() {
            connection.read_tls(&mut socket).unwrap();
            connection.process_new_packets().unwrap();
        }
        assert_eq!(answer, Message::Durable.encode());
        link.may_rest(true);
    }
    assert!(link.rx.recv_timeout(WAIT).is_err());
    assert!(link.rest().unwrap());
    let began = Instant::now();
    drop(link);
    assert!(began.elapsed() < Duration::from_secs(1), "nobody is waited for");
    assert_eq!(socket.read(&mut [0; 100]).unwrap(), 0, "and its socket is closed");
}

#[test]
fn a_link_rests_only_when_it_may_and_nothing_waits_to_be_sent() {
    let (mut link, mut socket, mut connection) = resting();
    link.may_rest(false);
    let heard = link.rx.recv_timeout(Duration::from_millis(500));
    assert_eq!(heard, Err(crossbeam_channel::RecvTimeoutError::Timeout));
    // The other side takes nothing.
    let mut full = 0;
    while full < 10 {
        if link.tx.queued() < 1 << 20 {
            link.tx.send(Message::Record { record: vec![1; 1 << 20] }).unwrap();
            full = 0;
        }
        full += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    link.may_rest(true);
    let heard = link.rx.recv_timeout(WAIT);
    assert_eq!(heard, Err(crossbeam_channel::RecvTimeoutError::Disconnected));
    assert!(!link.rest().unwrap());
    // It still listens.
    say(&mut socket, &mut connection, &Message::Barrier.encode());
    assert_eq!(link.rx.recv_timeout(WAIT).unwrap(), Ok(Message::Barrier));
    link.cut();
}
