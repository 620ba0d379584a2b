//! Whether the wall clock may be believed when points are to expire.
//!
//! Owns: the comparison of the wall clock with the clock that counts since the machine was
//! started, and the mark by which this is remembered. Invariant: a mark is moved on only by a
//! clock that was believed, so a doubt stays until an administrator ends it. Within one start of
//! the machine the first mark is what counts, so that many small steps do not add up unseen.
//! Leaves to others: where the mark is kept, and reading the clocks.

use std::fmt;

use dormouse_crypt::hash;
use dormouse_format::TimeNs;
use dormouse_format::seeded::seeded;

use super::policy::DAY;

const MINUTE: u64 = 60_000_000_000;
/// How far both clocks may go apart, and beside that one part in [`DRIFT`].
const TOLERANCE: u64 = 10 * MINUTE;
const DRIFT: u64 = 1000;
/// How long a machine may have been off without a question: a long weekend. While it is off
/// nothing tells how much time has gone.
pub const OFF_MAX: u64 = 4 * DAY;

/// Both clocks, read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// The wall clock.
    pub wall: TimeNs,
    /// Nanoseconds since the machine was started, sleep included.
    pub since_boot: u64,
    /// Names this start of the machine.
    pub boot: [u8; 16],
}

/// What is remembered of clocks that were believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The first ones of this start of the machine.
    first: Clocks,
    /// The last wall clock.
    last: TimeNs,
}

/// Why the wall clock is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// It has gone back, by so many nanoseconds.
    Back(u64),
    /// It has gone forward by so many more nanoseconds than time has.
    Ahead(u64),
    /// So much has gone by since it was last looked at, and the machine was off in between.
    Off(u64),
    /// The mark cannot be read.
    NoMark,
}

impl Mark {
    /// Begins anew: an administrator says that this clock is right.
    pub const fn new(now: Clocks) -> Self {
        Self { first: now, last: now.wall }
    }

    /// Compares; the mark to keep from now on.
    pub fn judge(&self, now: Clocks) -> Result<Self, Doubt> {
        if seeded("clock-believed") {
            return Ok(Self::new(now));
        }
        if now.boot != self.first.boot {
            let gone = now.wall.saturating_sub(self.last);
            let off = gone.saturating_sub(now.since_boot);
            return match self.last.saturating_sub(now.wall) {
                back if back > TOLERANCE => Err(Doubt::Back(back)),
                _ if off > OFF_MAX => Err(Doubt::Off(off)),
                _ => Ok(Self::new(now)),
            };
        }
        let elapsed = now.since_boot.saturating_sub(self.first.since_boot);
        let expected = self.first.wall.saturating_add(elapsed);
        let allowed = TOLERANCE + elapsed / DRIFT;
        match (expected.saturating_sub(now.wall), now.wall.saturating_sub(expected)) {
            (back, _) if back > allowed => Err(Doubt::Back(back)),
            (_, ahead) if ahead > allowed => Err(Doubt::Ahead(ahead)),
            // Moved on now and then: each time costs whoever keeps it a write.
            _ if now.wall.abs_diff(self.last) < TOLERANCE => Ok(*self),
            _ => Ok(Self { first: self.first, last: now.wall }),
        }
    }

    /// One line, with a sum against accidents.
    pub fn to_text(self) -> String {
        let body = self.body();
        format!("{body} {}\n", sum(&body))
    }

    fn body(&self) -> String {
        let boot = u128::from_le_bytes(self.first.boot);
        let Clocks { wall, since_boot, .. } = self.first;
        format!("dormouse clock 1 {boot:032x} {wall} {since_boot} {}", self.last)
    }

    /// Reads it again; the very text that [`Self::to_text`] makes, or nothing.
    pub fn from_text(text: &str) -> Result<Self, Doubt> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let ["dormouse", "clock", "1", boot, wall, since_boot, last, _] = words[..] else {
            return Err(Doubt::NoMark);
        };
        let number = |word: &str| word.parse::<u64>().map_err(|_| Doubt::NoMark);
        let boot = u128::from_str_radix(boot, 16).map_err(|_| Doubt::NoMark)?.to_le_bytes();
        let first = Clocks { wall: number(wall)?, since_boot: number(since_boot)?, boot };
        let mark = Self { first, last: number(last)? };
        if mark.to_text() == text { Ok(mark) } else { Err(Doubt::NoMark) }
    }
}

