//! Lies about which points there are: rollback, fork, gaps. And what a machine knows of them.

use std::process::Command;

use dormouse::home::Home;
use dormouse_format::message::Message;
use dormouse_format::point::StoredPoint;
use dormouse_sync::history::hash_of;

use crate::Stage;
use crate::liar::{Liar, Lie, Wire, pass};

const LOOK: &str = "put back to an older state";

/// The points of 'v', as the server honestly shows them.
fn points(stage: &Stage) -> Vec<StoredPoint> {
    let account = Home::locate(Some(stage.place.path("home"))).unwrap().account().unwrap();
    let mut wire = Wire::welcome(&account, &stage.liar.address);
    let Message::Volumes { items } = wire.ask(&Message::ListVolumes) else { panic!("volumes") };
    let head = items.iter().filter_map(|i| i.head).max_by_key(|h| h.point().seq).unwrap();
    let question = Message::ListPoints { volume: head.point().volume, from: 1, limit: 100 };
    let Message::Points { points } = wire.ask(&question) else { panic!("points") };
    points
}

/// Nothing of the volume that is newer than `keep` is shown.
fn older(points: &[StoredPoint], keep: usize) -> Lie {
    let head = points[keep - 1];
    Lie::answer(move |m| match m {
        Message::Points { points } => points.retain(|p| p.point().seq <= keep as u64),
        Message::Volumes { items } => {
            for shown in items.iter_mut().filter_map(|i| i.head.as_mut()) {
                if shown.point().volume == head.point().volume {
                    *shown = head;
                }
            }
        }
        _ => {}
    })
}

/// Answers about the points of 'v' are altered; none of 'other'.
fn listed(f: impl Fn(&mut Vec<StoredPoint>) + Send + 'static) -> Lie {
    Lie::answer(move |m| match m {
        Message::Points { points } if points.len() > 1 => f(points),
        _ => {}
    })
}

#[test]
fn a_dropped_tail_is_found_by_every_command_of_who_saw_it() {
    let stage = Stage::new();
    let points = points(&stage);
    for keep in 1..3 {
        let words = ["lost history", &format!("shows point {keep}"), "point 3", LOOK];
        stage.all_refused("home", || older(&points, keep), 9, &words);
    }
    // Who was there first sees nothing wrong, and says that it cannot know.
    stage.reader("late");
    stage.liar.lie(older(&points, 2));
    let dest = stage.place.name("dest");
    let said = stage.place.run_in("late", &["restore", "v", &dest, "--json"]).ok();
    assert!(said.err.contains("freshness unproven"), "{said:?}");
    let chosen = said.event("chosen");
    assert_eq!((&chosen["point"], &chosen["fresh"]), (&2.into(), &false.into()));
    stage.liar.lie(Lie::none());
    std::fs::remove_file(&dest).unwrap();
}

/// A machine that only reads remembers what it was shown.
#[test]
fn a_reader_finds_a_rollback_behind_what_it_was_shown() {
    let stage = Stage::new();
    let points = points(&stage);
    for (home, seen_by) in
        [("a", &["points"][..]), ("b", &["volumes"]), ("c", &["status"]), ("d", &["verify", "v"])]
    {
        stage.reader(home);
        stage.place.run_in(home, seen_by).ok();
        stage.all_refused(home, || older(&points, 2), 9, &["lost history", "point 3", LOOK]);
        // It was shown these points, and knows of them from nobody else.
        let said = stage.place.run_in(home, &["verify", "v", "--json"]).ok();
        assert_eq!(said.event("chosen")["fresh"], false);
        assert!(said.err.contains("freshness unproven"), "{said:?}");
    }
}

