//! Numbers of what lies on a disk, at their fixed places.
//!
//! Invariant: only bytes that are there are looked at; a magic number comes before each number.

/// Bytes of a disk that are looked at, from its beginning.
pub const HEAD: usize = 128 << 10;

/// Where something says what it is, and where its number is.
struct Place {
    kind: &'static str,
    magic: (usize, &'static [u8]),
    uuid: usize,
}

const PLACES: [Place; 6] = [
    Place { kind: "ext4", magic: (0x438, b"\x53\xef"), uuid: 0x468 },
    Place { kind: "xfs", magic: (0, b"XFSB"), uuid: 32 },
    Place { kind: "btrfs", magic: (0x1_0040, b"_BHRfS_M"), uuid: 0x1_0020 },
    Place { kind: "swap", magic: (4086, b"SWAPSPACE2"), uuid: 0x40c },
    // The header of a partition table, after a first sector of 512 or 4096 bytes.
    Place { kind: "gpt", magic: (512, b"EFI PART"), uuid: 512 + 56 },
    Place { kind: "gpt", magic: (4096, b"EFI PART"), uuid: 4096 + 56 },
];

/// What is there.
pub(super) fn ids(head: &[u8]) -> Vec<(&'static str, String)> {
    let mut ids = Vec::new();
    for Place { kind, magic, uuid } in PLACES {
        if has(head, magic)
            && let Some(bytes) = head.get(uuid..uuid + 16)
        {
            let mut bytes = bytes.to_vec();
            if kind == "gpt" {
                // Its first three parts are numbers with the low byte first.
                [0..4, 4..6, 6..8].into_iter().for_each(|part| bytes[part].reverse());
            }
            ids.push((kind, uuid_text(&bytes)));
        }
    }
    if has(head, (0, b"LUKS\xba\xbe")) {
        ids.extend(text(head, 168, 40).map(|uuid| ("luks", uuid)));
    }
    // A physical volume of LVM has its label in one of the first four sectors.
    let label = (0..4)
        .map(|sector| sector * 512)
        .find(|at| has(head, (*at, b"LABELONE")) && has(head, (at + 24, b"LVM2 001")));
    if let Some(at) = label
        && let Some(offset) = word(head, at + 20)
    {
        ids.extend(text(head, at + offset as usize, 32).map(|uuid| ("lvm", uuid)));
    }
    if !ids.iter().any(|(kind, _)| *kind == "gpt") {
        ids.extend(mbr(head).map(|number| ("mbr", number)));
    }
    ids
}

/// The number of a partition table of the old kind. A boot sector of a file system ends alike; but
/// what would be its table is none.
fn mbr(head: &[u8]) -> Option<String> {
    if !has(head, (510, b"\x55\xaa")) {
        return None;
    }
    let table = head.get(446..510)?.chunks(16);
    let well = table.clone().all(|entry| matches!(entry[0], 0 | 0x80));
    let number = word(head, 440)?;
    (well && table.clone().any(|entry| entry[4] != 0) && number != 0)
        .then(|| format!("{number:08x}"))
}

fn has(head: &[u8], (at, magic): (usize, &[u8])) -> bool {
    at.checked_add(magic.len()).and_then(|end| head.get(at..end)) == Some(magic)
}

fn word(head: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?))
}

fn text(head: &[u8], at: usize, len: usize) -> Option<String> {
    let bytes = head.get(at..at.checked_add(len)?)?;
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(len);
    String::from_utf8(bytes[..end].to_vec()).ok()
}

fn uuid_text(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
