//! Lies about the wire: lengths, counts, trickle, silence. The client ends in time, without
//! much memory, and says what is wrong.

use std::io;
use std::time::Duration;

use dormouse_format::limits::FRAME_MAX;
use dormouse_format::message::Message;
use dormouse_format::record::Kind;

use crate::common::program::{Numbers, Said};
use crate::liar::{Lie, Wire, pass};
use crate::{MIB, Stage, bounded};

/// No command takes longer with two seconds of patience.
const LIMIT: Duration = Duration::from_secs(15);
const MEMORY: u64 = 192 << 20;

impl Stage {
    /// A command with two seconds of patience, under a lie.
    #[track_caller]
    fn hurried(&self, args: &[&str], lie: Lie) -> Said {
        self.liar.lie(lie);
        let args = [args, &["--patience", "2s"]].concat();
        let (said, peak) = bounded(self.place.start(&args), LIMIT);
        assert!(peak < MEMORY, "{args:?}: {} MiB", peak >> 20);
        assert!(!self.place.path("dest").exists(), "{args:?} left a destination");
        said
    }
}

/// In place of the answer to a question that `which` names.
fn instead(
    which: fn(&Message) -> bool,
    mut f: impl FnMut(&mut Wire) -> io::Result<()> + Send + 'static,
) -> Lie {
    Lie::say(
        move |question, answers, wire| {
            if which(question) { f(wire) } else { pass(&answers, wire) }
        },
    )
}

/// From the first question that `which` names on, nothing is said any more.
fn silent_from(which: fn(&Message) -> bool) -> Lie {
    let mut silent = false;
    Lie::say(move |question, answers, wire| {
        silent |= which(question);
        if silent { Ok(()) } else { pass(&answers, wire) }
    })
}

const QUESTIONS: [fn(&Message) -> bool; 7] = [
    |m| matches!(m, Message::Hello { .. }),
    |m| matches!(m, Message::GetSmall { kind: Kind::Cert, .. }),
    |m| matches!(m, Message::ListVolumes),
    |m| matches!(m, Message::ListPoints { .. }),
    |m| matches!(m, Message::GetNode { .. }),
    |m| matches!(m, Message::GetLeaves { .. }),
    |m| matches!(m, Message::GetChunks { .. }),
];

