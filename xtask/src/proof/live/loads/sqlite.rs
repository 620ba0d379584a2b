//! SQLite: a database with a journal of its own and one with a write-ahead log, in each of which
//! transactions count up.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Load, Seen, Steps};
use crate::proof::live::disk::copy_out;
use crate::random::SplitMix;
use crate::world::output;

/// Name of the database, mode of its journal. EXTRA: also the removal of a journal is durable.
const DATABASES: [(&str, &str); 2] = [("rollback.db", "DELETE"), ("wal.db", "WAL")];
/// Rows that are overwritten again and again.
const HOT_ROWS: usize = 200;

pub struct Sqlite {
    databases: Vec<Database>,
}

struct Database {
    name: &'static str,
    shell: Mutex<Option<Shell>>,
    steps: Steps,
}

/// The program with the database open.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Sqlite {
    pub fn new(at: &Path) -> Result<Self> {
        let open = |(name, mode): (&'static str, &str)| {
            let mut shell = Shell::open(&at.join(name))?;
            shell.tell(&format!(
                "PRAGMA journal_mode={mode}; PRAGMA synchronous=EXTRA;\n\
                 CREATE TABLE t(n INTEGER PRIMARY KEY, body BLOB);\n\
                 CREATE TABLE hot(id INTEGER PRIMARY KEY, body BLOB);\n\
                 CREATE TABLE counter(value INTEGER);\n\
                 INSERT INTO counter VALUES(0);\n\
                 SELECT 'ready';\n"
            ))?;
            while shell.hear()? != "ready" {}
            Ok(Database { name, shell: Mutex::new(Some(shell)), steps: Steps::default() })
        };
        Ok(Self { databases: DATABASES.into_iter().map(open).collect::<Result<_>>()? })
    }
}

impl Shell {
    fn open(file: &Path) -> Result<Self> {
        let mut child = Command::new("sqlite3")
            .args(["-batch", "-bail"])
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start sqlite3")?;
        let input = child.stdin.take().context("sqlite3 has no input")?;
        let output = BufReader::new(child.stdout.take().context("sqlite3 has no output")?);
        Ok(Self { child, input, output })
    }

    fn tell(&mut self, text: &str) -> Result<()> {
        self.input.write_all(text.as_bytes())?;
        Ok(self.input.flush()?)
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "sqlite3 ended");
        Ok(line.trim().to_owned())
    }
}

impl Database {
    fn step(&self, random: &mut SplitMix) -> Result<()> {
        let mut shell = self.shell.lock().unwrap_or_else(PoisonError::into_inner);
        let shell = shell.as_mut().context("the database is closed")?;
        let number = self.steps.begin();
        let (length, row) = (random.below(3000), random.below(HOT_ROWS));
        shell.tell(&format!(
            "BEGIN IMMEDIATE; INSERT INTO t VALUES({number}, randomblob({length}));\n\
             INSERT OR REPLACE INTO hot VALUES({row}, randomblob({}));\n\
             UPDATE counter SET value = {number}; COMMIT;\n\
             SELECT value FROM counter;\n",
            4 * length
        ))?;
        let heard = shell.hear()?;
        ensure!(heard == number.to_string(), "sqlite3 counts {heard}, not {number}");
        self.steps.done();
        Ok(())
    }

    /// Sound, of whole transactions, with all that were committed and none that had not begun.
    fn check(&self, seen: &Seen<'_>, directory: &Path) -> Result<usize> {
        let (done, begun) = self.steps.by(seen.time);
        if done == 0 {
            return Ok(0);
        }
        let mut command = Command::new("sqlite3");
        command.arg(directory.join(self.name)).arg(
            "PRAGMA integrity_check; SELECT value FROM counter; \
             SELECT count(*) || ' ' || max(n) FROM t;",
        );
        let said = output(command)?;
        let lines: Vec<&str> = said.lines().collect();
        let [check, value, rows] = lines[..] else {
            anyhow::bail!("{}: {said}", self.name);
        };
        ensure!(check == "ok", "{}: {check}", self.name);
        let value: u64 = value.parse()?;
        ensure!(rows == format!("{value} {value}"), "{}: {value}, but {rows}", self.name);
        ensure!(
            (done..=begun).contains(&value),
            "{}: at {value}; {done} was committed, {begun} had begun",
            self.name
        );
        Ok(value as usize)
    }
}

impl Load for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn step(&self, random: &mut SplitMix) -> Result<()> {
        self.databases.iter().try_for_each(|database| database.step(random))?;
        thread::sleep(Duration::from_millis(random.below(8) as u64));
        Ok(())
    }

    fn end(&self) -> Result<()> {
        for database in &self.databases {
            let shell = database.shell.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(Shell { mut child, input, .. }) = shell {
                drop(input);
                ensure!(child.wait()?.success(), "sqlite3 failed");
            }
        }
        Ok(())
    }

    fn check(&self, seen: &Seen<'_>) -> Result<usize> {
        if self.databases.iter().all(|database| database.steps.by(seen.time).0 == 0) {
            return Ok(0);
        }
        copy_out(&seen.root.join("sqlite"), seen.scratch)?;
        let mut count = 0;
        for database in &self.databases {
            count += database.check(seen, seen.scratch)?;
        }
        fs::remove_dir_all(seen.scratch)?;
        Ok(count)
    }
}
