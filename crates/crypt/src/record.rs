//! Making and checking whole records, with or without a seal.

use dormouse_format::record::{CHECKED_LEN, HEADER_LEN, Header, Kind, split};
use dormouse_format::seeded::seeded;
use dormouse_format::{KeyId, RecordId, WriterId};

use crate::{Error, Result, hash};

/// Fills in the checks of a header and puts the record together.
pub fn assemble(mut header: Header, body: &[u8]) -> Vec<u8> {
    header.body_len = body.len() as u32;
    header.body_check = hash::body_check(body);
    header.check = hash::header_check(&header.encode()[..CHECKED_LEN]);
    let mut record = Vec::with_capacity(HEADER_LEN + body.len());
    record.extend_from_slice(&header.encode());
    record.extend_from_slice(body);
    record
}

/// A record whose body is not sealed; its id is the hash of the body.
pub fn plain(kind: Kind, writer: WriterId, body: &[u8]) -> Vec<u8> {
    plain_with_id(kind, writer, hash::plain_id(kind as u8, body), body)
}

fn plain_with_id(kind: Kind, writer: WriterId, id: RecordId, body: &[u8]) -> Vec<u8> {
    let header = Header {
        kind,
        count: 0,
        body_len: 0,
        epoch: 0,
        id,
        writer,
        key: KeyId::ZERO,
        nonce: [0; 12],
        body_check: [0; 16],
        check: [0; 16],
    };
    assemble(header, body)
}

/// Checks a header against its own check, before its body is read.
pub fn check_header(bytes: &[u8; HEADER_LEN]) -> Result<Header> {
    if hash::header_check(&bytes[..CHECKED_LEN]) != bytes[CHECKED_LEN..]
        && !seeded("header-unchecked")
    {
        return Err(Error::Checksum { what: "record header" });
    }
    Ok(Header::decode(bytes)?)
}

/// Checks a body against its header; for a plain record also that the id is its hash.
pub fn check_body(header: &Header, body: &[u8]) -> Result<()> {
    if hash::body_check(body) != header.body_check && !seeded("body-unchecked") {
        return Err(Error::Checksum { what: header.kind.name() });
    }
    if !header.kind.sealed() && hash::plain_id(header.kind as u8, body) != header.id {
        return Err(Error::Checksum { what: header.kind.name() });
    }
    Ok(())
}

/// Checks a whole record, as anybody can without a key.
pub fn check(record: &[u8]) -> Result<(Header, &[u8])> {
    let (header, body) = split(record)?;
    if hash::header_check(&record[..CHECKED_LEN]) != header.check {
        return Err(Error::Checksum { what: "record header" });
    }
    check_body(&header, body)?;
    Ok((header, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_byte_shows() {
        let record = plain(Kind::Delta, WriterId([1; 16]), &[1, 2, 3, 4, 5]);
        assert!(check(&record).is_ok());
        for i in 0..record.len() {
            for mask in [1, 0x80, 0xff] {
                let mut bad = record.clone();
                bad[i] ^= mask;
                assert!(check(&bad).is_err(), "byte {i} mask {mask:#x}");
            }
        }
    }
}
