//! PostgreSQL under pgbench. A copy must start, pass `pg_amcheck`, and hold whole transactions
//! only: the sums of all balances are the sum of the history.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use super::{Load, Seen, now};
use crate::proof::live::disk::{copy_out, words};
use crate::random::SplitMix;
use crate::world::output;

const SETTINGS: &str = "listen_addresses = ''\nshared_buffers = 16MB\nmax_wal_size = 96MB\n\
    min_wal_size = 32MB\ncheckpoint_timeout = 30s\nmax_connections = 20\n";
const SUMS: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), \
    (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches), \
    (SELECT coalesce(sum(delta), 0) FROM pgbench_history), (SELECT count(*) FROM pgbench_history)";

pub struct Postgres {
    cluster: Cluster,
    /// When so many transactions had been committed.
    committed: Mutex<Vec<(u64, u64)>>,
}

/// A data directory, and where its server listens.
struct Cluster {
    data: PathBuf,
    socket: PathBuf,
}

/// A program of PostgreSQL, as its user, who must not be root.
fn program(name: &str) -> Command {
    let mut command = words("setpriv --reuid=postgres --regid=postgres --clear-groups");
    command.arg(tool(name)).current_dir("/");
    command
}

/// Debian keeps most of them off the path.
fn tool(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        versions.map(|v| v.path().join("bin").join(name)).filter(|p| p.exists()).collect();
    found.sort();
    found.pop().unwrap_or_else(|| name.into())
}

impl Cluster {
    fn new(data: PathBuf, socket: PathBuf) -> Result<Self> {
        for directory in [&data, &socket] {
            fs::create_dir_all(directory)?;
            let mut command = words("chown -R postgres:postgres");
            command.arg(directory);
            output(command)?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        }
        Ok(Self { data, socket })
    }

    fn start(&self) -> Result<()> {
        let mut command = program("pg_ctl");
        let options = format!("-k {} -c unix_socket_permissions=0777", self.socket.display());
        let log = self.socket.join("log");
        command.args(["start", "--silent", "--wait", "-t", "60", "-o", &options]);
        command.arg("-D").arg(&self.data).arg("-l").arg(&log);
        // Its server would keep a pipe open.
        let status = command.stdout(std::process::Stdio::null()).status()?;
        let said = || fs::read_to_string(&log).unwrap_or_default();
        ensure!(status.success(), "PostgreSQL does not start: {}", said());
        Ok(())
    }

    fn stop(&self, how: &str) -> Result<()> {
        let mut command = program("pg_ctl");
        command.args(["stop", "--silent", "--wait", "-m", how]).arg("-D").arg(&self.data);
        output(command).map(drop)
    }

    fn client(&self, name: &str) -> Command {
        let mut command = program(name);
        command.arg("-h").arg(&self.socket);
        command
    }

    fn ask(&self, question: &str) -> Result<Vec<i64>> {
        let mut command = self.client("psql");
        command.args(["-X", "-A", "-t", "-F", " ", "-d", "postgres", "-c", question]);
        let said = output(command)?;
        said.split_whitespace()
            .map(|number| number.parse().with_context(|| format!("psql said {said}")))
            .collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.data.join("postmaster.pid").exists() {
            let _ = self.stop("immediate");
        }
        let _ = fs::remove_dir_all(&self.socket);
    }
}

/// Short: the path of a socket has at most 107 bytes.
fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("dormouse-proof-{}-{name}", std::process::id()))
}

impl Postgres {
    pub fn new(at: &Path) -> Result<Self> {
        let cluster = Cluster::new(at.join("data"), socket("live"))?;
        let mut command = program("initdb");
        command.args(["--auth=trust", "--no-sync", "--wal-segsize=4", "-D"]).arg(&cluster.data);
        output(command)?;
        let mut settings = fs::read_to_string(cluster.data.join("postgresql.conf"))?;
        settings.push_str(SETTINGS);
        fs::write(cluster.data.join("postgresql.conf"), settings)?;
        cluster.start()?;
        let mut command = cluster.client("pgbench");
        command.args(["--initialize", "--quiet", "--scale=2", "postgres"]);
        output(command)?;
        let mut command = cluster.client("psql");
        command.args(["-X", "-q", "-d", "postgres", "-c", "CREATE EXTENSION amcheck"]);
        output(command)?;
        Ok(Self { cluster, committed: Mutex::default() })
    }

    fn check_running(&self, copy: &Cluster, committed: u64) -> Result<usize> {
        let mut command = copy.client("pg_amcheck");
        command.args(["--all", "--heapallindexed", "--no-password"]);
        output(command)?;
        let sums = copy.ask(SUMS)?;
        let [accounts, tellers, branches, history, count] = sums[..] else {
            anyhow::bail!("the sums are not there: {sums:?}");
        };
        ensure!(
            accounts == tellers && accounts == branches && accounts == history,
            "the sums differ: {sums:?}"
        );
        let count = u64::try_from(count)?;
        ensure!(count >= committed, "{count} transactions; {committed} had been committed");
        Ok(usize::try_from(count)?)
    }
}

impl Load for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn step(&self, random: &mut SplitMix) -> Result<()> {
        let mut command = self.cluster.client("pgbench");
        command.args(["--no-vacuum", "--client=3", "--time=1", "--rate=250"]);
        command.arg(format!("--random-seed={}", random.next() >> 40)).arg("postgres");
        output(command)?;
        let count = self.cluster.ask("SELECT count(*) FROM pgbench_history")?;
        let count = count.first().copied().unwrap_or_default().unsigned_abs();
        self.committed.lock().unwrap_or_else(PoisonError::into_inner).push((now(), count));
        Ok(())
    }

    fn end(&self) -> Result<()> {
        self.cluster.stop("fast")
    }

    fn check(&self, seen: &Seen<'_>) -> Result<usize> {
        let committed = {
            let all = self.committed.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().rev().find(|(at, _)| *at < seen.time).map(|(_, count)| *count)
        };
        // Not set up yet.
        let Some(committed) = committed else { return Ok(0) };
        copy_out(&seen.root.join("postgres/data"), seen.scratch)?;
        let copy = Cluster::new(seen.scratch.to_owned(), socket("copy"))?;
        // That of the server which ran on the disk.
        let _ = fs::remove_file(copy.data.join("postmaster.pid"));
        copy.start()?;
        let found = self.check_running(&copy, committed);
        copy.stop("immediate")?;
        let found = found?;
        drop(copy);
        fs::remove_dir_all(seen.scratch)?;
        Ok(found)
    }
}
