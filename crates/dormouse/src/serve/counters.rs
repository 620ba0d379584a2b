//! What the server counts, and how it is shown to Prometheus.
//!
//! Owns: the names of the server's metrics, which stay. Invariants: units are seconds and bytes;
//! counting costs an addition, and nothing of what a peer says becomes a name or a label.
//! Leaves to others: who asks ([`super::pages`]).

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dormouse_format::message::Refusal;

use super::Shared;

/// Upper ends of the buckets for a commit's time, in milliseconds.
const BUCKETS_MS: [u64; 11] = [5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000];

/// Counters since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    connections: AtomicU64,
    strangers_ended: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
    commits: [AtomicU64; BUCKETS_MS.len() + 1],
    commit_us: AtomicU64,
}

fn one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counters {
    /// A connection was accepted.
    pub(super) fn connection(&self) {
        one(&self.connections);
    }

    /// One that was no client has ended.
    pub(super) fn stranger_ended(&self) {
        one(&self.strangers_ended);
    }

    /// Something was refused.
    pub(super) fn refused(&self, refusal: Refusal) {
        if let Some(at) = Refusal::ALL.iter().position(|r| *r == refusal) {
            one(&self.refused[at]);
        }
    }

    /// A point became durable in this time.
    pub(super) fn commit(&self, took: Duration) {
        let fits = |ms: &u64| took <= Duration::from_millis(*ms);
        one(&self.commits[BUCKETS_MS.iter().position(fits).unwrap_or(BUCKETS_MS.len())]);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.commit_us.fetch_add(us, Ordering::Relaxed);
    }
}

/// Lines of the text format.
#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        self.line(name, "", value);
    }
}

/// All metrics.
pub(super) fn render(shared: &Shared) -> String {
    let mut out = Text::default();
    let c = &shared.counters;
    out.head("dormouse_build_info", "gauge", "The version of the program; always 1.");
    let version = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    out.line("dormouse_build_info", &version, 1);
    people(&mut out, shared);
    out.head("dormouse_server_refused_total", "counter", "Refusals, by reason.");
    for (refusal, counter) in Refusal::ALL.iter().zip(&c.refused) {
        let labels = format!("{{reason=\"{refusal:?}\"}}");
        out.line("dormouse_server_refused_total", &labels, get(counter));
    }
    commits(&mut out, c);
    vaults(&mut out, shared);
    out.0
}

fn people(out: &mut Text, shared: &Shared) {
    let (connections, clients, strangers, (received, sent)) = {
        let table = shared.table();
        let all = &table.members;
        (all.len() as u64, all.clients() as u64, table.strangers.len() as u64, all.moved())
    };
    let c = &shared.counters;
    let name = "dormouse_server_connections";
    out.single(name, "gauge", "Connections of clients.", connections);
    out.single("dormouse_server_clients", "gauge", "Clients that are connected.", clients);
    let name = "dormouse_server_strangers";
    out.single(name, "gauge", "Connections that have not said who they are.", strangers);
    let resting = shared.lounge.len() as u64;
    let name = "dormouse_server_connections_resting";
    out.single(name, "gauge", "Those of them that say nothing, and have no thread.", resting);
    let (scanning, queued) = shared.scans.count();
    let name = "dormouse_server_scans";
    out.single(name, "gauge", "Scans that run.", scanning as u64);
    let name = "dormouse_server_scans_queued";
    out.single(name, "gauge", "Scans that wait until they may begin.", queued as u64);
    let name = "dormouse_server_accepted_total";
    out.single(name, "counter", "Connections that were accepted.", get(&c.connections));
    let name = "dormouse_server_strangers_ended_total";
    let help = "Connections that ended before they were a client's.";
    out.single(name, "counter", help, get(&c.strangers_ended));
    let name = "dormouse_server_received_bytes_total";
    out.single(name, "counter", "Bytes that clients sent, with TLS.", received);
    let name = "dormouse_server_sent_bytes_total";
    out.single(name, "counter", "Bytes that were sent to clients, with TLS.", sent);
}

fn commits(out: &mut Text, c: &Counters) {
    let name = "dormouse_server_commit_seconds";
    out.head(name, "histogram", "Time from a commit to its point being durable.");
    let bucket = "dormouse_server_commit_seconds_bucket";
    let mut sum = 0;
    for (ms, counter) in BUCKETS_MS.iter().zip(&c.commits) {
        sum += get(counter);
        out.line(bucket, &format!("{{le=\"{}\"}}", *ms as f64 / 1000.0), sum);
    }
    sum += c.commits.last().map_or(0, get);
    out.line(bucket, "{le=\"+Inf\"}", sum);
    let us = get(&c.commit_us);
    let seconds = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    out.line("dormouse_server_commit_seconds_sum", "", seconds);
    out.line("dormouse_server_commit_seconds_count", "", sum);
}

/// Of the vaults that are open: those of clients that were here since the start.
fn vaults(out: &mut Text, shared: &Shared) {
    let vaults = shared.access.open_vaults();
    let rows: Vec<_> = vaults.iter().map(|v| (v.vault(), v.stats(), v.quota().1)).collect();
    let name = "dormouse_server_vaults_open";
    out.single(name, "gauge", "Vaults that are open.", rows.len() as u64);
    let mut family = |name: &str, help: &str, of: &dyn Fn(usize) -> Option<u64>| {
        out.head(name, "gauge", help);
        for (at, (vault, ..)) in rows.iter().enumerate() {
            if let Some(value) = of(at) {
                out.line(name, &format!("{{vault=\"{vault}\"}}"), value);
            }
        }
    };
    let stats = |at: usize| &rows[at].1;
    family("dormouse_server_vault_bytes", "Bytes of a vault.", &|at| Some(stats(at).bytes));
    family("dormouse_server_vault_quota_bytes", "Bytes that it may hold.", &|at| rows[at].2);
    family("dormouse_server_vault_segments", "Its segments.", &|at| Some(stats(at).segments));
    family("dormouse_server_vault_points", "Its points.", &|at| Some(stats(at).points));
    family("dormouse_server_vault_poisoned", "1 after a write failed.", &|at| {
        Some(u64::from(stats(at).poisoned))
    });
}

/// Whether all is well: the body of `/health`.
pub(super) fn health(shared: &Shared) -> (bool, String) {
    let mut ill = Vec::new();
    if let Err(error) = shared.access.roster() {
        ill.push(format!("the files of clients cannot be read: {error:#}"));
    }
    for vault in shared.access.open_vaults() {
        if vault.stats().poisoned {
            ill.push(format!("vault {}: a write failed", vault.vault()));
        }
    }
    if ill.is_empty() { (true, "ok\n".into()) } else { (false, ill.join("\n") + "\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let c = Counters::default();
        for ms in [5, 6, 20_000] {
            c.commit(Duration::from_millis(ms));
        }
        let mut out = Text::default();
        commits(&mut out, &c);
        let lines: Vec<&str> = out.0.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(lines[0], "dormouse_server_commit_seconds_bucket{le=\"0.005\"} 1");
        assert_eq!(lines[1], "dormouse_server_commit_seconds_bucket{le=\"0.01\"} 2");
        assert_eq!(lines[10], "dormouse_server_commit_seconds_bucket{le=\"10\"} 2");
        assert_eq!(lines[11], "dormouse_server_commit_seconds_bucket{le=\"+Inf\"} 3");
        assert_eq!(lines[12], "dormouse_server_commit_seconds_sum 20.011000");
        assert_eq!(lines[13], "dormouse_server_commit_seconds_count 3");
    }
}
