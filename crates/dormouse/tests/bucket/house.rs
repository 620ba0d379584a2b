//! A server of a store in a bucket, behind a relay, and a client.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::program::{Place, Running, Said};
use crate::common::relay::Relay;
use crate::s3::{BUCKET, KEY, S3, SECRET};

pub const URL: &str = "s3://backup/some/where";

pub fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap())
}

pub struct House {
    pub place: Place,
    pub s3: S3,
    pub relay: Relay,
    /// Name of the state directory.
    pub state: String,
    flags: Vec<String>,
    listen: String,
    /// As what the S3 server is reached.
    host: &'static str,
    server: Option<Running>,
    /// Bytes of each object that was seen, to show that they stay.
    seen: BTreeMap<String, Vec<u8>>,
}

impl House {
    /// With a server that runs.
    pub fn new(flags: &[&str]) -> Self {
        let mut house = Self::on(S3::start(true), flags);
        house.serve(&[]);
        house
    }

    pub fn on(s3: S3, flags: &[&str]) -> Self {
        let relay = Relay::start(&s3.address.to_string());
        let flags = flags.iter().map(|f| (*f).to_owned()).collect();
        let (state, listen) = ("state".to_owned(), "127.0.0.1:0".to_owned());
        let (place, seen, host) = (Place::new(), BTreeMap::new(), "127.0.0.1");
        Self { place, s3, relay, state, flags, listen, host, server: None, seen }
    }

    /// The endpoint is a name.
    pub fn by_name(s3: S3, flags: &[&str]) -> Self {
        Self { host: "localhost", ..Self::on(s3, flags) }
    }

    pub fn pid(&self) -> u32 {
        self.server.as_ref().unwrap().child.id()
    }

    fn start(&self, args: &[&str], change: &[(&str, &str)]) -> Running {
        let (_, port) = self.relay.address.rsplit_once(':').unwrap();
        let endpoint = format!("http://{}:{port}", self.host);
        self.place.start_with("home", args, |command| {
            command
                .env("AWS_ENDPOINT_URL", endpoint)
                .env("AWS_REGION", "us-east-1")
                .env("AWS_ACCESS_KEY_ID", KEY)
                .env("AWS_SECRET_ACCESS_KEY", SECRET)
                .envs(change.iter().copied());
        })
    }

    /// A command that reaches the bucket.
    pub fn run(&self, args: &[&str]) -> Said {
        self.run_changed(args, &[])
    }

    pub fn run_changed(&self, args: &[&str], change: &[(&str, &str)]) -> Said {
        self.start(args, change).wait()
    }

    pub fn serve(&mut self, more: &[&str]) {
        let state = self.place.name(&self.state);
        let mut args = vec!["serve", URL, "--state", &state];
        args.extend(more);
        self.serve_with(&args.into_iter().map(str::to_owned).collect::<Vec<_>>());
    }

    /// By its state directory alone.
    pub fn serve_state(&mut self) {
        self.serve_with(&["serve".to_owned(), self.place.name(&self.state)]);
    }

