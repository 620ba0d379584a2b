//! `dormouse create` and `dormouse resize`: a volume that no disk is the source of.
//!
//! Invariant: each makes a point, and is done when that is durable. A volume that is there is
//! not made again; none is made smaller unasked.

use anyhow::Result;
use dormouse_format::limits::{BLOCK_SIZE, VOLUME_SIZE_MAX};
use dormouse_format::point::Grade;
use dormouse_sync::copy::{Mode, Outcome};
use dormouse_sync::leaf::{Claim, LeafData, LeafSet};
use serde_json::json;

use crate::engine::Leaves;
use crate::exit::{Class, Failure, fail};
use crate::home::{Anchor, Home};
use crate::report::Report;
use crate::writing::{How, Writing};
use crate::{attach, kit, text, volume_name};

/// The zstd level; nothing is sealed here.
const LEVEL: i32 = 1;

/// A size that a volume may have: whole blocks.
pub fn checked_size(size: u64) -> Result<u64> {
    if size == 0 || !size.is_multiple_of(BLOCK_SIZE as u64) {
        return fail(
            Class::Usage,
            format!("a volume cannot have {size} bytes"),
            "its size is a multiple of 4 KiB",
        );
    }
    if size > VOLUME_SIZE_MAX {
        let most = text::size(VOLUME_SIZE_MAX);
        return fail(
            Class::Usage,
            format!("{size} bytes are too many"),
            format!("a volume has {most} at most"),
        );
    }
    Ok(size)
}

/// `dormouse create`: an empty volume.
pub fn create(home: &Home, name: &str, size: u64, json: bool) -> Result<()> {
    let mut report = Report::new(json, false);
    if let Some(reminder) = kit::kit_reminder(home) {
        report.note(&reminder);
    }
    volume_name::check(name)?;
    let size = checked_size(size)?;
    let _lock = home.lock_named(&format!("volume-{name}"))?;
    let account = home.account()?;
    let how = How { level: LEVEL, takeover: false, new: true };
    let mut writing = Writing::open(home, &account, name, how)?;
    let outcome = point_of(home, &mut writing, Mode::Scan, size)?;
    report.event(json!({
        "event": "done", "volume": name, "size": size, "point": outcome.point.point.seq,
    }));
    report.line(&format!("created '{name}': {}, all zeros", text::size(size)));
    report.said()
}

/// `dormouse resize`: another size, in a new point; by the process that serves the volume, if it
/// is attached.
pub fn resize(home: &Home, name: &str, size: u64, shrink: bool, json: bool) -> Result<()> {
    let mut report = Report::new(json, false);
    let size = checked_size(size)?;
    if let Some(old) = attach::resize(name, size, shrink)? {
        report.event(json!({
            "event": "done", "volume": name, "old_size": old, "size": size, "attached": true,
        }));
        report.line(&format!("'{name}' has {} now, {} before", text::size(size), text::size(old)));
        return report.said();
    }
    let _lock = home.lock_named(&format!("volume-{name}"))?;
    let account = home.account()?;
    let how = How { level: LEVEL, takeover: false, new: false };
    let mut writing = Writing::open(home, &account, name, how)?;
    let old = writing.head.map_or(0, |head| head.point().size);
    check_shrink(name, old, size, shrink)?;
    let (mode, seq) = match writing.head {
        Some(head) if head.point().size == size => (None, head.point().seq),
        Some(head) => (Some(Mode::Changes), head.point().seq),
        None => (Some(Mode::Scan), 0),
    };
    let point = match mode {
        None => seq,
        Some(mode) => point_of(home, &mut writing, mode, size)?.point.point.seq,
    };
    report.event(json!({
        "event": "done", "volume": name, "old_size": old, "size": size, "point": point,
    }));
    report.line(&format!("'{name}' has {} now, {} before", text::size(size), text::size(old)));
    report.said()
}

/// What is cut off is in older points only.
pub fn check_shrink(name: &str, old: u64, new: u64, shrink: bool) -> Result<()> {
    if new >= old || shrink {
        return Ok(());
    }
    Err(Failure::new(
        Class::Usage,
        format!("'{name}' has {} now: {} is less", text::size(old), text::size(new)),
    )
    .hint(
        "shrink the file system in it first; then --shrink. What is cut off stays in older points",
    )
    .into())
}

/// A point in which nothing but the size changes.
fn point_of(home: &Home, writing: &mut Writing, mode: Mode, size: u64) -> Result<Outcome> {
    let what = (size, LeafSet::new(size));
    let (outcome, _) =
        writing.copy(mode, what, &Nothing, (Grade::Ordered, &mut || Ok(())), &mut || Ok(()))?;
    home.remember(&writing.volume, &Anchor { head: outcome.point, vouched: true })?;
    Ok(outcome)
}

/// A disk of which nothing is read.
struct Nothing;

impl Leaves for Nothing {
    fn read_leaf(&self, index: u64, _: Claim) -> Result<LeafData> {
        anyhow::bail!("leaf {index} is not to be read")
    }
}
