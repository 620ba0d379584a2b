//! Which messages of clients get a line in the audit log.
//!
//! Invariant: a line is written after the message was carried out, before its answer leaves. A
//! client cannot make the log grow faster than one takeover in [`TAKEOVER_EVERY`]; those between
//! are counted in the next line. An administrator can: each order about what is kept has its line.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dormouse_format::message::Message;
use dormouse_sync::server::Session;

use super::Shared;
use crate::audit::Event;
use crate::audit::keeping::Order;
use crate::exit::text_of;

/// Takeovers by one client that get a line each.
const TAKEOVER_EVERY: Duration = Duration::from_secs(10);

/// What is remembered of takeovers.
#[derive(Debug, Default)]
pub(super) struct Takeovers(Mutex<HashMap<String, (Instant, u64)>>);

impl Takeovers {
    /// How many there were that got no line, if this one gets one.
    fn line(&self, client: &str, now: Instant) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = |since: &Instant| now.saturating_duration_since(*since) >= TAKEOVER_EVERY;
        let (since, more) = all.get(client).copied().unwrap_or((now, 0));
        if all.contains_key(client) && !due(&since) {
            all.insert(client.to_owned(), (since, more + 1));
            return None;
        }
        all.insert(client.to_owned(), (now, 0));
        Some(more)
    }
}

/// What a message will have done, once it is carried out.
#[derive(Debug, Clone)]
pub(super) enum What {
    /// A new client.
    Join,
    /// A client that came back with its vault's authority.
    Recover,
    /// A volume changed hands.
    Takeover(dormouse_format::VolumeId, dormouse_format::WriterId),
    /// What is kept was changed.
    Keeping(Order),
}

impl What {
    /// What this message is, before it is carried out.
    pub(super) fn of(session: &Session, message: &Message) -> Option<Self> {
        match message {
            Message::Enrol { .. } => Some(Self::Join),
            Message::Recover { .. } => Some(Self::Recover),
            Message::OpenWrite { volume, takeover: true } => {
                let own = session.client()?.writer;
                let holder = session.holder(volume).filter(|holder| *holder != own)?;
                Some(Self::Takeover(*volume, holder))
            }
            Message::Keep(ask) => Order::of(session.store()?, ask).map(Self::Keeping),
            _ => None,
        }
    }

    /// Writes the line of what was answered so. If it cannot be written, the server's log says so.
    pub(super) fn write(
        self,
        shared: &Shared,
        session: &Session,
        from: SocketAddr,
        answer: &Message,
    ) {
        let Some(client) = session.client() else { return };
        let by = format!("client {}", client.name);
        let event = |name: &str| {
            Event::new(name, &client.name, &by, &from.to_string())
                .with("vault", client.vault.to_string())
                .with("role", client.role.name())
        };
        let event = match self {
            Self::Join => event("join"),
            Self::Recover => event("recover"),
            Self::Takeover(volume, holder) => {
                let line = shared.takeovers.line(&client.name, Instant::now());
                let Some(more) = line else { return };
                let event = event("takeover").with("volume", volume.to_string());
                let event = event.with("from_writer", holder.to_string());
                if more > 0 { event.with("more", more) } else { event }
            }
            Self::Keeping(order) => {
                let Some(event) = order.event(answer, event) else { return };
                event
            }
        };
        if let Err(error) = event.write(shared.access.store()) {
            shared.log.line(&text_of(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_fight_do_not_fill_the_log() {
        let (all, now) = (Takeovers::default(), Instant::now());
        assert_eq!(all.line("a", now), Some(0));
        assert_eq!(all.line("a", now), None);
        assert_eq!(all.line("a", now + TAKEOVER_EVERY / 2), None);
        assert_eq!(all.line("b", now), Some(0));
        assert_eq!(all.line("a", now + TAKEOVER_EVERY), Some(2));
        assert_eq!(all.line("a", now + TAKEOVER_EVERY), None);
    }
}
