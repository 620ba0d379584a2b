//! What only the fuzzer may do: seal what no writer would seal.

use dormouse_format::VaultId;
use dormouse_format::limits::SEAL_OVERHEAD;
use dormouse_format::record::Header;

use crate::Result;
use crate::seal::{DataKey, enclose};

/// A record with this header, whose seal and checks hold, around any payload.
/// Nothing is counted at the key.
pub fn seal_payload(
    vault: &VaultId,
    key: &DataKey,
    header: Header,
    payload: &[u8],
) -> Result<Vec<u8>> {
    let mut body = payload.to_vec();
    body.resize(payload.len() + SEAL_OVERHEAD, 0);
    enclose(vault, key, header, &mut body)
}

/// A record with this header and body, whose checks hold.
pub fn assemble(header: Header, body: &[u8]) -> Vec<u8> {
    crate::record::assemble(header, body)
}
