//! Every transition: each situation (state, job that runs, stop asked for or not) with each
//! kind of event, as written in `table.txt`.
//!
//! A cell is the state and the job afterwards, and after `+` what was asked for: `b`egin,
//! cancel (`x`), `p`robe, `q`uit. A dot: nothing changed, nothing was asked for.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const TABLE: &str = include_str!("table.txt");

/// The kinds of events. Without an arm here a new one does not compile; without a row in the
/// table, [`every_cell_is_in_the_table`] fails.
const KINDS: usize = 14;
const fn kind(event: &Event) -> usize {
    match event {
        Event::Tick => 0,
        Event::RouteChanged => 1,
        Event::Try { .. } => 2,
        Event::Connected { .. } => 3,
        Event::Lost { .. } => 4,
        Event::Made(_) => 5,
        Event::Unfrozen { .. } => 6,
        Event::Checkpointed { .. } => 7,
        Event::Failed { .. } => 8,
        Event::Dirty { .. } => 9,
        Event::Progress { .. } => 10,
        Event::Gap(_) => 11,
        Event::Resized { .. } => 12,
        Event::StopAsked => 13,
    }
}

/// The rows: an event, and how long after the situation came about it comes.
fn events(bench: &mut Bench) -> Vec<(&'static str, Duration, Event)> {
    let now = Duration::ZERO;
    let head = bench.head(Grade::Settled);
    let broken = Proof::Broken(Gap::OtherBoot);
    let connected =
        |proof, head: Option<Head>, dirty| (now, Event::Connected { proof, head, dirty });
    let mut rows = vec![
        ("tick", now, Event::Tick),
        ("late", 2 * MINUTE, Event::Tick),
        ("route", now, Event::RouteChanged),
        ("route-late", ms(1500), Event::RouteChanged),
        ("try", now, Event::Try { takeover: false }),
        ("take", ms(1500), Event::Try { takeover: true }),
        ("lost", now, lost(Away::LinkLost)),
        ("fenced", now, lost(Away::Fenced)),
        ("unfrozen", now, unfrozen(Unfrozen::Deadline)),
        ("checkpointed", now, Event::Checkpointed { seq: 900 }),
        ("failed", now, failed()),
        ("clean", now, dirty(0)),
        ("dirty", ms(300), dirty(64 << 10)),
        ("flood", now, dirty(GIB)),
        ("progress", now, Event::Progress { done: GIB, left: GIB }),
        ("gap", now, Event::Gap(Gap::Everything)),
        ("resized", ms(300), Event::Resized { size: 200 * GIB }),
        ("stop", now, Event::StopAsked),
    ];
    let proofs = [
        ("proof", connected(Proof::Unbroken, Some(head), 0)),
        ("proof-dirty", connected(Proof::Unbroken, Some(head), MIB)),
        ("proof-empty", connected(Proof::Unbroken, None, 0)),
        ("broken", connected(broken, Some(head), MIB)),
    ];
    rows.extend(proofs.map(|(name, (wait, event))| (name, wait, event)));
    rows.push(("settled", ms(100), bench.made(Grade::Settled, MIB, 0)));
    rows.push(("fuzzy", ms(100), bench.made(Grade::Fuzzy, MIB, 64 << 10)));
    rows.push(("behind", ms(100), bench.made(Grade::Fuzzy, MIB, GIB)));
    rows
}

/// A way to each situation, by events only.
fn situations() -> Vec<Bench> {
    let starting = Bench::new();
    let mut connecting = starting.clone();
    connecting.tick();
    let mut away = connecting.clone();
    away.tell(lost(Away::Unreachable));
    let mut fenced = connecting.clone();
    fenced.tell(lost(Away::Fenced));
    let mut taking = fenced.clone();
    taking.after(SECOND, Event::Try { takeover: true });

    let mut scanning = connecting.clone();
    scanning.tell(Event::Connected { proof: Proof::Broken(Gap::NoRecord), head: None, dirty: 0 });
    let mut scan_failed = scanning.clone();
    scan_failed.tell(failed());

    let behind = following(8 * MIB);
    let live = following(0);
    let mut all = vec![away, fenced, connecting, taking, scan_failed, scanning];
    all.extend(behind.clone());
    all.extend(live.clone());
    let gaps = |bench: &Bench| {
        let mut bench = bench.clone();
        bench.tell(Event::Gap(Gap::Everything));
        bench
    };
    let stops = |bench: &Bench| {
        let mut bench = bench.clone();
        bench.tell(Event::StopAsked);
        bench
    };
    let running: Vec<_> = all.iter().filter(|b| b.job().is_some()).cloned().collect();
    all.extend(running.iter().map(gaps));
    all.extend(running.iter().map(stops));
    all.extend(running.iter().map(stops).map(|b| gaps(&b)));
    all.push(stops(&starting));
    let mut seen = BTreeSet::new();
    all.retain(|bench| seen.insert(name(&bench.live)));
    all
}

