//! `cargo xtask garage`: a store in a cluster of three Garage nodes, of which one is killed while a
//! client writes.
//!
//! Owns: the cluster (`garage` is a program of its own, found or built), and the judgement: every
//! copy that was acknowledged with `--durable remote` comes back after the node and the server's
//! machine are gone. Every process that it starts ends with it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::measure;
use crate::random::SplitMix;
use crate::world::{PROGRAM, output};

/// The version that is built where none is found.
const VERSION: &str = "2.5.0";
const NODES: usize = 3;
const BUCKET: &str = "dormouse";
const URL: &str = "s3://dormouse/house";
const IMAGE: usize = 16 << 20;
const START_LIMIT: Duration = Duration::from_secs(60);

struct Options {
    garage: Option<PathBuf>,
    dormouse: PathBuf,
    dir: PathBuf,
    rounds: usize,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            garage: None,
            dormouse: PROGRAM.into(),
            dir: "target/garage".into(),
            rounds: 12,
        };
        let mut rest = arguments.iter();
        while let Some(flag) = rest.next() {
            let value = rest.next().with_context(|| format!("{flag} needs a value"))?;
            match flag.as_str() {
                "--garage" => options.garage = Some(std::path::absolute(value)?),
                "--dormouse" => options.dormouse = value.into(),
                "--dir" => options.dir = value.into(),
                "--rounds" => options.rounds = value.parse().context("--rounds N")?,
                _ => bail!("unknown flag {flag}: see cargo xtask help"),
            }
        }
        ensure!(options.rounds >= 4, "--rounds: at least 4, so that a node dies among them");
        options.dormouse = std::path::absolute(&options.dormouse)?;
        options.dir = std::path::absolute(&options.dir)?;
        Ok(options)
    }
}

/// Runs the command.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let options = Options::parse(arguments)?;
    ensure!(options.dormouse.exists(), "{}: cargo build --release", options.dormouse.display());
    let garage = match &options.garage {
        Some(path) => path.clone(),
        None => found_or_built(&options.dir)?,
    };
    let run = options.dir.join("run");
    if run.exists() {
        fs::remove_dir_all(&run)?;
    }
    fs::create_dir_all(&run)?;
    let mut cluster = Cluster::start(&garage, &run)?;
    let said = judge(&options, &run, &mut cluster)?;
    println!("{said}");
    Ok(ExitCode::SUCCESS)
}

/// The program on the PATH, one that was built before, or one that is built now.
fn found_or_built(dir: &Path) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).map(|p| p.join("garage"));
    let built = dir.join("bin/garage");
    if let Some(found) = places.chain([built.clone()]).find(|p| p.is_file()) {
        return Ok(found);
    }
    println!("building garage {VERSION}: once, some twenty minutes");
    let began = Instant::now();
    let mut cargo = Command::new("cargo");
    cargo.args(["install", "garage", "--version", VERSION, "--locked", "--no-default-features"]);
    cargo.args(["--features", "bundled-libs,sqlite", "--root"]).arg(dir);
    let status = cargo.status().context("cannot start cargo")?;
    ensure!(status.success(), "garage was not built; give a program with --garage PATH");
    println!("built in {} s", began.elapsed().as_secs());
    Ok(built)
}

