//! How long writers are held up by a freeze:
//! `cargo run --release -p dormouse-track --example freeze_times -- DEVICE [ROUNDS] [--settle|--settle-more]`.
//!
//! Freezes and thaws what is mounted from a device, twice a second, and reports what each part
//! took; with `--settle` each file system writes back first, with `--settle-more` again and again
//! until that is quick. Holds nothing in between: what a mirror does then comes on top. Run it
//! beside a load.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::{Command, ExitCode};
use std::time::Duration;

use dormouse_track::freeze::{Freezer, Roots, helper_main, settle_writes, survey};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const HOLD_MAX: Duration = Duration::from_secs(10);
/// Another pass would not make the freeze much shorter.
const QUICK: Duration = Duration::from_millis(10);
const PASSES_MAX: u32 = 8;
const PAUSE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "freeze-helper") {
        return helper_main();
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("freeze_times: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), Failure> {
    let (flags, plain): (Vec<&String>, Vec<_>) =
        arguments.iter().partition(|argument| argument.starts_with("--"));
    let device =
        plain.first().ok_or("usage: freeze_times DEVICE [ROUNDS] [--settle|--settle-more]")?;
    let rounds = plain.get(1).map_or(Ok(60), |rounds| rounds.parse::<u32>())?;
    let passes = match flags.first().map(|flag| flag.as_str()) {
        None => 0,
        Some("--settle") => 1,
        Some("--settle-more") => PASSES_MAX,
        Some(other) => return Err(format!("{other} is unknown").into()),
    };
    let entry = std::fs::metadata(device)?;
    if !entry.file_type().is_block_device() {
        return Err(format!("{device} is not a block device").into());
    }
    let found = survey(&Roots::default(), entry.rdev())?.file_systems;
    for one in &found {
        println!("{} ({})", one.mount_point().display(), one.kind);
    }
    let mut helper = Command::new("/proc/self/exe");
    helper.arg("freeze-helper");
    let mut freezer = Freezer::start(helper)?;
    let mut times: [(&str, Vec<Duration>); 4] =
        ["settle", "freeze", "thaw", "held up"].map(|name| (name, Vec::new()));
    for _ in 0..rounds {
        let mut settling = Duration::ZERO;
        for _ in 0..passes {
            let pass: Duration = settle_writes(&found)?.iter().sum();
            settling += pass;
            if pass < QUICK {
                break;
            }
        }
        let held = freezer.freeze(&found, HOLD_MAX)?.thaw()?;
        let stopped = held.freezing + held.held + held.thawing;
        for ((_, list), time) in
            times.iter_mut().zip([settling, held.freezing, held.thawing, stopped])
        {
            list.push(time);
        }
        std::thread::sleep(PAUSE);
    }
    println!("{:>8} {:>9} {:>9} {:>9}   ms of {rounds}", "", "p50", "p99", "max");
    for (name, list) in &mut times {
        list.sort();
        let at = |percent: usize| {
            let place = (list.len() * percent / 100).min(list.len().saturating_sub(1));
            list.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        println!("{name:>8} {:9.2} {:9.2} {:9.2}", at(50), at(99), at(100));
    }
    Ok(())
}
