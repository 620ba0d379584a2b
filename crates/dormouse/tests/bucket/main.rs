//! A store in object storage, with the real program and a real S3 server: kills, a lost machine,
//! eviction, a network that cuts, two servers, and what is refused.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

#[path = "../common/mod.rs"]
mod common;
mod house;
mod joined;
mod s3;

use std::time::{Duration, Instant};

use common::program::Numbers;
use house::{House, from_env};
use s3::S3;

const MIB: usize = 1 << 20;

/// Every point that was acknowledged stays, bit for bit, whatever dies.
#[test]
fn nothing_that_the_bucket_acknowledged_is_lost() {
    let seed = from_env("DORMOUSE_BUCKET_SEED").unwrap_or(0);
    let cycles = from_env("DORMOUSE_BUCKET_CYCLES").unwrap_or(3);
    let mut numbers = Numbers(seed);
    let mut house = House::new(&["--durable", "remote", "--cache", "4MiB"]);
    house.join();
    // More than a segment, so that one is sealed, and leaves this machine.
    let mut image = numbers.noise(70 * MIB);
    house.write("v", &image);
    house.mirror();
    house.evicted();
    house.s3.leave_unanswered(20);
    for cycle in 0..cycles {
        for _ in 0..3 {
            let at = numbers.below((image.len() - MIB) as u64) as usize;
            let noise = numbers.noise(MIB / 2);
            image[at..at + noise.len()].copy_from_slice(&noise);
        }
        house.write("v", &image);
        let before = house.points();
        let mut client = house.place.start(&["mirror", &house.place.name("v"), "--once"]);
        std::thread::sleep(Duration::from_millis(numbers.below(200)));
        let cut = cycle % 3 == 1;
        if cut {
            house.relay.sever();
        } else {
            house.kill();
        }
        let said = client.wait();
        println!("cycle {cycle}: {}: {:?}", if cut { "cut" } else { "kill" }, said.code);
        if !cut {
            if cycle % 2 == 0 {
                house.lose_machine();
            }
            house.serve(&[]);
        }
        let after = house.points();
        assert_eq!(after[..before.len()], before[..], "cycle {cycle}");
        assert!(said.code != Some(0) || after.len() > before.len(), "cycle {cycle}");
        house.mirror();
        house.place.restores("v", &image);
    }
    house.s3.leave_unanswered(0);
    house.stop();
    house.scrub();
    house.lose_machine();
    house.serve(&[]);
    house.place.restores("v", &image);
    house.nothing_was_overwritten();
}

/// The bucket is away: what this disk acknowledged waits, and comes there later.
#[test]
fn with_durable_local_copies_go_on_without_the_bucket() {
    let mut numbers = Numbers(7);
    let mut house = House::new(&[]);
    house.join();
    let mut image = numbers.noise(3 * MIB);
    house.write("v", &image);
    house.mirror();
    // Neither what is asked from now on nor what is under way comes through.
    house.relay.cut(true, 0);
    house.relay.sever();
    image[..MIB].copy_from_slice(&numbers.noise(MIB));
    house.write("v", &image);
    house.mirror();
    house.place.restores("v", &image);
    // Killed with something that only this disk has, and nobody comes for a while.
    house.kill();
    house.relay.heal();
    house.serve(&[]);
    house.stop();
    house.lose_machine();
    house.serve(&[]);
    house.place.restores("v", &image);
}

#[test]
fn of_two_servers_one_writes() {
    let mut numbers = Numbers(9);
    let mut house = House::new(&["--durable", "remote"]);
    house.join();
    let mut image = numbers.noise(2 * MIB);
    house.write("v", &image);
    house.mirror();
    let other = house.place.name("other");
    let key = house.key_copy();
    let rebuild = ["rebuild", house::URL, "--state", &other, "--server-key", &key];
    house.run(&rebuild).fails(12, &["is held by the server on", "--takeover"]);
    assert!(!house.place.path("other/dormouse-store").exists());
    let _ = std::fs::remove_dir_all(&other);
    let taken: Vec<&str> = rebuild.into_iter().chain(["--takeover"]).collect();
    house.run(&taken).ok();
    // The first still serves, and acknowledges nothing more.
    image[..100].copy_from_slice(&numbers.noise(100));
    house.write("v", &image);
    let said = house.place.run(&["mirror", &house.place.name("v"), "--once"]);
    assert_ne!(said.code, Some(0), "{said:?}");
    house.kill();
    house.state = "other".into();
    house.serve(&[]);
    assert_eq!(house.points().len(), 1);
    house.mirror();
    house.place.restores("v", &image);
}

