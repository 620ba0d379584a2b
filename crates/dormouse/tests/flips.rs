//! Every byte, length, exchange and old version of the state files of a store, a home
//! and a join under way: each is noticed when it is read and by a check of all, is
//! named, and nothing else is believed instead.
//!
//! `DORMOUSE_FLIPS=all` tries every case; a number there, or none, decides which part.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use dormouse::access::{self, Known};
use dormouse::exit::{Class, class_of, text_of};
use dormouse::home::Home;
use dormouse::invite::Address;
use dormouse::state_files::Fault;
use dormouse::store_dir::StoreDir;
use dormouse::text::now_ns;
use dormouse::{join, kit, mirror};

use common::HOUR;

const MASKS: [u8; 3] = [0x01, 0x80, 0xff];
const HEAD: &str = "\
| tree | files | bytes | flips | lengths | exchanges | old or missing | violations |
|---|--:|--:|--:|--:|--:|--:|--:|
";
const MANIFEST: &str = "manifest.toml";

/// State files by name.
type Files = BTreeMap<String, Vec<u8>>;

/// What is read from a tree: its parts, by name, and the errors.
#[derive(Debug, Default)]
struct Seen {
    facts: BTreeMap<String, String>,
    errors: Vec<String>,
}

impl Seen {
    fn take<T: std::fmt::Debug>(&mut self, name: &str, read: anyhow::Result<T>) {
        match read {
            Ok(value) => drop(self.facts.insert(name.into(), format!("{value:?}"))),
            Err(e) => self.fault(&e),
        }
    }

    #[track_caller]
    fn fault(&mut self, error: &anyhow::Error) {
        let text = text_of(error);
        assert_eq!(class_of(error), Class::Damaged, "{text}");
        assert!(text.contains("\n  "), "no way out in: {text}");
        self.errors.push(text);
    }
}

/// A tree of state files, with its history.
struct Tree {
    root: PathBuf,
    /// The directories, and the files beside the manifest, that are state.
    state: &'static [&'static str],
    read: fn(&Path) -> Seen,
    check: fn(&Path) -> anyhow::Result<Vec<Fault>>,
    versions: Vec<Files>,
}

impl Tree {
    fn files(&self) -> Files {
        let all = common::snapshot(&self.root).into_iter();
        let named = all.map(|(p, b)| (p.strip_prefix(&self.root).unwrap().to_owned(), b));
        let state = named.filter(|(p, _)| {
            let first = p.components().next().unwrap().as_os_str().to_str().unwrap();
            first == MANIFEST || self.state.contains(&first)
        });
        state.map(|(p, b)| (p.to_str().unwrap().to_owned(), b)).collect()
    }

    fn note(&mut self) {
        let now = self.files();
        if self.versions.last() != Some(&now) {
            self.versions.push(now);
        }
    }

    fn now(&self) -> &Files {
        self.versions.last().unwrap()
    }

    fn put(&self, name: &str, bytes: Option<&[u8]>) {
        let path = self.root.join(name);
        match bytes {
            Some(bytes) => std::fs::write(path, bytes).unwrap(),
            None => drop(std::fs::remove_file(path)),
        }
    }

    /// With these files damaged, each must be named by reading and by the check, and what
    /// is believed is what was there before.
    fn judge(&self, what: &str, good: &Seen, damage: &[(&str, Option<&[u8]>)]) {
        damage.iter().for_each(|(name, bytes)| self.put(name, *bytes));
        let seen = (self.read)(&self.root);
        let faults = (self.check)(&self.root).unwrap();
        for (fact, value) in &seen.facts {
            assert_eq!(good.facts.get(fact), Some(value), "{what}: '{fact}' is another");
        }
        let named =
            |text: &str| damage.iter().any(|(name, _)| text.contains(&shown(&self.root, name)));
        assert!(seen.errors.iter().any(|e| named(e)), "{what}: reading is silent: {seen:?}");
        assert!(seen.facts.len() < good.facts.len(), "{what}: all was believed: {seen:?}");
        let told = |f: &Fault| named(&format!("{}:", f.path.display()));
        assert!(faults.iter().any(told), "{what}: the check is silent: {faults:?}");
        damage
            .iter()
            .for_each(|(name, _)| self.put(name, self.now().get(*name).map(Vec::as_slice)));
    }
}

/// A file as it is named in errors.
fn shown(root: &Path, name: &str) -> String {
    format!("{}:", root.join(name).display())
}

fn read_store(root: &Path) -> Seen {
    let mut seen = Seen::default();
    let store = match StoreDir::open(root) {
        Ok(store) => store,
        Err(e) => {
            seen.fault(&e);
            return seen;
        }
    };
    seen.take("key", store.fingerprint());
    match access::clients(&store) {
        Ok(clients) => {
            clients.faults.iter().for_each(|e| seen.fault(e));
            clients
                .good
                .iter()
                .for_each(|c: &Known| seen.take(&format!("client {}", c.name), Ok(c)));
        }
        Err(e) => seen.fault(&e),
    }
    match access::invites(&store) {
        Ok(invites) => {
            invites.faults.iter().for_each(|e| seen.fault(e));
            invites.good.iter().for_each(|i| seen.take(&format!("invite {}", i.0), Ok(i)));
        }
        Err(e) => seen.fault(&e),
    }
    seen
}

