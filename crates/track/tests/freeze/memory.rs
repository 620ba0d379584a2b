//! Locked memory, with and without the right to it.

use std::process::Command;

use dormouse_track::freeze::Freezer;

use crate::roles::{Player, freezer, program};
use crate::stand::{possible, run};

/// The same command without the right to lock more than 64 KiB.
fn without_right(command: &Command) -> Command {
    let mut poor = Command::new("prlimit");
    poor.args([
        "--memlock=65536",
        "setpriv",
        "--bounding-set",
        "-ipc_lock",
        "--inh-caps",
        "-ipc_lock",
    ]);
    poor.arg(command.get_program()).args(command.get_args());
    poor.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    poor
}

#[test]
fn memory_is_locked_or_the_reason_is_told() {
    if !possible("locking memory") {
        return;
    }
    run(&["setpriv", "--version"]);
    let said = Player::start(program("roles::locker")).hear();
    let kib = said.strip_prefix("locked ").and_then(|text| text.strip_suffix(" kB"));
    assert!(kib.is_some_and(|kib| kib.parse::<u64>().unwrap() > 100), "{said}");
    let said = Player::start(without_right(&program("roles::locker"))).hear();
    assert!(said.starts_with("refused: only 65536 bytes"), "{said}");
}

#[test]
fn a_helper_without_the_right_works_and_says_what_it_lacks() {
    if !possible("a helper without rights") {
        return;
    }
    let lack = "its memory is not locked";
    let poor = Freezer::start(without_right(&program("roles::helper"))).unwrap();
    assert!(poor.weaknesses().contains(&lack), "{:?}", poor.weaknesses());
    let rich = freezer();
    assert!(!rich.weaknesses().contains(&lack), "{:?}", rich.weaknesses());
}
