//! What a client keeps: `DORMOUSE_HOME`.
//!
//! Owns: the files in it and how they change. Invariant: directory 0700, files
//! 0600, every change whole and durable, every file a state file that is checked
//! before use ([`crate::state_files`]); `client.toml` comes last, so that it stands for
//! a home that is joined. Identity and authority may be absent.

mod join_files;
pub mod machine;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Result;
use dormouse_crypt::{Identity, Recipient, SigningKey, VaultSecrets, hash};
use dormouse_format::point::{POINT_LEN, SignedPoint};
use dormouse_format::vault::Volume;
use dormouse_format::{InstanceId, PublicKey, Reader, VaultId, VolumeId, WriterId};
use dormouse_track::closed::Closed;
use dormouse_track::disk_id::DiskId;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::connect::Target;
use crate::exit::{Class, Failure, fail};
use crate::files::{self, Lock};
use crate::state_files::{Kind, StateFiles};
use crate::text::{hex, unhex, unhex_array};

pub use join_files::{NewHome, Pending};
use machine::MACHINE;

const CLIENT: &str = "client.toml";
const CERT: &str = "cert";
const INSTANCE: &str = "instance";

const STATE: Kind = Kind {
    files: &[CLIENT, CERT, INSTANCE, MACHINE],
    dirs: &["keys", "heads", "seen", "volumes", "disks", "closed"],
    spare: &["heads", "seen", "volumes", "disks", "closed"],
    way_out: "bring the home back from a backup, all of it; or let `dormouse status --accept-state` go on with\n\
              what holds; or start anew in another home with `dormouse join --kit FILE`",
};

/// What is not secret, in `client.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientFile {
    /// `dormouse://HOST:PORT` or `dir:/PATH`.
    pub target: String,
    /// Fingerprint of the server's key.
    pub server: String,
    /// The client's name.
    pub client: String,
    /// The vault's id.
    pub vault: String,
    /// The authority's public key.
    pub authority: String,
    /// Whom data keys are wrapped to.
    pub recipient: String,
    /// The epoch of the digest and map key.
    pub epoch: u32,
    /// The writer's trust group.
    pub trust_group: u32,
    /// When the recovery kit was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kit_exported: Option<String>,
}

/// Everything that a joined client needs to copy.
#[derive(Debug)]
pub struct Account {
    /// Where the server is.
    pub target: Target,
    /// Fingerprint of its key.
    pub server: [u8; 32],
    /// The client's name.
    pub name: String,
    /// The vault.
    pub vault: VaultId,
    /// The authority's public key.
    pub authority: PublicKey,
    /// Whom data keys are wrapped to.
    pub recipient: Recipient,
    /// The writer's trust group.
    pub trust_group: u32,
    /// Digest and map key.
    pub secrets: VaultSecrets,
    /// The key of this machine for connections.
    pub transport: SigningKey,
    /// The writer's key.
    pub signing: SigningKey,
    /// The writer's certificate, a whole record.
    pub cert: Vec<u8>,
    /// This installation: a home that was copied to another machine has another there.
    pub instance: InstanceId,
    /// Whether a recovery kit was written.
    pub kit_exported: bool,
}

impl Account {
    /// The writer's id.
    pub fn writer(&self) -> WriterId {
        self.signing.writer_id()
    }
}

/// A home; it may be empty.
#[derive(Debug, Clone)]
pub struct Home {
    dir: PathBuf,
}

