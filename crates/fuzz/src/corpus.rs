//! Where corpora lie, and committed files that seeds are made of.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder of this crate.
fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Inputs of a target: those that the fuzzer found worth keeping, and faults that were mended.
pub fn folders(target: &str) -> [PathBuf; 2] {
    [home().join("corpus").join(target), home().join("regressions").join(target)]
}

/// Files of a folder by name; none if it is not there.
pub fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|p| (p.clone(), fs::read(p).unwrap())).collect()
}

/// The committed vectors whose names begin so, as bytes.
pub fn vectors(prefix: &str) -> Vec<Vec<u8>> {
    let folder = home().join("../../testdata/vectors");
    let wanted = |(path, text): (PathBuf, Vec<u8>)| {
        let name = path.file_stem()?.to_str()?;
        name.starts_with(prefix).then(|| unhex(core::str::from_utf8(&text).unwrap()))
    };
    files(&folder).into_iter().filter_map(wanted).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let lines: String = text.lines().filter(|l| !l.starts_with('#')).collect();
    dormouse::text::unhex(lines.trim()).unwrap_or_default()
}

/// A committed text.
pub fn text(name: &str) -> String {
    fs::read_to_string(home().join("../../testdata/text").join(name)).unwrap()
}

/// Each of these behind a byte, which tells the target what it is.
pub fn behind(first: u8, inputs: Vec<Vec<u8>>) -> impl Iterator<Item = Vec<u8>> {
    inputs.into_iter().map(move |i| [&[first][..], &i].concat())
}
