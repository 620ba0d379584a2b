//! The process beside the server that resolves the name of the object storage's host.
//!
//! A server in its jail reads no file of the host and sends no datagram; the system's resolver does
//! both, and its files change. So a process of its own does that, which has nothing of the store,
//! in a jail of its own. Invariants: it resolves the one name that it was started with, whatever
//! it is asked; it ends with the server; an answer belongs to its question, also after one that
//! came too late.

use std::io::{self, Read, Write};
use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use dormouse_bucket::Names;

use crate::jail::{self, Layer, Plan, Standing};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);
/// Bytes of a line, and addresses of an answer, at most.
const LINE_MAX: usize = 4096;
const ADDRESSES_MAX: usize = 32;

#[derive(Debug)]
struct Asking {
    stream: UnixStream,
    questions: u64,
}

/// The end in the server.
#[derive(Debug)]
pub(super) struct Helper {
    host: String,
    asking: Mutex<Asking>,
}

impl Helper {
    /// Starts it; and which layers of its jail do not hold.
    pub(super) fn start(host: &str) -> Result<(Self, Vec<Standing>)> {
        let (stream, theirs) = UnixStream::pair()?;
        // Neither credentials nor anything else of this process; a stop reaches the server alone.
        Command::new("/proc/self/exe")
            .args(["name-helper", host])
            .env_clear()
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start the process that resolves names")?;
        stream.set_read_timeout(Some(ANSWER))?;
        let said = line(&mut &stream).context("the process that resolves names did not begin")?;
        let missing = said.split(',').filter_map(Layer::of_name);
        let standing = |layer| Standing {
            layer,
            held: Err("not for the process that resolves names".to_owned()),
        };
        let asking = Mutex::new(Asking { stream, questions: 0 });
        Ok((Self { host: host.to_owned(), asking }, missing.map(standing).collect()))
    }
}

impl Names for Helper {
    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if host != self.host {
            let why = format!(
                "the name '{host}' is not resolved, only that of the endpoint, '{}' (no proxy and \
                 no other host is used)",
                self.host
            );
            return Err(io::Error::other(why));
        }
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        asking.questions += 1;
        let number = asking.questions.to_string();
        let ended = |e: io::Error| {
            io::Error::new(e.kind(), format!("the process that resolves names: {e}"))
        };
        (&asking.stream).write_all(format!("{number}\n").as_bytes()).map_err(ended)?;
        loop {
            let said = line(&mut &asking.stream).map_err(ended)?;
            match said.split_once(' ') {
                Some((of, answer)) if of == number => return read_answer(answer),
                // Of a question whose patience was over.
                _ => {}
            }
        }
    }
}

/// `ok ADDRESS…`, or `no REASON`.
fn read_answer(answer: &str) -> io::Result<Vec<IpAddr>> {
    let bad = || io::Error::other("the process that resolves names gave no answer");
    match answer.split_once(' ').ok_or_else(bad)? {
        ("ok", addresses) => addresses.split(' ').map(|a| a.parse().map_err(|_| bad())).collect(),
        (_, why) => Err(io::Error::other(why.to_owned())),
    }
}

/// A line, without its end.
fn line(from: &mut impl Read) -> io::Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.len() < LINE_MAX {
        from.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            return String::from_utf8(line).map_err(io::Error::other);
        }
        line.push(byte[0]);
    }
    Err(io::Error::other("a line has no end"))
}

fn lookup(host: &str) -> String {
    match (host, 0).to_socket_addrs() {
        Ok(all) => {
            let texts: Vec<_> = all.take(ADDRESSES_MAX).map(|a| a.ip().to_string()).collect();
            format!("ok {}", texts.join(" "))
        }
        Err(e) => format!("no {}", e.to_string().replace('\n', " ")),
    }
}

/// `dormouse name-helper HOST`: the process itself, until its server ends.
pub fn serve(host: &str) -> Result<()> {
    let mut stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // So that the C library has loaded what it needs; whether it is answered does not matter.
    let _ = lookup(host);
    let missing = jail::enter(&Plan::of_names()?).into_iter().filter(|s| s.held.is_err());
    let missing: Vec<_> = missing.map(|standing| standing.layer.name()).collect();
    stream.write_all(format!("{}\n", missing.join(",")).as_bytes())?;
    loop {
        let number = match line(&mut stream) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            asked => asked?,
        };
        stream.write_all(format!("{number} {}\n", lookup(host)).as_bytes())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_late_ones_are_passed_over() {
        let (stream, mut theirs) = UnixStream::pair().unwrap();
        let asking = Mutex::new(Asking { stream, questions: 6 });
        let helper = Helper { host: "s3.example".into(), asking };
        theirs.write_all(b"6 ok 9.9.9.9\n7 ok 127.0.0.1 ::1\n8 no such name\n").unwrap();
        let both: Vec<IpAddr> = vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        assert_eq!(helper.resolve("s3.example").unwrap(), both);
        assert_eq!(helper.resolve("s3.example").unwrap_err().to_string(), "such name");
        let other = helper.resolve("elsewhere.example").unwrap_err().to_string();
        assert!(other.contains("only that of the endpoint"), "{other}");
        theirs.write_all(b"9 ok what\n").unwrap();
        assert!(helper.resolve("s3.example").is_err());
        drop(theirs);
        let ended = helper.resolve("s3.example").unwrap_err().to_string();
        assert!(ended.contains("the process that resolves names"), "{ended}");
    }
}
