//! The manifest: which files a tree has, and which change wrote each.
//!
//! Owns: its text, and the judgement of a file against it. Invariant: a file is
//! taken only if it is the one that the manifest names, or exactly one change ahead.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::sheet::{Sheet, TreeId};
use crate::text::hex;

/// Its name.
pub const NAME: &str = "manifest.toml";

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: String,
    version: u32,
    /// A file that is being removed: it may still be there.
    #[serde(skip_serializing_if = "Option::is_none")]
    removing: Option<String>,
    files: BTreeMap<String, Entry>,
}

/// A file, as the manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) change: u64,
    pub(super) check: String,
}

/// A manifest that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) tree: TreeId,
    /// The last change that it knows.
    pub(super) change: u64,
    pub(super) removing: Option<String>,
    pub(super) files: BTreeMap<String, Entry>,
}

/// What is wrong with a state file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// A byte is wrong, it was cut, or it is another file's content.
    Damaged,
    /// It holds under this other name.
    IsOf(String),
    /// It belongs to another tree.
    OtherTree,
    /// An older version than the manifest names.
    Old {
        /// The change that wrote it.
        found: u64,
        /// The change that the manifest names.
        newest: u64,
    },
    /// A file is more than one change ahead: the manifest is the one that is old.
    ManifestOld {
        /// The change that wrote that file.
        newest: u64,
        /// The last that the manifest knows.
        found: u64,
    },
    /// Neither what the manifest names, nor older, nor newer.
    Mixed,
    /// The manifest names it, and it is not there.
    Missing,
    /// It is there, and the manifest does not name it.
    Stray,
    /// A tree without a manifest.
    NoManifest,
    /// A manifest of a newer program.
    Newer(u32),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged => f.write_str("it is damaged: its check does not hold"),
            Self::IsOf(name) => write!(f, "it has the content of {name}: files were exchanged"),
            Self::OtherTree => f.write_str("it belongs to another store or home"),
            Self::Old { found, newest } => write!(
                f,
                "an old version was put back: it is of change {found}, and the newest of change \
                 {newest}"
            ),
            Self::ManifestOld { newest, found } => write!(
                f,
                "an old version was put back: it knows {found} changes, and another file is of \
                 change {newest}"
            ),
            Self::Mixed => write!(
                f,
                "it is not the version that {NAME} names: two copies of one directory were mixed"
            ),
            Self::Missing => f.write_str("it is missing"),
            Self::Stray => {
                write!(f, "{NAME} does not name it: it was removed before, or put there by hand")
            }
            Self::NoManifest => f.write_str("it is missing, and other files are there"),
            Self::Newer(version) => write!(f, "it has version {version}, of a newer program"),
        }
    }
}

const FORMAT: &str = "dormouse manifest";
const VERSION: u32 = 1;

impl Manifest {
    /// The manifest of a tree without files.
    pub(super) const fn new(tree: TreeId) -> Self {
        Self { tree, change: 0, removing: None, files: BTreeMap::new() }
    }

    /// Takes its bytes apart.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Why> {
        let sheet = Sheet::read(NAME, bytes).ok_or(Why::Damaged)?;
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let head: Head = toml::from_str(&sheet.text).map_err(|_| Why::Damaged)?;
        if head.version > VERSION {
            return Err(Why::Newer(head.version));
        }
        let text: Text = toml::from_str(&sheet.text).map_err(|_| Why::Damaged)?;
        if text.format != FORMAT {
            return Err(Why::Damaged);
        }
        let (tree, change) = (sheet.tree, sheet.change);
        Ok(Self { tree, change, removing: text.removing, files: text.files })
    }

    /// Its bytes.
    pub(super) fn render(&self) -> anyhow::Result<String> {
        let text = toml::to_string(&Text {
            format: FORMAT.into(),
            version: VERSION,
            removing: self.removing.clone(),
            files: self.files.clone(),
        })?;
        Ok(Sheet::new(self.tree, self.change, NAME, &text).render().to_string())
    }

    /// Takes in a file that is one change ahead.
    pub(super) fn take(&mut self, name: &str, sheet: &Sheet) {
        self.change = sheet.change;
        let entry = Entry { change: sheet.change, check: hex(&sheet.check) };
        self.files.insert(name.to_owned(), entry);
    }

    /// Whether this file was written and the manifest was not, yet.
    pub(super) fn is_ahead(&self, sheet: &Sheet) -> bool {
        sheet.tree == self.tree && self.change.checked_add(1) == Some(sheet.change)
    }

    /// Said of a file that is more than one change ahead, or the second that is ahead.
    pub(super) const fn behind(&self, sheet: &Sheet) -> Why {
        Why::ManifestOld { newest: sheet.change, found: self.change }
    }

    /// What is at a name: `None` if nothing should be, and nothing is.
    pub(super) fn judge(&self, name: &str, found: Option<Sheet>) -> Result<Option<Sheet>, Why> {
        let entry = self.files.get(name);
        let Some(sheet) = found else {
            return if entry.is_some() { Err(Why::Missing) } else { Ok(None) };
        };
        if sheet.tree != self.tree {
            return Err(Why::OtherTree);
        }
        if self.is_ahead(&sheet) {
            return Ok(Some(sheet));
        }
        if sheet.change > self.change {
            return Err(self.behind(&sheet));
        }
        let Some(entry) = entry else {
            return if self.removing.as_deref() == Some(name) { Ok(None) } else { Err(Why::Stray) };
        };
        if sheet.change < entry.change {
            return Err(Why::Old { found: sheet.change, newest: entry.change });
        }
        if sheet.change > entry.change || hex(&sheet.check) != entry.check {
            return Err(Why::Mixed);
        }
        Ok(Some(sheet))
    }
}
