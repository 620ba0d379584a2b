//! Unkeyed hashes: checks of records and segments, nodes of the map, roots, points.
//!
//! Owns: which bytes go into each hash, and its label. Every hash begins with a
//! 16-byte label, so that no two uses can meet in one input.

use dormouse_format::geometry::Place;
use dormouse_format::limits::{FANOUT, LEAF_BLOCKS};
use dormouse_format::segment::{self, Tail};
use dormouse_format::{Hash, PublicKey, RecordId, Tag, VaultId, VolumeId, WriterId};

fn labelled(label: &[u8; 16]) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(label);
    hasher
}

fn cut16(hasher: &blake3::Hasher) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    out
}

/// Check of a record's header (its first 96 bytes), or of a segment's (its first 112).
pub fn header_check(bytes: &[u8]) -> [u8; 16] {
    cut16(labelled(b"dormouse header\0").update(bytes))
}

/// Check of a record's body.
pub fn body_check(body: &[u8]) -> [u8; 16] {
    cut16(labelled(b"dormouse body\0\0\0").update(body))
}

/// Id of a record whose body is not sealed.
pub fn plain_id(kind: u8, body: &[u8]) -> RecordId {
    RecordId(cut16(labelled(b"dormouse plain\0\0").update(&[kind]).update(body)))
}

/// The chain value after an entry.
pub fn chain(before: &[u8; 16], header_check: &[u8; 16], durable: u64) -> [u8; 16] {
    let mut hasher = labelled(b"dormouse chain\0\0");
    hasher.update(before).update(header_check).update(&durable.to_le_bytes());
    cut16(&hasher)
}

/// Check of an entry's trailer, which proves it without the entries before.
pub fn trailer_check(
    segment_check: &[u8; 16],
    offset: u64,
    durable: u64,
    chain: &[u8; 16],
) -> [u8; 8] {
    let mut hasher = labelled(b"dormouse trailer");
    hasher.update(segment_check).update(&offset.to_le_bytes());
    hasher.update(&durable.to_le_bytes()).update(chain);
    let mut out = [0; 8];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    out
}

/// Check of a sealed segment's tail.
pub fn tail_check(seal: u64, chain: &[u8; 16]) -> [u8; 16] {
    let tail = Tail { seal, check: [0; 16] }.encode();
    let head = &tail[..segment::TAIL_LEN - 16];
    cut16(labelled(b"dormouse tail\0\0\0").update(head).update(chain))
}

/// Id of the vault of an authority.
pub fn vault_id(authority: &PublicKey) -> VaultId {
    VaultId(*labelled(b"dormouse vault\0\0").update(&authority.0).finalize().as_bytes())
}

/// Id of the writer with this signing key.
pub fn writer_id(key: &PublicKey) -> WriterId {
    WriterId(cut16(labelled(b"dormouse writer\0").update(&key.0)))
}

/// What people compare: the fingerprint of a transport key.
pub fn fingerprint(key: &PublicKey) -> [u8; 32] {
    *labelled(b"dormouse peer\0\0\0").update(&key.0).finalize().as_bytes()
}

/// Hash of a leaf; zero if all its tags are.
pub fn leaf(index: u64, tags: &[Tag; LEAF_BLOCKS as usize]) -> Hash {
    if tags.iter().all(Tag::is_zero) {
        return Hash::ZERO;
    }
    let mut input = [0u8; 32 + LEAF_BLOCKS as usize * Tag::LEN];
    node_prefix(&mut input, Place { level: 0, index });
    for (out, tag) in input[32..].chunks_exact_mut(Tag::LEN).zip(tags) {
        out.copy_from_slice(&tag.0);
    }
    Hash(*blake3::hash(&input).as_bytes())
}

/// Hash of an inner node; zero if all its children are.
pub fn node(place: Place, children: &[Hash; FANOUT as usize]) -> Hash {
    if children.iter().all(Hash::is_zero) {
        return Hash::ZERO;
    }
    let mut input = [0u8; 32 + FANOUT as usize * Hash::LEN];
    node_prefix(&mut input, place);
    for (out, child) in input[32..].chunks_exact_mut(Hash::LEN).zip(children) {
        out.copy_from_slice(&child.0);
    }
    Hash(*blake3::hash(&input).as_bytes())
}

fn node_prefix(input: &mut [u8], place: Place) {
    input[..16].copy_from_slice(b"dormouse map v1\0");
    input[16] = place.level;
    input[24..32].copy_from_slice(&place.index.to_le_bytes());
}

/// The content root that a checkpoint signs: volume, size, and the map's top node.
pub fn content_root(volume: &VolumeId, size: u64, level: u8, top: &Hash) -> Hash {
    let mut hasher = labelled(b"dormouse root v1");
    hasher.update(&volume.0).update(&size.to_le_bytes()).update(&[level]).update(&top.0);
    Hash(*hasher.finalize().as_bytes())
}

/// The running hash of deltas after one more; it starts with the checkpoint's root.
pub fn delta(before: &Hash, size: u64, body: &[u8]) -> Hash {
    let body = blake3::hash(body);
    let mut hasher = labelled(b"dormouse delta\0\0");
    hasher.update(&before.0).update(&size.to_le_bytes()).update(body.as_bytes());
    Hash(*hasher.finalize().as_bytes())
}

/// Hash of a point, which the next one names.
pub fn point(signed: &[u8; dormouse_format::point::SIGNED_LEN]) -> Hash {
    Hash(*labelled(b"dormouse point\0\0").update(signed).finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_subtrees_are_constants_and_places_are_bound() {
        let zero = [Tag::ZERO; 256];
        assert_eq!(leaf(7, &zero), Hash::ZERO);
        let mut tags = zero;
        tags[3] = Tag([1; 16]);
        assert_ne!(leaf(7, &tags), leaf(8, &tags));
        let mut children = [Hash::ZERO; 64];
        assert_eq!(node(Place { level: 1, index: 0 }, &children), Hash::ZERO);
        children[1] = leaf(1, &tags);
        assert_ne!(
            node(Place { level: 1, index: 0 }, &children),
            node(Place { level: 2, index: 0 }, &children)
        );
    }
}
