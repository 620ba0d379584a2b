//! Every limit of the format and the protocol, in one place.
//!
//! Invariant: a length that comes from a peer or a disk is compared with one of
//! these before anything is allocated for it.

/// Bytes in a block, the unit of tracking.
pub const BLOCK_SIZE: usize = 4096;
/// Blocks covered by one leaf of the map (1 MiB).
pub const LEAF_BLOCKS: u64 = 256;
/// Children of an inner node of the map.
pub const FANOUT: u64 = 64;
/// Blocks covered by one page (a level-1 node: 64 leaves, 64 MiB).
pub const PAGE_BLOCKS: u64 = LEAF_BLOCKS * FANOUT;
/// Highest level a map can have: level 8 covers 2^56 blocks, more than 2^64 bytes.
pub const LEVEL_MAX: u8 = 8;
/// Largest size of a volume in bytes (2^60; a 64-bit address leaves room above).
pub const VOLUME_SIZE_MAX: u64 = 1 << 60;
/// Most blocks in one chunk.
pub const CHUNK_BLOCKS_MAX: usize = 64;
/// A chunk ends after a block whose digest has these low bits of its first byte clear.
pub const CUT_MASK: u8 = 0x0f;
/// Bytes before the data in a chunk's opened payload.
pub const CHUNK_PREFIX: usize = 4;
/// Most bytes of a chunk's opened payload.
pub const CHUNK_PAYLOAD_MAX: usize = CHUNK_PREFIX + CHUNK_BLOCKS_MAX * BLOCK_SIZE;
/// Bytes that sealing adds (the AES-256-GCM tag).
pub const SEAL_OVERHEAD: usize = 16;
/// Most bytes of a record's body, of any kind.
pub const RECORD_BODY_MAX: usize = 1 << 20;
/// Most bytes of the body of a small signed record (vault, certificate, wrapped key, volume).
pub const SIGNED_BODY_MAX: usize = 8 << 10;
/// Most bytes of one part of extents (a delta, or a message).
pub const EXTENTS_MAX: usize = 256 << 10;
/// Most bytes of one frame after authentication (type and body).
pub const FRAME_MAX: usize = (1 << 20) + 4096;
/// Most bytes of one frame before authentication.
pub const FRAME_MAX_UNAUTHENTICATED: usize = 32 << 10;
/// Most chunk ids in one question.
pub const HAVE_MAX: usize = 4096;
/// Most chunks asked for in one message.
pub const GET_MAX: usize = 1024;
/// Most points in one answer.
pub const POINTS_MAX: usize = 2048;
/// Most records of one answer to GetSmall that a client takes.
pub const SMALL_ANSWER_MAX: u32 = 1 << 20;
/// Most missing chunks named in one refusal.
pub const MISSING_MAX: usize = 4096;
/// Longest text of a vault's recipient, in bytes (post-quantum ones are long).
pub const RECIPIENT_MAX: usize = 4096;
/// Most volumes of one vault.
pub const VOLUMES_MAX: usize = 1024;
/// How many other records of a chunk a reader may ask for.
pub const CHUNK_TRIES_MAX: u8 = 8;
/// Longest name of a volume or a client, in bytes.
pub const NAME_MAX: usize = 64;
/// Longest text of a retention policy, in bytes.
pub const POLICY_MAX: usize = 256;
/// Most ranges of points in one answer about retention.
pub const KEEPING_MAX: usize = 4096;
/// Most deletions of a vault that have not happened yet.
pub const DELETIONS_MAX: usize = 1024;
/// Longest text in an error message, in bytes.
pub const TEXT_MAX: usize = 1024;
/// A segment is sealed when the next record would take it beyond this many bytes.
pub const SEGMENT_SIZE: u64 = 64 << 20;
/// Most delta bytes that may lie between a checkpoint and the newest point.
pub const DELTAS_BYTES_MAX: u64 = 96 << 20;
/// Most records that one data key may seal (the birthday bound of a 96-bit nonce hash).
pub const RECORDS_PER_KEY_MAX: u64 = 1 << 32;
/// Most ranges of points in one note of what expired.
pub const EXPIRED_RANGES_MAX: usize = 500;
/// Most segments in one note of what was retired.
pub const RETIRED_MAX: usize = 128;
