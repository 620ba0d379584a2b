//! Records about what is kept: bridges over points that expired, retention, deletions.
//!
//! Owns: their layouts (docs/format.md, 'Records of retention'). Invariant: none of them says
//! by its place in the log what it means: collection may write a record again behind a newer
//! one, so times count, and a deletion is named by its id.
//! Leaves to others: who may make them, and what they do (`dormouse-store`).

use crate::codec::{Reader, Result, Writer, invalid};
use crate::ids::{Hash, RecordId, Seq, TimeNs, VaultId, VolumeId, WriterId};
use crate::limits::{NAME_MAX, POLICY_MAX};
use crate::vault::Signed;

/// A writer's word that one checkpoint of a volume follows from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bridge {
    /// The vault.
    pub vault: VaultId,
    /// The volume.
    pub volume: VolumeId,
    /// Who says so: the writer of `to`.
    pub writer: WriterId,
    /// The older checkpoint.
    pub from: Seq,
    /// Its hash.
    pub from_hash: Hash,
    /// Its content root: what points on it sign, too.
    pub from_root: Hash,
    /// The next checkpoint.
    pub to: Seq,
    /// Its hash.
    pub to_hash: Hash,
}

impl Signed for Bridge {
    const WHAT: &'static str = "bridge";

    fn write(&self, w: &mut Writer) {
        w.bytes(&self.vault.0).bytes(&self.volume.0).bytes(&self.writer.0);
        w.u64(self.from).bytes(&self.from_hash.0).bytes(&self.from_root.0);
        w.u64(self.to).bytes(&self.to_hash.0);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self> {
        let bridge = Self {
            vault: VaultId(r.array()?),
            volume: VolumeId(r.array()?),
            writer: WriterId(r.array()?),
            from: r.u64()?,
            from_hash: Hash(r.array()?),
            from_root: Hash(r.array()?),
            to: r.u64()?,
            to_hash: Hash(r.array()?),
        };
        if bridge.from == 0 || bridge.to <= bridge.from {
            return Err(invalid(Self::WHAT, "it does not lead forward"));
        }
        Ok(bridge)
    }
}

fn read_by(r: &mut Reader<'_>, what: &'static str) -> Result<String> {
    let by = r.text(NAME_MAX)?;
    if by.is_empty() || by.chars().any(char::is_control) {
        return Err(invalid(what, "who made it is not told"));
    }
    Ok(by)
}

/// How long points are kept: of one volume, or of all that have no word of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// The volume; zero: the vault's default.
    pub volume: VolumeId,
    /// When it was set, by the server's clock.
    pub at: TimeNs,
    /// From when on what was set before holds no more; until then both keep what they keep.
    pub effective: TimeNs,
    /// Who set it.
    pub by: String,
    /// The policy; empty: none of its own.
    pub policy: String,
}

impl Retention {
    const WHAT: &'static str = "retention";

    /// The body's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.bytes(&self.volume.0).u64(self.at).u64(self.effective);
        w.blob(self.by.as_bytes()).blob(self.policy.as_bytes());
        w.done()
    }

    /// Reads one off the front of `r`.
    pub fn read(r: &mut Reader<'_>) -> Result<Self> {
        let (volume, at, effective) = (VolumeId(r.array()?), r.u64()?, r.u64()?);
        if effective < at {
            return Err(invalid(Self::WHAT, "it is effective before it was set"));
        }
        let by = read_by(r, Self::WHAT)?;
        Ok(Self { volume, at, effective, by, policy: r.text(POLICY_MAX)? })
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut r = Reader::new(body, Self::WHAT);
        let value = Self::read(&mut r)?;
        r.end()?;
        Ok(value)
    }
}

/// What a record of a deletion says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// It is asked for, and is not undone until it is effective.
    Asked = 1,
    /// It was taken back.
    Undone = 2,
    /// It has happened.
    Done = 3,
}

/// A step of the deletion of a volume, or of points of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// Which step.
    pub step: Step,
    /// Id of the record that asked for it; zero if this is that record.
    pub of: RecordId,
    /// The volume.
    pub volume: VolumeId,
    /// First and last point; none: the volume.
    pub points: Option<(Seq, Seq)>,
    /// When this step was made.
    pub at: TimeNs,
    /// When the deletion may happen.
    pub effective: TimeNs,
    /// Who made this step.
    pub by: String,
}

impl Deletion {
    const WHAT: &'static str = "deletion";

