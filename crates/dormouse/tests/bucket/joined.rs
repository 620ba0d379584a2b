//! What a store in a bucket does together with the rest: the jail, collection, second copies,
//! doctor, quotas.

use std::collections::BTreeMap;
use std::path::Path;

use dormouse::jail::probe::Found;

use crate::MIB;
use crate::common::program::{Numbers, Place, Serving};
use crate::house::{House, URL};
use crate::s3::S3;

/// The fields of a process's status.
fn status(of: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(of.join("status")).unwrap_or_default();
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().to_owned()))
    };
    text.lines().filter_map(field).collect()
}

fn children_of(pid: u32) -> Vec<BTreeMap<String, String>> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let all = all.map(|e| status(&e.path()));
    all.filter(|s| s.get("PPid").is_some_and(|p| *p == pid.to_string())).collect()
}

/// Whether this kernel has all layers of the jail; says so if not.
fn has_jail() -> bool {
    let place = Place::new();
    let dir = place.name("dir");
    std::fs::create_dir(&dir).unwrap();
    let found: Found =
        serde_json::from_str(&place.run(&["jail-probe", &dir, "--bucket"]).ok().out).unwrap();
    let missing: Vec<_> = found.layers.iter().filter(|layer| !layer.holds).collect();
    if !missing.is_empty() {
        eprintln!("SKIPPED: a server that requires its jail: layers are missing: {missing:?}");
    }
    missing.is_empty()
}

