//! `dormouse export`: points of volumes as disks for NBD clients, until it is told to end.
//!
//! Owns: which disks are served, what is told about them, and the order of starting and ending.
//! Invariants: nothing plain listens beyond this machine unless the user insists; what clients
//! wrote is durable when the command ends well. Leaves to others: the protocol
//! (`dormouse_device::nbd`), the disks ([`crate::disk`]), where it listens ([`place`]).

pub mod place;
pub mod tls;

use std::fs::DirBuilder;
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use anyhow::{Context, Result};
use dormouse_device::BlockDevice;
use dormouse_device::layers::overlay::Overlay;
use dormouse_device::layers::spec::Spec;
use dormouse_device::nbd::{Export, Exports, Server, Settings};
use serde_json::json;

use self::place::{Listening, Place};
use crate::daemon::notify::Notify;
use crate::disk::{self, DiskOptions, Opened};
use crate::exit::{Class, Failure, fail};
use crate::files;
use crate::home::Home;
use crate::log::Log;
use crate::netdisk::{self, NetDisk};
use crate::report::Report;
use crate::text;
use crate::when::VolumeAt;

/// What the command is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Volumes, each at a point.
    pub what: Vec<String>,
    /// Where to listen; without it, on a socket of its own.
    pub nbd: Option<String>,
    /// A file for what clients write.
    pub overlay: Option<PathBuf>,
    /// How the volume itself is written, if it is.
    pub writing: Option<netdisk::Options>,
    /// How disks are opened.
    pub disk: DiskOptions,
    /// Certificates.
    pub tls: Option<Tls>,
    /// Listen anywhere without TLS.
    pub insecure: bool,
    /// A file for the process's number.
    pub pid_file: Option<PathBuf>,
    /// What is run meanwhile.
    pub run: Option<String>,
    /// Events as JSON lines.
    pub json: bool,
    /// Put around each disk, for tests.
    pub layers: Vec<Spec>,
}

/// Where certificates are.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The directory.
    pub dir: PathBuf,
    /// Whether clients need none.
    pub any_client: bool,
}

/// Runs the command: until SIGTERM or SIGINT, or the end of what it runs.
pub fn run(home: &Home, options: &Options) -> Result<()> {
    let (signal, signalled) = UnixStream::pair()?;
    for number in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(number, signal.try_clone()?)
            .context("cannot listen for signals")?;
    }
    check(options)?;
    let own = private_directory(options)?;
    let place = match (&options.nbd, &own) {
        (Some(text), _) => text.parse()?,
        (None, Some(dir)) => Place::Unix(dir.0.join("nbd.sock")),
        (None, None) => return fail(Class::Usage, "--nbd is missing", "dormouse export --help"),
    };
    let tls = options.tls.as_ref().map(|t| tls::load(&t.dir, t.any_client)).transpose()?;
    place.check(tls.is_some(), options.insecure)?;
    // First, so that a place that is taken is known before a disk is opened.
    let listening = place.listen()?;
    let mut report = Report::new(options.json, false);
    let disks = open(home, options, &mut report)?;
    let log = Log::system();
    let tell = Arc::new(move |line: &str| log.line(&format!("nbd: {line}")));
    let settings = Settings { tls, log: Some(tell), ..Settings::default() };
    let secure = settings.tls.is_some();
    let exports = Exports::new(disks.iter().map(|d| d.export.clone()).collect());
    let exports = exports.map_err(|why| Failure::new(Class::Usage, why))?;
    let mut server = Server::new(exports, settings);
    server.listen(listening.listener()?).with_context(|| format!("cannot listen on {place}"))?;
    // Whoever reads what is told may look for it at once.
    let _pid = options.pid_file.as_deref().map(PidFile::write).transpose()?;
    tell_all(&disks, &listening, secure, &mut report);
    report.said()?;
    serve(options, server, &disks, &listening, secure, (signal, signalled))
}

/// What can be known before anything is opened.
fn check(options: &Options) -> Result<()> {
    let mut names: Vec<&String> = options.what.iter().collect();
    names.sort();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let text = format!("'{}' is named twice", twice[0]);
        return fail(
            Class::Usage,
            text,
            "clients know a disk by the name it has here: name it once",
        );
    }
    let flags = [
        ("--overlay", options.overlay.is_some()),
        ("--write", options.writing.is_some()),
        ("--expect-head", options.disk.expect_head.is_some()),
    ];
    match flags.iter().find(|(_, given)| *given) {
        Some((flag, _)) if options.what.len() > 1 => fail(
            Class::Usage,
            format!("{flag} is for one volume"),
            "run one `dormouse export` for each",
        ),
        _ => Ok(()),
    }
}

/// A disk that is served.
struct Disk {
    export: Export,
    opened: Opened,
    /// If the volume itself is written.
    written: Option<Arc<NetDisk>>,
}

fn open(home: &Home, options: &Options, report: &mut Report) -> Result<Vec<Disk>> {
    let open = |name: &String| -> Result<Disk> {
        let what: VolumeAt = name.parse()?;
        let (opened, written) = match &options.writing {
            Some(writing) => {
                let (disk, opened) =
                    netdisk::open(home, &what, writing.clone(), &options.disk, report)?;
                (opened, Some(Arc::new(disk)))
            }
            None => (disk::open(home, &what, &options.disk, report)?, None),
        };
        let mut device = Arc::clone(&opened.device);
        if let Some(disk) = &written {
            device = Arc::clone(disk) as _;
        }
        if let Some(path) = &options.overlay {
            device = over(device, path, &opened)?;
        }
        for layer in &options.layers {
            device = layer.wrap(device);
        }
        let time = text::time_utc(opened.time);
        let (volume, point, grade) = (&opened.volume, opened.point, opened.grade.name());
        let description = format!("{volume}, point {point} of {time}, {grade}");
        let export = Export { name: name.clone(), description, device };
        Ok(Disk { export, opened, written })
    };
    options.what.iter().map(open).collect()
}

