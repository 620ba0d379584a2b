//! Real programs on real file systems, mirrored live while the link is cut and both sides are
//! killed; then what was kept is judged by the file systems' own checkers, and by those programs.
//!
//! Owns: the course of a round, and its table. What holds for a point: a `frozen` one is clean
//! without repair, and holds exactly what the loads had done at its moment. A `settled` one is clean
//! after its journal, and holds all that they had made durable. When all is quiet, the newest
//! point is the device, bit for bit. Leaves to others: the disk ([`disk`]), the mirror and its
//! faults ([`mirror`]), the loads and what each may find of itself ([`loads`]).

pub(super) mod disk;
mod judge;
mod loads;
mod mirror;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Verdict;
use crate::random::SplitMix;
use crate::world;
use disk::{Disk, FileSystem};
use loads::{Kind, Load, Running};
use mirror::{Mirror, Point};

/// Of each disk.
const SIZE: u64 = 2 << 30;
/// So long a round waits for its points, unless `--patience` says otherwise: on a machine that does
/// other work the mirror catches up all the time, and is frozen seldom.
const ROUND_MAX: Duration = Duration::from_secs(240);
/// Faults that a round has at least.
const FAULTS_MIN: usize = 3;

struct Options {
    dormouse: PathBuf,
    directory: PathBuf,
    file_systems: Vec<FileSystem>,
    loads: Vec<Kind>,
    points: usize,
    rounds: usize,
    seed: u64,
    patience: Duration,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let clock = std::time::UNIX_EPOCH.elapsed()?.as_nanos() as u64;
        let mut options = Self {
            dormouse: world::PROGRAM.into(),
            directory: "target/proof".into(),
            file_systems: Vec::new(),
            loads: Vec::new(),
            points: 24,
            rounds: 1,
            seed: clock % 1_000_000,
            patience: ROUND_MAX,
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            if argument == "--short" {
                options.file_systems.push(FileSystem::Ext4);
                options.loads.extend([Kind::Ledger, Kind::Tree, Kind::Sqlite]);
                options.points = 4;
                continue;
            }
            let value = || format!("{argument} needs a value after it");
            let text = arguments.next().with_context(value)?;
            let number = || text.parse().with_context(|| format!("{argument} needs a number"));
            match argument.as_str() {
                "--fs" => options.file_systems.push(FileSystem::named(text)?),
                "--load" => options.loads.push(Kind::named(text)?),
                "--points" => options.points = number()? as usize,
                "--rounds" => options.rounds = number()? as usize,
                "--seed" => options.seed = number()?,
                "--patience" => options.patience = Duration::from_secs(number()?),
                "--dormouse" => options.dormouse = text.into(),
                "--dir" => options.directory = text.into(),
                _ => bail!("this proof does not know {argument}: see cargo xtask help"),
            }
        }
        if options.file_systems.is_empty() {
            options.file_systems = FileSystem::ALL.to_vec();
        }
        if options.loads.is_empty() {
            options.loads = Kind::ALL.to_vec();
        }
        options.directory = std::path::absolute(&options.directory)?.join("live");
        Ok(options)
    }
}

/// Runs the proof.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let options = Options::parse(arguments)?;
    if let Some(why) = disk::cannot_run(&options.file_systems, &options.loads) {
        eprintln!("SKIPPED: {why}: no live mirror is proved here");
        return Ok(ExitCode::SUCCESS);
    }
    let mut verdict = Verdict::default();
    println!("seed {}", options.seed);
    let mut rows = Vec::new();
    for round in 0..options.rounds {
        for file_system in &options.file_systems {
            let seed = options.seed + round as u64;
            rows.push(one(&options, *file_system, seed, &mut verdict)?);
        }
    }
    println!("\n{}", Row::HEAD);
    rows.iter().for_each(|row| println!("{}", row.line()));
    Ok(verdict.code())
}

/// What was done with one file system.
struct Row {
    file_system: FileSystem,
    seconds: u64,
    frozen: usize,
    settled: usize,
    fuzzy: usize,
    faults: mirror::Faults,
    judged: [usize; 2],
    findings: usize,
    held: Vec<f64>,
}

impl Row {
    const HEAD: &str = "| file system | s | points: frozen, settled, fuzzy | link cuts, server \
        kills, daemon kills | restored and judged: frozen, settled | things compared | frozen for, \
        ms: p50, p99, max |\n|---|--:|--:|--:|--:|--:|--:|";

    fn line(&self) -> String {
        let mut held = self.held.clone();
        held.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = held.len().saturating_sub(1);
            held.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
        };
        format!(
            "| {} | {} | {}, {}, {} | {}, {}, {} | {}, {} | {} | {:.1}, {:.1}, {:.1} |",
            self.file_system.name(),
            self.seconds,
            self.frozen,
            self.settled,
            self.fuzzy,
            self.faults.cuts,
            self.faults.servers,
            self.faults.daemons,
            self.judged[0],
            self.judged[1],
            self.findings,
            at(0.5),
            at(0.99),
            at(1.0)
        )
    }
}

