//! The daemon's file: what it means, and each problem with its place and its words.

use super::*;
use crate::exit::text_of;

/// The problems of a text, as they are told.
fn problems(text: &str) -> Vec<String> {
    match Config::parse(text.as_bytes()) {
        Ok(config) => panic!("it was read: {config:?}"),
        Err(problems) => {
            problems.iter().map(|p| format!("{}:{}: {}", p.line, p.column, p.message)).collect()
        }
    }
}

const WHOLE: &str = r#"
status = "/run/dormouse/status.sock"
metrics = "[::1]:9187"

[[mirror]]
device = "/dev//disk/by-id/nvme-Dormouse_1/"
volume = "laptop-root"
point-every = "5s"
freeze = "never"
swap = "copy"
after-reboot = "trust"
limit = "10MiB"
tracker = "scan"
scan-every = "1h"
level = 0x3
hook-before = ["/usr/bin/psql", "-c", "CHECKPOINT"]
hook-after = ["/bin/true"]

[[mirror]]
device = "/dev/disk/by-id/ata-Disk:2"
"#;

#[test]
fn each_key_has_its_effect() {
    let config = Config::parse(WHOLE.as_bytes()).unwrap();
    assert_eq!(config.status.as_deref(), Some(Path::new("/run/dormouse/status.sock")));
    assert_eq!(config.metrics.unwrap().to_string(), "[::1]:9187");
    let hook = |program: &str, args: &[&str]| {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        Some(Hook { program: program.into(), args })
    };
    let first = MirrorConfig {
        device: "/dev/disk/by-id/nvme-Dormouse_1".into(),
        volume: "laptop-root".into(),
        point_every: Duration::from_secs(5),
        freeze: Freeze::Never,
        swap: Swap::Copy,
        after_reboot: AfterReboot::Trust,
        limit: NonZeroU64::new(10 << 20),
        tracker: Tracker::Scan,
        scan_every: Duration::from_secs(3600),
        level: 3,
        hook_before: hook("/usr/bin/psql", &["-c", "CHECKPOINT"]),
        hook_after: hook("/bin/true", &[]),
        takeover: false,
        same_disk: false,
    };
    let second = MirrorConfig::new("/dev/disk/by-id/ata-Disk:2".into());
    assert_eq!(second.volume, "ata-Disk2");
    assert_eq!(config.mirrors, [first, second]);
}

#[test]
fn metrics_anywhere_must_be_said() {
    let with = |text: &str| format!("{text}\n[[mirror]]\ndevice = \"/dev/x\"\n");
    let anywhere = with("metrics = \"0.0.0.0:1\"\nmetrics-anywhere = true");
    assert!(Config::parse(anywhere.as_bytes()).is_ok());
    for more in ["", "\nmetrics-anywhere = false"] {
        assert_eq!(
            problems(&with(&format!("metrics = \"0.0.0.0:1\"{more}"))),
            ["1:11: metrics: 0.0.0.0:1 can be reached from other machines; name 127.0.0.1 or \
                 [::1], or set metrics-anywhere = true"]
        );
    }
}

const DEVICE: &str = "must be the absolute path of a device, such as \"/dev/disk/by-id/…\"";
const POINT_EVERY: &str = "must be a duration from \"100ms\" to \"24h\", such as \"5s\" or \"1m\"";
const LIMIT: &str = "must be a rate of at least \"16KiB\" a second, such as \"10MiB\" or \"2.5MB\"";
const HOOK: &str = "must be a program with an absolute path and its arguments, such as \
                    [\"/usr/bin/psql\", \"-c\", \"CHECKPOINT\"]";
const MIRROR_MAY: &str = "is not known; [[mirror]] may hold device, volume, point-every, limit, \
                          scan-every, tracker, freeze, swap, after-reboot, level, hook-before, hook-after";

