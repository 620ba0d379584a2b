//! Invites, joining, revoking, coming back: each way in, and each way that is refused.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use common::program::Place;
use common::{HOUR, World, assert_fails, snapshot};
use dormouse::access;
use dormouse::connect::connect;
use dormouse::exit::Class;
use dormouse::invite::Invite;
use dormouse::join;
use dormouse::kit::{self, Kit};
use dormouse::store_dir::StoreDir;
use dormouse::text::now_ns;
use dormouse::writer_file;

#[test]
fn an_invite_is_used_once_and_connects_from_then_on() {
    let world = World::serving();
    let invite = world.invite("laptop");
    let joined = world.join("a", &invite).unwrap();
    assert_eq!((joined.client.as_str(), joined.new_vault), ("laptop", true));
    let home = world.home("a");
    for _ in 0..3 {
        connect(&home.account().unwrap()).unwrap();
    }
    assert_eq!(home.has_offline_keys(), (true, true));
    assert!(!home.dir().join("pending").exists());
    // The secret is nowhere in the store.
    let secret = dormouse::text::hex(&invite.secret[..]);
    for (path, bytes) in snapshot(&world.path("store")) {
        assert!(!String::from_utf8_lossy(&bytes).contains(&secret), "{}", path.display());
    }
    assert_fails(world.join("a", &world.invite("other")), Class::Place, "has joined already");

    let fingerprint = access::clients(&world.store()).unwrap().good[0].fingerprint();
    assert_fails(world.join("b", &invite), Class::NotAuthorised, &fingerprint);
    assert!(!world.home("b").joined());
}

#[test]
fn a_join_whose_welcome_was_lost_is_repeated_with_the_same_invite() {
    let world = World::serving();
    let invite = world.invite("laptop");
    world.join("a", &invite).unwrap();
    // As if the process had died before it took the welcome: what was pending is back.
    let home = world.path("a");
    let pending = home.join("pending");
    std::fs::create_dir(&pending).unwrap();
    for name in ["manifest.toml", "keys", "cert", "instance", "client.toml"] {
        std::fs::rename(home.join(name), pending.join(name)).unwrap();
    }
    let proof = dormouse_crypt::invite::key(&invite.secret).unwrap();
    let verifier = dormouse_crypt::invite::verifier(&proof.public());
    let label = format!("{} ", dormouse::text::hex(&verifier));
    world.home("a").pending_state().write("label", &label, 0o600).unwrap();
    assert!(!world.home("a").joined());
    let joined = world.join("a", &invite).unwrap();
    assert_eq!(joined.client, "laptop");
    connect(&world.home("a").account().unwrap()).unwrap();
    assert_eq!(access::clients(&world.store()).unwrap().good.len(), 1);
}

#[test]
fn an_acceptance_that_was_cut_is_ended_by_the_next_command() {
    let world = World::serving();
    world.join("a", &world.invite("laptop")).unwrap();
    let home = world.path("a");
    let ready = home.join("ready");
    std::fs::create_dir(&ready).unwrap();
    for name in ["cert", "client.toml"] {
        std::fs::rename(home.join(name), ready.join(name)).unwrap();
    }
    connect(&world.home("a").account().unwrap()).unwrap();
    assert!(!ready.exists());
}

#[test]
fn expired_unknown_and_altered_invites_are_told_apart() {
    let world = World::serving();
    let address = world.address();
    let old = access::invite(&world.store(), "old", address, now_ns() - 2 * HOUR, HOUR).unwrap();
    assert_fails(world.join("a", &old), Class::NotAuthorised, "expired");

    let mut forged = world.invite("laptop");
    forged.secret[0] ^= 1;
    assert_fails(world.join("a", &forged), Class::NotAuthorised, "not known");

    let mut renamed = world.invite("laptop");
    renamed.client = "root".into();
    assert_fails(world.join("a", &renamed), Class::NotAuthorised, "'laptop'");

    let mut elsewhere = world.invite("laptop");
    elsewhere.fingerprint[0] ^= 1;
    assert_fails(world.join("a", &elsewhere), Class::NotAuthorised, "expected");

    let text = world.invite("laptop").to_string();
    let home = world.home("a");
    let short = join::join(&home, &text[..text.len() - 1], None, None);
    assert_fails(short, Class::Usage, "not a whole invite");
    assert_fails(join::join(&home, "host:1", None, None), Class::Usage, "needs an invite");
    assert!(!home.joined());
    assert!(access::clients(&world.store()).unwrap().good.is_empty());
}