#[test]
fn an_expected_head_makes_it_strict_and_is_remembered() {
    let stage = Stage::new();
    let points = points(&stage);
    let hash = |n: usize| hash_of(&points[n - 1].signed).to_string();
    stage.reader("reader");
    let dest = stage.place.name("dest");
    let restore = |hash: &str| {
        let args = ["restore", "v", &dest, "--expect-head", hash, "--json"];
        stage.place.run_in("reader", &args)
    };
    let verify = |hash: &str| {
        stage.place.run_in("reader", &["verify", "v", "--expect-head", hash, "--json"])
    };
    stage.liar.lie(older(&points, 2));
    let words = ["expected point is not in the history", LOOK];
    restore(&hash(3)).fails(9, &words);
    verify(&hash(3)).fails(9, &words);
    restore("abc").fails(2, &["'abc' is not the hash of a point", "64 hexadecimal digits"]);
    verify("abc").fails(2, &["'abc' is not the hash of a point"]);
    assert!(!stage.place.path("dest").exists());
    // With the one that is shown it goes: the user vouches for it.
    let said = verify(&hash(2)).ok();
    assert_eq!(said.event("chosen")["fresh"], true);
    assert!(!said.err.contains("unproven"), "{said:?}");
    stage.liar.lie(Lie::none());
    let said = restore(&hash(2)).ok();
    assert_eq!(
        (&said.event("chosen")["point"], &said.event("chosen")["fresh"]),
        (&3.into(), &true.into())
    );
    crate::common::program::same(&stage.place.path("dest"), &stage.versions[2]);
    std::fs::remove_file(&dest).unwrap();
    // What goes on from it is proved from then on, without the flag.
    let said = stage.place.run_in("reader", &["verify", "v", "--json"]).ok();
    assert_eq!(said.event("chosen")["fresh"], true);
}

/// Who has seen point 3 and names point 2 gets it, but not as fresh, and goes on to know of 3.
#[test]
fn an_expected_head_does_not_hide_a_newer_one_that_was_seen() {
    let stage = Stage::new();
    let points = points(&stage);
    let hash = hash_of(&points[1].signed).to_string();
    stage.reader("reader");
    stage.place.run_in("reader", &["points", "v"]).ok();
    stage.liar.lie(older(&points, 2));
    let args = ["verify", "v", "--expect-head", &hash, "--json"];
    for home in ["reader", "home"] {
        let said = stage.place.run_in(home, &args).ok();
        assert_eq!(said.event("chosen")["fresh"], false, "{home}: {said:?}");
        assert!(said.err.contains("knows a newer or another head"), "{home}: {said:?}");
        stage.place.run_in(home, &["verify", "v"]).fails(9, &["lost history", LOOK]);
    }
}

/// A store that was honestly put back to a backup: the way out that is said works.
#[test]
fn the_way_out_of_a_rollback() {
    let stage = Stage::new();
    let points = points(&stage);
    stage.liar.lie(older(&points, 2));
    let said = stage.place.run(&["restore", "v", &stage.place.name("dest")]).fails(9, &[LOOK]);
    let word = |before: &str| {
        let at = said.err.find(before).unwrap_or_else(|| panic!("{said:?}")) + before.len();
        said.err[at..].split_whitespace().next().unwrap().to_owned()
    };
    let (hash, file) = (word("--expect-head "), word("remove "));
    assert_eq!(hash, hash_of(&points[1].signed).to_string());
    let dest = stage.place.name("dest");
    stage.place.run(&["restore", "v", &dest, "--expect-head", &hash]).ok();
    crate::common::program::same(&stage.place.path("dest"), &stage.versions[1]);
    // That was once: what this machine knows is given up by hand only.
    stage.place.run(&["points", "v"]).fails(9, &["lost history"]);
    std::fs::remove_file(file).unwrap();
    stage.place.run(&["points", "v"]).fails(9, &["is missing", "--accept-state"]);
    stage.place.run(&["status", "--accept-state"]).ok();
    stage.place.run(&["points", "v"]).ok();
}

