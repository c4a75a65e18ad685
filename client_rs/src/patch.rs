//! The snapshot of a workflow as it is stored, and the patch from there to a new state.
//!
//! Neither has fields that this version of the API does not know: they are dropped when a
//! message is decoded. So they are no changes, and a patch leaves them as they are, except those
//! of the pointers that it changes.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};

use prost::Message;

use crate::v1;

/// Enough of a pointer to tell whether it has changed: two hashes of its bytes.
type Digest = (u64, u64);

/// A workflow as it is stored at a revision; of its pointers, only what is needed to detect
/// changes.
pub(crate) struct Snapshot {
    pub(crate) revision: i64,
    /// The workflow without its pointers.
    header: v1::WorkflowInstance,
    pointers: Vec<(String, Digest)>,
}

impl Snapshot {
    pub(crate) fn new(message: &v1::WorkflowInstance, revision: i64) -> Self {
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

    /// The number of pointers, plus one for the workflow itself.
    pub(crate) fn size(&self) -> usize {
        self.pointers.len() + 1
    }

    /// Whether the workflow has this very pointer.
    pub(crate) fn has(&self, pointer: &v1::ExecutionPointer) -> bool {
        let known = self.pointers.iter().find(|(id, _)| *id == pointer.id);
        known.is_some_and(|(_, known)| *known == digest(pointer))
    }

    /// Takes over the name of the previous snapshot if this one has none: writing an empty
    /// name leaves the stored one unchanged.
    pub(crate) fn keep_name_of(&mut self, previous: &Self) {
        if self.header.name.is_empty() {
            self.header.name.clone_from(&previous.header.name);
        }
    }

    /// The patch that turns this state into the new one. `None` if no patch can: the kept
    /// pointers are in another order or have new ones between them, a pointer id is
    /// duplicated, or the creation time is another.
    ///
    /// The patch is to be applied to this snapshot's revision only: whether the stored workflow
    /// is still this one, or another one that has been given its id, only the revision tells.
    pub(crate) fn patch(&self, new: &v1::WorkflowInstance) -> Option<v1::WorkflowPatch> {
        let old = &self.header;
        // Then it is most likely another workflow, and a server older than schema version 4 may
        // have given it the same revision.
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
        let mut seen = HashSet::with_capacity(new.execution_pointers.len());
        for pointer in &new.execution_pointers {
            seen.insert(pointer.id.as_str());
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
        if seen.len() < new.execution_pointers.len() {
            return None;
        }
        patch.removed_pointer_ids = self
            .pointers
            .iter()
            .filter(|(id, _)| !seen.contains(id.as_str()))
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
    // A map is not ordered, neither here nor when encoded: it is hashed in the order of its
    // keys.
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

#[cfg(test)]
pub(crate) mod tests {
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

    pub(crate) fn workflow(id: &str, pointers: &[(&str, u32)]) -> v1::WorkflowInstance {
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
        let stored = Snapshot::new(&workflow("w", &[("a", 0), ("b", 0), ("c", 0)]), 7);
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
        let patch = Snapshot::new(&one, 1).patch(&one.clone()).unwrap();
        assert!(patch.execution_pointers.is_empty() && patch.removed_pointer_ids.is_empty());
        assert_eq!(patch.header_mask, None);
    }

    #[test]
    fn another_order_another_life_and_doubled_ids_need_the_whole() {
        let stored = Snapshot::new(&workflow("w", &[("a", 0), ("b", 0)]), 1);
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
}
