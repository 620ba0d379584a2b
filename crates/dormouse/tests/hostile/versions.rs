//! Peers of version 1 of which one knows more messages than the other.

use dormouse_format::message::{Keep, Kept, Message, Refusal};

use crate::Stage;
use crate::clients::served;
use crate::liar::{Lie, Wire, pass};

/// Types that nobody has yet.
const UNKNOWN: [u8; 3] = [0x6f, 0x7f, 0xdf];

#[test]
fn a_server_says_which_message_it_does_not_know_and_what_came_before_is_answered() {
    let (_place, server, account) = served(&[]);
    for kind in UNKNOWN {
        let mut wire = Wire::welcome(&account, &server.address);
        wire.send(&Message::Barrier).unwrap();
        wire.raw(&[3, 0, 0, 0, kind, 1, 2]).unwrap();
        assert_eq!(wire.next().unwrap(), Some(Message::Durable));
        let Some(Message::Error { refusal, text }) = wire.next().unwrap() else {
            panic!("{kind:#x}: nothing was said")
        };
        assert_eq!(refusal, Refusal::Protocol);
        assert!(text.contains("unknown type"), "{text}");
        assert_eq!(wire.next().unwrap(), None, "and the connection ends");
    }
    // Nothing else came of it.
    let mut wire = Wire::welcome(&account, &server.address);
    assert_eq!(wire.ask(&Message::ListVolumes), Message::Volumes { items: vec![] });
}

/// A server of before there was GetGain: the rest of what was asked for is done.
#[test]
fn an_older_server_costs_only_what_it_does_not_know() {
    let stage = Stage::new();
    stage.place.run(&["grant", &stage.place.name("store"), "laptop", "--role", "admin"]).ok();
    let prune = |is_older: bool| {
        stage.liar.lie(Lie::say(move |question, answers, wire| match question {
            Message::Keep(Keep::GetGain { .. }) if is_older => {
                let text = "message: unknown type".to_owned();
                wire.send(&Message::Error { refusal: Refusal::Protocol, text })
            }
            // As if something was due.
            Message::Keep(Keep::Prune { .. }) => {
                let (ranges, note) = (vec![(1, 2)], String::new());
                wire.send(&Message::Kept(Kept::Pruned { points: 3, gone: 2, ranges, note }))
            }
            _ => pass(&answers, wire),
        }));
        stage.place.run(&["prune", "v", "--dry-run"]).ok()
    };
    let said = prune(false);
    assert!(said.out.contains("0 B of records would not be needed any more"), "{said:?}");
    let said = prune(true);
    assert!(said.out.contains("v: 2 of 3 points would expire: 1 to 2"), "{said:?}");
    assert!(said.out.contains("not known") && said.out.contains("unknown type"), "{said:?}");
}
