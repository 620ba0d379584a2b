//! The programs of the benchmark and their command lines.
//!
//! Peers run with their defaults except where a line here says why not. `-fixed` variants cut at
//! fixed offsets, which suits disk images: the fastest setting that their manuals offer for this
//! work.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::measure::{self, Step};

const PASSWORD: &str = "benchmark";
const START_LIMIT: Duration = Duration::from_secs(10);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// One round of one program happens here.
pub struct Place {
    root: PathBuf,
    /// The image to copy.
    pub disk: PathBuf,
    /// What counts as stored.
    pub repository: PathBuf,
    restored: PathBuf,
    home: PathBuf,
    scratch: PathBuf,
}

impl Place {
    /// Empties `root` and makes the directories of a round below it.
    pub fn fresh(root: &Path, disk: &Path) -> Result<Self> {
        let place = Self {
            root: root.to_path_buf(),
            disk: disk.to_path_buf(),
            repository: root.join("repository"),
            restored: root.join("restored"),
            home: root.join("home"),
            scratch: root.join("scratch"),
        };
        place.remove()?;
        for directory in [&place.repository, &place.restored, &place.home, &place.scratch] {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        Ok(place)
    }

    /// Removes everything of the round.
    pub fn remove(&self) -> Result<()> {
        if self.root.exists() {
            fs::remove_dir_all(&self.root)
                .with_context(|| format!("cannot remove {}", self.root.display()))?;
        }
        Ok(())
    }

    /// A program with a home and caches of its own, and nothing else of the caller's environment.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", &self.home)
            .current_dir(&self.restored);
        command
    }

    fn prepare(&self, mut command: Command) -> Result<String> {
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{command:?} ended with {}: {}",
            output.status,
            errors.trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Where a program that restores to the path it copied from puts the image.
    fn restored_below(&self) -> PathBuf {
        self.restored.join(self.disk.strip_prefix("/").unwrap_or(&self.disk))
    }
}

/// A repository that is ready, with its server where the program has one.
pub struct Session {
    server: Option<Server>,
}

impl Session {
    /// Runs one timed step.
    pub fn timed(&mut self, place: &Place, command: Command) -> Result<Step> {
        measure::step(&command, &place.scratch, self.server.as_ref().map(|server| server.0.id()))
    }
}

/// A running server; stopped when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let stopped = i32::try_from(self.0.id())
            .map_err(anyhow::Error::from)
            .and_then(|id| Ok(kill(Pid::from_raw(id), Signal::SIGTERM)?))
            .and_then(|()| {
                measure::wait_for("the end of the server", STOP_LIMIT, || Ok(self.0.try_wait()?))
            });
        match stopped {
            Ok(status) if status.success() => {}
            Ok(status) => eprintln!("the server ended with {status}"),
            Err(error) => {
                eprintln!("{error:#}");
                // Nothing more can be done if this fails too.
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
        }
    }
}

/// A program under measurement.
pub trait Program {
    /// Name in the tables and after `--only`.
    fn name(&self) -> &'static str;
    /// Whether the settings are chosen for disk images instead of the defaults.
    fn tuned(&self) -> bool {
        false
    }
    /// The version, or how to get the program.
    fn version(&self) -> Result<String>;
    /// Makes a fresh repository; not timed.
    fn prepare(&self, place: &Place) -> Result<Session>;
    /// Copies the disk for the `number`th time.
    fn copy(&self, place: &Place, number: u32) -> Command;
    /// Restores the newest copy; also says where the image will lie.
    fn restore(&self, place: &Place) -> (Command, PathBuf);
    /// The copy itself, of a program that keeps no history and is measured for the first copy only.
    fn plain_copy(&self, _place: &Place) -> Option<PathBuf> {
        None
    }
}

/// Every program that the benchmark knows.
pub fn all(dormouse: &Path) -> Vec<Box<dyn Program>> {
    vec![
        Box::new(Dormouse(dormouse.to_path_buf())),
        Box::new(Borg { fixed: false }),
        Box::new(Borg { fixed: true }),
        Box::new(Restic { fastest: false }),
        Box::new(Restic { fastest: true }),
        Box::new(Rustic { fixed: false }),
        Box::new(Rustic { fixed: true }),
        Box::new(Nbdcopy),
    ]
}

