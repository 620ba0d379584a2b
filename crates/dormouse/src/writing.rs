//! A volume that is open for writing on a link: points are made of it, one after the other.
//!
//! Owns: the right to write, and the head on which the next point builds. Invariant: head and
//! checkpoint were proved fresh when the volume was opened, and are what was made here since.
//! After an error the link may be in the middle of something, and must be dropped.

use std::sync::Arc;

use anyhow::{Context, Result};
use dormouse_format::message::Message;
use dormouse_format::point::{Grade, SignedPoint, StoredPoint};
use dormouse_format::vault::Volume;
use dormouse_format::{Hash, RecordId, TimeNs};
use dormouse_sync::checkpoint::{self, Checkpoint};
use dormouse_sync::copy::{self, Copy, Outcome};
use dormouse_sync::leaf::LeafSet;

use crate::connect::{ask, unexpected};
use crate::engine::{self, Leaves, Sealing};
use crate::exit::{Class, Failure};
use crate::home::{Account, Home};
use crate::link::Link;
use crate::mirror::{self, Found};
use crate::remote::{Session, Span};
use crate::text;

/// Bytes of leaves in flight.
const WINDOW: u64 = 16 << 20;

/// How a volume is opened for writing.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// The zstd level.
    pub level: i32,
    /// Take it over from another writer or installation.
    pub takeover: bool,
    /// It must be there already (`false`), or must not (`true`).
    pub new: bool,
}

/// A volume that is open for writing.
#[derive(Debug)]
pub struct Writing {
    /// The link.
    pub link: Link,
    /// The volume's record.
    pub volume: Volume,
    /// The right to write.
    pub generation: u64,
    /// The newest point.
    pub head: Option<StoredPoint>,
    /// The checkpoint that it builds on.
    pub checkpoint: Option<StoredPoint>,
    sealing: Sealing,
}

impl Writing {
    /// Connects, and opens the volume.
    pub fn open(home: &Home, account: &Account, name: &str, how: How) -> Result<Self> {
        let mut session = Session::open(home, account, Some(name), Span::Seen)?;
        let Found { volume, head, checkpoint, new } = mirror::find(&mut session, account, name)?;
        let link = session.link;
        match (new, how.new) {
            (false, true) => {
                return Err(Failure::new(
                    Class::InUse,
                    format!("volume '{name}' is there already"),
                )
                .hint("`dormouse volumes` lists all; choose another name")
                .into());
            }
            (true, false) => {
                let message = format!("the server has no volume '{name}' of this vault");
                return Err(Failure::new(Class::NotFound, message)
                    .hint("`dormouse create VOLUME SIZE` makes an empty one")
                    .into());
            }
            (true, true) => {
                create_volume(&link, account, &volume)?;
            }
            (false, false) => {}
        }
        let generation = open_write(&link, &volume, head.as_ref(), how.takeover)?;
        let sealing = mirror::sealing(account, volume.tags(), how.level)?;
        mirror::put_key(&link, account, &sealing)?;
        Ok(Self { link, volume, generation, head, checkpoint, sealing })
    }

    /// Makes a point of `size` bytes, with this grade, out of these leaves. `ready` is called when
    /// all is there but the point, and may refuse it. Gives the point, and the extents that lead
    /// to it from the head before.
    pub fn copy(
        &mut self,
        mode: copy::Mode,
        (size, leaves): (u64, LeafSet),
        source: &dyn Leaves,
        (grade, ready): (Grade, &mut dyn FnMut() -> Result<()>),
        show: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(Outcome, Vec<Vec<u8>>)> {
        let plan = copy::Plan {
            vault: self.sealing.vault,
            volume: self.volume.id,
            generation: copy::Generation::Given(self.generation),
            head: self.head,
            checkpoint: self.checkpoint,
            size,
            leaves,
            mode,
            part: copy::ALL,
            stale: false,
            window: WINDOW,
        };
        let (secrets, signer) =
            (Arc::clone(&self.sealing.secrets), Arc::clone(&self.sealing.signer));
        let mut copy = Copy::new(plan, secrets, signer)?;
        copy.keep_extents();
        let mut finish = || {
            ready()?;
            Ok((grade, text::now_ns()))
        };
        let mut show = |_: &_| show();
        let outcome =
            engine::run_copy(&self.link, &mut copy, &self.sealing, source, &mut finish, &mut show)?;
        self.take_for_head(outcome.point, outcome.receipt)?;
        Ok((outcome, copy.take_extents()))
    }

    /// Makes a checkpoint of the head: the same state, with its own root.
    pub fn make_checkpoint(&mut self, show: &mut dyn FnMut() -> Result<()>) -> Result<StoredPoint> {
        let head = self.head.context("there is no point yet")?;
        let plan = checkpoint::Plan {
            generation: self.generation,
            head,
            checkpoint: self.checkpoint.context("there is no checkpoint yet")?,
            grade: head.point().grade,
            // It is the same state.
            time: head.point().time,
            fork: None,
        };
        let mut run = Checkpoint::new(plan, Arc::clone(&self.sealing.signer))?;
        let (point, receipt) = engine::run_checkpoint(&self.link, &mut run, show)?;
        self.take_for_head(point, receipt)?;
        self.head.context("there is no point")
    }

    /// Goes on from this point, which is durable.
    fn take_for_head(&mut self, signed: SignedPoint, receipt: TimeNs) -> Result<()> {
        let stored = as_stored(&self.link, signed, receipt)?;
        if signed.point.is_checkpoint() {
            self.checkpoint = Some(stored);
        }
        self.head = Some(stored);
        Ok(())
    }
}

/// Makes a volume on the server, durably.
pub(crate) fn create_volume(link: &Link, account: &Account, volume: &Volume) -> Result<()> {
    let body = account.signing.sign_body(volume);
    match ask(link, Message::CreateVolume { body })? {
        Message::Done => Ok(()),
        _ => unexpected("the creation of a volume"),
    }
}

/// Takes the right to write a volume whose head was proved; the generation.
pub(crate) fn open_write(
    link: &Link,
    volume: &Volume,
    head: Option<&StoredPoint>,
    takeover: bool,
) -> Result<u64> {
    let open = Message::OpenWrite { volume: volume.id, takeover };
    let Message::Opened { generation, head: found, .. } = ask(link, open)? else {
        return unexpected("the opening of a volume");
    };
    if found.map(|h| h.signed) != head.map(|h| h.signed) {
        return Err(dormouse_sync::Error::Moved.into());
    }
    Ok(generation)
}

/// A point that was just made, as the server has it.
pub(crate) fn as_stored(link: &Link, signed: SignedPoint, receipt: TimeNs) -> Result<StoredPoint> {
    if !signed.point.is_checkpoint() {
        let (top, top_record) = (Hash::ZERO, RecordId::ZERO);
        return Ok(StoredPoint { signed, receipt, top, top_record });
    }
    // The server knows where it has put the top of the map. That it is the top is checked under
    // the signed root before it is used.
    let (volume, from) = (signed.point.volume, signed.point.seq);
    match ask(link, Message::ListPoints { volume, from, limit: 1 })? {
        Message::Points { points } => points.into_iter().find(|p| p.signed == signed),
        _ => None,
    }
    .with_context(|| format!("the server does not show point {from}, just made"))
}
