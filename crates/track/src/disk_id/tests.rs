//! Readers against what the real tools make; verdicts by a table.

use std::process::Command;

use super::*;

fn disk_id(size: u64, ids: &[(&str, &str)]) -> DiskId {
    let mut id = DiskId { size, ids: BTreeMap::new() };
    ids.iter().for_each(|(kind, value)| id.add(kind, value));
    id
}

#[test]
fn a_disk_is_known_again_or_not() {
    use Verdict::{Other, Same, Unknown};
    type Ids = &'static [(&'static str, &'static str)];
    let table: [(Ids, Ids, Verdict); 18] = [
        // By its hardware, whatever lies on it.
        (&[("serial", "A"), ("ext4", "1")], &[("serial", "A"), ("ext4", "2")], Same),
        (&[("serial", "A"), ("ext4", "1")], &[("serial", "A")], Same),
        (&[("serial", "A"), ("wwid", "W")], &[("serial", "A")], Same),
        (&[("serial", "A"), ("ext4", "1")], &[("serial", "B"), ("ext4", "1")], Other),
        (&[("serial", "A"), ("wwid", "W")], &[("serial", "A"), ("wwid", "V")], Other),
        // A half of a mirror has the content of the whole, and is another disk.
        (&[("md", "M"), ("ext4", "1")], &[("serial", "A"), ("ext4", "1")], Other),
        (&[("serial", "A"), ("ext4", "1")], &[("ext4", "1")], Other),
        (&[("loop", "/a"), ("xfs", "1")], &[("loop", "/b"), ("xfs", "1")], Other),
        // By its content, where there is nothing else.
        (&[("ext4", "1")], &[("ext4", "1")], Same),
        (&[("ext4", "1")], &[("ext4", "1"), ("serial", "A")], Same),
        (&[("gpt", "1")], &[("gpt", "2")], Other),
        (&[("ext4", "1")], &[("xfs", "2")], Other),
        (&[("ext4", "1")], &[], Other),
        // Not at all.
        (&[], &[], Unknown),
        (&[], &[("ext4", "1")], Unknown),
        // A part is not the whole, nor another part.
        (&[("serial", "A")], &[("serial", "A"), ("partition", "1")], Other),
        (&[("serial", "A"), ("partition", "1")], &[("serial", "A"), ("partition", "2")], Other),
        (&[("serial", "A"), ("partition", "1")], &[("serial", "A"), ("partition", "1")], Same),
    ];
    for (recorded, found, verdict) in table {
        let (a, b) = (disk_id(1 << 30, recorded), disk_id(1 << 30, found));
        assert_eq!(a.judge(&b), verdict, "{recorded:?} {found:?}");
        // A known disk may change its size; one that is not known may not.
        let larger = disk_id(2 << 30, found);
        let then = if verdict == Unknown { Other } else { verdict };
        assert_eq!(a.judge(&larger), then, "{recorded:?} {found:?}, larger");
    }
    let none = disk_id(1, &[("serial", "  "), ("wwid", "0000-0000")]);
    assert_eq!(none, disk_id(1, &[]), "blanks and zeros are no numbers");
}

#[test]
fn numbers_of_the_hardware_are_those_of_the_whole_disk() {
    let sys = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = sys.path().join("devices/sda").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    for (path, text) in [
        ("dev", "8:0\n"),
        ("size", "100\n"),
        ("device/wwid", "naa.5000c500\n"),
        ("device/serial", "  S5 R9  \n"),
        ("sda2/dev", "8:2\n"),
        ("sda2/partition", "2\n"),
        ("sda2/start", "8\n"),
        ("sda2/size", "40\n"),
        ("sda2/uevent", "PARTN=2\nPARTUUID=ab-02\n"),
    ] {
        put(path, text);
    }
    fs::create_dir_all(sys.path().join("dev/block")).unwrap();
    for (number, path) in [("8:0", "sda"), ("8:2", "sda/sda2")] {
        let link = sys.path().join("dev/block").join(number);
        std::os::unix::fs::symlink(sys.path().join("devices").join(path), link).unwrap();
    }
    let of = |minor| {
        let rdev = rustix::fs::makedev(8, minor);
        DiskId::of_hardware(&Disk::in_sysfs(Path::new("/dev/x"), rdev, sys.path()).unwrap())
    };
    let numbers = [("wwid", "naa.5000c500"), ("serial", "S5 R9")];
    assert_eq!(of(0), disk_id(51200, &numbers));
    let part = [("partition", "2"), ("partuuid", "ab-02")];
    assert_eq!(of(2), disk_id(20480, &[&numbers[..], &part].concat()));
    assert_eq!(of(0).judge_hardware(&of(2)), Some(Verdict::Other));
}

