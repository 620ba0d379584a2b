//! `dormouse rebuild s3://BUCKET/PREFIX --state DIR`: a lost machine's state out of the bucket.
//!
//! Invariant: nothing is changed in a directory that is not new, and nothing is written into one
//! while another server holds the bucket and was not taken over.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use dormouse_bucket::{Bucket, StateFile, store_id};
use dormouse_crypt::{Identity, OsRandom, Random};
use dormouse_store::disk::DiskDir;
use dormouse_store::{Options as StoreOptions, VaultStore};
use zeroize::Zeroizing;

use super::saver::Saver;
use super::{BucketStore, DIR, Note, Options, UNCLEAN, files, is_new, reach, state_dir, tell, who};
use crate::cli::bucket::{BucketArgs, RebuildArgs};
use crate::exit::{Class, Failure, fail};
use crate::log::Log;
use crate::out::{note, say};
use crate::store_dir::StoreDir;
use crate::text::{hex, size, unhex_array};

type Seed = Zeroizing<[u8; 32]>;

/// Runs the command.
pub fn run(url: &str, args: &RebuildArgs) -> Result<()> {
    let lost = &args.lost;
    let flags = BucketArgs {
        state: lost.state.clone(),
        takeover: lost.takeover,
        only_server: lost.only_server,
        cache: lost.cache.clone(),
        ..BucketArgs::default()
    };
    let (dir, options) = (&state_dir(&flags)?, Options::of(&flags)?);
    if !is_new(dir)? {
        return fail(
            Class::Place,
            format!("{} is not empty", dir.display()),
            "name a new directory; nothing was changed",
        );
    }
    let (url, objects) = reach(url, &options)?;
    let Some(id) = store_id(&*objects)? else {
        return fail(
            Class::NotFound,
            format!("there is no store at {url}"),
            "`dormouse serve` makes one: check bucket and prefix",
        );
    };
    let log = Log::stderr();
    // What is missing is told before anything is changed; read again when nobody else writes.
    seed(&dormouse_bucket::newest_state(&*objects)?, args)?;
    let held = Note::new(&url, id, options.alone());
    let nonce = hex(&OsRandom.array::<8>());
    let (who, own) = (who(&held, options.takeover), dir.join(DIR));
    let bucket = Bucket::open(objects, &who, options.settings, &own, &nonce, tell(&log))?;
    let bucket = Arc::new(bucket);
    let state = bucket.newest_state()?;
    let (seed, new_key) = seed(&state, args)?;
    files::restore(&state, dir)?;
    let store = StoreDir::restored(dir, held, &seed)?;
    let saver = Saver::start(bucket.clone(), store.clone(), &options, log.clone())?;
    let unclean = own.join(UNCLEAN);
    let store = store.in_bucket(BucketStore::new(bucket, unclean, Some(saver)));
    let done = vaults(&store);
    store.finish(&log);
    done?;
    if new_key {
        note!(
            "the server has a new key: every client must join again, by an invite or its \
             recovery kit"
        );
    }
    say!("rebuilt; go on with: dormouse serve {url} --state {}", dir.display())
}

/// The server's key, and whether it is a new one.
fn seed(state: &[StateFile], args: &RebuildArgs) -> Result<(Seed, bool)> {
    if let Some(path) = &args.lost.server_key {
        return copied(path).map(|seed| (seed, false));
    }
    if args.new_key {
        return Ok((Zeroizing::new(OsRandom.array()), true));
    }
    let ways = "give a copy of it with --server-key FILE, or --new-key: then every client must \
                join again";
    let sealed = state.iter().find(|f| f.name == files::SEALED_KEY);
    match (sealed, &args.lost.identity) {
        (Some(sealed), Some(path)) => Ok((opened(&sealed.bytes, path)?, false)),
        (Some(_), None) => fail(
            Class::KeyMissing,
            "the server's key is in the bucket, sealed",
            format!("give the identity that opens it with --identity FILE; or {ways}"),
        ),
        (None, _) => fail(Class::KeyMissing, "the server's key is not in the bucket", ways),
    }
}

fn copied(path: &Path) -> Result<Seed> {
    let text = Zeroizing::new(crate::files::read_text(path)?.unwrap_or_default());
    let seed = text.lines().next().and_then(unhex_array);
    seed.map(Zeroizing::new).ok_or_else(|| {
        Failure::new(Class::Usage, format!("{} is no copy of a server.key", path.display()))
            .hint("it begins with 64 hex digits")
            .into()
    })
}

fn opened(sealed: &[u8], path: &Path) -> Result<Seed> {
    let text = Zeroizing::new(crate::files::read_text(path)?.unwrap_or_default());
    let secret = text.lines().find(|l| l.starts_with("AGE-SECRET-KEY-")).unwrap_or_default();
    let identity: Identity = secret.trim().parse().map_err(|_| {
        Failure::new(Class::Usage, format!("{} holds no age identity", path.display()))
            .hint("a line of it is AGE-SECRET-KEY-1…; `age-keygen` makes one")
    })?;
    identity.unwrap("server's key", sealed).with_context(|| {
        Failure::new(Class::KeyMissing, format!("{} does not open it", path.display()))
            .hint("it was sealed to another recipient: --key-to of `dormouse serve` named it")
    })
}

/// Opens each vault once: its head is fetched, its index made.
fn vaults(store: &StoreDir) -> Result<()> {
    for id in store.vaults()? {
        let Some(segments) = store.segments(&id, false)? else { continue };
        let index = DiskDir::create_or_open(&store.vault_path(&id).join("index"))?;
        let opened = VaultStore::open(segments, Box::new(index), id, StoreOptions::default());
        let (vault, recovery) = opened.with_context(|| format!("vault {id}"))?;
        let stats = vault.stats();
        for torn in &recovery.torn {
            let kept = format!("{}: {} bytes", torn.kept_in, torn.bytes);
            note!("vault {id}: writes that were not finished are set aside in {kept}");
        }
        say!(
            "vault {id}: {} volumes, {} points, {} segments, {}",
            stats.volumes,
            stats.points,
            stats.segments,
            size(stats.bytes)
        )?;
        vault.close()?;
        store.drain();
    }
    Ok(())
}
