//! How many connections a server takes.
//!
//! Invariant: what is taken fits into the process's limit of open files, with room for the
//! store's own.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::log::Log;

/// Most connections that have not said who they are.
const STRANGERS_MAX: usize = 1024;
/// The same for one address, or one network of IPv6.
pub(super) const STRANGERS_PER_GROUP_MAX: usize = 64;
/// Most connections together.
const CONNECTIONS_MAX: usize = 8192;
/// Most connections of one client. Each may cost about 16 MiB, if the client means ill.
pub(super) const CLIENT_CONNECTIONS_MAX: usize = 16;
/// Open files that are left to the store and the rest.
const FILES_KEPT: u64 = 512;
/// Open files of a client's connection.
const FILES_EACH: u64 = 2;

/// Connections that are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// That have not said who they are; as many wait to be closed.
    pub(super) strangers: usize,
    /// Together.
    pub(super) connections: usize,
}

impl Limits {
    /// For a limit of open files: half of it for strangers, half for clients.
    fn of_files(files: Option<u64>) -> Self {
        let half = files.map_or(u64::MAX, |n| (n.saturating_sub(FILES_KEPT) / 2).max(16));
        let fit = |n: u64, most: usize| usize::try_from(n).map_or(most, |n| n.min(most));
        let strangers = fit(half / 2, STRANGERS_MAX);
        let clients = fit(half / FILES_EACH, CONNECTIONS_MAX - STRANGERS_MAX);
        Self { strangers, connections: strangers + clients }
    }

    /// For this process. Says so if the system allows less than there could be.
    pub(super) fn of_system(log: &Log) -> Self {
        let files = getrlimit(Resource::Nofile).current;
        let limits = Self::of_files(files);
        if limits != Self::of_files(None)
            && let Some(files) = files
        {
            log.line(&format!(
                "only {files} open files are allowed (ulimit -n): at most {} connections are \
                 taken, of these {} before they say who they are",
                limits.connections, limits.strangers
            ));
        }
        limits
    }
}

/// Allows this process as many open files as it may have.
pub(super) fn raise_files() {
    let now = getrlimit(Resource::Nofile);
    // If it is refused, the limits are made to fit what there is.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, ..now });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_the_open_files() {
        let files_of = |l: Limits| {
            let clients = (l.connections - l.strangers) as u64;
            2 * l.strangers as u64 + FILES_EACH * clients
        };
        for files in [1024, 4096, 20_000, 1 << 20] {
            let limits = Limits::of_files(Some(files));
            assert!(files_of(limits) + FILES_KEPT <= files, "{files}: {limits:?}");
            assert!(limits.strangers >= 64 && limits.connections > limits.strangers);
        }
        let most = Limits { strangers: STRANGERS_MAX, connections: CONNECTIONS_MAX };
        assert_eq!(Limits::of_files(None), most);
        assert_eq!(Limits::of_files(Some(1 << 20)), most);
        assert!(Limits::of_files(Some(0)).strangers > 0);
    }
}