#[test]
fn an_id_comes_back_from_its_text() {
    let all = disk_id(7 << 30, &[("serial", "S5 R\n9"), ("loop", "/a b/c"), ("ext4", "1-2")]);
    assert_eq!(DiskId::from_text(&all.to_text()), Some(all));
    for bad in ["", "size", "size x\n", "serial 9\n", "size 9\nsize 8\n", "size 9\nserial\n"] {
        assert_eq!(DiskId::from_text(bad), None, "{bad:?}");
    }
}

/// Every reader may be given anything, cut off anywhere.
#[test]
fn readers_look_only_at_what_is_there() {
    let mut head = vec![0xff; HEAD];
    for (at, magic) in [
        (0, &b"LUKS\xba\xbe"[..]),
        (0x438, b"\x53\xef"),
        (0x1_0040, b"_BHRfS_M"),
        (4086, b"SWAPSPACE2"),
        (510, b"\x55\xaaEFI PART"),
        (1024, b"LABELONE"),
        (1048, b"LVM2 001"),
    ] {
        head[at..at + magic.len()].copy_from_slice(magic);
    }
    assert!(content::ids(&head).len() >= 4, "{:?}", content::ids(&head));
    for len in (0..5000).chain(0x1_0000..0x1_0080) {
        content::ids(&head[..len]);
    }
}

/// The tool's own word for it, and ours.
fn made_by(line: &str, asked: &str) -> Option<(String, Vec<(&'static str, String)>)> {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
    let run = |line: &str| {
        let line = line.replace("IMAGE", image.to_str().unwrap());
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        Command::new("sh").args(["-ec", &line]).env("PATH", path).output().unwrap()
    };
    let out = run(line);
    if !out.status.success() {
        eprintln!("SKIPPED: {line}: {}", String::from_utf8_lossy(&out.stderr).trim());
        return None;
    }
    let said = String::from_utf8(run(asked).stdout).unwrap().trim().to_lowercase();
    assert!(!said.is_empty(), "{asked} says nothing");
    let head = fs::read(&image).unwrap()[..HEAD].to_vec();
    Some((said, content::ids(&head)))
}

#[test]
fn numbers_are_those_of_the_tools() {
    let uuid = |kind| format!("blkid -p -o value -s {kind} IMAGE");
    for (kind, made, asked) in [
        ("ext4", "mke2fs -q -F -t ext4 IMAGE", uuid("UUID")),
        ("xfs", "mkfs.xfs -q IMAGE", uuid("UUID")),
        ("btrfs", "mkfs.btrfs -q IMAGE", uuid("UUID")),
        ("swap", "mkswap -q IMAGE", uuid("UUID")),
        ("mbr", "printf 'label: dos\\n,,L\\n' | sfdisk -q IMAGE", uuid("PTUUID")),
        ("gpt", "printf 'label: gpt\\n,,L\\n' | sfdisk -q IMAGE", uuid("PTUUID")),
        (
            "luks",
            "echo a | cryptsetup luksFormat -q --pbkdf-force-iterations 1000 --pbkdf pbkdf2 IMAGE",
            uuid("UUID"),
        ),
    ] {
        let Some((said, ids)) = made_by(made, &asked) else { continue };
        let found: Vec<_> = ids.iter().filter(|(k, _)| *k == kind).collect();
        assert_eq!(ids.len(), 1, "{kind}: {ids:?}");
        assert_eq!(found[0].1, said, "{kind}");
    }
}
