//! The pointers of long workflows, as a load returns them.

use std::sync::Arc;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use serde_json::Value;
use wfe_core::models::{ExecutionPointer, WorkflowInstance};

use crate::convert::{from_time, to_time};
use crate::patch::Change;

/// From so many pointers on they are kept: to ask for the header first then costs less than it
/// saves, even if only half of the workflows have not changed.
pub(crate) const LONG: usize = 64;

/// How much more memory a value takes than its encoding, roughly.
const IN_MEMORY: usize = 4;

/// The pointers of a workflow at a revision.
pub(super) struct Kept {
    pub(super) revision: i64,
    pub(super) pointers: Arc<Vec<ExecutionPointer>>,
    /// Roughly, in bytes.
    pub(super) size: usize,
}

/// What these pointers take, in bytes. `encoded`: how many they have when they are sent.
pub(super) fn size_of(pointers: &[ExecutionPointer], encoded: usize) -> usize {
    size_of_val(pointers) + IN_MEMORY * encoded
}

/// What is kept, with the changes of a patch that was made from it and stored. `None` if it is not
/// certain that the result is what a load would return.
pub(super) fn advanced(
    mut kept: Kept,
    workflow: &WorkflowInstance,
    change: &Change,
    revision: i64,
) -> Option<Kept> {
    if kept.revision != change.base_revision || !change.patch.removed_pointer_ids.is_empty() {
        return None;
    }
    let pointers = Arc::make_mut(&mut kept.pointers);
    for &at in &change.changed {
        let pointer = as_read(&workflow.execution_pointers[at])?;
        match pointers.get_mut(at) {
            Some(old) => *old = pointer,
            None => pointers.push(pointer),
        }
    }
    let sent = change.patch.execution_pointers.iter();
    let encoded: usize = sent.map(prost::Message::encoded_len).sum();
    // What is replaced is not subtracted: an estimate that is too high is safe, and each load
    // makes a new one.
    kept.size += IN_MEMORY * encoded;
    kept.revision = revision;
    (pointers.len() == workflow.execution_pointers.len()).then_some(kept)
}

/// A pointer as it would be read back. `None` if that is not certain: PostgreSQL may write a number
/// that is no integer in another way.
fn as_read(pointer: &ExecutionPointer) -> Option<ExecutionPointer> {
    let mut pointer = pointer.clone();
    let documents = [
        &pointer.persistence_data,
        &pointer.event_data,
        &pointer.context_item,
        &pointer.outcome,
    ];
    let documents = documents.into_iter().flatten();
    let attributes = pointer.extension_attributes.values();
    if !documents.chain(attributes).all(has_only_integers) {
        return None;
    }
    for time in [
        &mut pointer.sleep_until,
        &mut pointer.start_time,
        &mut pointer.end_time,
    ] {
        if let Some(given) = time {
            *time = Some(truncated(*given)?);
        }
    }
    Some(pointer)
}

fn truncated(time: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let sent = from_time(Some(to_time(time))).ok()??;
    sent.duration_trunc(TimeDelta::microseconds(1)).ok()
}

fn has_only_integers(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_i64() || number.is_u64(),
        Value::Array(items) => items.iter().all(has_only_integers),
        Value::Object(members) => members.values().all(has_only_integers),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::patch::Snapshot;

    fn workflow(pointers: usize) -> WorkflowInstance {
        let mut workflow = WorkflowInstance::new("definition", 1, json!(1));
        workflow.execution_pointers = (0..pointers).map(ExecutionPointer::new).collect();
        workflow
    }

    fn after(old: &WorkflowInstance, new: &WorkflowInstance) -> Option<Kept> {
        let change = Snapshot::new(old, 7)
            .patch(new, &Snapshot::new(new, 0))
            .unwrap()
            .unwrap();
        let kept = Kept {
            revision: 7,
            pointers: Arc::new(old.execution_pointers.clone()),
            size: 1000,
        };
        advanced(kept, new, &change, 8)
    }

    #[test]
    fn it_follows_what_is_stored() {
        let old = workflow(3);
        let mut new = old.clone();
        new.execution_pointers[1].outcome = Some(json!({"a": [1, -2, u64::MAX, null, "x"]}));
        new.execution_pointers[1].end_time = DateTime::from_timestamp(-1, 999_999_999);
        new.execution_pointers.push(ExecutionPointer::new(3));
        let kept = after(&old, &new).unwrap();
        let times: Vec<_> = kept.pointers.iter().map(|p| p.end_time).collect();
        let truncated = DateTime::from_timestamp(-1, 999_999_000);
        assert_eq!(times, [None, truncated, None, None]);
        new.execution_pointers[1].end_time = truncated;
        let json = |pointers: &[ExecutionPointer]| serde_json::to_value(pointers).unwrap();
        assert_eq!(json(&kept.pointers), json(&new.execution_pointers));
        assert!(kept.revision == 8 && kept.size > 1000);
    }

    #[test]
    fn what_is_not_certain_is_not_kept() {
        let old = workflow(3);
        let mut floats = old.clone();
        floats.execution_pointers[0].outcome = Some(json!({"a": [-0.0]}));
        assert!(after(&old, &floats).is_none());
        let mut fewer = old.clone();
        fewer.execution_pointers.remove(0);
        assert!(after(&old, &fewer).is_none());
        let change = Snapshot::new(&old, 6)
            .patch(&old, &Snapshot::new(&old, 0))
            .unwrap()
            .unwrap();
        let kept = Kept {
            revision: 7,
            pointers: Arc::new(old.execution_pointers.clone()),
            size: 0,
        };
        assert!(advanced(kept, &old, &change, 8).is_none());
    }
}
