//! The checks that a bug is shown to: test programs and the simulator, built once.
//!
//! Owns: building with the feature, the order from cheap to dear, running one with a bug,
//! and what its output says. A check that does not end within its limit has found the bug
//! too. Seeds and the order of tests are fixed, so that the table does not depend on the machine.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// In the order in which they are built on each other.
const PACKAGES: &[&str] = &[
    "dormouse-format",
    "dormouse-crypt",
    "dormouse-store",
    "dormouse-sync",
    "dormouse-bucket",
    "dormouse-sim",
];
/// Programs of the simulator that are run after all tests, with what they are asked for.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("crash", &["--points", "10000", "--seed", "2"]),
    ("histories", &["--runs", "300"]),
    ("histories", &["--copies", "--runs", "100"]),
    ("flips", &[]),
    ("dormouse-sim", &["1001", "--runs", "60", "--first"]),
];
/// In the order of their names, so that what fails first is always the same.
const ONE_BY_ONE: &[&str] = &["--test-threads", "1"];
/// Where what the checks say goes.
const LOGS: &str = "target/seeded";
/// What stands before a case of `flips` that failed.
const CASE: &str = "to repeat: cargo xtask flips";
/// Memory that a check may have, in KiB: a bug must not take the machine down.
const MEMORY_KIB: u64 = 8 << 20;

/// What a check came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It finds nothing.
    Passed,
    /// It fails, and this is what it says.
    Caught(String),
}

/// A program that was built.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Artifact {
    package: String,
    kind: String,
    name: String,
    test: bool,
    executable: PathBuf,
}

/// All that was built with the feature.
pub struct Build(Vec<Artifact>);

/// A check.
pub struct Check {
    /// What it is called in the table.
    pub name: String,
    /// The package that it belongs to, by number.
    package: usize,
    executable: PathBuf,
    arguments: Vec<String>,
    dir: PathBuf,
}

impl Build {
    /// Builds tests and simulator with bugs on purpose.
    pub fn make() -> Result<Self> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["test", "--no-run", "--message-format", "json-render-diagnostics"]);
        cargo.args(["--features", "dormouse-sim/seeded-bugs"]);
        for package in PACKAGES {
            cargo.args(["--package", package]);
        }
        let out = cargo.stderr(Stdio::inherit()).output().context("cargo does not start")?;
        if !out.status.success() {
            bail!("the build with bugs on purpose fails");
        }
        std::fs::create_dir_all(LOGS).with_context(|| format!("cannot make {LOGS}"))?;
        let text = String::from_utf8_lossy(&out.stdout);
        Ok(Self(text.lines().filter_map(artifact).collect()))
    }

    /// The checks, from cheap to dear.
    pub fn checks(&self) -> Result<Vec<Check>> {
        let mut tests = self.0.iter().filter(|a| a.test && a.kind != "bin").collect::<Vec<_>>();
        tests.sort_by_key(|a| {
            let package = PACKAGES.iter().position(|package| *package == a.package);
            (package, a.kind != "lib", a.name.clone())
        });
        let mut checks: Vec<_> = tests.into_iter().map(|a| a.check(ONE_BY_ONE)).collect();
        for (name, arguments) in PROGRAMS {
            checks.push(self.program(name, arguments)?);
        }
        Ok(checks)
    }

    /// A program of the simulator, as a check with these arguments.
    pub fn program(&self, name: &str, arguments: &[&str]) -> Result<Check> {
        let found = self.0.iter().find(|a| !a.test && a.kind == "bin" && a.name == name);
        Ok(found.with_context(|| format!("{name} was not built"))?.check(arguments))
    }
}

impl Artifact {
    fn check(&self, arguments: &[&str]) -> Check {
        let part = self.package.trim_start_matches("dormouse-");
        let name = match self.kind.as_str() {
            "lib" => format!("{part} unit"),
            "bin" => self.name.trim_start_matches("dormouse-").to_owned(),
            _ => format!("{part} {}", self.name),
        };
        let dir = PathBuf::from("crates").join(part);
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let package = PACKAGES.iter().position(|package| *package == self.package).unwrap_or(0);
        Check { name, package, executable: self.executable.clone(), arguments, dir }
    }
}

