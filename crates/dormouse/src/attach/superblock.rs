//! What file system lies on a disk: read from its superblock, not asked of the kernel. Pure.
//!
//! Invariant: nothing is believed but what has a magic number; bytes may be anything.

/// How many bytes from the start of a disk are looked at.
pub const LOOKED_AT: usize = BTRFS_AT + 4096;

const EXT_AT: usize = 1024;
const BTRFS_AT: usize = 64 << 10;

/// ext3, ext4: the journal must be replayed before all is there.
const EXT_NEEDS_RECOVERY: u32 = 4;

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext2, ext3 or ext4: the same driver.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
}

impl Kind {
    /// As mount(2) calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The kind that the kernel calls so.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "ext2" | "ext3" | "ext4" => Some(Self::Ext4),
            "xfs" => Some(Self::Xfs),
            "btrfs" => Some(Self::Btrfs),
            _ => None,
        }
    }
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// Its kind.
    pub kind: Kind,
    /// Its UUID: file systems with the same are copies of each other.
    pub uuid: [u8; 16],
    /// It is known that a journal waits to be replayed.
    pub unreplayed: bool,
}

/// Which file system begins with these bytes, if it is one that is known here.
pub fn read(bytes: &[u8]) -> Option<FileSystem> {
    ext(bytes).or_else(|| xfs(bytes)).or_else(|| btrfs(bytes))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn ext(bytes: &[u8]) -> Option<FileSystem> {
    let magic = array(bytes, EXT_AT + 56)? == [0x53, 0xef];
    let incompatible = u32::from_le_bytes(array(bytes, EXT_AT + 96)?);
    let uuid = array(bytes, EXT_AT + 104)?;
    let unreplayed = incompatible & EXT_NEEDS_RECOVERY != 0;
    magic.then_some(FileSystem { kind: Kind::Ext4, uuid, unreplayed })
}

fn xfs(bytes: &[u8]) -> Option<FileSystem> {
    let magic = bytes.starts_with(b"XFSB");
    let uuid = array(bytes, 32)?;
    magic.then_some(FileSystem { kind: Kind::Xfs, uuid, unreplayed: false })
}

fn btrfs(bytes: &[u8]) -> Option<FileSystem> {
    let magic = &array::<8>(bytes, BTRFS_AT + 64)? == b"_BHRfS_M";
    let uuid = array(bytes, BTRFS_AT + 32)?;
    // The tree of the log: there is one after a crash only.
    let unreplayed = array(bytes, BTRFS_AT + 96)? != [0u8; 8];
    magic.then_some(FileSystem { kind: Kind::Btrfs, uuid, unreplayed })
}

/// A UUID as people write it.
pub fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex = crate::text::hex(uuid);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const UUID: &str = "0190a1b2-c3d4-4e5f-8a6b-7c8d9e0f1a2b";

    /// What `mkfs` makes of 128 MiB, with this UUID.
    fn made(program: &str, args: &[&str]) -> Option<Vec<u8>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        // The least that xfs and btrfs take.
        file.as_file().set_len(320 << 20).unwrap();
        let run = Command::new(program).args(args).arg(file.path()).output();
        if !run.is_ok_and(|out| out.status.success()) {
            eprintln!("SKIPPED: {program} is not here");
            return None;
        }
        let mut bytes = vec![0; LOOKED_AT];
        std::os::unix::fs::FileExt::read_exact_at(file.as_file(), &mut bytes, 0).unwrap();
        Some(bytes)
    }

    #[test]
    fn what_mkfs_makes_is_known() {
        let xfs = format!("uuid={UUID}");
        for (kind, program, args) in [
            (Kind::Ext4, "mke2fs", ["-q", "-F", "-t", "ext4", "-U", UUID].as_slice()),
            (Kind::Xfs, "mkfs.xfs", &["-q", "-m", &xfs]),
            (Kind::Btrfs, "mkfs.btrfs", &["-q", "-U", UUID]),
        ] {
            let Some(bytes) = made(program, args) else { continue };
            let found = read(&bytes).unwrap_or_else(|| panic!("{program} is not recognised"));
            assert_eq!((found.kind, uuid_text(&found.uuid).as_str()), (kind, UUID));
            assert!(!found.unreplayed, "{program}");
            assert_eq!(Kind::named(kind.name()), Some(kind));
        }
    }

    #[test]
    fn a_journal_that_waits_is_seen() {
        let mut bytes = vec![0; LOOKED_AT];
        bytes[EXT_AT + 56..EXT_AT + 58].copy_from_slice(&[0x53, 0xef]);
        assert!(!read(&bytes).unwrap().unreplayed);
        bytes[EXT_AT + 96] = 4;
        assert!(read(&bytes).unwrap().unreplayed);
    }

    #[test]
    fn other_bytes_are_nothing() {
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[0; LOOKED_AT]), None);
        assert_eq!(read(b"XFSB"), None, "too short to be one");
        for len in [1, 40, EXT_AT + 57, BTRFS_AT + 70] {
            assert_eq!(read(&vec![0xff; len]), None);
        }
    }
}
