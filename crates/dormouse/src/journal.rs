//! Events in the journal of systemd.
//!
//! Owns: the form of an event in journald's native protocol, and as a line with a level in front.
//! Invariants: the journal is used only if standard error leads there, so who starts the program
//! by hand sees its lines; an event that the socket does not take goes to standard error.

use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::log::Entry;
use crate::out::note;

/// Where journald takes events.
const SOCKET: &str = "/run/systemd/journal/socket";
/// How long an event may wait for a journal that is busy.
const PATIENCE: Duration = Duration::from_secs(1);

/// The journal, as it can be reached from here.
#[derive(Debug)]
pub struct Journal {
    /// None where only standard error leads there.
    socket: Option<(UnixDatagram, PathBuf)>,
}

impl Journal {
    /// The journal, if standard error leads there.
    pub fn of_stderr() -> Option<Self> {
        let stream = std::env::var("JOURNAL_STREAM").ok()?;
        leads_to(&stream, std::io::stderr()).then(|| Self::at(Path::new(SOCKET)))
    }

    /// The journal behind a socket; without one its lines have a level in front.
    pub fn at(path: &Path) -> Self {
        let socket = UnixDatagram::unbound().ok().filter(|_| path.exists());
        let socket = socket.filter(|s| s.set_write_timeout(Some(PATIENCE)).is_ok());
        Self { socket: socket.map(|s| (s, path.to_owned())) }
    }

    /// Writes one event.
    pub fn write(&self, entry: &Entry<'_>) {
        if !self.sent(entry) {
            note!("{}", with_level(entry));
        }
    }

    fn sent(&self, entry: &Entry<'_>) -> bool {
        let Some((socket, path)) = &self.socket else { return false };
        // By name each time: a journal that was started anew has another socket there.
        socket.send_to(&native(entry), path).is_ok()
    }
}

/// Whether a file is the one that `JOURNAL_STREAM` names: `DEVICE:INODE`.
fn leads_to(stream: &str, file: impl AsFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|s| stream == format!("{}:{}", s.st_dev, s.st_ino))
}

/// One line with its level in front, as journald reads it from standard error.
fn with_level(entry: &Entry<'_>) -> String {
    let mut text = String::new();
    for line in entry.line().lines() {
        let separator = if text.is_empty() { "" } else { "\n" };
        let _ = write!(text, "{separator}<{}>{line}", entry.level as u8);
    }
    text
}

/// One event in journald's native protocol.
fn native(entry: &Entry<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    field(&mut out, "MESSAGE", &entry.line());
    field(&mut out, "PRIORITY", &(entry.level as u8).to_string());
    field(&mut out, "SYSLOG_IDENTIFIER", "dormouse");
    let point = entry.point.map(|p| p.to_string());
    let optional = [
        ("DORMOUSE_VOLUME", entry.volume),
        ("DORMOUSE_STATE", entry.state),
        ("DORMOUSE_POINT", point.as_deref()),
        ("DORMOUSE_CLIENT", entry.client),
        ("DORMOUSE_PEER", entry.peer),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            field(&mut out, name, value);
        }
    }
    out
}

/// `NAME=value`, or for a value of several lines its length in eight bytes and the value.
fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Level, Log};
    use std::collections::BTreeMap;

    /// Reads the protocol back, by its description.
    fn fields(mut bytes: &[u8]) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        while !bytes.is_empty() {
            let end = bytes.iter().position(|b| b"=\n".contains(b)).unwrap();
            let name = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let plain = bytes[end] == b'=';
            bytes = &bytes[end + 1..];
            let len = if plain {
                bytes.iter().position(|b| *b == b'\n').unwrap()
            } else {
                let len = u64::from_le_bytes(*bytes.first_chunk().unwrap());
                bytes = &bytes[8..];
                usize::try_from(len).unwrap()
            };
            assert_eq!(bytes[len], b'\n', "{name}");
            let value = String::from_utf8(bytes[..len].to_vec()).unwrap();
            assert!(found.insert(name, value).is_none());
            bytes = &bytes[len + 1..];
        }
        found
    }

    #[test]
    fn an_event_reaches_the_socket_with_its_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        journald.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let journal = Journal::at(&path);
        let log = Log::entries(move |entry| journal.write(entry)).of_volume("root");
        log.event(&Entry::new(Level::Notice, "point 17 is there").state("LIVE").point(17));
        let mut bytes = [0; 4096];
        let mut next = || {
            let len = journald.recv(&mut bytes).unwrap();
            fields(&bytes[..len])
        };
        let expected = [
            ("MESSAGE", "root: point 17 is there"),
            ("PRIORITY", "5"),
            ("SYSLOG_IDENTIFIER", "dormouse"),
            ("DORMOUSE_VOLUME", "root"),
            ("DORMOUSE_STATE", "LIVE"),
            ("DORMOUSE_POINT", "17"),
        ];
        let expected = expected.map(|(a, b)| (a.to_owned(), b.to_owned())).into();
        assert_eq!(next(), expected);
        // Lines that look like fields stay in the message.
        log.event(&Entry::new(Level::Error, "bad:\nPRIORITY=0\n"));
        let second = next();
        assert_eq!(second["MESSAGE"], "root: bad:\nPRIORITY=0\n");
        assert_eq!(second["PRIORITY"], "3");
        assert!(!second.contains_key("DORMOUSE_STATE"));
    }

    #[test]
    fn without_a_socket_each_line_has_its_level() {
        let dir = tempfile::tempdir().unwrap();
        let entry = Entry::new(Level::Warning, "a\nb");
        assert!(!Journal::at(&dir.path().join("none")).sent(&entry));
        assert_eq!(with_level(&entry), "<4>a\n<4>b");
        // A journal that went away takes nothing.
        let path = dir.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::at(&path);
        assert!(journal.sent(&entry));
        drop(journald);
        assert!(!journal.sent(&entry));
        std::fs::remove_file(&path).unwrap();
        let _journald = UnixDatagram::bind(&path).unwrap();
        assert!(journal.sent(&entry), "it came back");
    }

    #[test]
    fn only_the_named_stream_is_the_journal() {
        let (file, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let stat = rustix::fs::fstat(&file).unwrap();
        let stream = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(leads_to(&stream, &file));
        assert!(!leads_to(&stream, &other));
        assert!(!leads_to("", &file));
    }
}