struct Node {
    config: PathBuf,
    rpc: u16,
    s3: u16,
    process: Option<Child>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

struct Cluster {
    nodes: Vec<Node>,
    key: String,
    secret: String,
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Node {
    fn start(garage: &Path, dir: &Path, secret: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let (rpc, s3) = (free_port()?, free_port()?);
        let config = dir.join("garage.toml");
        let shown = dir.display();
        fs::write(
            &config,
            format!(
                "metadata_dir = \"{shown}/meta\"\ndata_dir = \"{shown}/data\"\n\
                 db_engine = \"sqlite\"\nreplication_factor = {NODES}\n\
                 rpc_bind_addr = \"127.0.0.1:{rpc}\"\nrpc_public_addr = \"127.0.0.1:{rpc}\"\n\
                 rpc_secret = \"{secret}\"\n\n[s3_api]\ns3_region = \"garage\"\n\
                 api_bind_addr = \"127.0.0.1:{s3}\"\n"
            ),
        )?;
        let log = fs::File::create(dir.join("log"))?;
        let mut command = Command::new(garage);
        command.arg("-c").arg(&config).arg("server").stdin(Stdio::null());
        let process = command.stdout(log.try_clone()?).stderr(log).spawn();
        let process = process.with_context(|| format!("cannot start {}", garage.display()))?;
        Ok(Self { config, rpc, s3, process: Some(process) })
    }

    fn ask(&self, garage: &Path, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(garage);
        command.arg("-c").arg(&self.config).args(arguments);
        output(command)
    }
}

impl Cluster {
    fn start(garage: &Path, dir: &Path) -> Result<Self> {
        let secret = "5a".repeat(32);
        let start = |n| Node::start(garage, &dir.join(format!("node{n}")), &secret);
        let nodes = (1..=NODES).map(start).collect::<Result<Vec<_>>>()?;
        let mut ids = Vec::new();
        for node in &nodes {
            ids.push(measure::wait_for("a node's id", START_LIMIT, || {
                Ok(node.ask(garage, &["node", "id", "-q"]).ok())
            })?);
        }
        let first = &nodes[0];
        let short = |id: &str| id.trim().split('@').next().unwrap_or_default().to_owned();
        measure::wait_for("the first node", START_LIMIT, || {
            Ok(first.ask(garage, &["status"]).is_ok().then_some(()))
        })?;
        for (id, node) in ids.iter().zip(&nodes).skip(1) {
            let peer = format!("{}@127.0.0.1:{}", short(id), node.rpc);
            measure::wait_for("a node's connection", START_LIMIT, || {
                Ok(first.ask(garage, &["node", "connect", &peer]).is_ok().then_some(()))
            })?;
        }
        for id in &ids {
            first.ask(garage, &["layout", "assign", "-z", "here", "-c", "8G", &short(id)])?;
        }
        first.ask(garage, &["layout", "apply", "--version", "1"])?;
        let key = measure::wait_for("a key", START_LIMIT, || {
            Ok(first.ask(garage, &["key", "create", "house"]).ok())
        })?;
        let field = |name: &str| {
            let line = key.lines().find(|l| l.trim_start().starts_with(name));
            let value = line.and_then(|l| l.split_whitespace().last());
            value.map(str::to_owned).with_context(|| format!("no '{name}' in: {key}"))
        };
        let (id, secret) = (field("Key ID")?, field("Secret key")?);
        first.ask(garage, &["bucket", "create", BUCKET])?;
        let allow = ["bucket", "allow", "--read", "--write", "--owner", BUCKET, "--key", "house"];
        first.ask(garage, &allow)?;
        Ok(Self { nodes, key: id, secret })
    }

    /// kill -9.
    fn kill(&mut self, node: usize) {
        drop(self.nodes.remove(node));
    }
}

/// The server of a store in the cluster, a home of the client, and what it copied.
struct House<'a> {
    options: &'a Options,
    dir: &'a Path,
    environment: Vec<(&'static str, String)>,
    state: PathBuf,
    listen: String,
}

struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl House<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.options.dormouse);
        command.args(arguments).env("DORMOUSE_HOME", self.dir.join("home"));
        command.envs(self.environment.iter().map(|(k, v)| (*k, v)));
        command
    }

    /// Serves; garage may not know create-if-absent, and then nobody else uses the prefix.
    fn serve(&self, alone: bool) -> Result<Serving> {
        let log = self.dir.join("server.log");
        let file = fs::File::create(&log)?;
        let state = self.state.display().to_string();
        let arguments = ["serve", URL, "--state", &state, "--listen", &self.listen];
        let mut command = self.command(&arguments);
        command.args(["--durable", "remote", "--cache", "16MiB"]);
        command.args(alone.then_some("--only-server"));
        let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
        let mut serving = Serving(child);
        measure::wait_for("'listening on' of the server", START_LIMIT, || {
            let said = fs::read_to_string(&log)?;
            if let Some(status) = serving.0.try_wait()? {
                bail!("the server ended with {status}: {}", said.trim());
            }
            Ok(said.contains("listening on ").then_some(()))
        })?;
        Ok(serving)
    }
}

