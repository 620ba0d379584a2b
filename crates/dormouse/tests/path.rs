//! The whole path with the real program: copy, list, restore, come back, go on.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::program::{Numbers, Place, Said, same, same_store, text};
use rustix::process::Signal;

const MIB: usize = 1 << 20;

/// Noise, words, zeros and a copy of the noise.
fn image(seed: u64) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    let noise = numbers.noise(MIB);
    [&noise[..], &numbers.words(MIB), &vec![0; MIB], &noise, &numbers.noise(5000)].concat()
}

fn put(place: &Place, name: &str, bytes: &[u8]) {
    std::fs::write(place.path(name), bytes).unwrap();
}

fn listed(said: &Said) -> Vec<u64> {
    let json = said.json();
    json.as_array().unwrap().iter().map(|p| p["point"].as_u64().unwrap()).collect()
}

/// Mirrors three versions, half a second of the clock apart from each other.
fn three(place: &Place) -> [Vec<u8>; 3] {
    let mut content = image(1);
    [1u8, 2, 3].map(|version| {
        content[MIB / 2] = version;
        content[3 * MIB..3 * MIB + 10_000].fill(version);
        put(place, "v", &content);
        assert_eq!(place.mirror("v")["point"], version);
        std::thread::sleep(Duration::from_millis(20));
        content.clone()
    })
}

#[test]
fn any_point_comes_back_by_number_time_and_name_without_a_server() {
    let place = Place::joined();
    let versions = three(&place);
    let said = place.run(&["points", "v", "--json"]).ok();
    assert_eq!(listed(&said), [1, 2, 3]);
    let times: Vec<_> = said.json().as_array().unwrap().to_vec();
    for (i, version) in versions.iter().enumerate() {
        place.restores(&format!("v@{}", i + 1), version);
        let received = times[i]["received"].as_str().unwrap();
        place.restores(&format!("v@{received}"), version);
    }
    for what in ["v", "v@latest", "v@now", "v@0 s ago"] {
        place.restores(what, &versions[2]);
    }
    let dest = place.name("d");
    for when in ["yesterday", "2 days ago", "1h ago", "2001-01-01", "2001-01-01T10:00:00Z"] {
        let what = format!("v@{when}");
        place
            .run(&["restore", &what, &dest])
            .fails(4, &["no consistent point at or before", "the oldest is point 1"]);
        assert!(!Path::new(&dest).exists());
    }
    let shown = place.run(&["points"]).ok().out;
    assert_eq!(shown.lines().count(), 4, "{shown}");
    assert!(shown.contains("settled"), "{shown}");
    let shown = place.run(&["volumes"]).ok().out;
    assert!(shown.contains("v ") && shown.contains("settled"), "{shown}");
    place.run(&["verify", "v@2"]).ok();
    place.run(&["scrub", &place.name("store")]).ok();
}

#[test]
fn an_older_copy_gets_only_what_differs() {
    let (place, _server) = Place::served();
    let versions = three(&place);
    let size = versions[0].len() as u64;
    let differ = |a: &[u8], b: &[u8]| {
        a.chunks(4096).zip(b.chunks(4096)).filter(|(a, b)| a != b).count() as u64 * 4096
    };
    put(&place, "d", &versions[0]);
    let inode = std::fs::metadata(place.path("d")).unwrap().ino();
    let dest = place.name("d");
    let restore = |what: &str| {
        place.run(&["restore", what, &dest, "--in-place", "--json"]).ok().event("done")
    };
    let done = restore("v@3");
    same(Path::new(&dest), &versions[2]);
    assert_eq!(done["written_bytes"], differ(&versions[0], &versions[2]));
    assert!(done["received_bytes"].as_u64().unwrap() < 2 * MIB as u64, "{done}");
    assert_eq!(restore("v@3")["written_bytes"], 0);
    assert_eq!(restore("v@1")["written_bytes"], differ(&versions[0], &versions[2]));
    // A copy that is shorter, longer, or has data where there should be zeros.
    let file = OpenOptions::new().write(true).open(&dest).unwrap();
    file.set_len(size / 3).unwrap();
    restore("v@1");
    same(Path::new(&dest), &versions[0]);
    file.set_len(size * 2).unwrap();
    file.write_all_at(&[7; 4097], size - 2).unwrap();
    file.write_all_at(&[7; 1], 2 * MIB as u64 + 5000).unwrap();
    let written = restore("v@1")["written_bytes"].as_u64().unwrap();
    assert!((1..=3 * 4096).contains(&written), "{written}");
    same(Path::new(&dest), &versions[0]);
    assert_eq!(std::fs::metadata(&dest).unwrap().ino(), inode);
    // What is not of that volume at all becomes it.
    put(&place, "d", &Numbers(99).noise(MIB));
    restore("v@2");
    same(Path::new(&dest), &versions[1]);
    place.run(&["restore", "v@1", &dest, "--force"]).ok();
    same(Path::new(&dest), &versions[0]);
}

