//! The messages of the protocol, version 1.
//!
//! A frame is `length: u32 | type: u8 | body`; the length counts type and body.
//! Answers come in the order of the questions, so questions can be pipelined.
//! Layout and order: docs/protocol.md.

pub mod keeping;

use crate::codec::{Error, Reader, Result, Writer, invalid};
use crate::geometry::Place;
use crate::ids::{
    ChunkId, Hash, InstanceId, PublicKey, RecordId, Seq, Signature, TimeNs, VaultId, VolumeId,
    WriterId,
};
use crate::limits::{
    EXTENTS_MAX, FRAME_MAX, GET_MAX, HAVE_MAX, LEVEL_MAX, MISSING_MAX, NAME_MAX, POINTS_MAX,
    RECORD_BODY_MAX, SIGNED_BODY_MAX, TEXT_MAX, VOLUMES_MAX,
};
use crate::point::{STORED_LEN, SignedPoint, StoredPoint};
use crate::record::Kind;
use crate::seeded::seeded;
pub use keeping::{Keep, Kept};

/// The protocol's name and version, negotiated by ALPN.
pub const ALPN: &[u8] = b"dormouse/1";
/// What begins the names of all versions.
pub const ALPN_PREFIX: &[u8] = b"dormouse/";
/// Bytes before the body of a frame: length and type.
pub const FRAME_HEAD: usize = 5;

/// Why the server refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Refusal {
    /// The peer broke the protocol.
    Protocol = 1,
    /// The key is not authorised here (unknown and forbidden look alike).
    NotAuthorised = 2,
    /// The client's key was revoked.
    Revoked = 3,
    /// The invite is not known here, or its secret is wrong.
    InviteUnknown = 4,
    /// The invite was used by another key; the text names its fingerprint.
    InviteUsed = 5,
    /// The invite is past its date.
    InviteExpired = 6,
    /// No such volume or point.
    NotFound = 7,
    /// The volume's name is taken.
    Exists = 8,
    /// Another writer or instance holds the volume.
    Held = 9,
    /// A newer connection has taken the volume over.
    Fenced = 10,
    /// The point does not follow the head.
    Conflict = 11,
    /// No room on the server.
    Full = 12,
    /// The store is damaged there.
    Damaged = 13,
    /// The server failed; see its log.
    Internal = 14,
    /// The server is stopping.
    Stopping = 15,
    /// A record was refused: its checks, signature or writer do not hold.
    BadRecord = 16,
    /// The store holds what a newer program wrote.
    NewerStore = 17,
}

impl Refusal {
    /// All reasons.
    pub const ALL: [Self; 17] = [
        Self::Protocol,
        Self::NotAuthorised,
        Self::Revoked,
        Self::InviteUnknown,
        Self::InviteUsed,
        Self::InviteExpired,
        Self::NotFound,
        Self::Exists,
        Self::Held,
        Self::Fenced,
        Self::Conflict,
        Self::Full,
        Self::Damaged,
        Self::Internal,
        Self::Stopping,
        Self::BadRecord,
        Self::NewerStore,
    ];
}

/// What a pending point's map starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Base {
    /// A delta point: the extents are kept as deltas on the head.
    Delta = 1,
    /// A checkpoint of a full scan: the extents apply to the last checkpoint's
    /// map; deltas since then are left out.
    Checkpoint = 2,
    /// A checkpoint of the head: the last checkpoint's map, the deltas since
    /// then, and the extents.
    Head = 3,
}

/// A volume in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeItem {
    /// The body of the volume's record.
    pub volume: Vec<u8>,
    /// The newest point, if there is one.
    pub head: Option<StoredPoint>,
}

