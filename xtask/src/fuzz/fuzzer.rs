//! The fuzzer as a program: built with coverage, asked for its targets, run, and read.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// What makes coverage and comparisons visible to libFuzzer; all of it works on a stable compiler.
const COVERAGE: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Apart from other builds: everything is built with other flags.
const FOLDER: &str = "target/fuzz";
/// Most memory of a run, in MiB, the fuzzer's own included.
const MEMORY_MIB: u32 = 512;
/// Longest that one input may take, in seconds.
const INPUT_SECONDS: u32 = 20;
/// A committed corpus holds no more files than this.
const FILES_MAX: usize = 150;

/// A target as the fuzzer names it.
pub struct Target {
    /// Its name.
    pub name: String,
    /// Longest input.
    pub len_max: String,
}

/// What a run came to.
pub struct Outcome {
    /// Inputs tried.
    pub executions: u64,
    /// Of these in a second.
    pub per_second: u64,
    /// Inputs worth keeping.
    pub kept: u64,
    /// Edges of the code that were reached.
    pub coverage: u64,
    /// Peak of resident memory.
    pub memory_mib: u64,
    /// Inputs that the target did not survive.
    pub crashes: Vec<PathBuf>,
    /// Whether the fuzzer says that it ended as it should.
    pub ended_well: bool,
    /// What it said.
    pub log: PathBuf,
    program: PathBuf,
}

impl Outcome {
    /// The command that tries an input again.
    pub fn replay(&self, target: &str, input: &Path) -> String {
        let (program, input) = (self.program.display(), input.display());
        format!("DORMOUSE_FUZZ_TARGET={target} {program} {input}")
    }
}

/// The built program.
pub struct Fuzzer {
    program: PathBuf,
}

impl Fuzzer {
    /// Builds it. With `--target`, so that the flags do not reach build scripts and macros.
    pub fn build() -> Result<Self> {
        let host = host()?;
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--package", "dormouse-fuzz", "--bin", "dormouse-fuzz"])
            .args(["--features", "libfuzzer", "--profile", "fuzz"])
            .args(["--target", &host, "--target-dir", FOLDER])
            .env("RUSTFLAGS", COVERAGE)
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .status()
            .context("cannot start cargo")?;
        ensure!(status.success(), "building the fuzzer ended with {status}; it needs g++");
        Ok(Self { program: [FOLDER, &host, "fuzz", "dormouse-fuzz"].iter().collect() })
    }

    fn command(&self, target: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.env("DORMOUSE_FUZZ_TARGET", target).env("RUST_BACKTRACE", "0");
        command
    }

    /// All targets.
    pub fn targets(&self) -> Result<Vec<Target>> {
        let output = self.command("").env("DORMOUSE_FUZZ_LIST", "1").output();
        let output = output.context("cannot start the fuzzer")?;
        let target = |line: &str| {
            let mut fields = line.split('\t').map(str::to_owned);
            Some(Target { name: fields.next()?, len_max: fields.next()? })
        };
        let all: Vec<_> =
            String::from_utf8_lossy(&output.stdout).lines().filter_map(target).collect();
        ensure!(!all.is_empty(), "the fuzzer tells no targets");
        Ok(all)
    }

    /// Writes the seeds of a target to its committed corpus.
    pub fn seed(&self, target: &Target) -> Result<()> {
        self.seed_into(target, &committed(&target.name))
    }

    fn seed_into(&self, target: &Target, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        let status = self.command(&target.name).env("DORMOUSE_FUZZ_SEEDS", folder).output()?.status;
        ensure!(status.success(), "{}: its seeds: {status}", target.name);
        Ok(())
    }

