//! The project's own chores: `cargo xtask ci`, `tidy`, `crash`, `bench`, `fuzz`, `proof`.
//!
//! Owns the command line only; each chore has its own file. Nothing here is shipped.

mod bench;
mod bpf;
mod ci;
mod flips;
mod fuzz;
mod garage;
mod measure;
mod mutants;
mod proof;
mod random;
mod sim;
mod tidy;
mod vm;
mod world;

use std::env;
use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask COMMAND

commands:
  ci      format, lints, tests, tidy and the demo: what continuous integration runs
  tidy    rules of the source that no compiler checks
  sim     the simulator: real store and protocol on a faulty disk, network and clock
            SEED              one run, or the first; from the clock without it
            --runs N          so many seeds, one after the other; 200 without a SEED
            --family F        'sound' or 'rot': what the disk may do; 'kept': a sound one, and a
                              server with duties for years; by the seed without it
            --jobs N          at the same time; one for each processor without it
            --trace           every event to standard error
            --first           stops at the first seed that fails
            --canary          with syncs left out: must fail within a few seeds
  crash   crashes at every I/O of every sequence of up to three operations; nothing that was
          acknowledged may be lost
            --points N        crash points at least, 20000 without it
            --seed N          1 without it
            --jobs N          threads, as many as there are cores without it
            --one S:IO:PASS   one crash point alone, as a failure names it
  histories  random histories with forks, expiry, collection, clock jumps and crashes: nothing that
          a kept point needs may be lost, nothing else kept after the grace and two rounds
            --runs N          1000 without it
            --seed N          the first; 1 without it
            --jobs N          at the same time; one for each processor without it
            --one N           one history, with every step on standard error
            --copies          each is followed by a second copy, which is promoted and heals
            --buckets         the logs lie in object storage that fails; machines are lost
  flips   every byte, length, exchange and old version of a real small store and of the
          state of server and client; a sample of them without --all
            --all             every one
            --seed N          which store, and which sample; 1 without it
            --jobs N          at the same time; one for each processor without it
            --case N          one, as a violation names it
  mutants bugs on purpose, one after the other: each must be caught by a check
            NAME…             these only, without the run that has no bug
            --short           ten of them, likewise
            --all-checks      all checks that catch it, not the first only
            --jobs N          bugs at the same time; one for each processor without it
            --write           the table into docs/testing.md
            --list            what there is
  bpf     builds the programs that run in the kernel, with clang
            --check           compares what is built with what is committed
  bench   the published benchmark, against the peers that are installed
            --quick           a 1 GiB image and one round
            --rounds N        rounds, 3 without it
            --only NAME       this program only; may be given several times
            --json FILE       writes every figure of every round there
            --dormouse BIN    the program, target/release/dormouse without it
            --dir DIR         working directory, target/bench without it
  fuzz    [TARGET...] runs the fuzz targets, all without names, and tells what was reached
            --seconds N       each target, 60 without it
            --jobs N          targets at a time; as many as processors without it
            --minimise        makes the committed corpora anew out of what was found
            --seed            writes the seeds to the committed corpora
  garage  a store in a cluster of three Garage nodes, of which one is killed while a client writes
            --garage PATH     the program; found on PATH, or built once, without it
            --dormouse BIN    target/release/dormouse without it
            --dir DIR         target/garage without it
            --rounds N        copies, 12 without it
  vm      [SCENE...] on Debian's 6.12 kernel in qemu: attach by ublk and NBD, with kills and power cuts
            --list            what there is
            --log             what the machines said, also of scenes that hold
  proof   what no test can show in a second, on the real program; --dormouse and --dir as above
    sparse    a huge sparse disk on which random blocks change: bytes each way, stored, memory
            --size-tib N      1 without it
            --blocks N        blocks that change, 1000000 without it
            --base-blocks N   blocks that are there before; a quarter, at most 20000, without it
    latency   first copies over a link that delays each direction, against none
            --delay-ms N      50 without it
            --rounds N        3 without it
            --large           the 4 GiB image of bench, not the 1 GiB one
            --images DIR      bench's directory, target/bench without it
    follow     a mirror of a disk in use: what the tracker costs, lags, freezes, memory, traffic
            --seconds N       of load, 60 without it
    disks      points and volumes over NBD beside qemu-nbd and nbdkit, with fio; cold reads beside a
              restore; by FUSE and loop beside a loop device; until a huge disk is there (root)
            --part NAME       nbd, cold, loop or ready; all without it; may be given several times
            --seconds N       each run, 60 without it
            --rounds N        3 without it
            --image-mib N     size of the disk, 512 without it
            --size-tib N      of the huge one, 1 without it
    strangers  a first copy while strangers hold all places of the server, against none
            --connections N   strangers, 2000 without it
            --image-mib N     size of the disk, 512 without it
            --rounds N        3 without it
    herd      clients that come back at once, some that follow a disk meanwhile, many that say
              nothing, a first copy beside small commits: times, and the server's memory; also
              as `cargo xtask herd`
            --clients N       200 without it
    live      file systems in use by real programs, mirrored while the link is cut and both sides
              are killed: their points restored, and judged by fsck and by those programs
            --fs NAME         ext4, xfs or btrfs; all three without it; may be given several times
            --load NAME       ledger, tree, git, sqlite, postgres or fio; likewise
            --points N        points that are judged for each file system, 24 without it
            --rounds N        1 without it
            --seed N          of the faults and loads; from the clock without it
            --short           ext4 with ledger, tree and sqlite, four points";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode> {
    let Some((command, rest)) = arguments.split_first() else {
        bail!("no command given\n\n{USAGE}")
    };
    match command.as_str() {
        "ci" if rest.is_empty() => ci::run(),
        "tidy" if rest.is_empty() => tidy::run(),
        "crash" => sim::simulator("crash", rest),
        "histories" => sim::simulator("histories", rest),
        "bench" => bench::run(rest),
        "fuzz" => fuzz::run(rest),
        "proof" => proof::run(rest),
        "garage" => garage::run(rest),
        "herd" => proof::run(&[&[command.clone()][..], rest].concat()),
        "sim" if rest == ["--canary"] => sim::canary(),
        "sim" => sim::run(rest),
        "flips" => flips::run(rest),
        "bpf" => bpf::run(rest),
        "vm" => vm::run(rest),
        "mutants" => mutants::run(rest),
        measure::MEASURE => measure::measure_one(rest),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("unknown command or arguments: {}\n\n{USAGE}", arguments.join(" ")),
    }
}
