//! Reading maps and deltas of points.

use dormouse_format::extents::Runs;
use dormouse_format::geometry::{Place, top_level};
use dormouse_format::record::Kind;
use dormouse_format::{Hash, RecordId, Seq, VolumeId};

use super::VaultStore;
use crate::error::{Error, Result};
use crate::locks::read;
use crate::log::RecordRef;
use crate::map::{Reading, Source, Tree, hashes};
use crate::state::history::LOST;

impl Source for VaultStore {
    fn fetch(&self, kind: Kind, id: &RecordId) -> Result<(RecordRef, Vec<u8>)> {
        self.settled(|| self.fetch_here(kind, id))
    }
}

impl VaultStore {
    fn fetch_here(&self, kind: Kind, id: &RecordId) -> Result<(RecordRef, Vec<u8>)> {
        let mut places = Vec::new();
        self.find(id, &mut |e| {
            if e.kind == kind {
                places.push(e.at);
            }
            false
        })?;
        let mut failed = None;
        for at in places {
            match self.log.segments.record(&at) {
                Ok((header, record)) if header.id == *id && header.kind == kind => {
                    return Ok((at, record));
                }
                Ok(_) => {
                    let e =
                        at.damaged(format!("another record lies where a {} should", kind.name()));
                    failed.get_or_insert(e);
                }
                Err(Error::Moved) => return Err(Error::Moved),
                Err(e) => {
                    failed.get_or_insert(e);
                }
            }
        }
        Err(failed.unwrap_or_else(|| {
            LOST.damaged(format!("the {} {id} lies in no segment", kind.name()))
        }))
    }

    pub(super) fn reading(&self) -> Reading<'_> {
        Reading { source: self, cache: &self.cache }
    }

    fn tree(&self, volume: &VolumeId, seq: Seq) -> Result<Tree> {
        let point = self.point(volume, seq)?;
        if point.point().is_checkpoint() {
            return Ok(Tree::of(&point));
        }
        Err(Error::NotFound { what: format!("the map of point {seq}, which is no checkpoint,") })
    }

    /// Hashes of the children of a node of level 1 or above, of a checkpoint's map.
    pub fn node(&self, volume: &VolumeId, seq: Seq, place: Place) -> Result<[Hash; 64]> {
        let tree = self.tree(volume, seq)?;
        if place.level == 0 || place.level > top_level(tree.size) {
            return Err(Error::NotFound { what: format!("a map node of level {}", place.level) });
        }
        let link = self.reading().find(&tree, place)?;
        if link.is_zero() {
            return Ok([Hash::ZERO; 64]);
        }
        if place.level == 1 {
            return Ok(self.reading().page(place.index, &link)?.leaves);
        }
        Ok(hashes(&*self.reading().children(place, &link)?))
    }

    /// Leaves of a page of a checkpoint's map, as runs; what is not named is zero.
    pub fn leaves(
        &self,
        volume: &VolumeId,
        seq: Seq,
        page: u64,
        mask: u64,
        hints: bool,
    ) -> Result<Vec<u8>> {
        let tree = self.tree(volume, seq)?;
        let link = self.reading().find(&tree, Place { level: 1, index: page })?;
        if link.is_zero() {
            return Ok(Vec::new());
        }
        let runs = self.reading().page(page, &link)?.page.select(page, mask, hints);
        debug_assert!(Runs::new(&runs).all(|r| r.is_ok()));
        Ok(runs)
    }

    /// The Delta records between a point's checkpoint (exclusive) and the point.
    pub fn deltas(&self, volume: &VolumeId, seq: Seq) -> Result<Vec<RecordRef>> {
        let point = *self.point(volume, seq)?.point();
        let volume = self.volume(volume)?;
        let history = read(&volume.history);
        let parts = history.parts(point.checkpoint, point.seq);
        match parts.iter().find(|(_, at)| *at == LOST) {
            Some((seq, _)) => Err(LOST.damaged(format!(
                "deltas of point {}@{seq} are damaged; scrub says where",
                volume.value.name
            ))),
            None => Ok(parts.iter().map(|(_, at)| *at).collect()),
        }
    }

    /// Calls `out` with each of these Delta records, in order.
    pub fn each_delta(
        &self,
        volume: &VolumeId,
        seq: Seq,
        out: &mut dyn FnMut(Vec<u8>),
    ) -> Result<()> {
        let mut done = 0;
        // A collection moves them, but they stay the same, and in order.
        self.settled(|| {
            for at in self.deltas(volume, seq)?.iter().skip(done) {
                out(self.read(at)?);
                done += 1;
            }
            Ok(())
        })
    }
}
