//! Invites as text: `dormouse://HOST:PORT/CLIENT#…`.
//!
//! Owns: the form of an invite and of an address. Invariant: what was mistyped
//! is told apart from what is wrong: the fragment carries a checksum over itself
//! and the client's name. Leaves to others: what the store keeps of it
//! ([`crate::access`]), and the proof (`dormouse_crypt::invite`).

use std::fmt;
use std::str::FromStr;

use dormouse_crypt::invite::SECRET_LEN;
use dormouse_format::vault::name_is_valid;
use zeroize::Zeroizing;

use crate::exit::{Class, Failure};
use crate::text;

/// What all addresses begin with.
pub const SCHEME: &str = "dormouse://";
/// The port if none is given.
pub const PORT: u16 = 7447;

const VERSION: u8 = 1;
const CHECK_LEN: usize = 4;
const LEN: usize = 1 + 32 + SECRET_LEN + CHECK_LEN;

/// Host and port of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let bad = |why: &str| {
            Failure::new(Class::Usage, format!("'{text}' is not an address: {why}"))
                .hint("an address is HOST:PORT, with an IPv6 address as [::1]:PORT")
        };
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(|| bad("']' is missing"))?;
                if host.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err(bad("the brackets hold no IPv6 address"));
                }
                (host, after.strip_prefix(':').or(after.is_empty().then_some("")))
            }
            None => match text.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return Err(bad("an IPv6 address needs brackets"));
                }
                Some((host, port)) => (host, Some(port)),
                None => (text, Some("")),
            },
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(fits) {
            return Err(bad("the host is missing or has characters that no host has"));
        }
        let port = match port.ok_or_else(|| bad("after ']' comes ':' and the port"))? {
            "" if text.ends_with(':') => return Err(bad("the port is missing")),
            "" => PORT,
            port => match port.parse::<u16>() {
                // As it is written: neither a sign nor a zero before it.
                Ok(number) if number > 0 && number.to_string() == port => number,
                _ => return Err(bad("the port is not a number from 1 to 65535")),
            },
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

/// An invite: where to go, who one is there, and the secret that proves it.
#[derive(Clone, PartialEq, Eq)]
pub struct Invite {
    /// The server.
    pub address: Address,
    /// The client's name.
    pub client: String,
    /// Fingerprint of the server's transport key.
    pub fingerprint: [u8; 32],
    /// The secret.
    pub secret: Zeroizing<[u8; SECRET_LEN]>,
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invite({} at {})", self.client, self.address)
    }
}

impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Zeroizing::new(vec![VERSION]);
        bytes.extend_from_slice(&self.fingerprint);
        bytes.extend_from_slice(&self.secret[..]);
        let check = check(&self.client, &bytes);
        bytes.extend_from_slice(&check);
        write!(f, "{SCHEME}{}/{}#{}", self.address, self.client, text::base64url(&bytes))
    }
}

fn check(client: &str, bytes: &[u8]) -> [u8; CHECK_LEN] {
    let whole = dormouse_crypt::hash::body_check(&[b"invite ", client.as_bytes(), bytes].concat());
    let mut out = [0; CHECK_LEN];
    out.copy_from_slice(&whole[..CHECK_LEN]);
    out
}