#[test]
fn a_revoked_client_stays_out_and_the_server_needs_no_restart() {
    let world = World::serving();
    world.join("a", &world.invite("laptop")).unwrap();
    let account = world.home("a").account().unwrap();
    connect(&account).unwrap();
    access::revoke(&world.store(), "laptop", false, now_ns()).unwrap();
    assert_fails(connect(&account), Class::NotAuthorised, "revoked");
    access::revoke(&world.store(), "laptop", false, now_ns()).unwrap();
    assert_fails(
        access::revoke(&world.store(), "nobody", false, now_ns()),
        Class::NotFound,
        "nobody",
    );
    let again = access::invite(&world.store(), "laptop", world.address(), now_ns(), HOUR);
    assert_fails(again, Class::Place, "revoked");
}

#[test]
fn a_key_that_the_server_forgot_is_not_authorised() {
    let world = World::serving();
    world.join("a", &world.invite("laptop")).unwrap();
    world.store().state().remove("clients/laptop.toml", |_| ()).unwrap();
    assert_fails(
        connect(&world.home("a").account().unwrap()),
        Class::NotAuthorised,
        "does not know",
    );
}

#[test]
fn a_server_with_a_new_key_is_not_taken() {
    let mut world = World::serving();
    world.join("a", &world.invite("laptop")).unwrap();
    let address = world.address().to_string();
    world.stop();
    world.store().state().write("server.key", &"11".repeat(32), 0o600).unwrap();
    let server =
        dormouse::serve::Server::start(world.store(), &address, dormouse::log::Log::silent());
    world.server = Some(server.unwrap());
    assert_fails(connect(&world.home("a").account().unwrap()), Class::NotAuthorised, "expected");
}

#[test]
fn refused_unreachable_and_unknown_hosts_are_told_apart() {
    let mut world = World::serving();
    world.join("a", &world.invite("laptop")).unwrap();
    let mut account = world.home("a").account().unwrap();
    world.stop();
    assert_fails(connect(&account), Class::Unreachable, "refused");
    account.target = "dormouse://no-such-host.invalid:7447".parse().unwrap();
    assert_fails(connect(&account), Class::Unreachable, "not found");
    // Takes connections in its queue, and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    account.target = format!("dormouse://{}", silent.local_addr().unwrap()).parse().unwrap();
    assert_fails(connect(&account), Class::Unreachable, "no answer");
}

#[test]
fn a_directory_is_joined_without_a_server() {
    let world = World::new();
    let home = world.home("a");
    let store = world.path("fresh");
    let joined = join::join(&home, store.to_str().unwrap(), None, Some("me")).unwrap();
    assert_eq!(joined.client, "me");
    let account = home.account().unwrap();
    // One process may have several links to it, and keeps others out while it has one.
    let links = [connect(&account).unwrap(), connect(&account).unwrap()];
    let lock = || StoreDir::open(&store).unwrap().lock();
    assert_fails(lock().map(|_| ()), Class::InUse, "in use");
    drop(links);
    drop(lock().unwrap());
    drop(connect(&account).unwrap());
    std::fs::rename(&store, world.path("moved")).unwrap();
    assert_fails(connect(&account), Class::NotFound, "no store");
}

#[test]
fn the_kit_alone_brings_everything_back() {
    let world = World::serving();
    world.join("a", &world.invite("laptop")).unwrap();
    let home = world.home("a");
    assert!(kit::kit_reminder(&home).is_some());
    let file = world.path("kit.txt");
    kit::export(&home, Some(&file), true, true).unwrap();
    assert!(kit::kit_reminder(&home).is_none());
    // Offline: copying goes on, opening does not.
    let account = home.account().unwrap();
    connect(&account).unwrap();
    assert_fails(home.identity(), Class::KeyMissing, "identity");
    assert_fails(home.authority(), Class::KeyMissing, "authority");
    assert_fails(kit::export(&home, None, false, false), Class::KeyMissing, "authority");
    assert_fails(kit::export(&home, None, false, true), Class::Usage, "FILE");

    std::fs::remove_dir_all(home.dir()).unwrap();
    let kit = Kit::load(&file).unwrap();
    let mut names = std::collections::HashSet::new();
    for name in ["b", "c"] {
        let back = world.home(name);
        let joined = join::recover(&back, &kit, None, None).unwrap();
        // The name says nothing of who else is there: it ends with the key's own digits.
        assert!(joined.client.starts_with("laptop-"), "{}", joined.client);
        assert!(names.insert(joined.client));
        assert_eq!(joined.vault, account.vault);
        let new = back.account().unwrap();
        assert_eq!(*new.secrets.to_bytes(), *account.secrets.to_bytes());
        connect(&new).unwrap();
        assert_eq!(back.identity().unwrap().recipient(), account.recipient);
    }
    let mut other = Kit::load(&file).unwrap();
    other.authority = dormouse_crypt::SigningKey::from_seed([1; 32]).unwrap();
    let refused = join::recover(&world.home("d"), &other, None, None);
    assert_fails(refused, Class::NotAuthorised, "authority");
}