/// One bad line of a mirror, the column, and what is said of it.
#[test]
fn each_bad_value_is_told_with_its_place_and_what_is_allowed() {
    let cases = [
        ("device = 5", 10, format!("device: {DEVICE}, not 5")),
        ("device = \"sda\"", 10, format!("device: {DEVICE}, not \"sda\"")),
        ("device = \"/\"", 10, format!("device: {DEVICE}, not \"/\"")),
        ("device = \"/dev/\\u0000\"", 10, format!("device: {DEVICE}, not \"/dev/\\u0000\"")),
        (
            "volume = \"a/b\"",
            10,
            "volume: must be 1 to 64 letters, digits, '.', '_' and '-', not \"a/b\"".into(),
        ),
        ("point-every = 5", 15, format!("point-every: {POINT_EVERY}, not 5")),
        ("point-every = \"soon\"", 15, format!("point-every: {POINT_EVERY}, not \"soon\"")),
        ("point-every = \"99ms\"", 15, format!("point-every: {POINT_EVERY}, not \"99ms\"")),
        ("point-every = \"25h\"", 15, format!("point-every: {POINT_EVERY}, not \"25h\"")),
        ("\tpoint-every=  \"\"", 16, format!("point-every: {POINT_EVERY}, not \"\"")),
        ("limit = \"10\"", 9, format!("limit: {LIMIT}, not \"10\"")),
        ("limit = \"10Mbit\"", 9, format!("limit: {LIMIT}, not \"10Mbit\"")),
        ("limit = \"16383B\"", 9, format!("limit: {LIMIT}, not \"16383B\"")),
        ("freeze = true", 10, "freeze: must be \"auto\" or \"never\", not true".into()),
        ("swap = 'off'", 8, "swap: must be \"skip\" or \"copy\", not 'off'".into()),
        ("freeze = 'Auto'", 10, "freeze: must be \"auto\" or \"never\", not 'Auto'".into()),
        ("tracker = \"bpf\"", 11, "tracker: must be \"ebpf\" or \"scan\", not \"bpf\"".into()),
        ("scan-every = \"1h\"", 14, "scan-every: is only for tracker = \"scan\"".into()),
        (
            "tracker = \"scan\"\nscan-every = \"9s\"",
            14,
            "scan-every: must be a duration of at least \"10s\", such as \"15m\", not \"9s\""
                .into(),
        ),
        ("level = 0", 9, "level: must be a number from 1 to 19, not 0".into()),
        ("level = 1.5", 9, "level: must be a number from 1 to 19, not 1.5".into()),
        ("level = 99999999999", 9, "level: must be a number from 1 to 19, not 99999999999".into()),
        ("hook-before = []", 15, format!("hook-before: {HOOK}, not []")),
        ("hook-after = \"/bin/x\"", 14, format!("hook-after: {HOOK}, not \"/bin/x\"")),
        ("hook-after = [\"x\"]", 14, format!("hook-after: {HOOK}, not [\"x\"]")),
        ("hook-after = [\"/bin/sh\",\n  1]", 14, format!("hook-after: {HOOK}, not [\"/bin/sh\",…")),
        ("takeover = true", 1, format!("takeover: {MIRROR_MAY}")),
        ("'ä' = 1", 1, format!("ä: {MIRROR_MAY}")),
    ];
    for (line, column, message) in cases {
        let (lead, base) = match line.contains("device") {
            true => ("[[mirror]]\n", 2),
            false => ("[[mirror]]\ndevice = \"/dev/x\"\n", 3),
        };
        let at = base + usize::from(line.starts_with("tracker = \"scan\"\n"));
        assert_eq!(problems(&format!("{lead}{line}\n")), [format!("{at}:{column}: {message}")]);
    }
}