fn ask(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str], remedy: &str) -> Result<String> {
    let Ok(output) = Command::new(program).args(arguments).output() else {
        bail!("not installed: {remedy}")
    };
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The first word of the first line that looks like a version.
fn version_in(text: &str) -> String {
    let first = text.lines().next().unwrap_or("").split_whitespace();
    let is_version = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
    first.into_iter().find(is_version).unwrap_or("of unknown version").to_owned()
}

struct Dormouse(PathBuf);

impl Dormouse {
    fn client(&self, place: &Place) -> Command {
        let mut command = place.command(&self.0);
        command.env("DORMOUSE_HOME", place.home.join("client"));
        command
    }
}

impl Program for Dormouse {
    fn name(&self) -> &'static str {
        "dormouse"
    }

    fn version(&self) -> Result<String> {
        ensure!(self.0.exists(), "{} is not there: cargo build --release", self.0.display());
        Ok(version_in(&ask(&self.0, &["--version"], "cargo build --release")?))
    }

    fn prepare(&self, place: &Place) -> Result<Session> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let server = || {
            let mut command = place.command(&self.0);
            command.env("DORMOUSE_HOME", place.home.join("server"));
            command
        };
        let log = place.scratch.join("server");
        let output = File::create(&log)?;
        let child = server()
            .arg("serve")
            .arg(&place.repository)
            .args(["--listen", &address])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        let mut child = Server(child);
        measure::wait_for("'listening on' of the server", START_LIMIT, || {
            let said = fs::read_to_string(&log)?;
            if let Some(status) = child.0.try_wait()? {
                bail!("the server ended with {status}: {}", said.trim());
            }
            Ok(said.lines().any(|line| line.starts_with("listening on ")).then_some(()))
        })?;
        let mut invite = server();
        invite.arg("invite").arg(&place.repository).args(["bench", "--url", &address]);
        let said = place.prepare(invite)?;
        let line = said
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .context("no invite was printed")?;
        let mut join = self.client(place);
        join.args(["join", line.trim()]);
        place.prepare(join)?;
        Ok(Session { server: Some(child) })
    }

    fn copy(&self, place: &Place, _number: u32) -> Command {
        let mut command = self.client(place);
        command.arg("mirror").arg(&place.disk).args(["--volume", "bench", "--once"]);
        command
    }

    fn restore(&self, place: &Place) -> (Command, PathBuf) {
        let target = place.restored.join("disk.img");
        let mut command = self.client(place);
        command.args(["restore", "bench@latest"]).arg(&target).arg("--force");
        (command, target)
    }
}

struct Borg {
    fixed: bool,
}

impl Borg {
    fn command(place: &Place) -> Command {
        let mut command = place.command("borg");
        command.env("BORG_BASE_DIR", &place.home).env("BORG_PASSPHRASE", PASSWORD);
        command
    }
}

impl Program for Borg {
    fn name(&self) -> &'static str {
        if self.fixed { "borg-fixed" } else { "borg" }
    }

    fn tuned(&self) -> bool {
        self.fixed
    }

    fn version(&self) -> Result<String> {
        Ok(version_in(&ask("borg", &["--version"], "apt-get install borgbackup")?))
    }

    fn prepare(&self, place: &Place) -> Result<Session> {
        let mut command = Self::command(place);
        command.args(["init", "--encryption", "repokey-blake2"]).arg(&place.repository);
        place.prepare(command)?;
        Ok(Session { server: None })
    }

    fn copy(&self, place: &Place, number: u32) -> Command {
        let mut command = Self::command(place);
        command.args(["create", "--compression", "zstd,1"]);
        if self.fixed {
            command.args(["--chunker-params", "fixed,4194304", "--sparse"]);
        }
        command.arg(format!("{}::copy-{number}", place.repository.display())).arg(&place.disk);
        command
    }

    fn restore(&self, place: &Place) -> (Command, PathBuf) {
        let mut command = Self::command(place);
        command
            .args(["extract", "--sparse"])
            .arg(format!("{}::copy-2", place.repository.display()));
        (command, place.restored_below())
    }
}

struct Restic {
    fastest: bool,
}