#[test]
fn a_file_that_is_written_meanwhile_gives_a_fuzzy_point_that_nobody_gets_unasked() {
    let place = Place::joined();
    let first = image(5);
    put(&place, "v", &first);
    place.mirror("v");
    let mut file = OpenOptions::new().append(true).open(place.path("v")).unwrap();
    let stop = AtomicBool::new(false);
    let said = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                file.write_all(&[5; 512]).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let said = place.run(&["mirror", &place.name("v"), "--once", "--json"]);
        stop.store(true, Ordering::Relaxed);
        said
    });
    let said = said.fails(3, &["point 2 of 'v' is only fuzzy", "was written while it was read"]);
    let done = said.event("done");
    assert_eq!(done["grade"], "fuzzy");
    assert_eq!(listed(&place.run(&["points", "v", "--json"]).ok()), [1]);
    assert_eq!(listed(&place.run(&["points", "v", "--all", "--json"]).ok()), [1, 2]);
    assert!(place.run(&["points"]).ok().out.contains("1 fuzzy"));
    place.restores("v", &first);
    place.restores("v@now", &first);
    let dest = place.name("d");
    place.run(&["restore", "v@2", &dest]).fails(4, &["point 2 is only fuzzy", "--fuzzy"]);
    place.run(&["restore", "v@2", &dest, "--fuzzy"]).ok();
    // What is verified is what would come back, unless the fuzzy one is asked for.
    let verified = |args: &[&str]| {
        let said = place.run(&[&["verify", "--json"], args].concat()).ok();
        (said.event("chosen")["point"].as_u64(), said.event("done")["bad_chunks"].as_u64())
    };
    assert_eq!(verified(&["v"]), (Some(1), Some(0)));
    assert_eq!(verified(&["v@latest"]), (Some(1), Some(0)));
    assert_eq!(verified(&["v@now"]), (Some(1), Some(0)));
    assert_eq!(verified(&["v@2"]), (Some(2), Some(0)));
    assert_eq!(verified(&["v", "--fuzzy"]), (Some(2), Some(0)));
    let size = done["size"].as_u64().unwrap() as usize;
    same(Path::new(&dest), &std::fs::read(place.path("v")).unwrap()[..size]);
    // The next copy of the file at rest is settled again.
    assert_eq!(place.mirror("v")["grade"], "settled");
    place.restores("v", &std::fs::read(place.path("v")).unwrap());
}

#[test]
fn the_kit_and_the_server_bring_everything_to_a_new_machine() {
    let (place, server) = Place::served();
    let versions = three(&place);
    std::fs::rename(place.path("home"), place.path("lost")).unwrap();
    std::fs::remove_dir_all(place.path("lost")).unwrap();
    std::fs::remove_file(place.path("v")).unwrap();

    let kit = place.name("kit");
    let said = place.run_in("new", &["join", "--kit", &kit]).ok();
    assert!(said.out.contains("laptop-"), "{said:?}");
    assert_eq!(listed(&place.run_in("new", &["points", "v", "--json"]).ok()), [1, 2, 3]);
    for (i, version) in versions.iter().enumerate() {
        place.restores_in("new", &format!("v@{}", i + 1), version);
    }
    let said = place.run_in("new", &["restore", "v", &place.name("v")]).ok();
    assert!(said.err.contains("freshness unproven"), "{said:?}");
    place.run_in("new", &["verify", "v"]).ok();
    // It goes on where the other one ended, if told so.
    let v = place.name("v");
    place.run_in("new", &["mirror", &v, "--once"]).fails(12, &["held", "--takeover"]);
    let said = place.run_in("new", &["mirror", &v, "--once", "--takeover", "--json"]).ok();
    let done = said.event("done");
    assert_eq!((&done["point"], &done["changed_bytes"]), (&4.into(), &0.into()));
    place.restores_in("new", "v", &versions[2]);
    // A second kit is as good as the first; a server that is not there has its words.
    place.run_in("new", &["recovery-kit", &place.name("kit2"), "--paper"]).ok();
    server.stop();
    place.run_in("newer", &["join", "--kit", &place.name("kit2")]).fails(6, &["refused"]);
    assert!(!place.path("newer/client.toml").exists());
}

