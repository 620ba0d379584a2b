//! Starts, failures and stops of mirrors, by a clock of the test's.

use super::*;
use crate::daemon::board::Board;
use crate::exit::{Class, Failure};
use crate::home::Home;
use crate::log::Log;
use std::sync::{Arc, Mutex};

struct World {
    supervisor: Supervisor,
    board: Board,
    ends: Receiver<Ended>,
    /// Devices, as their mirrors started.
    started: Arc<Mutex<Vec<String>>>,
    now: Instant,
    _dir: tempfile::TempDir,
}

impl World {
    /// Mirrors of devices whose name says what they do: `/fail`, `/panic`, `/leave`; others run
    /// until they are stopped.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let started = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&started);
        let run: Run = Arc::new(move |config, context| {
            let device = config.device.display().to_string();
            seen.lock().unwrap().push(device.clone());
            context.board.update(&config.volume, |s| {
                s.state = State::Live;
                s.reason.clear();
                s.counters.points += 1;
            });
            match device.as_str() {
                "/fail" => Err(Failure::new(Class::Place, "no disk").hint("bring\n  it").into()),
                "/panic" => panic!("on purpose"),
                "/leave" => Ok(()),
                _ => {
                    let _ = context.stop.recv();
                    Ok(())
                }
            }
        });
        let home = Home::locate(Some(dir.path().to_owned())).unwrap();
        let board = Board::new();
        let stop = crossbeam_channel::never();
        let context = Context { home, board: board.clone(), log: Log::silent(), stop };
        let supervisor = Supervisor::new(run, context);
        let ends = supervisor.ends();
        Self { supervisor, board, ends, started, now: Instant::now(), _dir: dir }
    }

    fn want(&mut self, mirrors: &[(&str, &str)]) {
        let config = |(volume, device): &(&str, &str)| MirrorConfig {
            volume: (*volume).to_owned(),
            ..MirrorConfig::new((*device).into())
        };
        self.supervisor.want(mirrors.iter().map(config).collect(), self.now);
    }

    /// Waits for the next end.
    fn end(&mut self) -> Option<anyhow::Error> {
        let ended = self.ends.recv_timeout(Duration::from_secs(20)).unwrap();
        self.supervisor.on_end(ended, self.now)
    }

    fn after(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.supervisor.tick(self.now);
    }

    fn status(&self, volume: &str) -> VolumeStatus {
        self.board.all().into_iter().find(|s| s.volume == volume).unwrap()
    }

    /// Waits until so many mirrors have started; their devices, sorted, from then on.
    #[track_caller]
    fn started(&self, devices: &[&str]) {
        let until = Instant::now() + Duration::from_secs(20);
        while self.started.lock().unwrap().len() < devices.len() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut started = std::mem::take(&mut *self.started.lock().unwrap());
        started.sort();
        assert_eq!(started, devices);
    }
}

#[test]
fn a_failure_is_shown_and_tried_again_later_and_later() {
    let mut world = World::new();
    world.want(&[("bad", "/fail"), ("good", "/run")]);
    world.started(&["/fail", "/run"]);
    assert_eq!(world.end().unwrap().to_string(), "no disk");
    let status = world.status("bad");
    assert_eq!((status.state, status.reason.as_str()), (State::NoConn, "failed: no disk"));
    assert_eq!((status.next_try_s, status.notes), (Some(5), vec!["bring it".to_owned()]));
    assert_eq!(world.status("good").state, State::Live);
    assert_eq!(world.supervisor.running(), ["good"]);
    world.after(4);
    assert_eq!(world.status("bad").next_try_s, Some(1));
    world.started(&[]);
    // Each time the wait is doubled, up to a limit.
    let mut left = 1;
    for wait in [10, 20, 40, 80, 160, 300, 300] {
        world.after(left);
        world.started(&["/fail"]);
        world.end().unwrap();
        assert_eq!(world.status("bad").next_try_s, Some(wait));
        left = wait;
    }
    assert_eq!(world.status("bad").counters.points, 8, "what was counted stays");
    // A change is tried at once.
    world.want(&[("bad", "/other"), ("good", "/run")]);
    world.started(&["/other"]);
    assert_eq!(world.supervisor.running(), ["bad", "good"]);
}

#[test]
fn a_mirror_that_ran_well_is_soon_tried_again() {
    let mut world = World::new();
    world.want(&[("v", "/fail")]);
    for _ in 0..5 {
        world.end().unwrap();
        world.after(300);
    }
    // It ran for long before it failed.
    world.now += RAN_WELL;
    world.end().unwrap();
    assert_eq!(world.status("v").next_try_s, Some(5));
}

#[test]
fn a_panic_and_an_end_unasked_are_failures() {
    let mut world = World::new();
    world.want(&[("a", "/panic")]);
    assert!(world.end().unwrap().to_string().contains("panicked"));
    world.want(&[("a", "/leave")]);
    assert!(world.end().unwrap().to_string().contains("without being told"));
    assert!(world.status("a").reason.starts_with("failed: "));
}

#[test]
fn a_reload_touches_only_what_changed() {
    let mut world = World::new();
    world.want(&[("a", "/1"), ("b", "/2"), ("c", "/3")]);
    world.started(&["/1", "/2", "/3"]);
    world.want(&[("a", "/1"), ("b", "/4"), ("d", "/5")]);
    world.started(&["/5"]);
    assert!(world.end().is_none() && world.end().is_none());
    world.started(&["/4"]);
    let volumes: Vec<_> = world.board.all().into_iter().map(|s| s.volume).collect();
    assert_eq!(volumes, ["a", "b", "d"]);
    assert_eq!(world.supervisor.running(), ["a", "b", "d"]);
    assert!(world.ends.is_empty());
    world.supervisor.stop_all();
    for _ in 0..3 {
        assert!(world.end().is_none());
    }
    assert!(world.supervisor.running().is_empty() && world.board.all().is_empty());
    world.after(1000);
    world.started(&[]);
}

#[test]
fn a_device_changes_hands_only_when_its_mirror_has_ended() {
    let mut world = World::new();
    world.want(&[("a", "/1"), ("b", "/2")]);
    world.started(&["/1", "/2"]);
    // The new owner of each device waits for the old one.
    world.want(&[("a", "/2"), ("b", "/1"), ("c", "/3")]);
    world.started(&["/3"]);
    world.after(10);
    assert!(world.end().is_none());
    assert_eq!(world.supervisor.running().len(), 2, "one is about to end, and has the device");
    world.started(&[]);
    assert!(world.end().is_none());
    world.started(&["/1", "/2"]);
}

#[test]
fn a_mirror_that_is_taken_back_while_it_stops_starts_once() {
    let mut world = World::new();
    world.want(&[("a", "/1")]);
    world.started(&["/1"]);
    world.want(&[]);
    world.want(&[("a", "/1")]);
    assert!(world.end().is_none());
    world.started(&["/1"]);
    assert_eq!(world.supervisor.running(), ["a"]);
}
