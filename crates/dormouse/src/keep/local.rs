//! What is kept, for who runs the store: on the store itself, or through the server that has it.
//!
//! Invariant: the same engine answers as over a link, and the same checks are made; only the
//! least grace is that of the operator.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use dormouse_format::VaultId;
use dormouse_format::limits::POINTS_MAX;
use dormouse_format::message::{Message, Refusal, VolumeItem};
use dormouse_store::VaultStore;
use dormouse_sync::server::keeping::Asked;
use dormouse_sync::server::{Refused, Registry};

use super::orders;
use crate::access::Access;
use crate::audit::Event;
use crate::audit::keeping::Order;
use crate::exit::{Class, Failure, class_of, of_refusal};
use crate::files::Lock;
use crate::log::Log;
use crate::store_dir::StoreDir;
use crate::text::now_ns;

/// Who runs the store, in records and logs.
const OPERATOR: &str = "operator";

/// An operator's way to one vault.
#[derive(Debug)]
pub struct Local {
    store: StoreDir,
    vault: VaultId,
    /// The store is free, and this process has it.
    own: Option<Arc<Own>>,
}

/// A store that this process has.
#[derive(Debug)]
struct Own {
    access: Access,
    _lock: Lock,
}

impl Drop for Own {
    fn drop(&mut self) {
        self.access.close();
    }
}

impl Local {
    /// To each vault of a store, or to those whose id begins so.
    pub fn all(path: &Path, vault: Option<&str>) -> Result<Vec<Self>> {
        let store = StoreDir::open(path)?;
        let own = match store.lock() {
            Ok(lock) => {
                store.must_be_whole()?;
                let access = Access::new(store.clone(), Log::silent());
                Some(Arc::new(Own { access, _lock: lock }))
            }
            Err(e) if class_of(&e) == Class::InUse => None,
            Err(e) => return Err(e),
        };
        let begins = |id: &VaultId| vault.is_none_or(|begin| id.to_string().starts_with(begin));
        let vaults: Vec<_> = store.vaults()?.into_iter().filter(begins).collect();
        if vaults.is_empty() {
            let message = format!("{} has no such vault", store.path().display());
            return Err(Failure::new(Class::NotFound, message)
                .hint("`dormouse clients STORE` shows the vaults")
                .into());
        }
        let to = |vault| Self { store: store.clone(), vault, own: own.clone() };
        Ok(vaults.into_iter().map(to).collect())
    }

    /// The vault.
    pub const fn vault(&self) -> &VaultId {
        &self.vault
    }

    /// Asks; the answers, of which none is a refusal.
    pub fn ask(&self, question: Message) -> Result<Vec<Message>> {
        let answers = match &self.own {
            Some(own) => {
                let vault = own.access.vault(&self.vault).map_err(failure)?;
                let vault = vault.ok_or_else(|| {
                    Failure::new(Class::NotFound, format!("vault {} is empty", self.vault))
                })?;
                let event = |what: &str| Event::by_command(what, "-");
                answer(&vault, &own.access, question, u64::MAX, &event)
            }
            None => orders::give(&self.store, &self.vault, &question)?,
        };
        if let Some(Message::Error { refusal, text }) = answers.first() {
            return Err(failure(Refused { refusal: *refusal, text: text.clone() }).into());
        }
        Ok(answers)
    }
}

fn failure(refused: Refused) -> Failure {
    let (class, hint) = of_refusal(refused.refusal);
    Failure::new(class, refused.text).hint(hint)
}

/// What a vault's store answers to who runs it. What that changed gets a line in the audit log,
/// which `event` begins; `looks` is [`Asked::looks`].
pub fn answer(
    vault: &VaultStore,
    access: &Access,
    ask: Message,
    looks: u64,
    event: &dyn Fn(&str) -> Event,
) -> Vec<Message> {
    let mut answers = Vec::new();
    match ask {
        Message::ListVolumes => {
            let all = vault.volumes().into_iter();
            let items = all.map(|(_, volume, head)| VolumeItem { volume, head }).collect();
            answers.push(Message::Volumes { items });
        }
        Message::ListPoints { volume, from, limit } => {
            match vault.points(&volume, from, (limit as usize).min(POINTS_MAX)) {
                Ok(points) => answers.push(Message::Points { points }),
                Err(e) => return refusal(Refused::new(Refusal::NotFound, e.to_string())),
            }
        }
        Message::Keep(ask) => {
            let clock = |confirmed| access.clock_holds(confirmed);
            let (clock, name) = (&clock, OPERATOR);
            let asked = Asked { store: vault, clock, name, operator: true, looks };
            let order = Order::of(vault, &ask);
            if let Err(refused) = asked.answer(ask, now_ns(), &mut |m| answers.push(m)) {
                return refusal(refused);
            }
            let line = order.zip(answers.first()).and_then(|(o, answer)| o.event(answer, event));
            if let Some(Err(error)) = line.map(|line| line.write(access.store())) {
                access.tell(&error);
            }
        }
        _ => return refusal(Refused::new(Refusal::Protocol, "this is no order")),
    }
    answers
}

/// A refusal as an answer.
pub fn refusal(refused: Refused) -> Vec<Message> {
    vec![Message::Error { refusal: refused.refusal, text: refused.text }]
}
