//! The file that brings a second machine into a vault, past the server.
//!
//! Owns: its form. It is secret: it holds digest key, map key and a writer's key.
//! It holds neither the authority nor the identity.

use std::path::Path;

use anyhow::Result;
use dormouse_crypt::{Recipient, SigningKey, VaultSecrets, hash, keys, record};
use dormouse_format::PublicKey;
use dormouse_format::message::Message;
use dormouse_format::record::Kind;
use dormouse_format::vault::Cert;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::connect::{ask, connect, send, unexpected};
use crate::exit::{Class, Failure, fail};
use crate::files;
use crate::home::Home;
use crate::join::certificate;
use crate::text::{hex, unhex, unhex_array};

const FORMAT: &str = "dormouse writer";
/// The trust group of writers that may share each other's chunks.
const TRUSTED: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Raw {
    format: String,
    version: u32,
    authority: String,
    recipient: String,
    epoch: u32,
    vault_keys: String,
    writer_key: String,
    certificate: String,
}

/// What a second writer needs.
#[derive(Debug)]
pub struct WriterFile {
    /// The authority's public key.
    pub authority: PublicKey,
    /// Whom data keys are wrapped to.
    pub recipient: Recipient,
    /// Digest and map key.
    pub secrets: VaultSecrets,
    /// The new writer's key.
    pub signing: SigningKey,
    /// Its certificate, a whole record.
    pub cert: Vec<u8>,
    /// Its trust group.
    pub trust_group: u32,
}

impl WriterFile {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self> {
        let Some(text) = files::read_text(path)?.map(Zeroizing::new) else {
            return fail(
                Class::Place,
                format!("there is no file {}", path.display()),
                "`dormouse vault export-writer FILE` on a machine of the vault makes one",
            );
        };
        Self::parse(&text).ok_or_else(|| {
            let message = format!("{} is not a whole writer's file", path.display());
            Failure::new(Class::Place, message)
                .hint("`dormouse vault export-writer FILE` on a machine of the vault makes one")
                .into()
        })
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let raw: Raw = toml::from_str(text).ok()?;
        if raw.format != FORMAT || raw.version != 1 || raw.epoch == 0 {
            return None;
        }
        let authority = PublicKey::from_hex(&raw.authority)?;
        let signing = SigningKey::from_seed(unhex_array(&raw.writer_key)?).ok()?;
        let cert = unhex(&raw.certificate)?;
        let (header, body) = record::check(&cert).ok()?;
        let value: Cert = keys::verify_body(&authority, body).ok()?;
        let fits = header.kind == Kind::Cert
            && value.key == signing.public()
            && value.vault == hash::vault_id(&authority);
        fits.then_some(Self {
            authority,
            recipient: raw.recipient.parse().ok()?,
            secrets: VaultSecrets::from_bytes(
                raw.epoch,
                &Zeroizing::new(unhex_array(&raw.vault_keys)?),
            ),
            signing,
            trust_group: value.trust_group,
            cert,
        })
    }

    pub(crate) fn text(&self) -> Result<Zeroizing<String>> {
        let raw = Raw {
            format: FORMAT.into(),
            version: 1,
            authority: self.authority.to_string(),
            recipient: self.recipient.to_string(),
            epoch: self.secrets.epoch,
            vault_keys: hex(&self.secrets.to_bytes()[..]),
            writer_key: hex(self.signing.seed()),
            certificate: hex(&self.cert),
        };
        Ok(Zeroizing::new(format!(
            "# A writer of a Dormouse vault. Secret: who has this file can write as this writer,\n\
             # and can tell whether known content is in the vault. It opens nothing.\n\
             # Use: dormouse join INVITE --vault THIS-FILE, then remove it.\n{}",
            toml::to_string(&raw)?
        )))
    }
}