fn judge(options: &Options, dir: &Path, cluster: &mut Cluster) -> Result<String> {
    let environment = vec![
        ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", cluster.nodes[0].s3)),
        ("AWS_REGION", "garage".into()),
        ("AWS_ACCESS_KEY_ID", cluster.key.clone()),
        ("AWS_SECRET_ACCESS_KEY", cluster.secret.clone()),
    ];
    let (state, listen) = (dir.join("state"), format!("127.0.0.1:{}", free_port()?));
    let house = House { options, dir, environment, state, listen };
    let (mut serving, alone) = match house.serve(false) {
        Ok(serving) => (serving, false),
        Err(error) if format!("{error:#}").contains("If-None-Match") => {
            println!("create-if-absent does not exclude here: --only-server");
            (house.serve(true)?, true)
        }
        Err(error) => return Err(error),
    };
    let state = house.state.display().to_string();
    let invite = output(house.command(&["invite", &state, "client", "--url", &house.listen]))?;
    output(house.command(&["join", invite.trim()]))?;
    let key = dir.join("key-copy");
    fs::copy(house.state.join("server.key"), &key)?;

    let mut random = SplitMix::new(7);
    let mut fill = |bytes: &mut [u8]| {
        bytes
            .chunks_mut(8)
            .for_each(|c| c.copy_from_slice(&random.next().to_le_bytes()[..c.len()]));
    };
    let mut image = vec![0; IMAGE];
    fill(&mut image);
    let source = dir.join("image");
    let shown = source.display().to_string();
    let (mut acknowledged, mut retried, mut longest) = (Vec::new(), 0, Duration::ZERO);
    for round in 0..options.rounds {
        let at = (round * 7 % 15) << 20;
        fill(&mut image[at..at + (1 << 20)]);
        fs::write(&source, &image)?;
        let mut copy = house.command(&["mirror", &shown, "--volume", "v", "--once"]);
        let mut client = copy.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        if round == options.rounds / 3 {
            std::thread::sleep(Duration::from_millis(50));
            // Not the one that the server asks: it asks the cluster by that.
            cluster.kill(NODES - 1);
        }
        let began = Instant::now();
        let mut status = client.wait()?;
        while !status.success() {
            retried += 1;
            ensure!(began.elapsed() < Duration::from_secs(300), "round {round}: {status}");
            let mut again = house.command(&["mirror", &shown, "--volume", "v", "--once"]);
            status = again.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
        }
        longest = longest.max(began.elapsed());
        acknowledged.push(image.clone());
    }
    // The machine is lost while a node is.
    drop(serving);
    fs::remove_dir_all(&house.state)?;
    let copy = key.display().to_string();
    let mut rebuild = house.command(&["rebuild", URL, "--state", &state, "--takeover"]);
    rebuild.args(["--server-key", &copy]).args(alone.then_some("--only-server"));
    output(rebuild)?;
    serving = house.serve(alone)?;
    let target = dir.join("back");
    let back = target.display().to_string();
    for (round, expected) in acknowledged.iter().enumerate() {
        let point = format!("v@{}", round + 1);
        output(house.command(&["restore", &point, &back, "--force"]))?;
        ensure!(fs::read(&target)? == *expected, "{point} is not what was acknowledged");
    }
    drop(serving);
    Ok(format!(
        "{} copies acknowledged by a bucket on {NODES} nodes, one killed: all there after the \
         server's machine was lost too; {retried} had to be tried again, the longest took {:.1} s",
        acknowledged.len(),
        longest.as_secs_f64()
    ))
}
