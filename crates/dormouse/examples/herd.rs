//! `herd DORMOUSE DIR NUMBER IDLE`: what a server costs when a whole house comes back at once.
//!
//! Starts a real server, has NUMBER clients join it and make a first copy all at once, kills the
//! server, changes each disk, starts the server, and has all come back at once, beside five clients
//! that commit a block a second. Then IDLE connections, that say nothing; and one client with a
//! large first copy beside one that commits a small point each second. Prints what was measured;
//! fails if a bound is broken. The clients are threads of this process, which run the program's own
//! code. Part of `cargo xtask herd`; never shipped.

#[path = "../tests/common/herd.rs"]
mod herd;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dormouse::connect;
use dormouse::home::Home;
use dormouse_format::message::Message;
use herd::{Herd, Live, quantile};
use rustix::process::{Pid, Signal, kill_process};

/// What the server may take while all come back.
const BACK_KIB_MAX: u64 = 1 << 20;
/// What it may take for a thousand that say nothing, and with them.
const IDLE_KIB_MAX: u64 = 256 << 10;
/// What a commit of one that follows a disk may take beside the others, 99 of 100 times.
const LIVE_MAX: Duration = Duration::from_secs(2);
/// Those are back within this: the server was there when they tried next.
const BACK_MAX: Duration = Duration::from_secs(10);
/// Size of a client's disk, and KiB of noise in it, and that change.
const SIZE: u64 = 64 << 20;
const FIRST_KIB: usize = 4096;
const CHANGED_KIB: usize = 256;
const LIVE: usize = 5;
const SECOND: Duration = Duration::from_secs(1);
/// Until what a server keeps of maps, and nobody reads, is gone.
const REST: Duration = Duration::from_secs(62);

struct Server {
    child: Child,
}

impl Server {
    fn start(program: &Path, store: &Path, address: &str) -> Result<Self> {
        let log =
            fs::File::options().create(true).append(true).open(store.with_extension("log"))?;
        let mut child = Command::new(program)
            .arg("serve")
            .arg(store)
            .args(["--listen", address])
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        if !line.starts_with("listening on ") {
            bail!("the server did not start: {line}");
        }
        Ok(Self { child })
    }

    /// A figure of its memory, in KiB.
    fn kib(&self, name: &str) -> Result<u64> {
        self.number(name)
    }