/// `dormouse vault export-writer`: certifies a new writer and writes its file.
pub fn export(home: &Home, path: &Path, name: &str, trusted: bool) -> Result<()> {
    crate::access::check_name(name)?;
    let _lock = home.lock()?;
    let account = home.account()?;
    let authority = home.authority()?;
    if path.exists() {
        return fail(Class::Place, format!("{} exists already", path.display()), "name a new file");
    }
    let group = if trusted { account.trust_group.max(TRUSTED) } else { 0 };
    if group != account.trust_group && trusted {
        // This machine's writer comes into the group too.
        let own = certificate(&authority, account.vault, &account.signing, &account.name, group);
        let link = connect(&account)?;
        send(&link, Message::Put { record: own.clone() })?;
        if ask(&link, Message::Barrier)? != Message::Durable {
            return unexpected("a certificate");
        }
        home.save_cert(&own, group)?;
    }
    let signing = SigningKey::generate(&mut dormouse_crypt::OsRandom)?;
    let cert = certificate(&authority, account.vault, &signing, name, group);
    let file = WriterFile {
        authority: account.authority,
        recipient: account.recipient,
        secrets: account.secrets,
        signing,
        cert,
        trust_group: group,
    };
    if !files::create_new(path, file.text()?.as_bytes(), 0o600)? {
        return fail(Class::Place, format!("{} exists already", path.display()), "name a new file");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_crypt::{Identity, OsRandom};

    /// A committed example (docs/format.md, 'Writer's file'): a change is a change of the format.
    #[test]
    fn the_committed_file_is_read_and_written() {
        let text = include_str!("../../../testdata/text/writer.toml");
        let authority = SigningKey::from_seed([0x11; 32]).unwrap();
        let vault = hash::vault_id(&authority.public());
        let signing = SigningKey::from_seed([0x22; 32]).unwrap();
        let cert = Cert {
            vault,
            key: signing.public(),
            trust_group: 1,
            issued: 1_800_000_000_000_000_000,
            name: "desk".into(),
        };
        let body = authority.sign_body(&cert);
        let hex_identity: String =
            include_str!("../../../testdata/vectors/age_identity.txt").lines().skip(1).collect();
        let identity = String::from_utf8(unhex(&hex_identity).unwrap()).unwrap();
        let file = WriterFile {
            authority: authority.public(),
            recipient: identity.parse::<Identity>().unwrap().recipient(),
            secrets: VaultSecrets::new(1, [0x55; 32], [0x66; 32]),
            signing,
            cert: record::plain(Kind::Cert, dormouse_format::WriterId::ZERO, &body),
            trust_group: 1,
        };
        assert_eq!(*file.text().unwrap(), text);
        let back = WriterFile::parse(text).unwrap();
        assert_eq!((back.authority, back.trust_group), (file.authority, 1));
        assert_eq!(back.recipient.to_string(), file.recipient.to_string());
        assert_eq!((back.secrets.epoch, back.secrets.to_bytes()), (1, file.secrets.to_bytes()));
        assert_eq!((back.signing.seed(), &back.cert), (&[0x22; 32], &file.cert));
        assert!(WriterFile::parse(&text.replace("version = 1", "version = 2")).is_none());
    }

    #[test]
    fn round_trip_and_damage() {
        let authority = SigningKey::generate(&mut OsRandom).unwrap();
        let signing = SigningKey::generate(&mut OsRandom).unwrap();
        let vault = hash::vault_id(&authority.public());
        let file = WriterFile {
            authority: authority.public(),
            recipient: Identity::generate().recipient(),
            secrets: VaultSecrets::generate(&mut OsRandom),
            cert: certificate(&authority, vault, &signing, "desk", 1),
            signing,
            trust_group: 1,
        };
        let text = file.text().unwrap();
        let back = WriterFile::parse(&text).unwrap();
        assert_eq!(back.signing.public(), file.signing.public());
        assert_eq!((back.trust_group, &back.cert), (1, &file.cert));
        assert!(!text.contains("AGE-SECRET"));
        let other = SigningKey::generate(&mut OsRandom).unwrap();
        let swapped = text.replace(&hex(file.signing.seed()), &hex(other.seed()));
        assert!(WriterFile::parse(&swapped).is_none());
        assert!(WriterFile::parse("").is_none());
    }
}
