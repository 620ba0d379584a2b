//! Making a home: everything lies in `pending/` until the server has said welcome.

use anyhow::Result;
use dormouse_crypt::{Identity, OsRandom, Random, SigningKey, VaultSecrets};
use dormouse_format::InstanceId;
use zeroize::Zeroizing;

use super::{CERT, CLIENT, ClientFile, Home, INSTANCE};
use crate::exit::{Class, fail};
use crate::files;
use crate::state_files::{Kind, MANIFEST, StateFiles};
use crate::text::{hex, unhex, unhex_array};

const PENDING: &str = "pending";
const READY: &str = "ready";
const LABEL: &str = "label";

const STATE: Kind = Kind {
    files: &[CLIENT, CERT, INSTANCE, LABEL],
    dirs: &["keys"],
    spare: &[],
    way_out: "an earlier try to join left it: remove the directory `pending` there, and join with a new invite",
};

/// The keys and the certificate of a home that is being made.
#[derive(Debug)]
pub struct NewHome {
    /// For connections.
    pub transport: SigningKey,
    /// The writer's.
    pub signing: SigningKey,
    /// The writer's certificate, a whole record.
    pub cert: Vec<u8>,
    /// Digest and map key.
    pub secrets: VaultSecrets,
    /// The vault's authority, unless this is a second writer.
    pub authority: Option<SigningKey>,
    /// The vault's identity, unless this is a second writer.
    pub identity: Option<Identity>,
}

/// A home that waits for the server's welcome.
#[derive(Debug)]
pub struct Pending {
    /// Its keys.
    pub keys: NewHome,
    /// Its `client.toml`.
    pub file: ClientFile,
}

impl Home {
    /// Fails if a vault was joined from here.
    pub fn must_be_new(&self) -> Result<()> {
        self.finish_pending()?;
        if !self.joined() {
            return Ok(());
        }
        let file = self.client_file()?;
        fail(
            Class::Place,
            format!(
                "{} has joined already: client '{}' at {}",
                self.dir.display(),
                file.client,
                file.target
            ),
            "use another home for another vault: `dormouse --home DIR join …`",
        )
    }

    /// The state files of a home that is being made.
    pub fn pending_state(&self) -> StateFiles {
        StateFiles::new(self.path(PENDING), &STATE)
    }

    /// Keeps a new home aside, durably, under a label such as the invite's hash.
    pub fn save_pending(&self, label: &str, pending: &Pending) -> Result<()> {
        // Moved first: half a tree would be one that is damaged.
        let (dir, old) = (self.path(PENDING), self.path("pending.old"));
        for gone in [false, true] {
            if old.exists() {
                std::fs::remove_dir_all(&old)?;
            }
            if !gone && dir.exists() {
                std::fs::rename(&dir, &old)?;
                files::sync_dir(&self.dir)?;
            }
        }
        let state = self.pending_state();
        let write = |name: &str, text: &str| state.write(name, text, 0o600);
        let keys = &pending.keys;
        write("keys/transport", &Zeroizing::new(hex(keys.transport.seed())))?;
        write("keys/signing", &Zeroizing::new(hex(keys.signing.seed())))?;
        write("keys/vault", &Zeroizing::new(hex(&keys.secrets.to_bytes()[..])))?;
        if let Some(authority) = &keys.authority {
            write("keys/authority", &Zeroizing::new(hex(authority.seed())))?;
        }
        if let Some(identity) = &keys.identity {
            write("keys/identity", &identity.to_secret())?;
        }
        write(CERT, &hex(&keys.cert))?;
        write(INSTANCE, &InstanceId(OsRandom.array()).to_string())?;
        write(CLIENT, &toml::to_string(&pending.file)?)?;
        // Last: without it, what lies there is not whole.
        write(LABEL, label)?;
        files::sync_dir(&self.dir)?;
        Ok(())
    }

    /// What an earlier try under this label kept; what another label kept is not touched.
    pub fn load_pending(&self, label: &str) -> Result<Option<Pending>> {
        let dir = self.path(PENDING);
        let state = self.pending_state();
        let there = state.read(LABEL)?;
        if there.as_deref().map(String::as_str) != Some(label) {
            return Ok(None);
        }
        state.must_hold()?;
        let aside = Self { dir };
        let Some(text) = state.read(CLIENT)? else { return Ok(None) };
        let Ok(file) = toml::from_str::<ClientFile>(&text) else { return Ok(None) };
        let vault = aside.secret("vault")?.and_then(|t| unhex_array::<64>(&t).map(Zeroizing::new));
        let cert = state.read(CERT)?.and_then(|t| unhex(&t));
        let identity = aside.secret("identity")?.and_then(|t| t.parse().ok());
        let (Some(transport), Some(signing), Some(vault), Some(cert)) =
            (aside.seed("transport")?, aside.seed("signing")?, vault, cert)
        else {
            return Ok(None);
        };
        let keys = NewHome {
            transport,
            signing,
            cert,
            secrets: VaultSecrets::from_bytes(file.epoch, &vault),
            authority: aside.seed("authority")?,
            identity,
        };
        Ok(Some(Pending { keys, file }))
    }

    /// The server has said welcome: what is pending becomes the home. `name` is what
    /// the server calls this client.
    pub fn accept_pending(&self, name: &str) -> Result<()> {
        let pending = self.path(PENDING);
        let state = self.pending_state();
        if let Some(text) = state.read(CLIENT)? {
            let mut file: ClientFile = toml::from_str(&text)?;
            if file.client != name {
                file.client = name.to_owned();
                state.write(CLIENT, &toml::to_string(&file)?, 0o600)?;
            }
        }
        state.remove(LABEL, |_| ())?;
        std::fs::rename(&pending, self.path(READY))?;
        files::sync_dir(&self.dir)?;
        self.finish_pending()
    }

    /// Ends an acceptance that was cut short. Each step can be repeated.
    pub(super) fn finish_pending(&self) -> Result<()> {
        let ready = self.path(READY);
        if !ready.exists() {
            return Ok(());
        }
        for name in [MANIFEST, "keys", CERT, INSTANCE, CLIENT] {
            let from = ready.join(name);
            if from.exists() {
                std::fs::rename(from, self.path(name))?;
                files::sync_dir(&self.dir)?;
            }
        }
        std::fs::remove_dir_all(&ready)?;
        files::sync_dir(&self.dir)?;
        Ok(())
    }
}
