//! Real kernels for what this machine's kernel does not have: Debian's 6.12 under qemu's software
//! emulation, with ublk, NBD and the file systems.
//!
//! Owns: which scenes there are, and how they are told. Each scene is a script that runs as root
//! in a machine of its own, with the programs of this project; its status is the scene's. Leaves
//! to others: the kernel ([`kernel`]), what the machine boots from ([`image`]), the machine
//! ([`machine`]).

mod data_disk;
mod debian;
mod image;
mod kernel;
mod machine;
mod power;
mod reboot;
mod units;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use image::Image;
use kernel::Kernel;
use machine::Machine;

/// What no scene may exceed: emulation is slow, and other work runs beside it.
const LIMIT: Duration = Duration::from_secs(300);
/// Where everything lies that is fetched and made.
const PLACE: &str = "target/vm";

/// Functions that all scenes have.
const COMMON: &str = include_str!("vm/scenes/common.sh");

/// A script, and what it needs.
struct Scene {
    name: &'static str,
    what: &'static str,
    script: &'static str,
    modules: &'static [&'static str],
    /// Programs of packages that are not installed here: package, path in it.
    packages: &'static [(&'static str, &'static str)],
}

const SCENES: &[Scene] = &[
    Scene {
        name: "ublk",
        what: "ext4 by ublk: random work on files, its process killed twice, trim, fsck",
        script: concat!("VIA=ublk\n", include_str!("vm/scenes/files.sh")),
        modules: &["ublk_drv"],
        packages: &[],
    },
    Scene {
        name: "nbd",
        what: "the same by the kernel's NBD client",
        script: concat!("VIA=nbd\n", include_str!("vm/scenes/files.sh")),
        modules: &["nbd"],
        packages: &[],
    },
    Scene {
        name: "points-ublk",
        what: "points of a server by ublk: mounted, compared; process and server killed meanwhile",
        script: concat!("VIA=ublk\n", include_str!("vm/scenes/points.sh")),
        modules: &["ublk_drv", "xfs"],
        packages: &[],
    },
    Scene {
        name: "points-nbd",
        what: "the same by the kernel's NBD client",
        script: concat!("VIA=nbd\n", include_str!("vm/scenes/points.sh")),
        modules: &["nbd", "xfs"],
        packages: &[],
    },
    Scene {
        name: "nbd-client",
        what: "Debian's nbd-client and the NBD server: ext4, random work on files, fsck",
        script: include_str!("vm/scenes/nbd_client.sh"),
        modules: &["nbd"],
        packages: &[("nbd-client", "sbin/nbd-client")],
    },
];

/// A scene with a machine of its own kind.
struct Other {
    name: &'static str,
    what: &'static str,
    /// Why it cannot be played here.
    missing: fn() -> Option<String>,
    play: fn(&Kernel, &Path, &mut String) -> Result<()>,
}

const OTHERS: &[Other] = &[
    Other { name: reboot::NAME, what: reboot::WHAT, missing: || None, play: reboot::play },
    Other { name: units::NAME, what: units::WHAT, missing: units::missing, play: units::play },
    Other {
        name: data_disk::NAME,
        what: data_disk::WHAT,
        missing: debian::missing,
        play: data_disk::play,
    },
];

/// Programs of this project that go into every machine.
const PROGRAMS: &[(&str, &str)] = &[
    ("target/debug/dormouse", "/bin/dormouse"),
    ("target/debug/examples/attach_file", "/bin/attach_file"),
    ("target/debug/examples/file_work", "/bin/file_work"),
    ("target/debug/examples/sectors", "/bin/sectors"),
    ("target/debug/examples/serve_file", "/bin/serve_file"),
];

/// Programs of this machine that go along, where they are there.
const TOOLS: &[&str] = &["mke2fs", "e2fsck", "mkfs.xfs", "xfs_repair"];

