//! What confines a server on this machine: tried, not guessed.
//!
//! A process of its own goes into the jail and tries what a server must not do; what it says is
//! what holds. The unit of the service, where it is installed, is judged by systemd.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Finding, Weight};
use crate::exit::Class;
use crate::jail::Layer;
use crate::jail::probe::{Found, Try};

/// Where the service's unit may be.
const UNITS: [&str; 3] = [
    "/etc/systemd/system/dormouse-serve.service",
    "/usr/local/lib/systemd/system/dormouse-serve.service",
    "/usr/lib/systemd/system/dormouse-serve.service",
];

/// All that is known of this machine; for the server of a store in object storage or another.
pub(super) fn look(bucket: bool) -> Vec<Finding> {
    let mut findings = match probe(bucket) {
        Ok(found) => judge(&found),
        Err(error) => vec![Finding::error("the jail", &error)],
    };
    findings.push(kernel());
    findings.extend(UNITS.iter().map(Path::new).filter(|unit| unit.exists()).map(exposure));
    findings
}

/// Starts the process that tries.
fn probe(bucket: bool) -> Result<Found> {
    let dir = std::env::temp_dir().join(format!("dormouse-jail-{}", std::process::id()));
    std::fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut probe = Command::new(program);
    probe.arg("jail-probe").arg(&dir).args(bucket.then_some("--bucket"));
    let out = probe.stdin(Stdio::null()).output();
    let removed = std::fs::remove_dir_all(&dir);
    let out = out.context("cannot start the process that tries the jail")?;
    removed.with_context(|| format!("cannot remove {}", dir.display()))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "the process that tries the jail failed: {}", said.trim());
    serde_json::from_slice(&out.stdout).context("what the process that tries the jail said")
}

fn judge(found: &Found) -> Vec<Finding> {
    let layer = |said: &crate::jail::probe::LayerSaid| match said.holds {
        true => Finding::fine(&said.layer, &said.why),
        false => Finding::wrong(Class::Other, &said.layer, &said.why)
            .advise(Layer::of_name(&said.layer).map_or("", Layer::way_out)),
    };
    let mut findings: Vec<_> = found.layers.iter().map(layer).collect();
    let holes: Vec<&Try> = found.refused.iter().filter(|tried| tried.after.is_none()).collect();
    for tried in &holes {
        let found = "a server in its jail can do this here";
        findings.push(
            Finding::wrong(Class::Other, &tried.what, found)
                .advise("one of the layers above does not hold, and no other keeps it from this"),
        );
    }
    for tried in &found.allowed {
        if let (None, Some(why)) = (&tried.before, &tried.after) {
            findings.push(
                Finding::wrong(Class::Other, &tried.what, format!("in the jail it fails: {why}"))
                    .advise("the server will not work here; report it, with this output"),
            );
        }
    }
    let kept: Vec<&str> =
        found.refused.iter().filter(|t| t.is_kept()).map(|t| t.what.as_str()).collect();
    if !kept.is_empty() {
        findings.push(Finding::fine("tried, and refused", kept.join(", ")));
    }
    // What was not possible before the jail says nothing of it.
    let untold = found.refused.iter().filter(|t| t.before.is_some() && t.after.is_some());
    for tried in untold {
        let why = tried.before.as_deref().unwrap_or_default();
        findings.push(Finding::note(&tried.what, format!("not possible without the jail: {why}")));
    }
    findings
}

fn kernel() -> Finding {
    let name = rustix::system::uname();
    let text =
        format!("{} on {}", name.release().to_string_lossy(), name.machine().to_string_lossy());
    Finding::new(Weight::Fine, "kernel", text)
}

/// What systemd says of the unit, without asking a running manager.
fn exposure(unit: &Path) -> Finding {
    let about = unit.display().to_string();
    let out = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(unit)
        .stdin(Stdio::null())
        .output();
    let said = match out {
        Ok(out) => String::from_utf8_lossy(&out.stdout).into_owned(),
        Err(error) => return Finding::note(about, format!("not judged: systemd-analyze: {error}")),
    };
    match score(&said) {
        Some(score) if score < 1.5 => {
            Finding::fine(about, format!("exposure {score} of 10, by systemd-analyze"))
        }
        Some(score) => Finding::note(about, format!("exposure {score} of 10, by systemd-analyze"))
            .advise("the unit that comes with this program is below 1.5; compare drop-ins with it"),
        None => Finding::note(about, "systemd-analyze gave no score"),
    }
}

/// The number in `Overall exposure level for UNIT: 1.1 OK`.
fn score(said: &str) -> Option<f64> {
    let line = said.lines().find(|line| line.contains("Overall exposure level"))?;
    line.rsplit_once(": ")?.1.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jail::probe::LayerSaid;

    #[test]
    fn a_hole_a_missing_layer_and_a_broken_server_are_wrong() {
        let text = |t: &str| Some(t.to_owned());
        let tried = |what: &str, before: Option<&str>, after: Option<&str>| Try {
            what: what.into(),
            before: before.and_then(text),
            after: after.and_then(text),
        };
        let layer = |layer: &str, holds| LayerSaid { layer: layer.into(), holds, why: "y".into() };
        let found = Found {
            layers: vec![layer("seccomp", true), layer("landlock-files", false)],
            refused: vec![
                tried("kept", None, Some("no")),
                tried("open", None, None),
                tried("never", Some("no"), Some("no")),
            ],
            allowed: vec![tried("work", None, Some("no")), tried("rest", None, None)],
        };
        let findings = judge(&found);
        let of = |weight| {
            let some = findings.iter().filter(|f| f.weight == weight);
            some.map(|f| f.about.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(of(Weight::Wrong), ["landlock-files", "open", "work"]);
        assert_eq!(of(Weight::Note), ["never"]);
        assert_eq!(of(Weight::Fine), ["seccomp", "tried, and refused"]);
        assert!(findings.iter().all(|f| f.weight != Weight::Wrong || !f.to_do.is_empty()));
    }

    #[test]
    fn the_score_is_read() {
        let said = "x\n→ Overall exposure level for dormouse-serve.service: 1.1 OK :-)\n";
        assert_eq!(score(said), Some(1.1));
        assert_eq!(score("no score"), None);
    }
}
