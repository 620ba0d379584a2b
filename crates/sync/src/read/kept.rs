//! Proved parts of the map that are kept for the next request.
//!
//! Invariant: never more than the limit, and each under the hash that it was proved by. A hash
//! covers the place of a node or leaf, so that one store serves maps of several points.

use std::collections::HashMap;
use std::sync::Arc;

use dormouse_format::Hash;

/// Values by their hash, in two generations: what was not used for as long as it took to fill
/// one goes.
#[derive(Debug)]
pub(super) struct Kept<T> {
    young: HashMap<Hash, Arc<T>>,
    old: HashMap<Hash, Arc<T>>,
    /// Values of one generation.
    half: usize,
}

impl<T> Kept<T> {
    pub(super) fn new(limit: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: (limit / 2).max(1) }
    }

    pub(super) fn get(&mut self, hash: &Hash) -> Option<Arc<T>> {
        if let Some(value) = self.young.get(hash) {
            return Some(Arc::clone(value));
        }
        let value = self.old.remove(hash)?;
        self.put(*hash, Arc::clone(&value));
        Some(value)
    }

    pub(super) fn holds(&self, hash: &Hash) -> bool {
        self.young.contains_key(hash) || self.old.contains_key(hash)
    }

    pub(super) fn forget(&mut self, hash: &Hash) {
        self.young.remove(hash);
        self.old.remove(hash);
    }

    pub(super) fn put(&mut self, hash: Hash, value: Arc<T>) {
        if self.young.len() >= self.half {
            self.old = core::mem::take(&mut self.young);
        }
        self.young.insert(hash, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_number_is_bounded() {
        let mut kept = Kept::new(8);
        let hash = |i: u8| Hash([i; 32]);
        for i in 0..100 {
            kept.put(hash(i), Arc::new(i));
            assert_eq!(kept.get(&hash(0)).as_deref(), Some(&0), "after {i}");
            assert!(kept.young.len() <= 4 && kept.old.len() <= 4);
        }
        assert!(kept.holds(&hash(99)) && !kept.holds(&hash(50)));
    }
}
