//! What a client does to read a point: list, prove what leads over gaps, restore.
//!
//! Invariant: nothing is read of a history that is not proved, over points that expired too; no
//! gap is without a bridge, for every writer here makes them.

use dormouse_format::Seq;
use dormouse_format::message::{Keep, Kept, Message};
use dormouse_format::point::StoredPoint;
use dormouse_format::record::Kind;
use dormouse_sync::bridge::Bridges;
use dormouse_sync::fetch;
use dormouse_sync::history::{Points, Proof, Trust, check_anchor};

use super::{Around, Client, Job, Step, Stop, odd};
use crate::drive::Restoring;
use crate::run::model::Violation;
use crate::source::Disk;

type Done = core::result::Result<bool, Stop>;

/// What the server says of points that it does not show.
#[derive(Default)]
pub(super) struct Gaps {
    ranges: Vec<(Seq, Seq)>,
    bridges: Vec<Vec<u8>>,
}

/// The point with this number.
fn find(points: &[StoredPoint], seq: Seq) -> Option<&StoredPoint> {
    points.iter().find(|p| p.point().seq == seq)
}

/// Every gap is led over, and from what was seen.
pub fn bridged(proof: &Proof) -> core::result::Result<(), Violation> {
    if let Some((first, last)) = proof.unbridged.first() {
        return Err(Violation(format!("no bridge leads over points {first} to {last}")));
    }
    match proof.seen {
        Some(seen) if seen.from.is_none() => {
            Err(Violation(format!("no bridge leads on from point {}, which was seen", seen.seq)))
        }
        _ => Ok(()),
    }
}

impl Client {
    pub(super) fn list(&mut self, job: Job, message: Message, around: &mut Around<'_>) -> Done {
        let Message::Points { points } = message else { return Err(odd()) };
        let volume = &mut self.volumes[job.volume()];
        around.model.shown(volume.id, &points)?;
        let seen = volume.anchor.as_ref();
        let shown = seen.and_then(|a| find(&points, a.point.seq));
        let newer = points.last().zip(seen).is_some_and(|(h, a)| h.point().seq > a.point.seq);
        // One that is left out is proved to have expired, or is not.
        if shown.is_some() || !newer {
            check_anchor(seen, points.last(), shown)?;
        }
        if points.is_empty() {
            return Ok(true);
        }
        around.outbox.push(Message::GetSmall { kind: Kind::Cert, ids: vec![] });
        let trust = Trust::new(self.machine.authority.public());
        self.wait(Step::Certs { points, trust })
    }

    /// The certificates are there: what is missing is asked about.
    pub(super) fn past(
        &mut self,
        job: Job,
        points: Vec<StoredPoint>,
        trust: Trust,
        around: &mut Around<'_>,
    ) -> Done {
        let volume = &self.volumes[job.volume()];
        let mut all = Points::from(&trust, volume.id, 1).after(volume.anchor);
        all.add(&points)?;
        let Some(((from, to), bridges)) = all.missing() else {
            all.done(None)?;
            return self.restore(job, &points, trust, around);
        };
        let gaps = Keep::GetGaps { volume: volume.id, from, to };
        around.outbox.extend([Message::Keep(gaps), bridges]);
        self.wait(Step::Gaps { points, trust, told: Gaps::default() })
    }

    pub(super) fn gaps(
        &mut self,
        job: Job,
        points: Vec<StoredPoint>,
        trust: Trust,
        mut told: Gaps,
        around: &mut Around<'_>,
    ) -> Done {
        loop {
            match self.receive()? {
                None => return self.wait(Step::Gaps { points, trust, told }),
                Some(Message::Kept(Kept::Gaps { ranges })) => told.ranges = ranges,
                Some(Message::Record { record }) => told.bridges.push(record),
                Some(Message::Done) => break,
                Some(_) => return Err(odd()),
            }
        }
        let volume = &self.volumes[job.volume()];
        let mut all = Points::from(&trust, volume.id, 1).after(volume.anchor);
        all.add(&points)?;
        let mut bridges = Bridges::new(&trust, volume.id);
        told.bridges.iter().try_for_each(|record| bridges.offer(record))?;
        bridged(&all.prove(&told.ranges, &bridges)?)?;
        all.done(None)?;
        self.restore(job, &points, trust, around)
    }

    fn restore(
        &mut self,
        job: Job,
        points: &[StoredPoint],
        trust: Trust,
        around: &mut Around<'_>,
    ) -> Done {
        let Job::Restore { volume, back, in_place } = job else { return Ok(true) };
        let id = self.volumes[volume].id;
        let at = points.len() - 1 - (back as usize) % points.len();
        let point = points[at];
        let Some(checkpoint) = find(points, point.point().checkpoint) else {
            let why = format!("point {} is listed without its checkpoint", point.point().seq);
            return Err(Stop::Broken(Violation(why)));
        };
        self.reading = Some((id, point.point().seq));
        let (mode, mut disk) = if in_place {
            let other = &points[self.random.below(points.len() as u64) as usize];
            let state = around.model.state(&other.signed).map(|d| Disk::clone(d));
            (fetch::Mode::InPlace, state.unwrap_or_default())
        } else {
            (fetch::Mode::Fresh, Disk::default())
        };
        let both = [point, *checkpoint];
        let restoring = Restoring::start(&self.machine, id, trust, both, mode, &mut disk)?;
        self.step = Some(Step::Restore { restoring: Box::new(restoring), point, disk });
        self.go_on(job, around)
    }
}
