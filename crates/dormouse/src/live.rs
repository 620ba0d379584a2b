//! The live mirror of one device.
//!
//! Owns: nothing yet but the signature by which a daemon starts it.

use anyhow::Result;

use crate::daemon::Context;
use crate::daemon::config::MirrorConfig;
use crate::exit::{Class, fail};

/// Mirrors a device until `context.stop` says so.
pub fn run(config: &MirrorConfig, _context: &Context) -> Result<()> {
    fail(
        Class::Usage,
        format!("{}: live mirroring is not there yet", config.device.display()),
        "`dormouse mirror DEVICE --once` copies it once",
    )
}
