//! Faults that others had, by their numbers: each case is a peer that found one. Cases of
//! [`crate::hostile`] and [`crate::stopping`] that stand for more of them: 2011-0530 (a write that
//! is too long), 2017-7539 and 2017-9524 (leaving after any byte), 2022-26495 and 2022-26496
//! (lengths), 2024-7409 (a stop among connections). Of a signal, 2015-0847, and of certificates tells
//! the test of the command (`dormouse`, `export.rs`).
//!
//! Not ours: 2013-6410 compared addresses with a list, of which there is none; 2017-2630, 2019-14842,
//! 2021-20286, 2022-0485 and 2024-7383 are of clients, and the only client here is the kernel.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dormouse_device::nbd::handshake::{Handshake, Step, Tls};
use dormouse_device::nbd::options::Broken;
use dormouse_device::nbd::protocol::{NAME_MAX, OPTION_MAGIC, command, option, reply};
use dormouse_device::nbd::{Export, Exports, Limits};
use dormouse_device::{BlockDevice, Extent, Geometry, Result};

use crate::client::{Chunk, Client, memory, serve};

const SIZE: usize = 1 << 20;

/// CVE-2005-3534, CVE-2011-0530: a request longer than the buffer it was read into.
#[test]
fn cve_2011_0530_no_request_is_longer_than_its_buffer() {
    let running = serve(&[("disk", memory(SIZE))], Limits::default());
    for len in [(32 << 20) + 1, 1 << 31, u32::MAX] {
        let mut client = running.connect();
        client.go("disk", false);
        assert_eq!(client.does(command::READ, 0, 0, len), 22);
        client.ask(command::WRITE, 0, 0, len, &[0xee; 100_000]);
        client.is_closed();
    }
    running.is_well();
}

/// CVE-2011-1925, CVE-2013-7441: a negotiation that failed, or was left, ended the server.
#[test]
fn cve_2013_7441_a_negotiation_that_fails_ends_nobody_else() {
    let running = serve(&[("disk", memory(SIZE))], Limits::default());
    let mut good = running.connect();
    good.go("disk", true);
    for n in 0..200u32 {
        let mut client = Client::raw(&running.socket);
        match n % 4 {
            0 => {}
            1 => client.send(&[0, 0]),
            2 => client.send(&n.to_be_bytes()),
            _ => {
                client.send(&3u32.to_be_bytes());
                client.option(option::EXPORT_NAME, b"no such disk");
            }
        }
    }
    assert_eq!(good.read(0, 512).unwrap(), [1; 512]);
    running.is_well();
}

/// CVE-2017-7539, CVE-2017-9524: a peer that left while it was answered, and had read nothing.
#[test]
fn cve_2017_9524_a_peer_leaves_while_it_is_answered() {
    let running = serve(&[("disk", memory(SIZE))], Limits::default());
    for round in 0..30 {
        let mut client = running.connect();
        if round % 2 == 0 {
            (0..200).for_each(|_| client.option(option::LIST, &[]));
            continue;
        }
        client.go("disk", round % 4 == 1);
        for _ in 0..20 {
            client.ask(command::READ, 0, 0, SIZE as u32, &[]);
        }
    }
    running.is_well();
}

/// CVE-2017-15118: a name that was longer than the place on the stack for it.
#[test]
fn cve_2017_15118_a_name_longer_than_any_place_for_it() {
    let running = serve(&[("disk", memory(SIZE))], Limits::default());
    for len in [NAME_MAX, NAME_MAX + 1, 60_000] {
        let name = vec![b'n'; len];
        let expected = if len > NAME_MAX { reply::TOO_BIG } else { reply::UNKNOWN };
        let mut client = running.connect();
        client.option(option::STRUCTURED_REPLY, &[]);
        client.option_reply(option::STRUCTURED_REPLY);
        for kind in [option::INFO, option::GO] {
            client.option(kind, &Client::name_data(&name));
            assert_eq!(client.option_reply(kind).0, expected, "{kind} {len}");
        }
        for kind in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
            client.option(kind, &Client::query_data(&name, &["base:allocation"]));
            assert_eq!(client.option_reply(kind).0, expected, "{kind} {len}");
        }
        client.option(option::EXPORT_NAME, &name);
        client.is_closed();
    }
    running.is_well();
}

