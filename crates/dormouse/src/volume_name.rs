//! The name of a volume: the one it gets when none is given, and which ones can be given.

use std::path::Path;

use anyhow::Result;
use dormouse_format::vault::name_is_valid;

use crate::exit::{Class, fail};

/// An error, with the way out, for what cannot name a volume.
pub fn check(name: &str) -> Result<()> {
    if name_is_valid(name) {
        return Ok(());
    }
    fail(
        Class::Usage,
        format!("'{name}' cannot name a volume"),
        "use 1 to 64 letters, digits, '.', '_' and '-'",
    )
}

/// The source's own name, with what a volume's name may not hold left out.
pub fn of_source(source: &Path) -> String {
    let name = source.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let fits = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = name.chars().filter(fits).take(64).collect();
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() { "disk".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_valid() {
        for (path, name) in [
            ("/dev/sda1", "sda1"),
            ("a b.img", "ab.img"),
            ("/x/.-q", "q"),
            ("/", "disk"),
            ("ä", "disk"),
        ] {
            assert_eq!(of_source(Path::new(path)), name);
            assert!(name_is_valid(name));
        }
    }
}
