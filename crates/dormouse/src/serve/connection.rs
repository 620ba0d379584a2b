//! One connection of the server, from its first message to its end.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::select;
use dormouse_format::limits::FRAME_MAX;
use dormouse_format::message::{Message, Refusal};
use dormouse_sync::server::{After, Session};
use rustls::Connection;

use super::introduction::Said;
use super::limits::CLIENT_CONNECTIONS_MAX;
use super::{Seat, Shared};
use crate::link::{Answers, Link, LinkError};
use crate::text::now_ns;

/// How long a connection that was refused may take to read why.
const LINGER: Duration = Duration::from_secs(2);

/// The connection of somebody who has said the first message, to its end.
pub(super) fn run(
    shared: &Shared,
    socket: &Arc<TcpStream>,
    from: SocketAddr,
    mut seat: Seat,
    said: Said,
) {
    match received(shared, socket, from, &mut seat, said) {
        Ok((session, link)) => serve(shared, session, &link, from),
        Err(why) => shared.tally.line(|| format!("{from}: {why}")),
    }
}

/// What a client says first is answered: by a session, or by a refusal.
fn received(
    shared: &Shared,
    socket: &Arc<TcpStream>,
    from: SocketAddr,
    seat: &mut Seat,
    said: Said,
) -> Result<(Session, Link), String> {
    let Said { mut connection, binding, mut deframer, first } = said;
    let mut session = Session::new(shared.access.clone(), binding);
    let mut answers = Vec::new();
    let after = session.handle(now_ns(), first, &mut |m| answers.push(m));
    let name = session.client_name().filter(|_| after == After::Continue).map(str::to_owned);
    let taken = name.as_ref().is_some_and(|name| seat.is_client(name));
    if name.is_some() && !taken {
        let text = format!(
            "this client has {CLIENT_CONNECTIONS_MAX} connections to this server already, as many \
             as one may have"
        );
        answers = vec![Message::Error { refusal: Refusal::Stopping, text }];
    }
    for answer in &answers {
        send(socket, &mut connection, answer).map_err(|e| e.to_string())?;
    }
    let Some(name) = name.filter(|_| taken) else {
        seat.loosen();
        goodbye(socket, &mut connection);
        let said = answers.iter().find_map(|m| match m {
            Message::Error { text, .. } => Some(text.as_str()),
            _ => None,
        });
        return Err(format!("refused: {}", said.unwrap_or("not authenticated")));
    };
    shared.log.line(&format!("{from}: client '{name}' connected"));
    let clear = socket.set_read_timeout(None).and_then(|()| socket.set_write_timeout(None));
    clear.map_err(|e| e.to_string())?;
    deframer.set_limit(FRAME_MAX);
    let link = Link::start(socket.clone(), connection, deframer).map_err(|e| e.to_string())?;
    Ok((session, link))
}

fn serve(shared: &Shared, mut session: Session, link: &Link, from: SocketAddr) {
    let began = Instant::now();
    let name = session.client_name().unwrap_or("?").to_owned();
    let why = session_loop(shared, &mut session, link);
    session.end();
    let seconds = began.elapsed().as_secs_f64();
    shared.log.line(&format!("{from}: client '{name}': {why} after {seconds:.1} s"));
}

fn session_loop(shared: &Shared, session: &mut Session, link: &Link) -> String {
    let mut answers = Answers::default();
    let mut send = |messages| link.tx.send_all(messages).is_ok();
    loop {
        let received = match link.rx.taken() {
            Some(received) => received,
            None => {
                if !answers.flush(&mut send) {
                    return ended(link);
                }
                let batch = select! {
                    recv(link.rx.batches()) -> batch => batch,
                    recv(shared.stopping) -> _ => {
                        let text = "the server is stopping".to_owned();
                        let _ = link.tx.send(Message::Error { refusal: Refusal::Stopping, text });
                        close(link);
                        return "stopped".into();
                    }
                };
                match batch.map(|batch| link.rx.add(batch)) {
                    Ok(Some(received)) => received,
                    Ok(None) => continue,
                    Err(_) => return "done".into(),
                }
            }
        };
        let message = match received {
            Ok(message) => message,
            Err(LinkError::Closed) => return "done".into(),
            Err(error @ LinkError::Protocol(_)) => {
                let text = error.to_string();
                let refusal = Refusal::Protocol;
                answers.add(Message::Error { refusal, text: text.clone() }, &mut send);
                answers.flush(&mut send);
                close(link);
                return text;
            }
            Err(error) => return error.to_string(),
        };
        let mut said = None;
        let mut there = true;
        let after = session.handle(now_ns(), message, &mut |m| {
            if let Message::Error { text, .. } = &m {
                said = Some(text.clone());
            }
            there &= answers.add(m, &mut send);
        });
        if !there {
            return ended(link);
        }
        if after == After::Close {
            answers.flush(&mut send);
            close(link);
            return format!("refused: {}", said.as_deref().unwrap_or("no reason given"));
        }
    }
}

/// Why nothing can be sent on a link.
fn ended(link: &Link) -> String {
    link.tx.ended().map_or_else(|| "cut".into(), |why| why.to_string())
}

/// Lets the last answer go out, and takes what the client still sends: a socket that
/// is closed with unread bytes would take the answer back.
fn close(link: &Link) {
    link.tx.shutdown();
    let until = Instant::now() + LINGER;
    while let Ok(received) = link.rx.recv_deadline(until) {
        if received.is_err() {
            break;
        }
    }
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
