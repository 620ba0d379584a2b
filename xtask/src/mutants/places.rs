//! That the list of bugs, the source and the documentation agree.
//!
//! Rules: each bug of the list stands at exactly one place, in its crate; nothing else is
//! asked for; docs/testing.md has a table of exactly these bugs, between two marks.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use dormouse_format::seeded::{BUGS, Bug};

const DOC: &str = "docs/testing.md";
const BEGIN: &str = "<!-- BEGIN seeded bugs -->\n";
const END: &str = "<!-- END seeded bugs -->";
/// What stands before a name in the source. Spelled apart, so that this is no place.
const CALL: &str = concat!("seeded", "(\"");

/// What does not agree, given all source files: path and text.
pub fn faults(files: &[(String, String)]) -> Result<Vec<String>> {
    let mut places: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let product = |path: &str| path.starts_with("crates/") && path.contains("/src/");
    for (path, text) in files.iter().filter(|(path, _)| product(path)) {
        for rest in text.split(CALL).skip(1) {
            let name = rest.split('"').next().unwrap_or_default().to_owned();
            places.entry(name).or_default().push(path);
        }
    }
    let mut faults = in_source(BUGS, &places);
    let doc = fs::read_to_string(DOC).with_context(|| format!("cannot read {DOC}"))?;
    faults.extend(in_table(BUGS, &doc));
    Ok(faults)
}

fn in_source(bugs: &[Bug], places: &BTreeMap<String, Vec<&str>>) -> Vec<String> {
    let mut faults = Vec::new();
    for bug in bugs {
        let home = format!("crates/{}/src/", bug.part);
        match places.get(bug.name).map(Vec::as_slice) {
            None => faults.push(format!("seeded bug {}: stands nowhere", bug.name)),
            Some([path]) if path.starts_with(&home) => {}
            Some(paths) => {
                let paths = paths.join(", ");
                faults.push(format!("seeded bug {}: not once in {home}: {paths}", bug.name));
            }
        }
    }
    let unknown = places.iter().filter(|(name, _)| bugs.iter().all(|b| b.name != **name));
    faults.extend(unknown.map(|(name, paths)| format!("{}: no seeded bug is {name}", paths[0])));
    faults
}

/// The text between the marks.
fn between(doc: &str) -> Option<&str> {
    doc.split_once(BEGIN)?.1.split_once(END).map(|(table, _)| table)
}

fn in_table(bugs: &[Bug], doc: &str) -> Vec<String> {
    let Some(table) = between(doc) else {
        return vec![format!("{DOC}: no table between {} and {END}", BEGIN.trim())];
    };
    let name = |line: &str| line.strip_prefix("| `")?.split('`').next().map(str::to_owned);
    let named: Vec<String> = table.lines().filter_map(name).collect();
    let wanted: Vec<_> = bugs.iter().map(|b| b.name).collect();
    if named == wanted {
        return Vec::new();
    }
    vec![format!("{DOC}: the table of seeded bugs is another: cargo xtask mutants --write")]
}

/// Puts a table into the documentation.
pub fn write_table(table: &str) -> Result<()> {
    let doc = fs::read_to_string(DOC)?;
    let old = between(&doc).with_context(|| format!("{DOC} has no place for the table"))?;
    let new = doc.replacen(&format!("{BEGIN}{old}"), &format!("{BEGIN}{table}"), 1);
    fs::write(DOC, new).with_context(|| format!("cannot write {DOC}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &[Bug] = &[
        Bug { name: "a", part: "store", mistake: "x" },
        Bug { name: "b", part: "sync", mistake: "y" },
    ];

    #[test]
    fn each_bug_has_one_place() {
        let store = "crates/store/src/log.rs";
        let sync = "crates/sync/src/cut.rs";
        let places = |all: &[(&str, &[&'static str])]| {
            in_source(TWO, &all.iter().map(|(n, p)| ((*n).to_owned(), p.to_vec())).collect())
        };
        assert!(places(&[("a", &[store]), ("b", &[sync])]).is_empty());
        assert_eq!(places(&[("a", &[store])]), ["seeded bug b: stands nowhere"]);
        assert_eq!(places(&[("a", &[store, store]), ("b", &[sync])]).len(), 1, "twice");
        assert_eq!(places(&[("a", &[sync]), ("b", &[sync])]).len(), 1, "elsewhere");
        assert_eq!(places(&[("a", &[store]), ("b", &[sync]), ("c", &[sync])]).len(), 1, "unknown");
    }

    #[test]
    fn the_table_names_all_of_them() {
        let doc = |rows: &str| format!("text\n{BEGIN}| bug |\n|---|\n{rows}{END}\n");
        assert!(in_table(TWO, &doc("| `a` | x |\n| `b` | y |\n")).is_empty());
        for bad in
            ["", "| `a` | x |\n", "| `b` | y |\n| `a` | x |\n", "| `a` |\n| `b` |\n| `c` |\n"]
        {
            assert_eq!(in_table(TWO, &doc(bad)).len(), 1, "{bad}");
        }
        assert_eq!(in_table(TWO, "no marks").len(), 1);
    }
}