impl Restic {
    fn command(place: &Place) -> Command {
        let mut command = place.command("restic");
        command
            .env("RESTIC_REPOSITORY", &place.repository)
            .env("RESTIC_PASSWORD", PASSWORD)
            .env("RESTIC_CACHE_DIR", place.home.join("cache"))
            .arg("--quiet");
        command
    }
}

impl Program for Restic {
    fn name(&self) -> &'static str {
        if self.fastest { "restic-fastest" } else { "restic" }
    }

    fn tuned(&self) -> bool {
        self.fastest
    }

    fn version(&self) -> Result<String> {
        let version = version_in(&ask("restic", &["version"], "apt-get install restic")?);
        if self.fastest && !ask("restic", &["backup", "--help"], "")?.contains("fastest") {
            bail!("left out: restic {version} has no --compression fastest");
        }
        Ok(version)
    }

    fn prepare(&self, place: &Place) -> Result<Session> {
        let mut command = Self::command(place);
        command.arg("init");
        place.prepare(command)?;
        Ok(Session { server: None })
    }

    fn copy(&self, place: &Place, _number: u32) -> Command {
        let mut command = Self::command(place);
        command.arg("backup");
        if self.fastest {
            command.args(["--compression", "fastest"]);
        }
        command.arg(&place.disk);
        command
    }

    fn restore(&self, place: &Place) -> (Command, PathBuf) {
        let mut command = Self::command(place);
        command.args(["restore", "latest", "--target"]).arg(&place.restored);
        // Releases before 0.15 write every zero.
        if ask("restic", &["restore", "--help"], "").is_ok_and(|help| help.contains("--sparse")) {
            command.arg("--sparse");
        }
        (command, place.restored_below())
    }
}

struct Rustic {
    fixed: bool,
}

impl Rustic {
    fn command(place: &Place) -> Command {
        let mut command = place.command("rustic");
        command
            .env("RUSTIC_REPOSITORY", &place.repository)
            .env("RUSTIC_PASSWORD", PASSWORD)
            .env("RUSTIC_CACHE_DIR", place.home.join("cache"))
            .env("RUSTIC_NO_PROGRESS", "true");
        command
    }
}

impl Program for Rustic {
    fn name(&self) -> &'static str {
        if self.fixed { "rustic-fixed" } else { "rustic" }
    }

    fn tuned(&self) -> bool {
        self.fixed
    }

    fn version(&self) -> Result<String> {
        Ok(version_in(&ask("rustic", &["--version"], "cargo install rustic-rs --locked")?))
    }

    fn prepare(&self, place: &Place) -> Result<Session> {
        let mut command = Self::command(place);
        command.arg("init");
        if self.fixed {
            command.args(["--set-chunker", "fixed_size", "--set-compression", "1"]);
        }
        place.prepare(command)?;
        Ok(Session { server: None })
    }

    fn copy(&self, place: &Place, _number: u32) -> Command {
        let mut command = Self::command(place);
        command.arg("backup").arg(&place.disk);
        command
    }

    fn restore(&self, place: &Place) -> (Command, PathBuf) {
        let mut command = Self::command(place);
        command.args(["restore", "--sparse", "by-content", "latest"]).arg(&place.restored);
        (command, place.restored_below())
    }
}

struct Nbdcopy;

impl Program for Nbdcopy {
    fn name(&self) -> &'static str {
        "nbdcopy"
    }

    fn version(&self) -> Result<String> {
        Ok(version_in(&ask("nbdcopy", &["--version"], "apt-get install libnbd-bin")?))
    }

    fn prepare(&self, _place: &Place) -> Result<Session> {
        Ok(Session { server: None })
    }

    fn copy(&self, place: &Place, _number: u32) -> Command {
        let mut command = place.command("nbdcopy");
        // Without --flush it does not wait for the disk; every other program here does.
        command.arg("--flush").arg(&place.disk).arg(place.repository.join("disk.img"));
        command
    }

    fn restore(&self, place: &Place) -> (Command, PathBuf) {
        (self.copy(place, 2), place.repository.join("disk.img"))
    }

    fn plain_copy(&self, place: &Place) -> Option<PathBuf> {
        Some(place.repository.join("disk.img"))
    }
}
