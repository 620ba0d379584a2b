//! `dormouse doctor [STORE]`: what confines a server on this machine, what is wrong with a
//! store, and what to do, in words.
//!
//! Owns: how findings are told, and the exit code. Invariant: nothing is changed, and nothing of
//! a store is waited for: it works beside a server. Leaves to others: what is looked at
//! ([`host`], [`store`]); every record is read by [`crate::scrub`].

mod host;
mod store;

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::exit::{Class, fail};
use crate::out::say;
use crate::store_dir::StoreDir;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// As it should be.
    Fine,
    /// Worth knowing; nothing has to be done.
    Note,
    /// Something has to be done.
    Wrong,
}

impl Weight {
    const fn name(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Note => "note",
            Self::Wrong => "wrong",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    weight: Weight,
    /// What was looked at.
    about: String,
    /// What was found.
    found: String,
    /// What to do.
    to_do: String,
    /// The exit code, if it is wrong.
    class: Class,
}

impl Finding {
    fn new(weight: Weight, about: impl Into<String>, found: impl Into<String>) -> Self {
        let (about, found) = (about.into(), found.into());
        Self { weight, about, found, to_do: String::new(), class: Class::Other }
    }

    fn fine(about: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(Weight::Fine, about, found)
    }

    fn note(about: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(Weight::Note, about, found)
    }

    fn wrong(class: Class, about: impl Into<String>, found: impl Into<String>) -> Self {
        Self { class, ..Self::new(Weight::Wrong, about, found) }
    }

    fn advise(mut self, to_do: impl Into<String>) -> Self {
        self.to_do = to_do.into();
        self
    }

    /// An error that ended the look at something.
    fn error(about: impl Into<String>, error: &anyhow::Error) -> Self {
        let class = crate::exit::class_of(error);
        Self::wrong(class, about, format!("{error:#}")).advise(crate::exit::hint_of(error))
    }
}

/// Runs the command.
pub fn run(store: Option<&Path>, as_json: bool) -> Result<()> {
    let mut wrong = Vec::new();
    let bucket = store.is_some_and(|path| StoreDir::open(path).is_ok_and(|s| s.note().is_some()));
    let parts = [("host", Some(host::look(bucket))), ("store", store.map(store::look))];
    for (part, findings) in parts {
        let findings = findings.unwrap_or_default();
        if !as_json && !findings.is_empty() {
            say!("{}", heading(part, store))?;
        }
        for finding in findings {
            tell(part, &finding, as_json)?;
            if finding.weight == Weight::Wrong {
                wrong.push(finding);
            }
        }
    }
    // Of a store before the host: its data is what it is about.
    let Some(worst) = wrong.last() else { return Ok(()) };
    let class = worst.class;
    let text = match wrong.len() {
        1 => format!("{}: {}", worst.about, worst.found),
        n => format!("{n} things are not as they should be"),
    };
    fail(class, text, "what to do stands below each `wrong`")
}

fn heading(part: &str, store: Option<&Path>) -> String {
    match (part, store) {
        ("store", Some(path)) => format!("\nthe store {}", path.display()),
        _ => "what confines a server on this machine".to_owned(),
    }
}

fn tell(part: &str, finding: &Finding, as_json: bool) -> Result<()> {
    let Finding { weight, about, found, to_do, .. } = finding;
    if as_json {
        return say!(
            "{}",
            json!({
                "event": "finding", "part": part, "weight": weight.name(), "about": about,
                "found": found, "to_do": to_do,
            })
        );
    }
    say!("  {:<5}  {about}: {found}", weight.name())?;
    for line in to_do.lines() {
        say!("           {line}")?;
    }
    Ok(())
}
