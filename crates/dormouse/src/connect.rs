//! Reaching a server, or a directory through the same engine.
//!
//! Owns: where a target is, and what each way of not reaching it is called.
//! Invariant: refused, unreachable, not answering, not Dormouse, wrong key, another
//! version and not authorised are told apart.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::Result;
use crossbeam_channel::RecvTimeoutError;
use dormouse_crypt::invite::Binding;
use dormouse_crypt::{OsRandom, Random, SigningKey, hash};
use dormouse_format::PublicKey;
use dormouse_format::limits::FRAME_MAX;
use dormouse_format::message::{Deframer, Message};
use dormouse_format::vault::name_is_valid;
use dormouse_sync::live::Away;

use crate::access::Access;
use crate::exit::{self, Class, Failure, fail};
use crate::files::Lock;
use crate::home::Account;
use crate::invite::{Address, SCHEME};
use crate::link::{Link, LinkError};
use crate::log::Log;
use crate::patience::Patience;
use crate::store_dir::StoreDir;
use crate::text::hex;
use crate::tls;

/// How long one address may take to answer.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// How long the handshake may take.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);
/// How long it is looked for the reason of a link's end.
const LAST_WAIT: Duration = Duration::from_millis(500);
const DIR: &str = "dir:";

/// Where a store is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A server.
    Server(Address),
    /// A directory on this machine.
    Dir(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(address) => write!(f, "{SCHEME}{address}"),
            Self::Dir(path) => write!(f, "{DIR}{}", path.display()),
        }
    }
}

impl FromStr for Target {
    type Err = Failure;

    /// `dormouse://HOST:PORT`, `dir:PATH`, or a path that exists or has a '/'.
    fn from_str(text: &str) -> Result<Self, Failure> {
        if let Some(rest) = text.strip_prefix(SCHEME) {
            return Ok(Self::Server(rest.trim_end_matches('/').parse()?));
        }
        let path = match text.strip_prefix(DIR) {
            Some(path) => path,
            None if text.contains('/') || std::path::Path::new(text).exists() => text,
            None => return Ok(Self::Server(text.parse()?)),
        };
        let absolute = std::path::absolute(path)
            .map_err(|e| Failure::new(Class::Usage, format!("'{path}' is not a path: {e}")))?;
        Ok(Self::Dir(absolute))
    }
}

/// A link on which nothing was said yet.
#[derive(Debug)]
pub struct Dialed {
    /// The link.
    pub link: Link,
    /// What proofs on it sign.
    pub binding: Binding,
}

/// Reaches a target whose key has this fingerprint, with the given transport key.
pub fn dial(target: &Target, fingerprint: &[u8; 32], key: &SigningKey) -> Result<Dialed> {
    match target {
        Target::Server(address) => dial_server(address, fingerprint, key),
        Target::Dir(path) => {
            let dir = OpenDir::of(path)?;
            let server = dir.key;
            let found = hash::fingerprint(&server);
            if found != *fingerprint {
                let fault = tls::Fault::WrongKey { expected: hex(fingerprint), found: hex(&found) };
                return Err(handshake_failure(&path.display().to_string(), &fault).into());
            }
            let binding = Binding { exporter: OsRandom.array(), client: key.public(), server };
            let access = Arc::clone(&dir.access);
            let link = Link::in_process(access, binding, move || drop(dir))?;
            Ok(Dialed { link, binding })
        }
    }
}

/// Directories that are open in this process.
static OPEN_DIRS: Mutex<BTreeMap<PathBuf, Weak<OpenDir>>> = Mutex::new(BTreeMap::new());

/// A store's directory that this process serves to itself: one, however many links there are.
struct OpenDir {
    access: Arc<Access>,
    key: PublicKey,
    _lock: Lock,
}

impl OpenDir {
    fn of(path: &Path) -> Result<Arc<Self>> {
        let mut all = OPEN_DIRS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = all.get(path).and_then(Weak::upgrade) {
            return Ok(open);
        }
        let store = StoreDir::open(path)?;
        store.must_be_whole()?;
        let (key, lock) = (store.key()?.public(), store.lock()?);
        let access = Arc::new(Access::new(store, Log::stderr()));
        let open = Arc::new(Self { access, key, _lock: lock });
        all.insert(path.to_owned(), Arc::downgrade(&open));
        Ok(open)
    }
}

impl Drop for OpenDir {
    fn drop(&mut self) {
        self.access.close();
    }
}

fn dial_server(address: &Address, fingerprint: &[u8; 32], key: &SigningKey) -> Result<Dialed> {
    let socket = tcp(address)?;
    let shaken = tls::client(&socket, key, fingerprint, HANDSHAKE_WAIT)
        .map_err(|fault| handshake_failure(&address.to_string(), &fault))?;
    let binding = shaken.binding;
    let link = Link::start(socket, shaken.connection, Deframer::new(FRAME_MAX))?;
    Ok(Dialed { link, binding })
}

fn handshake_failure(at: &str, fault: &tls::Fault) -> Failure {
    let (class, hint) = exit::of_fault(fault);
    Failure::new(class, format!("{at}: {fault}")).hint(hint).away(exit::away_of_fault(fault))
}

