//! Runs what the command line says.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use clap::CommandFactory;
use dormouse_sync::server::Role;

use crate::cli::tenants;
use crate::cli::{Cli, Command, JoinArgs, MirrorArgs, RestoreArgs, VaultCommand};
use crate::connect::Target;
use crate::daemon::{Mirrors, quantity};
use crate::exit::{Class, fail};
use crate::home::Home;
use crate::invite::Address;
use crate::join::{self, Joined};
use crate::kit::{self, Kit};
use crate::out::{self, note, say};
use crate::serve::ServeOptions;
use crate::store_dir::StoreDir;
use crate::text::{hex, now_ns, time_local};
use crate::{
    access, attach, audit, bucket, collect, create, daemon, demo, doctor, export, fork, jail, keep,
    list, mirror, patience, rebuild, replicate, restore, scrub, serve, when, writer_file,
};

/// Runs one command.
pub fn run(cli: Cli) -> Result<()> {
    patience::choose(Duration::from_nanos(when::duration_ns(&cli.patience)?));
    let home = || Home::locate(cli.home.clone());
    match cli.command {
        Command::Serve { store, bucket, listen, url, metrics, log, require_jail } => {
            let metrics = metrics.as_deref().map(str::parse).transpose()?;
            let json_log = log == tenants::LogArg::Json;
            let options = ServeOptions { bucket, listen, url, metrics, json_log, require_jail };
            serve::run(&store, &options)
        }
        Command::Invite { store, client, role, url, expires } => {
            invite(&store, &client, role.into(), url.as_deref(), &expires)
        }
        Command::Clients { store, json } => list::clients(&StoreDir::open(&store)?, json),
        Command::Revoke(args) => tenants::revoke(&args),
        Command::Grant(args) => tenants::grant(&args),
        Command::Audit { store, json } => audit::run(&StoreDir::open(&store)?, json),
        Command::Join(args) => join(&home()?, &args),
        Command::RecoveryKit { file, paper, offline } => {
            recovery_kit(&home()?, file.as_deref(), paper, offline)
        }
        Command::Vault { command: VaultCommand::ExportWriter { file, name, trusted } } => {
            export_writer(&home()?, &file, &name, trusted)
        }
        Command::Vault { command: VaultCommand::Show } => show_vault(&home()?),
        Command::Mirror(args) => mirror(&home()?, args),
        Command::Thaw => crate::live::thaw_left(),
        Command::Untrack { volume } => {
            if crate::live::untrack(&home()?, &volume)? {
                return say!("the tracker of '{volume}' has ended");
            }
            fail(
                Class::NotFound,
                format!("there is no tracker of '{volume}'"),
                "`dormouse status` shows what is mirrored; trackers belong to a home",
            )
        }
        Command::Track { command } => command.run(cli.home.as_deref()),
        Command::FreezeHelper => freeze_helper(),
        Command::Create { volume, size, json } => {
            create::create(&home()?, &volume, quantity::size(&size)?.get(), json)
        }
        Command::Fork { what, name, fuzzy, json } => {
            fork::run(&home()?, &what.parse()?, &name, fuzzy, json)
        }
        Command::Resize { volume, size, shrink, json } => {
            create::resize(&home()?, &volume, quantity::size(&size)?.get(), shrink, json)
        }
        Command::Volumes { json } => list::volumes(&home()?, json),
        Command::Points { volume, all, json } => {
            list::points(&home()?, volume.as_deref(), all, json)
        }
        Command::Restore(args) => restore(&home()?, args),
        Command::Attach(args) => attach::attach(&home()?, &args),
        Command::Detach(args) => attach::detach(&args),
        Command::Attached(args) => attach::list(args.json),
        Command::Export(args) => export::run(&home()?, &args.to_options()?),
        Command::Verify { what, fuzzy, expect_head, json } => {
            verify(&home()?, &what, fuzzy, expect_head, json)
        }
        Command::Collect { store, dry_run: dry, grace, rate, json } => {
            let (grace, rate) = (grace.as_deref(), rate.as_deref());
            collect::run(&store, collect::Asked { dry, grace, rate, json })
        }
        Command::Retention(a) => keep::retention(&home()?, &a.place.place(), &a.setting(), a.json),
        Command::Prune(a) => keep::prune(&home()?, &a.place.place(), a.how(), a.json),
        Command::Delete(a) => keep::delete(&home()?, &a.place.place(), &a.what, &a.grace),
        Command::Undelete(a) => keep::undelete(&home()?, &a.place.place(), &a.volume),
        Command::Doctor(args) => doctor::run(args.store.as_deref(), args.json),
        Command::NameHelper(args) => bucket::names::serve(&args.host),
        Command::JailProbe(args) => jail::probe::run(&args.dir, args.bucket, &args.without),
        Command::Rebuild(args) => rebuild::run(&args),
        Command::Replicate(args) => replicate::run(&args.store, &args.target, args.json),
        Command::Promote(args) => replicate::promote(&args.target),
        Command::Scrub { store, accept_state, repair_from, json } => {
            scrub::run(&store, accept_state, repair_from.as_deref(), json)
        }
        Command::Daemon { config } => {
            daemon::run(home()?, Mirrors::File(daemon::file_or_default(config.as_deref())))
        }
        Command::Check { file, json } => {
            daemon::check::run(&home()?, &daemon::file_or_default(file.as_deref()), json)
        }
        Command::Status { watch: true, json, .. } => daemon::status::watch(&home()?, json),
        Command::Status { prometheus: true, .. } => daemon::status::prometheus(&home()?),
        Command::Status { accept_state, json, .. } => list::status(&home()?, json, accept_state),
        Command::Retarget { target } => retarget(&home()?, &target),
        Command::Demo { keep, size } => run_demo(keep.as_deref(), size),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dormouse", &mut text);
            out::write(&text)
        }
        Command::Man => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut text)?;
            out::write(&text)
        }
    }
}

