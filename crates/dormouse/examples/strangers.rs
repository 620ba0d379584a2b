//! Strangers that hold a server's places: `strangers ADDRESS FINGERPRINT NUMBER`, until standard input ends.
//!
//! Each has an address of its own group on loopback (fifty share one), and comes back at once
//! when it is closed. A quarter says nothing; a half sends a TLS hello, a byte now and then; a
//! quarter shakes hands with a key that nobody knows, and then sends a first message in the
//! same way. At the end it prints how often they came, and how long they could stay. Part of
//! `cargo xtask proof strangers`; never shipped.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dormouse::text::unhex_array;
use dormouse::tls;
use dormouse_crypt::{OsRandom, SigningKey};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

/// How many share an address: fewer than the server takes from one.
const OF_ONE_ADDRESS: u32 = 50;
const PAUSE: Duration = Duration::from_secs(1);
/// How long a stranger waits for its handshake.
const PATIENCE: Duration = Duration::from_secs(20);
const STACK: usize = 128 << 10;

static CAME: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);
static STAYED_MS: AtomicU64 = AtomicU64::new(0);
static HERE: AtomicU64 = AtomicU64::new(0);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let parsed = match &arguments[..] {
        [_, address, server, number] => parse(address, server, number),
        _ => None,
    };
    let Some((address, server, number)) = parsed else {
        eprintln!("usage: strangers ADDRESS FINGERPRINT NUMBER");
        return ExitCode::FAILURE;
    };
    for n in 0..number {
        let builder = std::thread::Builder::new().stack_size(STACK);
        if let Err(error) = builder.spawn(move || stranger(address, &server, n)) {
            eprintln!("stranger {n}: {error}");
            return ExitCode::FAILURE;
        }
    }
    // Ready when each has come once, in one way or the other.
    while CAME.load(Ordering::Relaxed) + FAILED.load(Ordering::Relaxed) < u64::from(number) {
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("ready");
    let _ = io::stdin().read_to_end(&mut Vec::new());
    let came = CAME.load(Ordering::Relaxed);
    println!(
        "came {came} failed {} here {} stayed_ms {}",
        FAILED.load(Ordering::Relaxed),
        HERE.load(Ordering::Relaxed),
        STAYED_MS.load(Ordering::Relaxed) / came.max(1),
    );
    ExitCode::SUCCESS
}

fn parse(address: &str, server: &str, number: &str) -> Option<(SocketAddr, [u8; 32], u32)> {
    Some((address.parse().ok()?, unhex_array(server)?, number.parse().ok()?))
}

/// Comes, stays as long as it can, and comes again.
fn stranger(address: SocketAddr, server: &[u8; 32], n: u32) {
    let from = Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 1).to_bits() + n / OF_ONE_ADDRESS);
    loop {
        let Ok(socket) = come(from, address) else {
            FAILED.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        CAME.fetch_add(1, Ordering::Relaxed);
        HERE.fetch_add(1, Ordering::Relaxed);
        let since = Instant::now();
        stay(&socket, server, n % 4);
        HERE.fetch_sub(1, Ordering::Relaxed);
        STAYED_MS.fetch_add(since.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

fn come(from: Ipv4Addr, server: SocketAddr) -> io::Result<TcpStream> {
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&fd, &SocketAddrV4::new(from, 0))?;
    connect(&fd, &server)?;
    Ok(TcpStream::from(fd))
}

fn stay(mut socket: &TcpStream, server: &[u8; 32], kind: u32) {
    match kind {
        0 => {}
        // A TLS record that says it has 16 KiB of a hello of 60 KiB.
        1 | 2 => {
            let mut sent = socket.write_all(&[22, 3, 1, 0x40, 0, 1, 0, 0xea, 0x60]);
            while sent.is_ok() {
                std::thread::sleep(PAUSE);
                sent = socket.write_all(&[0]);
            }
        }
        _ => {
            let _ = shaken(socket, server);
        }
    }
    // Until the server closes; a reset is an end too.
    let _ = socket.read(&mut [0; 64]);
}

/// Shakes hands with a key of its own, and begins a message.
fn shaken(mut socket: &TcpStream, server: &[u8; 32]) -> Option<()> {
    let key = SigningKey::generate(&mut OsRandom).ok()?;
    let mut connection = tls::client(socket, &key, server, PATIENCE).ok()?.connection;
    // A message of 32 KiB.
    let mut frame = vec![0, 0x80, 0, 0, 2];
    loop {
        connection.writer().write_all(&frame).ok()?;
        while connection.wants_write() {
            connection.write_tls(&mut socket).ok()?;
        }
        std::thread::sleep(PAUSE);
        frame = vec![0];
    }
}
