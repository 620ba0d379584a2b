//! What a disk consists of and what is stacked upon it, as the kernel tells it.
//!
//! Owns: partitions, and the devices of device mapper, md and the like that use the disk or one of
//! its partitions, at any depth. A loop device is not among them: its file is a file of a file
//! system, and is treated as such. Leaves to others: what is mounted from them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::FreezeError;

/// Devices that hold (a part of) a disk's content: number and kernel name.
#[derive(Debug, Default)]
pub struct Blocks {
    names: BTreeMap<(u32, u32), String>,
}

impl Blocks {
    /// Everything on the device `major:minor`, itself included; `sys` is where sysfs is mounted.
    pub fn on(sys: &Path, major: u32, minor: u32) -> Result<Blocks, FreezeError> {
        let place = sys.join(format!("dev/block/{major}:{minor}"));
        let missing = !place.try_exists().map_err(|source| unreadable(&place, source))?;
        if missing {
            return Err(FreezeError::NoDevice { major, minor });
        }
        let mut blocks = Blocks::default();
        blocks.add(&place)?;
        Ok(blocks)
    }

    /// Whether this number belongs to one of them.
    pub fn contains(&self, major: u32, minor: u32) -> bool {
        self.names.contains_key(&(major, minor))
    }

    /// Whether this kernel name (`sda1`, `dm-0`) belongs to one of them.
    pub fn has_name(&self, name: &str) -> bool {
        self.names.values().any(|own| own == name)
    }

    /// Kernel names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.values().map(String::as_str)
    }

    /// The number that belongs to a kernel name.
    pub fn number(&self, name: &str) -> Option<(u32, u32)> {
        self.names.iter().find(|(_, own)| *own == name).map(|(number, _)| *number)
    }

    /// Adds a device, its partitions and its holders. A device that is reached twice (a volume on
    /// two partitions) is walked once.
    fn add(&mut self, place: &Path) -> Result<(), FreezeError> {
        // The kernel's directory bears the kernel's name, whichever link led there.
        let place = fs::canonicalize(place).map_err(|source| unreadable(place, source))?;
        let file = place.join("dev");
        let text = fs::read_to_string(&file).map_err(|source| unreadable(&file, source))?;
        let number = text.trim().split_once(':');
        let number =
            number.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let Some(number) = number else {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidData, "no device number");
            return Err(unreadable(&file, source));
        };
        let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if self.names.insert(number, name).is_some() {
            return Ok(());
        }
        for entry in entries(&place)? {
            if entry.join("partition").exists() {
                self.add(&entry)?;
            }
        }
        let holders = place.join("holders");
        if holders.exists() {
            for entry in entries(&holders)? {
                self.add(&entry)?;
            }
        }
        Ok(())
    }
}

/// Paths of what a directory holds, sorted.
pub fn entries(directory: &Path) -> Result<Vec<PathBuf>, FreezeError> {
    let read = || fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect();
    let paths: std::io::Result<Vec<PathBuf>> = read();
    let mut paths = paths.map_err(|source| unreadable(directory, source))?;
    paths.sort();
    Ok(paths)
}

pub fn unreadable(path: &Path, source: std::io::Error) -> FreezeError {
    FreezeError::Survey { path: path.to_owned(), source }
}