#[test]
fn the_kit_of_a_directory_brings_everything_back() {
    let place = Place::joined();
    let versions = three(&place);
    std::fs::remove_dir_all(place.path("home")).unwrap();
    // Also from where it was moved to.
    std::fs::rename(place.path("store"), place.path("moved")).unwrap();
    let (kit, moved) = (place.name("kit"), place.name("moved"));
    place.run(&["join", "--kit", &kit]).fails(4, &["no store"]);
    place.run(&["join", &moved, "--kit", &kit]).ok();
    for (i, version) in versions.iter().enumerate() {
        place.restores(&format!("v@{}", i + 1), version);
    }
}

#[test]
fn a_second_machine_writes_into_the_vault_and_cannot_read() {
    let (place, server) = Place::served();
    let content = image(8);
    put(&place, "v", &content);
    place.mirror("v");
    for (name, trusted) in [("desk", false), ("nas", true)] {
        let file = place.name(&format!("{name}.writer"));
        let mut args = vec!["vault", "export-writer", &file, "--name", name];
        if trusted {
            args.push("--trusted");
        }
        place.run(&args).ok();
        let invite = place.invite(name, &server);
        place.run_in(name, &["join", &invite, "--vault", &file]).ok();
        std::fs::remove_file(&file).unwrap();
        let volume = format!("{name}-disk");
        let v = place.name("v");
        let args = ["mirror", &v, "--once", "--json", "--volume", &volume];
        let done = place.run_in(name, &args).ok().event("done");
        // Whom nobody trusts sends everything itself; whom all trust sends nothing.
        let sent = done["chunks_sent"].as_u64().unwrap();
        assert_eq!(sent == 0, trusted, "{done}");
        place.run_in(name, &["mirror", &v, "--once"]).fails(12, &["held", "--takeover"]);
        let dest = place.name("d");
        place.run_in(name, &["restore", &volume, &dest]).fails(10, &["identity", "kit"]);
        assert!(!Path::new(&dest).exists());
        place.restores(&volume, &content);
    }
    let volumes = place.run(&["volumes", "--json"]).ok().json();
    let writers: Vec<_> = volumes.as_array().unwrap().iter().map(|v| v["writer"].clone()).collect();
    assert_eq!(writers, ["desk", "nas", "laptop"]);
    place.restores("v", &content);
}

