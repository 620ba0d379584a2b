//! What keeps a mirror from running is named, with the way out.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use rustix::fs::{CWD, FileType, Mode};

use crate::stand::{Stand, done};

#[test]
fn a_second_daemon_of_the_volume_is_refused() {
    let Some(stand) = Stand::live(&[]) else { return };
    let second = stand.place.run(&stand.mirror(&[]));
    second.fails(12, &[&stand.volume]);
    // The first goes on.
    assert!(stand.status().is_some_and(|v| v["state"] == "LIVE"));
    assert_eq!(stand.counter("reconnects"), 0);
}

#[test]
fn what_is_no_device_is_named() {
    let Some(stand) = Stand::new() else { return };
    let file = stand.place.name("file");
    std::fs::write(&file, vec![1; 8192]).unwrap();
    let mirror = |what: &str| stand.place.run(&["mirror", what, "--volume", &stand.volume]);
    mirror(&file).fails(8, &[&file, "--once"]);
    mirror("/dev/no-such-disk").fails(8, &["/dev/no-such-disk"]);
    assert!(!stand.remove_pins(), "nothing is left of what was refused");
}

#[test]
fn without_rights_it_says_which_and_what_does_without() {
    const NOBODY: u32 = 65534;
    let Some(stand) = Stand::new() else { return };
    // A device that all may open: what is missing is the right to watch it.
    let node = std::path::PathBuf::from(format!("/dev/{}", stand.volume));
    let rdev = std::os::unix::fs::MetadataExt::rdev(&std::fs::metadata(&stand.device).unwrap());
    let mode = Mode::RUSR | Mode::WUSR | Mode::ROTH | Mode::WOTH;
    rustix::fs::mknodat(CWD, &node, FileType::BlockDevice, mode, rdev).unwrap();
    std::fs::set_permissions(&node, std::fs::Permissions::from_mode(0o666)).unwrap();
    let home = stand.place.path("home");
    done(&format!("chmod 755 {}; chown -R {NOBODY} {0}", home.display()));
    done(&format!("chmod 755 {}", home.parent().unwrap().display()));
    let args = ["mirror", node.to_str().unwrap(), "--volume", &stand.volume];
    let mut running = stand.place.start_with("home", &args, |command| {
        command.uid(NOBODY).gid(NOBODY);
    });
    let said = running.wait();
    std::fs::remove_file(&node).unwrap();
    said.fails(8, &["CAP_BPF", "root", "--tracker scan"]);
}
