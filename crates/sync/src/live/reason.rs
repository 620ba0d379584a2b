//! The five states, and why the copy is in one of them.
//!
//! Owns: the words that people read, and what each reason means for what is done next: when
//! the server is tried again, and what stays known after a gap in watching. Leaves to
//! others: the steps from one state to the next ([`super::Live`]).

use dormouse_format::message::Refusal;

/// What the copy is doing, with the reason where there can be several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No server. What is written is marked, however long.
    NoConn(Away),
    /// All of the disk is compared with what the server has.
    Scanning(Gap),
    /// What was written meanwhile is being sent.
    CatchUp,
    /// What is written is sent within about a second.
    Live,
    /// What ran is being ended; then all of the disk is compared.
    Rescan(Gap),
}

impl State {
    /// The name that people see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoConn(_) => "NOCONN",
            Self::Scanning(_) => "SCANNING",
            Self::CatchUp => "CATCHUP",
            Self::Live => "LIVE",
            Self::Rescan(_) => "RESCAN",
        }
    }

    /// Why.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoConn(away) => away.text(),
            Self::Scanning(gap) | Self::Rescan(gap) => gap.text(),
            Self::CatchUp => "sending what was written in the meantime",
            Self::Live => "following the disk",
        }
    }
}

/// Why there is no server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Away {
    /// Not tried yet.
    Starting,
    /// The machine answers, and nothing listens there.
    Refused,
    /// No route, no such host, or no answer.
    Unreachable,
    /// What answers has another key.
    WrongKey,
    /// The server does not let this client in.
    NotAuthorised,
    /// The server has no such volume.
    UnknownVolume,
    /// The two sides do not speak the same version.
    Version,
    /// The connection broke.
    LinkLost,
    /// The server said that it stops.
    Stopping,
    /// Another instance holds the volume.
    Held,
    /// Another instance took the volume over.
    Fenced,
    /// The server has no room.
    Full,
    /// The server's store is damaged, or it failed.
    ServerFailed,
    /// The server shows less than it had acknowledged, or another history.
    LostHistory,
    /// Anything else, on this side.
    Failed,
    /// This side was asked to stop.
    Ended,
}

/// When the server is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It may come back by itself: soon, then ever more seldom.
    Soon,
    /// Only somebody can mend it, who need not tell this side: at the longest interval.
    Seldom,
    /// Going on could do harm: not before the user asks.
    Asked,
}

impl Away {
    /// All reasons.
    pub const ALL: [Self; 16] = [
        Self::Starting,
        Self::Refused,
        Self::Unreachable,
        Self::WrongKey,
        Self::NotAuthorised,
        Self::UnknownVolume,
        Self::Version,
        Self::LinkLost,
        Self::Stopping,
        Self::Held,
        Self::Fenced,
        Self::Full,
        Self::ServerFailed,
        Self::LostHistory,
        Self::Failed,
        Self::Ended,
    ];

    /// What it is, for people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Refused => "refused: the machine is up, but nothing listens on that port",
            Self::Unreachable => "unreachable: no network, no such host, or no answer",
            Self::WrongKey => "wrong key: what answers is not the server that was joined",
            Self::NotAuthorised => "the server does not let this client in",
            Self::UnknownVolume => "the server has no such volume",
            Self::Version => "this side and the server do not speak the same version",
            Self::LinkLost => "the connection broke",
            Self::Stopping => "the server is stopping",
            Self::Held => "another instance holds this volume",
            Self::Fenced => "another instance has taken this volume over",
            Self::Full => "the server has no room left",
            Self::ServerFailed => "the server's store is damaged, or it failed",
            Self::LostHistory => "the server has lost history, or shows another one",
            Self::Failed => "failed on this side",
            Self::Ended => "ended, as was asked for",
        }
    }

    /// What can be done about it; empty where nothing has to be.
    pub const fn way_out(self) -> &'static str {
        match self {
            Self::Starting | Self::LinkLost | Self::Stopping | Self::Ended => "",
            Self::Refused => "is `dormouse serve` running there, and on that port?",
            Self::Unreachable => "is there a network, and is the machine up?",
            Self::WrongKey => "check the address; a server with a new key has to be joined anew",
            Self::NotAuthorised => "ask who runs the server for an invite, then `dormouse join`",
            Self::UnknownVolume => "`dormouse volumes` shows what is there",
            Self::Version => "use the same version of dormouse on both sides",
            Self::Held | Self::Fenced => {
                "if the other one is gone for good, take over with `--takeover`"
            }
            Self::Full => {
                "free space on the server, or have this vault's quota raised; it is tried again"
            }
            Self::ServerFailed => "the server's log says why; `dormouse scrub STORE` there",
            Self::LostHistory => {
                "was the server put back to an older state? Nothing is sent before that is clear"
            }
            Self::Failed => "the log says why; it is tried again",
        }
    }

    /// When the server is tried again.
    pub const fn again(self) -> Again {
        match self {
            Self::Starting
            | Self::Refused
            | Self::Unreachable
            | Self::LinkLost
            | Self::Stopping
            | Self::ServerFailed
            | Self::Failed => Again::Soon,
            Self::WrongKey
            | Self::NotAuthorised
            | Self::UnknownVolume
            | Self::Version
            | Self::Held
            | Self::Full => Again::Seldom,
            // Two instances would take the volume from each other for ever; and a new point
            // on a shortened history would bury what can still be mended.
            Self::Fenced | Self::LostHistory | Self::Ended => Again::Asked,
        }
    }

    /// Whether another instance may have written the volume.
    pub const fn taken(self) -> bool {
        matches!(self, Self::Held | Self::Fenced)
    }

    /// What a refusal of the server means here.
    pub const fn of_refusal(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotAuthorised
            | Refusal::Revoked
            | Refusal::InviteUnknown
            | Refusal::InviteUsed
            | Refusal::InviteExpired => Self::NotAuthorised,
            Refusal::NotFound => Self::UnknownVolume,
            Refusal::Held => Self::Held,
            Refusal::Fenced => Self::Fenced,
            Refusal::Full => Self::Full,
            Refusal::Damaged | Refusal::Internal => Self::ServerFailed,
            Refusal::Stopping => Self::Stopping,
            Refusal::NewerStore | Refusal::Protocol => Self::Version,
            Refusal::Conflict | Refusal::Exists | Refusal::BadRecord => Self::Failed,
        }
    }
}

