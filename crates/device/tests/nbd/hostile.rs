//! Peers that do not keep to the protocol, on purpose or by mistake. After each of them the
//! server must be well. Named are faults of other servers that such a peer once found.

use std::io::Write as _;
use std::time::{Duration, Instant};

use dormouse_device::nbd::Limits;
use dormouse_device::nbd::protocol::{OPTION_MAGIC, REQUEST_MAGIC, command, how, option, reply};
use dormouse_device::{BlockDevice, Geometry, Result, Zero};

use crate::client::{Chunk, Client, Running, content, memory, serve};

const SIZE: usize = 1 << 20;

fn one() -> Running {
    serve(&[("disk", memory(SIZE))], Limits::default())
}

fn head(kind: u32, len: u32) -> Vec<u8> {
    [&OPTION_MAGIC.to_be_bytes()[..], &kind.to_be_bytes(), &len.to_be_bytes()].concat()
}

#[test]
fn what_is_not_nbd_is_cut_at_once() {
    let running = one();
    let mut client = Client::raw(&running.socket);
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    client.take(18);
    client.is_closed();
    running.logged("features that nobody knows");
    let mut client = running.connect();
    client.send(&[0x55; 64]);
    client.is_closed();
    running.logged("wrong magic");
    running.is_well();
}

/// CVE-2022-26495: a length of 2^32 - 1 overflowed when a byte was added.
#[test]
fn options_that_are_too_long_are_cut_before_they_come() {
    let running = one();
    for len in [u32::MAX, u32::MAX - 1, 1 << 31, (64 << 10) + 1] {
        for kind in [option::EXPORT_NAME, option::GO, option::INFO, option::LIST, 99] {
            let mut client = running.connect();
            client.send(&head(kind, len));
            client.is_closed();
        }
    }
    running.logged("an option of 4294967295 bytes");
    running.is_well();
}

/// CVE-2022-26496: lengths within an option that do not fit it.
#[test]
fn names_that_do_not_fit_their_option_are_refused() {
    let running = one();
    let mut client = running.connect();
    let long = Client::name_data(&[b'x'; 4097]);
    let cases: [(u32, &[u8], u32); 12] = [
        (option::GO, &[], reply::INVALID),
        (option::GO, &[0xff; 4], reply::INVALID),
        (option::GO, &[0xff; 6], reply::INVALID),
        (option::INFO, &[0, 0, 0, 4, b'd', b'i', b's', b'k'], reply::INVALID),
        (option::INFO, &[0, 0, 0, 4, b'd', b'i', b's', b'k', 0xff, 0xff], reply::INVALID),
        (option::INFO, &[0, 0, 0, 4, b'd', b'i', b's', b'k', 0, 0, 1], reply::INVALID),
        (option::GO, &[0, 0, 0, 2, 0xc3, 0x28, 0, 0], reply::INVALID),
        (option::GO, &long, reply::TOO_BIG),
        (option::INFO, &[0, 0, 0, 1, b'd', 0, 0], reply::UNKNOWN),
        (option::LIST, &[0], reply::INVALID),
        (option::STRUCTURED_REPLY, &[0], reply::INVALID),
        (option::STARTTLS, &[], reply::POLICY),
    ];
    for (kind, data, expected) in cases {
        client.option(kind, data);
        assert_eq!(client.option_reply(kind).0, expected, "{kind} {data:?}");
    }
    // The connection is still good.
    client.go("disk", true);
    // The old way has no error but the end.
    for name in [&b"../etc/passwd"[..], b"json:{}", &[b'x'; 4097], &[0xff; 100]] {
        let mut client = running.connect();
        client.option(option::EXPORT_NAME, name);
        client.is_closed();
    }
    // A name writes no line of its own into the log, and moves no cursor.
    let mut client = running.connect();
    client.option(option::EXPORT_NAME, b"x\n2026-11-20 all is well\x1b[2J");
    client.is_closed();
    running.logged("x\\n2026-11-20 all is well\\u{1b}[2J");
    running.is_well();
}

#[test]
fn options_without_end_have_one() {
    let running = one();
    let mut client = running.connect();
    for _ in 0..256 {
        client.option(12345, b"data");
        assert_eq!(client.option_reply(12345).0, reply::UNSUP);
    }
    client.option(12345, b"");
    client.is_closed();
    running.logged("too many options");
    running.is_well();
}

