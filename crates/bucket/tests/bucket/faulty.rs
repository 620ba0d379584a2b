//! Objects whose every verb may fail before it did anything, or after it did all of it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use dormouse_bucket::{Error, Item, Objects, Put, Result};

/// Numbers that look random.
#[derive(Debug, Clone)]
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

pub struct Faulty {
    inner: Arc<dyn Objects>,
    numbers: Mutex<Numbers>,
    /// Of 1,000 verbs so many fail.
    pub rate: AtomicU64,
    /// Nothing answers.
    pub away: AtomicBool,
    /// Nothing is put.
    pub no_puts: AtomicBool,
    /// Nothing may be removed.
    pub no_deletes: AtomicBool,
    pub puts: AtomicU64,
    pub deleted: Mutex<Vec<String>>,
}

impl Faulty {
    pub fn over(inner: Arc<dyn Objects>, seed: u64, rate: u64) -> Arc<Self> {
        Arc::new(Self {
            inner,
            numbers: Mutex::new(Numbers(seed)),
            rate: AtomicU64::new(rate),
            away: AtomicBool::new(false),
            no_puts: AtomicBool::new(false),
            no_deletes: AtomicBool::new(false),
            puts: AtomicU64::new(0),
            deleted: Mutex::default(),
        })
    }

    fn does<T>(&self, verb: impl FnOnce() -> Result<T>) -> Result<T> {
        let away = || Error::Away { what: "a test".into(), why: "a fault".into() };
        if self.away.load(Ordering::Relaxed) {
            return Err(away());
        }
        let (fails, after) = {
            let mut numbers = self.numbers.lock().unwrap();
            (numbers.below(1000) < self.rate.load(Ordering::Relaxed), numbers.below(2) == 0)
        };
        if fails && !after {
            return Err(away());
        }
        let done = verb()?;
        if fails { Err(away()) } else { Ok(done) }
    }
}

impl Objects for Faulty {
    fn put_new(&self, name: &str, bytes: Bytes) -> Result<Put> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        if self.no_puts.load(Ordering::SeqCst) {
            return Err(Error::Away { what: "a put".into(), why: "a fault".into() });
        }
        self.does(|| self.inner.put_new(name, bytes))
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>> {
        self.does(|| self.inner.get(name, range))
    }

    fn list(&self, below: &str) -> Result<Vec<Item>> {
        self.does(|| self.inner.list(below))
    }

    fn delete(&self, name: &str) -> Result<()> {
        if self.no_deletes.load(Ordering::SeqCst) {
            return Err(Error::Refused { what: "removing".into(), why: "a policy".into() });
        }
        let done = self.does(|| self.inner.delete(name));
        self.deleted.lock().unwrap().push(name.into());
        done
    }
}