impl Home {
    /// The home at `dir`, or where the environment says.
    pub fn locate(dir: Option<PathBuf>) -> Result<Self> {
        let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let dir = dir
            .filter(|d| !d.as_os_str().is_empty())
            .or_else(|| from("XDG_STATE_HOME").map(|d| d.join("dormouse")))
            .or_else(|| from("HOME").map(|d| d.join(".local/state/dormouse")))
            .or_else(|| {
                rustix::process::geteuid().is_root().then(|| PathBuf::from("/var/lib/dormouse"))
            });
        match dir {
            Some(dir) => Ok(Self { dir: std::path::absolute(dir)? }),
            None => fail(
                Class::Usage,
                "there is no place for the program's own files: HOME is not set",
                "set DORMOUSE_HOME, or give --home DIR",
            ),
        }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its state files.
    pub fn state(&self) -> StateFiles {
        StateFiles::new(self.dir.clone(), &STATE)
    }

    /// Goes on with the files that hold; what does not is set aside.
    pub fn accept_state(&self) -> Result<Vec<String>> {
        self.finish_pending()?;
        if !self.joined() {
            self.client_file()?;
        }
        let _lock = self.lock()?;
        self.state().accept()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Whether a vault was joined from here.
    pub fn joined(&self) -> bool {
        self.path(CLIENT).exists() || self.state().exists()
    }

    /// Makes the directory and takes the home for a change.
    pub fn lock(&self) -> Result<Lock> {
        self.lock_named("lock")
    }

    /// Takes one of the home's locks, such as that of a volume.
    pub fn lock_named(&self, name: &str) -> Result<Lock> {
        files::make_dir(&self.dir)?;
        Lock::take(&self.path(name))?.map_err(|pid| {
            Failure::new(
                Class::InUse,
                format!("{} is in use by process {pid}", self.path(name).display()),
            )
            .hint("wait until it has ended, or end it")
            .into()
        })
    }

    /// What `client.toml` says.
    pub fn client_file(&self) -> Result<ClientFile> {
        self.finish_pending()?;
        let state = self.state();
        state.must_hold()?;
        let Some(text) = state.read(CLIENT)? else {
            return fail(
                Class::NotFound,
                format!("nothing is joined yet in {}", self.dir.display()),
                "`dormouse join INVITE` joins a server, `dormouse join DIR` a directory;\nafter the loss of a machine: `dormouse join --kit FILE`",
            );
        };
        toml::from_str(&text).map_err(|e| self.damaged(CLIENT, e.message()).into())
    }

    fn save_client_file(&self, file: &ClientFile) -> Result<()> {
        self.state().write(CLIENT, &toml::to_string(file)?, 0o600)
    }

    /// Changes `client.toml`; the caller holds the lock.
    pub fn change_client_file(&self, change: impl FnOnce(&mut ClientFile)) -> Result<()> {
        let mut file = self.client_file()?;
        change(&mut file);
        self.save_client_file(&file)
    }

    fn damaged(&self, name: &str, why: &str) -> Failure {
        let path = self.path(name);
        Failure::new(Class::Damaged, format!("{} cannot be understood: {why}", path.display()))
            .hint(STATE.way_out)
    }

    fn secret(&self, name: &str) -> Result<Option<Zeroizing<String>>> {
        self.state().read(&format!("keys/{name}"))
    }

    fn seed(&self, name: &str) -> Result<Option<SigningKey>> {
        let Some(text) = self.secret(name)? else { return Ok(None) };
        let seed = unhex_array(&text)
            .ok_or_else(|| self.damaged(&format!("keys/{name}"), "not 64 hexadecimal digits"))?;
        Ok(Some(SigningKey::from_seed(seed)?))
    }

    fn needed<T>(&self, name: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.damaged(name, "it is missing").into())
    }

    /// Everything that copying needs.
    pub fn account(&self) -> Result<Account> {
        let file = self.client_file()?;
        let bad = |field: &str| self.damaged(CLIENT, &format!("'{field}' is not valid"));
        let vault_text = self.needed("keys/vault", self.secret("vault")?)?;
        let vault_bytes = Zeroizing::new(
            unhex_array::<64>(&vault_text)
                .ok_or_else(|| self.damaged("keys/vault", "not 128 hexadecimal digits"))?,
        );
        let state = self.state();
        let cert = state.read(CERT)?.and_then(|t| unhex(&t));
        let instance = state.read(INSTANCE)?.and_then(|t| InstanceId::from_hex(&t));
        let vault = VaultId::from_hex(&file.vault).ok_or_else(|| bad("vault"))?;
        let authority = PublicKey::from_hex(&file.authority).ok_or_else(|| bad("authority"))?;
        if hash::vault_id(&authority) != vault {
            return Err(bad("authority").into());
        }
        Ok(Account {
            target: file.target.parse()?,
            server: unhex_array(&file.server).ok_or_else(|| bad("server"))?,
            name: file.client,
            vault,
            authority,
            recipient: file.recipient.parse().map_err(|_| bad("recipient"))?,
            trust_group: file.trust_group,
            secrets: VaultSecrets::from_bytes(file.epoch, &vault_bytes),
            transport: self.needed("keys/transport", self.seed("transport")?)?,
            signing: self.needed("keys/signing", self.seed("signing")?)?,
            cert: self.needed(CERT, cert)?,
            instance: self.instance_here(self.needed(INSTANCE, instance)?)?,
            kit_exported: file.kit_exported.is_some(),
        })
    }

    /// The vault's authority, if it is on this machine.
    pub fn authority(&self) -> Result<SigningKey> {
        self.client_file()?;
        self.seed("authority")?
            .ok_or_else(|| self.missing("the vault's authority", "keys/authority"))
    }

    /// The vault's identity, if it is on this machine.
    pub fn identity(&self) -> Result<Identity> {
        self.client_file()?;
        let Some(text) = self.secret("identity")? else {
            return Err(self.missing("the vault's identity", "keys/identity"));
        };
        Ok(text.parse().map_err(|_| self.damaged("keys/identity", "not an AGE-SECRET-KEY"))?)
    }

    fn missing(&self, what: &str, name: &str) -> anyhow::Error {
        let message = format!("{what} is not on this machine ({})", self.path(name).display());
        Failure::new(Class::KeyMissing, message)
            .hint("bring the recovery kit: `dormouse --home NEWDIR join --kit FILE` makes a home that has it")
            .into()
    }

    /// Whether identity and authority are here.
    pub fn has_offline_keys(&self) -> (bool, bool) {
        (self.path("keys/identity").exists(), self.path("keys/authority").exists())
    }

    /// Takes identity and authority off this machine.
    pub fn remove_offline_keys(&self) -> Result<()> {
        for name in ["keys/identity", "keys/authority"] {
            self.state().remove(name, wipe)?;
        }
        Ok(())
    }

    /// Replaces the certificate and the trust group.
    pub fn save_cert(&self, cert: &[u8], trust_group: u32) -> Result<()> {
        self.state().write(CERT, &hex(cert), 0o600)?;
        self.change_client_file(|file| file.trust_group = trust_group)
    }

    /// The newest head of a volume that this machine knows, and whether it was vouched for.
    pub fn anchor(&self, volume: &VolumeId) -> Result<Option<Anchor>> {
        for vouched in [true, false] {
            if let Some(head) = self.head_in(&head_file(volume, vouched), volume)? {
                return Ok(Some(Anchor { head, vouched }));
            }
        }
        Ok(None)
    }

    /// Where the anchor of a volume is kept.
    pub fn anchor_path(&self, volume: &VolumeId, vouched: bool) -> PathBuf {
        self.path(&head_file(volume, vouched))
    }

    fn head_in(&self, name: &str, volume: &VolumeId) -> Result<Option<SignedPoint>> {
        let Some(text) = self.state().read(name)? else { return Ok(None) };
        match head_of(&text) {
            Some(point) if point.point.volume == *volume => Ok(Some(point)),
            _ => Err(self.damaged(name, "it is not a signed point").into()),
        }
    }

    /// Remembers a volume and its head, so that a server that goes back is found out. Of two
    /// commands that end together the newer head stays.
    pub fn remember(&self, volume: &Volume, anchor: &Anchor) -> Result<()> {
        let (state, name) = (self.state(), format!("volumes/{}", volume.name));
        if self.known_volume(&volume.name)? != Some(volume.id) {
            state.write(&name, &volume.id.to_string(), 0o600)?;
        }
        state.update(&head_file(&volume.id, anchor.vouched), 0o600, |old| {
            let newer = |old: SignedPoint| anchor.head.point.seq > old.point.seq;
            let goes = old.and_then(head_of).is_none_or(newer);
            goes.then(|| hex(&anchor.head.encode()))
        })
    }

    /// The volume that this machine has seen under a name.
    pub fn known_volume(&self, name: &str) -> Result<Option<VolumeId>> {
        let file = format!("volumes/{name}");
        let Some(text) = self.state().read(&file)? else { return Ok(None) };
        VolumeId::from_hex(&text)
            .map(Some)
            .ok_or_else(|| self.damaged(&file, "it is not the id of a volume").into())
    }

    /// The disk that was copied into a volume from here.
    pub fn known_disk(&self, volume: &VolumeId) -> Result<Option<DiskId>> {
        let file = format!("disks/{volume}");
        let Some(text) = self.state().read(&file)? else { return Ok(None) };
        DiskId::from_text(&text)
            .map(Some)
            .ok_or_else(|| self.damaged(&file, "it does not say by what a disk is known").into())
    }

    /// Remembers by what the disk of a volume is known.
    pub fn remember_disk(&self, volume: &VolumeId, disk: &DiskId) -> Result<()> {
        self.state().update(&format!("disks/{volume}"), 0o600, |old| {
            let same = old.and_then(DiskId::from_text).is_some_and(|old| old == *disk);
            (!same).then(|| disk.to_text())
        })
    }

    /// What was kept of a volume when its mirror was closed. What does not hold counts for nothing.
    pub fn closed(&self, volume: &VolumeId) -> Option<Closed> {
        let text = self.state().read(&format!("closed/{volume}")).ok()??;
        Closed::from_text(&text)
    }

    /// Keeps it for one start.
    pub fn keep_closed(&self, closed: &Closed) -> Result<bool> {
        let Some(text) = closed.to_text() else { return Ok(false) };
        self.state().write(&format!("closed/{}", VolumeId(closed.volume)), &text, 0o600)?;
        Ok(true)
    }

    /// No start finds it any more.
    pub fn forget_closed(&self, volume: &VolumeId) -> Result<()> {
        self.state().remove(&format!("closed/{volume}"), |_| {})
    }

    /// Names of the volumes that this machine has seen.
    pub fn known_volumes(&self) -> Result<Vec<String>> {
        let files = self.state().view()?.names("volumes")?;
        Ok(files.into_iter().filter_map(|f| Some(f.split_once('/')?.1.to_owned())).collect())
    }
}

/// Overwrites a key before it is removed; on most disks of today that is no more than
/// a gesture.
fn wipe(path: &Path) {
    if let Ok(meta) = std::fs::metadata(path) {
        let _ = std::fs::write(path, vec![b'0'; meta.len() as usize]);
        let _ = File::open(path).and_then(|f| f.sync_all());
    }
}

fn head_of(text: &str) -> Option<SignedPoint> {
    let bytes = unhex(text).filter(|b| b.len() == POINT_LEN)?;
    SignedPoint::read(&mut Reader::new(&bytes, "head")).ok()
}

fn head_file(volume: &VolumeId, vouched: bool) -> String {
    format!("{}/{volume}", if vouched { "heads" } else { "seen" })
}

/// A head that the server must not go back behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    /// The point.
    pub head: SignedPoint,
    /// It goes on from a point that this machine made, or that the user named. If not, it is
    /// the newest that the server has shown here, and may have been an old one then.
    pub vouched: bool,
}
