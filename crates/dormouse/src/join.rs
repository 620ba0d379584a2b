//! Joining: a new vault, a second writer, or a machine that comes back.
//!
//! Owns: which keys are made and sent. Invariant: keys are durable here before
//! anything is sent, so that a join that was cut can be repeated with the same
//! invite; the home counts as joined only after the server's welcome.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use dormouse_crypt::{
    Identity, OsRandom, SigningKey, VaultSecrets, hash, invite as secret, record,
};
use dormouse_format::message::Message;
use dormouse_format::record::Kind;
use dormouse_format::vault::{Cert, Vault, VaultKeys};
use dormouse_format::{VaultId, WriterId};
use dormouse_sync::history::NewestKeys;

use crate::access;
use crate::connect::{Dialed, Target, ask, dial, introduce, receive_of, unexpected};
use crate::exit::{Class, Failure, fail};
use crate::home::{ClientFile, Home, NewHome, Pending};
use crate::invite::{Address, Invite, SCHEME};
use crate::kit::Kit;
use crate::patience::Patience;
use crate::store_dir::StoreDir;
use crate::text::{hex, now_ns, time_utc};
use crate::writer_file::WriterFile;

/// How long an invite that never leaves its directory is good.
const LOCAL_INVITE: Duration = Duration::from_secs(3600);

/// What was joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Where.
    pub target: Target,
    /// As whom.
    pub client: String,
    /// The vault.
    pub vault: VaultId,
    /// Whether the vault was made by this.
    pub new_vault: bool,
}

/// Joins with an invite, or a directory.
pub fn join(home: &Home, target: &str, vault: Option<&Path>, name: Option<&str>) -> Result<Joined> {
    let _lock = home.lock()?;
    home.must_be_new()?;
    let writer = vault.map(WriterFile::load).transpose()?;
    if target.starts_with(SCHEME) && target.contains('#') {
        let invite: Invite = target.parse()?;
        if name.is_some_and(|n| n != invite.client) {
            return fail(
                Class::Usage,
                format!("the invite is for a client named '{}'", invite.client),
                "leave out --name, or ask for an invite of that name",
            );
        }
        let at = Target::Server(invite.address.clone());
        return enrol(home, at, &invite, writer);
    }
    match target.parse()? {
        Target::Dir(path) => join_dir(home, &path, name, writer),
        Target::Server(address) => fail(
            Class::Usage,
            format!("{address} is an address, not an invite"),
            "joining a server needs an invite: `dormouse invite STORE CLIENT` there makes one;\nafter the loss of a machine: `dormouse join --kit FILE`",
        ),
    }
}

fn join_dir(
    home: &Home,
    path: &Path,
    name: Option<&str>,
    writer: Option<WriterFile>,
) -> Result<Joined> {
    let name = name.map_or_else(host_name, str::to_owned);
    access::check_name(&name)?;
    let store = StoreDir::open_or_create(path)?;
    store.must_be_whole()?;
    drop(store.lock()?);
    let target = Target::Dir(store.path().to_owned());
    let nowhere = Address { host: "localhost".into(), port: crate::invite::PORT };
    let lasts = u64::try_from(LOCAL_INVITE.as_nanos()).unwrap_or(u64::MAX);
    let invite = access::invite(&store, &name, nowhere, now_ns(), lasts)?;
    enrol(home, target, &invite, writer)
}

/// This machine's name, made fit to name a client.
pub fn host_name() -> String {
    let uname = rustix::system::uname();
    let node = uname.nodename().to_string_lossy();
    let fits = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let short: String =
        node.split('.').next().unwrap_or("").chars().filter(fits).take(40).collect();
    let short = short.trim_start_matches('-');
    if short.is_empty() { "machine".into() } else { short.to_owned() }
}