fn invite(store: &Path, client: &str, role: Role, url: Option<&str>, expires: &str) -> Result<()> {
    let lasts = when::duration_ns(expires)?;
    let store = StoreDir::open(store)?;
    let Some(url) = url.map(str::to_owned).or(store.config()?.url) else {
        return fail(
            Class::Usage,
            "it is not known how clients reach this server",
            "give --url HOST:PORT, or set it for good: url = \"HOST:PORT\" in STORE/server.toml",
        );
    };
    let url = url.strip_prefix(crate::invite::SCHEME).unwrap_or(&url);
    let address: Address = url.parse()?;
    let now = now_ns();
    let Some(until) = now.checked_add(lasts) else {
        return fail(
            Class::Usage,
            format!("'{expires}' is too long"),
            "a duration is such as 30m, 24h or 7d",
        );
    };
    let invite = access::invite_as(&store, client, role, address, now, lasts)?;
    audit::Event::by_command("invite", client).with("role", role.name()).write(&store)?;
    say!("{invite}")?;
    note!("valid once, until {}; on the client: dormouse join 'INVITE'", time_local(until));
    Ok(())
}

/// Who is there is known by its key, so a wrong address is found out when it is used.
fn retarget(home: &Home, target: &str) -> Result<()> {
    let target: Target = target.parse()?;
    let _lock = home.lock()?;
    let mut old = String::new();
    home.change_client_file(|file| old = std::mem::replace(&mut file.target, target.to_string()))?;
    say!("the server is looked for at {target}, no more at {old}; `dormouse status` tries it")?;
    Ok(())
}

fn join(home: &Home, args: &JoinArgs) -> Result<()> {
    let name = args.name.as_deref();
    let joined = match (&args.kit, &args.target) {
        (Some(kit), target) => join::recover(home, &Kit::load(kit)?, target.as_deref(), name)?,
        (None, Some(target)) => join::join(home, target, args.vault.as_deref(), name)?,
        (None, None) => return fail(Class::Usage, "TARGET is missing", "dormouse join --help"),
    };
    say!("joined {} as '{}'", joined.target, joined.client)?;
    say!("vault {}", joined.vault)?;
    next_steps(&joined, args)
}

