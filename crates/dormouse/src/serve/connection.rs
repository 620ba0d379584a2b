//! One connection of the server: its handshake and its first message.
//!
//! Leaves to others: what a client says from then on ([`super::serving`]).

use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use dormouse_format::PublicKey;
use dormouse_format::limits::{FRAME_MAX, FRAME_MAX_UNAUTHENTICATED};
use dormouse_format::message::{Deframer, Message, Refusal};
use dormouse_sync::server::{After, Refused, Session};
use rustls::Connection;

use super::audited::What;
use super::limits::CLIENT_CONNECTIONS_MAX;
use super::serving::{LINGER, Serving};
use super::{Seat, Shared};
use crate::link::Link;
use crate::log::{Entry, Level};
use crate::text::now_ns;
use crate::tls::Fault;

/// How long a handshake may take, and then the first message.
const FIRST_WAIT: Duration = Duration::from_secs(10);

pub(super) fn run(shared: &Shared, socket: &Arc<TcpStream>, from: SocketAddr, seat: Seat) {
    match introduced(shared, socket, from, &seat) {
        Ok((session, link, dismissed)) => serve(shared, session, &link, &dismissed, from),
        Err(why) => shared.tally.line(|| format!("{from}: {why}")),
    }
}

/// The handshake and the first message.
fn introduced(
    shared: &Shared,
    socket: &Arc<TcpStream>,
    from: SocketAddr,
    seat: &Seat,
) -> Result<(Session, Link, Receiver<Refused>), String> {
    let shaken =
        shared.tls.accept_telling(socket, FIRST_WAIT, || seat.greeted()).map_err(|fault| {
            match fault {
                Fault::WrongKey { .. } => "the client does not take this server's key".to_owned(),
                fault => format!("handshake: {fault}"),
            }
        })?;
    let mut connection = shaken.connection;
    let key = shaken.binding.client;
    if !has_turn(shared, &key) {
        let text = "this client comes back too often; it is tried again later".to_owned();
        let refusal = Refusal::Stopping;
        shared.counters.refused(refusal);
        let _ = send(socket, &mut connection, &Message::Error { refusal, text: text.clone() });
        goodbye(socket, &mut connection);
        return Err(text);
    }
    let mut session = Session::new(shared.access.clone(), shaken.binding);
    let mut deframer = Deframer::new(FRAME_MAX_UNAUTHENTICATED);
    let first = first_message(socket, &mut connection, &mut deframer)?;
    seat.hold();
    let mut answers = Vec::new();
    let what = What::of(&session, &first);
    let after = session.handle(now_ns(), first, &mut |m| answers.push(m));
    let client = session.client().filter(|_| after == After::Continue);
    if let (Some(what), true) = (what, client.is_some()) {
        what.write(shared, &session, from);
    }
    let dismissed = client.and_then(|client| seat.is_client(client, key));
    if client.is_some() && dismissed.is_none() {
        let text = format!(
            "this client has {CLIENT_CONNECTIONS_MAX} connections to this server already, as many \
             as one may have"
        );
        answers = vec![Message::Error { refusal: Refusal::Stopping, text }];
    }
    for answer in &answers {
        send(socket, &mut connection, answer).map_err(|e| e.to_string())?;
    }
    count_refusals(shared, &answers);
    let Some(dismissed) = dismissed else {
        seat.loosen();
        goodbye(socket, &mut connection);
        let said = answers.iter().find_map(|m| match m {
            Message::Error { text, .. } => Some(text.as_str()),
            _ => None,
        });
        return Err(format!("refused: {}", said.unwrap_or("not authenticated")));
    };
    tell(shared, &session, from, "connected");
    let clear = socket.set_read_timeout(None).and_then(|()| socket.set_write_timeout(None));
    clear.map_err(|e| e.to_string())?;
    deframer.set_limit(FRAME_MAX);
    let link = Link::start(socket.clone(), connection, deframer).map_err(|e| e.to_string())?;
    seat.linked(link.tx.clone());
    Ok((session, link, dismissed))
}

/// A client that comes back too often waits for its turn, as the stranger that it still is;
/// false if that would take too long.
fn has_turn(shared: &Shared, key: &PublicKey) -> bool {
    let known = shared.access.roster().is_ok_and(|roster| roster.client(key).is_some());
    if !known {
        return true;
    }
    let Some(wait) = shared.returns.turn(key, Instant::now()) else { return false };
    if !wait.is_zero() {
        let _ = shared.stopping.recv_timeout(wait);
    }
    true
}

fn count_refusals<'a>(shared: &Shared, answers: impl IntoIterator<Item = &'a Message>) {
    for answer in answers {
        if let Message::Error { refusal, .. } = answer {
            shared.counters.refused(*refusal);
        }
    }
}

/// A line of the log about a client.
fn tell(shared: &Shared, session: &Session, from: SocketAddr, what: &str) {
    let (name, from) = (session.client_name().unwrap_or("?"), from.to_string());
    shared.log.event(&Entry::new(Level::Info, what).client(name, &from));
}

fn serve(
    shared: &Shared,
    session: Session,
    link: &Link,
    dismissed: &Receiver<Refused>,
    from: SocketAddr,
) {
    let began = Instant::now();
    let mut serving = Serving::new(shared, session, link, dismissed, from);
    let why = serving.run();
    // Others need not wait for what the end of a session writes.
    let mut session = serving.into_session();
    let seconds = began.elapsed().as_secs_f64();
    tell(shared, &session, from, &format!("{why} after {seconds:.1} s"));
    session.end();
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

fn send(socket: &TcpStream, connection: &mut Connection, message: &Message) -> io::Result<()> {
    connection.writer().write_all(&message.encode())?;
    flush(socket, connection)
}

fn flush(socket: &TcpStream, connection: &mut Connection) -> io::Result<()> {
    while connection.wants_write() {
        connection.write_tls(&mut &*socket)?;
    }
    Ok(())
}

fn goodbye(socket: &TcpStream, connection: &mut Connection) {
    connection.send_close_notify();
    let _ = flush(socket, connection);
    let _ = socket.shutdown(Shutdown::Write);
    let until = Instant::now() + LINGER;
    let mut sink = [0; 4096];
    loop {
        let wait = until.saturating_duration_since(Instant::now());
        if wait.is_zero() || socket.set_read_timeout(Some(wait)).is_err() {
            return;
        }
        if !matches!((&*socket).read(&mut sink), Ok(1..)) {
            return;
        }
    }
}