/// Why the copy cannot be trusted to follow from the marks alone: all is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// The server has nothing of the volume.
    FirstCopy,
    /// All was watched since a scan before was begun, which has not come to its end.
    Incomplete,
    /// Nothing is on record of an earlier watch, or it did not end cleanly.
    NoRecord,
    /// The machine was started, or woke from hibernation, since.
    OtherBoot,
    /// The tracker was not there the whole time.
    TrackerGone,
    /// It is another disk than the one that was watched.
    OtherDisk,
    /// The disk had another size.
    OtherSize,
    /// The server's head is not the one that this watch goes on from.
    OtherHead,
    /// Another instance held the volume, or took it over.
    TakenOver,
    /// A request without a range: every block was marked.
    Everything,
    /// The size changed in a way that cannot be followed.
    Resized,
    /// The user asked for it.
    Asked,
}

impl Gap {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::FirstCopy,
        Self::Incomplete,
        Self::NoRecord,
        Self::OtherBoot,
        Self::TrackerGone,
        Self::OtherDisk,
        Self::OtherSize,
        Self::OtherHead,
        Self::TakenOver,
        Self::Everything,
        Self::Resized,
        Self::Asked,
    ];

    /// What it is, for people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::FirstCopy => "the first copy of this disk",
            Self::Incomplete => "the disk was not compared to its end yet",
            Self::NoRecord => "no proof of an unbroken watch: nothing was left on record of it",
            Self::OtherBoot => {
                "no proof of an unbroken watch: the machine was started, or hibernated, since"
            }
            Self::TrackerGone => "no proof of an unbroken watch: the tracker was gone meanwhile",
            Self::OtherDisk => "no proof of an unbroken watch: it is another disk",
            Self::OtherSize => "no proof of an unbroken watch: the disk had another size",
            Self::OtherHead => "no proof of an unbroken watch: the server's newest point differs",
            Self::TakenOver => "another instance may have written this volume",
            Self::Everything => "a request without a range marked the whole disk",
            Self::Resized => "the disk's size changed",
            Self::Asked => "asked for",
        }
    }

    /// Whether the watch went on: then what was known of the age of unsent writes holds.
    pub const fn watched(self) -> bool {
        matches!(self, Self::Incomplete | Self::Everything | Self::Resized | Self::Asked)
    }
}

/// Why there was no frozen point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfrozen {
    /// The file systems took too long to freeze, or to be read while frozen.
    Deadline,
    /// More was left to read than may be held in memory.
    TooLarge,
    /// Nothing there can be frozen, or may be.
    Impossible,
    /// Frozen, and yet something was written meanwhile.
    Unproved,
    /// Anything else.
    Failed,
}

impl Unfrozen {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Deadline, Self::TooLarge, Self::Impossible, Self::Unproved, Self::Failed];

    /// What it is, for people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Deadline => "the file systems took too long to freeze",
            Self::TooLarge => "too much was written to hold the rest in memory",
            Self::Impossible => "nothing there can be frozen",
            Self::Unproved => "something was written while the file systems were frozen",
            Self::Failed => "freezing failed",
        }
    }
}
