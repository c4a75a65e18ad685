//! What was loaded or stored last, so that a write sends only what has changed since, and a load
//! of a long workflow that has not changed since receives only its header.

mod kept;
mod lru;

use std::sync::{Arc, Mutex};

use wfe_core::models::{ExecutionPointer, WorkflowInstance};

pub(crate) use self::kept::LONG;
use self::kept::{advanced, size_of, Kept};
use self::lru::Lru;
use crate::patch::{Change, Snapshot};

/// The snapshots of the workflows that were loaded or stored last, and the pointers of the long
/// ones among them. Shared by the clones of a provider.
#[derive(Clone)]
pub(crate) struct Cache(Arc<Mutex<Inner>>);

struct Inner {
    /// Their size: the execution pointers of all workflows, plus one for each workflow.
    snapshots: Lru<Arc<Snapshot>>,
    /// Their size: bytes, roughly.
    kept: Lru<Kept>,
}

impl Cache {
    /// `pointers`: the capacity for snapshots; `bytes`: for the pointers of long workflows, which
    /// are of no use without.
    pub(crate) fn new(pointers: usize, bytes: usize) -> Self {
        let bytes = if pointers == 0 { 0 } else { bytes };
        Self(Arc::new(Mutex::new(Inner {
            snapshots: Lru::new(pointers),
            kept: Lru::new(bytes),
        })))
    }

    /// The snapshot of a workflow.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Snapshot>> {
        self.lock().snapshots.get(id).cloned()
    }

    /// Remembers a workflow as it is stored; evicts the least recently used ones if the capacity
    /// is exceeded.
    pub(crate) fn put(&self, mut snapshot: Snapshot) {
        let mut inner = self.lock();
        let id = snapshot.id().to_string();
        if let Some(previous) = inner.snapshots.remove(&id) {
            snapshot.keep_name_of(&previous);
        }
        let size = snapshot.size();
        inner.snapshots.put(id, Arc::new(snapshot), size);
    }

    /// Whether anything is remembered.
    pub(crate) fn is_enabled(&self) -> bool {
        self.lock().snapshots.is_enabled()
    }

    /// Keeps the pointers of a workflow that was loaded, if it is long. `bytes`: the size of the
    /// message that it was received in.
    pub(crate) fn keep(&self, workflow: &WorkflowInstance, revision: i64, bytes: usize) {
        let pointers = &workflow.execution_pointers;
        let size = size_of(pointers, bytes);
        if pointers.len() < LONG || !self.lock().kept.has_room_for(size) {
            self.lock().kept.remove(&workflow.id);
            return;
        }
        // Outside the lock, because it takes long.
        let kept = Kept {
            revision,
            pointers: Arc::new(pointers.clone()),
            size,
        };
        self.lock().kept.put(workflow.id.clone(), kept, size);
    }

    /// The pointers of a long workflow, and at which revision it had them.
    pub(crate) fn kept(&self, id: &str) -> Option<(i64, Arc<Vec<ExecutionPointer>>)> {
        let mut inner = self.lock();
        let kept = inner.kept.touch(id)?;
        Some((kept.revision, kept.pointers.clone()))
    }

    /// A patch has been stored: what is kept of the workflow, if it is what the patch was made
    /// from, is brought to the new revision.
    pub(crate) fn advance(&self, workflow: &WorkflowInstance, change: &Change, revision: i64) {
        let kept = self.lock().kept.remove(&workflow.id);
        if let Some(kept) = kept.and_then(|kept| advanced(kept, workflow, change, revision)) {
            let size = kept.size;
            self.lock().kept.put(workflow.id.clone(), kept, size);
        }
    }

    /// Forgets a workflow, after a write that failed or whose outcome is unknown.
    pub(crate) fn forget(&self, id: &str) {
        let mut inner = self.lock();
        inner.snapshots.remove(id);
        inner.kept.remove(id);
    }

    /// Remembers nothing from now on: the server does not support patches.
    pub(crate) fn disable(&self) {
        let mut inner = self.lock();
        inner.snapshots.disable();
        inner.kept.disable();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Nothing panics while the lock is held.
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::tests::workflow;

    #[test]
    fn the_cache_is_bounded_and_evicts_the_least_recently_used() {
        let cache = Cache::new(6, 0);
        for id in ["1", "2", "3"] {
            cache.put(Snapshot::new(&workflow(id, &[("a", 0)]), 1));
        }
        cache.put(Snapshot::new(&workflow("1", &[("a", 0)]), 2));
        cache.put(Snapshot::new(&workflow("4", &[("a", 0)]), 1));
        let known: Vec<bool> = ["1", "2", "3", "4"]
            .map(|id| cache.get(id).is_some())
            .into();
        assert_eq!(known, [true, false, true, true]);
        cache.put(Snapshot::new(&workflow("long", &[("a", 0); 9]), 1));
        assert!(cache.get("long").is_none());
        cache.forget("1");
        assert!(cache.get("1").is_none());
        cache.disable();
        cache.put(Snapshot::new(&workflow("5", &[]), 1));
        assert!(cache.get("4").is_none() && cache.get("5").is_none());
    }

    #[test]
    fn an_empty_name_is_the_one_that_is_stored() {
        let cache = Cache::new(10, 0);
        cache.put(Snapshot::new(&workflow("w", &[]), 1));
        let mut nameless = workflow("w", &[]);
        nameless.name.clear();
        cache.put(Snapshot::new(&nameless, 2));
        let named = workflow("w", &[]);
        let stored = cache.get("w").unwrap();
        let patch = stored.patch(&named, &Snapshot::new(&named, 0)).unwrap();
        assert_eq!(patch.unwrap().patch.header_mask, None);
    }
}
