//! A cache that is bounded by the sizes of its values.

use std::collections::{BTreeMap, HashMap};

/// The values that were put or touched last, by id.
pub(super) struct Lru<V> {
    /// The maximum `size`.
    capacity: usize,
    /// The sizes of all values together.
    size: usize,
    uses: u64,
    values: HashMap<String, Entry<V>>,
    /// The ids by their last use, the least recent first.
    order: BTreeMap<u64, String>,
}

struct Entry<V> {
    used: u64,
    size: usize,
    value: V,
}

impl<V> Lru<V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            size: 0,
            uses: 0,
            values: HashMap::new(),
            order: BTreeMap::new(),
        }
    }

    /// A value; this is no use of it.
    pub(super) fn get(&self, id: &str) -> Option<&V> {
        self.values.get(id).map(|entry| &entry.value)
    }

    /// A value, which is used.
    pub(super) fn touch(&mut self, id: &str) -> Option<&V> {
        let entry = self.values.get_mut(id)?;
        self.uses += 1;
        if let Some(id) = self.order.remove(&entry.used) {
            self.order.insert(self.uses, id);
        }
        entry.used = self.uses;
        Some(&entry.value)
    }

    /// Puts a value in the place of an earlier one; evicts the least recently used ones if the
    /// capacity is exceeded. One that is larger than that is not put.
    pub(super) fn put(&mut self, id: String, value: V, size: usize) {
        self.remove(&id);
        if size > self.capacity {
            return;
        }
        while self.size + size > self.capacity {
            let Some(oldest) = self.order.values().next().cloned() else {
                break;
            };
            self.remove(&oldest);
        }
        self.uses += 1;
        let used = self.uses;
        self.size += size;
        self.order.insert(used, id.clone());
        self.values.insert(id, Entry { used, size, value });
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<V> {
        let entry = self.values.remove(id)?;
        self.order.remove(&entry.used);
        self.size -= entry.size;
        Some(entry.value)
    }

    /// Whether a value of this size can be put.
    pub(super) fn has_room_for(&self, size: usize) -> bool {
        size <= self.capacity
    }

    /// Whether any value can be put.
    pub(super) fn is_enabled(&self) -> bool {
        self.capacity > 0
    }

    /// Removes everything, and takes nothing from now on.
    pub(super) fn disable(&mut self) {
        *self = Self::new(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_touched_stays() {
        let mut lru = Lru::new(2);
        lru.put("a".into(), 1, 1);
        lru.put("b".into(), 2, 1);
        assert_eq!(lru.touch("a"), Some(&1));
        lru.put("c".into(), 3, 1);
        assert_eq!(
            (lru.get("a"), lru.get("b"), lru.get("c")),
            (Some(&1), None, Some(&3))
        );
    }

    #[test]
    fn a_value_that_is_too_large_takes_the_place_of_nothing_but_the_earlier_one() {
        let mut lru = Lru::new(2);
        lru.put("a".into(), 1, 1);
        lru.put("b".into(), 2, 1);
        lru.put("b".into(), 3, 3);
        assert_eq!((lru.get("a"), lru.get("b")), (Some(&1), None));
        assert_eq!(lru.size, 1);
        lru.disable();
        lru.put("a".into(), 1, 1);
        assert!(lru.get("a").is_none() && lru.order.is_empty());
    }
}
