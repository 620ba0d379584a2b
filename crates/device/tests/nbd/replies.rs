//! What the server tells and answers, to a peer that keeps to the protocol.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dormouse_device::layers::spec::Spec;
use dormouse_device::memory::MemoryDevice;
use dormouse_device::nbd::Limits;
use dormouse_device::nbd::protocol::{flags, how, info, option, reply};
use dormouse_device::{BlockDevice, Change, Changes, Error, Geometry, Result, Write as How, Zero};

use crate::client::{Chunk, Client, Running, content, memory, serve};

const SIZE: usize = 1 << 20;

fn one() -> Running {
    serve(&[("disk", memory(SIZE))], Limits::default())
}

#[test]
fn disks_are_listed_and_described() {
    let other = memory(4096);
    let running = serve(&[("disk", memory(SIZE)), ("other@2h ago", other)], Limits::default());
    let mut client = running.connect();
    client.option(option::LIST, &[]);
    let names: Vec<_> = client.option_replies(option::LIST);
    let entry = |name: &str| {
        let text = format!("{name}about {name}");
        (reply::SERVER, [&(name.len() as u32).to_be_bytes()[..], text.as_bytes()].concat())
    };
    assert_eq!(names, [entry("disk"), entry("other@2h ago"), (reply::ACK, vec![])]);
    // All there is to be told.
    let mut data = Client::name_data(b"disk");
    data.truncate(data.len() - 2);
    data.extend([0, 3, 0, 3, 0, 1, 0, 2]);
    client.option(option::INFO, &data);
    let told = client.option_replies(option::INFO);
    let bits = flags::HAS_FLAGS
        | flags::SEND_FLUSH
        | flags::SEND_FUA
        | flags::SEND_TRIM
        | flags::SEND_WRITE_ZEROES
        | flags::SEND_FAST_ZERO
        | flags::SEND_CACHE
        | flags::CAN_MULTI_CONN;
    let size = [&info::EXPORT.to_be_bytes()[..], &(SIZE as u64).to_be_bytes(), &bits.to_be_bytes()];
    let blocks = [&[0, 3][..], &[0, 0, 0, 1], &4096u32.to_be_bytes(), &(32u32 << 20).to_be_bytes()];
    let expected = [
        size.concat(),
        b"\0\x01disk".to_vec(),
        b"\0\x02about disk".to_vec(),
        blocks.concat(),
        vec![],
    ];
    assert_eq!(told.into_iter().map(|t| t.1).collect::<Vec<_>>(), expected);
    // Two disks: none of them is meant by no name.
    client.option(option::GO, &Client::name_data(b""));
    assert_eq!(client.option_reply(option::GO).0, reply::UNKNOWN);
    assert_eq!(client.go("other@2h ago", true).1, bits | flags::SEND_DF);
}

#[test]
fn the_old_way_to_choose() {
    let running = one();
    for zeros in [false, true] {
        let mut client = Client::raw(&running.socket);
        client.take(18);
        client.send(&if zeros { 1u32 } else { 3 }.to_be_bytes());
        client.option(option::EXPORT_NAME, b"");
        assert_eq!(client.u64(), SIZE as u64);
        assert_ne!(client.u16() & flags::CAN_MULTI_CONN, 0);
        if zeros {
            assert_eq!(client.take(124), [0; 124]);
        }
        assert_eq!(client.read(100, 5000).unwrap(), content(SIZE)[100..5100]);
    }
}

#[test]
fn good_bye_is_answered() {
    let running = one();
    let mut client = running.connect();
    client.option(option::ABORT, &[]);
    assert_eq!(client.option_replies(option::ABORT), [(reply::ACK, vec![])]);
    client.is_closed();
    let mut client = running.connect();
    client.go("disk", false);
    client.ask(2, 0, 0, 0, &[]);
    client.is_closed();
}

#[test]
fn reads_of_all_kinds_bring_what_is_there() {
    let running = serve(&[("disk", memory(8 << 20))], Limits::default());
    let expected = content(8 << 20);
    for structured in [false, true] {
        let mut client = running.connect();
        client.go("disk", structured);
        for (at, len) in
            [(0, 1), (511, 2), (4096, 4096), (0, 8 << 20), (1000, 3 << 20), (8_388_607, 1)]
        {
            let bytes = client.read(at, len).unwrap();
            assert!(bytes == expected[at as usize..][..len as usize], "{at}+{len}");
        }
        assert_eq!(client.read(0, 0), Ok(vec![]));
    }
}