/// CVE-2017-15119: up to 4 GiB of an option's data were read to be thrown away.
#[test]
fn cve_2017_15119_data_of_a_long_option_is_not_read() {
    let running = serve(&[("disk", memory(SIZE))], Limits::default());
    for kind in [option::LIST, option::ABORT, option::STARTTLS, 4711] {
        let mut client = running.connect();
        client.option(kind, &[]);
        if kind != option::ABORT {
            client.option_replies(kind);
        }
        let head = [&OPTION_MAGIC.to_be_bytes()[..], &kind.to_be_bytes(), &[0xff; 4]].concat();
        client.send(&head);
        let (begun, mut sent) = (Instant::now(), 0u64);
        while client.stream.write_all(&[0; 64 << 10]).is_ok() {
            sent += 64 << 10;
            assert!(sent < 16 << 20 && begun.elapsed() < Duration::from_secs(10), "{kind}: {sent}");
        }
    }
    running.is_well();
}

/// A disk that counts who looks at it.
#[derive(Default)]
struct Counted(AtomicU64);

impl BlockDevice for Counted {
    fn geometry(&self) -> Geometry {
        Geometry { size: SIZE as u64, block: 4096, read_only: true }
    }
    fn read(&self, _: u64, out: &mut [u8]) -> Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        out.fill(1);
        Ok(())
    }
    fn extents(&self, _: u64, len: u64, _: usize) -> Result<Vec<Extent>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(vec![Extent { len, hole: false, zero: false }])
    }
}

/// CVE-2019-14850: a connection cost a back end before it had asked for anything.
#[test]
fn cve_2019_14850_a_peer_without_a_disk_costs_the_disk_nothing() {
    let disk = Arc::new(Counted::default());
    let running = serve(&[("disk", disk.clone())], Limits::default());
    for _ in 0..20 {
        let mut client = running.connect();
        client.option(option::LIST, &[]);
        client.option_replies(option::LIST);
        client.option(option::INFO, &Client::name_data(b"disk"));
        client.option_replies(option::INFO);
    }
    assert_eq!(disk.0.load(Ordering::SeqCst), 0);
    running.is_well();
    assert!(disk.0.load(Ordering::SeqCst) > 0);
}

/// CVE-2019-14851: after INFO of one disk, another one was chosen.
#[test]
fn cve_2019_14851_who_asked_about_one_disk_may_choose_another() {
    let other = memory(2 * SIZE);
    let running = serve(&[("disk", memory(SIZE)), ("other", other)], Limits::default());
    for last in [option::GO, option::EXPORT_NAME] {
        let mut client = running.connect();
        for name in [&b"disk"[..], b"other", b"none", b"disk"] {
            client.option(option::INFO, &Client::name_data(name));
            let told = client.option_replies(option::INFO).pop().unwrap().0;
            assert_eq!(told, if name == b"none" { reply::UNKNOWN } else { reply::ACK });
        }
        if last == option::GO {
            assert_eq!(client.go("other", false).0, 2 * SIZE as u64);
        } else {
            client.option(last, b"other");
            assert_eq!((client.u64(), client.u16() & 1), (2 * SIZE as u64, 1));
        }
        assert_eq!(client.read(SIZE as u64, 4).unwrap().len(), 4);
    }
}

/// CVE-2020-10761: a reply that repeated a long name was longer than a reply may be.
#[test]
fn cve_2020_10761_a_reply_is_no_longer_than_the_protocol_allows() {
    let running = serve(&[("disk", memory(SIZE))], Limits::default());
    let mut client = running.connect();
    client.option(option::STRUCTURED_REPLY, &[]);
    client.option_reply(option::STRUCTURED_REPLY);
    // As long as it may be; and where it must not be cut within a letter.
    let names = [vec![b'n'; NAME_MAX], "€".repeat(NAME_MAX / 3).into_bytes()];
    for name in &names {
        let named = Client::name_data(name);
        let queries = Client::query_data(name, &[]);
        let all =
            [(option::INFO, &named), (option::GO, &named), (option::SET_META_CONTEXT, &queries)];
        for (kind, data) in all {
            client.option(kind, data);
            let (error, text) = client.option_reply(kind);
            assert_eq!(error, reply::UNKNOWN);
            assert!(text.len() <= NAME_MAX, "{kind}: {} bytes", text.len());
            assert!(String::from_utf8(text).unwrap().contains("there is no disk"));
        }
    }
    client.go("disk", false);
}

/// One option, and what has come behind it: what comes next, and the reply's kind.
fn say(
    handshake: &mut Handshake,
    kind: u32,
    data: &[u8],
    behind: &[u8],
) -> std::result::Result<(Step, u32), Broken> {
    let len = (data.len() as u32).to_be_bytes();
    let came = [&OPTION_MAGIC.to_be_bytes()[..], &kind.to_be_bytes(), &len, data, behind].concat();
    let mut out = Vec::new();
    let (_, step) = handshake.step(&came, &mut out)?.unwrap();
    Ok((step, u32::from_be_bytes(out[12..16].try_into().unwrap())))
}