fn copy_dir(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_server_that_went_back_in_time_is_found_out() {
    let (place, server) = Place::served();
    let address = server.address.clone();
    let content = image(3);
    put(&place, "v", &content);
    let put_back = |name: &str| {
        std::fs::remove_dir_all(place.path("store")).unwrap();
        copy_dir(&place.path(name), &place.path("store"));
        place.serve(&address)
    };
    server.stop();
    copy_dir(&place.path("store"), &place.path("store-0"));
    let server = place.serve(&address);
    place.mirror("v");
    server.stop();
    copy_dir(&place.path("store"), &place.path("store-1"));
    let server = place.serve(&address);
    put(&place, "v", &image(4));
    place.mirror("v");
    server.stop();
    copy_dir(&place.path("store"), &place.path("store-2"));

    let (v, dest) = (place.name("v"), place.name("d"));
    let tries = [
        &["mirror", &v, "--once"][..],
        &["mirror", &v, "--once", "--takeover"],
        &["restore", "v", &dest],
        &["restore", "v@2", &dest],
        &["verify", "v"],
        &["points", "v"],
    ];
    let server = put_back("store-1");
    let before = place.store();
    for args in tries {
        place.run(args).fails(9, &["lost history", "point 1", "point 2", "older state"]);
    }
    same_store(&before, &place.store());
    assert!(!Path::new(&dest).exists());
    server.stop();
    let server = put_back("store-0");
    for args in tries {
        place.run(args).fails(9, &["does not show volume 'v'", "older state"]);
    }
    server.stop();
    // The right one is taken again.
    let server = put_back("store-2");
    place.restores("v@1", &content);
    place.mirror("v");
    server.stop();
    // Another history, made by who holds the kit.
    let server = put_back("store-1");
    place.run_in("other", &["join", "--kit", &place.name("kit")]).ok();
    for _ in 0..3 {
        place.run_in("other", &["mirror", &v, "--once", "--takeover"]).ok();
    }
    for args in tries {
        place.run(args).fails(9, &["another history", "point 3"]);
    }
    server.stop();
}

#[test]
fn sources_of_every_odd_size_come_back() {
    let (place, _server) = Place::served();
    let all = Numbers(12).noise(MIB + 1);
    for size in [0, 1, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1] {
        put(&place, "v", &all[..size]);
        let volume = format!("v{size}");
        let v = place.name("v");
        let args = ["mirror", &v, "--once", "--json", "--volume", &volume];
        let done = place.run(&args).ok().event("done");
        assert_eq!(done["size"], size);
        place.restores(&volume, &all[..size]);
        place.run(&["verify", &volume]).ok();
    }
    // One volume through all sizes, down and up.
    for (i, size) in [MIB + 1, 4095, 0, 1, MIB].into_iter().enumerate() {
        put(&place, "w", &all[..size]);
        assert_eq!(place.mirror("w")["point"], i + 1);
        place.restores("w", &all[..size]);
    }
    place.restores("w@1", &all);
    place.restores("w@3", &[]);
}

#[test]
fn a_sparse_source_costs_what_it_holds_and_comes_back_sparse() {
    let (place, _server) = Place::served();
    let size = 300u64 << 30;
    let file = std::fs::File::create(place.path("v")).unwrap();
    file.set_len(size + 1).unwrap();
    let marks = [(0, 1), (77 << 30, 2), ((200 << 30) + 4095, 3), (size, 4)];
    for (at, mark) in marks {
        file.write_all_at(&[mark], at).unwrap();
    }
    let began = Instant::now();
    let done = place.mirror("v");
    assert!(done["read_bytes"].as_u64().unwrap() < MIB as u64, "{done}");
    assert!(done["link_sent_bytes"].as_u64().unwrap() < 64 << 10, "{done}");
    let dest = place.name("d");
    place.run(&["restore", "v", &dest]).ok();
    let restored = std::fs::File::open(&dest).unwrap();
    let meta = restored.metadata().unwrap();
    assert_eq!(meta.len(), size + 1);
    assert!(meta.blocks() * 512 < MIB as u64, "{} blocks", meta.blocks());
    for (at, mark) in marks {
        let mut byte = [0];
        restored.read_exact_at(&mut byte, at).unwrap();
        assert_eq!(byte[0], mark);
    }
    // What was data becomes a hole.
    file.set_len(1 << 30).unwrap();
    place.mirror("v");
    place.run(&["restore", "v", &dest, "--in-place"]).ok();
    assert_eq!(std::fs::metadata(&dest).unwrap().len(), 1 << 30);
    place.run(&["verify", "v@1"]).ok();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[test]
fn events_are_json_lines_with_what_scripts_need() {
    let (place, server) = Place::served();
    put(&place, "v", &image(2));
    let v = place.name("v");
    let mirrored = place.run(&["mirror", &v, "--once", "--json"]).ok();
    assert_eq!(mirrored.event("start")["size"], image(2).len());
    let done = mirrored.event("done");
    let number = |field: &str| done[field].as_u64().unwrap_or_else(|| panic!("{field}: {done}"));
    assert_eq!(number("chunks"), number("chunks_known") + number("chunks_sent"));
    assert!(number("sent_bytes") > MIB as u64 && number("sent_bytes") < number("link_sent_bytes"));
    assert!(number("read_bytes") >= number("changed_bytes"));
    let again = place.mirror("v");
    assert_eq!((&again["changed_bytes"], &again["chunks_sent"]), (&0.into(), &0.into()));
    assert!(again["link_sent_bytes"].as_u64().unwrap() < 64 << 10, "{again}");

    let hash = again["hash"].as_str().unwrap();
    let dest = place.name("d");
    let args = ["restore", "v", &dest, "--json", "--expect-head", hash];
    let restored = place.run(&args).ok();
    let chosen = restored.event("chosen");
    assert_eq!((&chosen["point"], &chosen["hash"]), (&2.into(), &again["hash"]));
    assert_eq!(chosen["fresh"], true);
    assert_eq!(restored.event("done")["dest"], dest);
    let verified = place.run(&["verify", "v", "--json"]).ok();
    assert_eq!(verified.event("done")["bad_chunks"], 0);
    let status = place.run(&["status", "--json"]).ok().json();
    assert_eq!((&status["reached"], &status["client"]), (&true.into(), &"laptop".into()));
    let volumes = place.run(&["volumes", "--json"]).ok().json();
    assert_eq!(volumes[0]["head"]["point"], 2);
    let points = place.run(&["points", "--json"]).ok().json();
    assert_eq!((&points[0]["volume"], &points[1]["hash"]), (&"v".into(), &again["hash"]));
    let clients = place.run(&["clients", &place.name("store"), "--json"]).ok().json();
    assert_eq!(clients["clients"][0]["client"], "laptop");
    // A scrub also runs beside the server.
    for live in [true, false] {
        let scrubbed = place.run(&["scrub", &place.name("store"), "--json"]).ok().event("done");
        assert_eq!((&scrubbed["findings"], &scrubbed["live"]), (&0.into(), &live.into()));
        if live {
            server.signal(Signal::TERM);
            std::thread::sleep(Duration::from_millis(300));
        }
    }
    let status = place.run(&["status", "--json"]).fails(6, &["refused"]).json();
    assert_eq!((&status["reached"], &status["exit_class"]), (&false.into(), &6.into()));
}

#[test]
fn the_kit_is_asked_for_until_it_is_written() {
    let place = Place::new();
    place.run(&["join", &place.name("store")]).ok();
    put(&place, "v", b"v");
    let (v, kit) = (place.name("v"), place.name("kit"));
    assert!(place.run(&["status"]).ok().out.contains("no recovery kit was written"));
    let said = place.run(&["mirror", &v, "--once"]).ok();
    assert!(said.err.contains("no recovery kit was written"), "{said:?}");
    place.run(&["recovery-kit", &kit]).ok();
    place.run(&["recovery-kit", &kit]).fails(8, &["exists already"]);
    assert!(!place.run(&["status"]).ok().out.contains("kit"));
    let said = place.run(&["mirror", &v, "--once"]).ok();
    assert!(!said.err.contains("kit"), "{said:?}");
}

#[test]
fn of_two_copies_to_one_volume_at_once_the_second_is_told() {
    let (place, server) = Place::served();
    let content = image(6);
    put(&place, "v", &content);
    let v = place.name("v");
    // The first waits for a server that sleeps.
    server.signal(Signal::STOP);
    let mut first = place.start(&["mirror", &v, "--once"]);
    let began = Instant::now();
    let holds = |pid: u32| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|e| std::fs::read_link(e.path()).ok()).any(|p| text(&p) == v)
    };
    while !holds(first.child.id()) {
        assert!(began.elapsed() < Duration::from_secs(5) && !first.ended());
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = first.child.id().to_string();
    place.run(&["mirror", &v, "--once"]).fails(12, &["in use", &pid, "wait"]);
    server.signal(Signal::CONT);
    first.wait().ok();
    place.run(&["mirror", &v, "--once"]).ok();
    assert_eq!(listed(&place.run(&["points", "v", "--json"]).ok()), [1, 2]);
    place.restores("v", &content);
    // A directory is held by whoever works on it.
    place.run_in("b", &["join", &place.name("store")]).fails(12, &["in use"]);
}

/// A home that was copied to another machine (by its /etc/machine-id) asks before it takes a volume,
/// and then the first one does; on its own machine a home is never asked.
#[test]
fn a_cloned_machine_and_its_origin_do_not_fight() {
    if !common::program::is_root("another machine-id") || !Path::new("/etc/machine-id").exists() {
        eprintln!("SKIPPED: a machine is told by /etc/machine-id, which is laid over here (root)");
        return;
    }
    let (place, server) = Place::served();
    std::fs::write(place.path("v"), Numbers(31).noise(200 << 10)).unwrap();
    let volume = ["mirror", &place.name("v"), "--once", "--volume", "v"];
    place.run(&volume).ok();
    for (path, bytes) in common::snapshot(&place.path("home")) {
        let to = place.path("clone").join(path.strip_prefix(place.path("home")).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::write(to, bytes).unwrap();
    }
    // On the same machine it is the same instance.
    place.run_in("clone", &volume).ok();
    place.run(&volume).ok();
    std::fs::write(place.path("machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
    let elsewhere = |more: &[&str]| {
        let lay = "mount --make-rprivate / && mount --bind \"$0\" /etc/machine-id && exec \"$@\"";
        let mut command = std::process::Command::new("unshare");
        command.args(["-m", "sh", "-c", lay, &place.name("machine-id"), common::program::PROGRAM]);
        let out =
            command.args(volume).args(more).env("DORMOUSE_HOME", place.path("clone")).output();
        let out = out.unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (code, said) = elsewhere(&[]);
    assert_eq!(code, Some(12), "{said}");
    assert!(said.contains("another machine with this one's keys"), "{said}");
    assert!(said.contains("--takeover"), "{said}");
    assert_eq!(elsewhere(&["--takeover"]).0, Some(0));
    assert_eq!(elsewhere(&[]).0, Some(0), "it has the volume now");
    place.run(&volume).fails(12, &["another machine with this one's keys", "--takeover"]);
    server.stop();
}
