//! Random writes by fio: nothing to compare, but much to mark and to send.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Load, Seen};
use crate::proof::live::disk::words;
use crate::random::SplitMix;
use crate::world::output;

pub struct Fio {
    at: PathBuf,
}

impl Fio {
    pub fn new(at: &Path) -> Self {
        Self { at: at.to_owned() }
    }
}

impl Load for Fio {
    fn name(&self) -> &'static str {
        "fio"
    }

    fn step(&self, random: &mut SplitMix) -> Result<()> {
        // Past the page cache, or through it.
        let direct = random.below(2);
        let mut command = words(
            "fio --name=load --size=96m --rw=randwrite --bs=4k --rate=4m --time_based \
             --runtime=3 --ioengine=psync --end_fsync=1 --output=/dev/null",
        );
        command
            .arg(format!("--direct={direct}"))
            .arg(format!("--randseed={}", random.next() >> 1))
            .arg(format!("--filename={}", self.at.join("file").display()));
        output(command).map(drop)
    }

    fn end(&self) -> Result<()> {
        Ok(())
    }

    fn check(&self, _seen: &Seen<'_>) -> Result<usize> {
        Ok(0)
    }
}