fn read_home(root: &Path) -> Seen {
    let home = Home::locate(Some(root.to_owned())).unwrap();
    let mut seen = Seen::default();
    seen.take(
        "account",
        home.account().map(|a| {
            let keys = (*a.transport.seed(), *a.signing.seed(), *a.secrets.to_bytes());
            (a.name, a.target, a.server, a.vault, a.cert, a.instance, a.kit_exported, keys)
        }),
    );
    seen.take("authority", home.authority().map(|k| *k.seed()));
    seen.take("identity", home.identity().map(|i| i.to_secret().to_string()));
    seen
}

/// A join whose label is known.
const LABEL: &str = "a label";

fn read_pending(root: &Path) -> Seen {
    let home = Home::locate(Some(root.parent().unwrap().to_owned())).unwrap();
    let mut seen = Seen::default();
    match home.load_pending(LABEL) {
        Ok(None) => {}
        kept => seen.take("pending", kept.map(|p| p.map(|p| (p.file, p.keys.cert)))),
    }
    seen
}

fn check_home(root: &Path) -> anyhow::Result<Vec<Fault>> {
    Home::locate(Some(root.to_owned()))?.state().check()
}

fn check_pending(root: &Path) -> anyhow::Result<Vec<Fault>> {
    Home::locate(root.parent().map(Path::to_owned))?.pending_state().check()
}

struct World {
    _dir: tempfile::TempDir,
    store: Tree,
    home: Tree,
    pending: Tree,
    /// Another store and home, as old.
    other: [Files; 2],
}

fn store_tree(root: PathBuf) -> Tree {
    let state = &["dormouse-store", "server.key", "clients", "invites"];
    Tree { root, state, read: read_store, check: StoreDir::state_faults, versions: Vec::new() }
}

fn home_tree(root: PathBuf) -> Tree {
    let state = &["client.toml", "cert", "instance", "keys", "heads", "volumes"];
    Tree { root, state, read: read_home, check: check_home, versions: Vec::new() }
}

fn copy(home: &Home, source: &Path) {
    let options = mirror::Options {
        source: source.to_owned(),
        volume: None,
        all: false,
        takeover: false,
        same_disk: false,
        level: 1,
        json: false,
        quiet: true,
        stop: None,
    };
    mirror::run(home, &options).unwrap();
}

/// A store and a home that were used, with every earlier version of their files.
fn used(dir: &Path) -> (Tree, Tree) {
    let (mut store, mut home) = (store_tree(dir.join("store")), home_tree(dir.join("home")));
    let at = Home::locate(Some(home.root.clone())).unwrap();
    let mut note = || {
        store.note();
        home.note();
    };
    let address = Address { host: "h".into(), port: 1 };
    join::join(&at, dir.join("store").to_str().unwrap(), None, Some("laptop")).unwrap();
    note();
    let made = StoreDir::open(&dir.join("store")).unwrap();
    for client in ["desk", "desk-2"] {
        access::invite(&made, client, address.clone(), now_ns(), HOUR).unwrap();
        note();
    }
    kit::export(&at, Some(&dir.join("kit")), false, false).unwrap();
    note();
    for (n, name) in [(1, "v"), (2, "w"), (3, "v")] {
        let source = dir.join(name);
        std::fs::write(&source, vec![n; 5000]).unwrap();
        copy(&at, &source);
        note();
    }
    let second = Home::locate(Some(dir.join("second"))).unwrap();
    join::join(&second, dir.join("store").to_str().unwrap(), None, Some("gone")).unwrap();
    note();
    access::revoke(&made, "gone", false, now_ns()).unwrap();
    note();
    (store, home)
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("other")).unwrap();
        let (other_store, other_home) = used(&dir.path().join("other"));
        let (store, home) = used(dir.path());
        let root = dir.path().join("joining/pending");
        let state = &["client.toml", "cert", "instance", "label", "keys"];
        let mut pending =
            Tree { root, state, read: read_pending, check: check_pending, versions: Vec::new() };
        let joining = Home::locate(Some(dir.path().join("joining"))).unwrap();
        joining.save_pending(LABEL, &a_pending(&other_home.root)).unwrap();
        pending.note();
        let other = [other_store.now().clone(), other_home.now().clone()];
        Self { _dir: dir, store, home, pending, other }
    }

    fn trees(&self) -> [(&'static str, &Tree); 3] {
        [("store", &self.store), ("home", &self.home), ("pending join", &self.pending)]
    }
}

/// What a home keeps, as something that is being joined.
fn a_pending(home: &Path) -> dormouse::home::Pending {
    let home = Home::locate(Some(home.to_owned())).unwrap();
    let account = home.account().unwrap();
    let keys = dormouse::home::NewHome {
        transport: account.transport,
        signing: account.signing,
        cert: account.cert,
        secrets: account.secrets,
        authority: Some(home.authority().unwrap()),
        identity: Some(home.identity().unwrap()),
    };
    dormouse::home::Pending { keys, file: home.client_file().unwrap() }
}