    /// The body's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        let (first, last) = self.points.unwrap_or((0, 0));
        w.u8(self.step as u8).reserved(7).bytes(&self.of.0).bytes(&self.volume.0);
        w.u64(first).u64(last).u64(self.at).u64(self.effective).blob(self.by.as_bytes());
        w.done()
    }

    /// Reads one off the front of `r`.
    pub fn read(r: &mut Reader<'_>) -> Result<Self> {
        let step = match r.u8()? {
            1 => Step::Asked,
            2 => Step::Undone,
            3 => Step::Done,
            _ => return Err(invalid(Self::WHAT, "unknown step")),
        };
        r.reserved(7)?;
        let (of, volume) = (RecordId(r.array()?), VolumeId(r.array()?));
        let points = match (r.u64()?, r.u64()?) {
            (0, 0) => None,
            (first, last) if first > 0 && first <= last => Some((first, last)),
            _ => return Err(invalid(Self::WHAT, "no such range of points")),
        };
        if (step == Step::Asked) != of.is_zero() {
            return Err(invalid(Self::WHAT, "the step does not fit what it names"));
        }
        let (at, effective) = (r.u64()?, r.u64()?);
        if effective < at && step == Step::Asked {
            return Err(invalid(Self::WHAT, "it is effective before it was asked for"));
        }
        Ok(Self { step, of, volume, points, at, effective, by: read_by(r, Self::WHAT)? })
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut r = Reader::new(body, Self::WHAT);
        let value = Self::read(&mut r)?;
        r.end()?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Signature;

    fn bridge() -> Bridge {
        Bridge {
            vault: VaultId([1; 32]),
            volume: VolumeId([2; 16]),
            writer: WriterId([3; 16]),
            from: 4,
            from_hash: Hash([5; 32]),
            from_root: Hash([6; 32]),
            to: 7,
            to_hash: Hash([8; 32]),
        }
    }

    fn asked() -> Deletion {
        Deletion {
            step: Step::Asked,
            of: RecordId::ZERO,
            volume: VolumeId([2; 16]),
            points: Some((3, 5)),
            at: 6,
            effective: 7,
            by: "operator".into(),
        }
    }

    #[test]
    fn a_bridge_leads_forward() {
        let body = bridge().encode(&Signature([9; 64]));
        assert_eq!(Bridge::decode(&body).unwrap().0, bridge());
        assert!(Bridge::decode(&body[1..]).is_err());
        for (from, to) in [(0, 7), (7, 7), (8, 7)] {
            let bad = Bridge { from, to, ..bridge() };
            assert!(Bridge::decode(&bad.encode(&Signature([9; 64]))).is_err(), "{from} to {to}");
        }
    }

    #[test]
    fn retention_round_trips_and_names_who() {
        let policy = "all:24h,hourly:7d".to_owned();
        let volume = VolumeId::ZERO;
        let value = Retention { volume, at: 5, effective: 6, by: "a".into(), policy };
        let body = value.encode();
        assert_eq!(Retention::decode(&body), Ok(value.clone()));
        for cut in 0..body.len() {
            assert!(Retention::decode(&body[..cut]).is_err(), "cut at {cut}");
        }
        let early = Retention { effective: 4, ..value.clone() };
        assert!(Retention::decode(&early.encode()).is_err());
        for by in ["", "a\u{1b}[2J"] {
            let nobody = Retention { by: by.into(), ..value.clone() };
            assert!(Retention::decode(&nobody.encode()).is_err(), "{by:?}");
        }
    }

    #[test]
    fn each_defect_of_a_deletion_is_refused() {
        let all = Deletion { points: None, ..asked() };
        let undone = Deletion { step: Step::Undone, of: RecordId([1; 16]), ..asked() };
        for good in [asked(), all, undone] {
            assert_eq!(Deletion::decode(&good.encode()), Ok(good));
        }
        let bad = |f: fn(&mut Deletion)| {
            let mut d = asked();
            f(&mut d);
            Deletion::decode(&d.encode())
        };
        assert!(bad(|d| d.points = Some((5, 3))).is_err());
        assert!(bad(|d| d.points = Some((0, 3))).is_err());
        assert!(bad(|d| d.effective = 5).is_err());
        assert!(bad(|d| d.of = RecordId([1; 16])).is_err());
        assert!(bad(|d| d.step = Step::Done).is_err());
        for at in [0, 1] {
            let mut bytes = asked().encode();
            bytes[at] ^= 0x40;
            assert!(Deletion::decode(&bytes).is_err(), "byte {at}");
        }
    }
}