/// Proves an invite, with keys of a new vault or of a writer that was exported.
fn enrol(
    home: &Home,
    target: Target,
    invite: &Invite,
    writer: Option<WriterFile>,
) -> Result<Joined> {
    let proof_key = secret::key(&invite.secret)?;
    let label = format!(
        "{} {}",
        hex(&secret::verifier(&proof_key.public())),
        writer.as_ref().map_or_else(String::new, |w| w.signing.writer_id().to_string())
    );
    let pending = match home.load_pending(&label)? {
        Some(pending) => pending,
        None => {
            let pending = match &writer {
                Some(writer) => second_writer(&target, invite, writer)?,
                None => new_vault(&target, invite)?,
            };
            home.save_pending(&label, &pending)?;
            pending
        }
    };
    let keys = &pending.keys;
    let bundle = match writer {
        Some(_) => vec![keys.cert.clone()],
        None => bundle(keys)?,
    };
    let Dialed { link, binding } = dial(&target, &invite.fingerprint, &keys.transport)?;
    let welcome = introduce(
        &link,
        Message::Enrol {
            proof_key: proof_key.public(),
            proof: binding.prove_invite(&proof_key),
            name: invite.client.clone(),
            bundle,
            writer_proof: binding.prove_writer(&keys.signing),
        },
    )?;
    let vault = VaultId::from_hex(&pending.file.vault).unwrap_or(VaultId::ZERO);
    if welcome.vault != vault {
        return unexpected("the invite");
    }
    home.accept_pending(&welcome.name)?;
    Ok(Joined { target, client: welcome.name, vault, new_vault: writer_is_new(&pending) })
}

const fn writer_is_new(pending: &Pending) -> bool {
    pending.keys.authority.is_some()
}

fn new_vault(target: &Target, invite: &Invite) -> Result<Pending> {
    let authority = SigningKey::generate(&mut OsRandom)?;
    let identity = Identity::generate();
    let signing = SigningKey::generate(&mut OsRandom)?;
    let vault = hash::vault_id(&authority.public());
    let cert = certificate(&authority, vault, &signing, &invite.client, 0);
    let file = ClientFile {
        target: target.to_string(),
        server: hex(&invite.fingerprint),
        client: invite.client.clone(),
        vault: vault.to_string(),
        authority: authority.public().to_string(),
        recipient: identity.recipient().to_string(),
        epoch: 1,
        trust_group: 0,
        kit_exported: None,
    };
    let keys = NewHome {
        transport: SigningKey::generate(&mut OsRandom)?,
        signing,
        cert,
        secrets: VaultSecrets::generate(&mut OsRandom),
        authority: Some(authority),
        identity: Some(identity),
    };
    Ok(Pending { keys, file })
}

/// A writer's certificate as a whole record.
pub fn certificate(
    authority: &SigningKey,
    vault: VaultId,
    writer: &SigningKey,
    name: &str,
    trust_group: u32,
) -> Vec<u8> {
    let cert =
        Cert { vault, key: writer.public(), trust_group, issued: now_ns(), name: name.to_owned() };
    record::plain(Kind::Cert, WriterId::ZERO, &authority.sign_body(&cert))
}

/// The records that make a new vault.
fn bundle(keys: &NewHome) -> Result<Vec<Vec<u8>>> {
    let (Some(authority), Some(identity)) = (&keys.authority, &keys.identity) else {
        return fail(
            Class::Damaged,
            "what an earlier try kept is not whole",
            "remove `pending` from the home, and join with a new invite",
        );
    };
    let recipient = identity.recipient();
    let vault = Vault {
        authority: authority.public(),
        recipient: recipient.to_string(),
        created: now_ns(),
    };
    let vault_keys = VaultKeys {
        vault: hash::vault_id(&authority.public()),
        epoch: keys.secrets.epoch,
        wrapped: keys.secrets.wrap(&recipient)?,
    };
    Ok(vec![
        record::plain(Kind::Vault, WriterId::ZERO, &authority.sign_body(&vault)),
        keys.cert.clone(),
        record::plain(Kind::VaultKeys, WriterId::ZERO, &authority.sign_body(&vault_keys)),
    ])
}

