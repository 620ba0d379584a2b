//! The same link with the server's engine in this process: for a target that is a directory.

use std::io;
use std::sync::Arc;

use dormouse_crypt::invite::Binding;
use dormouse_format::limits::FRAME_MAX;
use dormouse_format::message::{Deframer, Message};
use dormouse_sync::server::{After, Registry, Session};

use super::answers::Answers;
use super::inbox::{Batch, inbox};
use super::queue::{Next, Queue};
use super::{Link, LinkError, LinkTx, SEND_BYTES_MAX};
use crate::text::now_ns;

/// Stack of the engine's thread.
const STACK: usize = 2 << 20;
/// Bytes of messages taken at once.
const BATCH: usize = 1 << 20;

impl Link {
    /// A link to a session that runs in a thread of this process. `after` runs in
    /// that thread when the session has ended, as to close stores and give back locks.
    pub fn in_process(
        registry: Arc<dyn Registry>,
        binding: Binding,
        after: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Arc::new(Queue::new(SEND_BYTES_MAX));
        let (tx, rx) = inbox();
        let engine = {
            let queue = queue.clone();
            move || {
                let mut session = Session::new(registry, binding);
                let why = serve(&mut session, &queue, &|batch| tx.send(batch).is_ok());
                session.end();
                queue.close(why.clone());
                queue.set_drained();
                drop(session);
                after();
                let _ = tx.send(vec![Err(why)]);
            }
        };
        let thread =
            std::thread::Builder::new().name("engine".into()).stack_size(STACK).spawn(engine)?;
        Ok(Self { tx: LinkTx { queue }, rx, threads: vec![thread], wire: None })
    }
}

fn serve(session: &mut Session, queue: &Queue, send: &dyn Fn(Batch) -> bool) -> LinkError {
    let mut answers = Answers::default();
    let mut pass_on = |messages: Vec<Message>| send(messages.into_iter().map(Ok).collect());
    loop {
        let frames = match queue.next(BATCH) {
            Next::Items(frames) => frames,
            Next::Flush => continue,
            Next::End | Next::Rest => return LinkError::Closed,
        };
        for frame in frames {
            // Frames go through the codec here too: one path, one set of limits.
            queue.sent.fetch_add(frame.len() as u64, std::sync::atomic::Ordering::Relaxed);
            let mut deframer = Deframer::new(FRAME_MAX);
            deframer.push(&frame);
            let message = match deframer.next_message() {
                Ok(Some(message)) => message,
                Ok(None) => return LinkError::Protocol("a frame is not whole".into()),
                Err(error) => return LinkError::Protocol(error.to_string()),
            };
            let mut there = true;
            let after = session.handle(now_ns(), message, &mut |m| {
                there &= answers.add(m, &mut pass_on);
            });
            if !there || after == After::Close {
                answers.flush(&mut pass_on);
                return LinkError::Closed;
            }
        }
        if !answers.flush(&mut pass_on) {
            return LinkError::Closed;
        }
    }
}
