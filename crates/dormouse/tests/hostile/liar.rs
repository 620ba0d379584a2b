//! A server with the right key and a real session behind it that does not pass on what the
//! session says; and one side of a TLS connection that sends what it is told, byte by byte.

use std::io::{self, BufRead, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse::access::Access;
use dormouse::home::Account;
use dormouse::log::Log;
use dormouse::store_dir::StoreDir;
use dormouse::text::now_ns;
use dormouse::tls::{self, ServerTls, Shaken};
use dormouse_format::limits::FRAME_MAX;
use dormouse_format::message::{Deframer, Message};
use dormouse_sync::server::{After, Session};
use rustls::Connection;

const WAIT: Duration = Duration::from_secs(10);

/// One side of an authenticated TLS connection.
pub struct Wire {
    pub socket: TcpStream,
    connection: Connection,
    deframer: Deframer,
}

impl Wire {
    fn new(socket: TcpStream, shaken: Shaken) -> Self {
        socket.set_nodelay(true).unwrap();
        Self { socket, connection: shaken.connection, deframer: Deframer::new(FRAME_MAX) }
    }

    /// The client's side, with an account's key; nothing was said yet.
    pub fn connect(account: &Account, address: &str) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        let shaken = tls::client(&socket, &account.transport, &account.server, WAIT).unwrap();
        Self::new(socket, shaken)
    }

    /// The same, and welcome.
    pub fn welcome(account: &Account, address: &str) -> Self {
        let mut wire = Self::connect(account, address);
        wire.send(&Message::Hello { instance: account.instance }).unwrap();
        let welcome = wire.next().unwrap();
        assert!(matches!(welcome, Some(Message::Welcome { .. })), "{welcome:?}");
        wire
    }

    pub fn send(&mut self, message: &Message) -> io::Result<()> {
        self.raw(&message.encode())
    }

    /// Bytes that need not be a message.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(16 << 10) {
            self.connection.writer().write_all(piece)?;
            while self.connection.wants_write() {
                self.connection.write_tls(&mut &self.socket)?;
            }
        }
        Ok(())
    }

    /// The next message; none if the other side has ended the connection.
    pub fn next(&mut self) -> io::Result<Option<Message>> {
        loop {
            // The handshake may have brought some already.
            let state = self.connection.process_new_packets().map_err(io::Error::other)?;
            let mut left = state.plaintext_bytes_to_read();
            while left > 0 {
                let mut reader = self.connection.reader();
                let plain = reader.fill_buf()?;
                let n = plain.len();
                self.deframer.push(plain);
                reader.consume(n);
                left -= n;
            }
            let message = self.deframer.next_message().map_err(io::Error::other)?;
            if message.is_some() || state.peer_has_closed() {
                return Ok(message);
            }
            match self.connection.read_tls(&mut &self.socket) {
                Ok(0) => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                read => read?,
            };
        }
    }

    /// One question, one answer.
    pub fn ask(&mut self, question: &Message) -> Message {
        self.send(question).unwrap();
        self.next().unwrap().unwrap()
    }
}

pub type Ask = Box<dyn FnMut(&mut Message) + Send>;
pub type Answer = Box<dyn FnMut(&Message, Vec<Message>, &mut Wire) -> io::Result<()> + Send>;

/// What is done to questions before the session hears them, and to its answers.
pub struct Lie {
    ask: Ask,
    answer: Answer,
}

impl Lie {
    pub fn none() -> Self {
        Self { ask: Box::new(|_| {}), answer: Box::new(|_, answers, wire| pass(&answers, wire)) }
    }

    /// Another question is answered than was asked.
    pub fn ask(f: impl FnMut(&mut Message) + Send + 'static) -> Self {
        Self { ask: Box::new(f), ..Self::none() }
    }

    /// Each answer is altered.
    pub fn answer(mut f: impl FnMut(&mut Message) + Send + 'static) -> Self {
        Self::say(move |_, mut answers, wire| {
            answers.iter_mut().for_each(&mut f);
            pass(&answers, wire)
        })
    }

    /// Something else is said.
    pub fn say(
        f: impl FnMut(&Message, Vec<Message>, &mut Wire) -> io::Result<()> + Send + 'static,
    ) -> Self {
        Self { answer: Box::new(f), ..Self::none() }
    }
}

/// Says what the session says.
pub fn pass(answers: &[Message], wire: &mut Wire) -> io::Result<()> {
    answers.iter().try_for_each(|m| wire.send(m))
}

/// The lying server; its threads end with the test's process.
pub struct Liar {
    pub address: String,
    lie: Arc<Mutex<Lie>>,
}

impl Liar {
    /// On a store, which is made if it is not there.
    pub fn start(store: &Path) -> Self {
        let store = StoreDir::open_or_create(store).unwrap();
        let tls = ServerTls::new(&store.key().unwrap()).unwrap();
        let lock = store.lock().unwrap();
        let access = Arc::new(Access::new(store, Log::silent()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let lie = Arc::new(Mutex::new(Lie::none()));
        let lies = lie.clone();
        std::thread::spawn(move || {
            let _lock = lock;
            for socket in listener.incoming() {
                let (tls, access, lie) = (tls.clone(), access.clone(), lies.clone());
                std::thread::spawn(move || {
                    let socket = socket.unwrap();
                    let Ok(shaken) = tls.accept(&socket, WAIT) else { return };
                    // What a client leaves behind that has gone with much unread.
                    socket.set_write_timeout(Some(WAIT / 2)).unwrap();
                    let session = Session::new(access, shaken.binding);
                    // A client that has had enough hangs up.
                    let _ = serve(session, &mut Wire::new(socket, shaken), &lie);
                });
            }
        });
        Self { address, lie }
    }

    /// From now on, for connections that stand too.
    pub fn lie(&self, lie: Lie) {
        *self.lie.lock().unwrap() = lie;
    }
}

fn serve(mut session: Session, wire: &mut Wire, lie: &Mutex<Lie>) -> io::Result<()> {
    while let Some(mut message) = wire.next()? {
        (lie.lock().unwrap().ask)(&mut message);
        let mut answers = Vec::new();
        let after = session.handle(now_ns(), message.clone(), &mut |m| answers.push(m));
        (lie.lock().unwrap().answer)(&message, answers, wire)?;
        if after == After::Close {
            break;
        }
    }
    session.end();
    Ok(())
}
