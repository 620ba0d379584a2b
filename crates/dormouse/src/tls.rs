//! TLS 1.3 with raw public keys both ways (RFC 7250).
//!
//! Owns: the configurations and verifiers of both sides, the handshake, and what
//! its failures mean. Invariant: a handshake succeeds only with the pinned server
//! key, an Ed25519 client key whose signature holds, and our protocol version by
//! ALPN. Nothing is resumed: no tickets, no session store, no early data, because
//! resumption skips the verifiers. Leaves to others: whether the client may
//! ([`crate::access`]).

use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormouse_crypt::invite::{Binding, EXPORTER_LABEL, EXPORTER_LEN};
use dormouse_crypt::{SigningKey, hash, keys};
use dormouse_format::PublicKey;
use dormouse_format::message::{ALPN, ALPN_PREFIX};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer,
    UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Connection, DigitallySignedStruct,
    DistinguishedName, Error, PeerIncompatible, ServerConfig, SignatureScheme, sign::CertifiedKey,
};

use crate::text::hex;

/// Why a TLS connection did not come about, or ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The other side speaks, but not TLS.
    #[error("what answers there does not speak TLS")]
    NotTls,
    /// The other side speaks TLS, but not with raw keys or not our protocol.
    #[error("what answers there speaks TLS, but it is not Dormouse")]
    NotDormouse,
    /// Another version of our protocol.
    #[error("the other side speaks another version of the protocol ({0})")]
    Version(String),
    /// The server showed another key than the pinned one.
    #[error("the server's key is not the expected one: expected {expected}, found {found}")]
    WrongKey {
        /// Fingerprint that was pinned.
        expected: String,
        /// Fingerprint that was shown.
        found: String,
    },
    /// Not in time.
    #[error("no answer within {0} s")]
    Timeout(u64),
    /// The socket failed or ended.
    #[error("{0}")]
    Cut(String),
    /// Anything else that TLS found wrong.
    #[error("TLS: {0}")]
    Other(String),
}

type Outcome<T> = Result<T, Fault>;

fn other(error: impl std::fmt::Display) -> Fault {
    Fault::Other(error.to_string())
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    // AES-256-GCM alone: fastest here, and what the store is sealed with.
    provider.cipher_suites.retain(|s| s.suite() == rustls::CipherSuite::TLS13_AES_256_GCM_SHA384);
    Arc::new(provider)
}

fn certified(key: &SigningKey, provider: &CryptoProvider) -> Outcome<Arc<CertifiedKey>> {
    let pkcs8 = PrivatePkcs8KeyDer::from(key.pkcs8().to_vec());
    let private =
        provider.key_provider.load_private_key(PrivateKeyDer::Pkcs8(pkcs8)).map_err(other)?;
    let spki = CertificateDer::from(keys::to_spki(&key.public()));
    Ok(Arc::new(CertifiedKey::new(vec![spki], private)))
}

fn check_signature(
    provider: &CryptoProvider,
    message: &[u8],
    spki: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    if dss.scheme != SignatureScheme::ED25519 {
        return Err(Error::General("the key is not an Ed25519 key".into()));
    }
    verify_tls13_signature_with_raw_key(
        message,
        &SubjectPublicKeyInfoDer::from(spki.as_ref()),
        dss,
        &provider.signature_verification_algorithms,
    )
}

