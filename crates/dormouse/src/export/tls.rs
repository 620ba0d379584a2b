//! TLS for NBD: certificates as GnuTLS users keep them, TLS 1.3.
//!
//! Invariants: clients show a certificate of the authority unless the user says otherwise;
//! nothing is resumed, because resumption skips the verifier. Leaves to others: when TLS begins
//! (`dormouse_device::nbd::handshake`).

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use dormouse_device::nbd::{Socket, StartTls, Stream, Wait};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use crate::exit::{Class, Failure};

/// How long a good-bye may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// Bytes that are encrypted at a time.
const PART: usize = 64 << 10;

/// The server's side.
struct Server(Arc<ServerConfig>);

fn unfit(path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::new(Class::Place, format!("{}: {why}", path.display())).hint(
        "--tls-certificates wants ca-cert.pem, server-cert.pem and server-key.pem in its directory",
    )
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let all: Vec<_> = all.map_err(|e| unfit(path, e))?;
    if all.is_empty() { Err(unfit(path, "there is no certificate in it")) } else { Ok(all) }
}

/// Reads the certificates of a directory.
pub fn load(dir: &Path, any_client: bool) -> Result<Arc<dyn StartTls>> {
    let (chain_at, key_at) = (dir.join("server-cert.pem"), dir.join("server-key.pem"));
    let chain = certificates(&chain_at)?;
    let key = PrivateKeyDer::from_pem_file(&key_at).map_err(|e| unfit(&key_at, e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| unfit(dir, e))?;
    let config = if any_client {
        config.with_no_client_auth()
    } else {
        let ca_at = dir.join("ca-cert.pem");
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&ca_at)? {
            roots.add(certificate).map_err(|e| unfit(&ca_at, e))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        config.with_client_cert_verifier(verifier.build().map_err(|e| unfit(&ca_at, e))?)
    };
    let mut config = config.with_single_cert(chain, key).map_err(|e| unfit(&chain_at, e))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(Server(Arc::new(config))))
}

impl StartTls for Server {
    fn start(&self, socket: Socket, until: Instant) -> io::Result<Box<dyn Stream>> {
        let tls = ServerConnection::new(Arc::clone(&self.0)).map_err(io::Error::other)?;
        let mut stream = Encrypted { socket, tls };
        while stream.tls.is_handshaking() {
            stream.send_pending(Wait::Until(until))?;
            if !stream.read_more(Wait::Until(until))? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        stream.send_pending(Wait::Until(until))?;
        Ok(Box::new(stream))
    }
}

/// A connection under TLS.
struct Encrypted {
    socket: Socket,
    tls: ServerConnection,
}

/// What `rustls` reads from.
struct Waiting<'a>(&'a mut Socket, Wait);

impl Read for Waiting<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.receive(out, self.1)
    }
}

impl Encrypted {
    /// Takes what came; false at the end.
    fn read_more(&mut self, wait: Wait) -> io::Result<bool> {
        let came = self.tls.read_tls(&mut Waiting(&mut self.socket, wait))?;
        if let Err(error) = self.tls.process_new_packets() {
            // The peer is told why.
            let _ = self.send_pending(Wait::Until(Instant::now() + FAREWELL));
            return Err(io::Error::new(ErrorKind::InvalidData, format!("TLS: {error}")));
        }
        Ok(came > 0)
    }

    fn send_pending(&mut self, wait: Wait) -> io::Result<()> {
        let mut sealed = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut sealed)?;
        }
        self.socket.send_all(&sealed, wait)
    }
}

impl Stream for Encrypted {
    fn receive(&mut self, out: &mut [u8], wait: Wait) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(out) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                // Cut without a good-bye: as good as an end, since requests tell their lengths.
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            if !self.read_more(wait)? {
                return Ok(0);
            }
            // Such as an answer to a change of keys.
            if self.tls.wants_write() {
                self.send_pending(Wait::Until(Instant::now() + FAREWELL))?;
            }
        }
    }

    fn send_all(&mut self, bytes: &[u8], wait: Wait) -> io::Result<()> {
        for part in bytes.chunks(PART) {
            self.tls.writer().write_all(part)?;
            self.send_pending(wait)?;
        }
        Ok(())
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.socket()
    }

    fn close(&mut self) {
        self.tls.send_close_notify();
        let _ = self.send_pending(Wait::Until(Instant::now() + FAREWELL));
    }
}
