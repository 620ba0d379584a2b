//! Real peers: libnbd's tools, its Python binding, qemu's tools, fio. Each test says loudly
//! what it lacks, and is then skipped.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use dormouse_device::file::FileDevice;
use dormouse_device::layers::overlay::Overlay;
use dormouse_device::nbd::{Export, Exports, Listener, Server, Settings};

/// Whether a program is there; says so if not.
fn there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        eprintln!(
            "SKIPPED: {program} is not installed (qemu-utils, libnbd-bin, python3-libnbd, fio)"
        );
    }
    found
}

/// A raw file with data and holes, and a server that has it twice.
struct Served {
    dir: tempfile::TempDir,
    server: Server,
}

const SIZE: u64 = 64 << 20;

impl Served {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("raw");
        let mut bytes = vec![0; SIZE as usize];
        for (n, word) in bytes[..9 << 20].chunks_mut(8).enumerate() {
            word.copy_from_slice(&(n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
        bytes.copy_within(..1 << 20, 40 << 20);
        std::fs::write(&raw, &bytes).unwrap();
        // Zeros become holes.
        for (from, to) in [(9, 40), (41, 64)] {
            let file = std::fs::OpenOptions::new().write(true).open(&raw).unwrap();
            let how =
                rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, how, from << 20, (to - from) << 20).unwrap();
        }
        let lower = Arc::new(FileDevice::open(&raw, true).unwrap());
        let over = Overlay::open(lower.clone(), &dir.path().join("over"), "raw").unwrap();
        let export = |name: &str, device| Export {
            name: name.to_owned(),
            description: format!("the disk, {name}"),
            device,
        };
        let exports =
            Exports::new(vec![export("ro", lower), export("over lay", Arc::new(over))]).unwrap();
        let log = Arc::new(|line: &str| eprintln!("server: {line}"));
        let mut server = Server::new(exports, Settings { log: Some(log), ..Settings::default() });
        let listener = UnixListener::bind(dir.path().join("nbd")).unwrap();
        server.listen(Listener::Unix(listener)).unwrap();
        Self { dir, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.path("nbd").display())
    }
}

/// Runs a program to its end; what it said.
#[track_caller]
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new("timeout").arg("120").arg(program).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}{text}");
    text
}

fn same(a: &Path, b: &Path) -> bool {
    std::fs::read(a).unwrap() == std::fs::read(b).unwrap()
}

#[test]
fn nbdinfo_sees_disks_sizes_and_maps() {
    if !there("nbdinfo") {
        return;
    }
    let served = Served::new();
    let list = run("nbdinfo", &["--list", &served.uri("")]);
    assert!(list.contains("export=\"ro\"") && list.contains("export=\"over lay\""), "{list}");
    assert!(list.contains("the disk, ro"), "{list}");
    let info = run("nbdinfo", &[&served.uri("ro")]);
    for said in [
        "export-size: 67108864",
        "is_read_only: true",
        "can_multi_conn: true",
        "can_df: true",
        "base:allocation",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(info.contains(said), "'{said}' is not in {info}");
    }
    let map = run("nbdinfo", &["--map", &served.uri("ro")]);
    let rows: Vec<Vec<u64>> = map
        .lines()
        .map(|l| l.split_whitespace().take(3).map(|w| w.parse().unwrap()).collect())
        .collect();
    let mib = 1 << 20;
    let expected = [
        vec![0, 9 * mib, 0],
        vec![9 * mib, 31 * mib, 3],
        vec![40 * mib, mib, 0],
        vec![41 * mib, 23 * mib, 3],
    ];
    assert_eq!(rows, expected);
}

#[test]
fn nbdcopy_copies_both_ways() {
    if !there("nbdcopy") {
        return;
    }
    let served = Served::new();
    let out = served.path("out");
    run("nbdcopy", &[&served.uri("ro"), out.to_str().unwrap()]);
    assert!(same(&out, &served.path("raw")));
    // Into the overlay, over several connections; what lies below stays.
    let before = std::fs::read(served.path("raw")).unwrap();
    let mut other = before.clone();
    other[5 << 20..12 << 20].fill(0x5a);
    other[40 << 20..41 << 20].fill(0);
    std::fs::write(served.path("other"), &other).unwrap();
    let from = served.path("other");
    run("nbdcopy", &["--flush", from.to_str().unwrap(), &served.uri("over%20lay")]);
    run("nbdcopy", &[&served.uri("over%20lay"), out.to_str().unwrap()]);
    assert!(std::fs::read(&out).unwrap() == other);
    assert!(std::fs::read(served.path("raw")).unwrap() == before);
}

