//! Nodes and pages of maps that were used lately: of one vault, or of all vaults of a process.
//!
//! Invariant: there are never more than so many, however many vaults share them; what one vault
//! put in is found by that vault only. Leaves to others: checking what is found
//! ([`super::Reading`]), and when what is not used any more goes ([`MapCache::age`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use dormouse_format::limits::LEVEL_MAX;
use dormouse_format::{RecordId, VaultId};

use super::{Children, Loaded};
use crate::locks::lock;

/// Pages kept in memory at most (about 550 KiB each), unless something else is said.
const PAGES_KEPT: usize = 32;
/// Nodes kept in memory for each page (3 KiB each).
const NODES_EACH: usize = 32;

type Key = (VaultId, RecordId);

struct Lru<V> {
    map: HashMap<Key, (V, u64)>,
    clock: u64,
    /// What was last used before this goes when it is aged next.
    aged: u64,
    limit: usize,
}

impl<V: Clone> Lru<V> {
    fn new(limit: usize) -> Self {
        Self { map: HashMap::new(), clock: 0, aged: 0, limit }
    }

    fn get(&mut self, key: &Key) -> Option<V> {
        self.clock += 1;
        let (value, used) = self.map.get_mut(key)?;
        *used = self.clock;
        Some(value.clone())
    }

    fn put(&mut self, key: Key, value: V) {
        if self.map.len() >= self.limit {
            let oldest = self.map.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            oldest.map(|key| self.map.remove(&key));
        }
        self.clock += 1;
        self.map.insert(key, (value, self.clock));
    }

    fn age(&mut self) {
        let aged = self.aged;
        self.map.retain(|_, (_, used)| *used > aged);
        self.map.shrink_to_fit();
        self.aged = self.clock;
    }
}

struct Kept {
    pages: Mutex<Lru<Arc<Loaded>>>,
    nodes: Mutex<Lru<Arc<Children>>>,
}

/// Room for nodes and pages, which several vaults may share.
#[derive(Clone)]
pub struct MapCache(Arc<Kept>);

impl core::fmt::Debug for MapCache {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "MapCache({} pages)", self.pages())
    }
}

impl MapCache {
    /// Room for so many pages, of about 550 KiB each, and the nodes above them.
    pub fn new(pages: usize) -> Self {
        Self::with(pages, pages * NODES_EACH)
    }

    fn with(pages: usize, nodes: usize) -> Self {
        let (pages, nodes) = (Lru::new(pages.max(1)), Lru::new(nodes.max(1)));
        Self(Arc::new(Kept { pages: Mutex::new(pages), nodes: Mutex::new(nodes) }))
    }

    /// Lets go what was not used since this was called last.
    pub fn age(&self) {
        lock(&self.0.pages).age();
        lock(&self.0.nodes).age();
    }

    /// Pages that are kept.
    pub fn pages(&self) -> usize {
        lock(&self.0.pages).map.len()
    }
}

/// What one vault has in there.
pub(crate) struct Cache {
    kept: MapCache,
    vault: VaultId,
}

impl Cache {
    /// A part of what is shared.
    pub(crate) fn of(kept: &MapCache, vault: VaultId) -> Self {
        Self { kept: kept.clone(), vault }
    }

    /// For a walk that comes to each page once.
    pub(crate) fn small() -> Self {
        Self { kept: MapCache::with(1, LEVEL_MAX.into()), vault: VaultId::ZERO }
    }

    pub(super) fn page(&self, id: &RecordId) -> Option<Arc<Loaded>> {
        lock(&self.kept.0.pages).get(&(self.vault, *id))
    }

    pub(super) fn put_page(&self, id: RecordId, page: Arc<Loaded>) {
        lock(&self.kept.0.pages).put((self.vault, id), page);
    }

    pub(super) fn node(&self, id: &RecordId) -> Option<Arc<Children>> {
        lock(&self.kept.0.nodes).get(&(self.vault, *id))
    }

    pub(super) fn put_node(&self, id: RecordId, node: Arc<Children>) {
        lock(&self.kept.0.nodes).put((self.vault, id), node);
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { kept: MapCache::new(PAGES_KEPT), vault: VaultId::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> (RecordId, Arc<Children>) {
        let mut id = RecordId::ZERO;
        id.0[0] = n;
        (id, Arc::new([super::super::Link::ZERO; 64]))
    }

    #[test]
    fn vaults_share_the_room_and_see_nothing_of_one_another() {
        let kept = MapCache::with(1, 3);
        let [a, b] = [1, 2].map(|n| Cache::of(&kept, VaultId([n; 32])));
        let put = |cache: &Cache, n| {
            let (id, node) = node(n);
            cache.put_node(id, node);
        };
        put(&a, 1);
        assert!(a.node(&node(1).0).is_some() && b.node(&node(1).0).is_none());
        put(&b, 1);
        put(&b, 2);
        assert!(a.node(&node(1).0).is_some(), "there is room for three");
        put(&b, 3);
        assert!(b.node(&node(1).0).is_none(), "the one that was not used for longest goes");
        assert!(a.node(&node(1).0).is_some() && b.node(&node(3).0).is_some());
    }

    #[test]
    fn what_is_not_used_between_two_calls_goes() {
        let kept = MapCache::with(1, 8);
        let cache = Cache::of(&kept, VaultId::ZERO);
        for n in 1..=3 {
            let (id, node) = node(n);
            cache.put_node(id, node);
        }
        kept.age();
        assert!(cache.node(&node(2).0).is_some(), "it was used since the beginning");
        kept.age();
        let there =
            [1, 2, 3].map(|n| lock(&kept.0.nodes).map.contains_key(&(VaultId::ZERO, node(n).0)));
        assert_eq!(there, [false, true, false]);
        kept.age();
        assert!(lock(&kept.0.nodes).map.is_empty());
    }
}
