//! Exit codes, and the error that carries one.
//!
//! Owns: the classes of failure and how a failure is shown. Invariant: a class
//! keeps its number for ever; scripts depend on it. A message names the thing,
//! the hint names the way out.

use std::fmt;

use dormouse_bucket::Error as BucketError;
use dormouse_format::message::Refusal;
use dormouse_store::Error as StoreError;
use dormouse_sync::error::Error as SyncError;
use dormouse_sync::live::Away;

use crate::link::LinkError;
use crate::tls::Fault;

/// Why the program ends, for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    /// Anything that has no class of its own.
    Other = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The copy was made, but the point is only fuzzy.
    Fuzzy = 3,
    /// No such volume, point, client or home.
    NotFound = 4,
    /// An invite, a key or a server that may not.
    NotAuthorised = 5,
    /// The server cannot be reached now; trying again may help.
    Unreachable = 6,
    /// The other side, or the store, speaks another version.
    Version = 7,
    /// The source or the destination is not fit.
    Place = 8,
    /// Damaged data, or a check that failed.
    Damaged = 9,
    /// A key is not on this machine.
    KeyMissing = 10,
    /// No space on either side.
    NoSpace = 11,
    /// Held by another process or machine.
    InUse = 12,
}

/// The table of exit codes, shown by `dormouse --help`.
pub const HELP: &str = "\
Exit codes:
   0  done
   1  another error
   2  wrong command line
   3  copied, but the point is only fuzzy: the source changed or could not be proved still
   4  not found: volume, point, client, or nothing joined yet
   5  not authorised: wrong, used or expired invite; wrong server key; revoked or unknown client
   6  unreachable: refused, no route, no answer, link cut; may be tried again
   7  version: the server or the store is of another version, or not of Dormouse
   8  source or destination: missing, shrank, too small, exists, mounted, cannot be read
   9  damaged: data or a check that does not hold, also a server that went back in time
  10  key missing: no identity or authority on this machine; bring the recovery kit
  11  no space, here or on the server
  12  in use: another process or machine holds the store, the home or the volume
 141  nobody reads the output any more (a closed pipe); a copy or restore went on to its end";

/// An error with its class and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The class.
    pub class: Class,
    /// What is wrong, naming the thing.
    pub message: String,
    /// The way out.
    pub hint: Option<String>,
    /// What it means for a mirror that goes on, if it is about the server.
    pub away: Option<Away>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), hint: None, away: None }
    }

    /// The same, with what it means for a mirror that goes on.
    #[must_use]
    pub const fn away(mut self, away: Away) -> Self {
        self.away = Some(away);
        self
    }

    /// The same with the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// A failure as an `anyhow::Error`.
pub fn fail<T>(
    class: Class,
    message: impl Into<String>,
    hint: impl Into<String>,
) -> anyhow::Result<T> {
    Err(Failure::new(class, message).hint(hint).into())
}

/// The failure inside an error, if it carries one.
pub fn failure_of(error: &anyhow::Error) -> Option<&Failure> {
    error
        .downcast_ref::<Failure>()
        .or_else(|| error.chain().find_map(|e| e.downcast_ref::<Failure>()))
}

/// Why there is no server, if that is what an error says.
pub fn away_of(error: &anyhow::Error) -> Option<Away> {
    if let Some(away) = failure_of(error).and_then(|failure| failure.away) {
        return Some(away);
    }
    let Some(found) = error.chain().find_map(|e| e.downcast_ref::<SyncError>()) else {
        return (class_of(error) == Class::Unreachable).then_some(Away::LinkLost);
    };
    match found {
        SyncError::Refused { refusal, .. } => Some(Away::of_refusal(*refusal)),
        SyncError::Rollback { .. } | SyncError::Fork { .. } => Some(Away::LostHistory),
        SyncError::Protocol { .. } => Some(Away::Version),
        SyncError::Moved => Some(Away::LinkLost),
        _ => Some(Away::ServerFailed),
    }
}

/// Why there is no server after a handshake that failed.
pub const fn away_of_fault(fault: &Fault) -> Away {
    match fault {
        Fault::NotTls | Fault::NotDormouse | Fault::Version(_) => Away::Version,
        Fault::WrongKey { .. } => Away::WrongKey,
        Fault::Timeout(_) => Away::Unreachable,
        Fault::Cut(_) | Fault::Other(_) => Away::LinkLost,
    }
}