#[test]
fn a_list_with_a_gap_a_replay_or_a_forgery() {
    let stage = Stage::new();
    let history = points(&stage);
    for (f, words) in [
        (
            (|points| points.retain(|p| p.point().seq != 2)) as fn(&mut Vec<StoredPoint>),
            "leaves it out",
        ),
        (|points| points.retain(|p| p.point().seq != 1), "leaves it out"),
        (|points| points.push(points[0]), "does not follow the one before"),
        (|points| points[2] = points[0], "does not follow the one before"),
        (|points| points.swap(1, 2), "does not follow the one before"),
        (|points| points[2].signed.point.size -= 4096, "its signature is wrong"),
        (|points| points.truncate(2), "another history"),
        (Vec::clear, "another history"),
    ] {
        stage.refused(|| listed(f), 9, &[words]);
    }
    // An old point as the newest, in the list of volumes alone.
    let first = history[0];
    let replayed = || {
        Lie::answer(move |m| {
            if let Message::Volumes { items } = m {
                for head in items.iter_mut().filter_map(|i| i.head.as_mut()) {
                    if head.point().volume == first.point().volume {
                        *head = first;
                    }
                }
            }
        })
    };
    for args in [&["volumes"][..], &["mirror", &stage.place.name("v"), "--once"]] {
        stage.liar.lie(replayed());
        stage.place.run(args).fails(9, &["lost history"]);
    }
    // A list that goes on to the newest is as good; and what is known is not forgotten for it.
    stage.place.run(&["points", "v"]).ok();
    stage.liar.lie(older(&history, 2));
    stage.place.run(&["points", "v"]).fails(9, &["lost history", "point 3"]);
}

#[test]
fn a_volume_that_is_hidden_or_of_another_name() {
    let stage = Stage::new();
    let hidden = || {
        Lie::answer(|m| {
            if let Message::Volumes { items } = m {
                items.clear();
            }
        })
    };
    stage.all_refused("home", hidden, 9, &["does not show volume", "any more"]);
}

/// Two machines with one home, each of which made point 4, on one store and on a copy of it.
#[test]
fn a_fork_is_found_by_every_command() {
    let stage = Stage::new();
    let place = &stage.place;
    for (from, to) in [("store", "store2"), ("home", "home2")] {
        let done = Command::new("cp").arg("-a").args([place.path(from), place.path(to)]).status();
        assert!(done.unwrap().success());
    }
    let fork = Liar::start(&place.path("store2"));
    let moved = |home: &str, from: &str, to: &str| {
        let said = place.run_in(home, &["retarget", to]).ok();
        assert!(said.out.contains(from) && said.out.contains(to), "{said:?}");
    };
    moved("home2", &stage.liar.address, &fork.address);
    let mut content = stage.versions[2].clone();
    for (home, version) in [("home", 4), ("home2", 5)] {
        content[7 * 4096..8 * 4096].fill(version);
        std::fs::write(place.path("v"), &content).unwrap();
        let args = ["mirror", &place.name("v"), "--once", "--json"];
        assert_eq!(place.run_in(home, &args).ok().event("done")["point"], 4);
    }
    // Both are told: that point, and a longer history that goes on from it.
    moved("home", &stage.liar.address, &fork.address);
    let none = Lie::none;
    stage.all_refused("home", none, 9, &["another history", "point 4", LOOK]);
    place.run_in("home2", &["mirror", &place.name("v"), "--once"]).ok();
    let words = ["another history", "point 4", "--expect-head", LOOK];
    let said = place.run(&["points", "v"]);
    said.fails(9, &words);
}

/// What is acknowledged and forgotten shows at the next question.
#[test]
fn an_acknowledgement_that_is_a_lie_is_found_out_next_time() {
    let stage = Stage::new();
    std::fs::write(stage.place.path("v"), &stage.versions[0]).unwrap();
    stage.liar.lie(Lie::say(|question, answers, wire| match question {
        Message::Commit { .. } => wire.send(&Message::Committed { receipt: 1 }),
        _ => pass(&answers, wire),
    }));
    // The session behind it did commit; what is shown from here on is as if it had not.
    assert_eq!(stage.place.mirror("v")["point"], 4);
    stage.liar.lie(Lie::none());
    let all = points(&stage);
    assert_eq!(all.len(), 4);
    stage.all_refused("home", || older(&all, 3), 9, &["lost history", "point 4", LOOK]);
}
