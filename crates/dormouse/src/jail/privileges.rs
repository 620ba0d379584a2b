//! Rights of the process: limits, core dumps, capabilities, new privileges.
//!
//! Invariant: each function reads back what it set.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, dumpable_behavior, getrlimit, set_dumpable_behavior,
    setrlimit,
};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::Plan;

/// Largest file that the server makes. A segment is smaller than 4 GiB; an index run of this
/// length stands for 2^31 records, about 80 TiB of chunks.
pub const FILE_MAX: u64 = 64 << 30;

type Held = Result<String, String>;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// No file larger than [`FILE_MAX`], no core dump.
pub(super) fn limits() -> Held {
    // Without a handler a write beyond the limit would end the process; with one it is an error.
    let seen = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(rustix::process::Signal::XFSZ.as_raw(), seen).map_err(text)?;
    for (resource, most) in [(Resource::Fsize, FILE_MAX), (Resource::Core, 0)] {
        let most = getrlimit(resource).maximum.map_or(most, |now| now.min(most));
        // Refused by who allows no change at all; then what counts is what is set.
        let _ = setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
        if getrlimit(resource).maximum != Some(most) {
            return Err("the limits of this process could not be set".into());
        }
    }
    Ok(format!("no file above {}, no core dump", crate::text::size(FILE_MAX)))
}

/// Other processes of the same user neither read nor trace this one.
pub(super) fn undumpable() -> Held {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(text)?;
    match dumpable_behavior().map_err(text)? {
        DumpableBehavior::NotDumpable => {
            Ok("other processes of the same user cannot read its memory".into())
        }
        found => Err(format!("it is {found:?} still")),
    }
}

/// No capability in any set. Root without any is a user that many files of the host belong to.
pub(super) fn capabilities(plan: &Plan) -> Held {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    let now = rustix::thread::capabilities(None).map_err(text)?;
    if now != none {
        foreign(plan)?;
        for capability in CapabilitySet::all().iter() {
            // Only who has CAP_SETPCAP may; without new privileges the set gives nothing anyway.
            let _ = rustix::thread::remove_capability_from_bounding_set(capability);
        }
        // Not there before Linux 4.3; an ambient capability ends with the permitted one.
        let _ = rustix::thread::clear_ambient_capability_set();
        rustix::thread::set_capabilities(None, none).map_err(text)?;
    }
    match rustix::thread::capabilities(None).map_err(text)? == none {
        true => Ok("none, and none to be had".into()),
        false => Err("some could not be given up".into()),
    }
}

/// An error if the store belongs to another user: without capabilities it could not be written.
fn foreign(plan: &Plan) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let user = rustix::process::geteuid().as_raw();
    for dir in &plan.dirs {
        let owner = std::fs::metadata(dir).map_err(text)?.uid();
        if owner != user {
            return Err(format!(
                "{} belongs to user {owner}, and the server runs as user {user}: it needs its \
                 capabilities to write there",
                dir.display()
            ));
        }
    }
    Ok(())
}

/// No program that is run gains rights by its file.
pub(super) fn no_new_privileges() -> Held {
    rustix::thread::set_no_new_privs(true).map_err(text)?;
    match rustix::thread::no_new_privs().map_err(text)? {
        true => Ok("no file gives rights".into()),
        false => Err("the kernel did not take it".into()),
    }
}
