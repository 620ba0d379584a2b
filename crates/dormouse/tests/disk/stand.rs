//! An image with a history, and disks of its points.

use std::sync::Arc;
use std::time::Duration;

use dormouse::disk::{self, DiskOptions, Opened};
use dormouse::home::Home;
use dormouse::report::Report;
use dormouse_device::BlockDevice;

use crate::common::program::{Numbers, Place};

pub const MIB: usize = 1 << 20;

/// 12 MiB and some bytes: words, noise, zeros, and content that stands in several places.
pub fn image(seed: u64) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    let twice = numbers.noise(MIB);
    let mut image = numbers.words(2 * MIB);
    image.extend(&twice);
    image.extend(vec![0; 2 * MIB + 4096 * 3]);
    image.extend(numbers.noise(3 * MIB));
    image.extend(&twice);
    image.extend(vec![0; MIB]);
    image.extend(numbers.words(2 * MIB + 512));
    image
}

/// Mirrors versions of an image as volume `v`.
pub fn versions(place: &Place, count: usize) -> Vec<Vec<u8>> {
    let mut image = image(7);
    let mut numbers = Numbers(99);
    (0..count)
        .map(|i| {
            if i > 0 {
                let at = numbers.below(image.len() as u64 - 300_000) as usize;
                let new = numbers.noise(250_000);
                image[at..at + new.len()].copy_from_slice(&new);
                let at = numbers.below(image.len() as u64 - 300_000) as usize;
                image[at..at + 200_000].fill(0);
            }
            if i == 2 {
                image.extend(numbers.noise(5 * MIB));
            }
            std::fs::write(place.path("v"), &image).unwrap();
            assert_eq!(place.mirror("v")["point"], i as u64 + 1);
            image.clone()
        })
        .collect()
}

pub fn home(place: &Place) -> Home {
    Home::locate(Some(place.path("home"))).unwrap()
}

pub fn try_open(place: &Place, what: &str, options: &DiskOptions) -> anyhow::Result<Opened> {
    let mut report = Report::new(false, true);
    disk::open(&home(place), &what.parse().unwrap(), options, &mut report)
}

#[track_caller]
pub fn open(place: &Place, what: &str, options: &DiskOptions) -> Arc<dyn BlockDevice> {
    try_open(place, what, options).unwrap().device
}

pub fn cached(place: &Place, bytes: u64) -> DiskOptions {
    DiskOptions { cache: Some((place.path("cache"), bytes)), ..DiskOptions::default() }
}

pub fn limited(timeout: Duration) -> DiskOptions {
    DiskOptions { timeout: Some(timeout), ..DiskOptions::default() }
}

/// Reads ranges at random, of any alignment, and compares.
#[track_caller]
pub fn reads_right(disk: &dyn BlockDevice, image: &[u8], seed: u64, times: u64) {
    let mut numbers = Numbers(seed);
    for _ in 0..times {
        let at = numbers.below(image.len() as u64);
        let most = [1, 5000, 70_000, 6 << 20][numbers.below(4) as usize];
        let len = (1 + numbers.below(most)).min(image.len() as u64 - at);
        let (at, len) = match numbers.below(3) {
            0 => (at, len),
            _ => (at / 4096 * 4096, len.min(image.len() as u64 - at / 4096 * 4096)),
        };
        reads(disk, image, at, len);
    }
}

/// Reads one range and compares.
#[track_caller]
pub fn reads(disk: &dyn BlockDevice, image: &[u8], at: u64, len: u64) {
    let mut out = vec![0xaa; len as usize];
    disk.read(at, &mut out).unwrap_or_else(|e| panic!("{len} bytes at {at}: {e}"));
    let right = &image[at as usize..(at + len) as usize];
    if out != right {
        let wrong = out.iter().zip(right).position(|(a, b)| a != b).unwrap();
        panic!("{len} bytes at {at}: byte {} is wrong", at + wrong as u64);
    }
}

/// All of it, from its beginning to its end.
#[track_caller]
pub fn reads_whole(disk: &dyn BlockDevice, image: &[u8], step: usize) {
    assert_eq!(disk.geometry().size, image.len() as u64);
    for at in (0..image.len()).step_by(step) {
        reads(disk, image, at as u64, step.min(image.len() - at) as u64);
    }
}
