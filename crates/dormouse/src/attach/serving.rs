//! The process that serves an attached disk, from its opening to its end.
//!
//! Invariants: the caller hears of the disk when it can be used, or why it cannot be, and then
//! nothing is left; a signal, or a caller that has gone away before, ends it; the end waits for
//! nothing longer than [`PATIENCE`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender, unbounded};
use dormouse_device::BlockDevice;
use dormouse_device::kernel::{Front, Options, Via};
use dormouse_format::point::Grade;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::mount::{self, About};
use super::record::{Record, Records, started};
use super::{clash, holders, process, resizing, superblock, via};
use crate::cli::attach::AttachArgs;
use crate::daemon::notify::Notify;
use crate::disk::{self, Opened};
use crate::exit::{Class, fail, text_of};
use crate::export;
use crate::files::Lock;
use crate::fork;
use crate::home::Home;
use crate::log::Log;
use crate::netdisk::{self, NetDisk};
use crate::out::{note, say};
use crate::report::Report;
use crate::when::{VolumeAt, When};

/// How long what is under way may take at the end.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What the process waits for.
enum Event {
    /// A signal.
    Stop,
    /// Somebody wishes for another size.
    Resize,
    /// Nobody waits for the disk any more that has not been told of.
    Orphaned,
    /// The kernel has given the disk up.
    Ended,
    /// A mount has ended.
    Mounted(Result<Vec<String>>),
}

/// Serves until it is told to stop. `caller`: one waits for the record on standard output, and
/// is let go of then.
pub fn run(home: &Home, args: &AttachArgs, caller: bool) -> Result<()> {
    let missing = process::prepare();
    let (tell, events) = unbounded();
    if caller {
        rustix::process::setsid().context("cannot leave the caller's session")?;
        let tell = tell.clone();
        std::thread::Builder::new().name("caller".into()).spawn(move || {
            process::wait_for_orphaning();
            let _ = tell.send(Event::Orphaned);
        })?;
    }
    signals(tell.clone())?;
    let records = Records::locate();
    let mut serving = Serving::start(home, args, records)?;
    let done = serving.make_ready(args, &tell, &events);
    let ready = done.and_then(|goes_on| {
        if goes_on {
            serving.tell(args, caller)?;
        }
        Ok(goes_on)
    });
    let log = Log::system();
    if matches!(ready, Ok(true)) {
        missing.iter().for_each(|line| log.line(line));
        serving.until_stopped(&events, &log);
    }
    let ended = serving.end(&log);
    ready.map(drop).and(ended)
}

