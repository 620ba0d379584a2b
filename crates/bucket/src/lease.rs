//! Who writes: leases with a generation, and the proof that create-if-absent excludes.
//!
//! Invariant: a generation is taken once. A lease has no time: it holds until it is given
//! back, or taken over by somebody who says so. It keeps two servers from being started by
//! mistake; what keeps an older server from writing is the chain of parts, where each name can
//! be taken once, so no clock is needed.

use std::thread;

use bytes::Bytes;
use dormouse_format::seeded::seeded;

use crate::error::{Error, Result};
use crate::names;
use crate::objects::{Objects, Put};

/// A text that names the holder.
const TEXT_MAX: usize = 4096;
/// Leases that are kept for people to look at.
const KEPT: u64 = 16;
/// Rounds and threads of the probe.
const ROUNDS: u32 = 3;
const ROUNDS_MAX: u32 = 9;
const TRIES: u32 = 6;

/// Who wants a lease.
#[derive(Debug, Clone)]
pub struct Who {
    /// Id of the state directory: whoever has it is this server.
    pub holder: String,
    /// Name of the machine, for people.
    pub host: String,
    /// Take the bucket from another server.
    pub takeover: bool,
}

struct Found {
    generation: u64,
    holder: String,
    host: String,
    released: bool,
}

fn text(who: &Who) -> String {
    let host: String = who.host.chars().filter(|c| !c.is_control()).take(64).collect();
    format!("dormouse lease 1\nholder {}\nhost {host}\n", who.holder)
}

fn released(generation: u64) -> String {
    format!("{}.released", names::numbered(names::LEASES, generation))
}

fn newest(objects: &dyn Objects) -> Result<Option<Found>> {
    let items = objects.list(names::LEASES)?;
    let number = |n: &str| names::number_of(n, names::LEASES);
    let Some(generation) = items.iter().filter_map(|i| number(&i.name)).max() else {
        return Ok(None);
    };
    let name = names::numbered(names::LEASES, generation);
    let bad = |why: &str| Error::damaged(&name, why);
    let bytes = objects.get(&name, None)?.ok_or_else(|| bad("it vanished"))?;
    let text = std::str::from_utf8(&bytes).ok().filter(|t| t.len() <= TEXT_MAX);
    let mut lines = text.unwrap_or_default().lines();
    if lines.next() != Some("dormouse lease 1") {
        return Err(bad("it is no lease of this version"));
    }
    let mut field = |key: &str| lines.next()?.strip_prefix(key).map(str::to_owned);
    let (holder, host) = (field("holder "), field("host "));
    let (Some(holder), Some(host)) = (holder, host) else {
        return Err(bad("it is no lease of this version"));
    };
    let gone = released(generation);
    let released = items.iter().any(|i| i.name == gone);
    Ok(Some(Found { generation, holder, host, released }))
}

/// Takes the next generation, unless another holds the bucket.
pub(crate) fn take(objects: &dyn Objects, who: &Who) -> Result<u64> {
    loop {
        let mut generation = 1;
        if let Some(found) = newest(objects)? {
            let ours = found.holder == who.holder;
            if !ours && !found.released && !who.takeover {
                let Found { host, holder, generation, .. } = found;
                return Err(Error::Held { host, holder, generation });
            }
            generation = found.generation + 1;
        }
        let name = names::numbered(names::LEASES, generation);
        if objects.put_new(&name, Bytes::from(text(who)))? == Put::Made {
            if let Some(old) = generation.checked_sub(KEPT) {
                // Of use to nobody, and if it stays, that harms nothing.
                let _ = objects.delete(&names::numbered(names::LEASES, old));
                let _ = objects.delete(&released(old));
            }
            return Ok(generation);
        }
    }
}

/// Gives a lease back: the next server may begin without a word.
pub(crate) fn release(objects: &dyn Objects, generation: u64) -> Result<()> {
    objects.put_new(&released(generation), Bytes::from_static(b"released\n")).map(drop)
}

/// Whether somebody took the bucket over since.
pub(crate) fn is_superseded(objects: &dyn Objects, generation: u64) -> Result<bool> {
    Ok(newest(objects)?.is_none_or(|found| found.generation != generation))
}

/// Shows that of several who create one object at once exactly one succeeds, and that a
/// later one fails. `nonce` makes names that nobody used. A round in which an answer was lost
/// shows nothing, and is done again.
pub(crate) fn probe(objects: &dyn Objects, nonce: &str) -> Result<()> {
    let mut shown = 0;
    let mut round = 0;
    while shown < ROUNDS {
        match one_round(objects, &format!("{}/{nonce}-{round}", names::PROBE), nonce) {
            Ok(()) => shown += 1,
            Err(Error::Away { .. }) if round < ROUNDS_MAX => {}
            Err(e) => return Err(e),
        }
        round += 1;
    }
    Ok(())
}

fn one_round(objects: &dyn Objects, name: &str, nonce: &str) -> Result<()> {
    let put = |i: u32| objects.put_new(name, Bytes::from(format!("probe {nonce} {i}\n")));
    let tries: Vec<Result<Put>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..TRIES).map(|i| scope.spawn(move || put(i))).collect();
        let joined = threads.into_iter().map(|t| t.join());
        joined.map(|r| r.unwrap_or(Err(Error::Stopping))).collect()
    });
    let judged = judge(objects, name, nonce, &tries, put(TRIES));
    // Where nothing may be removed, it stays.
    let _ = objects.delete(name);
    judged
}

fn judge(
    objects: &dyn Objects,
    name: &str,
    nonce: &str,
    tries: &[Result<Put>],
    late: Result<Put>,
) -> Result<()> {
    let refuse = |why: String| Err(Error::NotAtomic { why });
    let mut made = Vec::new();
    for (i, tried) in tries.iter().enumerate() {
        match tried {
            Ok(Put::Made) => made.push(i),
            Ok(Put::Taken) => {}
            // A try without an answer proves nothing either way.
            Err(e) => return Err(e.clone()),
        }
    }
    if seeded("probe-believes") {
        return Ok(());
    }
    if late? == Put::Made {
        return refuse("an object that was there was created once more".into());
    }
    if made.is_empty() {
        // It was asked again, as its answer was lost, and then was told that the name is taken.
        let why = "whoever created it got no answer".into();
        return Err(Error::Away { what: format!("creating {name}"), why });
    }
    if made.len() != 1 {
        let (n, of) = (made.len(), tries.len());
        return refuse(format!("{n} of {of} who created one object at once were told they did"));
    }
    let there = objects.get(name, None)?;
    let expected = format!("probe {nonce} {}\n", made[0]);
    if there.as_deref() != Some(expected.as_bytes()) {
        return refuse("an object does not hold what the one who created it had put".into());
    }
    Ok(())
}
