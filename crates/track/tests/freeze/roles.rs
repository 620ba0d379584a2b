//! The other processes of these tests: this binary, started again to run one 'test' only.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use dormouse_track::freeze::{Freezer, helper_main};

use crate::stand::file_system_at;

const ROLE: &str = "DORMOUSE_FREEZE_ROLE";

/// Arguments that make this binary play a role.
pub fn arguments(role: &'static str) -> [&'static str; 3] {
    [role, "--exact", "--nocapture"]
}

/// This binary in a role.
pub fn program(role: &'static str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments(role)).env(ROLE, role);
    command
}

/// A helper for this process.
pub fn freezer() -> Freezer {
    Freezer::start(program("roles::helper")).unwrap()
}

fn plays(role: &str) -> bool {
    std::env::var(ROLE).is_ok_and(|wanted| wanted == role)
}

#[test]
fn helper() {
    if plays("roles::helper") {
        // Should one with a bug stay behind, its file systems stay mounted: not for ever.
        thread::spawn(|| {
            thread::sleep(Duration::from_secs(120));
            std::process::exit(1);
        });
        let code = helper_main();
        std::process::exit(i32::from(code != ExitCode::SUCCESS));
    }
}

/// Freezes what its environment names, says so, and waits to be killed.
#[test]
fn daemon() {
    if plays("roles::daemon") {
        let point = std::env::var("DORMOUSE_FREEZE_POINT").unwrap();
        let mut freezer = freezer();
        say(&format!("helper {}", freezer.pid()));
        let frozen = freezer.freeze(&[file_system_at(&point)], Duration::from_secs(60));
        say(if frozen.is_ok() { "frozen" } else { "failed" });
        thread::sleep(Duration::from_secs(60));
    }
}

/// Locks its memory and says what came of it.
#[test]
fn locker() {
    if plays("roles::locker") {
        let result = dormouse_track::freeze::lock_memory();
        let locked = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
            line.trim().to_owned()
        };
        match result {
            Ok(lock) => {
                let other = dormouse_track::freeze::lock_memory().unwrap();
                drop(lock);
                let while_held = locked();
                drop(other);
                assert_eq!(locked(), "0 kB", "it stays locked");
                say(&format!("locked {while_held}"));
            }
            Err(error) => say(&format!("refused: {error}")),
        }
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout();
    // On a line of its own, whatever the test harness has begun to print.
    writeln!(out, "\nsays: {line}").unwrap();
    out.flush().unwrap();
}

/// A process in a role, and what it says. Killed when dropped.
pub struct Player {
    child: Child,
    lines: Receiver<String>,
}

impl Player {
    pub fn start(mut command: Command) -> Player {
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if let Some(said) = line.strip_prefix("says: ") {
                    let _ = sender.send(said.to_owned());
                }
            }
        });
        Player { child, lines }
    }

    /// A daemon that freezes the file system at `point`; with the process id of its helper.
    pub fn daemon(point: &str) -> (Player, u32) {
        let mut command = program("roles::daemon");
        let player = Player::start({
            command.env("DORMOUSE_FREEZE_POINT", point);
            command
        });
        let line = player.hear();
        (player, line.strip_prefix("helper ").unwrap().parse().unwrap())
    }

    pub fn hear(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