#[test]
fn what_is_wrong_with_the_file_as_a_whole_is_told() {
    let least = "[[mirror]]\ndevice = \"/dev/x\"\n";
    let missing = "1:1: mirror: is missing: a [[mirror]] with a device is the least";
    assert_eq!(problems(""), [missing]);
    assert_eq!(problems("# nothing\n"), [missing]);
    assert_eq!(
        problems("[mirror]\ndevice = \"/dev/x\"\n"),
        ["1:1: mirror: must be tables, each headed [[mirror]], not [mirror]"]
    );
    assert_eq!(
        problems("mirror = 'x'"),
        ["1:10: mirror: must be tables, each headed [[mirror]], not 'x'"]
    );
    assert_eq!(
        problems(&format!("{least}[[mirror]]\nvolume = \"v\"\n")),
        [format!("3:1: device: is missing; it {DEVICE}")]
    );
    assert_eq!(
        problems(&format!("metric = 1\n{least}")),
        ["1:1: metric: is not known; the file may hold status, metrics-anywhere, metrics, mirror"]
    );
    assert_eq!(
        problems(&format!("status = \"run\"\n{least}")),
        ["1:10: status: must be an absolute path, not \"run\""]
    );
    assert_eq!(
        problems(&format!("metrics = \"localhost:1\"\n{least}")),
        ["1:11: metrics: must be an address and a port such as \"127.0.0.1:9187\", not \
             \"localhost:1\""]
    );
    let bytes = [b"# \xc3\xa4\n# x".as_slice(), &[0xff]].concat();
    let problem =
        Problem { line: 2, column: 4, key: None, message: "a byte that is not UTF-8".into() };
    assert_eq!(Config::parse(&bytes), Err(vec![problem]));
}

#[test]
fn doubled_devices_and_volumes_name_the_first() {
    let text = "[[mirror]]\ndevice = \"/dev/x\"\n[[mirror]]\nvolume = \"w\"\ndevice = \"/dev//x\"\n\
                [[mirror]]\ndevice = \"/dev/y\"\nvolume = \"x\"\n[[mirror]]\ndevice = \"/z/w\"\n";
    assert_eq!(
        problems(text),
        [
            "5:10: device: '/dev/x' is mirrored already, by line 2; once is enough",
            "8:10: volume: 'x' is mirrored already, by line 2; once is enough",
            "10:10: volume: 'w' is mirrored already, by line 4; once is enough",
        ]
    );
}

#[test]
fn all_errors_of_a_file_are_told_at_once() {
    let text = "metric = 1\n[[mirror]]\ndevice = \"sda\"\nlevel = 20\nx = 1\n\
                [[mirror]]\nfreeze = 1\n";
    let places: Vec<String> = problems(text)
        .iter()
        .map(|p| p.split(": ").take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        places,
        ["1:1 metric", "3:10 device", "4:9 level", "5:1 x", "6:1 device", "7:10 freeze"]
    );
    // Also those of the syntax, each with its place.
    let text = "status = \n[[mirror]]\ndevice = \"/dev/x\nlevel = 1 2\ndevice = \"/dev/y\"\n";
    let places: Vec<String> = problems(text)
        .iter()
        .map(|p| p.splitn(3, ':').take(2).collect::<Vec<_>>().join(":"))
        .collect();
    assert_eq!(places, ["1:10", "3:17", "4:9", "5:1"], "{:?}", problems(text));
}

#[test]
fn a_file_on_disk_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.toml");
    let missing = Config::load(&path).unwrap_err();
    assert_eq!(crate::exit::class_of(&missing), Class::NotFound);
    std::fs::write(&path, "[[mirror]]\ndevice = 1\nlevel = 0\n").unwrap();
    let error = Config::load(&path).unwrap_err();
    assert_eq!(crate::exit::class_of(&error), Class::Usage);
    let shown = path.display();
    let text = text_of(&error);
    assert!(
        text.starts_with(&format!("dormouse: {shown} has 2 errors\n  {shown}:2:10: ")),
        "{text}"
    );
    assert_eq!(text.lines().count(), 3);
    // Of a thousand errors the first are told.
    std::fs::write(&path, "x\n".repeat(1000)).unwrap();
    let text = text_of(&Config::load(&path).unwrap_err());
    assert_eq!(text.lines().count(), 2 + TOLD_MAX);
    assert!(text.contains("more"), "{text}");
}

#[test]
fn every_key_is_in_the_document() {
    let document = include_str!("../../../../../docs/daemon.md");
    let text = "x = 1\n[[mirror]]\nx = 1\n";
    let keys: Vec<String> = problems(text)
        .iter()
        .filter_map(|p| Some(p.split_once("may hold ")?.1.to_owned()))
        .flat_map(|keys| keys.split(", ").map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert_eq!(keys.len(), 16);
    for key in keys {
        assert!(document.contains(&format!("`{key}`")), "{key}");
    }
}
