//! A checkpoint of the head: questions and answers, and no disk.

use anyhow::Result;
use dormouse_format::TimeNs;
use dormouse_format::point::SignedPoint;
use dormouse_sync::checkpoint::{Action, Checkpoint};

use crate::connect;
use crate::link::Link;

/// Runs a checkpoint to its end. `show` is called at each answer, and may end it by an error.
pub fn run_checkpoint(
    link: &Link,
    checkpoint: &mut Checkpoint,
    show: &mut dyn FnMut() -> Result<()>,
) -> Result<(SignedPoint, TimeNs)> {
    let mut actions = Vec::new();
    checkpoint.start(&mut actions);
    loop {
        let mut messages = Vec::new();
        for action in actions.drain(..) {
            match action {
                Action::Send(message) => messages.push(message),
                Action::Done { point, receipt } => return Ok((point, receipt)),
            }
        }
        connect::send_all(link, messages)?;
        let message = connect::receive(link)?;
        checkpoint.step(message, &mut actions)?;
        show()?;
    }
}
