//! What was stored last, so that a write sends only what has changed since.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex};

use prost::Message;
use uuid::Uuid;
use wfe_core::models::{
    Event, EventSubscription, ExecutionError, ScheduledCommand, WorkflowInstance,
};

use crate::convert::{to_command, to_event, to_execution_error, to_subscription, to_workflow};
use crate::error::Error;
use crate::v1;

/// Of a pointer, enough to tell whether it has changed: two hashes of its bytes.
type Digest = (u64, u64);

/// What was loaded or stored last, by workflow. Shared by the clones of a provider.
#[derive(Clone)]
pub(crate) struct Memory(Arc<Mutex<Inner>>);

struct Inner {
    /// How many pointers, plus one for each workflow, to remember at most.
    most: usize,
    size: usize,
    uses: u64,
    known: HashMap<String, (u64, Arc<Stored>)>,
    /// The workflows by their last use.
    order: BTreeMap<u64, String>,
}

impl Memory {
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            most,
            size: 0,
            uses: 0,
            known: HashMap::new(),
            order: BTreeMap::new(),
        })))
    }

    /// What is remembered of a workflow.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Stored>> {
        let inner = self.lock();
        inner.known.get(id).map(|(_, stored)| stored.clone())
    }

    /// Remembers what is stored now; what was used longest ago is forgotten for it.
    pub(crate) fn put(&self, message: &v1::WorkflowInstance, revision: i64) {
        let mut inner = self.lock();
        let size = message.execution_pointers.len() + 1;
        let name = inner
            .known
            .get(&message.id)
            .map(|(_, stored)| stored.header.name.clone());
        inner.remove(&message.id);
        if size > inner.most {
            return;
        }
        while inner.size + size > inner.most {
            let Some(oldest) = inner.order.values().next().cloned() else {
                break;
            };
            inner.remove(&oldest);
        }
        let mut stored = Stored::new(message, revision);
        if stored.header.name.is_empty() {
            // An empty name leaves the stored one as it is.
            stored.header.name = name.unwrap_or_default();
        }
        inner.uses += 1;
        let at = inner.uses;
        inner.size += size;
        inner.order.insert(at, message.id.clone());
        inner
            .known
            .insert(message.id.clone(), (at, Arc::new(stored)));
    }

    /// Forgets a workflow, after a write that failed or may have been made.
    pub(crate) fn forget(&self, id: &str) {
        self.lock().remove(id);
    }

    /// Remembers nothing from now on: the server knows no patches.
    pub(crate) fn disable(&self) {
        let mut inner = self.lock();
        inner.most = 0;
        inner.size = 0;
        inner.known.clear();
        inner.order.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    fn remove(&mut self, id: &str) {
        if let Some((at, stored)) = self.known.remove(id) {
            self.order.remove(&at);
            self.size -= stored.pointers.len() + 1;
        }
    }
}

/// A workflow as it is stored at a revision.
pub(crate) struct Stored {
    pub(crate) revision: i64,
    /// Without its pointers.
    header: v1::WorkflowInstance,
    pointers: Vec<(String, Digest)>,
}

impl Stored {
    fn new(message: &v1::WorkflowInstance, revision: i64) -> Self {
        let pointers = message
            .execution_pointers
            .iter()
            .map(|pointer| (pointer.id.clone(), digest(pointer)))
            .collect();
        Self {
            revision,
            header: header_of(message),
            pointers,
        }
    }

    /// What makes the new state out of this one; `None` where a patch cannot: the kept
    /// pointers stand in another order, or new ones among them, or it is not the same
    /// workflow any more but another one of that id.
    pub(crate) fn patch(&self, new: &v1::WorkflowInstance) -> Option<v1::WorkflowPatch> {
        let old = &self.header;
        if new.create_time != old.create_time {
            return None;
        }
        let known: HashMap<&str, (usize, Digest)> = self
            .pointers
            .iter()
            .enumerate()
            .map(|(at, (id, digest))| (id.as_str(), (at, *digest)))
            .collect();
        let mut patch = v1::WorkflowPatch {
            id: new.id.clone(),
            ..Default::default()
        };
        let mut next = 0;
        let mut added = false;
        let mut given = HashSet::with_capacity(new.execution_pointers.len());
        for pointer in &new.execution_pointers {
            given.insert(pointer.id.as_str());
            match known.get(pointer.id.as_str()) {
                Some((at, _)) if added || *at < next => return None,
                Some((at, known)) => {
                    next = at + 1;
                    if *known != digest(pointer) {
                        patch.execution_pointers.push(pointer.clone());
                    }
                }
                None => {
                    added = true;
                    patch.execution_pointers.push(pointer.clone());
                }
            }
        }
        if given.len() < new.execution_pointers.len() {
            return None;
        }
        patch.removed_pointer_ids = self
            .pointers
            .iter()
            .filter(|(id, _)| !given.contains(id.as_str()))
            .map(|(id, _)| id.clone())
            .collect();
        let mut header = v1::WorkflowInstance::default();
        let mut paths = Vec::new();
        macro_rules! changed {
            ($($field:ident),*) => {$(
                if new.$field != old.$field {
                    header.$field = new.$field.clone();
                    paths.push(stringify!($field).to_string());
                }
            )*};
        }
        if !new.name.is_empty() {
            changed!(name);
        }
        changed!(
            root_workflow_id,
            workflow_definition_id,
            version,
            description,
            reference,
            next_execution,
            status,
            data_json,
            complete_time
        );
        if !paths.is_empty() {
            patch.header = Some(header);
            patch.header_mask = Some(prost_types::FieldMask { paths });
        }
        Some(patch)
    }
}

