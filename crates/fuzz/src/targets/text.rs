//! Short texts that people type: invites, addresses, times, names.

use std::path::Path;

use dormouse::connect::Target as Place;
use dormouse::invite::{Address, Invite};
use dormouse::when::{self, Moment, VolumeAt};
use dormouse::{text, volume_name};
use dormouse_format::vault::name_is_valid;
use jiff::tz::TimeZone;

use crate::Target;
use crate::corpus;
use crate::input::Input;

/// The text of an input; what is not UTF-8 is left out.
pub(crate) fn utf8(bytes: &[u8]) -> Option<&str> {
    core::str::from_utf8(bytes).ok()
}

fn lines(all: &str) -> Vec<Vec<u8>> {
    all.lines().map(|l| l.as_bytes().to_vec()).collect()
}

/// Invites, raw and with a check that holds.
pub const INVITE: Target = Target {
    name: "invite",
    what: "an invite; raw, and with a check that holds",
    run: invite,
    seeds: || {
        let mut out: Vec<_> =
            corpus::behind(0, vec![corpus::text("invite.txt").into_bytes()]).collect();
        for text in ["h:1\nlaptop\n", "[::1]:7\na\n", "h\n.x\n", "h:1#/\nx#y\n"] {
            out.push([&[1][..], &[5; 49], text.as_bytes()].concat());
        }
        out
    },
    len_max: 512,
};

fn invite(data: &[u8]) {
    let mut input = Input::new(data);
    let text = if input.flag() {
        let secret: [u8; 49] = input.array();
        let Some((address, client)) = utf8(input.rest()).and_then(|t| t.split_once('\n')) else {
            return;
        };
        let client = client.trim_end_matches('\n');
        let check =
            dormouse_crypt::hash::body_check(&[b"invite ", client.as_bytes(), &secret].concat());
        let code = text::base64url(&[&secret[..], &check[..4]].concat());
        format!("dormouse://{address}/{client}#{code}")
    } else {
        let Some(text) = utf8(input.rest()) else { return };
        text.to_owned()
    };
    let Ok(invite) = text.parse::<Invite>() else { return };
    assert!(name_is_valid(&invite.client));
    let shown = invite.to_string();
    assert_eq!(shown.parse::<Invite>().as_ref(), Ok(&invite));
    // Only the port may be left out, and only spaces stand around it.
    let port = format!(":{}", invite.address.port);
    let bare = |t: &str| t.trim().replacen(&port, "", 1);
    assert_eq!(bare(&shown), bare(&text), "read otherwise than written");
}

/// Addresses and places.
pub const ADDRESS: Target = Target {
    name: "address",
    what: "HOST:PORT, and where a store is: URL, dir:PATH, PATH",
    run: address,
    seeds: || {
        lines(
            "h\nh:1\n[::1]:2\n[::1]\n:1\nh:\nh:0\nh:65536\n::1\n[::1\n[h]:1\n[::1]x\na b:1\n\
             dormouse://h:1/\ndormouse://[::1]\ndir:/x\ndir:x\n/a/b\n./a\nh:+1\nh:01\n\
             192.0.2.7:80\ndormouse://\ndir:\n../x/../y\n",
        )
    },
    len_max: 256,
};

fn address(data: &[u8]) {
    let Some(text) = utf8(data) else { return };
    if let Ok(address) = text.parse::<Address>() {
        assert!(address.port > 0 && !address.host.is_empty());
        assert_eq!(address.to_string().parse::<Address>().as_ref(), Ok(&address));
        // Only the port may be left out.
        let port = format!(":{}", address.port);
        let host = text.strip_suffix(&port).unwrap_or(text);
        assert_eq!(address.to_string().strip_suffix(&port), Some(host), "read otherwise");
    }
    if let Ok(place) = text.parse::<Place>() {
        assert_eq!(place.to_string().parse::<Place>().as_ref(), Ok(&place));
    }
}

