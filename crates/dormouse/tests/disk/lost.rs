//! Servers and links that are gone, and come back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dormouse::disk::DiskOptions;
use dormouse_device::Error;

use super::stand::*;
use crate::common::program::Place;
use crate::common::relay::Relay;

#[test]
fn reads_go_on_when_the_server_was_killed_and_is_back() {
    let (place, server) = Place::served();
    let image = versions(&place, 2).remove(1);
    let address = server.address.clone();
    let mut server = Some(server);
    let disk = open(&place, "v", &DiskOptions::default());
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (disk, image, stop, done) = (&disk, &image, &stop, &done);
            scope.spawn(move || {
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    reads_right(&**disk, image, seed * 1000 + round, 1);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(150));
            server.take().unwrap().kill();
            std::thread::sleep(Duration::from_millis(300));
            server = Some(place.serve(&address));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(done.load(Ordering::Relaxed) > 4);
    drop(disk);
    // Cold, with the server killed before the first read, and back while it waits.
    let disk = open(&place, "v", &DiskOptions::default());
    server.take().unwrap().kill();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| reads_whole(&*disk, &image, 1 << 20));
        std::thread::sleep(Duration::from_millis(500));
        assert!(!reader.is_finished());
        server = Some(place.serve(&address));
        reader.join().unwrap();
    });
}

#[test]
fn reads_go_on_over_a_link_that_is_cut_again_and_again() {
    let (place, server) = Place::served();
    let image = versions(&place, 1).remove(0);
    let relay = Relay::start(&server.address);
    place.run(&["retarget", &relay.address]).ok();
    let options = cached(&place, 64 << 20);
    let disk = open(&place, "v", &options);
    // Each new connection brings a little more than the one before.
    for kib in [1, 30, 100, 300, 700, 2000] {
        relay.cut(false, kib << 10);
        relay.sever();
        let at = numbers_at(kib, image.len() as u64);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| reads(&*disk, &image, at, 1 << 20));
            let begun = Instant::now();
            while !reader.is_finished() && begun.elapsed() < Duration::from_secs(2) {
                std::thread::sleep(Duration::from_millis(10));
            }
            relay.heal();
            relay.sever();
            reader.join().unwrap();
        });
    }
    reads_whole(&*disk, &image, 100_000);
}

/// The connection stands, and nothing comes: it is left for a new one after a quarter of a minute.
#[test]
fn reads_go_on_when_the_link_is_half_open() {
    let (place, server) = Place::served();
    let image = versions(&place, 1).remove(0);
    let relay = Relay::start(&server.address);
    place.run(&["retarget", &relay.address]).ok();
    let disk = open(&place, "v", &DiskOptions::default());
    reads(&*disk, &image, 0, 4096);
    relay.swallow();
    let begun = Instant::now();
    reads_whole(&*disk, &image, 1 << 20);
    assert!(begun.elapsed() > Duration::from_secs(5), "the link was not deaf");
}

fn numbers_at(seed: u64, len: u64) -> u64 {
    crate::common::program::Numbers(seed).below(len - (1 << 20))
}

#[test]
fn a_read_that_may_not_wait_ends_with_an_error_and_the_next_ones_are_right() {
    let (place, server) = Place::served();
    let image = versions(&place, 1).remove(0);
    let address = server.address.clone();
    let disk = open(&place, "v", &limited(Duration::from_millis(300)));
    reads(&*disk, &image, 0, 4096);
    server.kill();
    let begun = Instant::now();
    let mut out = vec![0; 4096];
    let late = disk.read(6 * MIB as u64, &mut out);
    assert!(matches!(late, Err(Error::TimedOut(_))), "{late:?}");
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(300) && waited < Duration::from_secs(3), "{waited:?}");
    // What is here needs no server.
    reads(&*disk, &image, 0, 4096);
    assert!(matches!(disk.extents(0, 4096 << 10, 10), Err(Error::TimedOut(_)) | Ok(_)));
    let _server = place.serve(&address);
    let until = Instant::now() + Duration::from_secs(30);
    while disk.read(6 * MIB as u64, &mut out).is_err() {
        assert!(Instant::now() < until, "it never came back");
    }
    reads_whole(&*disk, &image, 1 << 20);
}

#[test]
fn a_disk_is_closed_at_once_while_the_server_is_away() {
    let (place, server) = Place::served();
    versions(&place, 1);
    let disk = open(&place, "v", &cached(&place, 8 << 20));
    server.kill();
    disk.prefetch(0, 8 << 20).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let begun = Instant::now();
    drop(disk);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// Waiting cannot help: the history is another one, or this machine may not read any more.
#[test]
fn reads_fail_at_once_where_waiting_cannot_help() {
    let (place, server) = Place::served();
    let image = versions(&place, 2).remove(0);
    let address = server.address.clone();
    let disk = open(&place, "v@1", &DiskOptions::default());
    reads(&*disk, &image, 0, 4096);
    server.stop();
    place.run(&["revoke", &place.name("store"), "laptop"]).ok();
    let _server = place.serve(&address);
    let begun = Instant::now();
    let mut out = vec![0; 4096];
    let refused = disk.read(6 * MIB as u64, &mut out);
    let Err(Error::Damaged(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("revoked"), "{why}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    let begun = Instant::now();
    assert!(disk.read(7 * MIB as u64, &mut out).is_err());
    assert!(begun.elapsed() < Duration::from_secs(1));
    reads(&*disk, &image, 0, 4096);
}
