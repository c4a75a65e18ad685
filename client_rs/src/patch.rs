//! The snapshot of a workflow as it is stored, and the patch from there to a new state.
//!
//! Neither has fields that this version of the API does not know: they are dropped when a
//! message is decoded. So they are no changes, and a patch leaves them as they are, except those
//! of the pointers that it changes.

mod digest;

use std::collections::{HashMap, HashSet};

use wfe_core::models::{ExecutionPointer, WorkflowInstance};

use self::digest::{digest, Digest};
use crate::convert::{to_header, to_pointer};
use crate::error::Result;
use crate::v1;

/// A workflow as it is to be stored, or is stored at a revision; of its pointers, only what is
/// needed to detect changes.
pub(crate) struct Snapshot {
    /// 0: not stored yet.
    pub(crate) revision: i64,
    /// The workflow without its pointers.
    header: v1::WorkflowInstance,
    pointers: Vec<(String, Digest)>,
}

/// A patch, and what it was made from.
pub(crate) struct Change {
    pub(crate) patch: v1::WorkflowPatch,
    pub(crate) base_revision: i64,
    /// Where its pointers are in the new state.
    pub(crate) changed: Vec<usize>,
}

impl Snapshot {
    /// The snapshot of a workflow at this revision.
    pub(crate) fn new(workflow: &WorkflowInstance, revision: i64) -> Self {
        let mut bytes = Vec::new();
        let pointers = workflow
            .execution_pointers
            .iter()
            .map(|pointer| (pointer.id.clone(), digest(pointer, &mut bytes)))
            .collect();
        Self {
            revision,
            header: to_header(workflow),
            pointers,
        }
    }

    /// The workflow's id.
    pub(crate) fn id(&self) -> &str {
        &self.header.id
    }

    /// Sets what the server may have chosen.
    pub(crate) fn rename(&mut self, id: &str, name: &str) {
        self.header.id = id.into();
        self.header.name = name.into();
    }

    /// The number of pointers, plus one for the workflow itself.
    pub(crate) fn size(&self) -> usize {
        self.pointers.len() + 1
    }

    /// Whether the workflow has this very header, apart from its pointers.
    pub(crate) fn has_header(&self, workflow: &WorkflowInstance) -> bool {
        self.header == to_header(workflow)
    }

    /// Whether the workflow has this very pointer.
    pub(crate) fn has(&self, pointer: &ExecutionPointer) -> bool {
        let known = self.pointers.iter().find(|(id, _)| *id == pointer.id);
        known.is_some_and(|(_, known)| *known == digest(pointer, &mut Vec::new()))
    }

    /// Takes over the name of the previous snapshot if this one has none: writing an empty
    /// name leaves the stored one unchanged.
    pub(crate) fn keep_name_of(&mut self, previous: &Self) {
        if self.header.name.is_empty() {
            self.header.name.clone_from(&previous.header.name);
        }
    }