/// Times, durations and points.
pub const WHEN: Target = Target {
    name: "when",
    what: "VOLUME@WHEN, WHEN, durations and times",
    run: when_target,
    seeds: || {
        let texts = lines(
            "latest\n17\n-2h ago\n2h ago\n3 days ago\n1 hour 30 minutes ago\nyesterday\nnow\n\
             2026-11-20T10:00:00Z\n2026-11-20T10:00:00+02:00\n2026-11-20T10:00\n2026-11-20\n\
             9999-12-31\n1677-01-01T00:00:00Z\n99999 years ago\nP1Y ago\nv@2h ago\n@1\nv\na/b\n\
             24h\n7d\n90 minutes\n0h\n2024-02-30\n-1h\n2554-07-21T23:34:33.709551615Z\n",
        );
        texts
            .into_iter()
            .map(|t| [&[0, 0, 99, 163, 130, 43, 137, 26, 24, 4][..], &t].concat())
            .collect()
    },
    len_max: 256,
};

fn when_target(data: &[u8]) {
    let mut input = Input::new(data);
    let (edge, now) = (input.u8(), input.u64().rotate_left(8));
    let hours = (input.u8() % 48) as i8 - 24;
    let zone = match edge {
        128.. => TimeZone::get("Europe/Berlin").unwrap_or(TimeZone::UTC),
        _ => TimeZone::fixed(jiff::tz::offset(hours)),
    };
    assert_eq!(text::parse_time(&text::time_utc(now)), Some(now), "times round-trip");
    let Some(text) = utf8(input.rest()) else { return };
    match when::parse(Some(text), now, &zone) {
        Ok(Moment::Seq(seq)) => {
            assert_eq!(text.trim().trim_start_matches('0').is_empty(), seq == 0)
        }
        Ok(Moment::NotAfter(time)) => {
            let word = text.trim().to_ascii_lowercase();
            assert!(!word.ends_with("ago") || time <= now, "'ago' lies in the future");
            // Told in UTC, it is the same moment in any zone.
            let utc = text::time_utc(time);
            let again = when::parse(Some(&utc), 0, &TimeZone::UTC).unwrap();
            assert_eq!(again, Moment::NotAfter(time));
        }
        Ok(Moment::Latest) => assert!(text.trim().eq_ignore_ascii_case("latest")),
        Err(_) => {}
    }
    if let Some(time) = text::parse_time(text) {
        assert_eq!(text::parse_time(&text::time_utc(time)), Some(time));
    }
    if let Ok(ns) = when::duration_ns(text) {
        assert!(ns > 0);
    }
    if let Ok((volume, _)) = when::split(text) {
        assert!(name_is_valid(&volume));
    }
    if let Ok(at) = text.parse::<VolumeAt>() {
        assert!(name_is_valid(&at.volume));
        at.when.is_number();
    }
}

/// Names and codes.
pub const NAMES: Target = Target {
    name: "names",
    what: "a volume's name out of a path; hexadecimal and base64url; ids",
    run: names,
    seeds: || lines("/dev/sda1\na b.img\n/x/.-q\n/\nä\nA0ff\nabcdef\n-_9\n-_8\nA\nA+\n"),
    len_max: 256,
};

fn names(data: &[u8]) {
    let hex = text::hex(data);
    assert_eq!(text::unhex(&hex).as_deref(), Some(data));
    assert_eq!(text::unbase64url(&text::base64url(data)).as_deref(), Some(data));
    let Some(text) = utf8(data) else { return };
    let name = volume_name::of_source(Path::new(text));
    assert!(name_is_valid(&name), "{name}");
    if let Some(bytes) = text::unhex(text) {
        assert_eq!(text::hex(&bytes), text.to_ascii_lowercase());
    }
    if let Some(bytes) = text::unbase64url(text) {
        assert_eq!(text::base64url(&bytes), text);
    }
    if let Some(id) = dormouse_format::RecordId::from_hex(text) {
        assert_eq!(id.to_string(), text);
    }
}