/// CATCHUP or LIVE with each job: a backlog of `left` bytes stays at 1 MiB/s.
fn following(left: u64) -> [Bench; 4] {
    let mut pass = Bench::live();
    pass.after(SECOND, dirty(left.max(MIB)));
    assert!(is_pass(pass.job()));
    let mut idle = pass.clone();
    idle.pass_ends(ms(100), Grade::Fuzzy, MIB / 10, left.max(64 << 10));

    let mut freeze = pass.clone();
    while freeze.job() != Some(Job::Freeze) {
        freeze.pass_ends(SECOND, Grade::Fuzzy, MIB, left.max(64 << 10));
    }

    let mut checkpoint = pass.clone();
    let point = checkpoint.point(Grade::Fuzzy);
    checkpoint.now += SECOND;
    let cut = checkpoint.now;
    let left = left.max(64 << 10);
    let made = carried(point, cut, [MIB, DELTAS_URGENT, left]);
    checkpoint.tell(Event::Made(made));
    assert_eq!(checkpoint.job(), Some(Job::Checkpoint));
    [idle, pass, freeze, checkpoint]
}

/// The name of a situation: `x` if a stop was asked for, the state, the job.
pub fn name(live: &Live) -> String {
    let stop = if live.stop.is_some() { "x" } else { "" };
    let state = match live.state {
        State::NoConn(away) if away.again() == Again::Asked => "N!",
        State::NoConn(_) => "N",
        State::Scanning(_) => "S",
        State::CatchUp => "C",
        State::Live => "L",
        State::Rescan(_) => "R",
    };
    let job = match live.job() {
        None => "-",
        Some(Job::Connect { .. }) => "c",
        Some(Job::Scan { .. }) => "s",
        Some(Job::Pass { .. }) => "p",
        Some(Job::Freeze) => "f",
        Some(Job::Checkpoint) => "k",
    };
    format!("{stop}{state}{job}")
}

/// What a step did, as the table writes it.
fn outcome(before: &Live, after: &Live, actions: &[Action]) -> String {
    let asked: String = actions
        .iter()
        .map(|action| match action {
            Action::Begin(_) => 'b',
            Action::Cancel => 'x',
            Action::Probe => 'p',
            Action::Stopped => 'q',
        })
        .collect();
    let plus = if asked.is_empty() { "" } else { "+" };
    let changed = before.state != after.state || name(before) != name(after);
    match (changed, plus) {
        (false, "") => ".".into(),
        _ => format!("{}{plus}{asked}", name(after)),
    }
}

fn as_written() -> BTreeMap<(String, String), String> {
    let mut cells = BTreeMap::new();
    let mut columns = Vec::new();
    for line in TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap();
        let rest: Vec<_> = words.collect();
        if first == "event" {
            columns = rest;
            continue;
        }
        assert_eq!(rest.len(), columns.len(), "cells of the row '{first}' under {columns:?}");
        for (column, cell) in columns.iter().zip(rest) {
            let key = ((*column).to_owned(), first.to_owned());
            assert!(cells.insert(key.clone(), cell.to_owned()).is_none(), "{key:?} is there twice");
        }
    }
    cells
}

#[test]
fn every_cell_is_in_the_table() {
    let mut written = as_written();
    let mut kinds = BTreeSet::new();
    let (mut wrong, mut cells) = (Vec::new(), Vec::new());
    for mut bench in situations() {
        let situation = name(&bench.live);
        for (row, wait, event) in events(&mut bench) {
            kinds.insert(kind(&event));
            let mut after = bench.clone();
            let actions = after.after(wait, event);
            let got = outcome(&bench.live, &after.live, &actions);
            let cell = written.remove(&(situation.clone(), row.to_owned()));
            if cell.as_deref() != Some(&got) {
                wrong.push(format!("{situation} {row}: {got}, and the table has {cell:?}"));
            }
            cells.push((situation.clone(), row, got));
        }
    }
    let (count, which) = (wrong.len(), wrong.join("\n"));
    assert!(wrong.is_empty(), "{}\n{count} cells differ:\n{which}", as_it_is(&cells));
    assert!(written.is_empty(), "cells of situations or events that are not: {written:?}");
    assert_eq!(kinds.len(), KINDS, "a kind of event has no row");
}

/// The names of all situations, for the random walks: they must reach no other.
pub fn names() -> BTreeSet<String> {
    situations().iter().map(|bench| name(&bench.live)).collect()
}

/// The table as it would have to be written: to be read with care before it is taken over.
fn as_it_is(cells: &[(String, &str, String)]) -> String {
    let mut columns: Vec<&str> = Vec::new();
    let mut rows: Vec<&str> = Vec::new();
    for (column, row, _) in cells {
        if !columns.contains(&column.as_str()) {
            columns.push(column);
        }
        if !rows.contains(row) {
            rows.push(row);
        }
    }
    let cell = |column: &str, row: &str| {
        cells.iter().find(|(c, r, _)| c == column && *r == row).map_or("?", |(_, _, cell)| cell)
    };
    let mut text = String::new();
    for part in columns.chunks(12) {
        let line = |first: &str, cells: Vec<&str>| {
            let cells: String = cells.iter().map(|cell| format!(" {cell:>6}")).collect();
            format!("{first:13}{cells}\n")
        };
        text += &line("event", part.to_vec());
        for row in &rows {
            text += &line(row, part.iter().map(|column| cell(column, row)).collect());
        }
        text += "\n";
    }
    text
}