/// Every message, of both directions.
#[expect(
    clippy::large_enum_variant,
    reason = "few live at once; boxing every point would cost more"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    // Client, first message of a connection.
    /// A known client begins.
    Hello {
        /// This running instance.
        instance: InstanceId,
    },
    /// A new client proves an invite.
    Enrol {
        /// Public key that is derived from the invite's secret.
        proof_key: PublicKey,
        /// By that key, over the TLS exporter and both transport keys.
        proof: Signature,
        /// The client's name, as in the invite.
        name: String,
        /// The vault's records (vault, certificate, keys), or for a second
        /// writer of a vault its certificate alone.
        bundle: Vec<Vec<u8>>,
        /// By the writer's signing key, over the same bytes as `proof`.
        writer_proof: Signature,
    },
    /// The holder of the authority comes back without a client key.
    Recover {
        /// The vault.
        vault: VaultId,
        /// By the authority, over the TLS exporter and both transport keys.
        proof: Signature,
        /// The new client's name.
        name: String,
        /// The certificate of the new writer.
        cert: Vec<u8>,
    },

    // Client, reading.
    /// Which volumes are there?
    ListVolumes,
    /// Which points has a volume?
    ListPoints {
        /// The volume.
        volume: VolumeId,
        /// From this sequence number on.
        from: Seq,
        /// At most so many.
        limit: u32,
    },
    /// Records of a small kind: those with these ids, or all if none is given.
    GetSmall {
        /// The kind.
        kind: Kind,
        /// Ids; for data keys the key ids.
        ids: Vec<RecordId>,
    },
    /// Chunks by id; a `Record` or `Absent` for each, in order. Of several records of one
    /// id those of `writer` come first, then those of its trust group, then others.
    GetChunks {
        /// The writer of the point that needs them.
        writer: WriterId,
        /// How many records of each id to pass over, because they did not hold.
        skip: u8,
        /// The chunks.
        ids: Vec<ChunkId>,
    },
    /// The children's hashes of a node of level 1 or above.
    GetNode {
        /// The volume.
        volume: VolumeId,
        /// A checkpoint.
        seq: Seq,
        /// The node.
        place: Place,
    },
    /// Leaves of a page.
    GetLeaves {
        /// The volume.
        volume: VolumeId,
        /// A checkpoint.
        seq: Seq,
        /// Index of the page (level 1).
        page: u64,
        /// Which of its 64 leaves, bit by bit.
        mask: u64,
        /// With chunks and indices, or tags only.
        hints: bool,
    },
    /// The deltas between a point's checkpoint and the point, as records, then `Done`.
    GetDeltas {
        /// The volume.
        volume: VolumeId,
        /// The point.
        seq: Seq,
    },

    // Client, writing.
    /// Creates a volume.
    CreateVolume {
        /// The body of its record.
        body: Vec<u8>,
    },
    /// Takes the right to write a volume.
    OpenWrite {
        /// The volume.
        volume: VolumeId,
        /// Also from another instance or writer.
        takeover: bool,
    },
    /// Which of these chunks need not be sent?
    Have {
        /// Whether each record is read and checked before the answer is yes.
        check: bool,
        /// The chunks.
        ids: Vec<ChunkId>,
    },
    /// A record, not answered unless refused.
    Put {
        /// The record as it will lie in the segment.
        record: Vec<u8>,
    },
    /// Answered by `Durable` when all before it is durable.
    Barrier,
    /// Begins a point.
    Begin {
        /// What its map starts from.
        base: Base,
        /// Size of the volume in bytes.
        size: u64,
    },
    /// A part of the pending point's changes, not answered unless refused.
    Extents {
        /// Runs.
        runs: Vec<u8>,
    },
    /// Ends a point; answered when it is durable and visible.
    Commit {
        /// The point.
        point: SignedPoint,
    },
    /// Says that a chunk's record is bad.
    Distrust {
        /// The body of its record.
        body: Vec<u8>,
    },
    /// May a scan begin? Answered by `Queued`, any number of times, then by `Admitted`.
    AskScan,

    /// About what is kept.
    Keep(Keep),

    // Server.
    /// The connection is accepted.
    Welcome {
        /// The client's vault.
        vault: VaultId,
        /// The client's name.
        name: String,
        /// The server's clock.
        time: TimeNs,
    },
    /// Refused. The connection ends unless the question was a read.
    Error {
        /// Why.
        refusal: Refusal,
        /// For people.
        text: String,
    },
    /// Done, or the end of a series.
    Done,
    /// The volumes of the vault.
    Volumes {
        /// Each with its head.
        items: Vec<VolumeItem>,
    },
    /// Points in ascending order; fewer than asked for means that there are no more.
    Points {
        /// The points.
        points: Vec<StoredPoint>,
    },
    /// A record as it lies in the segment.
    Record {
        /// Header and body.
        record: Vec<u8>,
    },
    /// No such chunk.
    Absent {
        /// The chunk.
        id: ChunkId,
    },
    /// Hashes of a node's non-zero children.
    Node {
        /// Which children are not zero.
        mask: u64,
        /// Their hashes in order.
        hashes: Vec<Hash>,
    },
    /// Leaves as extents.
    Leaves {
        /// Runs; what is not named is zero.
        runs: Vec<u8>,
    },
    /// The right to write is given.
    Opened {
        /// The generation to write in points.
        generation: u64,
        /// The newest point.
        head: Option<StoredPoint>,
        /// The checkpoint that the head builds on, if it is another point.
        checkpoint: Option<StoredPoint>,
    },
    /// Which chunks the store has for this writer.
    HaveAnswer {
        /// One for each question.
        have: Vec<bool>,
    },
    /// All before the barrier is durable.
    Durable,
    /// The point is durable and visible.
    Committed {
        /// When it was received.
        receipt: TimeNs,
    },
    /// The commit names chunks that the store does not have; nothing was changed.
    Missing {
        /// They.
        ids: Vec<ChunkId>,
    },
    /// A scan has to wait; said again now and then.
    Queued {
        /// How many are before it.
        ahead: u32,
    },
    /// The scan may begin.
    Admitted,
    /// About what is kept.
    Kept(Kept),
}

