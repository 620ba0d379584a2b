//! `dormouse demo`: the main job in one command, with nothing installed and no root.
//!
//! Runs this very program: a server on loopback with real TLS, a client that
//! joins it, an ext4 image of real files that is mirrored, changed and mirrored
//! again; then every point is restored, compared bit for bit, and checked by e2fsck.
//! Invariant: any difference, and any limit that does not hold, is a failure.

mod image;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::out::say;
use crate::text;

/// What a rename may send, and what a duplicated file may send.
const RENAME_MAX: u64 = 1 << 20;
const DUPLICATE_MAX: u64 = 3 << 20;

/// One state of the image, and what mirroring it cost.
struct Stage {
    what: &'static str,
    copy: PathBuf,
    changed: u64,
    sent: u64,
    stored: u64,
    limit: Option<u64>,
}

/// A server that ends with the demo.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        }
        self.0.wait().ok();
    }
}

struct Demo {
    program: PathBuf,
    dir: PathBuf,
}

/// Runs the demo in `dir`, with an image of `size` bytes.
pub fn run(dir: &Path, size: u64) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let demo = Demo { program: std::env::current_exe()?, dir: dir.to_owned() };
    let server = demo.serve()?;
    demo.join(&server.1)?;

    let (image, scratch) = (dir.join("disk.img"), dir.join("scratch"));
    let made = image::make(&image, &scratch, size)?;
    say!(
        "disk: an ext4 image of {}, with {} files of this machine ({})",
        text::size(size),
        made.files,
        text::size(made.bytes)
    )?;
    let mut stages = vec![demo.mirror(&image, "first copy", None)?];
    image::add_files(&image, &scratch)?;
    stages.push(demo.mirror(&image, "new files added", None)?);
    image::rename_directory(&image, &scratch)?;
    stages.push(demo.mirror(&image, "a directory renamed", Some(RENAME_MAX))?);
    let (large, least) = (image::duplicate_large_file(&image, &scratch)?, image::large_size(size));
    ensure!(
        large >= least,
        "the large file has {}, less than {}: too few files are under /usr",
        text::size(large),
        text::size(least)
    );
    stages.push(demo.mirror(&image, "a large file duplicated", Some(DUPLICATE_MAX))?);
    demo.client(&["verify", "disk"])?;
    show(&stages)?;

    for (i, stage) in stages.iter().enumerate() {
        demo.restore(i + 1, stage)?;
    }
    drop(server);
    let store = dir.join("store");
    demo.command(&["scrub", path(&store)?])?;
    say!("scrub: every record in the store holds")?;
    for stage in &stages {
        if let Some(limit) = stage.limit {
            ensure!(
                stage.sent < limit,
                "{}: {} were sent, more than {}",
                stage.what,
                text::size(stage.sent),
                text::size(limit)
            );
        }
    }
    say!("demo: all points came back bit for bit")?;
    Ok(())
}

fn show(stages: &[Stage]) -> Result<()> {
    say!("\n{:<26} {:>12} {:>12} {:>12}", "point", "changed", "sent", "stored")?;
    for stage in stages {
        say!(
            "{:<26} {:>12} {:>12} {:>12}",
            stage.what,
            text::size(stage.changed),
            text::size(stage.sent),
            text::size(stage.stored)
        )?;
    }
    say!("")
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

impl Demo {
    fn command(&self, args: &[&str]) -> Result<String> {
        self.command_with(args, Stdio::inherit())
    }

    fn command_with(&self, args: &[&str], notes: Stdio) -> Result<String> {
        let output = Command::new(&self.program)
            .args(args)
            .env("DORMOUSE_HOME", self.dir.join("home"))
            .stdin(Stdio::null())
            .stderr(notes)
            .output()?;
        ensure!(
            output.status.success(),
            "dormouse {} failed: {} {}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    fn client(&self, args: &[&str]) -> Result<String> {
        self.command(args)
    }

    /// Starts the server; its address is what it says.
    fn serve(&self) -> Result<(Server, String)> {
        let log = File::create(self.dir.join("server.log"))?;
        let mut child = Command::new(&self.program)
            .arg("serve")
            .arg(self.dir.join("store"))
            .args(["--listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let out = child.stdout.take().context("the server has no output")?;
        let server = Server(child);
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        let address = line.trim().strip_prefix("listening on ");
        let address = address.with_context(|| format!("the server said {line:?}"))?.to_owned();
        say!("server: {address}, TLS 1.3, store in {}", self.dir.join("store").display())?;
        Ok((server, address))
    }

    fn join(&self, address: &str) -> Result<()> {
        let store = self.dir.join("store");
        let out = self.command(&["invite", path(&store)?, "demo", "--url", address])?;
        let invite = out.lines().rev().find(|l| l.starts_with("dormouse://"));
        self.client(&["join", invite.context("no invite was made")?])?;
        let kit = self.dir.join("recovery-kit.txt");
        // Its advice is for who runs it by hand.
        self.command_with(&["recovery-kit", path(&kit)?], Stdio::piped())?;
        say!("client: joined with a one-time invite; recovery kit written")?;
        Ok(())
    }

    fn mirror(&self, image: &Path, what: &'static str, limit: Option<u64>) -> Result<Stage> {
        let before = stored(&self.dir.join("store"))?;
        let out = self.client(&["mirror", path(image)?, "--volume", "disk", "--once", "--json"])?;
        let done = out
            .lines()
            .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
            .find(|v| v["event"] == "done")
            .context("mirror did not say that it was done")?;
        let number = |name: &str| done[name].as_u64().with_context(|| format!("no '{name}'"));
        let point = number("point")?;
        let copy = self.dir.join(format!("original-{point}.img"));
        fs::copy(image, &copy)?;
        let grade = done["grade"].as_str().unwrap_or("?");
        ensure!(grade == "settled", "point {point} is {grade}, and nobody wrote to the image");
        say!("point {point} ({grade}): {what}")?;
        Ok(Stage {
            what,
            copy,
            changed: number("changed_bytes")?,
            sent: number("link_sent_bytes")?,
            stored: stored(&self.dir.join("store"))?.saturating_sub(before),
            limit,
        })
    }

    fn restore(&self, point: usize, stage: &Stage) -> Result<()> {
        let back = self.dir.join(format!("restored-{point}.img"));
        self.client(&["restore", &format!("disk@{point}"), path(&back)?])?;
        if !same(&back, &stage.copy)? {
            bail!("point {point} ({}) came back different", stage.what);
        }
        image::fsck(&back)?;
        say!("point {point}: restored, equal bit for bit, e2fsck clean")?;
        fs::remove_file(&back)?;
        Ok(())
    }
}

/// Bytes of all segments in a store.
fn stored(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() {
            sum += stored(&entry.path())?;
        } else if entry.path().extension().is_some_and(|e| e == "seg") {
            sum += meta.len();
        }
    }
    Ok(sum)
}

/// Whether two files hold the same bytes.
fn same(a: &Path, b: &Path) -> Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let n = a.read(&mut x)?;
        if n == 0 {
            return Ok(true);
        }
        b.read_exact(&mut y[..n])?;
        if x[..n] != y[..n] {
            return Ok(false);
        }
    }
}