fn header_of(message: &v1::WorkflowInstance) -> v1::WorkflowInstance {
    v1::WorkflowInstance {
        id: message.id.clone(),
        name: message.name.clone(),
        root_workflow_id: message.root_workflow_id.clone(),
        workflow_definition_id: message.workflow_definition_id.clone(),
        version: message.version,
        description: message.description.clone(),
        reference: message.reference.clone(),
        next_execution: message.next_execution,
        status: message.status,
        data_json: message.data_json.clone(),
        create_time: message.create_time,
        complete_time: message.complete_time,
        ..Default::default()
    }
}

fn digest(pointer: &v1::ExecutionPointer) -> Digest {
    // A map has no order, neither here nor on its way: it is hashed by its keys' order.
    let mut attributes: Vec<_> = pointer.extension_attributes_json.iter().collect();
    attributes.sort_unstable();
    let bytes = if attributes.is_empty() {
        pointer.encode_to_vec()
    } else {
        let mut rest = pointer.clone();
        rest.extension_attributes_json.clear();
        rest.encode_to_vec()
    };
    let hash = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        bytes.hash(&mut hasher);
        attributes.hash(&mut hasher);
        hasher.finish()
    };
    (hash(0), hash(1))
}

/// One step of an engine: a workflow's new state and everything that came about with it,
/// to be stored in one transaction by
/// [`GrpcPersistenceProvider::commit`](crate::GrpcPersistenceProvider::commit).
///
/// ```no_run
/// # async fn example(
/// #     store: wfe_persistence_client::GrpcPersistenceProvider,
/// #     workflow: wfe_core::models::WorkflowInstance,
/// #     event: wfe_core::models::Event,
/// # ) -> Result<(), wfe_persistence_client::Error> {
/// use wfe_persistence_client::Step;
///
/// let mut step = Step::new(&workflow)?;
/// step.hold_subscription("waiting", "my-token", None);
/// step.terminate_subscription("waiting");
/// step.create_event(&event);
/// let committed = store.commit(step).await?;
/// println!("revision {}", committed.revision);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Step {
    pub(crate) workflow: v1::WorkflowInstance,
    pub(crate) effects: v1::CommitWorkflowRequest,
}

/// What a step came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The workflow's revision after the step.
    pub revision: i64,
    /// The ids of the created subscriptions, in the order they were given.
    pub subscription_ids: Vec<String>,
    /// The ids of the created events, in the order they were given.
    pub event_ids: Vec<String>,
}

impl Step {
    /// A step that ends in this state of the workflow.
    ///
    /// # Errors
    ///
    /// A value that cannot be sent, for example a step id beyond 2^63-1.
    pub fn new(workflow: &WorkflowInstance) -> Result<Self, Error> {
        Ok(Self {
            workflow: to_workflow(workflow)?,
            effects: v1::CommitWorkflowRequest {
                request_id: Uuid::new_v4().to_string(),
                ..Default::default()
            },
        })
    }

    /// Stores the step only if the workflow is at this revision.
    pub fn expect_revision(&mut self, revision: i64) -> &mut Self {
        self.effects.expected_revision = Some(revision);
        self
    }

    /// Stores the step only if this subscription is still held with this token (and, if
    /// given, by the claim of this epoch), and that has not expired.
    pub fn hold_subscription(
        &mut self,
        id: impl Into<String>,
        token: impl Into<String>,
        epoch: Option<i64>,
    ) -> &mut Self {
        self.effects.held_subscriptions.push(v1::SubscriptionClaim {
            subscription_id: id.into(),
            token: token.into(),
            epoch,
        });
        self
    }

    /// Stores the step only if a command is still claimed under this lease, and that has
    /// not expired.
    pub fn hold_lease(&mut self, lease_token: impl Into<String>) -> &mut Self {
        self.effects.held_lease_tokens.push(lease_token.into());
        self
    }

    /// Creates a subscription, with a new UUID if it has no id; answers its id.
    ///
    /// # Errors
    ///
    /// A value that cannot be sent.
    pub fn create_subscription(&mut self, given: &EventSubscription) -> Result<String, Error> {
        let mut message = to_subscription(given)?;
        if message.id.is_empty() {
            message.id = Uuid::new_v4().to_string();
        }
        let id = message.id.clone();
        self.effects.create_subscriptions.push(message);
        Ok(id)
    }

    /// Removes a subscription, open or held; it must exist.
    pub fn terminate_subscription(&mut self, id: impl Into<String>) -> &mut Self {
        self.effects.terminate_subscription_ids.push(id.into());
        self
    }