/// Numbers of the message types.
mod t {
    pub const HELLO: u8 = 0x01;
    pub const ENROL: u8 = 0x02;
    pub const RECOVER: u8 = 0x03;
    pub const LIST_VOLUMES: u8 = 0x10;
    pub const LIST_POINTS: u8 = 0x11;
    pub const GET_SMALL: u8 = 0x12;
    pub const GET_CHUNKS: u8 = 0x13;
    pub const GET_NODE: u8 = 0x14;
    pub const GET_LEAVES: u8 = 0x15;
    pub const GET_DELTAS: u8 = 0x16;
    pub const CREATE_VOLUME: u8 = 0x20;
    pub const OPEN_WRITE: u8 = 0x21;
    pub const HAVE: u8 = 0x22;
    pub const PUT: u8 = 0x23;
    pub const BARRIER: u8 = 0x24;
    pub const BEGIN: u8 = 0x25;
    pub const EXTENTS: u8 = 0x26;
    pub const COMMIT: u8 = 0x27;
    pub const DISTRUST: u8 = 0x28;
    pub const ASK_SCAN: u8 = 0x50;
    pub const WELCOME: u8 = 0x81;
    pub const ERROR: u8 = 0x82;
    pub const DONE: u8 = 0x83;
    pub const VOLUMES: u8 = 0x90;
    pub const POINTS: u8 = 0x91;
    pub const RECORD: u8 = 0x92;
    pub const ABSENT: u8 = 0x93;
    pub const NODE: u8 = 0x94;
    pub const LEAVES: u8 = 0x95;
    pub const OPENED: u8 = 0xa0;
    pub const HAVE_ANSWER: u8 = 0xa1;
    pub const DURABLE: u8 = 0xa2;
    pub const COMMITTED: u8 = 0xa3;
    pub const MISSING: u8 = 0xa4;
    pub const QUEUED: u8 = 0xc8;
    pub const ADMITTED: u8 = 0xc9;
}

const WHAT: &str = "message";
const RECORD_MAX: usize = crate::record::HEADER_LEN + RECORD_BODY_MAX;
const BUNDLE_MAX: usize = 4;