/// `s3s-fs` as it is: looks first, writes then.
#[test]
fn a_storage_whose_create_does_not_exclude_is_refused() {
    let mut house = House::on(S3::start(false), &["--only-server"]);
    let state = house.place.name("state");
    let args = ["serve", house::URL, "--state", &state, "--listen", "127.0.0.1:0"];
    house.run(&args).fails(8, &["If-None-Match", "overwrite each other", "--only-server"]);
    assert!(house.s3.objects().iter().all(|(name, _)| !name.contains("leases")));
    // Who promises to be alone may use it.
    house.serve(&[]);
    house.join();
    let image = Numbers(3).noise(300_000);
    house.write("v", &image);
    house.mirror();
    house.stop();
    house.serve(&[]);
    house.place.restores("v", &image);
}

#[test]
fn what_cannot_work_says_why() {
    let house = House::on(S3::start(true), &[]);
    let state = house.place.name("state");
    let serve = |url: &str| {
        let args = ["serve", url, "--state", &state, "--listen", "127.0.0.1:0"];
        args.map(str::to_owned)
    };
    let run = |args: &[String], change: &[(&str, &str)]| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        house.run_changed(&args, change)
    };
    run(&["serve".into(), house::URL.into()], &[]).fails(2, &["--state DIR"]);
    run(&serve("s3://no bucket"), &[]).fails(2, &["s3://BUCKET/PREFIX"]);
    let nobody = [("AWS_ENDPOINT_URL", "http://127.0.0.1:1")];
    run(&serve(house::URL), &nobody).fails(6, &["does not answer", "AWS_ENDPOINT_URL"]);
    let wrong = [("AWS_SECRET_ACCESS_KEY", "wrong")];
    run(&serve(house::URL), &wrong).fails(5, &["refuses", "AWS_SECRET_ACCESS_KEY"]);
    let rebuild = ["rebuild", house::URL, "--state", &state].map(str::to_owned);
    run(&rebuild, &[]).fails(4, &["there is no store"]);
    run(&["clients".into(), house::URL.into()], &[]).fails(2, &["state directory"]);
}

/// The server's key goes to the bucket only sealed, and comes back with the identity.
#[test]
fn the_key_comes_back_with_its_identity_and_the_state_is_no_store_of_its_own() {
    let identity = dormouse_crypt::Identity::generate();
    let recipient = identity.recipient().to_string();
    let mut house = House::new(&["--key-to", &recipient]);
    house.join();
    house.write("v", &Numbers(1).noise(100_000));
    house.mirror();
    let key = std::fs::read_to_string(house.place.path("state/server.key")).unwrap();
    house.stop();
    let all = house.s3.objects();
    let seed = key.lines().next().unwrap();
    let raw = dormouse::text::unhex(seed).unwrap();
    let shows = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).any(|w| w == what);
    assert!(all.iter().all(|(_, b)| !shows(b, seed.as_bytes()) && !shows(b, &raw)));
    assert!(all.iter().any(|(n, b)| n.contains("state/") && shows(b, b"laptop")), "it looks there");
    let join = ["join", &house.place.name("state")];
    house.place.run_in("third", &join).fails(8, &["is the state of the store in s3://"]);
    std::fs::remove_dir_all(house.place.path("state")).unwrap();
    let state = house.place.name("state");
    let rebuild = ["rebuild", house::URL, "--state", &state];
    house.run(&rebuild).fails(10, &["sealed", "--identity"]);
    let file = house.place.name("identity");
    std::fs::write(&file, &**identity.to_secret()).unwrap();
    house.run(&[&rebuild[..], &["--identity", &file]].concat()).ok();
    house.run(&rebuild).fails(8, &["is not empty"]);
    // A state directory knows its bucket.
    let began = Instant::now();
    house.serve_state();
    house.mirror();
    assert!(began.elapsed() < Duration::from_secs(50));
}
