//! The programs that run in the kernel, outside of it: what a disk at hand never does.
//!
//! They are compiled by the C compiler of this machine, with a driver that makes requests up
//! (`program/driver.c`), and skipped with a loud line where there is none.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

const DISCARD: u32 = 3;
const WRITE: u32 = 1;

/// The driver; none, and a loud line, where it cannot be made.
fn driver() -> Option<&'static Path> {
    static MADE: OnceLock<Option<tempfile::TempDir>> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/program/driver.c");
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-Wno-attributes", "-o"]).arg(directory.path().join("driver")).arg(source);
        let Ok(out) = cc.output() else {
            eprintln!("SKIPPED: no cc: the programs of the kernel are not tested outside of it");
            return None;
        };
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Some(directory)
    });
    static PATH: OnceLock<std::path::PathBuf> = OnceLock::new();
    made.as_ref().map(|directory| PATH.get_or_init(|| directory.path().join("driver")).as_path())
}

/// Gives the driver these lines; each `?` must be answered with the next of `told`.
#[track_caller]
fn scene(lines: &str, told: &[&str]) {
    let Some(driver) = driver() else { return };
    let mut child =
        Command::new(driver).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), told, "{lines}");
}

/// A disk of 4000 blocks.
const DISK: &str = "disk 0 32000 1\n";

#[test]
fn a_request_without_a_range_marks_everything() {
    const SECURE_ERASE: u32 = 5;
    const ZONE_RESET_ALL: u32 = 17;
    const DRIVER_OUT: u32 = 35;
    for op in [SECURE_ERASE, ZONE_RESET_ALL, DRIVER_OUT] {
        let lines = format!("{DISK}issue 1 {op} 0 0\n?\ncomplete 1 0 0\n?\n");
        scene(
            &lines,
            &["everything 1 beyond 0 open 0 ring marks", "everything 2 beyond 0 open 0 ring marks"],
        );
    }
    // Also where it pretends to have one.
    let lines = format!("{DISK}issue 1 {DRIVER_OUT} 80 4096\n?\n");
    scene(&lines, &["everything 1 beyond 0 open 0 ring marks"]);
    // A flush is a write of nothing; one that reads, and one of another disk, say nothing.
    const DRIVER_IN: u32 = 34;
    let others = format!("issue 2 {DRIVER_IN} 0 0\nissue 3 {WRITE} 80 0\nelsewhere 3\n");
    let lines = format!("{DISK}issue 1 {WRITE} 0 0\n{others}again 3\nissue 4 0 8 4096\n?\n");
    scene(&lines, &["everything 0 beyond 0 open 0 ring marks"]);
    // Bios: a range that a driver has used up.
    let lines =
        format!("{DISK}ended {WRITE} 8 0 1\n?\nended {WRITE} 8 0 0\n?\nbio {DISCARD} 8 0 0\n?\n");
    let told = [
        "everything 1 beyond 0 open 0 ring marks",
        "everything 1 beyond 0 open 0 ring marks",
        "everything 2 beyond 0 open 0 ring marks",
    ];
    scene(&lines, &told);
}

#[test]
fn a_discard_that_succeeds_goes_into_the_ring_and_its_edges_are_marked() {
    // Sectors 9 to 41: blocks 2 to 4 whole, and parts of 1 and 5.
    let lines = format!("{DISK}issue 1 {DISCARD} 9 16384\n?\ncomplete 1 0 16384\n?\n");
    let told = [
        "everything 0 beyond 0 open 1 ring marks",
        "everything 0 beyond 0 open 0 ring 2+3 marks 1 5",
    ];
    scene(&lines, &told);
    // Less than a block; and all of a block that is cut off by the end of a disk.
    let short = format!("disk 0 83 1\nissue 1 {DISCARD} 9 3072\ncomplete 1 0 3072\n?\n");
    scene(&short, &["everything 0 beyond 0 open 0 ring marks 1"]);
    let last = format!("disk 0 83 1\nissue 1 {DISCARD} 72 5632\ncomplete 1 0 5632\n?\n");
    scene(&last, &["everything 0 beyond 0 open 0 ring 9+2 marks"]);
    // Behind the end; and of a partition that begins at sector 4, blocks count from there.
    let behind = format!("disk 0 80 1\nissue 1 {DISCARD} 72 8192\ncomplete 1 0 8192\n?\n");
    scene(&behind, &["everything 0 beyond 1 open 0 ring 9+1 marks"]);
    let part = format!("disk 4 800 0\nissue 1 {DISCARD} 0 16384\ncomplete 1 0 16384\n?\n");
    scene(&part, &["everything 0 beyond 0 open 0 ring 0+3 marks 3"]);
    // Several ranges in one request.
    let three =
        format!("{DISK}issue 1 {DISCARD} 800 4096 80 8192 160 4096\ncomplete 1 0 16384\n?\n");
    scene(&three, &["everything 0 beyond 0 open 0 ring 100+1 10+2 20+1 marks"]);
}