fn next_steps(joined: &Joined, args: &JoinArgs) -> Result<()> {
    if joined.new_vault {
        say!(
            "\nNow write the recovery kit, and keep it somewhere else:\n    \
             dormouse recovery-kit FILE\n\
             Without it, the copies cannot be opened if this machine is lost.\n\n\
             Then copy a disk or an image:\n    dormouse mirror SOURCE --once"
        )
    } else if args.kit.is_some() {
        say!(
            "\nWhat is there, and how to get it back:\n    dormouse points\n    \
             dormouse restore VOLUME[@WHEN] DEST\n\
             Identity and authority are on this machine now."
        )
    } else {
        say!(
            "\nCopy a disk or an image:\n    dormouse mirror SOURCE --once\n\
             This machine can write, and not open: restores need the recovery kit."
        )
    }
}

fn recovery_kit(home: &Home, file: Option<&Path>, paper: bool, offline: bool) -> Result<()> {
    kit::export(home, file, paper, offline)?;
    match file.filter(|f| *f != Path::new("-")) {
        Some(file) => say!("the recovery kit is in {}", file.display())?,
        None => note!("print it, or write it down; `dormouse join --kit FILE` reads it back"),
    }
    if offline {
        note!(
            "identity and authority are no longer on this machine: it can copy, and not open.\n\
             Move the file to where it is safe, and remove it here."
        );
    } else {
        note!(
            "Keep it somewhere else, not only on this machine. To take identity and authority\n\
             off this machine, so that who breaks in can open nothing:\n    \
             dormouse recovery-kit ANOTHER-FILE --offline"
        );
    }
    Ok(())
}

fn export_writer(home: &Home, file: &Path, name: &str, trusted: bool) -> Result<()> {
    writer_file::export(home, file, name, trusted)?;
    say!(
        "{} is secret: bring it to the other machine by hand, and remove it after\n    \
         dormouse join INVITE --vault FILE",
        file.display()
    )?;
    Ok(())
}

fn show_vault(home: &Home) -> Result<()> {
    let account = home.account()?;
    say!("vault     {}", account.vault)?;
    say!("authority {}", account.authority)?;
    say!("recipient {}", account.recipient)?;
    say!("epoch     {}", account.secrets.epoch)?;
    say!("writer    {} (trust group {})", account.writer(), account.trust_group)?;
    say!("server    {} {}", account.target, hex(&account.server))?;
    Ok(())
}

fn freeze_helper() -> Result<()> {
    if dormouse_track::freeze::helper_main() == std::process::ExitCode::SUCCESS {
        return Ok(());
    }
    fail(Class::Usage, "this is a part of `dormouse mirror`, which starts it", "")
}

fn mirror(home: &Home, args: MirrorArgs) -> Result<()> {
    if !args.once {
        return daemon::run(home.clone(), Mirrors::One(args.to_config()?));
    }
    mirror::run(
        home,
        &mirror::Options {
            source: args.source,
            volume: args.volume,
            all: args.all,
            takeover: args.takeover,
            same_disk: args.same_disk,
            level: args.level,
            json: args.json,
            quiet: args.quiet,
            stop: None,
        },
    )
}

fn restore(home: &Home, args: RestoreArgs) -> Result<()> {
    restore::run(
        home,
        &restore::Options {
            what: args.what.parse()?,
            dest: Some(args.dest),
            in_place: args.in_place,
            force: args.force,
            fuzzy: args.fuzzy,
            expect_head: args.expect_head,
            json: args.json,
        },
    )
}

fn verify(
    home: &Home,
    what: &str,
    fuzzy: bool,
    expect_head: Option<String>,
    json: bool,
) -> Result<()> {
    let what: when::VolumeAt = what.parse()?;
    // What is verified unasked is what `restore` would bring back unasked.
    let fuzzy = fuzzy || what.when.is_number();
    restore::run(
        home,
        &restore::Options {
            what,
            dest: None,
            in_place: false,
            force: false,
            fuzzy,
            expect_head,
            json,
        },
    )
}

fn run_demo(keep: Option<&Path>, size: u64) -> Result<()> {
    let size = size.saturating_mul(1 << 20);
    if let Some(dir) = keep {
        std::fs::create_dir_all(dir)?;
        return demo::run(dir, size);
    }
    let dir = std::env::temp_dir().join(format!("dormouse-demo-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let done = demo::run(&dir, size);
    let _ = std::fs::remove_dir_all(&dir);
    done
}
