//! Proofs of what no test can show in a second: sizes and links of the real world, on the real
//! program. Each prints what it measured and fails if a promise does not hold.

mod disks;
mod follow;
mod herd;
mod latency;
mod live;
mod relay;
mod sparse;
mod strangers;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::world;

const MIB: f64 = 1024.0 * 1024.0;

/// Runs the proof that the arguments name.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    match arguments.split_first() {
        Some((name, rest)) if name == "sparse" => sparse::run(&Options::parse(rest)?),
        Some((name, rest)) if name == "latency" => latency::run(&Options::parse(rest)?),
        Some((name, rest)) if name == "strangers" => strangers::run(&Options::parse(rest)?),
        Some((name, rest)) if name == "herd" => herd::run(&Options::parse(rest)?),
        Some((name, rest)) if name == "follow" => follow::run(&Options::parse(rest)?),
        Some((name, rest)) if name == "disks" => disks::run(&Options::parse(rest)?),
        Some((name, rest)) if name == "live" => live::run(rest),
        _ => bail!("there is no such proof: see cargo xtask help"),
    }
}

/// What the command lines of the proofs say; each takes its part.
struct Options {
    dormouse: PathBuf,
    directory: PathBuf,
    size_tib: u64,
    blocks: usize,
    base_blocks: Option<usize>,
    delay_ms: u64,
    rounds: usize,
    large: bool,
    connections: usize,
    clients: usize,
    image_mib: usize,
    seconds: u64,
    images: PathBuf,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            dormouse: world::PROGRAM.into(),
            directory: "target/proof".into(),
            size_tib: 1,
            blocks: 1_000_000,
            base_blocks: None,
            delay_ms: 50,
            rounds: 3,
            large: false,
            connections: 2000,
            clients: herd::CLIENTS,
            image_mib: 512,
            seconds: 60,
            images: "target/bench".into(),
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            if argument == "--large" {
                options.large = true;
                continue;
            }
            let value = || format!("{argument} needs a value after it");
            let text = arguments.next().with_context(value)?;
            let number = || text.parse().with_context(|| format!("{argument} needs a number"));
            match argument.as_str() {
                "--size-tib" => options.size_tib = number()?,
                "--blocks" => options.blocks = number()? as usize,
                "--base-blocks" => options.base_blocks = Some(number()? as usize),
                "--delay-ms" => options.delay_ms = number()?,
                "--rounds" => options.rounds = number()? as usize,
                "--connections" => options.connections = number()? as usize,
                "--clients" => options.clients = number()? as usize,
                "--image-mib" => options.image_mib = number()? as usize,
                "--seconds" => options.seconds = number()?,
                "--dormouse" => options.dormouse = text.into(),
                "--dir" => options.directory = text.into(),
                "--images" => options.images = text.into(),
                _ => bail!("this proof does not know {argument}: see cargo xtask help"),
            }
        }
        options.directory = std::path::absolute(&options.directory)?;
        options.images = std::path::absolute(&options.images)?;
        Ok(options)
    }
}

/// The promises that a proof looks at.
#[derive(Default)]
struct Verdict {
    failed: usize,
}

impl Verdict {
    /// Prints a promise and whether it holds.
    fn check(&mut self, what: &str, holds: bool) {
        println!("{}: {what}", if holds { "holds" } else { "FAILS" });
        self.failed += usize::from(!holds);
    }

    fn code(&self) -> ExitCode {
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// A number of the event `done` that `--json` wrote last.
fn field(said: &str, name: &str) -> Result<u64> {
    let event = said
        .lines()
        .rev()
        .find(|line| line.contains("\"event\":\"done\""))
        .context("no event 'done' was printed")?;
    let start = event
        .find(&format!("\"{name}\":"))
        .with_context(|| format!("the event has no {name}: {event}"))?;
    let digits: String =
        event[start + name.len() + 3..].chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("{name} is no number: {event}"))
}

/// Requests a second of this kind, `read` or `write`, that fio says it has made.
fn iops(json: &[u8], kind: &str) -> Result<f64> {
    let text = String::from_utf8_lossy(json);
    let part = text.split_once(&format!("\"{kind}\" : {{")).context("fio says nothing of these")?.1;
    let number = part.split_once("\"iops\" : ").context("fio says no iops")?.1;
    let number = number.split([',', '\n']).next().unwrap_or_default();
    number.trim().parse().context("iops is no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_that_of_the_last_event() {
        let said = "{\"event\":\"start\",\"n\":1}\n{\"a\":7,\"event\":\"done\",\"n\":23}\n";
        assert_eq!(field(said, "n").unwrap(), 23);
        assert_eq!(field(said, "a").unwrap(), 7);
        assert!(field(said, "b").is_err());
        assert!(field("", "n").is_err());
    }
}
