//! The published benchmark: one disk image copied, changed, copied again and restored, by Dormouse
//! and by its peers, on this machine.
//!
//! Rules that make the figures comparable: rounds are interleaved (A B C A B C); every program
//! gets a fresh repository, a fresh home and a fresh cache in each round; the image lies at the
//! same path and in the page cache; `sync` runs before each timed step; a step ends when the
//! program exits, and the time with a `sync` after it is kept beside it; what is restored is
//! compared bit for bit.

pub mod image;
pub mod programs;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};

use programs::{Place, Program};
use report::{Round, Subject};

use crate::{measure, world};

struct Options {
    quick: bool,
    rounds: usize,
    only: Vec<String>,
    json: Option<PathBuf>,
    dormouse: PathBuf,
    directory: PathBuf,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            quick: false,
            rounds: 0,
            only: Vec::new(),
            json: None,
            dormouse: PathBuf::from(world::PROGRAM),
            directory: PathBuf::from("target/bench"),
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .cloned()
                    .with_context(|| format!("{argument} needs a value after it"))
            };
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--rounds" => {
                    options.rounds = value()?.parse().context("--rounds needs a number")?
                }
                "--only" => options.only.push(value()?),
                "--json" => options.json = Some(value()?.into()),
                "--dormouse" => options.dormouse = value()?.into(),
                "--dir" => options.directory = value()?.into(),
                _ => bail!("bench does not know {argument}: see cargo xtask help"),
            }
        }
        if options.rounds == 0 {
            options.rounds = if options.quick { 1 } else { 3 };
        }
        options.dormouse = std::path::absolute(&options.dormouse)?;
        options.directory = std::path::absolute(&options.directory)?;
        Ok(options)
    }
}

/// Runs the benchmark and prints its tables.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let options = Options::parse(arguments)?;
    let programs = choose(&options)?;
    let mut subjects = Vec::new();
    let mut present = Vec::new();
    let mut missing = Vec::new();
    for program in programs {
        match program.version() {
            Ok(version) => {
                subjects.push(Subject {
                    name: program.name(),
                    version,
                    tuned: program.tuned(),
                    rounds: Vec::new(),
                });
                present.push(program);
            }
            Err(error) => missing.push(format!("{}: {error:#}", program.name())),
        }
    }
    ensure!(!present.is_empty(), "no program to measure\n{}", missing.join("\n"));

    fs::create_dir_all(&options.directory)
        .with_context(|| format!("cannot create {}", options.directory.display()))?;
    let images = image::Images::prepare(&options.directory, options.quick)?;
    println!("{}", images.describe());
    let total = options.rounds * present.len();
    for round in 0..options.rounds {
        for (index, program) in present.iter().enumerate() {
            eprintln!(
                "[{}/{total}] round {}: {}",
                round * present.len() + index + 1,
                round + 1,
                program.name()
            );
            let figures = one_round(program.as_ref(), &images, &options.directory)
                .with_context(|| format!("{} in round {}", program.name(), round + 1))?;
            eprintln!("  {}", figures.line());
            subjects[index].rounds.push(figures);
        }
    }
    print!("{}", report::markdown(&subjects, &missing));
    if let Some(path) = &options.json {
        fs::write(path, report::json(&subjects, &missing, &images))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn choose(options: &Options) -> Result<Vec<Box<dyn Program>>> {
    let all = programs::all(&options.dormouse);
    for name in &options.only {
        let names: Vec<_> = all.iter().map(|program| program.name()).collect();
        ensure!(
            names.contains(&name.as_str()),
            "bench knows no {name}: it knows {}",
            names.join(", ")
        );
    }
    let wanted =
        |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    Ok(all.into_iter().filter(|program| wanted(program.name())).collect())
}

fn one_round(program: &dyn Program, images: &image::Images, directory: &Path) -> Result<Round> {
    let place = Place::fresh(&directory.join("round"), images.disk())?;
    let mut session = program.prepare(&place).context("cannot make the repository")?;
    let mut round = Round::default();

    images.put_base()?;
    round.first = session.timed(&place, program.copy(&place, 1))?;
    if let Some(copied) = program.plain_copy(&place) {
        measure::compare(&copied, images.disk())?;
        round.stored_first = measure::stored(&copied)?;
        return place.remove().map(|()| round);
    }
    round.stored_first = measure::stored(&place.repository)?;

    images.put_changed()?;
    round.second = Some(session.timed(&place, program.copy(&place, 2))?);
    round.stored_second = Some(measure::stored(&place.repository)?);

    let (command, restored) = program.restore(&place);
    round.restore = Some(session.timed(&place, command)?);
    measure::compare(&restored, images.disk())?;
    drop(session);
    place.remove().map(|()| round)
}