impl FromStr for Invite {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let bad = |class, why: &str| {
            Failure::new(class, format!("this is not a whole invite: {why}"))
                .hint("copy the whole line that `dormouse invite` printed, in quotes")
        };
        let typed = |why: &str| bad(Class::Usage, why);
        let rest = text.trim().strip_prefix(SCHEME);
        let rest = rest.ok_or_else(|| typed("it does not begin with dormouse://"))?;
        let (place, secret) =
            rest.split_once('#').ok_or_else(|| typed("the part after '#' is missing"))?;
        let (address, client) =
            place.split_once('/').ok_or_else(|| typed("the client's name is missing"))?;
        if !name_is_valid(client) {
            return Err(typed("the client's name is not a valid name"));
        }
        let bytes = Zeroizing::new(
            text::unbase64url(secret).ok_or_else(|| typed("the part after '#' is mistyped"))?,
        );
        if bytes.first().is_some_and(|&v| v > VERSION) && bytes.len() >= LEN {
            return Err(Failure::new(Class::Version, "the invite is of a newer version")
                .hint("update dormouse on this machine"));
        }
        if bytes.len() != LEN {
            return Err(typed("the part after '#' is mistyped: too short or too long"));
        }
        let (body, sum) = bytes.split_at(LEN - CHECK_LEN);
        if body[0] != VERSION || check(client, body) != sum {
            return Err(typed("a character is mistyped (the checksum does not hold)"));
        }
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(&body[1..33]);
        let mut secret = Zeroizing::new([0; SECRET_LEN]);
        secret.copy_from_slice(&body[33..]);
        let address = address.parse()?;
        Ok(Self { address, client: client.to_owned(), fingerprint, secret })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invite(host: &str) -> Invite {
        Invite {
            address: Address { host: host.into(), port: 7447 },
            client: "laptop".into(),
            fingerprint: [0xa5; 32],
            secret: Zeroizing::new([0x5a; 16]),
        }
    }

    #[test]
    fn round_trip() {
        for host in ["backup.example.org", "192.0.2.7", "2001:db8::1"] {
            let text = invite(host).to_string();
            assert_eq!(text.parse::<Invite>(), Ok(invite(host)), "{text}");
        }
        assert!(invite("::1").to_string().starts_with("dormouse://[::1]:7447/laptop#"));
    }

    /// A committed example (docs/format.md, 'Invite'): a change is a change of the format.
    #[test]
    fn the_committed_invite_is_read_and_written() {
        let text = include_str!("../../../testdata/text/invite.txt");
        assert_eq!(format!("{}\n", invite("backup.example.org")), text);
        let back: Invite = text.parse().unwrap();
        assert_eq!(back.address, Address { host: "backup.example.org".into(), port: 7447 });
        assert_eq!((back.client.as_str(), back.fingerprint), ("laptop", [0xa5; 32]));
        assert_eq!(*back.secret, [0x5a; 16]);
        let bytes = text::unbase64url(text.trim().split_once('#').unwrap().1).unwrap();
        assert_eq!((bytes.len(), bytes[0]), (53, 1));
        let newer = [&[2], &bytes[1..]].concat();
        let newer = format!("dormouse://h:1/laptop#{}", text::base64url(&newer));
        assert_eq!(newer.parse::<Invite>().unwrap_err().class, Class::Version);
    }

    #[test]
    fn every_mistyped_character_shows() {
        let text = invite("h").to_string();
        let start = text.find('/').unwrap() + 2;
        for at in start + 7..text.len() {
            for with in ["A", "b", "_", "", "xx"] {
                let bad = format!("{}{with}{}", &text[..at], &text[at + 1..]);
                if bad != text {
                    assert!(bad.parse::<Invite>().is_err(), "{bad}");
                }
            }
        }
        assert!(text.replace("laptop", "laptoq").parse::<Invite>().is_err());
        assert!("".parse::<Invite>().is_err());
        assert!("dormouse://h:1/x".parse::<Invite>().is_err());
    }

    #[test]
    fn addresses() {
        let ok = |t: &str| t.parse::<Address>().map(|a| (a.host, a.port)).unwrap();
        assert_eq!(ok("h"), ("h".into(), PORT));
        assert_eq!(ok("h:1"), ("h".into(), 1));
        assert_eq!(ok("[::1]:2"), ("::1".into(), 2));
        assert_eq!(ok("[::1]"), ("::1".into(), PORT));
        for bad in [
            "", ":1", "h:", "h:0", "h:65536", "::1", "[::1", "[h]:1", "[::1]x", "a b:1", "h:+1",
            "h:01",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