impl Message {
    /// The whole frame: length, type, body.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(64 + self.bulk());
        w.u32(0);
        self.write(&mut w);
        let len = (w.0.len() - 4) as u32;
        w.0[..4].copy_from_slice(&len.to_le_bytes());
        debug_assert!(len as usize <= FRAME_MAX, "a frame fits its limit");
        w.done()
    }

    /// Bytes of the part that can be large, to make room for it at once.
    fn bulk(&self) -> usize {
        match self {
            Self::Put { record } | Self::Record { record } => record.len(),
            Self::Extents { runs } | Self::Leaves { runs } => runs.len(),
            Self::Have { ids, .. } | Self::GetChunks { ids, .. } => ids.len() * RecordId::LEN,
            _ => 0,
        }
    }

    fn write(&self, w: &mut Writer) {
        match self {
            Self::Hello { instance } => {
                w.u8(t::HELLO).bytes(&instance.0);
            }
            Self::Enrol { proof_key, proof, name, bundle, writer_proof } => {
                w.u8(t::ENROL).bytes(&proof_key.0).bytes(&proof.0).bytes(&writer_proof.0);
                w.blob(name.as_bytes()).u32(bundle.len() as u32);
                bundle.iter().for_each(|b| {
                    w.blob(b);
                });
            }
            Self::Recover { vault, proof, name, cert } => {
                w.u8(t::RECOVER).bytes(&vault.0).bytes(&proof.0);
                w.blob(name.as_bytes()).blob(cert);
            }
            Self::ListVolumes => {
                w.u8(t::LIST_VOLUMES);
            }
            Self::ListPoints { volume, from, limit } => {
                w.u8(t::LIST_POINTS).bytes(&volume.0).u64(*from).u32(*limit);
            }
            Self::GetSmall { kind, ids } => {
                w.u8(t::GET_SMALL).u8(*kind as u8);
                write_ids(w, ids);
            }
            Self::GetChunks { writer, skip, ids } => {
                w.u8(t::GET_CHUNKS).bytes(&writer.0).u8(*skip);
                write_ids(w, ids);
            }
            Self::GetNode { volume, seq, place } => {
                w.u8(t::GET_NODE).bytes(&volume.0).u64(*seq).u8(place.level).u64(place.index);
            }
            Self::GetLeaves { volume, seq, page, mask, hints } => {
                w.u8(t::GET_LEAVES).bytes(&volume.0).u64(*seq).u64(*page).u64(*mask);
                w.u8(u8::from(*hints));
            }
            Self::GetDeltas { volume, seq } => {
                w.u8(t::GET_DELTAS).bytes(&volume.0).u64(*seq);
            }
            Self::CreateVolume { body } => {
                w.u8(t::CREATE_VOLUME).bytes(body);
            }
            Self::OpenWrite { volume, takeover } => {
                w.u8(t::OPEN_WRITE).bytes(&volume.0).u8(u8::from(*takeover));
            }
            Self::Have { check, ids } => {
                w.u8(t::HAVE).u8(u8::from(*check));
                write_ids(w, ids);
            }
            Self::Put { record } => {
                w.u8(t::PUT).bytes(record);
            }
            Self::Barrier => {
                w.u8(t::BARRIER);
            }
            Self::Begin { base, size } => {
                w.u8(t::BEGIN).u8(*base as u8).u64(*size);
            }
            Self::Extents { runs } => {
                w.u8(t::EXTENTS).bytes(runs);
            }
            Self::Commit { point } => {
                w.u8(t::COMMIT).bytes(&point.encode());
            }
            Self::Distrust { body } => {
                w.u8(t::DISTRUST).bytes(body);
            }
            Self::AskScan => {
                w.u8(t::ASK_SCAN);
            }
            Self::Keep(keep) => keep.write(w),
            answer => answer.write_answer(w),
        }
    }

    fn write_answer(&self, w: &mut Writer) {
        match self {
            Self::Welcome { vault, name, time } => {
                w.u8(t::WELCOME).bytes(&vault.0).u64(*time).blob(name.as_bytes());
            }
            Self::Error { refusal, text } => {
                w.u8(t::ERROR).u16(*refusal as u16).blob(clip(text, TEXT_MAX).as_bytes());
            }
            Self::Volumes { items } => {
                w.u8(t::VOLUMES).u32(items.len() as u32);
                for item in items {
                    w.blob(&item.volume);
                    write_head(w, item.head.as_ref());
                }
            }
            Self::Points { points } => {
                w.u8(t::POINTS).u32(points.len() as u32);
                points.iter().for_each(|p| {
                    w.bytes(&p.encode());
                });
            }
            Self::Record { record } => {
                w.u8(t::RECORD).bytes(record);
            }
            Self::Absent { id } => {
                w.u8(t::ABSENT).bytes(&id.0);
            }
            Self::Node { mask, hashes } => {
                w.u8(t::NODE).u64(*mask);
                hashes.iter().for_each(|h| {
                    w.bytes(&h.0);
                });
            }
            Self::Leaves { runs } => {
                w.u8(t::LEAVES).bytes(runs);
            }
            Self::Opened { generation, head, checkpoint } => {
                w.u8(t::OPENED).u64(*generation);
                write_head(w, head.as_ref());
                write_head(w, checkpoint.as_ref());
            }
            Self::HaveAnswer { have } => {
                w.u8(t::HAVE_ANSWER).u32(have.len() as u32);
                for bits in have.chunks(8) {
                    w.u8(bits.iter().enumerate().fold(0, |b, (i, &h)| b | (u8::from(h) << i)));
                }
            }
            Self::Durable => {
                w.u8(t::DURABLE);
            }
            Self::Committed { receipt } => {
                w.u8(t::COMMITTED).u64(*receipt);
            }
            Self::Missing { ids } => {
                w.u8(t::MISSING);
                write_ids(w, ids);
            }
            Self::Queued { ahead } => {
                w.u8(t::QUEUED).u32(*ahead);
            }
            Self::Admitted => {
                w.u8(t::ADMITTED);
            }
            Self::Kept(kept) => kept.write(w),
            // `Done`, and nothing else: `write` took the client's messages.
            _ => {
                w.u8(t::DONE);
            }
        }
    }

    /// Reads the type and body of a frame.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader::new(bytes, WHAT);
        let kind = r.u8()?;
        let message =
            if kind < 0x80 { Self::read(kind, &mut r)? } else { Self::read_answer(kind, &mut r)? };
        r.end()?;
        Ok(message)
    }

    fn read(kind: u8, r: &mut Reader<'_>) -> Result<Self> {
        Ok(match kind {
            t::HELLO => Self::Hello { instance: InstanceId(r.array()?) },
            t::ENROL => {
                let proof_key = PublicKey(r.array()?);
                let proof = Signature(r.array()?);
                let writer_proof = Signature(r.array()?);
                let name = r.text(NAME_MAX)?;
                let bundle = (0..r.count(BUNDLE_MAX, 4)?)
                    .map(|_| r.blob(RECORD_MAX).map(<[u8]>::to_vec))
                    .collect::<Result<_>>()?;
                Self::Enrol { proof_key, proof, name, bundle, writer_proof }
            }
            t::RECOVER => Self::Recover {
                vault: VaultId(r.array()?),
                proof: Signature(r.array()?),
                name: r.text(NAME_MAX)?,
                cert: r.blob(RECORD_MAX)?.to_vec(),
            },
            t::LIST_VOLUMES => Self::ListVolumes,
            t::LIST_POINTS => {
                Self::ListPoints { volume: VolumeId(r.array()?), from: r.u64()?, limit: r.u32()? }
            }
            t::GET_SMALL => {
                let kind = Kind::from_u8(r.u8()?).ok_or(invalid(WHAT, "unknown kind"))?;
                Self::GetSmall { kind, ids: read_ids(r, GET_MAX)? }
            }
            t::GET_CHUNKS => {
                let (writer, skip) = (WriterId(r.array()?), r.u8()?);
                Self::GetChunks { writer, skip, ids: read_ids(r, GET_MAX)? }
            }
            t::GET_NODE => {
                let volume = VolumeId(r.array()?);
                let seq = r.u64()?;
                let place = Place { level: r.u8()?, index: r.u64()? };
                if !(1..=LEVEL_MAX).contains(&place.level) || place.index >= 1 << 44 {
                    return Err(invalid(WHAT, "no such place in a map"));
                }
                Self::GetNode { volume, seq, place }
            }
            t::GET_LEAVES => {
                let (volume, seq) = (VolumeId(r.array()?), r.u64()?);
                let (page, mask, hints) = (r.u64()?, r.u64()?, r.bool()?);
                if page >= 1 << 44 {
                    return Err(invalid(WHAT, "no such place in a map"));
                }
                Self::GetLeaves { volume, seq, page, mask, hints }
            }
            t::GET_DELTAS => Self::GetDeltas { volume: VolumeId(r.array()?), seq: r.u64()? },
            t::CREATE_VOLUME => Self::CreateVolume { body: rest(r, SIGNED_BODY_MAX)? },
            t::OPEN_WRITE => Self::OpenWrite { volume: VolumeId(r.array()?), takeover: r.bool()? },
            t::HAVE => {
                let check = r.bool()?;
                // What is checked is read, as in GetChunks.
                let limit = if check { GET_MAX } else { HAVE_MAX };
                Self::Have { check, ids: read_ids(r, limit)? }
            }
            t::PUT => Self::Put { record: rest(r, RECORD_MAX)? },
            t::BARRIER => Self::Barrier,
            t::BEGIN => {
                let base = match r.u8()? {
                    1 => Base::Delta,
                    2 => Base::Checkpoint,
                    3 => Base::Head,
                    _ => return Err(invalid(WHAT, "unknown base of a point")),
                };
                Self::Begin { base, size: r.u64()? }
            }
            t::EXTENTS => Self::Extents { runs: rest(r, EXTENTS_MAX)? },
            t::COMMIT => Self::Commit { point: SignedPoint::read(r)? },
            kind if keeping::is_asked(kind) => Self::Keep(Keep::read(kind, r)?),
            t::DISTRUST => Self::Distrust { body: rest(r, SIGNED_BODY_MAX)? },
            t::ASK_SCAN => Self::AskScan,
            _ => return Err(invalid(WHAT, "unknown type")),
        })
    }

    fn read_answer(kind: u8, r: &mut Reader<'_>) -> Result<Self> {
        Ok(match kind {
            t::WELCOME => {
                let (vault, time) = (VaultId(r.array()?), r.u64()?);
                Self::Welcome { vault, time, name: r.text(NAME_MAX)? }
            }
            t::ERROR => {
                let code = r.u16()?;
                let refusal = Refusal::ALL.into_iter().find(|x| *x as u16 == code);
                let refusal = refusal.ok_or(invalid(WHAT, "unknown refusal"))?;
                Self::Error { refusal, text: r.text(TEXT_MAX)? }
            }
            t::DONE => Self::Done,
            t::VOLUMES => {
                let items = (0..r.count(VOLUMES_MAX, 5)?)
                    .map(|_| {
                        let volume = r.blob(SIGNED_BODY_MAX)?.to_vec();
                        Ok(VolumeItem { volume, head: read_head(r)? })
                    })
                    .collect::<Result<_>>()?;
                Self::Volumes { items }
            }
            t::POINTS => {
                let n = r.count(POINTS_MAX, STORED_LEN)?;
                let points = (0..n).map(|_| StoredPoint::read(r)).collect::<Result<_>>()?;
                Self::Points { points }
            }
            t::RECORD => Self::Record { record: rest(r, RECORD_MAX)? },
            t::ABSENT => Self::Absent { id: RecordId(r.array()?) },
            t::NODE => {
                let mask = r.u64()?;
                let hashes = (0..mask.count_ones())
                    .map(|_| r.array().map(Hash))
                    .collect::<Result<Vec<_>>>()?;
                if hashes.iter().any(Hash::is_zero) {
                    return Err(invalid(WHAT, "a child that is named is zero"));
                }
                Self::Node { mask, hashes }
            }
            t::LEAVES => Self::Leaves { runs: rest(r, RECORD_BODY_MAX)? },
            t::OPENED => Self::Opened {
                generation: r.u64()?,
                head: read_head(r)?,
                checkpoint: read_head(r)?,
            },
            t::HAVE_ANSWER => read_have(r)?,
            t::DURABLE => Self::Durable,
            t::COMMITTED => Self::Committed { receipt: r.u64()? },
            t::MISSING => Self::Missing { ids: read_ids(r, MISSING_MAX)? },
            t::QUEUED => Self::Queued { ahead: r.u32()? },
            t::ADMITTED => Self::Admitted,
            kind if keeping::is_told(kind) => Self::Kept(Kept::read(kind, r)?),
            _ => return Err(invalid(WHAT, "unknown type")),
        })
    }
}