fn sum(body: &str) -> String {
    let sum = hash::body_check(body.as_bytes());
    format!("{:032x}", u128::from_le_bytes(sum))
}

struct Ago(u64);

impl fmt::Display for Ago {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = self.0 / MINUTE;
        match (minutes / 1440, minutes / 60 % 24, minutes % 60) {
            (0, 0, m) => write!(f, "{m} min"),
            (0, h, m) => write!(f, "{h} h {m} min"),
            (d, h, _) => write!(f, "{d} d {h} h"),
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Back(by) => write!(f, "the server's clock has gone back by {}", Ago(*by)),
            Self::Ahead(by) => {
                write!(f, "the server's clock has gone {} further than time has", Ago(*by))
            }
            Self::Off(by) => write!(
                f,
                "the server was off for {}, if its clock is right: nothing else tells",
                Ago(*by)
            ),
            Self::NoMark => f.write_str("what was noted of the server's clock cannot be read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 60 * MINUTE;

    fn at(wall: u64, since_boot: u64, boot: u8) -> Clocks {
        Clocks { wall: 1000 * DAY + wall, since_boot, boot: [boot; 16] }
    }

    #[test]
    fn both_clocks_together_are_believed() {
        let mut mark = Mark::new(at(0, HOUR, 1));
        for hour in 1..5000 {
            // Slewed by 0.05 %, as ntpd may.
            let slewed = hour * HOUR + hour * HOUR / 2000;
            mark = mark.judge(at(slewed, HOUR + hour * HOUR, 1)).unwrap();
        }
    }

    #[test]
    fn a_jump_is_doubted_until_it_is_confirmed() {
        let mark = Mark::new(at(0, HOUR, 1));
        let ahead = at(5 * HOUR, 2 * HOUR, 1);
        assert_eq!(mark.judge(ahead), Err(Doubt::Ahead(4 * HOUR)));
        // The mark is as it was, so the next look doubts as well.
        assert_eq!(mark.judge(at(6 * HOUR, 3 * HOUR, 1)), Err(Doubt::Ahead(4 * HOUR)));
        assert_eq!(mark.judge(at(0, 2 * HOUR, 1)), Err(Doubt::Back(HOUR)));
        let confirmed = Mark::new(ahead);
        assert!(confirmed.judge(at(6 * HOUR, 3 * HOUR, 1)).is_ok());
    }

    #[test]
    fn small_steps_add_up() {
        let mut mark = Mark::new(at(0, 0, 1));
        let step = |n: u64| at(n * (HOUR + 4 * MINUTE), n * HOUR, 1);
        mark = mark.judge(step(1)).unwrap();
        mark = mark.judge(step(2)).unwrap();
        assert_eq!(mark.judge(step(3)), Err(Doubt::Ahead(12 * MINUTE)));
    }

    #[test]
    fn after_a_start_the_last_look_counts() {
        let old = Mark::new(at(0, 50 * DAY, 1)).judge(at(DAY, 51 * DAY, 1)).unwrap();
        let up = HOUR;
        assert!(old.judge(at(DAY + OFF_MAX + up, up, 2)).is_ok());
        let off = old.judge(at(DAY + OFF_MAX + up + 1, up, 2));
        assert_eq!(off, Err(Doubt::Off(OFF_MAX + 1)));
        assert_eq!(old.judge(at(DAY - HOUR, up, 2)), Err(Doubt::Back(HOUR)));
        // Up for months without a look, as when nothing was to expire.
        assert!(old.judge(at(91 * DAY, 90 * DAY, 2)).is_ok());
    }

    #[test]
    fn a_mark_survives_its_text_and_no_other() {
        let mark = Mark::new(at(0, 50 * DAY, 7)).judge(at(DAY, 51 * DAY, 7)).unwrap();
        let text = mark.to_text();
        assert_eq!(Mark::from_text(&text), Ok(mark));
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let read = Mark::from_text(core::str::from_utf8(&bytes).unwrap());
            assert_eq!(read, Err(Doubt::NoMark), "byte {at}");
        }
        assert_eq!(Mark::from_text(""), Err(Doubt::NoMark));
        let told = Doubt::Ahead(26 * HOUR).to_string();
        assert_eq!(told, "the server's clock has gone 1 d 2 h further than time has");
    }
}
