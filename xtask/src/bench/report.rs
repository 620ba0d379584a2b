//! Medians, ratios and targets, as Markdown; every figure, as JSON.

use std::fmt::Write;

use super::image::Images;
use crate::measure::Step;

const MIB: f64 = 1024.0 * 1024.0;
const RESTORE_RSS_MAX: f64 = 256.0;

/// The figures of one program in one round.
#[derive(Default)]
pub struct Round {
    pub first: Step,
    pub stored_first: u64,
    pub second: Option<Step>,
    pub stored_second: Option<u64>,
    pub restore: Option<Step>,
}

impl Round {
    /// Progress for the one who waits.
    pub fn line(&self) -> String {
        let mut line = format!("first {:.2} s", self.first.seconds);
        for (name, step) in [("second", self.second), ("restore", self.restore)] {
            if let Some(step) = step {
                // Writing to a String cannot fail.
                let _ = write!(line, ", {name} {:.2} s", step.seconds);
            }
        }
        let _ = write!(line, ", {:.1} MiB stored", self.stored_first as f64 / MIB);
        line
    }
}

/// A program and its rounds.
pub struct Subject {
    pub name: &'static str,
    pub version: String,
    /// Settings chosen for disk images.
    pub tuned: bool,
    pub rounds: Vec<Round>,
}

/// One of the figures that are compared.
#[derive(Clone, Copy)]
enum Figure {
    First,
    Second,
    Restore,
    StoredFirst,
    Stored,
    RestoreRss,
}

impl Subject {
    fn median_of(&self, value: impl Fn(&Round) -> Option<f64>) -> Option<f64> {
        let mut values: Vec<f64> = self.rounds.iter().filter_map(value).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            length if length % 2 == 1 => Some(values[middle]),
            _ => Some((values[middle - 1] + values[middle]) / 2.0),
        }
    }

    fn median(&self, figure: Figure) -> Option<f64> {
        self.median_of(|round| match figure {
            Figure::First => Some(round.first.seconds),
            Figure::Second => round.second.map(|step| step.seconds),
            Figure::Restore => round.restore.map(|step| step.seconds),
            Figure::StoredFirst => Some(round.stored_first as f64 / MIB),
            Figure::Stored => round.stored_second.map(|bytes| bytes as f64 / MIB),
            Figure::RestoreRss => round.restore.map(|step| step.rss_bytes as f64 / MIB),
        })
    }
}

