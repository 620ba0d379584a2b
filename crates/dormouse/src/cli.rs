//! The command line: flags and their help, nothing else.

pub mod attach;
pub mod bucket;
pub mod export;
pub mod host;
pub mod keep;
pub mod tenants;
pub mod track;
pub mod write;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::daemon::config::{AfterReboot, Freeze, Hook, MirrorConfig, Swap, Tracker};
use crate::daemon::quantity;
use crate::exit;

/// Keeps an encrypted copy of a disk, with its history, on another machine.
#[derive(Debug, Parser)]
#[command(name = "dormouse", version, after_help = exit::HELP, propagate_version = true)]
pub struct Cli {
    /// Where the program keeps its own files [default: $XDG_STATE_HOME/dormouse]
    #[arg(long, global = true, env = "DORMOUSE_HOME", value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// How long the other side may leave a question unanswered, or take nothing
    ///
    /// The link may be slow: a second more is given for each 8 KiB that crosses it.
    #[arg(
        long,
        global = true,
        env = "DORMOUSE_PATIENCE",
        value_name = "DURATION",
        default_value = "5m",
        hide_short_help = true
    )]
    pub patience: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a server on a store; made at the first start
    Serve {
        /// The store's directory, or s3://BUCKET/PREFIX
        store: PathBuf,
        /// Of a store in object storage.
        #[command(flatten)]
        bucket: bucket::BucketArgs,
        /// Where to listen [default: what server.toml says, or 127.0.0.1:7447]
        #[arg(long, value_name = "ADDR")]
        listen: Option<String>,
        /// How clients reach this server; kept in server.toml
        #[arg(long, value_name = "HOST:PORT")]
        url: Option<String>,
        /// Do not run where a layer of the jail does not hold; `dormouse doctor` shows them
        #[arg(long)]
        require_jail: bool,
        /// Where to show metrics for Prometheus, and health: unix:PATH, or a port on loopback
        #[arg(long, value_name = "unix:PATH|127.0.0.1:PORT")]
        metrics: Option<String>,
        /// How to log
        #[arg(long, value_enum, default_value = "text")]
        log: tenants::LogArg,
    },
    /// Invite a client to a store; works while the server runs
    Invite {
        /// The store's directory
        store: PathBuf,
        /// The client's name
        client: String,
        /// What it may: append and read, only read, or read and say what is kept
        ///
        /// A reader or an admin joins a vault that is on the server, with a file of
        /// `dormouse vault export-writer`.
        #[arg(long, value_enum, default_value = "writer")]
        role: tenants::RoleArg,
        /// How the client reaches the server [default: what server.toml says]
        #[arg(long, value_name = "HOST:PORT")]
        url: Option<String>,
        /// How long the invite is good
        #[arg(long, value_name = "DURATION", default_value = "24h")]
        expires: String,
    },
    /// List the clients of a store, and its open invites
    Clients {
        /// The store's directory
        store: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a client: its connections end at once, and its next is refused
    Revoke(tenants::RevokeArgs),
    /// Give a client another role, or its vault another quota; at once, also while it is connected
    Grant(tenants::GrantArgs),
    /// Show who joined, was revoked or granted something, took over or deleted: `STORE/audit.log`
    Audit {
        /// The store's directory
        store: PathBuf,
        /// As JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Join a server by an invite, or a directory; or come back with a recovery kit
    Join(JoinArgs),
    /// Write the recovery kit: what brings everything back
    RecoveryKit {
        /// A new file; `-` or nothing is the screen
        file: Option<PathBuf>,
        /// In capitals and groups of four, for paper
        #[arg(long)]
        paper: bool,
        /// Then remove identity and authority from this machine
        #[arg(long)]
        offline: bool,
    },
    /// The vault and its writers
    Vault {
        /// What to do.
        #[command(subcommand)]
        command: VaultCommand,
    },
    /// Copy a file or block device: what the vault does not have yet
    Mirror(MirrorArgs),
    /// Thaw what a mirror has left frozen that was killed together with its helper
    ///
    /// For `ExecStopPost=`: does nothing where nothing was left. A file system that somebody else
    /// froze is not touched.
    Thaw,
    /// End the tracker of a volume that is not mirrored any more
    ///
    /// A mirror that has ended leaves its tracker in the kernel, so that the next needs no scan:
    /// some memory (64 MiB for 1 TiB), and 0.3 µs for each write. This takes it away; a mirror of the
    /// volume then compares all of the disk.
    Untrack {
        /// The volume
        volume: String,
    },
    /// Watch disks before their mirrors run, and keep what is known of them when the machine stops
    ///
    /// So that a disk that is in use from the start to the end needs no scan after a reboot.
    Track {
        /// What to do.
        #[command(subcommand)]
        command: track::TrackCommand,
    },
    /// Freezes and thaws for a mirror; started by it
    #[command(hide = true)]
    FreezeHelper,
    /// Mirror the devices that a file names, until SIGTERM; SIGHUP reads it again
    Daemon {
        /// The file [default: /etc/dormouse/mirror.toml]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Check the daemon's file, and say what would be mirrored
    Check {
        /// The file [default: /etc/dormouse/mirror.toml]
        file: Option<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Make an empty volume: a disk that no disk here is the source of
    Create {
        /// The volume's name
        volume: String,
        /// Its size, such as 10GiB or 1.5TB
        size: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a volume that begins as another is, or was: a fork, with a history of its own
    ///
    /// It shares everything with its origin, whatever the size: nothing is copied.
    Fork {
        /// VOLUME or VOLUME@WHEN; WHEN is a number, latest, yesterday, '2h ago', or a time
        #[arg(value_name = "VOLUME[@WHEN]")]
        what: String,
        /// The new volume's name
        name: String,
        /// A fuzzy point may be chosen
        #[arg(long)]
        fuzzy: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a volume another size, also while it is attached here for writing
    Resize {
        /// The volume
        volume: String,
        /// Its new size, such as 10GiB or 1.5TB
        size: String,
        /// Make it smaller: what is cut off stays in older points only
        #[arg(long)]
        shrink: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// List the volumes of the vault
    Volumes {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// List the points of a volume, or of all
    Points {
        /// The volume
        volume: Option<String>,
        /// Also fuzzy points
        #[arg(long)]
        all: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Bring a point back, to a file or a block device
    Restore(RestoreArgs),
    /// Give the kernel a point as a disk: /dev/…, at once
    ///
    /// Its blocks are fetched as they are read. A process serves it until `dormouse detach`; if it
    /// dies, the same command again goes on with the same disk (ublk, NBD).
    Attach(attach::AttachArgs),
    /// Take an attached disk away, and unmount what `attach --mount` mounted
    Detach(attach::DetachArgs),
    /// List what is attached on this machine
    Attached(attach::AttachedArgs),
    /// Serve points as disks to NBD clients, such as qemu, nbdcopy or nbd-client
    ///
    /// Read-only, unless there is an overlay. Ends at SIGTERM or SIGINT.
    Export(export::ExportArgs),
    /// Open and check everything of a point
    Verify {
        /// VOLUME or VOLUME@WHEN
        #[arg(value_name = "VOLUME[@WHEN]")]
        what: String,
        /// A fuzzy point may be chosen; one that is named by its number needs no flag
        #[arg(long)]
        fuzzy: bool,
        /// The history must hold the point with this hash, whatever this machine knows of it
        #[arg(long, value_name = "HASH")]
        expect_head: Option<String>,
        /// Events as JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Take out of a store what no point refers to any more; a server does so by itself
    Collect {
        /// The store's directory
        store: PathBuf,
        /// Say what would go, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// For how long what nothing refers to stays; 7d without it, or what server.toml says
        #[arg(long, value_name = "DURATION")]
        grace: Option<String>,
        /// Bytes a second to read and write; 16MiB without it, or what server.toml says
        #[arg(long, value_name = "SIZE")]
        rate: Option<String>,
        /// Figures as JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Check every record of a store, and its state, on the server, without keys
    Scrub {
        /// The store's directory
        store: PathBuf,
        /// Go on with the state files that hold; what does not hold is set aside
        ///
        /// For when files of clients or invites are damaged, missing or old, and there is no
        /// backup of them. Nothing is deleted. A client whose file is set aside must join again.
        #[arg(long)]
        accept_state: bool,
        /// First heal what is damaged or missing from a second copy (`dormouse replicate`)
        ///
        /// The store must not be in use. What is damaged is kept in a file of its own.
        #[arg(long, value_name = "COPY")]
        repair_from: Option<PathBuf>,
        /// Findings as JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Say what confines a server on this machine, and what is wrong with a store
    Doctor(host::DoctorArgs),
    /// Tries what a server in its jail must not; started by `doctor`
    #[command(hide = true)]
    JailProbe(host::JailProbeArgs),
    /// Resolves a name for a server; started by it
    #[command(hide = true)]
    NameHelper(host::NameHelperArgs),
    /// Make anew what can be made anew: index, manifest and header of a store, or, for
    /// s3://BUCKET/PREFIX, the whole state directory of a machine that is lost
    Rebuild(bucket::RebuildArgs),
    /// Keep a second copy of a store equal, in another directory; works while the server runs
    ///
    /// Copies what is new, and checks every record of it; needs no keys. The copy holds the
    /// server's key and its clients too: guard it like the store.
    Replicate(host::ReplicateArgs),
    /// Make a second copy a store of its own, to take the place of one that is lost
    Promote(host::PromoteArgs),
    /// Show or set how long points are kept; setting needs an administrator
    ///
    /// Classes: `all` keeps every point, `hourly`, `daily`, `weekly`, `monthly`, `yearly` the newest
    /// consistent checkpoint of each span, all by the time at which the server received them. What
    /// is younger than the floor (24h) always stays, and so do the newest points, and points that
    /// forks begin with.
    Retention(keep::RetentionArgs),
    /// Let points expire that retention does not keep; the server does so each hour
    Prune(keep::PruneArgs),
    /// Delete a volume, or points of it, after a grace in which it can be undone
    Delete(keep::DeleteArgs),
    /// Take back what is to be deleted of a volume
    Undelete(keep::UndeleteArgs),
    /// Say where the server, or the directory, is now; its key stays the same
    Retarget {
        /// HOST:PORT, dormouse://HOST:PORT, or a directory
        target: String,
    },
    /// Show what this machine has joined, what its daemons do, and whether the server answers
    Status {
        /// First go on with the home's files that hold; what does not hold is set aside
        ///
        /// For when the last head of a volume is damaged, missing or old: until the next copy,
        /// a server that goes back in time is then not found out.
        #[arg(long)]
        accept_state: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Only what the daemons do: anew each second, and when something changes
        #[arg(long, conflicts_with = "accept_state")]
        watch: bool,
        /// Only what the daemons do, as metrics for Prometheus
        #[arg(long, conflicts_with_all = ["accept_state", "json", "watch"])]
        prometheus: bool,
    },
    /// Show everything at work in one command, on a server of its own
    Demo {
        /// Keep everything in this directory
        #[arg(long, value_name = "DIR")]
        keep: Option<PathBuf>,
        /// Size of the image
        #[arg(long, value_name = "MIB", default_value_t = 512)]
        size: u64,
    },
    /// Write completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual page
    Man,
}

/// Of `join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// An invite, or a directory; with --kit also an address
    #[arg(value_name = "TARGET", required_unless_present = "kit")]
    pub target: Option<String>,
    /// Come back with this recovery kit; `-` reads it from standard input
    #[arg(long, value_name = "FILE", conflicts_with = "vault")]
    pub kit: Option<PathBuf>,
    /// Come into an existing vault, with a file of `vault export-writer`
    #[arg(long, value_name = "FILE")]
    pub vault: Option<PathBuf>,
    /// The client's name, where no invite says it [default: this machine's]
    #[arg(long)]
    pub name: Option<String>,
}

/// Of `vault`.
#[derive(Debug, Subcommand)]
pub enum VaultCommand {
    /// Certify another machine's writer; its file goes there by hand, never by the server
    ExportWriter {
        /// A new file; secret
        file: PathBuf,
        /// The writer's name
        #[arg(long, default_value = "writer")]
        name: String,
        /// Let both machines use each other's chunks
        #[arg(long)]
        trusted: bool,
    },
    /// Show the vault's public parts
    Show,
}

/// Of `mirror`.
#[derive(Debug, Args)]
pub struct MirrorArgs {
    /// A file or a block device
    pub source: PathBuf,
    /// The volume's name [default: the source's]
    #[arg(long, value_name = "NAME")]
    pub volume: Option<String>,
    /// Copy once, then end; without this the copy follows the device until it is stopped
    #[arg(long)]
    pub once: bool,
    /// How old the newest consistent point may become, if anything changed, before one is made
    /// by freezing
    #[arg(long, value_name = "TIME", default_value = "60s", conflicts_with = "once")]
    pub point_every: String,
    /// Whether file systems may be frozen for a point, for some milliseconds
    #[arg(long, value_enum, default_value = "auto", conflicts_with = "once")]
    pub freeze: FreezeArg,
    /// Whether active swap on DEVICE is left out (zeros, but for its header) or copied
    #[arg(long, value_enum, default_value = "skip", conflicts_with = "once")]
    pub swap: SwapArg,
    /// Go on after a reboot without a scan if DEVICE, an NVMe disk, has counted no write meanwhile
    ///
    /// Discards and zeroes need not be among what such a disk counts: docs/reboot.md.
    #[arg(long, value_enum, default_value = "prove", conflicts_with = "once")]
    pub after_reboot: AfterRebootArg,
    /// Bytes a second that are sent at most, such as 2MiB
    #[arg(long, value_name = "RATE", conflicts_with = "once")]
    pub limit: Option<String>,
    /// How it is known what changed: programs in the kernel, or a compare now and then
    #[arg(long, value_enum, default_value = "ebpf", conflicts_with = "once")]
    pub tracker: TrackerArg,
    /// Time between two compares, for `--tracker scan`
    #[arg(long, value_name = "TIME", default_value = "15m", conflicts_with = "once")]
    pub scan_every: String,
    /// Program that is run before a freeze, with its arguments; if it fails, there is none
    #[arg(long, value_name = "COMMAND", conflicts_with = "once")]
    pub hook_before: Option<String>,
    /// Program that is run after it
    #[arg(long, value_name = "COMMAND", conflicts_with = "once")]
    pub hook_after: Option<String>,
    /// With --once: have the server read every chunk of the source, and send again what is damaged there
    ///
    /// For when scrub, verify or restore found damage and the source still has the content:
    /// a chunk that is sent again heals all points that need it. Without this flag only tags
    /// are compared, and damage is not seen. The server reads as much as a restore would;
    /// over the link go about 20 bytes for each block, and what is sent again.
    #[arg(long, requires = "once")]
    pub all: bool,
    /// With --once: events as JSON lines (`dormouse status --watch --json` for a live mirror)
    #[arg(long, requires = "once")]
    pub json: bool,
    /// Take the volume over from another machine or installation
    #[arg(long)]
    pub takeover: bool,
    /// DEVICE is another disk than the one in the volume, and is meant: it was replaced
    #[arg(long)]
    pub same_disk: bool,
    /// How hard zstd tries
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=19))]
    pub level: i32,
    /// With --once: nothing but errors
    #[arg(long, requires = "once")]
    pub quiet: bool,
}

/// `--freeze`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FreezeArg {
    /// When a point cannot be had without
    Auto,
    /// Never
    Never,
}

/// `--swap`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SwapArg {
    /// Zeros in the copy
    Skip,
    /// As anything else
    Copy,
}

/// `--after-reboot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AfterRebootArg {
    /// Only by a count that nothing can pass by; few disks have one
    Prove,
    /// By the disk's count of write commands
    Trust,
}

/// `--tracker`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TrackerArg {
    /// Programs in the kernel mark each write
    Ebpf,
    /// Everything is compared now and then
    Scan,
}

impl MirrorArgs {
    /// What a live mirror is told.
    pub fn to_config(&self) -> Result<MirrorConfig> {
        let mut to = MirrorConfig::new(self.source.clone());
        if let Some(volume) = &self.volume {
            to.volume.clone_from(volume);
        }
        to.point_every = quantity::duration(&self.point_every)?;
        to.freeze = match self.freeze {
            FreezeArg::Auto => Freeze::Auto,
            FreezeArg::Never => Freeze::Never,
        };
        to.swap = match self.swap {
            SwapArg::Skip => Swap::Skip,
            SwapArg::Copy => Swap::Copy,
        };
        to.after_reboot = match self.after_reboot {
            AfterRebootArg::Prove => AfterReboot::Prove,
            AfterRebootArg::Trust => AfterReboot::Trust,
        };
        to.tracker = match self.tracker {
            TrackerArg::Ebpf => Tracker::Ebpf,
            TrackerArg::Scan => Tracker::Scan,
        };
        to.limit = self.limit.as_deref().map(quantity::rate).transpose()?;
        to.scan_every = quantity::duration(&self.scan_every)?;
        to.hook_before = self.hook_before.as_deref().map(hook);
        to.hook_after = self.hook_after.as_deref().map(hook);
        to.level = self.level;
        to.takeover = self.takeover;
        to.same_disk = self.same_disk;
        Ok(to)
    }
}

/// A program and its arguments, parted by spaces.
fn hook(text: &str) -> Hook {
    let mut words = text.split_whitespace();
    let program = words.next().unwrap_or_default().into();
    Hook { program, args: words.map(str::to_owned).collect() }
}

/// Of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// VOLUME or VOLUME@WHEN; WHEN is a number, latest, yesterday, '2h ago', or a time
    #[arg(value_name = "VOLUME[@WHEN]")]
    pub what: String,
    /// A file or a block device
    pub dest: PathBuf,
    /// DEST is an older copy: write only what differs
    #[arg(long)]
    pub in_place: bool,
    /// Replace an existing file
    #[arg(long)]
    pub force: bool,
    /// A fuzzy point may be chosen
    #[arg(long)]
    pub fuzzy: bool,
    /// The history must hold the point with this hash, whatever this machine knows of it
    #[arg(long, value_name = "HASH")]
    pub expect_head: Option<String>,
    /// Events as JSON lines
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_exit_code_is_in_the_help() {
        let help = Cli::command().render_long_help().to_string();
        for code in (0..=12).chain([141]) {
            assert!(help.contains(&format!("\n {code:>3}  ")), "{code}");
        }
    }
}