fn raw(bytes: &'static [u8]) -> impl FnMut(&mut Wire) -> io::Result<()> + Send + 'static {
    move |wire| wire.raw(bytes)
}

#[test]
fn giant_and_empty_frames() {
    let stage = Stage::new();
    let dest = stage.place.name("dest");
    let lengths = [u32::MAX, FRAME_MAX as u32 + 1, 0];
    for which in QUESTIONS {
        for len in lengths {
            let lie =
                instead(which, move |wire| wire.raw(&[&len.to_le_bytes()[..], &[0x83]].concat()));
            let said = stage.hurried(&["restore", "v", &dest], lie);
            said.fails(7, &["broke the protocol", "frame", "same version"]);
        }
    }
}

#[test]
fn giant_counts_within_a_message() {
    let stage = Stage::new();
    let dest = stage.place.name("dest");
    for (which, bytes) in [
        (QUESTIONS[0], &[7, 0, 0, 0, 0x82, 1, 0, 255, 255, 255, 255][..]),
        (QUESTIONS[2], &[5, 0, 0, 0, 0x90, 255, 255, 255, 255]),
        (QUESTIONS[3], &[5, 0, 0, 0, 0x91, 255, 255, 255, 255]),
        (QUESTIONS[4], &[9, 0, 0, 0, 0x94, 255, 255, 255, 255, 255, 255, 255, 255]),
        (QUESTIONS[6], &[1, 0, 0, 0, 0x77]),
    ] {
        let said = stage.hurried(&["restore", "v", &dest], instead(which, raw(bytes)));
        said.fails(7, &["broke the protocol", "same version"]);
    }
    let source = stage.place.name("v");
    std::fs::write(&source, &stage.versions[0]).unwrap();
    let have = |m: &Message| matches!(m, Message::Have { .. });
    let lie = instead(have, raw(&[5, 0, 0, 0, 0xa1, 255, 255, 255, 255]));
    let said = stage.hurried(&["mirror", &source, "--once", "--all"], lie);
    said.fails(7, &["broke the protocol", "same version"]);
}

#[test]
fn answers_to_other_questions() {
    let stage = Stage::new();
    let dest = stage.place.name("dest");
    for which in QUESTIONS {
        let lie = instead(which, |wire| wire.send(&Message::Durable));
        let said = stage.hurried(&["restore", "v", &dest], lie);
        said.fails(7, &["broke the protocol", "same version"]);
    }
}

/// Silence without a cut, at each question: the command ends, and says what it waited for.
#[test]
fn a_restore_ends_in_silence() {
    let stage = Stage::new();
    let dest = stage.place.name("dest");
    for which in QUESTIONS {
        let said = stage.hurried(&["restore", "v", &dest], silent_from(which));
        said.fails(6, &["did not answer within 2 s", "--patience"]);
    }
}

#[test]
fn a_copy_ends_in_silence() {
    let stage = Stage::new();
    let source = stage.place.name("v");
    std::fs::write(&source, &stage.versions[0]).unwrap();
    for which in [
        QUESTIONS[2],
        |m| matches!(m, Message::OpenWrite { .. }),
        |m| matches!(m, Message::GetNode { .. }),
        |m| matches!(m, Message::Have { .. }),
        |m| matches!(m, Message::Commit { .. }),
    ] {
        let said = stage.hurried(&["mirror", &source, "--once"], silent_from(which));
        said.fails(6, &["did not answer within 2 s", "not sent twice"]);
    }
}

#[test]
fn a_question_ends_in_silence() {
    let stage = Stage::new();
    for args in [&["points"][..], &["volumes"], &["status"], &["verify", "v"]] {
        let said = stage.hurried(args, silent_from(QUESTIONS[2]));
        let said = Said { err: format!("{}{}", said.out, said.err), ..said };
        said.fails(6, &["did not answer within 2 s"]);
    }
    let kit = stage.place.name("kit");
    let lie = silent_from(|m| matches!(m, Message::Recover { .. }));
    stage.liar.lie(lie);
    let args = ["join", "--kit", &kit, "--patience", "2s"];
    let (said, _) = bounded(stage.place.start_in("new", &args), LIMIT);
    said.fails(6, &["did not answer within 2 s"]);
}

/// A frame that begins and never ends, or ends in a month.
#[test]
fn a_frame_without_an_end() {
    let stage = Stage::new();
    let dest = stage.place.name("dest");
    for which in QUESTIONS {
        let head = [&(FRAME_MAX as u32).to_le_bytes()[..], &[0x92]].concat();
        let begun = instead(which, move |wire| wire.raw(&head));
        stage.hurried(&["restore", "v", &dest], begun).fails(6, &["did not answer within 2 s"]);
        let trickle = instead(which, |wire| {
            wire.raw(&[&(FRAME_MAX as u32).to_le_bytes()[..], &[0x92]].concat())?;
            loop {
                wire.raw(&[0])?;
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        stage.hurried(&["restore", "v", &dest], trickle).fails(6, &["next to nothing, comes"]);
    }
}

/// One good message after the other, and no end of it, slowly.
#[test]
fn messages_without_an_end() {
    let stage = Stage::new();
    let dest = stage.place.name("dest");
    let certs = Lie::say(|question, answers, wire| match question {
        Message::GetSmall { kind: Kind::Cert, .. } => loop {
            wire.send(&answers[0])?;
            std::thread::sleep(Duration::from_millis(200));
        },
        _ => pass(&answers, wire),
    });
    stage.hurried(&["restore", "v", &dest], certs).fails(6, &["did not answer within 2 s"]);
    let keys = Lie::say(|question, answers, wire| match question {
        Message::GetSmall { kind: Kind::DataKey, .. } => loop {
            wire.send(&answers[0])?;
            std::thread::sleep(Duration::from_millis(200));
        },
        _ => pass(&answers, wire),
    });
    stage.hurried(&["restore", "v", &dest], keys).fails(6, &["did not answer within 2 s"]);
    // Quickly, and nobody asked.
    for message in [Message::Done, Message::Durable, Message::Points { points: Vec::new() }] {
        let frames = message.encode().repeat(50_000);
        let flood = instead(QUESTIONS[4], move |wire| {
            loop {
                wire.raw(&frames)?;
            }
        });
        stage.hurried(&["restore", "v", &dest], flood).fails(7, &["broke the protocol"]);
    }
    // Before a refusal, so that its reason is looked for among them.
    let frames = Message::Done.encode().repeat(1000);
    let flood = instead(QUESTIONS[0], move |wire| {
        wire.socket.shutdown(std::net::Shutdown::Read)?;
        loop {
            wire.raw(&frames)?;
        }
    });
    let said = stage.hurried(&["restore", "v", &dest], flood);
    assert!(said.code == Some(6) || said.code == Some(7), "{said:?}");
}

/// A server that takes nothing, while there is much to send.
#[test]
fn a_server_that_does_not_read() {
    let stage = Stage::new();
    let source = stage.place.name("much");
    std::fs::write(&source, Numbers(3).noise(64 * MIB)).unwrap();
    let puts = |m: &Message| matches!(m, Message::Put { .. });
    let lie = instead(puts, |_| {
        std::thread::sleep(4 * LIMIT);
        Ok(())
    });
    let said = stage.hurried(&["mirror", &source, "--once"], lie);
    said.fails(6, &["not sent twice"]);
}

/// Slow is not silent: a server that takes its time for each answer, but comes.
#[test]
fn a_slow_server_is_waited_for() {
    let stage = Stage::new();
    let dest = stage.place.path("dest");
    stage.liar.lie(Lie::say(|_, answers, wire| {
        if !answers.is_empty() {
            std::thread::sleep(Duration::from_millis(700));
        }
        pass(&answers, wire)
    }));
    let args = ["restore", "v", dest.to_str().unwrap(), "--patience", "2s"];
    let (said, _) = bounded(stage.place.start(&args), Duration::from_secs(60));
    said.ok();
    crate::common::program::same(&dest, &stage.versions[2]);
    std::fs::write(stage.place.path("v"), &stage.versions[0]).unwrap();
    let source = stage.place.name("v");
    let args = ["mirror", &source, "--once", "--patience", "2s"];
    bounded(stage.place.start(&args), Duration::from_secs(60)).0.ok();
}