/// The tables of the benchmark.
pub fn markdown(subjects: &[Subject], missing: &[String]) -> String {
    let rounds = subjects.iter().map(|subject| subject.rounds.len()).max().unwrap_or(0);
    let mut out =
        format!("\nMedians of {rounds} interleaved rounds; times are until the program exits.\n\n");
    times(&mut out, subjects);
    out.push('\n');
    costs(&mut out, subjects);
    for line in missing {
        let _ = writeln!(out, "\n{line}");
    }
    if let Some(ours) = subjects.iter().find(|subject| subject.name == "dormouse") {
        let peers: Vec<_> = subjects.iter().filter(|subject| subject.name != "dormouse").collect();
        ratios(&mut out, ours, &peers);
        targets(&mut out, ours, &peers);
    }
    out
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

fn times(out: &mut String, subjects: &[Subject]) {
    out.push_str("| program | first, s | with sync | second, s | with sync | restore, s | with sync | stored, MiB | after the second |\n");
    out.push_str("|---|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for subject in subjects {
        let synced = |step: Option<Step>| step.map(|step| step.synced_seconds);
        let _ = writeln!(
            out,
            "| {} {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            subject.name,
            subject.version,
            cell(subject.median(Figure::First), 2),
            cell(subject.median_of(|round| synced(Some(round.first))), 2),
            cell(subject.median(Figure::Second), 2),
            cell(subject.median_of(|round| synced(round.second)), 2),
            cell(subject.median(Figure::Restore), 2),
            cell(subject.median_of(|round| synced(round.restore)), 2),
            cell(subject.median(Figure::StoredFirst), 1),
            cell(subject.median(Figure::Stored), 1),
        );
    }
}

fn costs(out: &mut String, subjects: &[Subject]) {
    out.push_str("| program | processor time, s: first | second | restore | peak memory, MiB: first | second | restore | server |\n");
    out.push_str("|---|--:|--:|--:|--:|--:|--:|--:|\n");
    for subject in subjects {
        let steps: [fn(&Round) -> Option<Step>; 3] =
            [|r| Some(r.first), |r| r.second, |r| r.restore];
        let _ = write!(out, "| {} |", subject.name);
        for step in steps {
            let _ =
                write!(out, " {} |", cell(subject.median_of(|r| Some(step(r)?.cpu_seconds)), 2));
        }
        for step in steps {
            let _ = write!(
                out,
                " {} |",
                cell(subject.median_of(|r| Some(step(r)?.rss_bytes as f64 / MIB)), 1)
            );
        }
        let server = subject.median_of(|round| {
            let peaks = steps.iter().filter_map(|step| step(round)?.server_rss_bytes);
            peaks.max().map(|bytes| bytes as f64 / MIB)
        });
        let _ = writeln!(out, " {} |", cell(server, 1));
    }
}

fn ratios(out: &mut String, ours: &Subject, peers: &[&Subject]) {
    out.push_str("\nDormouse divided by each peer; below 1 is less time or space.\n\n");
    out.push_str("| peer | first | second | restore | stored | after the second |\n|---|--:|--:|--:|--:|--:|\n");
    for peer in peers {
        let _ = write!(out, "| {} |", peer.name);
        for figure in
            [Figure::First, Figure::Second, Figure::Restore, Figure::StoredFirst, Figure::Stored]
        {
            let ratio =
                ours.median(figure).zip(peer.median(figure)).map(|(ours, theirs)| ours / theirs);
            let _ = write!(out, " {} |", cell(ratio, 3));
        }
        out.push('\n');
    }
}

fn targets(out: &mut String, ours: &Subject, peers: &[&Subject]) {
    let least = |figure: Figure, tuned: bool| {
        let backup = peers.iter().filter(|peer| peer.name != "nbdcopy" && (tuned || !peer.tuned));
        backup
            .filter_map(|peer| Some((peer.median(figure)?, peer.name)))
            .min_by(|one, two| one.0.total_cmp(&two.0))
    };
    let plain = peers
        .iter()
        .find(|peer| peer.name == "nbdcopy")
        .and_then(|peer| Some((peer.median(Figure::First)?, peer.name)));
    let mut rows = Vec::new();
    for (tuned, which) in [(false, "with its defaults"), (true, "with any settings")] {
        let rules = [
            ("first copy", Figure::First, 0.2),
            ("second copy", Figure::Second, 0.25),
            ("restore", Figure::Restore, 0.25),
            ("stored", Figure::StoredFirst, 1.05),
            ("stored after the second", Figure::Stored, 1.05),
        ];
        for (name, figure, limit) in rules {
            let against = least(figure, tuned);
            rows.push((format!("{name}, best peer {which}"), ours.median(figure), against, limit));
        }
    }
    rows.push(("first copy, plain copy".to_owned(), ours.median(Figure::First), plain, 1.5));

    out.push_str("\n| target | limit | measured | against | |\n|---|--:|--:|---|---|\n");
    for (name, value, against, limit) in rows {
        let Some((value, (peer_value, peer))) = value.zip(against) else {
            let _ = writeln!(out, "| {name} | {limit:.2} | – | not measured | |");
            continue;
        };
        let ratio = value / peer_value;
        let _ = writeln!(
            out,
            "| {name} | {limit:.2} | {ratio:.3} | {peer} | {} |",
            verdict(ratio <= limit)
        );
    }
    if let Some(rss) = ours.median(Figure::RestoreRss) {
        let met = verdict(rss < RESTORE_RSS_MAX);
        let _ = writeln!(
            out,
            "| peak memory of a restore, MiB | {RESTORE_RSS_MAX:.0} | {rss:.1} | | {met} |"
        );
    }
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// Every figure of every round.
pub fn json(subjects: &[Subject], missing: &[String], images: &Images) -> String {
    let programs: Vec<_> = subjects
        .iter()
        .map(|subject| {
            let rounds: Vec<_> = subject.rounds.iter().map(json_round).collect();
            format!(
                "    {{\"name\": {:?}, \"version\": {:?}, \"tuned\": {}, \"rounds\": [\n      {}\n    ]}}",
                subject.name,
                subject.version,
                subject.tuned,
                rounds.join(",\n      ")
            )
        })
        .collect();
    format!(
        "{{\n  \"image_bytes\": {},\n  \"used_bytes\": {},\n  \"changed_bytes\": {},\n  \"missing\": {missing:?},\n  \"programs\": [\n{}\n  ]\n}}\n",
        images.size,
        images.used,
        images.replaced,
        programs.join(",\n")
    )
}

fn json_round(round: &Round) -> String {
    let step = |step: Option<Step>| {
        step.map_or_else(
            || "null".to_owned(),
            |step| {
                format!(
                    "{{\"seconds\": {:.4}, \"synced_seconds\": {:.4}, \"cpu_seconds\": {:.3}, \"rss_bytes\": {}, \"server_rss_bytes\": {}}}",
                    step.seconds,
                    step.synced_seconds,
                    step.cpu_seconds,
                    step.rss_bytes,
                    step.server_rss_bytes.map_or_else(|| "null".to_owned(), |bytes| bytes.to_string())
                )
            },
        )
    };
    format!(
        "{{\"first\": {}, \"second\": {}, \"restore\": {}, \"stored_first_bytes\": {}, \"stored_second_bytes\": {}}}",
        step(Some(round.first)),
        step(round.second),
        step(round.restore),
        round.stored_first,
        round.stored_second.map_or_else(|| "null".to_owned(), |bytes| bytes.to_string())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(name: &'static str, seconds: &[f64]) -> Subject {
        let round = |&seconds: &f64| {
            let step = Step { seconds, ..Step::default() };
            Round {
                first: step,
                stored_first: 1 << 20,
                second: Some(step),
                stored_second: Some(1 << 20),
                restore: Some(step),
            }
        };
        let rounds = seconds.iter().map(round).collect();
        Subject { name, version: "1".to_owned(), tuned: name.ends_with("-fixed"), rounds }
    }

    #[test]
    fn the_median_is_the_middle_round() {
        assert_eq!(subject("borg", &[9.0, 1.0, 2.0]).median(Figure::First), Some(2.0));
        assert_eq!(subject("borg", &[1.0, 2.0]).median(Figure::Second), Some(1.5));
        assert_eq!(subject("borg", &[]).median(Figure::Second), None);
    }

    #[test]
    fn targets_are_taken_against_the_best_peer() {
        let all =
            [subject("dormouse", &[2.0]), subject("borg", &[10.0]), subject("borg-fixed", &[4.0])];
        let text = markdown(&all, &["rustic: not installed".to_owned()]);
        assert!(
            text.contains(
                "| first copy, best peer with its defaults | 0.20 | 0.200 | borg | met |"
            ),
            "{text}"
        );
        assert!(text.contains(
            "| first copy, best peer with any settings | 0.20 | 0.500 | borg-fixed | MISSED |"
        ));
        assert!(text.contains("| first copy, plain copy | 1.50 | – | not measured | |"));
        assert!(text.contains("rustic: not installed"));
    }
}
