//! Points that have expired: what is asked about them, and what people are told.
//!
//! Invariant: nothing is asked where nothing is missing. Leaves to others: what leads over a gap
//! (`dormouse_sync::history`).

use anyhow::Result;
use dormouse_format::limits::KEEPING_MAX;
use dormouse_format::message::{Keep, Kept, Message};
use dormouse_format::{Seq, VolumeId};
use dormouse_sync::bridge::Bridges;
use dormouse_sync::history::{Points, Proof, Trust};

use crate::connect::{ask, receive_of, send, unexpected};
use crate::link::Link;
use crate::out::note;
use crate::patience::Patience;

/// Ranges of expired points that are taken of one volume.
const RANGES_MAX: usize = 1 << 20;

/// Asks about what was not shown, and proves that the rest leads over it.
pub(super) fn prove(
    link: &Link,
    trust: &Trust,
    volume: VolumeId,
    points: &mut Points<'_>,
) -> Result<Proof> {
    let Some((range, question)) = points.missing() else { return Ok(Proof::default()) };
    let expired = expired(link, volume, range)?;
    let mut bridges = Bridges::new(trust, volume);
    send(link, question)?;
    let patience = Patience::new(link);
    loop {
        match receive_of(link, &patience)? {
            Message::Record { record } => bridges.offer(&record)?,
            Message::Done => break,
            _ => return unexpected("a question for bridges"),
        }
    }
    Ok(points.prove(&expired, &bridges)?)
}

fn expired(link: &Link, volume: VolumeId, range: (Seq, Seq)) -> Result<Vec<(Seq, Seq)>> {
    let (mut from, to) = range;
    let mut all: Vec<(Seq, Seq)> = Vec::new();
    loop {
        let question = Message::Keep(Keep::GetGaps { volume, from, to });
        let Message::Kept(Kept::Gaps { ranges }) = ask(link, question)? else {
            return unexpected("a question for expired points");
        };
        let more = ranges.len() == KEEPING_MAX;
        all.extend(&ranges);
        match all.last() {
            Some((_, last)) if more && *last < to && *last >= from && all.len() < RANGES_MAX => {
                from = last + 1;
            }
            _ => return Ok(all),
        }
    }
}

/// Says what could not be proved.
pub(super) fn tell(name: &str, proof: &Proof) {
    if let Some((first, last)) = proof.unbridged.first() {
        let more = match proof.unbridged.len() - 1 {
            0 => String::new(),
            n => format!(", and {n} gaps more"),
        };
        note!(
            "{name}: points {first} to {last} have expired{more}, and no bridge leads over them: \
             they are of a time when writers made none. What is before and behind is signed; that \
             one comes from the other is the server's word"
        );
    }
    let Some(seen) = proof.seen else { return };
    match seen.from {
        Some(from) if from == seen.seq => {}
        Some(from) => note!(
            "{name}: point {}, the last that this machine knew, has expired. The history is proved \
             to go on from its checkpoint {from}; what lay between is proved no more",
            seen.seq
        ),
        None => note!(
            "{name}: point {}, the last that this machine knew, has expired, and no bridge leads \
             on from it: that the history goes on from it is the server's word",
            seen.seq
        ),
    }
}
