//! The server's state as it goes to the bucket and comes back.
//!
//! Invariants: what goes is of one moment; the server's key is in it only sealed. What comes
//! back is what was there, but for the key and the header, which are written anew.

use std::path::Path;

use anyhow::Result;
use dormouse_bucket::StateFile;
use dormouse_crypt::Recipient;

use crate::files;
use crate::store_dir::{HEADER, KEY, StoreDir};

/// The sealed key.
pub(super) const SEALED_KEY: &str = "server.key.age";
/// What people set.
const CONFIG: &str = "server.toml";

/// All files, as they are now.
pub(super) fn collect(store: &StoreDir, key_to: Option<&Recipient>) -> Result<Vec<StateFile>> {
    let mut out = Vec::new();
    for (name, bytes) in store.state().snapshot()? {
        if name != KEY {
            out.push(StateFile { name, mode: 0o600, bytes });
        }
    }
    if let Some(bytes) = files::read_opt(&store.path().join(CONFIG))? {
        out.push(StateFile { name: CONFIG.into(), mode: 0o644, bytes });
    }
    if let Some(recipient) = key_to {
        let bytes = recipient.wrap(&*store.seed()?)?;
        out.push(StateFile { name: SEALED_KEY.into(), mode: 0o600, bytes });
    }
    Ok(out)
}

/// Whether this is another state than that: a sealed key is never the same twice.
pub(super) fn differs(a: &[StateFile], b: &[StateFile]) -> bool {
    let plain = |f: &&StateFile| f.name != SEALED_KEY;
    !a.iter().filter(plain).eq(b.iter().filter(plain))
}

/// Writes the files below a directory, but for the header and the key.
pub(super) fn restore(state: &[StateFile], dir: &Path) -> Result<()> {
    for file in state.iter().filter(|f| f.name != HEADER && f.name != SEALED_KEY) {
        let path = dir.join(&file.name);
        files::make_dir(files::parent(&path))?;
        files::replace(&path, &file.bytes, file.mode & 0o644 | 0o600)?;
    }
    Ok(())
}