    fn serve_with(&mut self, args: &[String]) {
        let listen = ["--listen".to_owned(), self.listen.clone()];
        let all: Vec<&str> = args.iter().chain(&listen).chain(&self.flags).map(|a| &**a).collect();
        // As a service manager does: a start may meet a request that is not answered.
        for _ in 0..10 {
            let mut server = self.start(&all, &[]);
            let until = Instant::now() + Duration::from_secs(40);
            while !server.ended() && Instant::now() < until {
                let out = server.out();
                if let Some((line, _)) = out.split_once('\n') {
                    self.listen = line.strip_prefix("listening on ").unwrap().to_owned();
                    self.server = Some(server);
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            let said = server.wait();
            assert_eq!(said.code, Some(6), "{said:?}");
        }
        panic!("the server does not start");
    }

    pub fn kill(&mut self) {
        self.server.take().unwrap().kill();
    }

    /// SIGTERM, and a good end.
    pub fn stop(&mut self) {
        let mut server = self.server.take().unwrap();
        server.signal(Signal::TERM);
        let until = Instant::now() + Duration::from_secs(40);
        while !server.ended() {
            assert!(Instant::now() < until, "it does not stop: {}", server.err());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(server.child.wait().unwrap().code(), Some(0), "{}", server.err());
    }

    pub fn join(&self) {
        let state = self.place.name(&self.state);
        let said = self.place.run(&["invite", &state, "laptop", "--url", &self.listen]).ok();
        self.place.run(&["join", said.out.trim()]).ok();
        self.key_copy();
    }

    /// A copy of the server's key, as the documents tell people to keep.
    pub fn key_copy(&self) -> String {
        let copy = self.place.name("key-copy");
        if !self.place.path("key-copy").exists() {
            std::fs::copy(self.place.path("state/server.key"), &copy).unwrap();
        }
        copy
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.place.path(name), bytes).unwrap();
    }

    pub fn mirror(&self) {
        self.place.mirror("v");
    }

    /// Hash and number of each point.
    pub fn points(&self) -> Vec<String> {
        let said = self.place.run(&["points", "--all", "--json"]);
        if said.code == Some(4) {
            return Vec::new();
        }
        let json = said.ok().json();
        let one = |p: &serde_json::Value| format!("{} {}", p["point"], p["hash"]);
        let mut all: Vec<(u64, String)> =
            points_in(&json).iter().map(|p| (p["point"].as_u64().unwrap(), one(p))).collect();
        all.sort();
        all.into_iter().map(|(_, text)| text).collect()
    }

    /// The machine with the state burns down; another takes its place.
    pub fn lose_machine(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill();
        }
        self.see_objects();
        let state = self.place.name(&self.state);
        let key = self.key_copy();
        for _ in 0..10 {
            let _ = std::fs::remove_dir_all(&state);
            let args = ["rebuild", URL, "--state", &state, "--takeover", "--server-key", &key];
            let said = self.run(&args);
            if said.code == Some(0) {
                return;
            }
            assert_eq!(said.code, Some(6), "{said:?}");
        }
        panic!("the state is not rebuilt");
    }

    /// Waits until a segment is only in the bucket.
    pub fn evicted(&self) {
        let until = Instant::now() + Duration::from_secs(30);
        let first = "0000000000000001.seg";
        let there = || {
            let vaults = std::fs::read_dir(self.place.path(&self.state).join("vaults")).unwrap();
            let mut paths = vaults.map(|v| v.unwrap().path().join("segments").join(first));
            paths.any(|p| p.exists())
        };
        while there() {
            assert!(Instant::now() < until, "{first} is still here");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn scrub(&self) {
        let said = self.run(&["scrub", &self.place.name(&self.state)]).ok();
        assert!(said.out.contains("1 vaults, ") && said.out.contains(" 0 faults"), "{said:?}");
    }

    fn see_objects(&mut self) {
        for (name, bytes) in self.s3.objects().into_iter().filter(|(n, _)| !n.starts_with('.')) {
            let before = self.seen.entry(name.clone()).or_insert_with(|| bytes.clone());
            assert!(*before == bytes, "{name} was overwritten");
        }
    }

    pub fn nothing_was_overwritten(&mut self) {
        self.see_objects();
        let parts = self.seen.keys().filter(|n| n.contains(".seg")).count();
        assert!(parts > 3, "objects were seen: {parts}, in {BUCKET}");
    }
}

/// The points in what `points --json` says.
fn points_in(json: &serde_json::Value) -> Vec<serde_json::Value> {
    match json {
        serde_json::Value::Array(all) if all.iter().all(|v| v.get("point").is_some()) => {
            all.clone()
        }
        serde_json::Value::Array(all) => all.iter().flat_map(points_in).collect(),
        serde_json::Value::Object(all) => all.values().flat_map(points_in).collect(),
        _ => Vec::new(),
    }
}