/// Every one of `DORMOUSE_FLIPS=all`, else one in `step`, spread over all.
fn chosen(n: usize, step: usize) -> bool {
    let choice = std::env::var("DORMOUSE_FLIPS").unwrap_or_default();
    choice == "all" || n % step == choice.parse::<usize>().unwrap_or(0) % step
}

#[test]
fn no_damage_of_a_state_file_is_believed() {
    let world = World::new();
    let mut table = String::from(HEAD);
    for (kind, tree) in world.trees() {
        let good = (tree.read)(&tree.root);
        assert!(good.errors.is_empty() && (tree.check)(&tree.root).unwrap().is_empty(), "{good:?}");
        let counts = [flips(tree, &good), cuts(tree, &good), swaps(tree, &good), old(tree, &good)];
        let bytes: usize = tree.now().values().map(Vec::len).sum();
        let [f, c, s, o] = counts;
        writeln!(table, "| {kind} | {} | {bytes} | {f} | {c} | {s} | {o} | 0 |", tree.now().len())
            .unwrap();
        assert!(counts[..3].iter().all(|n| *n > 0), "{counts:?}");
    }
    foreign(&world);
    println!("{table}");
}

fn flips(tree: &Tree, good: &Seen) -> usize {
    let places = tree.now().iter().flat_map(|(n, b)| (0..b.len()).map(move |at| (n, b, at)));
    let cases = places.flat_map(|place| MASKS.map(|mask| (place, mask)));
    let mut tried = 0;
    for (_, ((name, bytes, at), mask)) in cases.enumerate().filter(|(n, _)| chosen(*n, 53)) {
        let mut bad = bytes.clone();
        bad[at] ^= mask;
        tree.judge(&format!("{name} byte {at} mask {mask:#x}"), good, &[(name, Some(&bad))]);
        tried += 1;
    }
    tried
}

fn cuts(tree: &Tree, good: &Seen) -> usize {
    let cases = tree.now().iter().flat_map(|(n, b)| (0..b.len()).map(move |len| (n, &b[..len])));
    let mut tried = 0;
    for (_, (name, bad)) in cases.enumerate().filter(|(n, _)| chosen(*n, 31)) {
        tree.judge(&format!("{name} cut to {}", bad.len()), good, &[(name, Some(bad))]);
        tried += 1;
    }
    tried
}

fn swaps(tree: &Tree, good: &Seen) -> usize {
    let files: Vec<_> = tree.now().iter().collect();
    let mut tried = 0;
    for (i, (a, x)) in files.iter().enumerate() {
        for (b, y) in &files[i + 1..] {
            tree.judge(&format!("{a} and {b} exchanged"), good, &[(a, Some(y)), (b, Some(x))]);
            tried += 1;
        }
    }
    tried
}

/// Each old version of each file, alone; each file missing; each that is gone, back.
fn old(tree: &Tree, good: &Seen) -> usize {
    let mut tried = 0;
    let last = tree.versions.len() - 1;
    for (n, before) in tree.versions[..last].iter().enumerate() {
        for (name, bytes) in before.iter().filter(|(name, b)| tree.now().get(*name) != Some(*b)) {
            let what = format!("{name} of version {n}");
            if name == MANIFEST && is_the_one_before(tree, bytes) {
                // One change behind is what a crash leaves: nothing is lost by it.
                tree.put(name, Some(bytes));
                let seen = (tree.read)(&tree.root);
                assert!(seen.errors.is_empty() && seen.facts == good.facts, "{what}: {seen:?}");
                tree.put(name, Some(&tree.now()[name]));
            } else {
                tree.judge(&what, good, &[(name, Some(bytes))]);
            }
            tried += 1;
        }
    }
    for name in tree.now().keys() {
        tree.judge(&format!("{name} missing"), good, &[(name, None)]);
        tried += 1;
    }
    tried
}

/// Whether a manifest is of the change before the newest.
fn is_the_one_before(tree: &Tree, manifest: &[u8]) -> bool {
    let change = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        text.lines().last().unwrap().split(' ').nth(3).unwrap().parse::<u64>().unwrap()
    };
    change(manifest) + 1 == change(&tree.now()[MANIFEST])
}

/// Files of another store or home that was used in the same way.
fn foreign(world: &World) {
    for (tree, other) in [&world.store, &world.home].into_iter().zip(&world.other) {
        let good = (tree.read)(&tree.root);
        for (name, bytes) in other {
            if !tree.now().contains_key(name) {
                continue;
            }
            if name == MANIFEST {
                // Then every other file is foreign to it.
                tree.put(name, Some(bytes));
                assert!((tree.check)(&tree.root).unwrap().len() >= tree.now().len() - 1);
                assert!((tree.read)(&tree.root).facts.is_empty());
                tree.put(name, Some(&tree.now()[name]));
            } else {
                tree.judge(&format!("{name} of another"), &good, &[(name, Some(bytes))]);
            }
        }
    }
}