#[test]
fn a_second_machine_comes_into_the_vault_past_the_server() {
    let world = World::serving();
    world.join("a", &world.invite("laptop")).unwrap();
    for (name, trusted, group) in [("desk", false, 0), ("nas", true, 1)] {
        let file = world.path(&format!("{name}.writer"));
        writer_file::export(&world.home("a"), &file, name, trusted).unwrap();
        let home = world.home(name);
        let invite = world.invite(name);
        let joined = join::join(&home, &invite.to_string(), Some(&file), None).unwrap();
        assert!(!joined.new_vault);
        let account = home.account().unwrap();
        assert_eq!(account.vault, world.home("a").account().unwrap().vault);
        assert_eq!(account.trust_group, group);
        connect(&account).unwrap();
        assert_fails(home.identity(), Class::KeyMissing, "identity");
        assert_fails(
            writer_file::export(&world.home("a"), &file, name, false),
            Class::Place,
            "exists",
        );
    }
    connect(&world.home("a").account().unwrap()).unwrap();
    assert_eq!(world.home("a").account().unwrap().trust_group, 1);
}

#[test]
fn a_server_of_another_version_is_told() {
    let mut world = World::new();
    let store = world.store();
    let tls = dormouse::tls::ServerTls::with_alpn(&store.key().unwrap(), b"dormouse/2").unwrap();
    let log = dormouse::log::Log::silent();
    world.server =
        Some(dormouse::serve::Server::start_with(store, "127.0.0.1:0", log, tls).unwrap());
    assert_fails(world.join("a", &world.invite("laptop")), Class::Version, "version");
}

#[test]
fn strangers_are_bounded_and_a_stop_is_quick() {
    let mut world = World::serving();
    world.join("a", &world.invite("laptop")).unwrap();
    let address = world.server.as_ref().unwrap().address();
    let silent: Vec<_> = (0..100).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    // Those that are refused are kept for a second, then closed.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let closed = silent
        .iter()
        .filter(|s| {
            s.set_nonblocking(true).unwrap();
            let mut byte = [0];
            match std::io::Read::read(&mut &**s, &mut byte) {
                Ok(0) => true,
                Ok(_) => false,
                Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
            }
        })
        .count();
    assert_eq!(closed, 36, "64 of one address may wait");
    drop(silent);
    let account = world.home("a").account().unwrap();
    let link = (0..50)
        .find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            connect(&account).ok()
        })
        .unwrap();
    let began = std::time::Instant::now();
    world.stop();
    assert!(began.elapsed() < std::time::Duration::from_secs(5));
    let last = dormouse::connect::receive(&link);
    assert_fails(last, Class::Unreachable, "stopping");
}

/// Each refusal as a script sees it: the code, the way out, and nothing changed.
#[test]
fn each_refused_way_in_has_its_code_and_leaves_no_trace() {
    let (place, server) = Place::served();
    let store = place.name("store");
    let altered = |invite: &str, change: fn(&mut Invite)| {
        let mut invite: Invite = invite.parse().unwrap();
        change(&mut invite);
        invite.to_string()
    };
    let used = place.invite("desk", &server);
    place.run_in("desk", &["join", &used]).ok();
    let open = place.invite("nas", &server);
    let args = ["invite", &store, "late", "--url", &server.address, "--expires", "1ms"];
    let late = place.run(&args).ok().out.trim().to_owned();
    let wrong = altered(&open, |i| i.secret[0] ^= 1);
    let renamed = altered(&open, |i| i.client = "root".into());
    let elsewhere = altered(&open, |i| i.fingerprint[0] ^= 1);
    let short = &open[..open.len() - 1];
    place.run(&["revoke", &store, "desk"]).ok();
    let before = place.store();
    for (args, code, words) in [
        (["join", &wrong], 5, &["not known", "ask for a new invite", "dormouse invite STORE"][..]),
        (["join", &renamed], 5, &["for a client named 'nas'", "ask for a new invite"]),
        (["join", &used], 5, &["used already", "by the key with", "ask for a new invite"]),
        (["join", &late], 5, &["expired on", "ask for a new invite"]),
        (["join", &elsewhere], 5, &["expected", "found", "somebody else may be answering"]),
        (["join", short], 2, &["not a whole invite", "copy the whole line"]),
        (["join", &server.address], 2, &["needs an invite"]),
    ] {
        place.run_in("new", &args).fails(code, words);
        assert!(!place.path("new/client.toml").exists(), "{args:?}");
        assert!(before == place.store(), "{args:?} changed the store");
    }
    for args in [&["points"][..], &["mirror", &place.name("kit"), "--once"], &["status"]] {
        let words = ["client 'desk'", "revoked", "a new invite, under a new name"];
        place.run_in("desk", args).fails(5, &words);
        assert!(before == place.store(), "{args:?} changed the store");
    }
    // The open invite is still good, in the home where the others were refused.
    place.run_in("new", &["join", &open]).ok();
}