/// Why there is no server after a connection that ended.
pub const fn away_of_link(error: &LinkError) -> Away {
    match error {
        LinkError::Closed | LinkError::Cut(_) => Away::LinkLost,
        LinkError::Protocol(_) => Away::Version,
        LinkError::Tls(fault) => away_of_fault(fault),
    }
}

/// The class of an error: its own, or what the error inside it says.
pub fn class_of(error: &anyhow::Error) -> Class {
    if let Some(failure) = failure_of(error) {
        return failure.class;
    }
    if let Some((class, _)) = known(error) {
        return class;
    }
    of_io(error).map_or(Class::Other, |(class, _)| class)
}

/// Class and way out of what the system said, where that has them.
fn of_io(error: &anyhow::Error) -> Option<(Class, &'static str)> {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error.chain().find_map(|e| e.downcast_ref::<std::io::Error>())?.kind() {
        StorageFull | QuotaExceeded => Some((Class::NoSpace, "free space there, then try again")),
        PermissionDenied => Some((Class::Other, "run as the user that these files belong to")),
        ReadOnlyFilesystem => Some((Class::Other, "mount it writable, or name another place")),
        _ => None,
    }
}

/// Class and way out of the errors of the other crates.
fn known(error: &anyhow::Error) -> Option<(Class, &'static str)> {
    error.chain().find_map(|e| {
        if let Some(e) = e.downcast_ref::<SyncError>() {
            return Some(of_sync(e));
        }
        if let Some(e) = e.downcast_ref::<LinkError>() {
            return Some(of_link(e));
        }
        if let Some(e) = e.downcast_ref::<BucketError>() {
            return Some(of_bucket(e));
        }
        e.downcast_ref::<StoreError>().map(of_store)
    })
}

const fn of_bucket(error: &BucketError) -> (Class, &'static str) {
    match error {
        BucketError::Away { .. } => {
            (Class::Unreachable, "does it run, and is AWS_ENDPOINT_URL its address?")
        }
        BucketError::Refused { .. } => {
            (Class::NotAuthorised, "the key must be able to list, read, put and remove objects")
        }
        BucketError::Settings { .. } => (Class::Usage, "docs/object-storage.md has an example"),
        BucketError::NotAtomic { .. } => {
            (Class::Place, "if no other server will ever use this prefix: --only-server")
        }
        BucketError::Held { .. } | BucketError::Lost { .. } => {
            (Class::InUse, "one server at a time uses a bucket's prefix: end the other one")
        }
        BucketError::NotAStore { .. } => (Class::Place, "name another bucket or prefix"),
        BucketError::Newer { .. } => (Class::Version, "update dormouse on this machine"),
        BucketError::Damaged { .. } => {
            (Class::Damaged, "the bucket's own copies or versions may have it as it was")
        }
        BucketError::Stopping => (Class::Unreachable, "try again later"),
        _ => (Class::Other, "look at the disk of this machine"),
    }
}

fn of_sync(error: &SyncError) -> (Class, &'static str) {
    match error {
        SyncError::Refused { refusal, .. } => of_refusal(*refusal),
        SyncError::Rollback { .. } | SyncError::Fork { .. } => (
            Class::Damaged,
            "the server's store may have been put back to an older state; look there first",
        ),
        SyncError::Chunk { .. } => (
            Class::Damaged,
            "`dormouse scrub STORE` on the server shows what is damaged there;\n\
             `dormouse mirror SOURCE --once --all` sends it again, where the source still has it",
        ),
        SyncError::Crypt(_)
        | SyncError::Map { .. }
        | SyncError::Point { .. }
        | SyncError::Missing { .. } => {
            (Class::Damaged, "`dormouse scrub STORE` on the server shows what is damaged there")
        }
        SyncError::Protocol { .. } => (
            Class::Version,
            "use the same version of dormouse on both sides; if it is the same, do not trust that server",
        ),
        SyncError::Moved => (Class::InUse, "find out which machine writes there, then try again"),
        _ => (Class::Other, ""),
    }
}

/// Class and way out of a connection that ended.
pub fn of_link(error: &LinkError) -> (Class, &'static str) {
    match error {
        LinkError::Closed | LinkError::Cut(_) => {
            (Class::Unreachable, "try again: what was acknowledged is not sent twice")
        }
        LinkError::Protocol(_) => {
            (Class::Version, "use the same version of dormouse on both sides")
        }
        LinkError::Tls(fault) => of_fault(fault),
    }
}

