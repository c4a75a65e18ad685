//! What was loaded or stored last, so that a write sends only what has changed since.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use crate::patch::Snapshot;
use crate::v1;

/// An LRU cache of snapshots: of the workflows that were loaded or stored last. Shared by the
/// clones of a provider.
#[derive(Clone)]
pub(crate) struct Cache(Arc<Mutex<Inner>>);

struct Inner {
    /// The maximum `size`.
    capacity: usize,
    /// The execution pointers of all workflows, plus one for each workflow.
    size: usize,
    uses: u64,
    snapshots: HashMap<String, (u64, Arc<Snapshot>)>,
    /// The ids of the workflows by their last use, the least recent first.
    order: BTreeMap<u64, String>,
}

impl Cache {
    pub(crate) fn new(capacity: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            capacity,
            size: 0,
            uses: 0,
            snapshots: HashMap::new(),
            order: BTreeMap::new(),
        })))
    }

    /// The snapshot of a workflow.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Snapshot>> {
        let inner = self.lock();
        inner
            .snapshots
            .get(id)
            .map(|(_, snapshot)| snapshot.clone())
    }

    /// Remembers a workflow as it is stored at this revision; evicts the least recently used
    /// ones if the capacity is exceeded.
    pub(crate) fn put(&self, message: &v1::WorkflowInstance, revision: i64) {
        let mut inner = self.lock();
        let previous = inner.remove(&message.id);
        let size = message.execution_pointers.len() + 1;
        if size > inner.capacity {
            return;
        }
        while inner.size + size > inner.capacity {
            let Some(oldest) = inner.order.values().next().cloned() else {
                break;
            };
            inner.remove(&oldest);
        }
        let mut snapshot = Snapshot::new(message, revision);
        if let Some(previous) = previous {
            snapshot.keep_name_of(&previous);
        }
        inner.uses += 1;
        let at = inner.uses;
        inner.size += size;
        inner.order.insert(at, message.id.clone());
        inner
            .snapshots
            .insert(message.id.clone(), (at, Arc::new(snapshot)));
    }

    /// Forgets a workflow, after a write that failed or whose outcome is unknown.
    pub(crate) fn forget(&self, id: &str) {
        self.lock().remove(id);
    }

    /// Remembers nothing from now on: the server does not support patches.
    pub(crate) fn disable(&self) {
        let mut inner = self.lock();
        inner.capacity = 0;
        inner.size = 0;
        inner.snapshots.clear();
        inner.order.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Nothing panics while the lock is held.
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    fn remove(&mut self, id: &str) -> Option<Arc<Snapshot>> {
        let (at, snapshot) = self.snapshots.remove(id)?;
        self.order.remove(&at);
        self.size -= snapshot.size();
        Some(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::tests::workflow;

    #[test]
    fn the_cache_is_bounded_and_evicts_the_least_recently_used() {
        let cache = Cache::new(6);
        for id in ["1", "2", "3"] {
            cache.put(&workflow(id, &[("a", 0)]), 1);
        }
        cache.put(&workflow("1", &[("a", 0)]), 2);
        cache.put(&workflow("4", &[("a", 0)]), 1);
        let known: Vec<bool> = ["1", "2", "3", "4"]
            .map(|id| cache.get(id).is_some())
            .into();
        assert_eq!(known, [true, false, true, true]);
        cache.put(&workflow("long", &[("a", 0); 9]), 1);
        assert!(cache.get("long").is_none());
        cache.forget("1");
        assert!(cache.get("1").is_none());
        cache.disable();
        cache.put(&workflow("5", &[]), 1);
        assert!(cache.get("4").is_none() && cache.get("5").is_none());
    }

    #[test]
    fn an_empty_name_is_the_one_that_is_stored() {
        let cache = Cache::new(10);
        cache.put(&workflow("w", &[]), 1);
        let mut nameless = workflow("w", &[]);
        nameless.name.clear();
        cache.put(&nameless, 2);
        let patch = cache.get("w").unwrap().patch(&workflow("w", &[])).unwrap();
        assert_eq!(patch.header_mask, None);
    }
}
