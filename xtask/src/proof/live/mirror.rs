//! The live mirror, its server, the relay between them, and what is done to all three.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::measure;
use crate::proof::relay::Relay;
use crate::random::SplitMix;
use crate::world::{Server, World, output};

/// For what takes a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often what was done.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    pub cuts: usize,
    pub servers: usize,
    pub daemons: usize,
}

impl Faults {
    pub const fn all(self) -> usize {
        self.cuts + self.servers + self.daemons
    }
}

pub struct Point {
    pub number: u64,
    pub grade: String,
    /// When the disk was so, by this machine's clock, in nanoseconds.
    pub time: u64,
}

impl Point {
    pub fn consistent(&self) -> bool {
        self.grade != "fuzzy"
    }
}

pub struct Mirror {
    daemon: Option<Child>,
    device: PathBuf,
    relay: Relay,
    server: Option<Server>,
    world: World,
    root: PathBuf,
    /// Its pins are found by this name.
    volume: String,
    pub faults: Faults,
}

impl Mirror {
    pub fn fresh(program: &Path, root: &Path) -> Result<Self> {
        let world = World::fresh(program, root)?;
        let server = world.serve()?;
        let relay = Relay::start(server.address, Duration::ZERO)?;
        world.join(relay.address)?;
        Ok(Self {
            daemon: None,
            device: PathBuf::new(),
            relay,
            server: Some(server),
            world,
            root: root.to_owned(),
            volume: format!("proof-live-{}", std::process::id()),
            faults: Faults::default(),
        })
    }

    pub fn log_path(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    pub fn start(&mut self, device: &Path) -> Result<()> {
        self.device = device.to_owned();
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.world.client();
        command
            .arg("mirror")
            .arg(device)
            .args(["--volume", &self.volume, "--freeze", "auto", "--point-every", "2s"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.daemon = Some(command.spawn()?);
        Ok(())
    }

    fn kill_daemon(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        if let Some(status) = daemon.try_wait()? {
            bail!("the daemon ended with {status}: {}", self.log_path().display());
        }
        daemon.kill()?;
        daemon.wait()?;
        Ok(())
    }

    /// A clean end.
    pub fn stop(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        kill(Pid::from_raw(i32::try_from(daemon.id())?), Signal::SIGTERM)?;
        let status =
            measure::wait_for("the end of the daemon", PATIENCE, || Ok(daemon.try_wait()?))?;
        ensure!(status.success(), "the daemon ended with {status}: {}", self.log_path().display());
        Ok(())
    }

    /// Cuts the link, or kills one of its ends.
    pub fn fault(&mut self, random: &mut SplitMix) -> Result<()> {
        match random.below(3) {
            0 => {
                self.relay.sever();
                self.faults.cuts += 1;
            }
            1 => {
                let server = self.server.take().context("no server runs")?;
                let address = server.address;
                server.kill()?;
                thread::sleep(Duration::from_millis(random.below(1500) as u64));
                self.server = Some(self.world.serve_at(address)?);
                self.faults.servers += 1;
            }
            _ => {
                self.kill_daemon()?;
                thread::sleep(Duration::from_millis(random.below(1000) as u64));
                self.start(&self.device.clone())?;
                self.faults.daemons += 1;
            }
        }
        Ok(())
    }

    /// All points, oldest first.
    pub fn points(&self) -> Result<Vec<Point>> {
        let mut command = self.world.client();
        command.args(["points", &self.volume, "--all", "--json"]);
        let said = match output(command) {
            Ok(said) => said,
            // Before the first.
            Err(error) if format!("{error:#}").contains("no volume") => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let all: Vec<Value> = serde_json::from_str(&said)?;
        all.iter()
            .map(|point| {
                let text = |name: &str| point[name].as_str().context("it is not shown");
                let time: jiff::Timestamp = text("time")?.parse()?;
                Ok(Point {
                    number: point["point"].as_u64().context("a point has no number")?,
                    grade: text("grade")?.to_owned(),
                    time: u64::try_from(time.as_nanosecond())?,
                })
            })
            .collect()
    }

    /// Onto what was restored before: only what differs is written.
    pub fn restore(&self, point: u64) -> Result<PathBuf> {
        let image = self.root.join("restored");
        let mut command = self.world.client();
        command
            .arg("restore")
            .arg(format!("{}@{point}", self.volume))
            .arg(&image)
            .arg("--in-place");
        if !image.exists() {
            File::create(&image)?;
        }
        output(command)?;
        Ok(image)
    }

    /// Whether the newest point becomes the device, of which nothing is mounted any more.
    pub fn comes_to_equal(&self, image: &Path) -> Result<bool> {
        let until = Instant::now() + PATIENCE;
        loop {
            let points = self.points()?;
            let newest = points.iter().rev().find(|p| p.consistent()).context("no point")?;
            if equal(image, &self.restore(newest.number)?)? {
                return Ok(true);
            }
            if Instant::now() > until {
                return Ok(false);
            }
            thread::sleep(Duration::from_secs(1));
        }
    }

    fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.log_path())?)
    }

    /// How often all was compared.
    pub fn scans(&self) -> Result<usize> {
        Ok(self.log()?.matches(": SCANNING: ").count())
    }

    /// For how long it was frozen, each time, in milliseconds.
    pub fn held(&self) -> Result<Vec<f64>> {
        let log = self.log()?;
        let after = log.split(": frozen for ").skip(1);
        after.map(|rest| Ok(rest.split(' ').next().unwrap_or_default().parse()?)).collect()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let all = fs::read_dir("/sys/fs/bpf/dormouse").into_iter().flatten().flatten();
        for pins in all.filter(|e| e.file_name().to_string_lossy().starts_with(&self.volume)) {
            let _ = fs::remove_dir_all(pins.path());
        }
    }
}

/// Whether two files are the same, bit for bit.
fn equal(one: &Path, two: &Path) -> Result<bool> {
    let (one, two) = (File::open(one)?, File::open(two)?);
    let size = one.metadata()?.len();
    if size != two.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < size {
        let length = usize::try_from((size - at).min(left.len() as u64))?;
        one.read_exact_at(&mut left[..length], at)?;
        two.read_exact_at(&mut right[..length], at)?;
        if left[..length] != right[..length] {
            return Ok(false);
        }
        at += length as u64;
    }
    Ok(true)
}
