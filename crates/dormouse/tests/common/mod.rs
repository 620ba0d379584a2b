//! A store, a server on loopback, and homes, for the integration tests.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod loops;
pub mod program;
pub mod relay;

use std::path::{Path, PathBuf};

use dormouse::access;
use dormouse::exit::{Class, class_of};
use dormouse::home::Home;
use dormouse::invite::{Address, Invite};
use dormouse::join::{self, Joined};
use dormouse::log::Log;
use dormouse::serve::Server;
use dormouse::store_dir::StoreDir;
use dormouse::text::now_ns;

pub const HOUR: u64 = 3_600_000_000_000;

pub struct World {
    pub dir: tempfile::TempDir,
    pub server: Option<Server>,
    /// Once it was started, always the same.
    listen: String,
}

impl World {
    pub fn new() -> Self {
        let world =
            Self { dir: tempfile::tempdir().unwrap(), server: None, listen: "127.0.0.1:0".into() };
        world.store_new();
        world
    }

    pub fn serving() -> Self {
        let mut world = Self::new();
        world.start();
        world
    }

    pub fn start(&mut self) {
        let server = Server::start(self.store(), &self.listen, Log::silent()).unwrap();
        self.listen = server.address().to_string();
        self.server = Some(server);
    }

    pub fn stop(&mut self) {
        self.server.take().unwrap().stop();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn store_new(&self) {
        StoreDir::open_or_create(&self.path("store")).unwrap();
    }

    pub fn store(&self) -> StoreDir {
        StoreDir::open(&self.path("store")).unwrap()
    }

    pub fn home(&self, name: &str) -> Home {
        Home::locate(Some(self.path(name))).unwrap()
    }

    pub fn address(&self) -> Address {
        self.server.as_ref().unwrap().address().to_string().parse().unwrap()
    }

    pub fn invite(&self, client: &str) -> Invite {
        access::invite(&self.store(), client, self.address(), now_ns(), HOUR).unwrap()
    }

    pub fn join(&self, home: &str, invite: &Invite) -> anyhow::Result<Joined> {
        join::join(&self.home(home), &invite.to_string(), None, None)
    }
}

/// The class of an error, and that its text names `words`.
#[track_caller]
pub fn assert_fails<T: std::fmt::Debug>(result: anyhow::Result<T>, class: Class, words: &str) {
    let error = result.unwrap_err();
    let text = dormouse::exit::text_of(&error);
    assert_eq!(class_of(&error), class, "{text}");
    assert!(text.contains(words), "'{words}' is not in: {text}");
    assert!(text.contains("\n  "), "no way out in: {text}");
}

/// Everything below a directory, with contents.
pub fn snapshot(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                out.push((path.clone(), std::fs::read(&path).unwrap()));
            }
        }
    }
    out.sort();
    out
}