    /// A figure of the process.
    fn number(&self, name: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|l| l.split_whitespace().next());
        Ok(number.context("no such figure")?.parse()?)
    }

    fn end(mut self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already, if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let done = match &arguments[..] {
        [_, program, dir, number, idle] => match (number.parse(), idle.parse()) {
            (Ok(number), Ok(idle)) => run(Path::new(program), Path::new(dir), number, idle),
            _ => Err(anyhow::anyhow!("NUMBER and IDLE are numbers")),
        },
        _ => Err(anyhow::anyhow!("usage: herd DORMOUSE DIR NUMBER IDLE")),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("herd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether a bound holds; said.
fn holds(what: &str, is: bool) -> bool {
    println!("{} {what}", if is { "ok    " } else { "BROKEN" });
    is
}

fn spread(all: &[Duration]) -> String {
    let mut all = all.to_vec();
    let ms = |part, all: &mut [Duration]| quantile(all, part).as_secs_f64();
    let (half, most, last) = (ms(0.5, &mut all), ms(0.99, &mut all), ms(1.0, &mut all));
    format!("median {half:.3} s, 99 of 100 within {most:.3} s, at most {last:.3} s")
}

fn run(program: &Path, dir: &Path, number: usize, idle: usize) -> Result<bool> {
    fs::create_dir_all(dir)?;
    let store = dir.join("store");
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let server = Server::start(program, &store, &address)?;
    let began = Instant::now();
    let herd = Herd::join(&store, &address, &dir.join("herd"), number)?;
    let live = Herd::join_named(&store, &address, &dir.join("live"), LIVE, "live")?;
    println!("{} clients joined in {:.1} s", number + LIVE, began.elapsed().as_secs_f64());
    herd.change(0, FIRST_KIB, SIZE)?;
    let first = herd.come()?;
    let peak = server.kib("VmHWM")?;
    println!("first copies at once: {}; the server: at most {} MiB", spread(&first), peak >> 10);
    let mut good = holds("first copies: the server stays under 1 GiB", peak < BACK_KIB_MAX);
    let lives = start(live.homes())?;
    std::thread::sleep(5 * SECOND);
    server.end(Signal::KILL)?;
    herd.change(1, CHANGED_KIB, SIZE)?;
    let server = Server::start(program, &store, &address)?;
    let began = Instant::now();
    let back = herd.come()?;
    let (until, peak) = (Instant::now(), server.kib("VmHWM")?);
    let tries = herd.tries.load(std::sync::atomic::Ordering::Relaxed);
    println!(
        "all back at once: {}; {tries} tries in vain; the server: at most {} MiB",
        spread(&back),
        peak >> 10
    );
    good &= holds("all come back", back.len() == number);
    good &= holds("all back: the server stays under 1 GiB", peak < BACK_KIB_MAX);
    good &= lives_held(lives, (began, until))?;
    good &= idle_cost(&server, &herd, idle)?;
    good &= fair(&server, dir, &store, &address)?;
    server.end(Signal::TERM)?;
    if good {
        fs::remove_dir_all(dir)?;
    }
    Ok(good)
}

fn start(homes: &[Home]) -> Result<Vec<Live>> {
    homes.iter().map(|home| Live::start(home, SECOND)).collect()
}

/// The first write that ended with the server there again tells when one was back; from then on
/// they are commits beside all others.
fn lives_held(lives: Vec<Live>, (began, until): (Instant, Instant)) -> Result<bool> {
    let (mut back, mut took) = (Vec::new(), Vec::new());
    for live in lives {
        let mut all = live.end()?.into_iter().filter(|(at, took)| *at + *took > began);
        let first = all.next();
        back.extend(first.map(|(at, took)| (at + took).saturating_duration_since(at.max(began))));
        took.extend(all.filter(|(at, _)| *at < until).map(|(_, took)| took));
    }
    println!("{LIVE} that follow a disk were back: {}", spread(&back));
    println!("their {} commits beside the others: {}", took.len(), spread(&took));
    let good = holds(&format!("they are back within {BACK_MAX:?}"), {
        back.len() == LIVE && quantile(&mut back, 1.0) < BACK_MAX
    });
    Ok(good
        & holds(
            &format!("their commits: 99 of 100 within {LIVE_MAX:?}"),
            !took.is_empty() && quantile(&mut took, 0.99) < LIVE_MAX,
        ))
}

fn idle_cost(server: &Server, herd: &Herd, idle: usize) -> Result<bool> {
    std::thread::sleep(2 * SECOND);
    let after = server.kib("VmRSS")?;
    // What nobody has read of maps goes within a minute.
    std::thread::sleep(REST);
    let (before, threads) = (server.kib("VmRSS")?, server.number("Threads")?);
    println!(
        "at rest: {} MiB, {} right after the work; {threads} threads",
        before >> 10,
        after >> 10
    );
    let homes = herd.homes().iter().cycle().take(idle);
    let links = homes.map(|home| connect::connect(&home.account()?)).collect::<Result<Vec<_>>>()?;
    let (busy, threads) = (server.kib("VmRSS")?, server.number("Threads")?);
    println!("{idle} connections that have just come: {} MiB, {threads} threads", busy >> 10);
    std::thread::sleep(8 * SECOND);
    let (with, threads) = (server.kib("VmRSS")?, server.number("Threads")?);
    println!(
        "{idle} idle connections: {} MiB, {} before; {threads} threads",
        with >> 10,
        before >> 10
    );
    let began = Instant::now();
    for link in &links {
        ensure!(connect::ask(link, Message::Barrier)? == Message::Durable, "no answer");
    }
    let each = began.elapsed().as_secs_f64() * 1000.0 / links.len().max(1) as f64;
    println!("each of them asks something: answered in {each:.2} ms on average");
    std::thread::sleep(8 * SECOND);
    let again = server.kib("VmRSS")?;
    println!("and idle again: {} MiB", again >> 10);
    drop(links);
    let added = with.max(again).saturating_sub(before);
    Ok(holds("idle connections add less than 256 MiB", added < IDLE_KIB_MAX)
        & holds("the server with them stays under 256 MiB", with.max(again) < IDLE_KIB_MAX))
}

/// One with a large first copy beside one that commits a small point each second.
fn fair(server: &Server, dir: &Path, store: &Path, address: &str) -> Result<bool> {
    let small = Herd::join_named(store, address, &dir.join("small"), 1, "small")?;
    let large = Herd::join_named(store, address, &dir.join("large"), 1, "large")?;
    large.change(0, 1 << 20, (1 << 30) + (1 << 20))?;
    let live = Live::start(&small.homes()[0], SECOND)?;
    std::thread::sleep(10 * SECOND);
    let began = Instant::now();
    let copy = large.come()?;
    let until = Instant::now();
    let all = live.end()?;
    let of = |busy: bool| -> Vec<Duration> {
        let during = |at: &Instant| (*at >= began && *at < until) == busy;
        all.iter().filter(|(at, _)| during(at)).map(|(_, took)| *took).collect()
    };
    let (alone, mut beside) = (of(false), of(true));
    println!("a first copy of 1 GiB took {:.1} s", copy[0].as_secs_f64());
    println!("commits of a small client alone:     {}", spread(&alone));
    println!("commits of a small client beside it: {}", spread(&beside));
    println!("the server: at most {} MiB", server.kib("VmHWM")? >> 10);
    Ok(holds(
        &format!("beside a first copy: 99 of 100 commits within {LIVE_MAX:?}"),
        !beside.is_empty() && quantile(&mut beside, 0.99) < LIVE_MAX,
    ))
}
