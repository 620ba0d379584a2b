//! The jail: what the server gives up for good before it looks at the first byte from outside.
//!
//! Owns: the layers, the order in which they are entered, and what is said of each. Invariant:
//! a layer is said to hold only if the kernel said so after it was entered; all of it is entered
//! by the only thread there is, so that every later thread is inside. Nothing of it can be taken
//! back. Leaves to others: which directories there are ([`Plan`]), and the narrower jail of a
//! thread that listens to a stranger ([`only_socket`]).

mod filter;
mod landlock;
mod privileges;
pub mod probe;

use std::io;
use std::path::{Path, PathBuf};

pub use filter::only_socket;
pub use privileges::FILE_MAX;

/// Why a layer does not hold that the plan is without.
const LEFT_OUT: &str = "left out, as was asked for";

/// One layer. Each stands by itself: one that does not hold leaves the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layer {
    /// Largest file, no core dumps.
    Limits,
    /// The memory is not read by other processes of the same user.
    Undumpable,
    /// No capability, and none to be had.
    Capabilities,
    /// No program gives more rights than this one has.
    NoNewPrivileges,
    /// Landlock: files of the store only.
    Files,
    /// Landlock: no TCP connection is made (but to the port of an object storage), no port is bound.
    Network,
    /// Landlock: no signal to, and no abstract socket of, a process outside.
    Scope,
    /// Seccomp: the system calls of a server, and no others.
    SystemCalls,
}

impl Layer {
    /// All, in the order in which they are entered.
    pub const ALL: [Self; 8] = [
        Self::Limits,
        Self::Undumpable,
        Self::Capabilities,
        Self::NoNewPrivileges,
        Self::Files,
        Self::Network,
        Self::Scope,
        Self::SystemCalls,
    ];

    /// Its name, as `doctor` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Limits => "limits",
            Self::Undumpable => "undumpable",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivileges => "no-new-privs",
            Self::Files => "landlock-files",
            Self::Network => "landlock-network",
            Self::Scope => "landlock-scope",
            Self::SystemCalls => "seccomp",
        }
    }

    /// The layer of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|layer| layer.name() == name)
    }

    /// What to do where it does not hold.
    pub const fn way_out(self) -> &'static str {
        match self {
            Self::Limits | Self::Undumpable => {
                "the kernel refused what it always allows; look at what else confines this process"
            }
            Self::Capabilities => {
                "run the server as a user of its own that owns the store, as dormouse-serve.service does"
            }
            Self::NoNewPrivileges => "needs Linux 3.5",
            Self::Files => {
                "needs Linux 6.2 with CONFIG_SECURITY_LANDLOCK, and landlock among the security modules (lsm= of the kernel's command line)"
            }
            Self::Network => {
                "needs Landlock of Linux 6.7; until then seccomp alone keeps connections from being made"
            }
            Self::Scope => {
                "needs Landlock of Linux 6.12; until then seccomp alone keeps signals from being sent"
            }
            Self::SystemCalls => {
                "needs a kernel with CONFIG_SECCOMP_FILTER, on x86-64, aarch64 or riscv64"
            }
        }
    }
}

/// What is known of a layer after it was entered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The layer.
    pub layer: Layer,
    /// What it keeps, or why it does not hold.
    pub held: Result<String, String>,
}

/// What stays allowed.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Directories below which files may be read, written, made and removed.
    pub dirs: Vec<PathBuf>,
    /// Directories of which files may be removed, and nothing else be done.
    pub cleared: Vec<PathBuf>,
    /// Directories below which files may be read.
    pub reads: Vec<PathBuf>,
    /// TCP ports, of whatever host, to which connections may be made.
    pub ports: Vec<u16>,
    /// Whether names are resolved: sockets of the system's resolver, and datagrams.
    pub names: bool,
    /// Layers that are left out: to show what the others keep.
    pub without: Vec<Layer>,
}