#[test]
fn queries_by_the_thousand_are_refused() {
    let running = one();
    let mut client = running.connect();
    client.option(option::STRUCTURED_REPLY, &[]);
    client.option_reply(option::STRUCTURED_REPLY);
    client.structured = true;
    for kind in [option::SET_META_CONTEXT, option::LIST_META_CONTEXT] {
        client.option(kind, &Client::query_data(b"disk", &["base:"; 3000]));
        assert_eq!(client.option_reply(kind).0, reply::TOO_BIG);
        // More of them announced than there are bytes.
        let mut lying = Client::query_data(b"disk", &["base:allocation"]);
        lying[8..12].copy_from_slice(&100u32.to_be_bytes());
        client.option(kind, &lying);
        assert_eq!(client.option_reply(kind).0, reply::INVALID);
        let mut overflow = Client::query_data(b"disk", &["base:allocation"]);
        overflow[12..16].fill(0xff);
        client.option(kind, &overflow);
        assert_eq!(client.option_reply(kind).0, reply::INVALID);
    }
    client.go("disk", false);
    assert_eq!(client.does(command::BLOCK_STATUS, 0, 0, 4096), 22, "none was chosen");
}

#[test]
fn requests_beyond_the_disk_are_refused() {
    let running = one();
    let end = SIZE as u64;
    for structured in [false, true] {
        let mut client = running.connect();
        client.go("disk", structured);
        let ranges =
            [(end, 1), (end - 1, 2), (u64::MAX, 1), (u64::MAX - 100, 200), (1 << 63, 4096)];
        for (at, len) in ranges {
            for kind in [command::READ, command::TRIM, command::CACHE] {
                assert_eq!(client.does(kind, 0, at, len), 22, "{kind} {at}+{len}");
            }
            assert_eq!(client.does(command::WRITE_ZEROES, 0, at, len), 28);
            assert_eq!(client.writes(0, at, &vec![1; len as usize]), 28);
        }
        assert_eq!(client.does(command::TRIM, 0, 0, u32::MAX), 22);
        assert_eq!(client.read(end - 1, 1).unwrap().len(), 1);
    }
    running.is_well();
}

#[test]
fn commands_and_flags_that_nobody_knows_are_refused() {
    let running = one();
    let mut client = running.connect();
    client.go("disk", false);
    for kind in [8, 9, 255, 0x8000, u16::MAX] {
        assert_eq!(client.does(kind, 0, 0, 4096), 22);
    }
    for (kind, flags) in
        [(0, how::NO_HOLE), (0, 1 << 15), (3, how::DF), (4, how::NO_HOLE), (6, how::DF)]
    {
        assert_eq!(client.does(kind, flags, 0, 4096), 22, "{kind} {flags}");
    }
    assert_eq!(client.does(command::READ, how::DF, 0, 512), 22, "no structured replies");
    assert_eq!(client.does(command::FLUSH, 0, 512, 0), 22);
    assert_eq!(client.does(command::FLUSH, 0, 0, 512), 22);
    assert_eq!(client.writes(how::DF, 0, &[9; 512]), 22, "its payload is passed over");
    assert_eq!(client.read(0, 512).unwrap(), [1; 512]);
}

#[test]
fn what_is_read_only_stays_as_it_is() {
    /// Says that it is read-only, and would write all the same.
    struct Willing(std::sync::Arc<dormouse_device::memory::MemoryDevice>);
    impl BlockDevice for Willing {
        fn geometry(&self) -> Geometry {
            Geometry { read_only: true, ..self.0.geometry() }
        }
        fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
            self.0.read(at, out)
        }
        fn write(&self, at: u64, bytes: &[u8], how: dormouse_device::Write) -> Result<()> {
            self.0.write(at, bytes, how)
        }
        fn zero(&self, at: u64, len: u64, how: Zero) -> Result<()> {
            self.0.zero(at, len, how)
        }
        fn trim(&self, at: u64, len: u64) -> Result<()> {
            self.0.trim(at, len)
        }
    }
    let disk = Willing(memory(SIZE));
    let running = serve(&[("disk", std::sync::Arc::new(disk))], Limits::default());
    let mut client = running.connect();
    client.go("disk", true);
    assert_eq!(client.writes(how::FUA, 0, &[9; 5000]), 1);
    assert_eq!(client.does(command::WRITE_ZEROES, 0, 0, 512), 1);
    assert_eq!(client.does(command::TRIM, 0, 0, 512), 1);
    assert_eq!(client.does(command::FLUSH, 0, 0, 0), 0);
    assert_eq!(client.read(0, 512).unwrap(), [1; 512]);
}

#[test]
fn a_write_that_is_too_long_ends_the_connection() {
    let running = serve(&[("disk", memory(SIZE))], Limits::default());
    for len in [(32 << 20) + 1, u32::MAX] {
        let mut client = running.connect();
        client.go("disk", true);
        client.ask(command::WRITE, 0, 0, len, &[]);
        client.is_closed();
    }
    running.logged("a write of 4294967295 bytes");
    let mut client = running.connect();
    client.go("disk", true);
    assert_eq!(client.does(command::READ, 0, 0, u32::MAX), 22);
    running.is_well();
}