/// Accepts one server key.
#[derive(Debug)]
struct Pin {
    provider: Arc<CryptoProvider>,
    fingerprint: [u8; 32],
    found: Mutex<Option<[u8; 32]>>,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let key = keys::from_spki(end_entity)
            .ok_or_else(|| Error::General("the server's key is not an Ed25519 key".into()))?;
        let found = hash::fingerprint(&key);
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        if found == self.fingerprint {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(&self.provider, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Accepts every Ed25519 key whose signature holds; what it may is decided after.
#[derive(Debug)]
struct AnyKey {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match keys::from_spki(end_entity) {
            Some(_) => Ok(ClientCertVerified::assertion()),
            None => Err(Error::General("the client's key is not an Ed25519 key".into())),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(&self.provider, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The server's configuration, for any number of connections.
#[derive(Debug, Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    key: PublicKey,
    alpn: Vec<u8>,
}

impl ServerTls {
    /// With the server's transport key.
    pub fn new(key: &SigningKey) -> Outcome<Self> {
        Self::with_alpn(key, ALPN)
    }

    /// With another protocol version: for tests of a mismatch.
    pub fn with_alpn(key: &SigningKey, alpn: &[u8]) -> Outcome<Self> {
        let provider = provider();
        let resolver =
            rustls::server::AlwaysResolvesServerRawPublicKeys::new(certified(key, &provider)?);
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(other)?
            .with_client_cert_verifier(Arc::new(AnyKey { provider }))
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![alpn.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Ok(Self { config: Arc::new(config), key: key.public(), alpn: alpn.to_vec() })
    }

    /// Shakes hands with a client that has connected.
    pub fn accept(&self, socket: &TcpStream, limit: Duration) -> Outcome<Shaken> {
        self.accept_telling(socket, limit, || ())
    }

    /// The same; `greeted` is called when the client's hello is there, whole.
    pub(crate) fn accept_telling(
        &self,
        socket: &TcpStream,
        limit: Duration,
        greeted: impl FnOnce(),
    ) -> Outcome<Shaken> {
        let until = Instant::now() + limit;
        let mut acceptor = rustls::server::Acceptor::default();
        let accepted = loop {
            wait(socket, until, limit)?;
            let read = acceptor.read_tls(&mut &*socket).map_err(|e| io_fault(&e, limit))?;
            match acceptor.accept() {
                Ok(Some(accepted)) => break accepted,
                Ok(None) if read == 0 => {
                    return Err(Fault::Cut("closed before the handshake".into()));
                }
                Ok(None) => {}
                Err((error, mut alert)) => {
                    let _ = alert.write_all(&mut &*socket);
                    return Err(fault_of(&error));
                }
            }
        };
        greeted();
        let offered: Vec<Vec<u8>> = accepted
            .client_hello()
            .alpn()
            .map_or_else(Vec::new, |names| names.map(<[u8]>::to_vec).collect());
        let connection = match accepted.into_connection(self.config.clone()) {
            Ok(connection) => connection,
            Err((error, mut alert)) => {
                let _ = alert.write_all(&mut &*socket);
                return Err(self.alpn_fault(&offered).unwrap_or_else(|| fault_of(&error)));
            }
        };
        let mut connection: Connection = connection.into();
        shake(&mut connection, socket, until, limit)
            .map_err(|fault| self.alpn_fault(&offered).unwrap_or(fault))?;
        let client = peer_key(&connection)?;
        finish(connection, &self.alpn, client, self.key)
    }

    /// What the offered protocols say about a failed handshake.
    fn alpn_fault(&self, offered: &[Vec<u8>]) -> Option<Fault> {
        if offered.contains(&self.alpn) {
            return None;
        }
        let ours = offered.iter().filter(|n| n.starts_with(ALPN_PREFIX));
        let names: Vec<_> = ours.map(|n| String::from_utf8_lossy(n).into_owned()).collect();
        if names.is_empty() {
            return Some(Fault::NotDormouse);
        }
        let mine = String::from_utf8_lossy(&self.alpn);
        Some(Fault::Version(format!("it offers {}, and here is {mine}", names.join(", "))))
    }
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Shaken {
    /// The TLS state.
    pub connection: Connection,
    /// What proofs on this connection sign.
    pub binding: Binding,
}

/// Shakes hands with the server whose key has this fingerprint.
pub fn client(
    socket: &TcpStream,
    key: &SigningKey,
    fingerprint: &[u8; 32],
    limit: Duration,
) -> Outcome<Shaken> {
    client_with_alpn(socket, key, fingerprint, limit, ALPN)
}

/// With another protocol version: for tests of a mismatch.
pub fn client_with_alpn(
    socket: &TcpStream,
    key: &SigningKey,
    fingerprint: &[u8; 32],
    limit: Duration,
    alpn: &[u8],
) -> Outcome<Shaken> {
    let provider = provider();
    let pin = Arc::new(Pin {
        provider: provider.clone(),
        fingerprint: *fingerprint,
        found: Mutex::new(None),
    });
    let resolver =
        rustls::client::AlwaysResolvesClientRawPublicKeys::new(certified(key, &provider)?);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(other)?
        .dangerous()
        .with_custom_certificate_verifier(pin.clone())
        .with_client_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    let name = ServerName::try_from("dormouse").map_err(other)?;
    let mut connection: Connection =
        ClientConnection::new(Arc::new(config), name).map_err(other)?.into();
    let until = Instant::now() + limit;
    if let Err(fault) = shake(&mut connection, socket, until, limit) {
        let found = *pin.found.lock().unwrap_or_else(PoisonError::into_inner);
        return Err(match found {
            Some(found) if found != *fingerprint => {
                Fault::WrongKey { expected: hex(fingerprint), found: hex(&found) }
            }
            _ => fault,
        });
    }
    let server = peer_key(&connection)?;
    finish(connection, alpn, key.public(), server)
}

fn peer_key(connection: &Connection) -> Outcome<PublicKey> {
    connection
        .peer_certificates()
        .and_then(<[_]>::first)
        .and_then(|spki| keys::from_spki(spki))
        .ok_or(Fault::NotDormouse)
}

fn finish(
    mut connection: Connection,
    alpn: &[u8],
    client: PublicKey,
    server: PublicKey,
) -> Outcome<Shaken> {
    if connection.alpn_protocol() != Some(alpn) {
        return Err(Fault::NotDormouse);
    }
    let exporter = connection
        .export_keying_material([0; EXPORTER_LEN], EXPORTER_LABEL, None)
        .map_err(other)?;
    // The link bounds what waits to be sent by itself.
    connection.set_buffer_limit(None);
    Ok(Shaken { connection, binding: Binding { exporter, client, server } })
}

/// Sets the socket's timeouts to what is left.
fn wait(socket: &TcpStream, until: Instant, limit: Duration) -> Outcome<()> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Fault::Timeout(limit.as_secs()));
    }
    let set =
        socket.set_read_timeout(Some(left)).and_then(|()| socket.set_write_timeout(Some(left)));
    set.map_err(|e| io_fault(&e, limit))
}

fn shake(
    connection: &mut Connection,
    socket: &TcpStream,
    until: Instant,
    limit: Duration,
) -> Outcome<()> {
    loop {
        wait(socket, until, limit)?;
        while connection.wants_write() {
            connection.write_tls(&mut &*socket).map_err(|e| io_fault(&e, limit))?;
        }
        if !connection.is_handshaking() {
            break;
        }
        let read = connection.read_tls(&mut &*socket).map_err(|e| io_fault(&e, limit))?;
        if let Err(error) = connection.process_new_packets() {
            while connection.wants_write() && connection.write_tls(&mut &*socket).is_ok() {}
            return Err(fault_of(&error));
        }
        if read == 0 && connection.is_handshaking() {
            return Err(Fault::Cut("the other side closed during the handshake".into()));
        }
    }
    (&*socket).flush().map_err(|e| io_fault(&e, limit))?;
    let clear = socket.set_read_timeout(None).and_then(|()| socket.set_write_timeout(None));
    clear.map_err(|e| io_fault(&e, limit))
}

fn io_fault(error: &io::Error, limit: Duration) -> Fault {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Fault::Timeout(limit.as_secs()),
        _ => Fault::Cut(error.to_string()),
    }
}

/// What an error of TLS means here.
pub fn fault_of(error: &Error) -> Fault {
    match error {
        Error::NoApplicationProtocol
        | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            Fault::Version(String::from_utf8_lossy(ALPN).into_owned() + " is not spoken there")
        }
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => Fault::NotTls,
        Error::PeerIncompatible(
            PeerIncompatible::IncorrectCertificateTypeExtension
            | PeerIncompatible::UnsolicitedCertificateTypeExtension
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        )
        | Error::AlertReceived(
            AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::UnrecognisedName
            | AlertDescription::InternalError,
        ) => Fault::NotDormouse,
        error => Fault::Other(error.to_string()),
    }
}