#[test]
fn holes_come_as_such_and_one_piece_if_wanted() {
    let running = one();
    let mut client = running.connect();
    client.go("disk", true);
    client.ask(0, 0, 0, SIZE as u32, &[]);
    let parts = client.reply(0);
    let quarter = SIZE as u64 / 4;
    assert!(parts.contains(&Chunk::Hole(quarter, quarter as u32)), "no hole");
    assert!(parts.len() >= 4, "long data comes in pieces");
    client.ask(0, how::DF, 0, SIZE as u32, &[]);
    assert_eq!(client.reply(0), [Chunk::Data(0, content(SIZE))]);
}

#[test]
fn writes_zeros_and_trims_take_effect() {
    let disk = memory(SIZE);
    let running = serve(&[("disk", disk.clone())], Limits::default());
    let mut client = running.connect();
    client.go("disk", true);
    let mut expected = content(SIZE);
    let long = vec![0xaa; 700_000];
    for (flags, at, bytes) in [(0, 3, &[7; 10][..]), (how::FUA, 5000, &[8; 5000]), (0, 100, &long)]
    {
        assert_eq!(client.writes(flags, at, bytes), 0);
        expected[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    assert_eq!(client.does(6, how::NO_HOLE | how::FUA | how::FAST_ZERO, 10, 9000), 0);
    expected[10..9010].fill(0);
    assert_eq!(client.does(4, how::FUA, 500_000, 4096), 0);
    expected[500_000..504_096].fill(0);
    assert_eq!(client.does(3, 0, 0, 0), 0);
    assert_eq!(client.does(5, 0, 0, SIZE as u32), 0);
    for (kind, len) in [(1, 0), (4, 0), (5, 0), (6, 0)] {
        assert_eq!(client.does(kind, 0, 0, len), 0, "an empty request of kind {kind}");
    }
    assert!(disk.content() == expected);
}

/// A volume with a history of one older point: its first 8 KiB have changed since.
struct History(Arc<dyn BlockDevice>);

impl BlockDevice for History {
    fn geometry(&self) -> Geometry {
        Geometry { read_only: true, ..self.0.geometry() }
    }
    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        self.0.read(at, out)
    }
    fn extents(&self, at: u64, len: u64, most: usize) -> Result<Vec<dormouse_device::Extent>> {
        self.0.extents(at, len, most)
    }
    fn changes_since(&self, point: &str) -> Result<Arc<dyn Changes>> {
        match point {
            "5" => Ok(Arc::new(SinceFive)),
            _ => Err(Error::Unsupported("there is no such point")),
        }
    }
}

struct SinceFive;

impl Changes for SinceFive {
    fn parts(&self, at: u64, len: u64, _: usize) -> Result<Vec<Change>> {
        let changed = at < 8192;
        Ok(vec![Change { len: if changed { len.min(8192 - at) } else { len }, changed }])
    }
}

#[test]
fn contexts_tell_about_ranges() {
    let running = serve(&[("disk", Arc::new(History(memory(SIZE))))], Limits::default());
    let mut client = running.connect();
    client.option(option::STRUCTURED_REPLY, &[]);
    client.option_replies(option::STRUCTURED_REPLY);
    client.structured = true;
    client.option(option::LIST_META_CONTEXT, &Client::query_data(b"disk", &[]));
    let listed = client.option_replies(option::LIST_META_CONTEXT);
    assert_eq!(listed[0], (reply::META_CONTEXT, b"\0\0\0\0base:allocation".to_vec()));
    let wanted =
        ["dormouse:changed=5", "x:y", "base:allocation", "dormouse:changed=6", "base:allocation"];
    let expected = [(1, "dormouse:changed=5".to_owned()), (2, "base:allocation".to_owned())];
    assert_eq!(client.contexts("disk", &wanted), expected);
    let (_, bits) = client.go("disk", false);
    assert_ne!(bits & flags::READ_ONLY, 0);
    assert_eq!(bits & (flags::SEND_TRIM | flags::SEND_WRITE_ZEROES | flags::SEND_FAST_ZERO), 0);
    client.ask(7, 0, 4096, SIZE as u32 - 4096, &[]);
    let quarter = SIZE as u32 / 4;
    let allocation = vec![(quarter - 4096, 0), (quarter, 3), (quarter * 2, 0)];
    let parts = client.reply(0);
    // A context may tell about less than was asked.
    assert_eq!(parts, [Chunk::Status(1, vec![(4096, 1)]), Chunk::Status(2, allocation)]);
    client.ask(7, how::REQ_ONE, 8192, 100_000, &[]);
    let parts = client.reply(0);
    let expected = [Chunk::Status(1, vec![(100_000, 0)]), Chunk::Status(2, vec![(100_000, 0)])];
    assert_eq!(parts, expected);
}

/// Contexts hold for the disk they were chosen for, and only with structured replies.
#[test]
fn contexts_of_another_disk_are_void() {
    let running = serve(&[("disk", memory(SIZE)), ("b", memory(SIZE))], Limits::default());
    let mut client = running.connect();
    client.option(option::SET_META_CONTEXT, &Client::query_data(b"disk", &["base:allocation"]));
    assert_eq!(client.option_reply(option::SET_META_CONTEXT).0, reply::INVALID);
    client.option(option::STRUCTURED_REPLY, &[]);
    client.option_replies(option::STRUCTURED_REPLY);
    client.structured = true;
    assert_eq!(client.contexts("disk", &["base:allocation"]).len(), 1);
    client.go("b", false);
    assert_eq!(client.does(7, 0, 0, 4096), 22);
}

#[test]
fn an_error_of_the_disk_tells_where() {
    let broken =
        "fault=read@700000+1:nospace,write:1/1".parse::<Spec>().unwrap().wrap(memory(SIZE));
    let running = serve(&[("disk", broken)], Limits::default());
    let mut client = running.connect();
    client.go("disk", true);
    let (error, at) = client.read(0, SIZE as u32).unwrap_err();
    assert_eq!(error, 28);
    assert!(at.is_some_and(|at| at <= 700_000 && at >= SIZE as u64 / 2), "{at:?}");
    // Nothing of the piece that failed has come.
    client.ask(0, 0, 0, SIZE as u32, &[]);
    let parts = client.reply(0);
    let (last, data) = parts.split_last().unwrap();
    assert_eq!(*last, Chunk::Error(28, at));
    let told: u64 = data
        .iter()
        .map(|part| match part {
            Chunk::Data(_, bytes) => bytes.len() as u64,
            Chunk::Hole(_, len) => u64::from(*len),
            other => panic!("{other:?}"),
        })
        .sum();
    assert_eq!(Some(told), at);
    assert_eq!(client.writes(0, 0, &[1; 512]), 5);
    running.is_well();
    let mut simple = running.connect();
    simple.go("disk", false);
    assert_eq!(simple.read(699_000, 4096), Err((28, None)));
    assert_eq!(simple.read(0, 512).unwrap(), content(SIZE)[..512]);
}

#[test]
fn fast_zeros_are_refused_where_there_are_none() {
    struct Slow(Arc<dyn BlockDevice>);
    impl BlockDevice for Slow {
        fn geometry(&self) -> Geometry {
            self.0.geometry()
        }
        fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
            self.0.read(at, out)
        }
        fn write(&self, at: u64, bytes: &[u8], how: How) -> Result<()> {
            self.0.write(at, bytes, how)
        }
        fn zero(&self, at: u64, len: u64, how: Zero) -> Result<()> {
            if how.fast { Err(Error::Unsupported("slow")) } else { self.0.zero(at, len, how) }
        }
    }
    let running = serve(&[("disk", Arc::new(Slow(memory(SIZE))))], Limits::default());
    let mut client = running.connect();
    client.go("disk", true);
    assert_eq!(client.does(6, how::FAST_ZERO, 0, 4096), 95);
    assert_eq!(client.does(6, 0, 0, 4096), 0);
}