fn read_have(r: &mut Reader<'_>) -> Result<Message> {
    let n = r.u32()? as usize;
    if n > HAVE_MAX {
        return Err(Error::TooLarge { what: WHAT, value: n as u64, limit: HAVE_MAX as u64 });
    }
    let bits = r.bytes(n.div_ceil(8))?;
    if !n.is_multiple_of(8) && bits.last().is_some_and(|b| b >> (n % 8) != 0) {
        return Err(invalid(WHAT, "bits beyond the count are set"));
    }
    Ok(Message::HaveAnswer { have: (0..n).map(|i| bits[i / 8] >> (i % 8) & 1 == 1).collect() })
}

fn rest(r: &mut Reader<'_>, limit: usize) -> Result<Vec<u8>> {
    if r.left() > limit {
        return Err(Error::TooLarge { what: WHAT, value: r.left() as u64, limit: limit as u64 });
    }
    Ok(r.rest().to_vec())
}

fn write_ids(w: &mut Writer, ids: &[RecordId]) {
    w.u32(ids.len() as u32);
    for id in ids {
        w.bytes(&id.0);
    }
}

fn read_ids(r: &mut Reader<'_>, limit: usize) -> Result<Vec<RecordId>> {
    let n = r.count(limit, RecordId::LEN)?;
    (0..n).map(|_| r.array().map(RecordId)).collect()
}

