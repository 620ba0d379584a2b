//! Rules of the source that no compiler checks.
//!
//! Faults: a file that does not open with `//!`, a file over 1,000 lines, an unfinished or
//! debugging macro, a bug on purpose that is not where it should be. Warnings: a function over 100 lines. Looks at the files that git tracks or
//! would track.

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::mutants::places;

const FILE_LINES_MAX: usize = 1000;
const FUNCTION_LINES_MAX: usize = 100;
/// Spelled apart so that this file passes its own check.
const BANNED: &[&str] =
    &[concat!("todo", "!("), concat!("unimplemented", "!("), concat!("dbg", "!(")];

/// Checks every file and prints what it finds.
pub fn run() -> Result<ExitCode> {
    let mut faults = Vec::new();
    let mut warnings = Vec::new();
    let files = source_files()?;
    let read = |path: String| {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok((path, text))
    };
    let files = files.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    for (path, text) in &files {
        check(path, text, &mut faults, &mut warnings);
    }
    faults.extend(places::faults(&files)?);
    for warning in &warnings {
        println!("warning: {warning}");
    }
    for fault in &faults {
        println!("fault: {fault}");
    }
    println!("tidy: {} files, {} faults, {} warnings", files.len(), faults.len(), warnings.len());
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn source_files() -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.rs"])
        .output()
        .context("cannot start git: apt-get install git")?;
    ensure!(
        output.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    // A file that was removed and not committed yet is still listed.
    Ok(names
        .split_terminator('\0')
        .filter(|name| fs::exists(name).unwrap_or(true))
        .map(String::from)
        .collect())
}

fn check(path: &str, text: &str, faults: &mut Vec<String>, warnings: &mut Vec<String>) {
    if !text.starts_with("//!") {
        faults.push(format!("{path}:1: does not open with //!"));
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        faults.push(format!("{path}: {lines} lines, over {FILE_LINES_MAX}"));
    }
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or("");
        for banned in BANNED {
            if code.contains(banned) {
                faults.push(format!("{path}:{}: {})", index + 1, banned));
            }
        }
    }
    for (name, line, length) in long_functions(text) {
        warnings.push(format!(
            "{path}:{line}: fn {name} has {length} lines, over {FUNCTION_LINES_MAX}"
        ));
    }
}

/// Name, first line and length of each long function. Relies on rustfmt: the brace that closes a
/// function stands at the indentation of the line that opened it.
fn long_functions(text: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = line.len() - line.trim_start().len();
        let closing = format!("{}}}", &line[..indent]);
        // One line, or a declaration without a body.
        if line.ends_with('}') || line.ends_with(';') {
            continue;
        }
        let Some(length) = lines[index..].iter().position(|line| *line == closing) else {
            continue;
        };
        if length + 1 > FUNCTION_LINES_MAX {
            found.push((name.to_owned(), index + 1, length + 1));
        }
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    while let Some(word) = words.next() {
        if word == "fn" {
            let name = words.next()?;
            return name.split(['(', '<']).next();
        }
        let qualifier = matches!(word, "pub" | "const" | "async" | "unsafe" | "extern")
            || word.starts_with("pub(")
            || word.starts_with('"');
        if !qualifier {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        let (mut faults, mut warnings) = (Vec::new(), Vec::new());
        check("a.rs", text, &mut faults, &mut warnings);
        faults
    }

    #[test]
    fn a_clean_file_passes() {
        assert!(faults("//! What it owns.\n\nfn main() {}\n").is_empty());
    }

    #[test]
    fn each_rule_finds_its_fault() {
        assert_eq!(faults("fn main() {}\n"), ["a.rs:1: does not open with //!"]);
        assert_eq!(faults(&format!("//! a\n{}\n", BANNED[0])).len(), 1);
        assert!(faults(&format!("//! a\n// {}\n", BANNED[0])).is_empty(), "a comment may name it");
        assert_eq!(
            faults(&format!("//! a\n{}", "\n".repeat(1000))),
            ["a.rs: 1001 lines, over 1000"]
        );
    }

    #[test]
    fn long_functions_are_measured() {
        let body = "    let x = 1;\n".repeat(100);
        let text =
            format!("//! a\npub(crate) const fn long<T>(\n) {{\n{body}}}\n\nfn short() {{\n}}\n");
        assert_eq!(long_functions(&text), [("long".to_owned(), 2, 103)]);
        let method = format!("impl A {{\n    async fn m(&self) {{\n{body}    }}\n}}\n");
        assert_eq!(long_functions(&method), [("m".to_owned(), 2, 102)]);
    }
}
