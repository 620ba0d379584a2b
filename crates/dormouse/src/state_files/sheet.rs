//! One state file: its text, then a line that proves it.
//!
//! Owns: that line. Invariant: every byte of the file counts: what is read is
//! written again from its parts and must be the same. The check binds text, tree,
//! change and name, so that a file in another's place does not hold.

use dormouse_crypt::hash::body_check;
use zeroize::Zeroizing;

use crate::text::{hex, unhex_array};

/// What the last line begins with; a comment, as TOML has them.
const MARK: &str = "\n# state ";

/// A tree's id.
pub(super) type TreeId = [u8; 8];

/// A state file, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sheet {
    /// The tree that it belongs to.
    pub(super) tree: TreeId,
    /// The change of the tree that wrote it.
    pub(super) change: u64,
    /// Its check.
    pub(super) check: [u8; 16],
    /// What it says, without its last line.
    pub(super) text: Zeroizing<String>,
}

fn check(tree: &TreeId, change: u64, name: &str, text: &str) -> [u8; 16] {
    let head = format!("state {} {change} {name}\n", hex(tree));
    let mut input = Zeroizing::new(Vec::with_capacity(head.len() + text.len()));
    input.extend_from_slice(head.as_bytes());
    input.extend_from_slice(text.as_bytes());
    body_check(&input)
}

impl Sheet {
    /// A file of this name with this text.
    pub(super) fn new(tree: TreeId, change: u64, name: &str, text: &str) -> Self {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let check = check(&tree, change, name, text);
        Self { tree, change, check, text: Zeroizing::new(text.to_owned()) }
    }

    /// Its bytes.
    pub(super) fn render(&self) -> Zeroizing<String> {
        let (tree, check) = (hex(&self.tree), hex(&self.check));
        let line = format!("{MARK}{tree} {} {check}\n", self.change);
        let mut out = Zeroizing::new(String::with_capacity(self.text.len() + line.len()));
        out.push_str(&self.text);
        out.push_str(&line);
        out
    }

    /// Takes a file apart; `None` if a byte of it does not hold under this name.
    pub(super) fn read(name: &str, bytes: &[u8]) -> Option<Self> {
        let file = core::str::from_utf8(bytes).ok()?;
        let (text, line) = file.rsplit_once(MARK)?;
        let mut words = line.trim_end().split(' ');
        let tree = unhex_array(words.next()?)?;
        let sheet = Self::new(tree, words.next()?.parse().ok()?, name, text);
        (sheet.render().as_bytes() == bytes).then_some(sheet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_every_length_counts() {
        let sheet = Sheet::new([7; 8], 12, "clients/a.toml", "key = \"1\"\n");
        let file = sheet.render();
        assert!(file.starts_with("key = \"1\"\n# state 0707070707070707 12 "));
        assert_eq!(Sheet::read("clients/a.toml", file.as_bytes()), Some(sheet));
        assert_eq!(Sheet::read("clients/b.toml", file.as_bytes()), None);
        for at in 0..file.len() {
            assert_eq!(Sheet::read("clients/a.toml", &file.as_bytes()[..at]), None, "{at}");
            for mask in 1..=255_u8 {
                let mut bytes = file.as_bytes().to_vec();
                bytes[at] ^= mask;
                assert_eq!(Sheet::read("clients/a.toml", &bytes), None, "{at} {mask:x}");
            }
        }
        let longer = format!("{}\n", *file);
        assert_eq!(Sheet::read("clients/a.toml", longer.as_bytes()), None);
    }

    #[test]
    fn the_check_is_as_the_format_says() {
        let file = Sheet::new([7; 8], 12, "keys/signing", "00ff").render();
        let check = body_check(b"state 0707070707070707 12 keys/signing\n00ff");
        assert_eq!(*file, format!("00ff\n# state 0707070707070707 12 {}\n", hex(&check)));
    }

    #[test]
    fn text_that_looks_like_a_last_line_is_text() {
        let inner = Sheet::new([1; 8], 1, "a", "x").render();
        let outer = Sheet::new([1; 8], 2, "a", &inner);
        let read = Sheet::read("a", outer.render().as_bytes()).unwrap();
        assert_eq!(*read.text, inner.trim_end_matches('\n'));
        assert_eq!(Sheet::read("a", outer.render().to_uppercase().as_bytes()), None);
    }
}