#[test]
fn nbdsh_tries_each_command() {
    if !there("nbdsh") {
        return;
    }
    let served = Served::new();
    let script = r#"
h.add_meta_context("base:allocation")
h.connect_uri(URI)
assert h.get_size() == 67108864 and h.is_read_only() == 0
assert h.can_fua() and h.can_flush() and h.can_trim() and h.can_zero() and h.can_fast_zero()
assert h.can_cache() and h.can_multi_conn() and h.can_df()
assert h.get_structured_replies_negotiated()
h.pwrite(b"x" * 5000, 1000, nbd.CMD_FLAG_FUA)
assert h.pread(5002, 999)[1:5001] == b"x" * 5000
assert h.pread(65536, 0, nbd.CMD_FLAG_DF)[1000:6000] == b"x" * 5000
h.zero(3000, 2000, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(5000, 1000) == b"x" * 1000 + bytes(3000) + b"x" * 1000
h.zero(1048576, 1048576, nbd.CMD_FLAG_FAST_ZERO)
h.trim(1048576, 4 * 1048576, nbd.CMD_FLAG_FUA)
h.cache(1048576, 0)
h.flush()
seen = []
def extents(context, offset, entries, err):
    assert context == "base:allocation"
    seen.extend(entries)
h.block_status(4 * 1048576, 2 * 1048576, extents)
assert seen[:2] == [3 * 1048576, 3], seen
try:
    h.pread(512, 67108864)
    assert False
except nbd.Error as error:
    assert error.errno == "EINVAL", error.errno
holes = []
def chunk(data, offset, status, err):
    holes.append((offset, len(data), status))
h.pread_structured(2097152, 8 * 1048576, chunk)
assert (9 * 1048576, 1048576, nbd.READ_HOLE) in holes, holes
h.shutdown()
"#;
    let script = script.replace("URI", &format!("{:?}", served.uri("over%20lay")));
    run("nbdsh", &["-c", &script]);
}

#[test]
fn qemu_img_converts_maps_and_compares() {
    if !there("qemu-img") {
        return;
    }
    let served = Served::new();
    let (raw, uri) = (served.path("raw"), served.uri("ro"));
    let info = run("qemu-img", &["info", &uri]);
    assert!(info.contains("64 MiB (67108864 bytes)"), "{info}");
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    assert!(map.contains("\"start\": 9437184, \"length\": 32505856"), "{map}");
    let out = served.path("out");
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, out.to_str().unwrap()]);
    assert!(same(&out, &raw));
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", raw.to_str().unwrap(), &uri]);
    let over = served.uri("over%20lay");
    let fresh = served.path("fresh");
    std::fs::write(&fresh, vec![0x77; SIZE as usize]).unwrap();
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", fresh.to_str().unwrap(), &over]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", fresh.to_str().unwrap(), &over]);
}

#[test]
fn qemu_io_reads_what_it_wrote() {
    if !there("qemu-io") {
        return;
    }
    let served = Served::new();
    let commands = [
        "write -P 0xab 12345 70000",
        "read -P 0xab 12345 70000",
        "write -f -P 0xcd 0 4096",
        "write -z -u 4096 65536",
        "read -P 0 4096 65536",
        "discard 1M 2M",
        "flush",
        "aio_write -P 0x11 10M 5M",
        "aio_write -P 0x22 20M 5M",
        "aio_flush",
        "read -P 0x11 10M 5M",
        "read -P 0x22 20M 5M",
    ];
    let mut args = vec!["-f", "raw"];
    commands.iter().for_each(|c| args.extend(["-c", c]));
    let uri = served.uri("over%20lay");
    args.push(&uri);
    let said = run("qemu-io", &args);
    assert!(!said.contains("failed") && said.matches("bytes at offset").count() >= 9, "{said}");
    let refused = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write 0 512", &served.uri("ro")])
        .output();
    assert!(!refused.unwrap().status.success());
}

#[test]
fn fio_verifies_what_it_wrote() {
    let engine = Command::new("fio").arg("--enghelp").output();
    if !engine.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("nbd")) {
        eprintln!("SKIPPED: fio with its nbd engine is not installed");
        return;
    }
    let served = Served::new();
    let uri = format!("--uri={}", served.uri("over%20lay"));
    let args = [
        "--name=x",
        "--ioengine=nbd",
        &uri,
        "--rw=randrw",
        "--bsrange=512-128k",
        "--iodepth=32",
        "--size=64m",
        "--io_size=128m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--serialize_overlap=1",
    ];
    run("fio", &args);
}

/// All at once, over one disk.
#[test]
fn many_peers_share_a_disk() {
    if !there("nbdcopy") {
        return;
    }
    let served = Served::new();
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (served, out) = (&served, served.path(&format!("out{n}")));
            scope.spawn(move || {
                run("nbdcopy", &[&served.uri("ro"), out.to_str().unwrap()]);
                assert!(same(&out, &served.path("raw")));
            });
        }
    });
    assert!(served.server.connections() <= 16);
}