#[test]
fn a_discard_that_is_not_certain_is_marked() {
    let issued = format!("{DISK}issue 1 {DISCARD} 80 8192 160 4096\n");
    let marked = "everything 0 beyond 0 open 0 ring marks 10 11 20";
    // It fails; a part of it succeeds.
    for end in ["complete 1 10 12288", "complete 1 0 4096"] {
        scene(&format!("{issued}{end}\n?\n"), &[marked]);
    }
    // Nobody saw its beginning.
    scene(&format!("{issued}disk 0 32000 1\ncomplete 1 0 12288\n?\n"), &[marked]);
    // The ring is full.
    let full =
        format!("{DISK}full 57345\nissue 1 {DISCARD} 80 4096\ncomplete 1 0 4096\nfull 0\n?\n");
    scene(&full, &["everything 0 beyond 0 open 0 ring marks 10"]);
    // A write was under way as well, of one of its blocks, or between its ranges.
    for (first, marks) in [(81, "10 11 20"), (100, "10 11 12 20")] {
        let write = format!("issue 2 {WRITE} {first} 512\ncomplete 2 0 512\n");
        let told = format!("everything 0 beyond 0 open 0 ring marks {marks}");
        scene(&format!("{issued}{write}complete 1 0 12288\n?\n"), &[&told]);
    }
    // One that ends while it is under way, and began before.
    let lines = format!(
        "{DISK}issue 2 {WRITE} 80 512\nissue 1 {DISCARD} 80 4096\ncomplete 2 0 512\ncomplete 1 0 4096\n?\n"
    );
    scene(&lines, &["everything 0 beyond 0 open 0 ring marks 10"]);
    // One elsewhere is nothing to it; nor is one before, or after.
    let lines =
        format!("{issued}issue 2 {WRITE} 168 512\ncomplete 2 0 512\ncomplete 1 0 12288\n?\n");
    scene(&lines, &["everything 0 beyond 0 open 0 ring 10+2 20+1 marks 21"]);
    let write = format!("issue 2 {WRITE} 80 512\ncomplete 2 0 512\n");
    let lines = format!("{DISK}{write}issue 1 {DISCARD} 80 4096\ncomplete 1 0 4096\n{write}?\n");
    scene(&lines, &["everything 0 beyond 0 open 0 ring 10+1 marks 10"]);
    // Bios are marked, at both ends.
    scene(
        &format!("{DISK}bio {DISCARD} 80 4096 0\n?\n"),
        &["everything 0 beyond 0 open 0 ring marks 10"],
    );
    scene(
        &format!("{DISK}ended {DISCARD} 80 4096 0\n?\n"),
        &["everything 0 beyond 0 open 0 ring marks 10"],
    );
}

#[test]
fn a_discard_that_is_issued_again_has_one_place() {
    let issued = format!("{DISK}issue 1 {DISCARD} 80 4096\n");
    let lines = format!("{issued}again 1\n?\ncomplete 1 0 4096\n?\n");
    let told =
        ["everything 0 beyond 0 open 1 ring marks", "everything 0 beyond 0 open 0 ring 10+1 marks"];
    scene(&lines, &told);
    // Its ranges were taken away, and its end was one of nothing: it is another one now.
    let lines = format!("{issued}stolen 1\nissue 1 {DISCARD} 800 4096\n?\ncomplete 1 0 4096\n?\n");
    let told = [
        "everything 0 beyond 0 open 1 ring marks 10",
        "everything 0 beyond 0 open 0 ring 100+1 marks 10",
    ];
    scene(&lines, &told);
    // More at once than there are places: the others are marked.
    let issue = |n: u32| format!("issue {n} {DISCARD} {} 4096\n", n * 80);
    let lines: String = (0..130).map(issue).collect();
    let told = "everything 0 beyond 0 open 128 ring marks 1280 1290";
    scene(&format!("{DISK}{lines}?\n"), &[told]);
}
