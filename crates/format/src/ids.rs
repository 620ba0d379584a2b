//! Distinct types for every id, so that one cannot be taken for another.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $n:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $n]);

        impl $name {
            /// Bytes in this id.
            pub const LEN: usize = $n;
            /// The id of all zeros: 'none'.
            pub const ZERO: Self = Self([0; $n]);

            /// Whether this is the id of all zeros.
            pub fn is_zero(&self) -> bool {
                self.0 == [0; $n]
            }

            /// Reads the hexadecimal form that `Display` writes.
            pub fn from_hex(text: &str) -> Option<Self> {
                let bytes = text.as_bytes();
                if bytes.len() != $n * 2 {
                    return None;
                }
                let mut out = [0; $n];
                for (o, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *o = (nibble(pair[0])? << 4) | nibble(pair[1])?;
                }
                Some(Self(out))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

const fn nibble(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    }
}

id!(
    /// Keyed hash of one block's content. Never leaves the client. All zeros: the zero block.
    Digest, 16);
id!(
    /// Keyed hash of volume, address and digest: what the map holds for a block.
    /// All zeros: the zero block.
    Tag, 16);
id!(
    /// Id of a record. For a chunk: the keyed hash of its digests and the epoch.
    RecordId, 16);
id!(
    /// Id of a vault: the hash of its authority's public key.
    VaultId, 32);
id!(
    /// Id of a volume, random, chosen by the writer that created it.
    VolumeId, 16);
id!(
    /// Id of a writer: the hash of its signing key.
    WriterId, 16);
id!(
    /// Id of a data key: a hash of the key, so that it also commits to it.
    KeyId, 16);
id!(
    /// A 32-byte hash: a node of the map, a point, a running hash of deltas.
    Hash, 32);
id!(
    /// An Ed25519 public key.
    PublicKey, 32);
id!(
    /// An Ed25519 signature.
    Signature, 64);
id!(
    /// One running instance of a writer.
    InstanceId, 16);

/// A chunk's id is the id of its record.
pub type ChunkId = RecordId;

/// Index of a 4 KiB block in a volume.
pub type Block = u64;

/// Sequence number of a point in its volume; the first is 1.
pub type Seq = u64;

/// Nanoseconds since 1970-01-01T00:00:00Z.
pub type TimeNs = u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trip() {
        let id = VolumeId([0xab; 16]);
        assert_eq!(VolumeId::from_hex(&id.to_string()), Some(id));
        assert_eq!(VolumeId::from_hex("AB"), None);
        assert_eq!(VolumeId::from_hex(&"zz".repeat(16)), None);
    }
}
