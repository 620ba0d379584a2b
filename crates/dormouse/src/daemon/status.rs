//! What `dormouse status` shows of the daemons of a home.
//!
//! Owns: the table for people, and the watch. Invariant: what a daemon tells is shown as it
//! tells it; where none runs, that is said. Leaves to others: asking ([`super::status_socket`]).

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use super::board::VolumeStatus;
use super::metrics;
use super::status_socket::{Asked, Document, ask, documents};
use crate::home::Home;
use crate::out;
use crate::text::{lasting, parse_time, size, table, time_local};

/// Between two views of a watch, unless something new is known.
const EVERY: Duration = Duration::from_secs(1);
/// A status as old as this is no sign of life.
const SILENT_MS: u64 = 30_000;
/// Clears a terminal and begins at its top.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// All volumes of these daemons, by name.
fn volumes(documents: &[Document]) -> Vec<VolumeStatus> {
    let mut all: Vec<_> = documents.iter().flat_map(|d| d.volumes.iter().cloned()).collect();
    all.sort_by(|a, b| a.volume.cmp(&b.volume));
    all
}

/// As text for people; ends with a line's end.
pub fn text(documents: &[Document]) -> String {
    if documents.is_empty() {
        return "no daemon runs: `dormouse daemon` mirrors what a file names\n".to_owned();
    }
    let all = volumes(documents);
    if all.is_empty() {
        return "a daemon runs, and mirrors nothing\n".to_owned();
    }
    let head = [
        "VOLUME",
        "STATE",
        "DATA LAG",
        "POINT LAG",
        "BACKLOG",
        "ETA",
        "READ/S",
        "SENT/S",
        "POINT",
        "GRADE",
        "RECEIVED",
    ];
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    let mut text = table(&head, &[2, 3, 4, 5, 6, 7, 8], &rows);
    for line in all.iter().flat_map(remarks) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

fn row(v: &VolumeStatus) -> Vec<String> {
    let none = || "-".to_owned();
    let point = v.last_point.as_ref();
    let received = |time: &str| parse_time(time).map_or_else(|| time.to_owned(), time_local);
    vec![
        v.volume.clone(),
        v.state.name().to_owned(),
        v.data_lag_ms.map_or_else(none, lasting),
        v.point_lag_ms.map_or_else(none, lasting),
        size(v.backlog_bytes),
        v.eta_s.map_or_else(none, |s| lasting(s.saturating_mul(1000))),
        size(v.read_bytes_per_s),
        size(v.sent_bytes_per_s),
        point.map_or_else(none, |p| p.seq.to_string()),
        point.map_or_else(none, |p| p.grade.clone()),
        point.map_or_else(none, |p| received(&p.time)),
    ]
}

/// The reason and the notes, a line each.
fn remarks(v: &VolumeStatus) -> Vec<String> {
    let next = v.next_try_s.map(|s| format!("next try in {}", lasting(s.saturating_mul(1000))));
    let why: Vec<String> =
        Some(v.reason.clone()).filter(|r| !r.is_empty()).into_iter().chain(next).collect();
    let mut lines = Vec::new();
    if !why.is_empty() {
        lines.push(why.join("; "));
    }
    lines.extend(v.notes.iter().cloned());
    if v.recheck_bytes > 0 {
        let size = size(v.recheck_bytes);
        lines.push(format!("{size} were discarded: zeros in the copy, and read when all is quiet"));
    }
    if v.age_ms >= SILENT_MS {
        lines.push(format!("nothing was heard of it for {}", lasting(v.age_ms)));
    }
    lines.iter().map(|line| format!("{}: {line}", v.volume)).collect()
}

/// What all daemons of a home tell, as JSON.
pub fn json(documents: &[Document]) -> serde_json::Value {
    json!(documents)
}

/// `dormouse status --prometheus`.
pub fn prometheus(home: &Home) -> Result<()> {
    out::write(metrics::render(&volumes(&documents(home))).as_bytes())
}

/// `dormouse status --watch`: until nobody reads any more.
pub fn watch(home: &Home, as_json: bool) -> Result<()> {
    let in_place = std::io::stdout().is_terminal() && !as_json;
    let mut daemons: Vec<(Asked, Option<Document>)> = Vec::new();
    let mut shown = None;
    loop {
        let known: Vec<_> = daemons.iter().map(|(asked, _)| asked.path.clone()).collect();
        daemons.extend(ask(home, "watch", &known).into_iter().map(|asked| (asked, None)));
        hear(&mut daemons)?;
        let documents: Vec<_> = daemons.iter().filter_map(|(_, d)| d.clone()).collect();
        let text = if as_json {
            format!("{}\n", json!({ "daemons": documents }))
        } else {
            text(&documents)
        };
        // A daemon tells something each second; where none runs, that is said once.
        if !documents.is_empty() || shown.as_ref() != Some(&text) {
            let clear = if in_place { CLEAR } else { "" };
            let end = if in_place || as_json { "" } else { "\n" };
            out::write(format!("{clear}{text}{end}").as_bytes())?;
            shown = Some(text);
        }
    }
}

/// Waits for news of any daemon, and takes all that are there; forgets those that are gone.
fn hear(daemons: &mut Vec<(Asked, Option<Document>)>) -> Result<()> {
    let wait = Timespec::try_from(EVERY)?;
    // A reader that is gone is told by its end of the pipe, also where no daemon runs.
    let stdout = std::io::stdout();
    let mut fds: Vec<PollFd<'_>> =
        daemons.iter().map(|(asked, _)| PollFd::new(asked, PollFlags::IN)).collect();
    fds.push(PollFd::new(&stdout, PollFlags::empty()));
    match poll(&mut fds, Some(&wait)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    let told: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    if told.last() == Some(&true) {
        return Err(out::Closed.into());
    }
    let mut told = told.into_iter();
    daemons.retain_mut(|(asked, document)| {
        if told.next() == Some(true) {
            *document = asked.newest();
        }
        document.is_some()
    });
    Ok(())
}