/// Reads a line of cargo's messages, if it tells of a program.
fn artifact(line: &str) -> Option<Artifact> {
    let text = |key: &str| {
        let (_, rest) = line.split_once(&format!("\"{key}\":\""))?;
        rest.split('"').next().map(str::to_owned)
    };
    let (_, target) = line.split_once("\"target\":{\"kind\":[\"")?;
    let kind = target.split('"').next()?.to_owned();
    let (_, name) = target.split_once("\"name\":\"")?;
    let name = name.split('"').next()?.to_owned();
    // path+file:///…/crates/store#dormouse-store@0.1.0
    let id = text("package_id")?;
    let package = id.split_once('#')?.1.split('@').next()?.to_owned();
    let executable = PathBuf::from(text("executable")?);
    let (_, profile) = line.split_once("\"profile\":{")?;
    let test = profile.split('}').next()?.contains("\"test\":true");
    Some(Artifact { package, kind, name, test, executable })
}

impl Check {
    /// Whether a bug in this part can show here: no package uses a later one.
    pub fn reaches(&self, part: &str) -> bool {
        PACKAGES[..=self.package].iter().any(|package| package.ends_with(part))
    }

    /// Runs it, with this bug or none, until it ends, a test fails, or the limit is reached.
    pub fn run(&self, bug: Option<&str>, limit: Duration) -> Result<Outcome> {
        let log = PathBuf::from(LOGS).join(format!("{}.log", bug.unwrap_or("none")));
        let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -v {MEMORY_KIB}; exec \"$0\" \"$@\"")]);
        command.arg(&self.executable).args(&self.arguments).current_dir(&self.dir);
        command.env("DORMOUSE_SEEDED_BUG", bug.unwrap_or(""));
        // A failure of a random test must be the same each time, and leave no file.
        command.env("PROPTEST_RNG_SEED", "1").env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
        command.env("PROPTEST_MAX_SHRINK_ITERS", "0");
        command.stdout(out.try_clone()?).stderr(out).stdin(Stdio::null());
        let child = command.spawn().with_context(|| format!("{} does not start", self.name))?;
        let output = || -> Result<String> { Ok(String::from_utf8_lossy(&fs::read(&log)?).into()) };
        let end = wait(child, limit, &|| Ok(first_failed(&output()?).is_some()))?;
        let outcome = judge(end, &output()?);
        fs::remove_file(&log)?;
        Ok(outcome)
    }
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Itself(ExitStatus),
    /// It had said enough.
    Enough,
    /// It reached its limit.
    Limit,
}

