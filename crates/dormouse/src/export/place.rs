//! Where an export listens: `unix:PATH` or `HOST:PORT`, and its URI.

use std::fmt;
use std::net::{IpAddr, TcpListener, ToSocketAddrs};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dormouse_device::nbd::Listener;

use crate::exit::{Class, Failure, fail};
use crate::invite::Address;
use crate::unix_socket;

/// As the user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(Address),
}

impl std::str::FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix:").filter(|p| !p.is_empty()) {
            let path = std::path::absolute(path).with_context(|| format!("the path '{path}'"))?;
            return Ok(Self::Unix(path));
        }
        let wrong = || {
            Failure::new(Class::Usage, format!("--nbd '{text}' is no place to listen"))
                .hint("such as unix:/run/disk.sock, 127.0.0.1:10809 or [::1]:10809")
        };
        let port = text.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
        port.ok_or_else(wrong)?;
        Ok(Self::Tcp(text.parse().map_err(|_| wrong())?))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

impl Place {
    /// The addresses of a port, none for a Unix socket.
    fn addresses(&self) -> Result<Vec<std::net::SocketAddr>> {
        let Self::Tcp(address) = self else { return Ok(Vec::new()) };
        let found = (address.host.as_str(), address.port).to_socket_addrs();
        let found: Vec<_> = found.map_err(|e| refused(self, &e))?.collect();
        if found.is_empty() {
            return fail(Class::Usage, format!("'{}' has no address", address.host), "");
        }
        Ok(found)
    }

    /// Refuses to let the whole network read a disk.
    pub fn check(&self, secure: bool, insecure: bool) -> Result<()> {
        let beyond = |ip: IpAddr| !ip.to_canonical().is_loopback();
        if secure || insecure || !self.addresses()?.iter().any(|a| beyond(a.ip())) {
            return Ok(());
        }
        fail(
            Class::Usage,
            format!("on {self}, without TLS, whoever reaches this machine could read the disk"),
            "give --tls-certificates DIR, or listen on unix:PATH or 127.0.0.1:PORT;\n\
             --insecure listens there all the same",
        )
    }

    /// Listens.
    pub fn listen(&self) -> Result<Listening> {
        let (socket, place) = match self {
            Self::Unix(path) => {
                unix_socket::make_free(path, "another process", "the socket")?;
                let listener = unix_socket::listen(path)
                    .with_context(|| format!("cannot listen on {self}"))?;
                (Socket::Unix(listener), self.clone())
            }
            Self::Tcp(address) => {
                let listener =
                    TcpListener::bind(&*self.addresses()?).map_err(|e| refused(self, &e))?;
                let port = listener.local_addr()?.port();
                (Socket::Tcp(listener), Self::Tcp(Address { port, ..address.clone() }))
            }
        };
        Ok(Listening { socket, place })
    }
}

fn refused(place: &Place, error: &std::io::Error) -> Failure {
    let class = match error.kind() {
        std::io::ErrorKind::AddrInUse => Class::InUse,
        _ => Class::Place,
    };
    Failure::new(class, format!("cannot listen on {place}: {error}"))
        .hint("name another place with --nbd")
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A place that is listened on. A socket's file goes when this is dropped.
#[derive(Debug)]
pub struct Listening {
    socket: Socket,
    place: Place,
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)
    }
}

impl Listening {
    /// For the server.
    pub fn listener(&self) -> std::io::Result<Listener> {
        Ok(match &self.socket {
            Socket::Unix(listener) => Listener::Unix(listener.try_clone()?),
            Socket::Tcp(listener) => Listener::Tcp(listener.try_clone()?),
        })
    }

    /// The socket's file.
    pub fn socket(&self) -> Option<&Path> {
        match &self.place {
            Place::Unix(path) => Some(path),
            Place::Tcp(_) => None,
        }
    }

    /// No client can come any more.
    pub fn leave(&self) {
        if let Some(path) = self.socket() {
            let _ = std::fs::remove_file(path);
        }
    }

    /// How clients name a disk.
    pub fn uri(&self, name: &str, secure: bool) -> String {
        let s = if secure { "s" } else { "" };
        let name = escaped(name.as_bytes());
        match &self.place {
            Place::Unix(path) => {
                use std::os::unix::ffi::OsStrExt;
                let path = escaped(path.as_os_str().as_bytes());
                format!("nbd{s}+unix:///{name}?socket={path}")
            }
            Place::Tcp(address) => format!("nbd{s}://{address}/{name}"),
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.leave();
    }
}

/// As it may stand in a URI.
fn escaped(bytes: &[u8]) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/@:".contains(&b);
    bytes
        .iter()
        .map(|b| if plain(*b) { char::from(*b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Result<Place> {
        text.parse()
    }

    #[test]
    fn plain_ports_beyond_this_machine_are_refused() {
        for text in ["127.0.0.1:1", "[::1]:1", "127.9.9.9:0", "unix:/x", "unix:x", "localhost:1"] {
            place(text).unwrap().check(false, false).unwrap();
        }
        for text in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[::ffff:192.0.2.1]:1"] {
            let place = place(text).unwrap();
            let error = place.check(false, false).unwrap_err();
            assert!(format!("{error:#}").contains("without TLS"), "{error:#}");
            place.check(true, false).unwrap();
            place.check(false, true).unwrap();
        }
        for text in ["", "unix:", "x", "1.2.3.4", ":1", "h:x", "h:70000", "/x"] {
            assert!(place(text).is_err(), "{text}");
        }
    }

    #[test]
    fn uris_name_the_disk_and_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b");
        let listening = place(&format!("unix:{}", path.display())).unwrap().listen().unwrap();
        let uri = listening.uri("root@2h ago", true);
        let expected = format!("nbds+unix:///root@2h%20ago?socket={}/a%20b", dir.path().display());
        assert_eq!(uri, expected);
        // A live socket is not taken away, a dead one is.
        let again = place(&format!("unix:{}", path.display())).unwrap().listen().unwrap_err();
        assert!(format!("{again:#}").contains("answers on"), "{again:#}");
        drop(listening);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listening = place(&format!("unix:{}", path.display())).unwrap().listen().unwrap();
        drop(listening);
        let tcp = place("127.0.0.1:0").unwrap().listen().unwrap();
        let uri = tcp.uri("x", false);
        assert!(uri.starts_with("nbd://127.0.0.1:") && !uri.contains(":0/"), "{uri}");
    }
}
