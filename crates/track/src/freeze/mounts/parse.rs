//! The texts in which the kernel lists mounts and swap areas.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A line of `mountinfo`.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    pub id: u64,
    /// Of the file system: a device's number, or an anonymous one.
    pub number: (u32, u32),
    pub point: PathBuf,
    pub kind: String,
    pub source: PathBuf,
    /// Of the file system, whatever this mount allows.
    pub writable: bool,
}

/// All lines; `None` if one is not as proc(5) describes it.
pub fn mountinfo(text: &[u8]) -> Option<Vec<Line>> {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(line).collect()
}

/// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG…] - TYPE SOURCE OPTIONS`; a space inside of a
/// field is written as an escape.
fn line(line: &[u8]) -> Option<Line> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let word = |at: usize| fields.get(at).and_then(|field| str::from_utf8(field).ok());
    let (major, minor) = word(2)?.split_once(':')?;
    Some(Line {
        id: word(0)?.parse().ok()?,
        number: (major.parse().ok()?, minor.parse().ok()?),
        point: path(fields.get(4)?),
        kind: word(dash + 1)?.to_owned(),
        source: path(fields.get(dash + 2)?),
        writable: !word(dash + 3)?.split(',').any(|option| option == "ro"),
    })
}

/// Path of each swap area, and whether it is a file: `PATH TYPE SIZE USED PRIORITY`, after a line
/// of titles.
pub fn swaps(text: &[u8]) -> Vec<(PathBuf, bool)> {
    let lines = text.split(|byte| *byte == b'\n').skip(1);
    lines
        .filter_map(|line| {
            let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
            Some((path(fields.next()?), fields.next()? == b"file"))
        })
        .collect()
}

/// Undoes the kernel's escapes: a backslash and three octal digits.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) =
            (first, tail)
        {
            bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_escapes_and_tags() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402/a\\134b ro,noatime master:1 shared:7 - ext3 /dev/ro\\011ot rw,errors=continue\n";
        let lines = mountinfo(text).unwrap();
        assert_eq!(
            lines,
            [Line {
                id: 36,
                number: (98, 0),
                point: "/mnt 2/a\\b".into(),
                kind: "ext3".into(),
                source: "/dev/ro\tot".into(),
                writable: true,
            }]
        );
    }

    #[test]
    fn only_the_file_systems_own_options_say_that_it_is_read_only() {
        let text = b"1 0 8:1 / /a rw - ext4 /dev/a ro,relatime\n2 0 8:2 / /b ro - ext4 /dev/b rw,errors=remount-ro\n";
        let writable: Vec<_> = mountinfo(text).unwrap().iter().map(|line| line.writable).collect();
        assert_eq!(writable, [false, true]);
    }

    #[test]
    fn a_line_that_is_cut_is_refused() {
        let whole = b"1 0 8:1 / /a rw - ext4 /dev/a rw";
        assert!(mountinfo(whole).is_some());
        for cut in [7, 20, 29] {
            assert_eq!(mountinfo(&whole[..cut]), None, "cut after {cut} bytes");
        }
    }

    #[test]
    fn swap_areas() {
        let text = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/vda2                               partition\t1048572\t\t0\t\t-2\n/swap\\040file file\t\t8\t0\t-3\n";
        assert_eq!(swaps(text), [("/dev/vda2".into(), false), ("/swap file".into(), true)]);
    }
}
