//! The first part of a connection: the bytes of a stranger, up to its first whole message.
//!
//! Owns: the thread that reads them. Invariant: that thread can use its own socket and no other
//! file, socket, path or program ([`crate::jail::only_socket`]); it ends before anything of the
//! store is looked at for that peer. What it leaves is typed: a connection, a message. It shares
//! the process's memory, and the server's key with it: docs/jail.md says what that means.

use std::io::{self, BufRead};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use dormouse_crypt::invite::Binding;
use dormouse_format::limits::FRAME_MAX_UNAUTHENTICATED;
use dormouse_format::message::{Deframer, Message, Refusal};
use rustls::Connection;

use super::connection::{self, goodbye, send};
use super::{STACK, Seat, Shared};
use crate::jail;
use crate::tls::Fault;

/// How long a handshake may take, and then the first message.
const FIRST_WAIT: Duration = Duration::from_secs(10);

/// What a peer has said so far.
pub(super) struct Said {
    pub(super) connection: Connection,
    pub(super) binding: Binding,
    pub(super) deframer: Deframer,
    pub(super) first: Message,
}

/// A peer whose thread has ended.
pub(super) struct Guest {
    socket: Arc<TcpStream>,
    from: SocketAddr,
    seat: Seat,
    said: Result<Said, String>,
}

/// A stranger's thread: listens until the first message is whole, then hands over.
pub(super) fn meet(
    shared: &Shared,
    socket: Arc<TcpStream>,
    from: SocketAddr,
    seat: Seat,
    hall: &Sender<Guest>,
) {
    let confined = if shared.confine { jail::only_socket(&socket) } else { Ok(()) };
    let said = confined.and_then(|()| listen(shared, &socket, &seat));
    let _ = hall.send(Guest { socket, from, seat, said });
}

/// Gives each guest that has said something a thread of its own; ends with the last stranger.
pub(super) fn usher(shared: &Arc<Shared>, guests: &Receiver<Guest>) {
    for Guest { socket, from, seat, said } in guests {
        let said = match said {
            Ok(said) => said,
            Err(why) => {
                shared.tally.line(|| format!("{from}: {why}"));
                continue;
            }
        };
        let thread = {
            let shared = Arc::clone(shared);
            std::thread::Builder::new()
                .name("connection".into())
                .stack_size(STACK)
                .spawn(move || connection::run(&shared, &socket, from, seat, said))
        };
        match thread {
            Ok(thread) => shared.table().threads.push(thread),
            Err(error) => shared.tally.line(|| format!("{from}: no thread for it: {error}")),
        }
    }
}

/// Whether threads of this process can be confined to a socket; else why not.
pub(super) fn can_confine() -> Result<(), String> {
    // Any file will do: the thread ends at once.
    let name = || std::thread::Builder::new().name("stranger".into());
    let tried = name().spawn(|| jail::only_socket(std::io::stderr()));
    match tried.map(std::thread::JoinHandle::join) {
        Ok(Ok(confined)) => confined,
        Ok(Err(_)) => Err("the thread that tried it did not end well".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// The handshake and the first message.
fn listen(shared: &Shared, socket: &Arc<TcpStream>, seat: &Seat) -> Result<Said, String> {
    let shaken =
        shared.tls.accept_telling(socket, FIRST_WAIT, || seat.greeted()).map_err(|fault| {
            match fault {
                Fault::WrongKey { .. } => "the client does not take this server's key".to_owned(),
                fault => format!("handshake: {fault}"),
            }
        })?;
    let (mut connection, binding) = (shaken.connection, shaken.binding);
    let mut deframer = Deframer::new(FRAME_MAX_UNAUTHENTICATED);
    let first = first_message(socket, &mut connection, &mut deframer)?;
    Ok(Said { connection, binding, deframer, first })
}

fn first_message(
    socket: &TcpStream,
    connection: &mut Connection,
    deframer: &mut Deframer,
) -> Result<Message, String> {
    let until = Instant::now() + FIRST_WAIT;
    loop {
        // The handshake may have brought some already.
        let state = connection.process_new_packets().map_err(|e| e.to_string())?;
        let mut left = state.plaintext_bytes_to_read();
        while left > 0 {
            let mut reader = connection.reader();
            let n = reader.fill_buf().map_err(|e| e.to_string())?.len();
            deframer.push(&reader.fill_buf().map_err(|e| e.to_string())?[..n]);
            reader.consume(n);
            left = left.saturating_sub(n.max(1));
        }
        match deframer.next_message() {
            Ok(Some(message)) => return Ok(message),
            Ok(None) => {}
            Err(error) => {
                let text = format!("the first message is not one: {error}");
                let refusal = Refusal::Protocol;
                let _ = send(socket, connection, &Message::Error { refusal, text: text.clone() });
                goodbye(socket, connection);
                return Err(text);
            }
        }
        let wait = until.saturating_duration_since(Instant::now());
        if wait.is_zero() || state.peer_has_closed() {
            return Err("said nothing".into());
        }
        let set =
            socket.set_read_timeout(Some(wait)).and_then(|()| socket.set_write_timeout(Some(wait)));
        set.map_err(|e| e.to_string())?;
        match connection.read_tls(&mut &*socket) {
            Ok(0) => return Err("went away before it said who it is".into()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err("said nothing".into()),
            Err(e) => return Err(e.to_string()),
        }
    }
}
