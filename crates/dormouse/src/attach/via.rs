//! By which way the kernel gets a disk.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;
use dormouse_device::kernel::Via;

use crate::exit::{Class, fail};

const WAY_OUT: &str = "run as root, on a kernel with ublk_drv (Linux 6.0), nbd, or FUSE and loop devices;\n\
                       without any of these: `dormouse export` serves the disk to other programs";

/// The way that was asked for, or the best that this kernel has.
pub fn choose(wanted: Option<Via>) -> Result<Via> {
    let mut reasons = Vec::new();
    for via in wanted.map_or_else(|| Via::ALL.to_vec(), |via| vec![via]) {
        load(via);
        match via.missing() {
            None => return Ok(via),
            Some(why) => reasons.push(format!("{via}: {why}")),
        }
    }
    let message = format!("this kernel takes no disk from here ({})", reasons.join("; "));
    fail(Class::Other, message, WAY_OUT)
}

/// Has the driver loaded, where it is a module that nothing loads by itself.
fn load(via: Via) {
    if via == Via::Ublk && !Path::new("/dev/ublk-control").exists() {
        let mut modprobe = Command::new("modprobe");
        modprobe.args(["-q", "ublk_drv"]).stdin(Stdio::null()).stderr(Stdio::null());
        // Whether it helped is seen when the driver is asked.
        let _ = modprobe.status();
    }
}
