//! Dormouse as the benchmark and the proofs run it: a server in a process of its own, and a client
//! that has joined it, with homes of their own and nothing else of the caller's environment.
//!
//! Owns: the program's command line as far as more than one chore needs it. Invariant: a server
//! ends with its [`Server`], by SIGTERM first.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::measure;

/// Where the program is looked for unless `--dormouse` says otherwise.
pub const PROGRAM: &str = "target/release/dormouse";
const START_LIMIT: Duration = Duration::from_secs(10);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A program, a store and two homes.
pub struct World {
    /// The program.
    pub program: PathBuf,
    /// The store's directory.
    pub store: PathBuf,
    /// Holds the homes.
    pub homes: PathBuf,
    /// Output of the commands.
    pub scratch: PathBuf,
}

impl World {
    /// A world in `root`, which is emptied first.
    pub fn fresh(program: &Path, root: &Path) -> Result<Self> {
        let world = Self {
            program: std::path::absolute(program)?,
            store: root.join("store"),
            homes: root.join("homes"),
            scratch: root.join("scratch"),
        };
        ensure!(world.program.exists(), "{}: cargo build --release", world.program.display());
        if root.exists() {
            fs::remove_dir_all(root)
                .with_context(|| format!("cannot remove {}", root.display()))?;
        }
        for directory in [&world.homes, &world.scratch] {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        Ok(world)
    }

    fn command(&self, side: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", &self.homes)
            .env("DORMOUSE_HOME", self.homes.join(side))
            .current_dir(&self.scratch);
        command
    }

    /// A command of the client.
    pub fn client(&self) -> Command {
        self.command("client")
    }

    /// Starts the server on a free port and waits until it listens.
    pub fn serve(&self) -> Result<Server> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        self.serve_at(address)
    }

    /// The same at this address.
    pub fn serve_at(&self, address: SocketAddr) -> Result<Server> {
        let log = self.scratch.join("server");
        let output = File::create(&log)?;
        let child = self
            .command("server")
            .arg("serve")
            .arg(&self.store)
            .args(["--listen", &address.to_string()])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let mut server = Server { child, killed: false, address };
        measure::wait_for("'listening on' of the server", START_LIMIT, || {
            let said = fs::read_to_string(&log)?;
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended with {status}: {}", said.trim());
            }
            Ok(said.lines().any(|line| line.starts_with("listening on ")).then_some(()))
        })?;
        Ok(server)
    }

    /// Invites the client and lets it join the server, which it reaches at `address`.
    pub fn join(&self, address: SocketAddr) -> Result<()> {
        let mut invite = self.command("server");
        invite.arg("invite").arg(&self.store).args(["client", "--url", &address.to_string()]);
        let said = output(invite)?;
        let line = said
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .context("no invite was printed")?;
        let mut join = self.client();
        join.args(["join", line.trim()]);
        output(join).map(|_| ())
    }

    /// `mirror --once` of `source`.
    pub fn mirror(&self, source: &Path, volume: &str) -> Command {
        let mut command = self.client();
        command.arg("mirror").arg(source).args(["--volume", volume, "--once"]);
        command
    }

    /// `restore` of the newest point to the new file `target`.
    pub fn restore(&self, volume: &str, target: &Path) -> Command {
        let mut command = self.client();
        command.arg("restore").arg(format!("{volume}@latest")).arg(target).arg("--force");
        command
    }
}

/// Runs a command that is not measured; what it printed.
pub fn output(mut command: Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A running server; stopped when dropped.
pub struct Server {
    child: Child,
    killed: bool,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// kill -9.
    pub fn kill(mut self) -> Result<()> {
        self.killed = true;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.killed {
            return;
        }
        let stopped = i32::try_from(self.child.id())
            .map_err(anyhow::Error::from)
            .and_then(|id| Ok(kill(Pid::from_raw(id), Signal::SIGTERM)?))
            .and_then(|()| {
                measure::wait_for("the end of the server", STOP_LIMIT, || {
                    Ok(self.child.try_wait()?)
                })
            });
        match stopped {
            Ok(status) if status.success() => {}
            Ok(status) => eprintln!("the server ended with {status}"),
            Err(error) => {
                eprintln!("{error:#}");
                // Nothing more can be done if this fails too.
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}
