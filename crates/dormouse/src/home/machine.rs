//! Which machine a home belongs to: one that was copied to another machine is another instance
//! there, and takes a volume over only if it is told to.
//!
//! Invariant: the first machine that uses a home is written down, once; on that one the instance
//! stays what it was made. Machines are told apart by /etc/machine-id: where there is none, or where a
//! whole disk was copied with it, they look like one, and the newer connection has the volume.

use anyhow::Result;
use dormouse_crypt::hash;
use dormouse_format::InstanceId;

use super::Home;
use crate::text::hex;

pub(super) const MACHINE: &str = "machine";
const MACHINE_ID: &str = "/etc/machine-id";

/// What a home has to say of a machine with this id.
pub fn text_of(machine_id: &str) -> String {
    hex(&hash::body_check(&[b"dormouse machine\0", machine_id.trim().as_bytes()].concat()))
}

impl Home {
    /// The instance that this home is on this machine; `made` is what it was made.
    pub(super) fn instance_here(&self, made: InstanceId) -> Result<InstanceId> {
        let id = std::fs::read_to_string(MACHINE_ID).unwrap_or_default();
        if id.trim().is_empty() {
            return Ok(made);
        }
        let (state, here) = (self.state(), text_of(&id));
        Ok(match state.read(MACHINE)? {
            Some(there) if *there == here => made,
            Some(_) => InstanceId(hash::body_check(&[&made.0, here.as_bytes()].concat())),
            None => {
                // Where the home cannot be written, it is tried again.
                let _ = state.write(MACHINE, &here, 0o600);
                made
            }
        })
    }
}