/// The endpoint is a name, so another process resolves it, in a jail of its own.
#[test]
fn every_thread_of_the_server_and_its_helper_are_in_a_jail_and_it_serves() {
    if !has_jail() {
        return;
    }
    let mut house = House::by_name(S3::start(true), &["--require-jail", "--durable", "remote"]);
    house.serve(&[]);
    house.join();
    let image = Numbers(5).noise(2 * MIB);
    house.write("v", &image);
    house.mirror();
    house.place.restores("v", &image);
    let server = house.pid();
    let tasks = std::fs::read_dir(format!("/proc/{server}/task")).unwrap();
    let tasks: Vec<_> = tasks.map(|task| status(&task.unwrap().path())).collect();
    assert!(tasks.len() >= 4, "{tasks:?}");
    let helpers = children_of(server);
    assert_eq!(helpers.len(), 1, "{helpers:?}");
    for task in tasks.iter().chain(&helpers) {
        let of = |name: &str| task[name].as_str();
        assert_eq!((of("NoNewPrivs"), of("Seccomp")), ("1", "2"), "{task:?}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(of(set), "0000000000000000", "{set} of {task:?}");
        }
    }
    let helper = Path::new("/proc").join(&helpers[0]["Pid"]);
    match std::fs::read(helper.join("environ")) {
        Ok(environment) => assert!(environment.is_empty(), "it has the server's environment"),
        Err(e) => eprintln!("SKIPPED: the helper's environment: only root reads it: {e}"),
    }
    house.stop();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while helper.exists() && status(&helper).get("State").is_some_and(|s| !s.starts_with('Z')) {
        assert!(std::time::Instant::now() < until, "it outlives its server");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    house.serve_state();
    house.place.restores("v", &image);
}

/// What is dead goes from the bucket, what is needed stays, and a lost machine finds all of it.
#[test]
fn collection_makes_room_in_the_bucket() {
    let mut numbers = Numbers(21);
    let mut house = House::new(&[]);
    house.join();
    let (dead, live) = (numbers.noise(6 * MIB), numbers.noise(MIB));
    house.write("v", &dead);
    house.mirror();
    house.write("w", &live);
    house.place.mirror("w");
    let state = house.place.name("state");
    let a_while = || std::thread::sleep(std::time::Duration::from_millis(1500));
    house.run(&["delete", "v", "--store", &state, "--grace", "1s"]).ok();
    a_while();
    house.run(&["prune", "--store", &state]).ok();
    a_while();
    let collect = ["collect", &state, "--grace", "1s", "--rate", "1GiB", "--json"];
    house.run(&collect).fails(12, &["a server that runs collects by itself"]);
    house.stop();
    let bytes = |house: &House| {
        let all = house.s3.objects().into_iter().filter(|(n, _)| n.contains(".seg"));
        all.map(|(_, b)| b.len()).sum::<usize>()
    };
    let before = bytes(&house);
    let done = house.run(&collect).ok().event("collected");
    assert!(done["retired"].as_u64().unwrap() >= 1, "{done}");
    // What was not removed at once goes at the next start.
    house.serve_state();
    house.place.restores("w", &live);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while bytes(&house) + 5 * MIB > before {
        assert!(std::time::Instant::now() < until, "{} of {before}", bytes(&house));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    house.place.restores("w", &live);
    house.stop();
    house.scrub();
    house.lose_machine();
    house.serve(&[]);
    house.place.restores("w", &live);
}

#[test]
fn a_second_copy_in_a_directory_takes_the_place_of_a_store_in_a_bucket() {
    let mut house = House::new(&["--durable", "remote", "--cache", "1MiB"]);
    house.join();
    let image = Numbers(31).noise(3 * MIB);
    house.write("v", &image);
    house.mirror();
    let (state, copy) = (house.place.name("state"), house.place.name("copy"));
    house.run(&["replicate", &state, URL]).fails(2, &["is a bucket", "state directory"]);
    let done = house.run(&["replicate", &state, &copy, "--json"]).ok().event("done");
    assert!(done["bytes"].as_u64().unwrap() > 3 << 20, "{done}");
    assert_eq!(house.run(&["replicate", &state, &copy, "--json"]).ok().event("done")["copied"], 0);
    // Where nothing is overwritten nothing is healed.
    house.run(&["scrub", &state, "--repair-from", &copy]).fails(8, &["nothing is overwritten"]);
    house.stop();
    house.place.run(&["promote", &copy]).ok();
    let server = Serving::start(Path::new(&copy), "127.0.0.1:0");
    house.place.run(&["retarget", &server.address]).ok();
    house.place.restores("v", &image);
    server.stop();
}

#[test]
fn commands_say_what_they_can_and_cannot_do_with_a_state_directory() {
    let mut house = House::new(&[]);
    house.join();
    house.write("v", &Numbers(41).noise(MIB));
    house.mirror();
    let state = house.place.name("state");
    let clients = house.place.run(&["clients", &state, "--json"]).ok().json();
    assert!(clients["clients"][0]["vault_bytes"].is_null(), "a part is not the whole: {clients}");
    let told = |house: &House| {
        let said = house.run(&["doctor", &state, "--json"]);
        let of_store = |e: &&serde_json::Value| e["part"] == "store";
        let text =
            |e: &serde_json::Value| format!("{} {}: {}", e["weight"], e["about"], e["found"]);
        said.events().iter().filter(of_store).map(text).collect::<Vec<_>>().join("\n")
    };
    let well = told(&house);
    assert!(well.contains("holds the store to which this directory is the state"), "{well}");
    assert!(well.contains("1 segments") && !well.contains("wrong"), "{well}");
    house.stop();
    // Without a server nobody says what is kept: the vault is open nowhere.
    let keep = ["prune", "--store", &state];
    house.run(&keep).fails(8, &["is the state of the store in s3://", "serve it"]);
    house.run(&["rebuild", &state]).ok();
    let seal = house.place.path("state/dormouse-store");
    std::fs::remove_file(&seal).unwrap();
    house.run(&["rebuild", &state]).fails(9, &["was the state of a store in a bucket", "s3://"]);
    assert!(!seal.exists(), "it did not become a store of its own");
    let plain = house.place.name("plain");
    house.run(&["rebuild", &plain, "--takeover"]).fails(2, &["only --new-key"]);
    house.relay.cut(true, 0);
    house.relay.sever();
}
