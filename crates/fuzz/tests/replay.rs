//! Replays every corpus and every regression: what the fuzzer once reached still holds.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use dormouse_fuzz::{TARGETS, Target, corpus};

/// Most memory that a target may take beyond what it began with, in KiB.
const MEMORY_KIB_MAX: u64 = 256 << 10;

/// Peak of this process's memory since it was last put back, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Puts the peak back to what is held now.
fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// Runs an input; notes it if the target does not survive it.
fn survives(target: &Target, input: &[u8], name: &str, faults: &mut Vec<String>) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        faults.push(format!("{}: {name}", target.name));
    }
}

#[test]
fn every_corpus_holds() {
    let mut faults = Vec::new();
    for target in TARGETS {
        let (start, mut runs) = (Instant::now(), 0);
        reset_peak();
        let before = peak_kib();
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        for (n, seed) in seeds.iter().enumerate() {
            survives(target, seed, &format!("seed {n}"), &mut faults);
        }
        let folders = corpus::folders(target.name);
        for (path, bytes) in folders.iter().flat_map(|f| corpus::files(f)) {
            assert!(bytes.len() <= 64 << 10, "{} is too long", path.display());
            survives(target, &bytes, &path.display().to_string(), &mut faults);
            runs += 1;
        }
        assert!(!corpus::files(&folders[0]).is_empty(), "{} has no corpus", target.name);
        let grown = peak_kib().saturating_sub(before);
        assert!(grown < MEMORY_KIB_MAX, "{}: {grown} KiB", target.name);
        let ms = start.elapsed().as_millis();
        println!("{}: {} seeds, {runs} files, {grown} KiB, {ms} ms", target.name, seeds.len());
    }
    assert!(faults.is_empty(), "not survived:\n{}", faults.join("\n"));
}

/// A file under a name that no target has would never be replayed.
#[test]
fn every_folder_has_a_target() {
    for folder in ["corpus", "regressions"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let Ok(entries) = std::fs::read_dir(path) else { continue };
        for entry in entries {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(dormouse_fuzz::target(&name).is_some(), "{folder}/{name}");
        }
    }
}