/// SIGTERM and the like end it.
fn signals(tell: Sender<Event>) -> Result<()> {
    let cannot = "cannot listen for signals";
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1]).context(cannot)?;
    let forward = move || {
        for signal in signals.forever() {
            let event = if signal == SIGUSR1 { Event::Resize } else { Event::Stop };
            if tell.send(event).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(forward).context(cannot)?;
    Ok(())
}

struct Serving {
    /// If the volume itself is written.
    written: Option<Arc<NetDisk>>,
    front: Arc<dyn Front>,
    record: Record,
    records: Records,
    frozen: bool,
    notify: Notify,
    _lock: Lock,
}

impl Serving {
    /// Opens the disk and gives it to the kernel; or goes on with one whose process has died.
    fn start(home: &Home, args: &AttachArgs, records: Records) -> Result<Self> {
        let old = resumable(args, &records)?;
        let mut what: VolumeAt = args.what.parse()?;
        if let Some(name) = &args.fork {
            if old.is_none() && !fork::is_there(home, &what, name)? {
                // The caller waits for another line on standard output.
                fork::make(home, &what, name, args.fuzzy, &mut Report::new(false, true))?;
            }
            what = VolumeAt { volume: name.clone(), when: When(None) };
        }
        let via = match &old {
            Some((old, via)) => {
                note!("{}: going on with it", old.device.display());
                if !args.is_written() {
                    what.when = When(Some(old.point.to_string()));
                }
                *via
            }
            None => via::choose(args.via.map(Via::from))?,
        };
        let options = args.to_options(home)?;
        let mut report = Report::new(false, false);
        let (opened, written) = match args.written(&options)? {
            Some(writing) => {
                let (disk, opened) = netdisk::open(home, &what, writing, &options, &mut report)?;
                (opened, Some(Arc::new(disk)))
            }
            None => (disk::open(home, &what, &options, &mut report)?, None),
        };
        let label = match written {
            Some(_) => opened.volume.clone(),
            None => format!("{}@{}", opened.volume, opened.point),
        };
        let how = Options::new(&label);
        let lower = Arc::clone(&opened.device);
        let device: Arc<dyn BlockDevice> = match (&args.overlay, &written) {
            (Some(file), _) => export::over(lower, file, &opened)?,
            (None, Some(disk)) => Arc::clone(disk) as _,
            (None, None) => lower,
        };
        let front: Arc<dyn Front> = match &old {
            Some((old, via)) => via.resume(old.number, device, &how),
            None => via.attach(device, &how),
        }
        .with_context(|| format!("cannot attach {label} by {via}"))?
        .into();
        let lock = records.lock(&front.path())?.or_else(|pid| {
            fail(
                Class::InUse,
                format!("{} is served by process {pid}", front.path().display()),
                "`dormouse attached` shows what there is",
            )
        });
        let lock = match lock {
            Ok(lock) => lock,
            Err(error) => {
                let _ = front.stop(PATIENCE);
                return Err(error);
            }
        };
        let record = record(args, &opened, &*front, label, old.and_then(|(old, _)| old.mount));
        let frozen = opened.grade == Grade::Frozen;
        let serving = Self {
            written,
            front,
            record,
            records,
            frozen,
            notify: Notify::from_env(),
            _lock: lock,
        };
        match serving.save() {
            Ok(()) => Ok(serving),
            Err(error) => {
                // Nobody would know of it.
                let _ = serving.front.stop(PATIENCE);
                Err(error)
            }
        }
    }

    fn save(&self) -> Result<()> {
        self.records.write(&self.record)
    }

    /// Mounts it, if that is wanted. False if it is to end instead.
    fn make_ready(
        &mut self,
        args: &AttachArgs,
        tell: &Sender<Event>,
        events: &Receiver<Event>,
    ) -> Result<bool> {
        let (front, end) = (Arc::clone(&self.front), tell.clone());
        std::thread::Builder::new().name("kernel".into()).spawn(move || {
            while !front.ended(Duration::from_secs(3600)) {}
            let _ = end.send(Event::Ended);
        })?;
        let resumed = self.record.mount.is_some();
        let Some(dir) = args.mount.as_ref().filter(|_| !resumed) else {
            self.tell_of_twins();
            return Ok(true);
        };
        let dir = directory(dir)?;
        let (device, number, frozen) = (self.front.path(), args.partition, self.frozen);
        let writable = args.overlay.is_some() || args.is_written();
        let (to, done) = (dir.clone(), tell.clone());
        // In a thread: it reads, and the server may be away.
        std::thread::Builder::new().name("mount".into()).spawn(move || {
            let own = holders::numbers(&device);
            let about = About { writable, frozen };
            let mounted = mount::partition(&device, number)
                .and_then(|device| mount::mount(&device, &to, &own, about));
            let _ = done.send(Event::Mounted(mounted));
        })?;
        let event = loop {
            match events.recv() {
                Ok(Event::Resize) => {}
                event => break event,
            }
        };
        match event {
            Ok(Event::Mounted(notes)) => {
                self.record.mount = Some(dir);
                notes?.iter().for_each(|line| note!("{line}"));
                self.save()?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Says so if the source's file system is mounted here.
    fn tell_of_twins(&self) {
        let path = self.front.path();
        let Some(found) = clash::of_device(&path) else { return };
        if let Some(other) = clash::with(&found, &holders::numbers(&path)) {
            note!(
                "the {} on it has the same UUID {} as what is mounted on {}: do not mount by UUID \
                 now; `--mount DIR` knows how",
                found.kind.name(),
                superblock::uuid_text(&found.uuid),
                other.display()
            );
        }
    }

    /// The disk can be used.
    fn tell(&self, args: &AttachArgs, caller: bool) -> Result<()> {
        if caller {
            say!("{}", serde_json::to_string(&self.record)?)?;
            process::let_go(&self.records.log(&self.record.device))?;
        } else {
            super::say(&self.record, args.json)?;
        }
        self.notify.ready();
        Ok(())
    }

    fn until_stopped(&mut self, events: &Receiver<Event>, log: &Log) {
        let text = format!("{} is {}", self.record.device.display(), self.record.label);
        self.notify.status(&text);
        loop {
            match events.recv() {
                Ok(Event::Resize) => {
                    if let Err(error) = self.resize() {
                        log.line(&text_of(&error));
                    }
                }
                // Who was told is not waited for any more.
                Ok(Event::Orphaned | Event::Mounted(_)) => {}
                Ok(Event::Stop | Event::Ended) | Err(_) => return,
            }
        }
    }

    fn resize(&mut self) -> Result<()> {
        let disk = self.written.as_deref();
        let device = &self.record.device;
        if let Some(size) = resizing::answer(&self.records, device, disk, &*self.front)? {
            self.record.size = size;
            self.save()?;
        }
        Ok(())
    }

    /// Takes everything back.
    fn end(mut self, log: &Log) -> Result<()> {
        self.notify.stopping();
        let device = self.record.device.clone();
        if let Some(dir) = &self.record.mount
            && is_mounted(&device, dir)
            && mount::unmount(dir, false).is_err()
        {
            log.line(&format!("{} is in use: it is unmounted when that ends", dir.display()));
            let _ = mount::unmount(dir, true);
        }
        let stopped = self.front.stop(PATIENCE);
        if let Some(written) = &self.written
            && let Err(error) = netdisk::close(written, &self.record.label)
        {
            log.line(&text_of(&error));
        }
        match stopped {
            Ok(()) => self.records.remove(&device),
            Err(error) => {
                let error = anyhow::Error::new(error)
                    .context(format!("{} did not end well", device.display()));
                log.line(&text_of(&error));
                self.record.failed = Some(format!("{error:#}"));
                self.save()?;
                Err(error)
            }
        }
    }
}

/// Whether a directory has this device, or a part of it, mounted on it.
pub fn is_mounted(device: &Path, dir: &Path) -> bool {
    holders::mount_points(device).iter().any(|point| point == dir)
}

/// A device that was attached by the same words, whose process has died, and which the kernel
/// still has.
fn resumable(args: &AttachArgs, records: &Records) -> Result<Option<(Record, Via)>> {
    let same = |old: &Record| {
        old.what == args.what && old.overlay == args.overlay && old.written == args.is_written()
    };
    let all = records.all()?.into_iter().filter(same);
    let via = args.via.map(Via::from);
    let mut fit = all.filter(|old| via.is_none_or(|via| old.via() == Some(via)));
    Ok(fit.find(Record::can_resume).and_then(|old| old.via().map(|via| (old, via))))
}

fn record(
    args: &AttachArgs,
    opened: &Opened,
    front: &dyn Front,
    label: String,
    mount: Option<PathBuf>,
) -> Record {
    let pid = std::process::id() as i32;
    Record {
        device: front.path(),
        via: front.via().name().to_owned(),
        number: front.number(),
        label,
        what: args.what.clone(),
        volume: opened.volume.clone(),
        point: opened.point,
        time: opened.time,
        grade: opened.grade.name().to_owned(),
        size: opened.size,
        mount,
        overlay: args.overlay.clone(),
        written: args.is_written(),
        pid,
        started: started(pid).unwrap_or(0),
        failed: None,
    }
}

/// A directory to mount on, by its full name.
pub fn directory(dir: &Path) -> Result<PathBuf> {
    match std::fs::canonicalize(dir) {
        Ok(dir) if dir.is_dir() => Ok(dir),
        Ok(_) => {
            fail(Class::Place, format!("{} is no directory", dir.display()), "name a directory")
        }
        Err(e) => fail(
            Class::Place,
            format!("cannot mount on {}: {e}", dir.display()),
            "make the directory first: `mkdir`",
        ),
    }
}
