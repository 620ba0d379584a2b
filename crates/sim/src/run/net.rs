//! Links between clients and the server: in order, late, cut, half open.
//!
//! A link has two directions, each a queue. A message arrives after a delay, never
//! before the one before it. A direction that is black takes messages and delivers
//! none. Either end may be gone while the other does not know: what is on the way to
//! an end that still listens arrives.

use std::collections::{BTreeMap, VecDeque};

use crate::random::Lcg;

/// A link.
pub type LinkId = u64;

/// Which end a message goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum To {
    /// The server.
    Server,
    /// The client.
    Client,
}

/// How bad the network is: chances in a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// That a message is the last before the link is cut for both ends.
    pub cut: u64,
    /// That a direction goes black from a message on.
    pub black: u64,
    /// That a message is late by seconds to minutes.
    pub stall: u64,
}

#[derive(Debug, Default)]
struct Pipe {
    queue: VecDeque<(u64, Vec<u8>)>,
    last: u64,
    black: bool,
    deaf: bool,
}

#[derive(Debug)]
struct Link {
    client: usize,
    up: Pipe,
    down: Pipe,
}

impl Link {
    fn pipe(&mut self, to: To) -> &mut Pipe {
        match to {
            To::Server => &mut self.up,
            To::Client => &mut self.down,
        }
    }
}

/// What became of a message that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It arrives at this time.
    Arrives(u64),
    /// It never arrives.
    Lost,
    /// It never arrives, and both ends learn that the link is cut.
    Cut,
}

/// All links.
#[derive(Debug)]
pub struct Net {
    links: BTreeMap<LinkId, Link>,
    next: LinkId,
    random: Lcg,
    /// How bad it is now.
    pub weather: Weather,
    /// Directions that went black.
    pub blacked: u64,
    /// Messages that were late.
    pub stalled: u64,
}

const MS: u64 = 1_000_000;

impl Net {
    /// A network without links.
    pub const fn new(random: Lcg, weather: Weather) -> Self {
        Self { links: BTreeMap::new(), next: 1, random, weather, blacked: 0, stalled: 0 }
    }

    /// A new link of this client.
    pub fn open(&mut self, client: usize) -> LinkId {
        let id = self.next;
        self.next += 1;
        let link = Link { client, up: Pipe::default(), down: Pipe::default() };
        self.links.insert(id, link);
        id
    }

    /// Whose link it is.
    pub fn client(&self, id: LinkId) -> Option<usize> {
        self.links.get(&id).map(|l| l.client)
    }

    /// Sends a message.
    pub fn send(&mut self, id: LinkId, to: To, now: u64, frame: Vec<u8>) -> Sent {
        let (weather, random) = (self.weather, &mut self.random);
        let Some(link) = self.links.get_mut(&id) else { return Sent::Lost };
        let dice = random.below(1000);
        if !link.pipe(to).black && dice < weather.cut {
            // What is on the way may still arrive; nothing after it does.
            (link.up.black, link.down.black) = (true, true);
            return Sent::Cut;
        }
        let pipe = link.pipe(to);
        if !pipe.black && dice < weather.cut + weather.black {
            pipe.black = true;
            self.blacked += 1;
        }
        if pipe.black || pipe.deaf {
            return Sent::Lost;
        }
        let mut delay = (1 + random.below(20)) * MS;
        if dice < weather.cut + weather.black + weather.stall {
            delay += random.below(90_000) * MS;
            self.stalled += 1;
        }
        pipe.last = pipe.last.max(now + delay);
        pipe.queue.push_back((pipe.last, frame));
        Sent::Arrives(pipe.last)
    }

    /// The next message that has arrived at an end.
    pub fn arrived(&mut self, id: LinkId, to: To, now: u64) -> Option<Vec<u8>> {
        let pipe = self.links.get_mut(&id)?.pipe(to);
        match pipe.queue.front() {
            Some((at, _)) if *at <= now => pipe.queue.pop_front().map(|(_, frame)| frame),
            _ => None,
        }
    }

    /// When all that is on the way to an end has arrived.
    pub fn drained(&self, id: LinkId, to: To, now: u64) -> u64 {
        let last = self.links.get(&id).map(|l| match to {
            To::Server => l.up.last,
            To::Client => l.down.last,
        });
        last.unwrap_or(0).max(now) + MS
    }

    /// An end goes away: nothing is delivered to it any more.
    pub fn leave(&mut self, id: LinkId, end: To) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let pipe = link.pipe(end);
        pipe.deaf = true;
        pipe.queue.clear();
        if link.up.deaf && link.down.deaf {
            self.links.remove(&id);
        }
    }

    /// All links that are left.
    pub fn all(&self) -> Vec<LinkId> {
        self.links.keys().copied().collect()
    }
}