/// Waits for a process to end; kills it when it has said enough, and at the limit.
fn wait(mut child: Child, limit: Duration, enough: &dyn Fn() -> Result<bool>) -> Result<End> {
    let began = Instant::now();
    let end = loop {
        if let Some(status) = child.try_wait()? {
            return Ok(End::Itself(status));
        }
        if enough()? {
            break End::Enough;
        }
        if began.elapsed() > limit {
            break End::Limit;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    child.kill()?;
    child.wait()?;
    Ok(end)
}

/// The first test that failed. Tests run one after the other, in the order of their names.
fn first_failed(output: &str) -> Option<String> {
    let failed = |line: &str| {
        line.strip_prefix("test ")?.strip_suffix(" ... FAILED").map(|name| format!("`{name}`"))
    };
    output.lines().find_map(failed)
}

/// What an ended check says: the first test that failed; the test within which it ended or
/// hung; else the line that says that something failed.
fn judge(end: End, output: &str) -> Outcome {
    if matches!(end, End::Itself(status) if status.success()) {
        return Outcome::Passed;
    }
    let how = match end {
        End::Limit => "hangs".to_owned(),
        End::Itself(status) => {
            status.code().map_or("is killed".into(), |code| format!("ends with {code}"))
        }
        End::Enough => "fails".to_owned(),
    };
    let within = || {
        let (name, rest) = output.lines().last()?.strip_prefix("test ")?.split_once(" ... ")?;
        rest.is_empty().then(|| format!("`{name}` {how}"))
    };
    let says = |line: &&str| line.contains("FAILED") || line.starts_with(CASE);
    let said = || output.lines().find(says).map(short);
    Outcome::Caught(first_failed(output).or_else(within).or_else(said).unwrap_or(how))
}

/// The beginning of a line, fit for a table.
fn short(line: &str) -> String {
    let line = line.trim_start_matches(CASE).replace("FAILED", "").replace('|', "/");
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ").replace(" :", ":");
    match line.char_indices().nth(90) {
        Some((at, _)) => format!("{} …", line[..at].trim_end()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn a_line_of_cargo_is_read() {
        let line = r#"{"reason":"compiler-artifact","package_id":"path+file:///w/crates/store#dormouse-store@0.1.0","manifest_path":"/w/crates/store/Cargo.toml","target":{"kind":["test"],"crate_types":["bin"],"name":"store","src_path":"/w/crates/store/tests/store/main.rs","edition":"2024","doc":false,"doctest":false,"test":true},"profile":{"opt_level":"1","debuginfo":1,"debug_assertions":true,"overflow_checks":true,"test":true},"features":[],"filenames":["/w/t/store-1"],"executable":"/w/t/store-1","fresh":true}"#;
        let found = artifact(line).unwrap();
        assert_eq!((found.package.as_str(), found.kind.as_str()), ("dormouse-store", "test"));
        assert_eq!((found.name.as_str(), found.test), ("store", true));
        assert_eq!(found.executable, PathBuf::from("/w/t/store-1"));
        let program = line.replace("\"test\":true},\"features\"", "\"test\":false},\"features\"");
        assert!(!artifact(&program).unwrap().test, "a program, not its tests");
        assert_eq!(artifact(&line.replace("\"/w/t/store-1\",\"fresh\"", "null,\"fresh\"")), None);
    }

    #[test]
    fn what_a_check_says_is_found() {
        let [good, bad, killed] = [0, 256, 6].map(|n| End::Itself(ExitStatus::from_raw(n)));
        let caught = |end, output: &str| match judge(end, output) {
            Outcome::Caught(what) => what,
            Outcome::Passed => "passed".into(),
        };
        assert_eq!(caught(good, "test a ... FAILED"), "passed");
        let tests = "test a ... ok\ntest b::a ... FAILED\ntest b::c ... FAILED\n";
        assert_eq!(caught(bad, tests), "`b::a`");
        assert_eq!(caught(End::Enough, tests), "`b::a`");
        assert_eq!(caught(End::Limit, "test a ... ok\ntest b ... "), "`b` hangs");
        assert_eq!(caught(killed, "test a ... ok\ntest b ... "), "`b` is killed");
        let seed = "seeds 1 to 9\nseed 3 FAILED: point 2 is lost\n";
        assert_eq!(caught(bad, seed), "seed 3: point 2 is lost");
        let case = "table\nto repeat: cargo xtask flips --seed 1 --case 7  # byte 3 | x\n";
        assert_eq!(caught(bad, case), "--seed 1 --case 7 # byte 3 / x");
        assert_eq!(caught(bad, "?"), "ends with 1");
    }

    #[test]
    fn what_does_not_end_is_ended() {
        let sleeper = || Command::new("sleep").arg("100").spawn().unwrap();
        let (short, long) = (Duration::from_millis(10), Duration::from_secs(60));
        assert_eq!(wait(sleeper(), short, &|| Ok(false)).unwrap(), End::Limit);
        assert_eq!(wait(sleeper(), long, &|| Ok(true)).unwrap(), End::Enough);
        let child = Command::new("true").spawn().unwrap();
        let End::Itself(status) = wait(child, long, &|| Ok(false)).unwrap() else { panic!() };
        assert!(status.success());
    }
}