/// Requests that wait do so side by side, and those that do not overtake them.
#[test]
fn slow_requests_do_not_hold_up_others() {
    let slow = "delay=read:200ms".parse::<Spec>().unwrap().wrap(memory(SIZE));
    let running = serve(&[("disk", slow)], Limits::default());
    let mut client = running.connect();
    client.go("disk", true);
    let begun = Instant::now();
    let slow: Vec<u64> = (0..30).map(|n| client.ask(0, 0, n * 4096, 4096, &[])).collect();
    let prompt = client.ask(5, 0, 0, 4096, &[]);
    assert_eq!(client.part(0).0, prompt);
    assert!(begun.elapsed() < Duration::from_millis(190));
    let mut came: Vec<u64> = Vec::new();
    for _ in &slow {
        let (cookie, part, last) = client.part(0);
        let Chunk::Data(at, bytes) = part else { panic!("{part:?}") };
        assert!(last && bytes == content(SIZE)[at as usize..][..4096]);
        came.push(cookie);
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(200) && took < Duration::from_secs(3), "{took:?}");
    came.sort_unstable();
    assert_eq!(came, slow);
}

/// Writes that turn out to be slow go to other threads, several together; each is answered once.
#[test]
fn slow_local_writes_are_handed_over() {
    struct Slow(Arc<MemoryDevice>, AtomicU64);
    impl BlockDevice for Slow {
        fn geometry(&self) -> Geometry {
            self.0.geometry()
        }
        fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
            self.0.read(at, out)
        }
        fn write(&self, at: u64, bytes: &[u8], how: How) -> Result<()> {
            std::thread::sleep(Duration::from_micros(300));
            let elsewhere = std::thread::current().name() == Some("nbd-work");
            self.1.fetch_add(elsewhere.into(), Ordering::SeqCst);
            if at == 40 * 4096 {
                return Err(Error::NoRoom("on purpose".into()));
            }
            self.0.write(at, bytes, how)
        }
    }
    let memory = memory(SIZE);
    let disk = Arc::new(Slow(Arc::clone(&memory), AtomicU64::new(0)));
    let running = serve(&[("disk", disk.clone())], Limits::default());
    let mut client = running.connect();
    client.go("disk", true);
    let mut expected = content(SIZE);
    for round in 1..=3u8 {
        let mut asked: Vec<u64> = (0..100u64)
            .map(|n| client.ask(1, 0, n * 4096, 4096, &[round * 7 + n as u8; 4096]))
            .collect();
        let failing = asked[40];
        for _ in 0..100 {
            let (cookie, part, last) = client.part(0);
            let place = asked.iter().position(|c| *c == cookie).expect("answered once");
            asked.swap_remove(place);
            let wanted = if cookie == failing { Chunk::Error(28, None) } else { Chunk::None };
            assert!(last && part == wanted, "{part:?}");
        }
    }
    for n in (0..100).filter(|n| *n != 40) {
        expected[n * 4096..][..4096].fill(21 + n as u8);
    }
    assert!(memory.content() == expected);
    assert!(disk.1.load(Ordering::SeqCst) > 100, "none were handed over");
}