/// CVE-2021-3716: what an outsider put before STARTTLS counted under TLS.
#[test]
fn cve_2021_3716_what_came_before_tls_counts_for_nothing() {
    let export = Export { name: "disk".into(), description: String::new(), device: memory(SIZE) };
    let mut handshake = Handshake::new(Exports::new(vec![export]).unwrap(), Tls::Required);
    handshake.step(&3u32.to_be_bytes(), &mut Vec::new()).unwrap().unwrap();
    let queries = Client::query_data(b"disk", &["base:allocation"]);
    for (kind, data) in [(option::STRUCTURED_REPLY, &[][..]), (option::SET_META_CONTEXT, &queries)]
    {
        assert_eq!(say(&mut handshake, kind, data, &[]).unwrap().1, reply::TLS_REQD);
    }
    // Bytes behind STARTTLS, in one piece with it, end the connection.
    assert_eq!(
        say(&mut handshake, option::STARTTLS, &[], b"IHAVEOPT").unwrap_err(),
        Broken::BeforeTls
    );
    let (step, _) = say(&mut handshake, option::STARTTLS, &[], &[]).unwrap();
    assert!(matches!(step, Step::StartTls));
    handshake.secured();
    // Structured replies were not agreed on under TLS.
    let (_, error) = say(&mut handshake, option::SET_META_CONTEXT, &queries, &[]).unwrap();
    assert_eq!(error, reply::INVALID);
    let (step, _) = say(&mut handshake, option::GO, &Client::name_data(b"disk"), &[]).unwrap();
    let Step::Begin(chosen) = step else { panic!("{step:?}") };
    assert!(!chosen.structured && chosen.contexts.is_empty());
}

/// A disk larger than any length of the protocol, which tells of more than it was asked about.
struct Giant;

impl BlockDevice for Giant {
    fn geometry(&self) -> Geometry {
        Geometry { size: 1 << 45, block: 4096, read_only: false }
    }
    fn read(&self, _: u64, out: &mut [u8]) -> Result<()> {
        out.fill(1);
        Ok(())
    }
    fn trim(&self, at: u64, len: u64) -> Result<()> {
        assert!(at + len <= 1 << 45);
        Ok(())
    }
    fn zero(&self, at: u64, len: u64, _: dormouse_device::Zero) -> Result<()> {
        self.trim(at, len)
    }
    fn extents(&self, at: u64, _: u64, _: usize) -> Result<Vec<Extent>> {
        let zero = at.is_multiple_of(2);
        let first = Extent { len: (4 << 30) - 1, hole: zero, zero };
        // Alike, so that they are told as one.
        Ok(vec![first, Extent { len: u64::MAX, ..first }])
    }
}

/// CVE-2025-47711, CVE-2025-47712: lengths near 4 GiB that grew beyond 32 bits.
#[test]
fn cve_2025_47711_status_of_four_gibibytes() {
    let running = serve(&[("disk", Arc::new(Giant))], Limits::default());
    let mut client = running.connect();
    client.option(option::STRUCTURED_REPLY, &[]);
    client.option_reply(option::STRUCTURED_REPLY);
    client.structured = true;
    client.contexts("disk", &["base:allocation"]);
    client.go("disk", false);
    for at in [0, 1, 4095, (4 << 30) - 1, 1 << 44] {
        for len in [1, u32::MAX - 4096, u32::MAX - 1, u32::MAX] {
            client.ask(command::BLOCK_STATUS, 0, at, len, &[]);
            let bits = if at % 2 == 0 { 3 } else { 0 };
            assert_eq!(client.reply(0), [Chunk::Status(1, vec![(len, bits)])], "{at}+{len}");
        }
        for kind in [command::TRIM, command::WRITE_ZEROES, command::CACHE] {
            assert_eq!(client.does(kind, 0, at, u32::MAX), 0, "{kind} {at}");
        }
    }
    assert_eq!(client.does(command::BLOCK_STATUS, 0, 1 << 45, u32::MAX), 22);
    assert_eq!(client.does(command::BLOCK_STATUS, 0, (1 << 45) - 1, u32::MAX), 22);
    // Nothing is left over.
    let _ = client.stream.set_read_timeout(Some(Duration::from_millis(50)));
    assert!(client.stream.read(&mut [0]).is_err());
}
