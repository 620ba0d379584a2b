//! Who may come in before it has said who it is.
//!
//! Owns: the places for strangers and who gets one. Invariant: there are at most so many
//! strangers, in all and of one group of addresses; a stranger that was let in is not put out
//! before its hello can have come ([`HELLO_GRACE`]), nor, after that, within [`GRACE`], the time
//! of an honest handshake. So whoever floods the server holds places, and cannot keep others
//! from theirs: places change hands, and the crowd pays first.
//! Leaves to others: sockets, threads, and what a stranger says.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// What a stranger gets for its TLS hello, which an honest one sends behind the last packet of
/// its connect: it is there before a place is, but for packets that were lost.
const HELLO_GRACE: Duration = Duration::from_millis(250);
/// What it gets from its hello on: the rest of the handshake and a greeting over a link of
/// 600 ms.
const GRACE: Duration = Duration::from_secs(1);

/// So many of one group are no crowd: a household, or a small office behind one address.
const FEW: usize = 4;

/// Addresses that one peer may have: an IPv4 address, or the network of an IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Group(IpAddr);

impl Group {
    pub(super) fn of(from: IpAddr) -> Self {
        match from.to_canonical() {
            // A subscriber gets 2^64 of these.
            IpAddr::V6(v6) => Self(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into()),
            v4 => Self(v4),
        }
    }
}

/// What is done about a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is a place.
    Admit,
    /// This one has to go for it.
    Replace(u64),
    /// A place will be had after this time, at the latest.
    Wait(Duration),
    /// Too many of its group, and all of them new.
    Refuse,
}

#[derive(Debug)]
struct Row {
    group: Group,
    /// It is not put out before.
    safe_until: Instant,
    greeted: bool,
}

/// The strangers that are in.
#[derive(Debug)]
pub(super) struct Strangers {
    all_max: usize,
    group_max: usize,
    rows: HashMap<u64, Row>,
    /// Those of a group, by the time until which they are safe, and by their number.
    groups: HashMap<Group, BTreeSet<(Instant, u64)>>,
}