fn write_head(w: &mut Writer, head: Option<&StoredPoint>) {
    w.u8(u8::from(head.is_some()));
    if let Some(head) = head {
        w.bytes(&head.encode());
    }
}

fn read_head(r: &mut Reader<'_>) -> Result<Option<StoredPoint>> {
    Ok(if r.bool()? { Some(StoredPoint::read(r)?) } else { None })
}

/// The longest prefix of `text` of at most `max` bytes that ends at a character.
fn clip(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Takes whole frames off a growing buffer.
#[derive(Debug)]
pub struct Deframer {
    buffer: Vec<u8>,
    start: usize,
    limit: usize,
}

impl Deframer {
    /// A deframer that refuses frames of more than `limit` bytes.
    pub const fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, limit }
    }

    /// Changes the limit, as after authentication.
    pub const fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && (self.start == self.buffer.len() || self.start > FRAME_MAX) {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Gives back the memory that what was taken has left.
    pub fn shrink(&mut self) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.shrink_to_fit();
    }

    /// The next whole message, or `None` if more bytes are needed.
    pub fn next_message(&mut self) -> Result<Option<Message>> {
        let rest = &self.buffer[self.start..];
        let Some((len, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_le_bytes(*len) as usize;
        if len == 0 || len > self.limit + usize::from(seeded("frame-bound")) {
            return Err(Error::TooLarge {
                what: "frame",
                value: len as u64,
                limit: self.limit as u64,
            });
        }
        let Some(frame) = rest.get(..len) else { return Ok(None) };
        let message = Message::decode(frame)?;
        self.start += 4 + len;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests;
