//! How fast a link over TLS is on loopback: `cargo run --release --example link_speed [GIB] [KIB]`.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dormouse::link::Link;
use dormouse::tls::{self, ServerTls};
use dormouse_crypt::{OsRandom, SigningKey, hash};
use dormouse_format::limits::FRAME_MAX;
use dormouse_format::message::{Deframer, Message};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WAIT: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    let arg = |n| std::env::args().nth(n).and_then(|a| a.parse::<u64>().ok());
    let (gib, kib) = (arg(1).unwrap_or(4), arg(2).unwrap_or(70));
    let total = gib << 30;
    let key = SigningKey::generate(&mut OsRandom)?;
    let fingerprint = hash::fingerprint(&key.public());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let server = std::thread::spawn(move || -> Result<Link> {
        let (socket, _) = listener.accept()?;
        let shaken = ServerTls::new(&key)?.accept(&socket, WAIT)?;
        Ok(Link::start(socket, shaken.connection, Deframer::new(FRAME_MAX))?)
    });
    let socket = TcpStream::connect(address)?;
    let own = SigningKey::generate(&mut OsRandom)?;
    let shaken = tls::client(&socket, &own, &fingerprint, WAIT)?;
    let client = Link::start(socket, shaken.connection, Deframer::new(FRAME_MAX))?;
    let server = server.join().ok().context("the server's thread failed")??;

    one_way("client to server", &client, &server, total, kib << 10)?;
    one_way("server to client", &server, &client, total, kib << 10)?;
    let began = Instant::now();
    const ROUNDS: u32 = 20_000;
    for _ in 0..ROUNDS {
        client.tx.send(Message::Barrier)?;
        server.rx.recv()??;
        server.tx.send(Message::Durable)?;
        client.rx.recv()??;
    }
    println!("round trip: {:?}", began.elapsed() / ROUNDS);
    Ok(())
}

fn one_way(what: &str, from: &Link, to: &Link, total: u64, size: u64) -> Result<()> {
    let began = Instant::now();
    let count = total / size;
    let tx = from.tx.clone();
    let sender = std::thread::spawn(move || -> Result<()> {
        for _ in 0..count {
            tx.send(Message::Put { record: vec![7; size as usize] })?;
        }
        Ok(())
    });
    for _ in 0..count {
        to.rx.recv()??;
    }
    sender.join().ok().context("the sender's thread failed")??;
    let seconds = began.elapsed().as_secs_f64();
    println!("{what}: {:.2} GiB/s", (count * size) as f64 / seconds / f64::from(1 << 30));
    Ok(())
}
