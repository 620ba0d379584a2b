//! The programs of the benchmark and their command lines.
//!
//! Peers run with their defaults except where a line here says why not. `-fixed` variants cut at
//! fixed offsets, which suits disk images: the fastest setting that their manuals offer for this
//! work.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::measure::{self, Step};
use crate::world::{self, Server, World};

const PASSWORD: &str = "benchmark";

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
        measure::fill_memory(&place.scratch)?;
        measure::step(&command, &place.scratch, self.server.as_ref().map(Server::id))
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
    fn world(&self, place: &Place) -> World {
        World {
            program: self.0.clone(),
            store: place.repository.clone(),
            homes: place.home.clone(),
            scratch: place.scratch.clone(),
        }
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
        let world = self.world(place);
        let server = world.serve()?;
        world.join(server.address)?;
        Ok(Session { server: Some(server) })
    }

    fn copy(&self, place: &Place, _number: u32) -> Command {
        self.world(place).mirror(&place.disk, "bench")
    }

    fn restore(&self, place: &Place) -> (Command, PathBuf) {
        let target = place.restored.join("disk.img");
        (self.world(place).restore("bench", &target), target)
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
        world::output(command)?;
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
        world::output(command)?;
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
        world::output(command)?;
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