fn tcp(address: &Address) -> Result<TcpStream> {
    let found: Vec<SocketAddr> = match (address.host.as_str(), address.port).to_socket_addrs() {
        Ok(found) => found.collect(),
        Err(error) => {
            let message = format!("the host name '{}' was not found: {error}", address.host);
            return Err(Failure::new(Class::Unreachable, message)
                .hint("check the name, and whether this machine has a network")
                .away(Away::Unreachable)
                .into());
        }
    };
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for addr in found {
        match TcpStream::connect_timeout(&addr, CONNECT_WAIT) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(unreachable(address, &last).into())
}

fn unreachable(address: &Address, error: &io::Error) -> Failure {
    let away = match error.kind() {
        io::ErrorKind::ConnectionRefused => Away::Refused,
        _ => Away::Unreachable,
    };
    let (what, hint) = match error.kind() {
        io::ErrorKind::ConnectionRefused => (
            "the connection was refused: the machine is up, but nothing listens on that port"
                .into(),
            "is `dormouse serve` running there, and on that port?",
        ),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => (
            format!("no answer within {} s", CONNECT_WAIT.as_secs()),
            "is the machine up, and does a firewall let the port through?",
        ),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            (format!("unreachable: {error}"), "is there a network, and is the machine up?")
        }
        _ => (error.to_string(), "check the address"),
    };
    Failure::new(Class::Unreachable, format!("{address}: {what}")).hint(hint).away(away)
}

/// What a refusal of the server is here.
pub fn refused(refusal: dormouse_format::message::Refusal, text: &str) -> Failure {
    let (class, hint) = exit::of_refusal(refusal);
    let text = dormouse_sync::error::plain(text);
    Failure::new(class, format!("the server refused: {text}"))
        .hint(hint)
        .away(Away::of_refusal(refusal))
}

/// What the end of a link is here.
pub fn link_failure(error: &LinkError) -> Failure {
    let (class, hint) = exit::of_link(error);
    Failure::new(class, error.to_string()).hint(hint).away(exit::away_of_link(error))
}

/// The next message, an answer of its own; an error if the server refuses, the link ends, or
/// it takes too long.
pub fn receive(link: &Link) -> Result<Message> {
    receive_of(link, &Patience::new(link))
}

/// The next message of an answer of several, that began with `patience`.
pub fn receive_of(link: &Link, patience: &Patience) -> Result<Message> {
    loop {
        patience.check(link)?;
        if let Some(message) = receive_within(link, patience.step(link))? {
            return Ok(message);
        }
    }
}

/// The next message, if it is there already.
pub fn receive_now(link: &Link) -> Result<Option<Message>> {
    receive_within(link, Duration::ZERO)
}

fn receive_within(link: &Link, wait: Duration) -> Result<Option<Message>> {
    match link.rx.recv_timeout(wait) {
        Ok(Ok(Message::Error { refusal, text })) => Err(refused(refusal, &text).into()),
        Ok(Ok(message)) => Ok(Some(message)),
        Ok(Err(error)) => Err(link_failure(&error).into()),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Err(link_failure(&LinkError::Closed).into()),
    }
}

/// Sends; if the link has ended, says why: a refusal that came before counts most.
pub fn send(link: &Link, message: Message) -> Result<()> {
    send_all(link, [message])
}

/// Sends several messages together.
pub fn send_all(link: &Link, messages: impl IntoIterator<Item = Message>) -> Result<()> {
    link.tx.send_all(messages).map_err(|error| ended(link, &error))
}

/// Why a link has ended: what the server said last, or else what broke.
pub fn ended(link: &Link, error: &LinkError) -> anyhow::Error {
    let until = Instant::now() + LAST_WAIT;
    while let Ok(received) = link.rx.recv_deadline(until) {
        match received {
            Ok(Message::Error { refusal, text }) => return refused(refusal, &text).into(),
            Ok(_) => {}
            Err(error) => return link_failure(&error).into(),
        }
    }
    link_failure(error).into()
}

/// One question, one answer.
pub fn ask(link: &Link, question: Message) -> Result<Message> {
    send(link, question)?;
    receive(link)
}

/// An answer that does not fit its question.
pub fn unexpected<T>(what: &str) -> Result<T> {
    fail(
        Class::Version,
        format!("the server broke the protocol: it answered {what} with something else"),
        "use the same version of dormouse on both sides",
    )
}

/// What the server said in its welcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The vault that this client belongs to.
    pub vault: dormouse_format::VaultId,
    /// What the server calls this client.
    pub name: String,
    /// The server's clock.
    pub time: dormouse_format::TimeNs,
}

/// Says who one is, and waits for the welcome.
pub fn introduce(link: &Link, first: Message) -> Result<Welcome> {
    send(link, first)?;
    welcome(link)
}

fn welcome(link: &Link) -> Result<Welcome> {
    match receive(link)? {
        Message::Welcome { vault, name, time } if name_is_valid(&name) => {
            Ok(Welcome { vault, name, time })
        }
        _ => unexpected("the greeting"),
    }
}

/// Connects as the home's client.
pub fn connect(account: &Account) -> Result<Link> {
    connect_asking(account, Vec::new())
}

/// Connects, and sends questions right behind the greeting: they cost no round trip of
/// their own. Their answers come next. The server's key was checked before, in the
/// handshake.
pub fn connect_asking(account: &Account, questions: Vec<Message>) -> Result<Link> {
    let Dialed { link, .. } = dial(&account.target, &account.server, &account.transport)?;
    let hello = Message::Hello { instance: account.instance };
    send_all(&link, std::iter::once(hello).chain(questions))?;
    let welcome = welcome(&link)?;
    if welcome.vault != account.vault {
        return fail(
            Class::NotAuthorised,
            "the server takes this machine for a client of another vault",
            "was its store changed by hand? Join it again with a new invite",
        );
    }
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let t = |s: &str| s.parse::<Target>().unwrap().to_string();
        assert_eq!(t("dormouse://h:1"), "dormouse://h:1");
        assert_eq!(t("h:1"), "dormouse://h:1");
        assert_eq!(t("dir:/a/b"), "dir:/a/b");
        assert_eq!(t("/a/b"), "dir:/a/b");
        assert_eq!(t("[::1]:3"), "dormouse://[::1]:3");
        assert!(t("./a").ends_with("/a"));
    }
}
