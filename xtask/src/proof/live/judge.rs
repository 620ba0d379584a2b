//! One restored point: its file system, and what each load finds of itself in it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::disk::{FileSystem, look_into, replay};
use super::loads::{Load, Seen};
use super::mirror::Point;

/// What was found, all of it good.
pub struct Found {
    pub text: String,
    pub things: usize,
}

pub fn judge(
    file_system: FileSystem,
    image: &Path,
    point: &Point,
    loads: &[Arc<dyn Load>],
) -> Result<Found> {
    let frozen = point.grade == "frozen";
    // Without a journal, what was frozen is whole; it is looked into before anything is replayed.
    let replays = !frozen || file_system.log_outlives_freeze();
    let found = if frozen { Some(contents(file_system, image, point, loads)?) } else { None };
    if replays {
        replay(file_system, image).context("it cannot be mounted")?;
    }
    file_system.check(image).context("its file system is not clean")?;
    found.map_or_else(|| contents(file_system, image, point, loads), Ok)
}

/// What the loads find of themselves.
fn contents(
    file_system: FileSystem,
    image: &Path,
    point: &Point,
    loads: &[Arc<dyn Load>],
) -> Result<Found> {
    look_into(file_system, image, |root| {
        let mut found = Found { text: "clean".into(), things: 0 };
        for load in loads {
            let scratch = image.with_file_name(load.name());
            let frozen = point.grade == "frozen";
            let seen = Seen { root, scratch: &scratch, time: point.time, frozen };
            let things = load.check(&seen).with_context(|| load.name())?;
            found.things += things;
            found.text += &format!(", {} {things}", load.name());
        }
        Ok(found)
    })
}