/// Writes that wait for each other anyway are given to the disk together; each has its own reply,
/// in their order, and what comes between them counts at its place.
#[test]
fn writes_that_came_together_are_carried_out_together() {
    struct InTurn(Arc<MemoryDevice>, AtomicU64);
    impl BlockDevice for InTurn {
        fn geometry(&self) -> Geometry {
            self.0.geometry()
        }
        fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
            self.0.read(at, out)
        }
        fn writes_in_turn(&self) -> bool {
            true
        }
        fn write(&self, at: u64, bytes: &[u8], how: How) -> Result<()> {
            if at == 70 * 4096 {
                return Err(Error::NoRoom("on purpose".into()));
            }
            self.0.write(at, bytes, how)
        }
        fn write_each(&self, parts: &[(u64, &[u8])]) -> Result<()> {
            self.1.fetch_max(parts.len() as u64, Ordering::SeqCst);
            parts.iter().try_for_each(|(at, bytes)| self.write(*at, bytes, How::default()))
        }
    }
    let memory = memory(SIZE);
    let disk = Arc::new(InTurn(Arc::clone(&memory), AtomicU64::new(0)));
    let running = serve(&[("disk", disk.clone())], Limits::default());
    let mut client = running.connect();
    client.go("disk", false);
    let mut expected = content(SIZE);
    let (mut requests, mut asked) = (Vec::new(), Vec::new());
    for n in 0..200u64 {
        // The same places several times, parts of blocks, FUA, a read, one beyond the end.
        let at = n * 37 % 100 * 4096 + if n % 23 == 5 { 512 } else { 0 };
        let fua = n % 31 == 9;
        let (kind, at) = match n {
            50 => (0, 4096),
            60 => (1, SIZE as u64),
            // Another thread does these: they have places of their own.
            _ if fua => (1, (200 + n / 31) * 4096),
            _ => (1, at),
        };
        let payload = if kind == 1 { vec![n as u8 + 1; 4096] } else { Vec::new() };
        let flags = if fua { how::FUA } else { 0 };
        let wanted = match at {
            at if at >= SIZE as u64 => Err(28),
            at if kind == 1 && at == 70 * 4096 => Err(28),
            at if kind == 1 => {
                expected[at as usize..][..4096].fill(n as u8 + 1);
                Ok(Vec::new())
            }
            at => Ok(expected[at as usize..][..4096].to_vec()),
        };
        asked.push((n, wanted));
        requests.extend(0x2560_9513u32.to_be_bytes());
        requests.extend([&flags.to_be_bytes()[..], &u16::from(kind as u8).to_be_bytes()].concat());
        requests.extend([n, at].map(u64::to_be_bytes).concat());
        requests.extend(4096u32.to_be_bytes());
        requests.extend(payload);
    }
    client.send(&requests);
    for _ in 0..asked.len() {
        let (magic, error, cookie) = (client.u32(), client.u32(), client.u64());
        assert_eq!(magic, 0x6744_6698);
        let place = asked.iter().position(|(n, _)| *n == cookie).expect("answered once");
        match asked.swap_remove(place).1 {
            Ok(data) => {
                assert_eq!((cookie, error), (cookie, 0));
                assert!(client.take(data.len()) == data, "request {cookie} read something else");
            }
            Err(wanted) => assert_eq!((cookie, error), (cookie, wanted)),
        }
    }
    assert!(memory.content() == expected, "what is on the disk differs");
    assert!(disk.1.load(Ordering::SeqCst) > 8, "they were carried out one by one");
}
