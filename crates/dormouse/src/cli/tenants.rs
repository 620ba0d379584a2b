//! Flags of the commands about clients: invite, clients, grant, revoke, audit; and what they do.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use dormouse_sync::server::Role;

use crate::access::{self, Known, Quota};
use crate::audit::Event;
use crate::exit::{Class, fail};
use crate::out::say;
use crate::store_dir::StoreDir;
use crate::text::{now_ns, size};

/// `--role`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// Appends to its vault, and reads it
    Writer,
    /// Reads its vault
    Reader,
    /// Reads its vault, and says what is kept; appends nothing
    Admin,
}

impl From<RoleArg> for Role {
    fn from(arg: RoleArg) -> Self {
        match arg {
            RoleArg::Writer => Self::Writer,
            RoleArg::Reader => Self::Reader,
            RoleArg::Admin => Self::Admin,
        }
    }
}

/// `--log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogArg {
    /// To the journal, or as lines to standard error
    Text,
    /// As lines of JSON to standard error
    Json,
}

/// Of `revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The store's directory
    pub store: PathBuf,
    /// The client's name
    pub client: String,
    /// Nobody refers to its chunks any more: what other clients need of them, they send again
    #[arg(long)]
    pub distrust: bool,
}

/// Of `grant`.
#[derive(Debug, Args)]
pub struct GrantArgs {
    /// The store's directory
    pub store: PathBuf,
    /// The client's name
    pub client: String,
    /// What it may from now on
    #[arg(long, value_enum, required_unless_present = "quota")]
    pub role: Option<RoleArg>,
    /// How much its vault may hold: a size such as 500GiB, `none` for no limit, or `default`
    #[arg(long, value_name = "SIZE")]
    pub quota: Option<String>,
}

/// `dormouse revoke`.
pub fn revoke(args: &RevokeArgs) -> Result<()> {
    let store = StoreDir::open(&args.store)?;
    let known = access::revoke(&store, &args.client, args.distrust, now_ns())?;
    event("revoke", &known).with("distrust", args.distrust).write(&store)?;
    let copies =
        if known.distrusted { "nobody builds on its chunks any more" } else { "its copies stay" };
    say!("client '{}' is revoked; {copies}", known.name)
}

/// `dormouse grant`.
pub fn grant(args: &GrantArgs) -> Result<()> {
    // What is wrong with one is said before the other is done.
    let quota = match args.quota.as_deref() {
        None => None,
        Some("default") => Some(None),
        Some(text) => Some(Some(text.parse::<Quota>().or_else(|_| {
            fail(
                Class::Usage,
                format!("'{text}' is not a quota"),
                "a quota is a size such as 500GiB or 2TB, `none`, or `default`",
            )
        })?)),
    };
    let store = StoreDir::open(&args.store)?;
    if let Some(role) = args.role {
        let known = access::set_role(&store, &args.client, role.into())?;
        event("role", &known).with("role", known.role.name()).write(&store)?;
        say!("client '{}' is a {} now", known.name, known.role.name())?;
    }
    if let Some(quota) = quota {
        let known = access::set_quota(&store, &args.client, quota)?;
        let (text, bytes) = match quota {
            None => ("what server.toml says for all".to_owned(), None),
            Some(Quota::Unlimited) => ("anything".to_owned(), None),
            Some(Quota::Bytes(bytes)) => (size(bytes), Some(bytes)),
        };
        let shown = args.quota.as_deref().unwrap_or_default();
        event("quota", &known).with("quota", shown).write(&store)?;
        say!("the vault of client '{}' may hold {text}", known.name)?;
        let used = store.vault_bytes(&known.vault);
        if let Some(used) = used.filter(|used| bytes.is_some_and(|bytes| *used > bytes)) {
            say!("it holds {} already: that stays, and nothing new is taken", size(used))?;
        }
    }
    Ok(())
}

fn event(what: &str, known: &Known) -> Event {
    Event::by_command(what, &known.name)
        .with("vault", known.vault.to_string())
        .with("fingerprint", known.fingerprint())
}