fn second_writer(target: &Target, invite: &Invite, writer: &WriterFile) -> Result<Pending> {
    let file = ClientFile {
        target: target.to_string(),
        server: hex(&invite.fingerprint),
        client: invite.client.clone(),
        vault: hash::vault_id(&writer.authority).to_string(),
        authority: writer.authority.to_string(),
        recipient: writer.recipient.to_string(),
        epoch: writer.secrets.epoch,
        trust_group: writer.trust_group,
        // The kit is the business of who holds the authority.
        kit_exported: Some(time_utc(now_ns())),
    };
    let keys = NewHome {
        transport: SigningKey::generate(&mut OsRandom)?,
        signing: SigningKey::from_seed(*writer.signing.seed())?,
        cert: writer.cert.clone(),
        secrets: writer.secrets.clone(),
        authority: None,
        identity: None,
    };
    Ok(Pending { keys, file })
}

/// Comes back with a recovery kit: on a new machine, or after a loss.
pub fn recover(home: &Home, kit: &Kit, target: Option<&str>, name: Option<&str>) -> Result<Joined> {
    let _lock = home.lock()?;
    home.must_be_new()?;
    let target = target.map_or_else(|| Ok(kit.target.clone()), str::parse)?;
    let name = name.unwrap_or(&kit.client);
    access::check_name(name)?;
    let authority = SigningKey::from_seed(*kit.authority.seed())?;
    let vault = hash::vault_id(&authority.public());
    let transport = SigningKey::generate(&mut OsRandom)?;
    let signing = SigningKey::generate(&mut OsRandom)?;
    let cert = certificate(&authority, vault, &signing, name, 0);
    let Dialed { link, binding } = dial(&target, &kit.server, &transport)?;
    let welcome = introduce(
        &link,
        Message::Recover {
            vault,
            proof: binding.prove_authority(&authority),
            name: name.to_owned(),
            cert: cert.clone(),
        },
    )?;
    if welcome.vault != vault {
        return unexpected("the recovery");
    }
    let secrets = vault_secrets(&link, &authority, &kit.identity)?;
    let file = ClientFile {
        target: target.to_string(),
        server: hex(&kit.server),
        client: welcome.name.clone(),
        vault: vault.to_string(),
        authority: authority.public().to_string(),
        recipient: kit.identity.recipient().to_string(),
        epoch: secrets.epoch,
        trust_group: 0,
        kit_exported: Some(time_utc(now_ns())),
    };
    let keys = NewHome {
        transport,
        signing,
        cert,
        secrets,
        authority: Some(authority),
        identity: Some(kit.identity.clone()),
    };
    home.save_pending("recover", &Pending { keys, file })?;
    home.accept_pending(&welcome.name)?;
    Ok(Joined { target, client: welcome.name, vault, new_vault: false })
}

/// The newest digest and map key, as the authority signed them. What does not hold is
/// left out, and told if nothing else fits.
fn vault_secrets(
    link: &crate::link::Link,
    authority: &SigningKey,
    identity: &Identity,
) -> Result<VaultSecrets> {
    let mut newest = NewestKeys::new(authority.public());
    let patience = Patience::new(link);
    let mut next = ask(link, Message::GetSmall { kind: Kind::VaultKeys, ids: Vec::new() })?;
    while let Message::Record { record } = next {
        newest.offer(&record)?;
        next = receive_of(link, &patience)?;
    }
    if next != Message::Done {
        return unexpected("a question for the vault's keys");
    }
    let newest = newest.done().map_err(|left_out| {
        let why = left_out.map_or_else(String::new, |e| format!(" that hold: {e}"));
        Failure::new(Class::Damaged, format!("the server has no keys of this vault{why}"))
            .hint("run `dormouse scrub STORE` on the server")
    })?;
    Ok(VaultSecrets::unwrap(newest.epoch, &newest.wrapped, identity).map_err(|_| {
        Failure::new(Class::KeyMissing, "the identity in the kit does not open this vault's keys")
            .hint("is the kit of this vault, and of its newest identity?")
    })?)
}
