//! One connection of the server: the answer to its first message, and its end.
//!
//! Leaves to others: what comes before ([`super::introduction`]), and what a client says from then on
//! ([`super::serving`]).

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use dormouse_format::PublicKey;
use dormouse_format::limits::FRAME_MAX;
use dormouse_format::message::{Message, Refusal};
use dormouse_sync::server::{After, Session};
use rustls::Connection;

use super::audited::What;
use super::introduction::Said;
use super::limits::CLIENT_CONNECTIONS_MAX;
use super::lounge::{QUIET, Resting};
use super::serving::{End, LINGER, Serving, Visit};
use super::{Seat, Shared};
use crate::link::Link;
use crate::log::{Entry, Level};
use crate::text::now_ns;

/// The connection of somebody who has said the first message, to its end.
pub(super) fn run(
    shared: &Shared,
    socket: &Arc<TcpStream>,
    from: SocketAddr,
    seat: Seat,
    said: Said,
) {
    match received(shared, socket, from, &seat, said) {
        Ok(visit) => serve(shared, visit, seat),
        Err(why) => shared.tally.line(|| format!("{from}: {why}")),
    }
}

/// The same of one that has rested.
pub(super) fn go_on(shared: &Shared, Resting { mut visit, seat }: Resting) {
    match visit.link.wake() {
        Ok(()) => serve(shared, visit, seat),
        Err(error) => over(shared, visit, &error.to_string()),
    }
}

/// What a client says first is answered: by a session, or by a refusal.
fn received(
    shared: &Shared,
    socket: &Arc<TcpStream>,
    from: SocketAddr,
    seat: &Seat,
    said: Said,
) -> Result<Visit, String> {
    let Said { mut connection, binding, mut deframer, first } = said;
    let key = binding.client;
    if !has_turn(shared, &key) {
        let text = "this client comes back too often; it is tried again later".to_owned();
        let refusal = Refusal::Stopping;
        shared.counters.refused(refusal);
        let _ = send(socket, &mut connection, &Message::Error { refusal, text: text.clone() });
        goodbye(socket, &mut connection);
        return Err(text);
    }
    seat.hold();
    let mut session = Session::new(shared.access.clone(), binding);
    let mut answers = Vec::new();
    let what = What::of(&session, &first);
    let after = session.handle(now_ns(), first, &mut |m| answers.push(m));
    let client = session.client().filter(|_| after == After::Continue);
    if let (Some(what), true) = (what, client.is_some()) {
        what.write(shared, &session, from, &Message::Done);
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
    socket.set_write_timeout(None).map_err(|e| e.to_string())?;
    deframer.set_limit(FRAME_MAX);
    deframer.shrink();
    let link = Link::start_resting(socket.clone(), connection, deframer, QUIET);
    let link = link.map_err(|e| e.to_string())?;
    seat.linked(link.tx.clone());
    Ok(Visit { session, link, dismissed, from, began: Instant::now(), scan: None })
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

/// Serves a client until its connection ends, or rests: then it needs no thread.
fn serve(shared: &Shared, visit: Visit, seat: Seat) {
    let (visit, end) = Serving::new(shared, visit).run();
    match end {
        End::Over(why) => over(shared, visit, &why),
        End::Rests => {
            // Who comes to rest when the server stops hears of it as all do.
            if let Some(back) = shared.lounge.take(Resting { visit, seat }) {
                go_on(shared, back);
            }
        }
    }
}

/// A connection has ended.
fn over(shared: &Shared, visit: Visit, why: &str) {
    let Visit { mut session, link, from, began, scan, .. } = visit;
    // Others need not wait for what the end of a session writes.
    drop(scan);
    let seconds = began.elapsed().as_secs_f64();
    tell(shared, &session, from, &format!("{why} after {seconds:.1} s"));
    session.end();
    drop(link);
}

pub(super) fn send(
    socket: &TcpStream,
    connection: &mut Connection,
    message: &Message,
) -> io::Result<()> {
    connection.writer().write_all(&message.encode())?;
    flush(socket, connection)
}

fn flush(socket: &TcpStream, connection: &mut Connection) -> io::Result<()> {
    while connection.wants_write() {
        connection.write_tls(&mut &*socket)?;
    }
    Ok(())
}

pub(super) fn goodbye(socket: &TcpStream, connection: &mut Connection) {
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
