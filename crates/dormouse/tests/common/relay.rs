//! A relay between client and server that counts what goes up, and cuts connections: after so
//! many bytes, or those that there are now; or lets them stand, and passes nothing on.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Stands before a server until the test ends.
pub struct Relay {
    /// Where clients connect.
    pub address: String,
    limits: Arc<RwLock<Limits>>,
    /// Both ends of each connection that was made.
    open: Arc<Mutex<Vec<TcpStream>>>,
    up: Arc<AtomicU64>,
    /// How often connections were made deaf.
    deaf: Arc<AtomicU64>,
}

/// Bytes that may still go up (to the server) and down, of all connections together.
#[derive(Clone, Default)]
struct Limits {
    up: Option<Arc<AtomicI64>>,
    down: Option<Arc<AtomicI64>>,
}

impl Relay {
    pub fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (limits, open) = (Arc::<RwLock<Limits>>::default(), Arc::default());
        let (up, deaf) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let relay = Self {
            address,
            limits: Arc::clone(&limits),
            open: Arc::clone(&open),
            up: Arc::clone(&up),
            deaf: Arc::clone(&deaf),
        };
        let server = server.to_owned();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&server)) else {
                    continue;
                };
                let limits = limits.read().unwrap_or_else(PoisonError::into_inner).clone();
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                open.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend([server.try_clone().unwrap(), client.try_clone().unwrap()]);
                let up = Arc::clone(&up);
                let (one, other) = (Hearing::new(&deaf), Hearing::new(&deaf));
                std::thread::spawn(move || pass((client, server), limits.up, &up, &one));
                std::thread::spawn(move || pass(back, limits.down, &AtomicU64::new(0), &other));
            }
        });
        relay
    }

    /// Connections from now on are cut when `bytes` went this way.
    pub fn cut(&self, up: bool, bytes: u64) {
        let limit = Some(Arc::new(AtomicI64::new(bytes as i64)));
        let limits =
            if up { Limits { up: limit, down: None } } else { Limits { up: None, down: limit } };
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Connections from now on stay.
    pub fn heal(&self) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = Limits::default();
    }

    /// Ends the connections that there are.
    pub fn sever(&self) {
        for socket in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// The connections that there are stay, and nothing goes through any more: as when the other end
    /// has vanished and something between still answers for it.
    pub fn swallow(&self) {
        self.deaf.fetch_add(1, Ordering::SeqCst);
    }

    /// Bytes that went up until now.
    pub fn sent(&self) -> u64 {
        self.up.load(Ordering::Relaxed)
    }
}

/// Whether a connection still hears.
struct Hearing(Arc<AtomicU64>, u64);

impl Hearing {
    fn new(deaf: &Arc<AtomicU64>) -> Self {
        Self(Arc::clone(deaf), deaf.load(Ordering::SeqCst))
    }

    fn hears(&self) -> bool {
        self.0.load(Ordering::SeqCst) == self.1
    }
}

fn pass(
    (mut from, mut to): (TcpStream, TcpStream),
    limit: Option<Arc<AtomicI64>>,
    count: &AtomicU64,
    hearing: &Hearing,
) {
    let mut buffer = [0; 16 << 10];
    let mut cut = false;
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if !hearing.hears() {
            continue;
        }
        let left = limit.as_ref().map_or(i64::MAX, |l| l.fetch_sub(n as i64, Ordering::Relaxed));
        cut = left < n as i64;
        let n = n.min(left.max(0) as usize);
        if to.write_all(&buffer[..n]).is_err() || cut {
            break;
        }
        count.fetch_add(n as u64, Ordering::Relaxed);
    }
    if !hearing.hears() {
        return;
    }
    // A goodbye is passed on in its own direction; a cut ends both.
    let how = if cut { Shutdown::Both } else { Shutdown::Write };
    let _ = to.shutdown(how);
    if cut {
        let _ = from.shutdown(Shutdown::Both);
    }
}