/// One file system under all loads.
fn one(
    options: &Options,
    file_system: FileSystem,
    seed: u64,
    verdict: &mut Verdict,
) -> Result<Row> {
    let name = file_system.name();
    println!("== {name}, seed {seed}");
    let root = options.directory.join(name);
    let began = Instant::now();
    let mut mirror = Mirror::fresh(&options.dormouse, &root)?;
    let mut disk = Disk::create(&root, file_system, SIZE)?;
    mirror.start(&disk.device)?;
    let loads = loads::make(&options.loads, &disk.mount, &root.join("loads"))?;
    let mut random = SplitMix::new(seed);
    let running: Vec<Running> =
        loads.iter().map(|load| Running::start(Arc::clone(load), random.next())).collect();
    let done = disturb(options, &mut mirror, &running, &mut random);
    for load in running {
        load.end()?;
    }
    done?;
    disk.umount()?;
    let equal = mirror.comes_to_equal(disk.image())?;
    verdict.check(&format!("{name}: when all is quiet, the newest point is the device"), equal);
    mirror.stop()?;
    let scans = mirror.scans()?;
    verdict.check(&format!("{name}: nothing was compared again: {scans} scan"), scans == 1);
    drop(disk);

    let points = mirror.points()?;
    let count = |grade: &str| points.iter().filter(|p| p.grade == grade).count();
    let mut row = Row {
        file_system,
        seconds: 0,
        frozen: count("frozen"),
        settled: count("settled"),
        fuzzy: count("fuzzy"),
        faults: mirror.faults,
        judged: [0; 2],
        findings: 0,
        held: mirror.held()?,
    };
    judge_all(options, &mut mirror, &loads, &points, &mut row, verdict)?;
    let enough = row.judged.iter().sum::<usize>() >= options.points && row.judged[0] > 0;
    verdict.check(&format!("{name}: at least {} points were judged", options.points), enough);
    row.seconds = began.elapsed().as_secs();
    println!("{}", row.line());
    Ok(row)
}

/// Cuts and kills until there are enough points.
fn disturb(
    options: &Options,
    mirror: &mut Mirror,
    loads: &[Running],
    random: &mut SplitMix,
) -> Result<()> {
    let began = Instant::now();
    loop {
        thread::sleep(Duration::from_millis(3000 + random.below(9000) as u64));
        mirror.fault(random)?;
        loads.iter().try_for_each(Running::is_well)?;
        let points = mirror.points()?;
        let consistent = points.iter().filter(|p| p.consistent()).count();
        let frozen = points.iter().filter(|p| p.grade == "frozen").count();
        // A few of them are from before the loads.
        let enough = consistent >= options.points + 4 && frozen >= options.points / 2;
        if enough && mirror.faults.all() >= FAULTS_MIN {
            return Ok(());
        }
        ensure!(
            began.elapsed() < options.patience,
            "only {consistent} points, {frozen} of them frozen, within {:?}; see {}",
            options.patience,
            mirror.log_path().display()
        );
    }
}

/// So many points, spread over the round: frozen ones first, and settled ones for a quarter.
fn chosen(points: &[Point], wanted: usize) -> Vec<&Point> {
    let of = |grade: &str| points.iter().filter(|p| p.grade == grade).collect::<Vec<_>>();
    let (frozen, settled) = (of("frozen"), of("settled"));
    let some = wanted.saturating_sub(settled.len().min(wanted / 4)).min(frozen.len());
    let mut chosen = spread(&frozen, some);
    chosen.extend(spread(&settled, wanted.saturating_sub(some).min(settled.len())));
    chosen.sort_by_key(|p| p.number);
    chosen
}

fn spread<'a>(all: &[&'a Point], count: usize) -> Vec<&'a Point> {
    (1..=count).map(|i| all[i * all.len() / count - 1]).collect()
}

/// Restores points that are spread over the round, and has them judged.
fn judge_all(
    options: &Options,
    mirror: &mut Mirror,
    loads: &[Arc<dyn Load>],
    points: &[Point],
    row: &mut Row,
    verdict: &mut Verdict,
) -> Result<()> {
    for point in chosen(points, options.points) {
        let restored = mirror.restore(point.number)?;
        let found = judge::judge(row.file_system, &restored, point, loads);
        let what = format!("{} point {} ({})", row.file_system.name(), point.number, point.grade);
        match found {
            Ok(found) => {
                println!("holds: {what}: {}", found.text);
                row.findings += found.things;
                row.judged[usize::from(point.grade != "frozen")] += 1;
            }
            Err(error) => {
                let kept = restored.with_extension(format!("{}.img", point.number));
                std::fs::copy(&restored, &kept)?;
                verdict.check(&format!("{what}: {error:#}; it is kept: {}", kept.display()), false);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_chosen_from_all_of_a_round() {
        let point = |number: u64, grade: &str| Point { number, grade: grade.into(), time: 0 };
        let mut points: Vec<Point> = (1..=40).map(|n| point(n, "frozen")).collect();
        points.extend((41..=44).map(|n| point(n, "settled")));
        points.push(point(45, "fuzzy"));
        let numbers = |wanted| chosen(&points, wanted).iter().map(|p| p.number).collect::<Vec<_>>();
        assert_eq!(numbers(4), [13, 26, 40, 44]);
        assert_eq!(numbers(100).len(), 44);
        points.retain(|p| p.grade != "frozen");
        assert_eq!(chosen(&points, 3).len(), 3);
    }
}
