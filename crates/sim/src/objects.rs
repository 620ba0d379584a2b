//! Object storage that answers late, twice, or not.
//!
//! Owns: what each object holds, and every content that was ever made under a name. Invariants:
//! what becomes of a request depends on the seed, the request, and how often it was made, not on
//! which thread came first; an object that was made once under a name is never made there with
//! another content: that is noted as broken. A put whose answer was lost may be done at once,
//! never, or long after, when another server has gone on.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use dormouse_bucket::{Error, Item, Objects, Put, Result};
use dormouse_crypt::hash;

use crate::random::Lcg;

/// Requests of one content under one name to each kind of fault.
const OF: u64 = 1000;

#[derive(Debug, Default)]
struct Inner {
    seed: u64,
    objects: BTreeMap<String, Bytes>,
    /// What was ever made.
    ever: HashMap<String, Bytes>,
    /// How often each request was made.
    tries: HashMap<(&'static str, String), u64>,
    /// Puts that are under way, and whose senders have given up.
    late: Vec<(String, Bytes)>,
    rate: u64,
    /// So many requests more are not answered.
    away: u64,
    careless: bool,
    stays: bool,
    counts: Counts,
    broken: Option<String>,
}

/// What became of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named after what it counts")]
pub struct Counts {
    pub made: u64,
    pub taken: u64,
    pub unanswered: u64,
    /// Puts that were done when nobody waited for them any more.
    pub late: u64,
}

/// A bucket. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Bucketful(Arc<Mutex<Inner>>);

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    /// It is done, and the answer is lost.
    Unheard,
    /// It is not done.
    Lost,
    /// It may be done later.
    UnderWay,
}

fn away(what: &str) -> Error {
    Error::Away { what: what.into(), why: "the simulator".into() }
}

impl Inner {
    fn fate(&mut self, verb: &'static str, name: &str, content: &[u8]) -> Fate {
        // What the probe of create-if-absent asks comes from several threads.
        if name.starts_with("probe") {
            return Fate::Answered;
        }
        if self.away > 0 {
            self.away -= 1;
            self.counts.unanswered += 1;
            return Fate::Lost;
        }
        let key = format!("{verb} {name} {:x}", u128::from_le_bytes(hash::body_check(content)));
        let tries = self.tries.entry((verb, key.clone())).or_default();
        *tries += 1;
        let text = format!("{} {key} {tries}", self.seed);
        let mut dice = Lcg(u128::from_le_bytes(hash::body_check(text.as_bytes())) as u64);
        if dice.below(OF) >= self.rate {
            return Fate::Answered;
        }
        self.counts.unanswered += 1;
        [Fate::Unheard, Fate::Lost, Fate::UnderWay][dice.below(3) as usize]
    }

    fn make(&mut self, name: &str, bytes: &Bytes) -> Put {
        if self.objects.contains_key(name) && !self.careless {
            self.counts.taken += 1;
            return Put::Taken;
        }
        let before = self.ever.insert(name.to_owned(), bytes.clone());
        if before.is_some_and(|before| before != bytes) && !name.starts_with("probe") {
            self.broken.get_or_insert_with(|| format!("{name} was made twice, with two contents"));
        }
        self.counts.made += 1;
        self.objects.insert(name.to_owned(), bytes.clone());
        Put::Made
    }
}

impl Bucketful {
    /// An empty bucket, of which of 1,000 requests so many fail.
    pub fn new(seed: u64, rate: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner { seed, rate, ..Inner::default() })))
    }

    /// Of 1,000 requests so many fail from now on.
    pub fn fail(&self, rate: u64) {
        self.0.lock().unwrap().rate = rate;
    }

    /// So many requests are not answered.
    pub fn go_away(&self, requests: u64) {
        self.0.lock().unwrap().away = requests;
    }

    /// Whether a name can be taken twice: what a storage is like that must be refused.
    pub fn careless(&self, careless: bool) {
        self.0.lock().unwrap().careless = careless;
    }

    /// Whether nothing may be removed.
    pub fn stays(&self, stays: bool) {
        self.0.lock().unwrap().stays = stays;
    }

    /// One of the puts that are still under way is done, or nothing.
    pub fn land(&self, random: &mut Lcg) {
        let mut inner = self.0.lock().unwrap();
        if inner.late.is_empty() {
            return;
        }
        let at = random.below(inner.late.len() as u64) as usize;
        let (name, bytes) = inner.late.swap_remove(at);
        inner.counts.late += u64::from(inner.make(&name, &bytes) == Put::Made);
    }

    /// What became of requests.
    pub fn counts(&self) -> Counts {
        self.0.lock().unwrap().counts
    }

    /// The rule that was broken, if one was.
    pub fn broken(&self) -> Option<String> {
        self.0.lock().unwrap().broken.clone()
    }

    /// A number for all that there is: the same seed gives the same.
    pub fn sum(&self) -> u64 {
        let inner = self.0.lock().unwrap();
        let mut sum = 0_u64;
        // Who wins a probe is up to the threads that ask.
        for (name, bytes) in inner.objects.iter().filter(|(n, _)| !n.starts_with("probe")) {
            let check = hash::body_check(&[name.as_bytes(), bytes].concat());
            sum = sum.wrapping_mul(31).wrapping_add(u128::from_le_bytes(check) as u64);
        }
        sum
    }
}

impl Objects for Bucketful {
    fn put_new(&self, name: &str, bytes: Bytes) -> Result<Put> {
        let mut inner = self.0.lock().unwrap();
        match inner.fate("put", name, &bytes) {
            Fate::Answered => Ok(inner.make(name, &bytes)),
            Fate::Unheard => {
                inner.make(name, &bytes);
                Err(away("a put"))
            }
            Fate::Lost => Err(away("a put")),
            Fate::UnderWay => {
                inner.late.push((name.to_owned(), bytes));
                Err(away("a put"))
            }
        }
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>> {
        let mut inner = self.0.lock().unwrap();
        if inner.fate("get", name, &[]) != Fate::Answered {
            return Err(away("a get"));
        }
        let Some(bytes) = inner.objects.get(name) else { return Ok(None) };
        let Some(range) = range else { return Ok(Some(bytes.clone())) };
        let end = range.end.min(bytes.len() as u64) as usize;
        Ok(Some(bytes.slice((range.start as usize).min(end)..end)))
    }

    fn list(&self, below: &str) -> Result<Vec<Item>> {
        let mut inner = self.0.lock().unwrap();
        if inner.fate("list", below, &[]) != Fate::Answered {
            return Err(away("a listing"));
        }
        let prefix = if below.is_empty() { String::new() } else { format!("{below}/") };
        let within = inner.objects.iter().filter(|(name, _)| name.starts_with(&prefix));
        let item = |(name, bytes): (&String, &Bytes)| Item {
            name: name.clone(),
            size: bytes.len() as u64,
        };
        Ok(within.map(item).collect())
    }

    fn delete(&self, name: &str) -> Result<()> {
        let mut inner = self.0.lock().unwrap();
        if inner.stays {
            return Err(Error::Refused { what: "removing".into(), why: "the simulator".into() });
        }
        let fate = inner.fate("delete", name, &[]);
        if matches!(fate, Fate::Answered | Fate::Unheard) {
            inner.objects.remove(name);
        }
        if fate == Fate::Answered { Ok(()) } else { Err(away("a removal")) }
    }
}