/// Class and way out of a handshake that failed.
pub fn of_fault(fault: &Fault) -> (Class, &'static str) {
    match fault {
        Fault::NotTls | Fault::NotDormouse => {
            (Class::Version, "is that the port of `dormouse serve`?")
        }
        Fault::Version(_) => (Class::Version, "use the same version of dormouse on both sides"),
        Fault::WrongKey { .. } => (
            Class::NotAuthorised,
            "if the server was set up anew, join it again with a new invite;\nif not, somebody else may be answering: do not go on",
        ),
        Fault::Timeout(_) | Fault::Cut(_) => {
            (Class::Unreachable, "is the server running, and is that its port?")
        }
        Fault::Other(_) => (Class::Other, "the server's log may say more"),
    }
}

/// Class and way out of a refusal.
pub const fn of_refusal(refusal: Refusal) -> (Class, &'static str) {
    match refusal {
        Refusal::NotAuthorised => (
            Class::NotAuthorised,
            "who runs the server can invite this machine (`dormouse invite`), or give it another role\n\
             (`dormouse grant`)",
        ),
        Refusal::Revoked => {
            (Class::NotAuthorised, "ask who runs the server for a new invite, under a new name")
        }
        Refusal::InviteUnknown | Refusal::InviteUsed | Refusal::InviteExpired => (
            Class::NotAuthorised,
            "ask for a new invite: `dormouse invite STORE CLIENT` on the server makes one",
        ),
        Refusal::NotFound => {
            (Class::NotFound, "`dormouse volumes` and `dormouse points` show what is there")
        }
        Refusal::Exists => (Class::Place, "choose another name"),
        Refusal::Held => {
            (Class::InUse, "if the other one is gone for good, take over with `--takeover`")
        }
        Refusal::Fenced => (Class::InUse, "another instance writes this volume now"),
        Refusal::Conflict => (Class::InUse, "try again; another instance may write this volume"),
        Refusal::Full => (
            Class::NoSpace,
            "free space on the server, or ask who runs it for a larger quota; then try again",
        ),
        Refusal::Damaged => (Class::Damaged, "run `dormouse scrub STORE` on the server"),
        Refusal::NewerStore => {
            (Class::Version, "update dormouse on the server, or here if the store is a directory")
        }
        Refusal::BadRecord => (Class::Damaged, "try again; if it stays, update both sides"),
        Refusal::Stopping => (Class::Unreachable, "try again later"),
        Refusal::Protocol => (Class::Version, "use the same version of dormouse on both sides"),
        Refusal::Internal => (Class::Other, "the server's log says why"),
    }
}

const fn of_store(error: &StoreError) -> (Class, &'static str) {
    match error {
        StoreError::Full => (Class::NoSpace, "free space, then try again"),
        StoreError::Quota { .. } => {
            (Class::NoSpace, "`dormouse grant STORE CLIENT --quota SIZE` allows more")
        }
        StoreError::NewerVersion { .. } => (Class::Version, "update dormouse on this machine"),
        StoreError::NotFound { .. } => (Class::NotFound, ""),
        StoreError::NotAStore { .. } => (Class::Place, "name the directory of a store"),
        StoreError::Damaged { .. } | StoreError::Crypt(_) | StoreError::Format(_) => {
            (Class::Damaged, "`dormouse scrub STORE` shows what is damaged")
        }
        _ => (Class::Other, ""),
    }
}

/// The way out of an error; empty where none is known.
pub fn hint_of(error: &anyhow::Error) -> &str {
    let own = failure_of(error).and_then(|f| f.hint.as_deref());
    own.or_else(|| known(error).or_else(|| of_io(error)).map(|(_, hint)| hint)).unwrap_or_default()
}

/// The text for people: the message, then the way out.
pub fn text_of(error: &anyhow::Error) -> String {
    let mut text = format!("dormouse: {error:#}");
    for line in hint_of(error).lines() {
        text.push_str("\n  ");
        text.push_str(line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_failure_is_found_as_root_and_as_context() {
        let root: anyhow::Error = Failure::new(Class::Place, "x").hint("do y").into();
        let root = root.context("while z");
        assert_eq!(class_of(&root), Class::Place);
        assert_eq!(text_of(&root), "dormouse: while z: x\n  do y");
        let io = std::io::Error::other("disk");
        let error = Err::<(), _>(io).context(Failure::new(Class::NotFound, "n")).unwrap_err();
        assert_eq!(class_of(&error.context("more")), Class::NotFound);
    }

    #[test]
    fn a_full_disk_has_its_class_without_being_named() {
        let io = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = Err::<(), _>(io).context("writing x").unwrap_err();
        assert_eq!(class_of(&error), Class::NoSpace);
        assert!(text_of(&error).contains("\n  free space"));
    }
}