/// A disk whose writes go to a file that belongs to its point.
pub(crate) fn over(
    lower: Arc<dyn BlockDevice>,
    path: &Path,
    under: &Opened,
) -> Result<Arc<dyn BlockDevice>> {
    let (volume, point) = (&under.volume, under.point);
    let identity = format!("{volume}@{point} of {}", text::time_utc(under.time));
    let overlay = Overlay::open(lower, path, &identity).map_err(|error| {
        let class = match &error {
            dormouse_device::Error::Io(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                Class::InUse
            }
            _ => Class::Place,
        };
        Failure::new(class, format!("--overlay {}: {error}", path.display()))
            .hint("name another file; one that is not there is made")
    })?;
    Ok(Arc::new(overlay))
}

fn tell_all(disks: &[Disk], listening: &Listening, secure: bool, report: &mut Report) {
    let exports: Vec<_> = disks
        .iter()
        .map(|Disk { export, opened, .. }| {
            let uri = listening.uri(&export.name, secure);
            report.line(&uri);
            json!({
                "name": export.name, "uri": uri, "volume": opened.volume, "point": opened.point,
                "time": text::time_utc(opened.time), "grade": opened.grade.name(),
                "size": opened.size, "read_only": export.device.geometry().read_only,
            })
        })
        .collect();
    report.event(json!({ "event": "exporting", "exports": exports }));
}

/// A file with the process's number, as long as this is there.
struct PidFile<'a>(&'a Path);

impl<'a> PidFile<'a> {
    fn write(path: &'a Path) -> Result<Self> {
        files::replace(path, format!("{}\n", std::process::id()).as_bytes(), 0o644)?;
        Ok(Self(path))
    }
}

impl Drop for PidFile<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}

/// Serves until it is told to end, and ends.
fn serve(
    options: &Options,
    server: Server,
    disks: &[Disk],
    listening: &Listening,
    secure: bool,
    (signal, mut signalled): (UnixStream, UnixStream),
) -> Result<()> {
    let mut notify = Notify::from_env();
    notify.status(&format!("serving {} disks on {listening}", disks.len()));
    notify.ready();
    let command = options.run.as_ref().map(|text| {
        let name = disks.first().map_or("", |d| &d.export.name);
        start(text, &listening.uri(name, secure), listening)
    });
    let waiting = command.transpose()?.map(|child| wait_for(child, signal)).transpose()?;
    let mut byte = [0];
    while let Err(error) = signalled.read_exact(&mut byte) {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).context("waiting for signals");
        }
    }
    notify.stopping();
    listening.leave();
    if !server.stop() {
        crate::out::note!("some clients did not end in time, and were cut");
    }
    for disk in disks.iter().filter(|d| !d.export.device.geometry().read_only) {
        disk.export.device.flush().with_context(|| format!("flushing '{}'", disk.export.name))?;
    }
    for disk in disks {
        if let Some(written) = &disk.written {
            netdisk::close(written, &disk.export.name)?;
        }
    }
    waiting.map_or(Ok(()), Running::verdict)
}

/// What `--run` has started.
struct Running(std::sync::mpsc::Receiver<io::Result<std::process::ExitStatus>>);

impl Running {
    /// Its end, if that is what ended the command.
    fn verdict(self) -> Result<()> {
        match self.0.try_recv() {
            Ok(Ok(status)) if !status.success() => {
                fail(Class::Other, format!("what --run started ended with {status}"), "")
            }
            Ok(Err(error)) => Err(error).context("waiting for what --run started"),
            _ => Ok(()),
        }
    }
}

fn start(text: &str, uri: &str, listening: &Listening) -> Result<Child> {
    let socket = listening.socket().map(|p| p.as_os_str().to_owned()).unwrap_or_default();
    Command::new("sh")
        .args(["-c", text])
        .env("uri", uri)
        .env("unixsocket", socket)
        .spawn()
        .context("cannot start a shell for --run")
}

/// Rings when it has ended.
fn wait_for(mut child: Child, mut ring: UnixStream) -> Result<Running> {
    let (tell, told) = std::sync::mpsc::channel();
    let wait = move || {
        let _ = tell.send(child.wait());
        let _ = ring.write_all(b"x");
    };
    std::thread::Builder::new().name("run".into()).spawn(wait)?;
    Ok(Running(told))
}

/// A directory that is removed when dropped.
struct Private(PathBuf);

impl Drop for Private {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// For the socket, if no place was named.
fn private_directory(options: &Options) -> Result<Option<Private>> {
    if options.nbd.is_some() {
        return Ok(None);
    }
    let path = std::env::temp_dir().join(format!("dormouse-export-{}", std::process::id()));
    // New, so that nobody else put it there.
    let made = DirBuilder::new().mode(0o700).create(&path);
    made.with_context(|| format!("cannot make the directory {}", path.display()))?;
    Ok(Some(Private(path)))
}
