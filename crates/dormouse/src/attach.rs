//! `attach`, `detach`, `attached`: points as disks of this machine.
//!
//! Owns: what these commands say, and the process in the background. Leaves to others: the disk
//! itself ([`crate::disk`]), and how a kernel gets it (`dormouse_device::kernel`).

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::json;

use crate::cli::attach::{AttachArgs, DetachArgs};
use crate::exit::{Class, fail};
use crate::home::Home;
use crate::out;
use crate::text;

mod clash;
mod detaching;
mod holders;
mod mount;
mod process;
mod record;
mod resizing;
mod serving;
mod superblock;
mod via;

use record::{Record, Records};
pub use resizing::ask as resize;

/// Set for the process that serves.
const SERVING: &str = "DORMOUSE_ATTACH_SERVING";

/// Attaches a point; returns when the device can be used, or with `--foreground` at its end.
pub fn attach(home: &Home, args: &AttachArgs) -> Result<()> {
    let args = &named(args)?;
    if std::env::var_os(SERVING).is_some() {
        return serving::run(home, args, true);
    }
    if let Some(dir) = &args.mount {
        // Told before anything is fetched.
        serving::directory(dir)?;
    }
    if args.foreground {
        return serving::run(home, args, false);
    }
    let mut child = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .env(SERVING, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the process that serves the disk")?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    match serde_json::from_str::<Record>(&line) {
        Ok(record) => say(&record, args.json),
        Err(_) => {
            // It has said why.
            let status = child.wait()?;
            let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|c| *c > 0);
            match code {
                Some(code) => std::process::exit(code.into()),
                None => fail(
                    Class::Other,
                    format!("the process that serves the disk has ended: {status}"),
                    "try again; `dormouse attached` shows what is left",
                ),
            }
        }
    }
}

/// With full names: by that of the overlay it is known again.
fn named(args: &AttachArgs) -> Result<AttachArgs> {
    let full = |path: &Option<PathBuf>| path.as_ref().map(std::path::absolute).transpose();
    let (overlay, cache) = (full(&args.overlay)?, full(&args.cache)?);
    Ok(AttachArgs { overlay, cache, ..args.clone() })
}

/// What came of it.
fn say(record: &Record, json: bool) -> Result<()> {
    if json {
        return out::say!("{}", shown(record));
    }
    out::say!("{}", record.device.display())
}

fn shown(record: &Record) -> serde_json::Value {
    json!({
        "device": record.device, "via": record.via, "volume": record.volume,
        "point": record.point, "time": text::time_utc(record.time), "grade": record.grade,
        "size": record.size, "mount": record.mount, "overlay": record.overlay,
        "written": record.written,
        "pid": record.pid, "state": state(record), "failed": record.failed,
    })
}

/// Whether it is served.
fn state(record: &Record) -> &'static str {
    if record.process().is_some() {
        "served"
    } else if record.can_resume() {
        "waiting"
    } else {
        "dead"
    }
}

/// What is attached.
pub fn list(json: bool) -> Result<()> {
    let records = Records::locate().all()?;
    if json {
        return out::say!("{}", records.iter().map(shown).collect::<serde_json::Value>());
    }
    let row = |record: &Record| {
        let mount = record.mount.as_deref().unwrap_or(Path::new("-"));
        vec![
            record.device.display().to_string(),
            record.volume.clone(),
            record.point.to_string(),
            text::time_local(record.time),
            text::size(record.size),
            record.via.clone(),
            state(record).to_owned(),
            mount.display().to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = records.iter().map(row).collect();
    let head = ["DEVICE", "VOLUME", "POINT", "TIME", "SIZE", "VIA", "STATE", "MOUNTED ON"];
    out::write(text::table(&head, &[2, 4], &rows).as_bytes())?;
    for record in &records {
        match state(record) {
            "waiting" => out::note!(
                "{}: its process has died; `dormouse attach {}` goes on with it",
                record.device.display(),
                record.what
            ),
            "dead" => out::note!(
                "{}: its process has died; `dormouse detach {}` removes what is left",
                record.device.display(),
                record.device.display()
            ),
            _ => {}
        }
    }
    Ok(())
}

/// Takes what is named away.
pub fn detach(args: &DetachArgs) -> Result<()> {
    let records = Records::locate();
    let record = find(&args.what, &records.all()?)?;
    detaching::detach(&record, &records, args.force)?;
    out::say!("{} is detached", record.device.display())
}

/// The one that is meant by a device, a directory or a volume.
fn find(what: &str, all: &[Record]) -> Result<Record> {
    let path = std::fs::canonicalize(what).unwrap_or_else(|_| what.into());
    let by_path = |record: &&Record| record.device == path || record.mount.as_ref() == Some(&path);
    if let Some(record) = all.iter().find(by_path) {
        return Ok(record.clone());
    }
    let by_name =
        |record: &&Record| record.volume == what || record.label == what || record.what == what;
    let found: Vec<&Record> = all.iter().filter(by_name).collect();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => fail(
            Class::NotFound,
            format!("'{what}' is not attached"),
            "`dormouse attached` shows what is",
        ),
        many => {
            let devices: Vec<String> =
                many.iter().map(|r| r.device.display().to_string()).collect();
            fail(
                Class::Usage,
                format!("'{what}' is attached as {}", devices.join(", ")),
                "name the device",
            )
        }
    }
}
