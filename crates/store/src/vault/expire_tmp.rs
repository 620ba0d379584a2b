
use std::ops::RangeInclusive;
use dormouse_format::{Seq, TimeNs, VolumeId};
use super::VaultStore;
use crate::error::Result;
use crate::locks::write;
impl VaultStore {
    pub fn expired(&self, _v: &VolumeId, _r: RangeInclusive<Seq>, _n: usize) -> Result<Vec<(Seq, Seq)>> { Ok(vec![]) }

    pub fn expire(&self, volume: &VolumeId, ranges: &[RangeInclusive<Seq>], _now: TimeNs) -> Result<()> {
        let volume = self.volume(volume)?;
        write(&volume.history).points.retain(|(s, _)| !ranges.iter().any(|r| r.contains(s)));
        Ok(())
    }
}
