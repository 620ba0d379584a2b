//! Blocks of a point that the disk did not give when it was made: told by its writer, shown to who
//! takes it.
//!
//! Invariant: that there are such blocks is part of the signed point; a server can keep back which
//! ones, and then that is said. Leaves to others: which blocks a disk gives ([`crate::live`]).

use anyhow::Result;
use dormouse_crypt::{SigningKey, keys, record};
use dormouse_format::limits::SMALL_ANSWER_MAX;
use dormouse_format::message::Message;
use dormouse_format::point::Point;
use dormouse_format::record::Kind;
use dormouse_format::stale::{RUNS_MAX, Stale};
use dormouse_format::vault::{Origin, Signed, Volume};
use dormouse_format::{Block, Seq, VaultId, VolumeId};
use dormouse_sync::history::Trust;
use serde_json::json;

use crate::connect::{receive_of, send, unexpected};
use crate::link::Link;
use crate::patience::Patience;
use crate::report::Report;

/// Ranges of which people are told.
const TOLD: usize = 8;

/// A record that names these blocks, in ascending order, for the points from `seq` on.
pub(crate) fn record(
    signer: &SigningKey,
    (vault, volume): (VaultId, VolumeId),
    seq: Seq,
    blocks: impl Iterator<Item = Block>,
) -> Message {
    let mut value =
        Stale { vault, volume, writer: signer.writer_id(), seq, blocks: 0, runs: Vec::new() };
    for block in blocks {
        value.blocks += 1;
        let room = value.runs.len() < RUNS_MAX;
        match value.runs.last_mut() {
            Some((first, count)) if *first + u64::from(*count) == block => *count += 1,
            _ if room => value.runs.push((block, 1)),
            // Counted only.
            _ => {}
        }
    }
    let record = record::plain(Kind::Stale, value.writer, &signer.sign_body(&value));
    Message::Put { record }
}

/// Says which blocks of a point were not read, if there are any.
pub(crate) fn tell(
    link: &Link,
    trust: &Trust,
    (volume, point): (&Volume, &Point),
    report: &mut Report,
) -> Result<()> {
    if !point.stale {
        return Ok(());
    }
    let stale = find(link, trust, volume, point)?;
    report.note(&said(stale.as_ref()));
    let ranges = stale.iter().flat_map(|s| s.ranges().collect::<Vec<_>>());
    report.event(json!({
        "event": "stale", "blocks": stale.as_ref().map(|s| s.blocks),
        "ranges": ranges.map(|(first, last)| json!([first, last])).collect::<Vec<_>>(),
    }));
    Ok(())
}

fn said(stale: Option<&Stale>) -> String {
    let Some(stale) = stale else {
        return "the disk did not give all blocks when this point was made; the server does not say \
                which: compare it with an older point"
            .into();
    };
    let ranges: Vec<_> = stale.ranges().collect();
    let shown: Vec<String> =
        ranges.iter().take(TOLD).map(|(first, last)| format!("{first}-{last}")).collect();
    let named: u64 = stale.runs.iter().take(TOLD).map(|(_, count)| u64::from(*count)).sum();
    let more = match stale.blocks.saturating_sub(named) {
        0 => String::new(),
        n => format!(", and {n} more blocks"),
    };
    format!(
        "the disk did not give {} of this point: it has what was there before, or zeros, at bytes {}{more}",
        blocks(stale.blocks),
        shown.join(", ")
    )
}

fn blocks(n: u64) -> String {
    if n == 1 { "one block".into() } else { format!("{n} blocks") }
}

/// The newest record of the volume that is not younger than the point; for a fork that has none, of
/// its origin.
fn find(link: &Link, trust: &Trust, volume: &Volume, point: &Point) -> Result<Option<Stale>> {
    let rank = |value: &Stale| {
        let of = |origin: &Origin| value.volume == origin.volume && value.seq <= origin.seq;
        let own = value.volume == volume.id && value.seq <= point.seq;
        (own || volume.origin.as_ref().is_some_and(of)).then_some((own, value.seq))
    };
    send(link, Message::GetSmall { kind: Kind::Stale, ids: Vec::new() })?;
    let patience = Patience::new(link);
    let mut found: Option<Stale> = None;
    for _ in 0..=SMALL_ANSWER_MAX {
        match receive_of(link, &patience)? {
            Message::Record { record } => {
                let Some(value) = held(trust, &record) else { continue };
                if rank(&value).is_some_and(|new| found.as_ref().and_then(rank) <= Some(new)) {
                    found = Some(value);
                }
            }
            Message::Done => return Ok(found),
            _ => return unexpected("a question for stale blocks"),
        }
    }
    unexpected("a question for stale blocks, without end")
}

/// What a record says, if a writer of the vault has signed it.
fn held(trust: &Trust, bytes: &[u8]) -> Option<Stale> {
    let (header, body) = record::check(bytes).ok()?;
    let writer = Stale::decode(body).ok()?.0.writer;
    let value: Stale = keys::verify_body(&trust.writer(&writer)?.key, body).ok()?;
    (header.kind == Kind::Stale && value.vault == *trust.vault()).then_some(value)
}