#[test]
fn a_read_that_is_too_long_is_refused() {
    let running = serve(&[("disk", memory(40 << 20))], Limits::default());
    let mut client = running.connect();
    client.go("disk", true);
    assert_eq!(client.read(0, (32 << 20) + 1), Err((75, None)));
    assert_eq!(client.read(0, 32 << 20).unwrap().len(), 32 << 20);
}

#[test]
fn a_write_that_is_cut_leaves_no_trace() {
    let disk = memory(SIZE);
    let running = serve(&[("disk", disk.clone())], Limits::default());
    for sent in [0, 1, 4095, 99_999] {
        let mut client = running.connect();
        client.go("disk", true);
        client.ask(command::WRITE, 0, 0, 100_000, &vec![0xee; sent]);
        drop(client);
    }
    running.is_well();
    std::thread::sleep(Duration::from_millis(100));
    assert!(disk.content() == content(SIZE));
}

/// CVE-2017-7539, CVE-2017-9524: a peer that left in the middle took the server with it.
#[test]
fn a_peer_may_leave_after_any_byte() {
    let running = one();
    let mut talk = 3u32.to_be_bytes().to_vec();
    talk.extend(head(option::STRUCTURED_REPLY, 0));
    talk.extend(head(option::LIST, 0));
    let queries = Client::query_data(b"disk", &["base:allocation"]);
    talk.extend(head(option::SET_META_CONTEXT, queries.len() as u32));
    talk.extend(&queries);
    let name = Client::name_data(b"disk");
    talk.extend(head(option::GO, name.len() as u32));
    talk.extend(&name);
    for kind in [command::READ, command::BLOCK_STATUS, command::WRITE] {
        talk.extend(REQUEST_MAGIC.to_be_bytes());
        talk.extend([0, 0]);
        talk.extend(kind.to_be_bytes());
        talk.extend([7; 8]);
        talk.extend(0u64.to_be_bytes());
        talk.extend(64u32.to_be_bytes());
    }
    talk.extend(&content(SIZE)[..64]);
    for len in 0..=talk.len() {
        let mut client = Client::raw(&running.socket);
        client.send(&talk[..len]);
    }
    // Byte by byte is as good as all at once.
    let mut client = Client::raw(&running.socket);
    for byte in &talk {
        client.stream.write_all(&[*byte]).unwrap();
    }
    client.take(18);
    for kind in [option::STRUCTURED_REPLY, option::LIST, option::SET_META_CONTEXT, option::GO] {
        client.option_replies(kind);
    }
    let parts: Vec<Chunk> = (0..3).map(|_| client.part(0).1).collect();
    let status = Chunk::Status(1, vec![(64, 0)]);
    assert_eq!(parts[0], Chunk::Data(0, vec![1; 64]));
    assert!(parts.contains(&status) && parts.contains(&Chunk::None), "{parts:?}");
    running.is_well();
}

#[test]
fn peers_that_say_nothing_make_room_and_are_cut() {
    let (grace, handshake) = (Duration::from_millis(20), Duration::from_secs(6));
    let limits = Limits { connections: 6, handshake, grace, ..Limits::default() };
    let running = serve(&[("disk", memory(SIZE))], limits);
    let mut good = running.connect();
    good.go("disk", true);
    let begun = Instant::now();
    let mut silent: Vec<Client> = (0..20).map(|_| Client::raw(&running.socket)).collect();
    // In between, and at once, others are served.
    running.is_well();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(good.read(0, 512).unwrap(), [1; 512]);
    for client in &mut silent {
        // The greeting, for those that got so far; then the end.
        let mut bytes = Vec::new();
        let _ = std::io::Read::read_to_end(&mut client.stream, &mut bytes);
        assert!(bytes.len() <= 18);
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    running.logged("timed out");
    // Those that have a disk are not put out.
    let mut taken: Vec<Client> = (0..5).map(|_| running.connect()).collect();
    for client in &mut taken {
        client.go("disk", true);
    }
    let mut late = Client::raw(&running.socket);
    late.is_closed();
    running.logged("too many connections");
    assert_eq!(good.read(0, 512).unwrap(), [1; 512]);
}

/// Memory of this process, in MiB.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// What is announced takes no memory, nor does what nobody takes.
#[test]
fn announcements_and_replies_nobody_takes_cost_little() {
    let running = serve(&[("disk", memory(SIZE))], Limits::default());
    let before = resident();
    let mut clients: Vec<Client> = (0..40).map(|_| running.connect()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.go("disk", true);
        if n % 2 == 0 {
            client.ask(command::WRITE, 0, 0, 32 << 20, &[1; 100]);
        } else {
            for _ in 0..100 {
                client.ask(command::READ, 0, 0, SIZE as u32, &[]);
            }
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    let grown = resident().saturating_sub(before);
    // Other tests run in this process too.
    assert!(grown < 400, "{grown} MiB");
    running.is_well();
}