/// Runs the scenes that are named, or all.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let (mut names, mut keep_log, mut as_built) = (Vec::new(), false, false);
    for argument in arguments {
        match argument.as_str() {
            "--log" => keep_log = true,
            // With the programs in target/debug as they are.
            "--no-build" => as_built = true,
            "--list" => return list(),
            name if names_of_all().any(|known| known == name) => {
                names.push(name);
            }
            other => bail!("there is no scene {other}: cargo xtask vm --list"),
        }
    }
    if let Some(why) = machine::missing() {
        eprintln!("SKIPPED: no machine can be emulated here: {why}");
        return Ok(ExitCode::SUCCESS);
    }
    if !as_built {
        build()?;
    }
    let place = std::path::absolute(PLACE)?;
    let kernel = Kernel::fetch(&place)?;
    println!("kernel {}", kernel.version());
    let wanted = |name: &str| names.is_empty() || names.contains(&name);
    let mut failed = 0;
    for scene in SCENES.iter().filter(|scene| wanted(scene.name)) {
        failed += usize::from(!told(scene.name, scene.what, keep_log, |log| {
            play(scene, &kernel, &place, log)
        }));
    }
    for scene in power::SCENES.iter().filter(|scene| wanted(scene.name)) {
        failed += usize::from(!told(scene.name, scene.what, keep_log, |log| {
            power::play(scene, &kernel, &place, log)
        }));
    }
    for scene in OTHERS.iter().filter(|scene| wanted(scene.name)) {
        if let Some(why) = (scene.missing)() {
            eprintln!("SKIPPED: {}: {why}", scene.name);
            continue;
        }
        let play = |log: &mut String| (scene.play)(&kernel, &place, log);
        failed += usize::from(!told(scene.name, scene.what, keep_log, play));
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn names_of_all() -> impl Iterator<Item = &'static str> {
    let names = SCENES.iter().map(|scene| scene.name);
    let power = power::SCENES.iter().map(|scene| scene.name);
    names.chain(power).chain(OTHERS.iter().map(|scene| scene.name))
}

fn list() -> Result<ExitCode> {
    for scene in SCENES {
        println!("{:<12} {}", scene.name, scene.what);
    }
    for scene in power::SCENES {
        println!("{:<12} {}", scene.name, scene.what);
    }
    for scene in OTHERS {
        println!("{:<12} {}", scene.name, scene.what);
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a scene and says how it went; what its machine said, if it failed.
fn told(
    name: &str,
    what: &str,
    keep_log: bool,
    play: impl FnOnce(&mut String) -> Result<()>,
) -> bool {
    let (began, mut log) = (Instant::now(), String::new());
    let done = play(&mut log);
    if keep_log || done.is_err() {
        println!("{log}");
    }
    let verdict = if done.is_ok() { "holds" } else { "FAILS" };
    println!("{verdict}: {name}: {what} ({:.0} s)", began.elapsed().as_secs_f64());
    if let Err(error) = &done {
        println!("  {error:#}");
    }
    done.is_ok()
}

fn build() -> Result<()> {
    for arguments in [&["-p", "dormouse"][..], &["-p", "dormouse-device", "--examples"]] {
        let cargo = Command::new("cargo").arg("build").arg("-q").args(arguments).status()?;
        ensure!(cargo.success(), "cargo build {} failed", arguments.join(" "));
    }
    Ok(())
}

/// What every machine boots from: programs, tools, a script.
fn image(kernel: &Kernel, modules: &[&str], script: &str) -> Result<Image> {
    let mut image = Image::new(kernel)?;
    for module in modules {
        image.module(kernel, module)?;
    }
    for (from, to) in PROGRAMS {
        image.program(Path::new(from), to)?;
    }
    for name in TOOLS {
        match machine::find(name) {
            Some(path) => image.program(&path, &format!("/usr/bin/{name}"))?,
            None => println!("{name} is not here: scenes go without it"),
        }
    }
    image.file("/run.sh", format!("{COMMON}\n{script}").as_bytes(), 0o755);
    Ok(image)
}

fn play(scene: &Scene, kernel: &Kernel, place: &Path, log: &mut String) -> Result<()> {
    let mut image = image(kernel, scene.modules, scene.script)?;
    for (package, path) in scene.packages {
        let program = kernel::package(place, package)?.join(path);
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        image.program(&program, &format!("/usr/bin/{name}"))?;
    }
    let initrd = place.join(format!("{}.initrd", scene.name));
    image.write(&initrd)?;
    let machine = Machine::boot(&kernel.file(), &initrd, &[])?;
    let status = machine.wait(LIMIT, log).with_context(|| format!("scene {}", scene.name))?;
    ensure!(status == 0, "the script has ended with status {status}");
    Ok(())
}

/// A new file of zeros, as a disk.
fn disk(place: &Path, name: &str, bytes: u64) -> Result<PathBuf> {
    let path = place.join(name);
    std::fs::File::create(&path)?.set_len(bytes)?;
    Ok(path)
}
