//! The server of a disk, reached again: in a thread of its own, because names, routes and
//! servers take their time.
//!
//! Invariant: what comes back was proved: the volume is the same, its history goes on from what
//! this machine knows, and the point is shown as it was.

use anyhow::Result;
use crossbeam_channel::{Receiver, bounded};
use dormouse_format::message::Message;
use dormouse_format::point::StoredPoint;
use dormouse_format::{Seq, VolumeId};
use dormouse_sync::history::Trust;

use crate::connect::{ask, unexpected};
use crate::home::Home;
use crate::link::Link;
use crate::remote::{Session, Span};

/// What is reached.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) home: Home,
    pub(super) name: String,
    pub(super) volume: VolumeId,
    pub(super) seq: Seq,
    /// The user vouches for a history that this machine takes for an old one.
    pub(super) expected: bool,
}

/// A new link.
pub(super) struct Reached {
    pub(super) link: Link,
    pub(super) trust: Trust,
    /// The point as the server shows it; nothing if it does not.
    pub(super) shown: Option<StoredPoint>,
}

impl Place {
    /// Begins to reach it. What comes of it is sent, unless nobody waits any more.
    pub(super) fn reach(&self) -> Receiver<Result<Reached>> {
        let (tx, rx) = bounded(1);
        let place = self.clone();
        let work = move || drop(tx.send(place.try_once()));
        let thread = std::thread::Builder::new().name("disk-reach".into()).spawn(work);
        if let Err(error) = thread {
            let (tx, rx) = bounded(1);
            let _ = tx.send(Err(error.into()));
            return rx;
        }
        rx
    }

    fn try_once(&self) -> Result<Reached> {
        let account = self.home.account()?;
        let mut session = Session::open(&self.home, &account, Some(&self.name), Span::Seen)?;
        let listed = session.volume(&self.name)?;
        let (id, head) = (listed.volume.id, listed.head);
        if id != self.volume {
            return Err(dormouse_sync::Error::Fork { seq: self.seq }.into());
        }
        if !self.expected {
            session.check_fresh(&id, head.as_ref())?;
        }
        let Session { link, trust, .. } = session;
        let question = Message::ListPoints { volume: id, from: self.seq, limit: 1 };
        let Message::Points { points } = ask(&link, question)? else {
            return unexpected("a question for a point");
        };
        Ok(Reached { link, trust, shown: points.first().copied() })
    }
}