    /// Creates an event, with a new UUID if it has no id; answers its id.
    pub fn create_event(&mut self, given: &Event) -> String {
        let mut message = to_event(given);
        if message.id.is_empty() {
            message.id = Uuid::new_v4().to_string();
        }
        let id = message.id.clone();
        self.effects.create_events.push(message);
        id
    }

    /// Marks an event as processed; it must exist.
    pub fn mark_event_processed(&mut self, id: impl Into<String>) -> &mut Self {
        self.effects.processed_event_ids.push(id.into());
        self
    }

    /// Adds an error to the log.
    pub fn log_error(&mut self, error: &ExecutionError) -> &mut Self {
        self.effects.errors.push(to_execution_error(error));
        self
    }

    /// Schedules a command; one of the same name and data gets the new time.
    pub fn schedule_command(&mut self, command: &ScheduledCommand) -> &mut Self {
        self.effects.schedule_commands.push(to_command(command));
        self
    }

    /// Removes a claimed command that this step has handled, by its lease token. The step
    /// is stored only if the command is still claimed so. Scheduled again, also by this
    /// step, it stays with its new time.
    pub fn complete_command(&mut self, lease_token: impl Into<String>) -> &mut Self {
        self.effects.complete_lease_tokens.push(lease_token.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(id: &str, retries: u32) -> v1::ExecutionPointer {
        v1::ExecutionPointer {
            id: id.into(),
            retry_count: retries,
            extension_attributes_json: [("a", "1"), ("b", "2"), ("c", "3")]
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .into(),
            ..Default::default()
        }
    }

    fn workflow(id: &str, pointers: &[(&str, u32)]) -> v1::WorkflowInstance {
        v1::WorkflowInstance {
            id: id.into(),
            name: id.into(),
            data_json: "1".into(),
            execution_pointers: pointers.iter().map(|(id, n)| pointer(id, *n)).collect(),
            ..Default::default()
        }
    }

    fn ids(patch: &v1::WorkflowPatch) -> Vec<&str> {
        let pointers = &patch.execution_pointers;
        pointers.iter().map(|p| p.id.as_str()).collect()
    }

    #[test]
    fn a_patch_is_what_has_changed() {
        let stored = Stored::new(&workflow("w", &[("a", 0), ("b", 0), ("c", 0)]), 7);
        let mut new = workflow("w", &[("b", 1), ("c", 0), ("d", 0)]);
        new.data_json = "2".into();
        let patch = stored.patch(&new).unwrap();
        assert_eq!(ids(&patch), ["b", "d"]);
        assert_eq!(patch.removed_pointer_ids, ["a"]);
        assert_eq!(patch.header_mask.unwrap().paths, ["data_json"]);
        assert_eq!(patch.header.unwrap().data_json, "2");
    }

    #[test]
    fn nothing_changed_is_an_empty_patch() {
        let one = workflow("w", &[("a", 0), ("b", 0)]);
        let patch = Stored::new(&one, 1).patch(&one.clone()).unwrap();
        assert!(patch.execution_pointers.is_empty() && patch.removed_pointer_ids.is_empty());
        assert_eq!(patch.header_mask, None);
    }

    #[test]
    fn another_order_another_life_and_doubled_ids_need_the_whole() {
        let stored = Stored::new(&workflow("w", &[("a", 0), ("b", 0)]), 1);
        for pointers in [
            [("b", 0), ("a", 0)],
            [("new", 0), ("a", 0)],
            [("a", 0), ("a", 0)],
            [("new", 0), ("new", 1)],
        ] {
            assert!(
                stored.patch(&workflow("w", &pointers)).is_none(),
                "{pointers:?}"
            );
        }
        let mut reborn = workflow("w", &[("a", 0), ("b", 0)]);
        reborn.create_time = Some(prost_types::Timestamp::default());
        assert!(stored.patch(&reborn).is_none());
    }

    #[test]
    fn memory_is_bounded_and_forgets_what_was_used_longest_ago() {
        let memory = Memory::new(6);
        for id in ["1", "2", "3"] {
            memory.put(&workflow(id, &[("a", 0)]), 1);
        }
        memory.put(&workflow("1", &[("a", 0)]), 2);
        memory.put(&workflow("4", &[("a", 0)]), 1);
        let known: Vec<bool> = ["1", "2", "3", "4"]
            .map(|id| memory.get(id).is_some())
            .into();
        assert_eq!(known, [true, false, true, true]);
        memory.put(&workflow("long", &[("a", 0); 9]), 1);
        assert!(memory.get("long").is_none());
        memory.forget("1");
        assert!(memory.get("1").is_none());
        memory.disable();
        memory.put(&workflow("5", &[]), 1);
        assert!(memory.get("4").is_none() && memory.get("5").is_none());
    }

    #[test]
    fn an_empty_name_is_the_one_that_is_stored() {
        let memory = Memory::new(10);
        memory.put(&workflow("w", &[]), 1);
        let mut nameless = workflow("w", &[]);
        nameless.name.clear();
        memory.put(&nameless, 2);
        let patch = memory.get("w").unwrap().patch(&workflow("w", &[])).unwrap();
        assert_eq!(patch.header_mask, None);
    }
}
