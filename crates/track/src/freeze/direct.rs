//! What needs no helper: flushing, and thawing what an earlier run left.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::error::Action;
use super::{FileSystem, FreezeError, kernel};

/// Writes back what the writable ones hold in memory, one after the other, and returns how long
/// each took (nothing for the others). Right before a freeze this makes the freeze short, since a
/// freeze writes back with its writers already held. Waits for as long as the disk takes.
pub fn settle_writes(file_systems: &[FileSystem]) -> Result<Vec<Duration>, FreezeError> {
    let flush = |file_system: &FileSystem| {
        if !file_system.writable {
            return Ok(Duration::ZERO);
        }
        let (mount, fd) = file_system.open()?;
        let start = Instant::now();
        kernel::flush(&fd).map_err(|errno| failed(Action::Flush, mount.point.clone(), errno))?;
        Ok(start.elapsed())
    };
    file_systems.iter().map(flush).collect()
}

/// What [`thaw_all`] found.
#[derive(Debug, Default)]
pub struct Thawed {
    /// Mount points of those that were frozen and are no longer.
    pub thawed: Vec<PathBuf>,
    /// Those that it could not thaw.
    pub faults: Vec<FreezeError>,
}

/// Thaws each of them that is frozen, whoever froze it: after a daemon and its helper were both
/// killed. One that fails does not keep the others.
pub fn thaw_all(file_systems: &[FileSystem]) -> Thawed {
    let mut result = Thawed::default();
    let (mut points, mut fds) = (Vec::new(), Vec::new());
    for file_system in file_systems {
        match file_system.open() {
            Ok((mount, fd)) => {
                points.push(mount.point.clone());
                fds.push(Arc::new(fd));
            }
            Err(error) => result.faults.push(error),
        }
    }
    for (point, answer) in points.into_iter().zip(kernel::thaw_together(&fds)) {
        match answer {
            Some(Ok(())) => result.thawed.push(point),
            Some(Err(Errno::INVAL | Errno::OPNOTSUPP)) => {}
            Some(Err(errno)) => result.faults.push(failed(Action::Thaw, point, errno)),
            None => result.faults.push(failed(Action::Thaw, point, Errno::TIMEDOUT)),
        }
    }
    result
}

fn failed(action: Action, mount_point: PathBuf, errno: Errno) -> FreezeError {
    FreezeError::Failed { action, mount_point, source: errno.into() }
}