impl Plan {
    /// For the directory of a store. Where a part of it was moved elsewhere, and a symbolic link
    /// put in its place, that is a part of it.
    pub fn of_store(store: &Path) -> io::Result<Self> {
        let mut dirs = vec![store.canonicalize()?];
        let vaults = store.join("vaults");
        let mut places = vec![vaults.clone()];
        for entry in std::fs::read_dir(&vaults).into_iter().flatten() {
            let vault = entry?.path();
            places.extend([vault.join("segments"), vault.join("index"), vault]);
        }
        for place in places.iter().filter(|place| place.is_symlink() && place.is_dir()) {
            dirs.push(place.canonicalize()?);
        }
        Ok(Self { dirs, ..Self::default() })
    }

    /// Has a socket go with the server, if it lies in a directory of its own: whatever else is there
    /// could be removed, too.
    pub fn clears(&mut self, socket: &Path) -> io::Result<()> {
        let dir = crate::files::parent(socket).canonicalize()?;
        let own = |name: &std::ffi::OsStr| Some(name) == socket.file_name();
        for entry in std::fs::read_dir(&dir)? {
            if !own(&entry?.file_name()) {
                return Ok(());
            }
        }
        self.cleared.push(dir);
        Ok(())
    }

    /// For the process that resolves the name of an object storage's host, and does nothing else.
    pub fn of_names() -> io::Result<Self> {
        let etc = Path::new("/etc");
        let mut reads = vec![etc.canonicalize()?];
        // Often a link into a directory where a service writes it anew.
        let conf = etc.join("resolv.conf").canonicalize();
        reads.extend(conf.ok().and_then(|path| path.parent().map(Path::to_owned)));
        reads.dedup();
        Ok(Self { reads, ports: vec![53], names: true, ..Self::default() })
    }
}

/// Enters the jail. The caller is the only thread of its process; what it will need that the
/// jail does not allow (sockets, the time zone) is there already.
pub fn enter(plan: &Plan) -> Vec<Standing> {
    let threads = threads();
    if threads > 1 {
        let why = format!("{threads} threads run already, and it would not hold for all of them");
        let standing = |layer| Standing { layer, held: Err(why.clone()) };
        return Layer::ALL.into_iter().map(standing).collect();
    }
    let mut standings = Vec::with_capacity(Layer::ALL.len());
    for layer in Layer::ALL {
        let enter: &dyn Fn() -> Result<String, String> = match layer {
            Layer::Limits => &privileges::limits,
            Layer::Undumpable => &privileges::undumpable,
            Layer::Capabilities => &|| privileges::capabilities(plan),
            Layer::NoNewPrivileges => &privileges::no_new_privileges,
            // One ruleset for the three of them, entered with the first.
            Layer::Files => {
                standings.extend(landlock::enter(plan));
                continue;
            }
            Layer::Network | Layer::Scope => continue,
            Layer::SystemCalls => &|| filter::enter(plan),
        };
        let left_out = plan.without.contains(&layer);
        let held = if left_out { Err(LEFT_OUT.to_owned()) } else { enter() };
        standings.push(Standing { layer, held });
    }
    standings
}

/// Threads of this process; 1 where that cannot be seen.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, |tasks| tasks.count().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_told_that_nothing_would_hold() {
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        let standings = enter(&Plan::default());
        assert_eq!(standings.len(), Layer::ALL.len());
        for standing in &standings {
            let why = standing.held.as_ref().unwrap_err();
            assert!(why.contains("threads run already"), "{why}");
        }
        assert_eq!(rustix::thread::no_new_privs(), Ok(false), "and nothing was entered");
        drop(stop);
        let _ = other.join();
    }

    #[test]
    fn a_part_of_the_store_that_lies_elsewhere_belongs_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (store, far) = (dir.path().join("store"), dir.path().join("far"));
        std::fs::create_dir_all(store.join("vaults/aa/index")).unwrap();
        std::fs::create_dir(&far).unwrap();
        std::os::unix::fs::symlink(&far, store.join("vaults/aa/segments")).unwrap();
        let plan = Plan::of_store(&store).unwrap();
        let canonical = |p: &Path| p.canonicalize().unwrap();
        assert_eq!(plan.dirs, [canonical(&store), canonical(&far)]);
    }

    #[test]
    fn every_layer_has_a_name_of_its_own() {
        for layer in Layer::ALL {
            assert_eq!(Layer::of_name(layer.name()), Some(layer));
        }
        assert_eq!(Layer::of_name("walls"), None);
    }
}
