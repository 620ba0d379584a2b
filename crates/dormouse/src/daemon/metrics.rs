//! What the volumes do, in the text format of Prometheus.
//!
//! Owns: the names of the metrics, which stay, and their form. Invariants: units are seconds and
//! bytes; what is not known has no sample; the samples of a name stand together under its HELP
//! and TYPE. Leaves to others: who asks ([`super::metrics_http`], `dormouse status --prometheus`).

use std::fmt::Write as _;

use super::board::{State, VolumeStatus};
use crate::text::parse_time;

/// The type of what is rendered here, for HTTP.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Metrics of one name.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    samples: fn(&VolumeStatus, &mut Samples<'_>),
}

const fn gauge(
    name: &'static str,
    help: &'static str,
    samples: fn(&VolumeStatus, &mut Samples<'_>),
) -> Family {
    Family { name, kind: "gauge", help, samples }
}

const fn counter(
    name: &'static str,
    help: &'static str,
    samples: fn(&VolumeStatus, &mut Samples<'_>),
) -> Family {
    Family { name, kind: "counter", help, samples }
}

const FAMILIES: &[Family] = &[
    gauge("dormouse_volume_info", "The device of a volume; always 1.", |v, out| {
        out.add(&[("device", &v.device)], 1);
    }),
    gauge("dormouse_volume_state", "1 for the state that a volume is in, else 0.", |v, out| {
        for state in State::ALL {
            out.add(&[("state", state.name())], u64::from(v.state == state));
        }
    }),
    gauge(
        "dormouse_data_lag_seconds",
        "Age of the oldest write that the server does not have.",
        |v, out| out.ms(v.data_lag_ms),
    ),
    gauge("dormouse_point_lag_seconds", "Age of the newest consistent point.", |v, out| {
        out.ms(v.point_lag_ms);
    }),
    gauge("dormouse_backlog_bytes", "Bytes marked and not yet acknowledged.", |v, out| {
        out.add(&[], v.backlog_bytes);
    }),
    gauge("dormouse_recheck_bytes", "Bytes discarded and not yet read again.", |v, out| {
        out.add(&[], v.recheck_bytes);
    }),
    gauge("dormouse_eta_seconds", "Time until the backlog will be gone.", |v, out| {
        out.some(v.eta_s);
    }),
    gauge("dormouse_read_bytes_per_second", "Bytes read from the device, of late.", |v, out| {
        out.add(&[], v.read_bytes_per_s);
    }),
    gauge("dormouse_sent_bytes_per_second", "Bytes sent to the server, of late.", |v, out| {
        out.add(&[], v.sent_bytes_per_s);
    }),
    gauge("dormouse_last_point_number", "Number of the newest point.", |v, out| {
        out.some(v.last_point.as_ref().map(|p| p.seq));
    }),
    gauge(
        "dormouse_last_point_timestamp_seconds",
        "When the server received the newest point, since 1970.",
        |v, out| {
            let time = v.last_point.as_ref().and_then(|p| parse_time(&p.time));
            out.ms(time.map(|ns| ns / 1_000_000));
        },
    ),
    gauge("dormouse_next_try_seconds", "Time until the next attempt to go on.", |v, out| {
        out.some(v.next_try_s);
    }),
    gauge("dormouse_notes", "Notes on a volume; `dormouse status` shows them.", |v, out| {
        out.add(&[], v.notes.len() as u64);
    }),
    gauge("dormouse_status_age_seconds", "Time since the status was set.", |v, out| {
        out.ms(Some(v.age_ms));
    }),
    counter("dormouse_points_total", "Points made, by grade.", |v, out| {
        let c = &v.counters;
        for (grade, points) in [("frozen", c.frozen), ("settled", c.settled), ("fuzzy", c.fuzzy)] {
            out.add(&[("grade", grade)], points);
        }
    }),
    counter("dormouse_freezes_failed_total", "Freezes that failed or took too long.", |v, out| {
        out.add(&[], v.counters.freezes_failed);
    }),
    counter("dormouse_read_bytes_total", "Bytes read from the device.", |v, out| {
        out.add(&[], v.counters.bytes_read);
    }),
    counter("dormouse_sent_bytes_total", "Bytes sent to the server.", |v, out| {
        out.add(&[], v.counters.bytes_sent);
    }),
    counter("dormouse_link_bytes_total", "Bytes that crossed the link, both ways.", |v, out| {
        out.add(&[], v.counters.bytes_on_link);
    }),
    counter("dormouse_reconnects_total", "Connections after the first.", |v, out| {
        out.add(&[], v.counters.reconnects);
    }),
    counter("dormouse_scans_total", "Full compares.", |v, out| {
        out.add(&[], v.counters.scans);
    }),
    counter("dormouse_read_errors_total", "Reads of the device that failed.", |v, out| {
        out.add(&[], v.counters.read_errors);
    }),
];

/// Where the samples of one volume and one name go.
struct Samples<'a> {
    out: &'a mut String,
    name: &'static str,
    volume: &'a str,
}

impl Samples<'_> {
    fn add(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let _ = write!(self.out, "{}{{volume=\"{}\"", self.name, escaped(self.volume));
        for (name, text) in labels {
            let _ = write!(self.out, ",{name}=\"{}\"", escaped(text));
        }
        let _ = writeln!(self.out, "}} {value}");
    }

    fn some(&mut self, value: Option<u64>) {
        if let Some(value) = value {
            self.add(&[], value);
        }
    }

    /// Milliseconds as seconds.
    fn ms(&mut self, value: Option<u64>) {
        if let Some(ms) = value {
            self.add(&[], format_args!("{}.{:03}", ms / 1000, ms % 1000));
        }
    }
}

/// The text of a label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// All metrics of these volumes, no two of which have the same name.
pub fn render(volumes: &[VolumeStatus]) -> String {
    let mut out = String::new();
    let version = env!("CARGO_PKG_VERSION");
    out.push_str("# HELP dormouse_build_info The version of the program; always 1.\n");
    out.push_str("# TYPE dormouse_build_info gauge\n");
    let _ = writeln!(out, "dormouse_build_info{{version=\"{version}\"}} 1");
    for Family { name, kind, help, samples } in FAMILIES {
        let mut lines = String::new();
        for status in volumes {
            samples(status, &mut Samples { out: &mut lines, name, volume: &status.volume });
        }
        if !lines.is_empty() {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}");
        }
    }
    out
}

#[cfg(test)]
mod tests;
