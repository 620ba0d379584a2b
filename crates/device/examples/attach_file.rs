//! Gives a file to the kernel as a disk, until SIGTERM or the end of its standard input.
//!
//! `attach_file VIA FILE [--read-only] [--resume N] [--label TEXT]` prints the disk's path. For
//! tests on kernels that the program is not on, and for measurements of the ways alone.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dormouse_device::file::FileDevice;
use dormouse_device::kernel::{Options, Via};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [via, file, rest @ ..] = args.as_slice() else {
        return Err("attach_file VIA FILE [--read-only] [--resume N] [--label TEXT]".into());
    };
    let via = Via::named(via).ok_or("VIA is ublk, nbd or fuse")?;
    let value = |name: &str| {
        let at = rest.iter().position(|word| word == name)?;
        rest.get(at + 1).cloned()
    };
    let read_only = rest.iter().any(|word| word == "--read-only");
    let disk = Arc::new(FileDevice::open(Path::new(file), read_only)?);
    let how = Options::new(value("--label").unwrap_or_else(|| "file".to_owned()));
    let front = match value("--resume") {
        Some(number) => via.resume(number.parse()?, disk, &how)?,
        None => via.attach(disk, &how)?,
    };
    println!("{}", front.path().display());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    front.stop(Duration::from_secs(20))?;
    Ok(())
}
