//! The job that connects: the volume is open for writing, and it is proved, or not, that the marks are
//! all that the server can lack.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use crossbeam_channel::{RecvTimeoutError, bounded};
use dormouse_format::message::Message;
use dormouse_format::point::StoredPoint;
use dormouse_sync::history::hash_of;
use dormouse_sync::live::{Away, DELTAS_SMALL, Event, Head, Proof};

use super::{Worker, seen};
use crate::exit::{Class, Failure};
use crate::live::connecting::{self, Opened};
use crate::live::pilot::Pilot;
use crate::{connect, text};

impl Worker {
    pub(super) fn connect(&mut self, pilot: &mut Pilot<'_>, takeover: bool) -> Result<Event> {
        self.session = None;
        let (sender, opened) = bounded(1);
        let (home, account) = (self.home.clone(), Arc::clone(&self.account));
        let (config, pace) = (self.config.clone(), self.pace.clone());
        std::thread::Builder::new().name("connect".into()).spawn(move || {
            // If nobody waits any more, the link is dropped here.
            let _ = sender.send(connecting::open(&home, &account, &config, takeover, pace));
        })?;
        let opened = loop {
            match opened.recv_timeout(Duration::from_millis(100)) {
                Ok(opened) => break opened?,
                Err(RecvTimeoutError::Timeout) => pilot.during()?,
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the connecting thread ended"),
            }
        };
        let id = opened.volume.id;
        self.check_history(&opened)?;
        let proof = self.tracked.prove(&id, opened.head.as_ref(), opened.generation)?;
        let deltas = match &opened.head {
            None => 0,
            Some(head) if head.point().is_checkpoint() => 0,
            // Not known: soon a checkpoint.
            Some(_) => self.deltas.unwrap_or(DELTAS_SMALL),
        };
        self.deltas = Some(deltas);
        let head = opened.head.map(|head| Head {
            point: seen(&head.signed),
            consistent: opened.consistent.map(|p| (seen(&p.signed), age(&p))),
            deltas,
        });
        pilot.teller.counters.reconnects += u64::from(self.connected);
        self.connected = true;
        self.moved = 0;
        self.session = Some(opened);
        if proof == Proof::Unbroken {
            self.remember_disk()?;
        }
        Ok(Event::Connected { proof, head, dirty: self.tracked.dirty()? })
    }

    /// The server must show the last point that it has acknowledged. The home may know an older
    /// one only: it is written now and then.
    fn check_history(&self, opened: &Opened) -> Result<()> {
        let volume = opened.volume.id;
        let record = self.tracked.record()?.filter(|r| r.volume == volume.0 && r.seq > 0);
        let Some(record) = record else { return Ok(()) };
        let is_ours = |p: &StoredPoint| hash_of(&p.signed).0 == record.head;
        if opened.head.as_ref().is_some_and(is_ours) {
            return Ok(());
        }
        let question = Message::ListPoints { volume, from: record.seq, limit: 1 };
        if let Message::Points { points } = connect::ask(&opened.link, question)?
            && points.first().is_some_and(is_ours)
        {
            return Ok(());
        }
        let name = &opened.volume.name;
        let message = format!(
            "the server does not show point {} of '{name}' any more, which it had acknowledged",
            record.seq
        );
        Err(Failure::new(Class::Damaged, message)
            .hint(format!(
                "its store may have been put back to an older state: look there first;\n\
                 to go on from what it has: stop the mirror, `dormouse untrack {name}`, start it again"
            ))
            .away(Away::LostHistory)
            .into())
    }
}

/// Time since a point was made, by this machine's clock, which made it.
fn age(point: &StoredPoint) -> Duration {
    let made = point.point().time;
    Duration::from_nanos(text::now_ns().saturating_sub(made))
}