    /// Runs a target.
    pub fn run(&self, target: &Target, seconds: u64) -> Result<Outcome> {
        let found = found(&target.name);
        self.seed_into(target, &found)?;
        let crashes = Path::new(FOLDER).join("crashes").join(&target.name);
        fs::create_dir_all(&crashes)?;
        let before = files(&crashes)?;
        let log = Path::new(FOLDER).join(format!("{}.log", target.name));
        let status = self
            .command(&target.name)
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={}", target.len_max))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .arg(format!("-timeout={INPUT_SECONDS}"))
            .arg(format!("-artifact_prefix={}/", crashes.display()))
            .args(["-print_final_stats=1", "-verbosity=1"])
            .arg(&found)
            .args(corpora(&target.name))
            .stderr(File::create(&log)?)
            .status()?;
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let mut new = files(&crashes)?;
        new.retain(|path| !before.contains(path));
        Ok(Outcome {
            executions: stat(&text, "number_of_executed_units"),
            per_second: stat(&text, "average_exec_per_sec"),
            kept: files(&found)?.len() as u64,
            coverage: coverage(&text),
            memory_mib: stat(&text, "peak_rss_mb"),
            crashes: new,
            ended_well: status.success(),
            log,
            program: self.program.clone(),
        })
    }

    /// Makes the committed corpus anew: the fewest inputs, of all that are there, that reach
    /// what all of them reach. Files and bytes of it.
    pub fn minimise(&self, target: &Target) -> Result<(usize, u64)> {
        let folder = committed(&target.name);
        let fresh = Path::new(FOLDER).join("fresh").join(&target.name);
        if fresh.exists() {
            fs::remove_dir_all(&fresh)?;
        }
        fs::create_dir_all(&fresh)?;
        let found = found(&target.name);
        self.seed_into(target, &found)?;
        let log = Path::new(FOLDER).join(format!("{}.merge.log", target.name));
        let status = self
            .command(&target.name)
            // Edges alone: how often each was passed would keep ten times as many.
            .args(["-set_cover_merge=1", "-use_counters=0"])
            .arg(format!("-max_len={}", target.len_max))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .arg(&fresh)
            .arg(&found)
            .args(corpora(&target.name))
            .stderr(File::create(&log)?)
            .status()?;
        ensure!(status.success(), "{}: see {}", target.name, log.display());
        // Those that reach most were taken first, and are the longer ones.
        let mut kept: Vec<(u64, PathBuf)> = Vec::new();
        for path in files(&fresh)? {
            kept.push((fs::metadata(&path)?.len(), path));
        }
        kept.sort_by(|a, b| b.cmp(a));
        kept.truncate(FILES_MAX);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        for (_, path) in &kept {
            fs::copy(path, folder.join(path.file_name().unwrap_or(OsStr::new("input"))))?;
        }
        Ok((kept.len(), kept.iter().map(|(len, _)| len).sum()))
    }
}

/// This machine's name for the compiler.
fn host() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not tell its host")?.to_owned())
}

fn committed(target: &str) -> PathBuf {
    Path::new("crates/fuzz/corpus").join(target)
}

fn found(target: &str) -> PathBuf {
    Path::new(FOLDER).join("found").join(target)
}

/// The committed folders that are there.
fn corpora(target: &str) -> impl Iterator<Item = PathBuf> {
    let regressions = Path::new("crates/fuzz/regressions").join(target);
    [committed(target), regressions].into_iter().filter(|path| path.is_dir())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// A figure of the fuzzer's final statistics.
fn stat(log: &str, name: &str) -> u64 {
    let lines = log.lines().filter_map(|line| line.strip_prefix("stat::"));
    let mut values = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    values.next_back().and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// The greatest `cov:` that the fuzzer told.
fn coverage(log: &str) -> u64 {
    let figure = |line: &str| line.split_once(" cov: ")?.1.split(' ').next()?.parse().ok();
    log.lines().filter_map(figure).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuzzers_words_are_understood() {
        let log = "#2\tINITED cov: 90 ft: 91 corp: 1/1b\n#8\tDONE   cov: 118 ft: 553 corp: 88/21Kb\n\
                   stat::number_of_executed_units: 558249\nstat::peak_rss_mb:              30\n";
        assert_eq!(coverage(log), 118);
        assert_eq!(stat(log, "number_of_executed_units"), 558_249);
        assert_eq!((stat(log, "peak_rss_mb"), stat(log, "absent")), (30, 0));
    }
}