    /// The patch that turns this state into the new one, of which `workflow` is all and `new` the
    /// snapshot. `None` if no patch can: the kept pointers are in another order or have new ones
    /// between them, a pointer id is duplicated, or the creation time is another.
    ///
    /// The patch is to be applied to this snapshot's revision only: whether the stored workflow
    /// is still this one, or another one that has been given its id, only the revision tells.
    ///
    /// # Errors
    ///
    /// A changed pointer has a value that cannot be sent.
    pub(crate) fn patch(&self, workflow: &WorkflowInstance, new: &Self) -> Result<Option<Change>> {
        let (old, new_pointers, new) = (&self.header, &new.pointers, &new.header);
        // Then it is most likely another workflow, and a server older than schema version 4 may
        // have given it the same revision.
        if new.create_time != old.create_time {
            return Ok(None);
        }
        let mut patch = v1::WorkflowPatch {
            id: new.id.clone(),
            ..Default::default()
        };
        let mut changed = Vec::new();
        // Mostly all pointers are where they were, so that none has to be looked up.
        let both = self.pointers.iter().zip(new_pointers).enumerate();
        let mut same = 0;
        for (at, ((old_id, old), (id, new))) in both {
            if old_id != id {
                break;
            }
            if old != new {
                changed.push(at);
            }
            same = at + 1;
        }
        if same < self.pointers.len() || same < new_pointers.len() {
            let Some(removed) = self.changes_behind(same, new_pointers, &mut changed) else {
                return Ok(None);
            };
            patch.removed_pointer_ids = removed;
        }
        patch.execution_pointers = changed
            .iter()
            .map(|&at| to_pointer(&workflow.execution_pointers[at]))
            .collect::<Result<_>>()?;
        let mut header = v1::WorkflowInstance::default();
        let mut paths = Vec::new();
        macro_rules! compared {
            ($($field:ident),*) => {$(
                if new.$field != old.$field {
                    header.$field = new.$field.clone();
                    paths.push(stringify!($field).to_string());
                }
            )*};
        }
        if !new.name.is_empty() {
            compared!(name);
        }
        compared!(
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
        Ok(Some(Change {
            patch,
            base_revision: self.revision,
            changed,
        }))
    }

    /// Notes which of the new pointers are new or have changed, from this place on, before which
    /// the ids are the same; returns the ids of those that are gone.
    fn changes_behind(
        &self,
        same: usize,
        new: &[(String, Digest)],
        changed: &mut Vec<usize>,
    ) -> Option<Vec<String>> {
        let behind = self.pointers.iter().enumerate().skip(same);
        let known: HashMap<&str, (usize, Digest)> = behind
            .map(|(at, (id, digest))| (id.as_str(), (at, *digest)))
            .collect();
        let mut seen: HashSet<&str> = new[..same].iter().map(|(id, _)| id.as_str()).collect();
        let mut next = same;
        let mut added = false;
        for (at, (id, digest)) in new.iter().enumerate().skip(same) {
            if !seen.insert(id.as_str()) {
                return None;
            }
            match known.get(id.as_str()) {
                Some((was_at, _)) if added || *was_at < next => return None,
                Some((was_at, known)) => {
                    next = was_at + 1;
                    if known != digest {
                        changed.push(at);
                    }
                }
                None => {
                    added = true;
                    changed.push(at);
                }
            }
        }
        let gone = self.pointers[same..].iter().map(|(id, _)| id);
        Some(
            gone.filter(|id| !seen.contains(id.as_str()))
                .cloned()
                .collect(),
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use chrono::DateTime;
    use serde_json::json;

    use super::*;

    fn pointer(id: &str, retries: u32) -> ExecutionPointer {
        let mut pointer = ExecutionPointer::new(0);
        pointer.id = id.into();
        pointer.retry_count = retries;
        pointer
    }

    pub(crate) fn workflow(id: &str, pointers: &[(&str, u32)]) -> WorkflowInstance {
        let mut workflow = WorkflowInstance::new("definition", 1, json!(1));
        workflow.id = id.into();
        workflow.name = id.into();
        workflow.create_time = DateTime::UNIX_EPOCH;
        workflow.execution_pointers = pointers.iter().map(|(id, n)| pointer(id, *n)).collect();
        workflow
    }

    fn patch(old: &WorkflowInstance, new: &WorkflowInstance) -> Option<v1::WorkflowPatch> {
        Snapshot::new(old, 1)
            .patch(new, &Snapshot::new(new, 0))
            .unwrap()
            .map(|change| change.patch)
    }

    fn ids(patch: &v1::WorkflowPatch) -> Vec<&str> {
        let pointers = &patch.execution_pointers;
        pointers.iter().map(|p| p.id.as_str()).collect()
    }

    #[test]
    fn a_patch_is_what_has_changed() {
        let stored = workflow("w", &[("a", 0), ("b", 0), ("c", 0)]);
        let mut new = workflow("w", &[("b", 1), ("c", 0), ("d", 0)]);
        new.data = json!(2);
        let patch = patch(&stored, &new).unwrap();
        assert_eq!(ids(&patch), ["b", "d"]);
        assert_eq!(patch.removed_pointer_ids, ["a"]);
        assert_eq!(patch.header_mask.unwrap().paths, ["data_json"]);
        assert_eq!(patch.header.unwrap().data_json, "2");
    }

    #[test]
    fn of_pointers_that_stay_where_they_were_only_the_changed_are_sent() {
        let stored = workflow("w", &[("a", 0), ("b", 0), ("c", 0)]);
        for (new, changed, removed) in [
            (&[("a", 0), ("b", 1), ("c", 0)][..], &["b"][..], &[][..]),
            (&[("a", 1), ("b", 0), ("c", 0), ("d", 0)], &["a", "d"], &[]),
            (&[("a", 0), ("b", 1)], &["b"], &["c"]),
            (&[("a", 1), ("c", 1)], &["a", "c"], &["b"]),
            (&[], &[], &["a", "b", "c"]),
        ] {
            let patch = patch(&stored, &workflow("w", new)).unwrap();
            assert_eq!(ids(&patch), changed, "{new:?}");
            assert_eq!(patch.removed_pointer_ids, removed, "{new:?}");
        }
    }

    #[test]
    fn nothing_changed_is_an_empty_patch() {
        let one = workflow("w", &[("a", 0), ("b", 0)]);
        let patch = patch(&one, &one.clone()).unwrap();
        assert!(patch.execution_pointers.is_empty() && patch.removed_pointer_ids.is_empty());
        assert_eq!(patch.header_mask, None);
    }

    #[test]
    fn another_order_another_life_and_doubled_ids_need_the_whole() {
        let stored = workflow("w", &[("a", 0), ("b", 0)]);
        for pointers in [
            &[("b", 0), ("a", 0)][..],
            &[("new", 0), ("a", 0)],
            &[("a", 0), ("a", 0)],
            &[("a", 0), ("b", 0), ("a", 0)],
            &[("new", 0), ("new", 1)],
        ] {
            let new = workflow("w", pointers);
            assert!(patch(&stored, &new).is_none(), "{pointers:?}");
        }
        let mut reborn = workflow("w", &[("a", 0), ("b", 0)]);
        reborn.create_time = DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(1);
        assert!(patch(&stored, &reborn).is_none());
    }

    #[test]
    fn a_pointer_that_cannot_be_sent_is_an_error_if_it_has_changed() {
        let stored = workflow("w", &[("a", 0)]);
        let mut new = stored.clone();
        new.execution_pointers[0].step_id = usize::MAX;
        let made = Snapshot::new(&stored, 1).patch(&new, &Snapshot::new(&new, 0));
        assert!(made.is_err());
    }
}
