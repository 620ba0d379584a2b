//! Layers by name, as a command line tells them.
//!
//! ```text
//! delay=5ms                       all requests; or delay=read:5ms,write:2ms,flush:20ms
//! fault=write:1/100,seed=7        one write of a hundred fails
//! fault=read@1048576+4096:nospace reads that touch these bytes fail, as if there were no room
//! log                             each request to standard error
//! check-writes                    what is read must be what was last written
//! ```

use std::sync::Arc;
use std::time::Duration;

use super::check_writes::CheckWrites;
use super::delay::Delay;
use super::fault::{Fault, How, Rule};
use super::log::Log;
use super::{Gated, Kind};
use crate::BlockDevice;

/// A layer that can be put around a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// [`Delay`].
    Delay(Delay),
    /// [`Fault`], and its seed.
    Fault(Vec<Rule>, u64),
    /// [`Log`].
    Log,
    /// [`CheckWrites`].
    CheckWrites,
}

impl Spec {
    /// Puts it around a disk.
    pub fn wrap(&self, lower: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
        match self {
            Self::Delay(delay) => Arc::new(Gated::new(lower, *delay)),
            Self::Fault(rules, seed) => {
                Arc::new(Gated::new(lower, Fault::new(rules.clone(), *seed)))
            }
            Self::Log => Arc::new(Gated::new(lower, Log::new(Box::new(std::io::stderr())))),
            Self::CheckWrites => Arc::new(CheckWrites::new(lower)),
        }
    }
}

impl core::str::FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, args) = text.split_once('=').unwrap_or((text, ""));
        match (name, args) {
            ("delay", args) if !args.is_empty() => delay(args),
            ("fault", args) if !args.is_empty() => fault(args),
            ("log", "") => Ok(Self::Log),
            ("check-writes", "") => Ok(Self::CheckWrites),
            _ => Err(format!(
                "'{text}' is no layer; there are delay=5ms, fault=write:1/100, log, check-writes"
            )),
        }
    }
}

fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no time; such as 500us, 5ms, 2s");
    let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(end);
    let number: u32 = number.parse().map_err(|_| wrong())?;
    let unit = match unit {
        "us" => Duration::from_micros(1),
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        _ => return Err(wrong()),
    };
    Ok(unit * number)
}

fn delay(args: &str) -> Result<Spec, String> {
    let mut delay = Delay::default();
    for arg in args.split(',') {
        match arg.split_once(':') {
            None => {
                let all = time(arg)?;
                delay = Delay { read: all, write: all, flush: all };
            }
            Some(("read", of)) => delay.read = time(of)?,
            Some(("write", of)) => delay.write = time(of)?,
            Some(("flush", of)) => delay.flush = time(of)?,
            Some((kind, _)) => return Err(format!("'{kind}' is none of read, write, flush")),
        }
    }
    Ok(Spec::Delay(delay))
}

fn fault(args: &str) -> Result<Spec, String> {
    let (mut rules, mut seed) = (Vec::new(), 0);
    for arg in args.split(',') {
        match arg.strip_prefix("seed=") {
            Some(number) => seed = number.parse().map_err(|_| format!("'{arg}' is no seed"))?,
            None => rules.push(rule(arg)?),
        }
    }
    Ok(Spec::Fault(rules, seed))
}

/// `KIND[@AT+LEN][:1/N][:HOW]`.
fn rule(text: &str) -> Result<Rule, String> {
    let wrong = || format!("'{text}' is no rule; such as write:1/100 or read@4096+512:nospace");
    let mut parts = text.split(':');
    let head = parts.next().unwrap_or_default();
    let (name, range) = head.split_once('@').map_or((head, None), |(n, r)| (n, Some(r)));
    let kind = Kind::ALL.into_iter().find(|k| k.name() == name).ok_or_else(wrong)?;
    let within = match range.map(|r| r.split_once('+')) {
        None => None,
        Some(Some((at, len))) => {
            let at: u64 = at.parse().map_err(|_| wrong())?;
            let len: u64 = len.parse().map_err(|_| wrong())?;
            Some(at..at.checked_add(len).ok_or_else(wrong)?)
        }
        Some(None) => return Err(wrong()),
    };
    let mut rule = Rule { kind, within, one_in: 1, how: How::Io };
    for part in parts {
        match part.strip_prefix("1/") {
            Some(n) => rule.one_in = n.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?,
            None => {
                rule.how = match part {
                    "io" => How::Io,
                    "nospace" => How::NoRoom,
                    "timeout" => How::TimedOut(Duration::from_millis(100)),
                    _ => return Err(wrong()),
                }
            }
        }
    }
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryDevice;
    use crate::{Error, Write};
    use std::time::Instant;

    fn disk(text: &str) -> Arc<dyn BlockDevice> {
        let memory = Arc::new(MemoryDevice::new(vec![3; 1 << 20], false));
        text.parse::<Spec>().unwrap().wrap(memory)
    }

    #[test]
    fn a_delay_waits_as_told() {
        let disk = disk("delay=read:30ms,flush:1us");
        let begun = Instant::now();
        disk.write(0, &[1], Write::default()).unwrap();
        assert!(begun.elapsed() < Duration::from_millis(25) && !disk.ready(0, 1));
        disk.read(0, &mut [0]).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(30));
    }

    #[test]
    fn faults_come_where_and_as_often_as_told() {
        let broken = disk("fault=read@4096+512:nospace");
        broken.read(0, &mut [0; 4096]).unwrap();
        broken.read(4608, &mut [0; 512]).unwrap();
        assert!(matches!(broken.read(4095, &mut [0; 2]), Err(Error::NoRoom(_))));
        broken.write(4096, &[1; 512], Write::default()).unwrap();
        let fails = |seed| -> Vec<bool> {
            let disk = disk(&format!("fault=write:1/10,seed={seed}"));
            (0..1000).map(|_| disk.write(0, &[1], Write::default()).is_err()).collect()
        };
        let count = fails(1).iter().filter(|f| **f).count();
        assert!((50..200).contains(&count), "{count}");
        assert!(fails(1) == fails(1) && fails(1) != fails(2));
    }

    #[test]
    fn each_request_is_told_with_its_end() {
        use crate::layers::Gated;
        use std::io;
        use std::sync::Mutex;

        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let disk = Gated::new(disk("fault=flush"), Log::new(Box::new(lines.clone())));
        disk.write(4096, &[1; 512], Write { fua: true }).unwrap();
        disk.flush().unwrap_err();
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let said: Vec<&str> = text.lines().map(|l| l.split_once(' ').unwrap().1).collect();
        let failed = "#2 flush: flush at byte 0: fails on purpose";
        assert_eq!(said, ["#1 write 4096+512 fua", "#1 write: ok", "#2 flush", failed]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in [
            "",
            "x",
            "delay",
            "delay=",
            "delay=5",
            "delay=5h",
            "delay=trim:5ms",
            "delay=9999999999s",
            "fault",
            "fault=x",
            "fault=read@1",
            "fault=read@1+x",
            "fault=read:0/1",
            "fault=read:1/0",
            "fault=read:bad",
            "fault=read@18446744073709551615+2",
            "fault=seed=x",
            "log=1",
        ] {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
    }
}
