//! The status socket: who finds it, who may, and what slow or strange peers get.

use std::os::unix::net::UnixListener;

use super::*;
use crate::daemon::board::State;
use crate::exit::Class;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};

fn home(dir: &Path) -> Home {
    Home::locate(Some(dir.to_owned())).unwrap()
}

fn open(home: &Home, board: &Board) -> StatusSocket {
    StatusSocket::open(home, None, board, &Log::silent()).unwrap()
}

fn board(volumes: &[&str]) -> Board {
    let board = Board::new();
    for volume in volumes {
        board.set(&VolumeStatus::new(volume, "/dev/x", State::Live, ""));
    }
    board
}

fn volumes(documents: &[Document]) -> Vec<&str> {
    let mut all: Vec<_> =
        documents.iter().flat_map(|d| &d.volumes).map(|v| v.volume.as_str()).collect();
    all.sort_unstable();
    all
}

#[test]
fn all_daemons_of_a_home_are_found_and_dead_ones_are_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let home = home(dir.path());
    assert!(documents(&home).is_empty(), "no daemon ever ran");
    let run = dir.path().join("run");
    let first = open(&home, &board(&["a", "b"]));
    let elsewhere = dir.path().join("elsewhere");
    let second =
        StatusSocket::open(&home, Some(&elsewhere), &board(&["c"]), &Log::silent()).unwrap();
    let found = documents(&home);
    assert_eq!(volumes(&found), ["a", "b", "c"]);
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|d| d.pid == std::process::id()));
    for path in [first.path(), second.path()] {
        let meta = std::fs::metadata(path).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(std::fs::metadata(&run).unwrap().permissions().mode() & 0o777, 0o700);
    // Of daemons that were killed: a socket, and a link to one that is gone.
    let dead = run.join("status-1.sock");
    drop(UnixListener::bind(&dead).unwrap());
    let dangling = run.join("status-2.sock");
    std::os::unix::fs::symlink(dir.path().join("gone"), &dangling).unwrap();
    std::fs::write(run.join("other"), "kept").unwrap();
    assert_eq!(volumes(&documents(&home)), ["a", "b", "c"]);
    assert!(!dead.exists() && dangling.symlink_metadata().is_err());
    drop((first, second));
    assert!(documents(&home).is_empty());
    let left: Vec<_> = std::fs::read_dir(&run).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["other"]);
    assert!(!elsewhere.exists());
}

#[test]
fn a_place_that_is_taken_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let home = home(dir.path());
    let at = dir.path().join("at");
    let open = || StatusSocket::open(&home, Some(&at), &Board::new(), &Log::silent());
    std::fs::write(&at, "precious").unwrap();
    assert_eq!(crate::exit::class_of(&open().unwrap_err()), Class::Place);
    assert_eq!(std::fs::read(&at).unwrap(), b"precious");
    std::fs::remove_file(&at).unwrap();
    drop(UnixListener::bind(&at).unwrap());
    let taken = open().unwrap();
    assert_eq!(crate::exit::class_of(&open().unwrap_err()), Class::InUse);
    drop(taken);
    open().unwrap();
}

#[test]
fn a_home_with_a_long_path_has_a_socket_too() {
    let dir = tempfile::tempdir().unwrap();
    let home = home(&dir.path().join("long/".repeat(60)));
    let _socket = open(&home, &board(&["a"]));
    assert_eq!(volumes(&documents(&home)), ["a"]);
}

#[test]
fn a_watch_tells_news_at_once_and_numbers_each_second() {
    let dir = tempfile::tempdir().unwrap();
    let (home, board) = (home(dir.path()), board(&["a"]));
    let socket = open(&home, &board);
    let mut asked = ask(&home, "watch", &[]).remove(0);
    assert!(ask(&home, "watch", &[socket.path().to_owned()]).is_empty(), "it is known already");
    let first = asked.newest().unwrap();
    assert_eq!(first.volumes[0].state, State::Live);
    std::thread::sleep(GAP * 2);
    let began = Instant::now();
    board.update("a", |s| s.state = State::Rescan);
    assert_eq!(asked.newest().unwrap().volumes[0].state, State::Rescan);
    assert!(began.elapsed() < EVERY / 2, "{:?}", began.elapsed());
    board.update("a", |s| s.backlog_bytes = 5);
    assert_eq!(asked.newest().unwrap().volumes[0].backlog_bytes, 5);
    let took = began.elapsed();
    assert!(took > EVERY / 2 && took < EVERY * 3, "{took:?}");
    drop(socket);
    while asked.newest().is_some() {}
}

#[test]
fn nonsense_is_answered_and_closed() {
    let dir = tempfile::tempdir().unwrap();
    let home = home(dir.path());
    let socket = open(&home, &board(&["a"]));
    for request in [&b"stat\n"[..], b"\n", b"\xff\n", &[b'x'; REQUEST_MAX]] {
        let mut stream = connect(socket.path()).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("{\"error\":") && answer.ends_with('\n'), "{answer}");
    }
}

#[test]
fn a_slow_reader_holds_up_neither_the_mirrors_nor_other_readers() {
    let dir = tempfile::tempdir().unwrap();
    let home = home(dir.path());
    let names: Vec<String> = (0..2000).map(|i| format!("volume-{i}")).collect();
    let board = board(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let socket = open(&home, &board);
    let mut slow: Vec<UnixStream> = (0..4).map(|_| connect(socket.path()).unwrap()).collect();
    for stream in &mut slow {
        stream.write_all(b"watch\n").unwrap();
    }
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    while began.elapsed() < PATIENCE / 2 {
        let at = Instant::now();
        board.update("volume-0", |s| s.backlog_bytes += 1);
        longest = longest.max(at.elapsed());
        std::thread::sleep(Duration::from_millis(5));
    }
    // Far below the five seconds for which each of them holds up its own thread.
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    let at = Instant::now();
    assert_eq!(documents(&home)[0].volumes.len(), names.len());
    assert!(at.elapsed() < PATIENCE / 2, "{:?}", at.elapsed());
    // In the end they are closed, with a document cut short.
    std::thread::sleep((began + PATIENCE + Duration::from_secs(1)) - Instant::now());
    for stream in &mut slow {
        // As much as fits on the way, and no more comes.
        let mut got = Vec::new();
        stream.take(4 << 20).read_to_end(&mut got).unwrap();
        assert!(!got.is_empty() && !got.contains(&b'\n'), "{} bytes", got.len());
    }
}