impl Strangers {
    pub(super) fn new(all_max: usize, group_max: usize) -> Self {
        Self { all_max, group_max, rows: HashMap::new(), groups: HashMap::new() }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// What is to be done about one more of this group.
    pub(super) fn verdict(&self, group: Group, now: Instant) -> Verdict {
        let own = self.groups.get(&group);
        if let Some(own) = own.filter(|own| own.len() >= self.group_max) {
            return match Self::first(own, now) {
                Some((id, wait)) if wait.is_zero() => Verdict::Replace(id),
                _ => Verdict::Refuse,
            };
        }
        if self.rows.len() < self.all_max {
            return Verdict::Admit;
        }
        self.of_the_crowds(now)
    }

    /// Who goes: the first of the largest group that has one past its grace. But a few that come
    /// from one place have nothing to pay for while there are crowds: these are waited for. (More
    /// than a few do pay, however large the others are. Else half of an old crowd would be safe
    /// behind a new one.)
    fn of_the_crowds(&self, now: Instant) -> Verdict {
        let largest = self.groups.values().map(BTreeSet::len).max().unwrap_or(0);
        let excused = FEW.min(largest / 2);
        let crowds = self.groups.values().filter(|ids| ids.len() > excused);
        let first = crowds.filter_map(|ids| Some((ids.len(), Self::first(ids, now)?)));
        // Past the grace before the others, then the larger, then the older.
        let next = first.min_by_key(|(len, (id, wait))| (*wait, Reverse(*len), *id));
        match next {
            Some((_, (id, wait))) if wait.is_zero() => Verdict::Replace(id),
            Some((_, (_, wait))) => Verdict::Wait(wait),
            None => Verdict::Refuse,
        }
    }

    /// Who is the first of these to be put out, and in what time.
    fn first(of: &BTreeSet<(Instant, u64)>, now: Instant) -> Option<(u64, Duration)> {
        let (safe_until, id) = of.first()?;
        Some((*id, safe_until.saturating_duration_since(now)))
    }

    /// A newcomer that was admitted. `id` is greater than those before.
    pub(super) fn add(&mut self, id: u64, group: Group, now: Instant) {
        let row = Row { group, safe_until: now + HELLO_GRACE, greeted: false };
        self.groups.entry(group).or_default().insert((row.safe_until, id));
        self.rows.insert(id, row);
    }

    /// Its hello has come. Once: who says hello again gains nothing.
    pub(super) fn greeted(&mut self, id: u64, now: Instant) {
        if self.rows.get(&id).is_none_or(|row| row.greeted) {
            return;
        }
        self.hold(id);
        if let Some(row) = self.rows.get_mut(&id) {
            row.greeted = true;
            row.safe_until = now + GRACE;
        }
        self.loosen(id);
    }

    /// It is not put out until [`Self::loosen`]; it still counts in all.
    pub(super) fn hold(&mut self, id: u64) {
        let Some(row) = self.rows.get(&id) else { return };
        if let Some(of_group) = self.groups.get_mut(&row.group) {
            of_group.remove(&(row.safe_until, id));
            if of_group.is_empty() {
                self.groups.remove(&row.group);
            }
        }
    }

    /// It may be put out again.
    pub(super) fn loosen(&mut self, id: u64) {
        if let Some(row) = self.rows.get(&id) {
            self.groups.entry(row.group).or_default().insert((row.safe_until, id));
        }
    }

    /// It is no stranger any more, or gone. Whether it was one.
    pub(super) fn remove(&mut self, id: u64) -> bool {
        self.hold(id);
        self.rows.remove(&id).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(n: u8) -> Group {
        Group::of(IpAddr::from([10, 0, 0, n]))
    }

    /// One that has said hello.
    fn add(all: &mut Strangers, id: u64, group: Group, now: Instant) {
        all.add(id, group, now);
        all.greeted(id, now);
    }

    /// Eight places, four of one group. Each entry of `of` is a group, from number 0 on.
    fn full(of: &[u8], now: Instant) -> Strangers {
        let mut all = Strangers::new(8, 4);
        for (id, n) in of.iter().enumerate() {
            add(&mut all, id as u64, group(*n), now);
        }
        all
    }

    #[test]
    fn who_says_no_hello_goes_before_those_who_do_and_one_hello_counts() {
        let now = Instant::now();
        let mut all = full(&[1, 2, 2, 3, 3, 4, 4], now);
        all.add(7, group(4), now);
        assert_eq!(all.verdict(group(9), now), Verdict::Wait(HELLO_GRACE));
        assert_eq!(all.verdict(group(9), now + HELLO_GRACE), Verdict::Replace(7));
        all.greeted(7, now + HELLO_GRACE);
        all.greeted(0, now + GRACE / 2);
        let later = now + GRACE;
        assert_eq!(all.verdict(group(9), later), Verdict::Replace(5));
        (1..7).for_each(|id| _ = all.remove(id));
        (8..14).for_each(|id| add(&mut all, id, group(4 + (id / 11) as u8), later));
        all.greeted(7, later);
        assert_eq!(all.verdict(group(9), later + HELLO_GRACE), Verdict::Replace(7));
    }

    #[test]
    fn the_oldest_of_the_largest_crowd_goes_first_and_not_within_its_grace() {
        let now = Instant::now();
        let all = full(&[1, 2, 2, 3, 3, 3, 4, 4], now);
        assert_eq!(all.verdict(group(9), now), Verdict::Wait(GRACE));
        let later = now + GRACE / 4;
        assert_eq!(all.verdict(group(9), later), Verdict::Wait(GRACE * 3 / 4));
        assert_eq!(all.verdict(group(9), now + GRACE), Verdict::Replace(3));
    }

    /// Newcomers of many groups at once: each gets its place when somebody is of age, in
    /// whichever crowd, and not one a second.
    #[test]
    fn crowds_that_are_new_do_not_shield_those_that_are_old() {
        let now = Instant::now();
        let mut all = full(&[1, 1, 2, 2], now);
        (4..8).for_each(|id| add(&mut all, id, group(3 + (id == 7) as u8), now + GRACE));
        assert_eq!(all.verdict(group(9), now + GRACE), Verdict::Replace(0));
        // But who is alone does not go for a crowd, however new that is.
        let mut all = full(&[1], now);
        (1..5).for_each(|id| add(&mut all, id, group(2), now + GRACE));
        (5..8).for_each(|id| add(&mut all, id, group(3), now + GRACE));
        assert_eq!(all.verdict(group(9), now + GRACE), Verdict::Wait(GRACE));
        assert_eq!(all.verdict(group(9), now + 2 * GRACE), Verdict::Replace(1));
    }

    /// A crowd that has shrunk to half of a new one goes on paying, down to a few.
    #[test]
    fn an_old_crowd_is_not_safe_behind_a_larger_new_one() {
        let now = Instant::now();
        let mut all = Strangers::new(32, 24);
        (0..8).for_each(|id| add(&mut all, id, group(1), now));
        (8..32).for_each(|id| add(&mut all, id, group(2), now + GRACE / 2));
        for id in 0..4 {
            assert_eq!(all.verdict(group(9), now + GRACE), Verdict::Replace(id));
            all.remove(id);
            add(&mut all, 32 + id, group(3), now + GRACE);
        }
        assert_eq!(all.verdict(group(9), now + GRACE), Verdict::Wait(GRACE / 2));
    }

    #[test]
    fn a_group_at_its_limit_pays_by_itself() {
        let now = Instant::now();
        let all = full(&[1, 2, 2, 2, 2], now);
        assert_eq!(all.verdict(group(2), now), Verdict::Refuse);
        assert_eq!(all.verdict(group(2), now + GRACE), Verdict::Replace(1));
        assert_eq!(all.verdict(group(1), now), Verdict::Admit);
    }

    #[test]
    fn a_place_that_is_given_back_is_there() {
        let now = Instant::now();
        let mut all = full(&[1, 2, 3, 4, 5, 6, 7, 8], now);
        assert_ne!(all.verdict(group(9), now), Verdict::Admit);
        assert!(all.remove(5) && !all.remove(5));
        assert_eq!(all.verdict(group(9), now), Verdict::Admit);
        (0..8).for_each(|id| {
            all.remove(id);
        });
        assert!(all.rows.is_empty() && all.groups.is_empty());
    }

    #[test]
    fn who_is_being_listened_to_is_not_put_out() {
        let now = Instant::now();
        let mut all = full(&[1, 2, 2, 2, 3, 3, 4, 4], now);
        all.hold(1);
        assert_eq!(all.verdict(group(9), now + GRACE), Verdict::Replace(2));
        all.loosen(1);
        assert_eq!(all.verdict(group(9), now + GRACE), Verdict::Replace(1));
        (0..8).for_each(|id| all.hold(id));
        assert_eq!(all.verdict(group(9), now + GRACE), Verdict::Refuse);
        all.remove(7);
        assert_eq!(all.verdict(group(9), now), Verdict::Admit);
    }

    #[test]
    fn a_network_of_ipv6_is_one_group_and_a_mapped_address_is_its_ipv4() {
        let of = |text: &str| Group::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.7"), of("10.0.0.7"));
        assert_ne!(of("10.0.0.7"), of("10.0.0.8"));
    }
}
