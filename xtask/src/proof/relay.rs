//! A link that takes time: a TCP relay on loopback that hands each byte on a fixed time after it
//! came, and counts.
//!
//! Each direction of a connection has a thread that reads, a queue of chunks with the moment at
//! which each is due, and a thread that writes. Bandwidth is not limited: chunks overlap in the
//! queue, as packets do on a wire. Invariant: no byte leaves before it is due; a direction holds
//! at most [`IN_FLIGHT_MAX`] bytes, which stand for what lies on the wire and in both sockets.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// At 50 ms this passes 1,280 MiB/s.
const IN_FLIGHT_MAX: usize = 64 << 20;
const READ_SIZE: usize = 256 << 10;

/// A relay that accepts until the process ends.
pub struct Relay {
    /// Where to connect instead of the server.
    pub address: SocketAddr,
    counters: Arc<Counters>,
    /// Both ends of what was relayed.
    open: Arc<Mutex<Vec<TcpStream>>>,
}

#[derive(Default)]
struct Counters {
    up: AtomicU64,
    down: AtomicU64,
}

impl Relay {
    /// Relays to `server`, each direction late by `delay`.
    pub fn start(server: SocketAddr, delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let counters = Arc::new(Counters::default());
        let shared = Arc::clone(&counters);
        let open: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let relayed = Arc::clone(&open);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                match connect(client, server, delay, &shared) {
                    Ok(ends) => {
                        relayed.lock().unwrap_or_else(PoisonError::into_inner).extend(ends);
                    }
                    Err(error) => eprintln!("relay: {error:#}"),
                }
            }
        });
        Ok(Self { address, counters, open })
    }

    /// Cuts the connections that there are.
    pub fn sever(&self) {
        for end in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may have ended by itself.
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Bytes from clients and to clients since the last call: the streams of TCP, without headers.
    pub fn take(&self) -> (u64, u64) {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        (take(&self.counters.up), take(&self.counters.down))
    }
}

fn connect(
    client: TcpStream,
    server: SocketAddr,
    delay: Duration,
    counters: &Arc<Counters>,
) -> Result<[TcpStream; 2]> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    // The handshake of TCP was answered at once; on a real link it takes a round trip.
    let from = Instant::now() + 2 * delay;
    let ends = [client.try_clone()?, server.try_clone()?];
    direct(client.try_clone()?, server.try_clone()?, delay, from, counters, |c| &c.up);
    direct(server, client, delay, from, counters, |c| &c.down);
    Ok(ends)
}

fn direct(
    mut source: TcpStream,
    mut sink: TcpStream,
    delay: Duration,
    from: Instant,
    counters: &Arc<Counters>,
    counter: fn(&Counters) -> &AtomicU64,
) {
    let queue = Arc::new(Queue::default());
    let (filled, counters) = (Arc::clone(&queue), Arc::clone(counters));
    thread::spawn(move || {
        thread::sleep(from.saturating_duration_since(Instant::now()));
        let mut buffer = vec![0; READ_SIZE];
        loop {
            let length = source.read(&mut buffer).unwrap_or(0);
            counter(&counters).fetch_add(length as u64, Ordering::Relaxed);
            let bytes = if length < READ_SIZE / 4 {
                buffer[..length].to_vec()
            } else {
                std::mem::replace(&mut buffer, filled.buffer())
            };
            // An empty chunk is the end.
            let due = Instant::now() + delay;
            if !filled.push(Chunk { due, bytes, length }) || length == 0 {
                return;
            }
        }
    });
    thread::spawn(move || {
        loop {
            let Chunk { due, bytes, length } = queue.pop();
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if length == 0 || sink.write_all(&bytes[..length]).is_err() {
                // Fails only if the other side has closed already.
                let _ = sink.shutdown(Shutdown::Write);
                queue.close();
                return;
            }
            queue.give_back(bytes);
        }
    });
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

struct Chunk {
    due: Instant,
    bytes: Vec<u8>,
    /// How many of the bytes count.
    length: usize,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    /// Buffers to be used again: fresh memory costs more than what is done with it.
    spare: Vec<Vec<u8>>,
    closed: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False if nobody takes any more.
    fn push(&self, chunk: Chunk) -> bool {
        let full = |state: &mut State| state.bytes >= IN_FLIGHT_MAX && !state.closed;
        let mut state =
            self.changed.wait_while(self.state(), full).unwrap_or_else(PoisonError::into_inner);
        state.bytes += chunk.length;
        state.chunks.push_back(chunk);
        self.changed.notify_all();
        !state.closed
    }

    fn pop(&self) -> Chunk {
        let mut state = self.state();
        loop {
            if let Some(chunk) = state.chunks.pop_front() {
                state.bytes -= chunk.length;
                self.changed.notify_all();
                return chunk;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A buffer of [`READ_SIZE`] bytes.
    fn buffer(&self) -> Vec<u8> {
        let spare = self.state().spare.pop();
        spare.unwrap_or_else(|| vec![0; READ_SIZE])
    }

    fn give_back(&self, bytes: Vec<u8>) {
        if bytes.len() == READ_SIZE {
            self.state().spare.push(bytes);
        }
    }

    fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_late_whole_and_counted() {
        const SIZE: usize = 24 << 20;
        let delay = Duration::from_millis(40);
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = Relay::start(server.local_addr().unwrap(), delay).unwrap();
        let echo = thread::spawn(move || {
            let (mut socket, _) = server.accept().unwrap();
            let mut all = Vec::new();
            socket.read_to_end(&mut all).unwrap();
            socket.write_all(&all).unwrap();
        });
        let start = Instant::now();
        let mut socket = TcpStream::connect(relay.address).unwrap();
        let sent: Vec<u8> = (0..SIZE).map(|at| (at / 7) as u8).collect();
        socket.write_all(&sent).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        socket.read_to_end(&mut back).unwrap();
        echo.join().unwrap();
        // The handshake's round trip and the data's.
        assert!(start.elapsed() >= 4 * delay, "{:?}", start.elapsed());
        assert!(back == sent);
        assert_eq!(relay.take(), (SIZE as u64, SIZE as u64));
        assert_eq!(relay.take(), (0, 0));
    }
}
