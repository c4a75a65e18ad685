//! Digests of execution pointers.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;

use chrono::{DateTime, Utc};
use serde_json::Value;
use wfe_core::models::ExecutionPointer;

use crate::convert::{append_json, to_time};

/// Enough of a pointer to tell whether it has changed: two hashes of it.
pub(super) type Digest = (u64, u64);

/// The digest of a pointer. (Made of what would be sent, but without making a message of it first,
/// which takes three times as long: a load and a persist make it of every pointer.)
///
/// `bytes`: to write to; its content is overwritten.
pub(super) fn digest(pointer: &ExecutionPointer, bytes: &mut Vec<u8>) -> Digest {
    // All fields, so that a new one is not forgotten.
    let ExecutionPointer {
        id,
        step_id,
        active,
        status,
        sleep_until,
        persistence_data,
        start_time,
        end_time,
        event_name,
        event_key,
        event_published,
        event_data,
        step_name,
        retry_count,
        children,
        context_item,
        predecessor_id,
        outcome,
        scope,
        extension_attributes,
    } = pointer;
    bytes.clear();
    let mut to = Fields(bytes);
    to.text(id);
    to.number(*step_id as u64);
    to.number((*status as u64) << 2 | u64::from(*active) << 1 | u64::from(*event_published));
    to.number(u64::from(*retry_count));
    for time in [sleep_until, start_time, end_time] {
        to.time(time.as_ref());
    }
    for json in [persistence_data, event_data, context_item, outcome] {
        to.json(json.as_ref());
    }
    for text in [event_name, event_key, step_name, predecessor_id] {
        to.number(u64::from(text.is_some()));
        to.text(text.as_deref().unwrap_or_default());
    }
    for list in [children, scope] {
        to.number(list.len() as u64);
        list.iter().for_each(|item| to.text(item));
    }
    // A map has no order.
    let mut attributes: Vec<_> = extension_attributes.iter().collect();
    attributes.sort_unstable_by_key(|(name, _)| *name);
    for (name, value) in attributes {
        to.text(name);
        to.json(Some(value));
    }
    let hash = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        hasher.write_u8(seed);
        hasher.write(bytes);
        hasher.finish()
    };
    (hash(0), hash(1))
}

/// Fields one behind the other, such that different ones make different bytes.
struct Fields<'a>(&'a mut Vec<u8>);

impl Fields<'_> {
    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn time(&mut self, time: Option<&DateTime<Utc>>) {
        self.number(u64::from(time.is_some()));
        if let Some(time) = time {
            let time = to_time(*time);
            self.number(time.seconds as u64);
            self.number(time.nanos as u64);
        }
    }

    fn json(&mut self, value: Option<&Value>) {
        if let Some(value) = value {
            append_json(value, self.0);
        }
        self.0.push(0); // which no JSON has
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wfe_core::models::PointerStatus;

    use super::*;

    fn of(pointer: &ExecutionPointer) -> Digest {
        digest(pointer, &mut b"of another one".to_vec())
    }

    #[test]
    fn every_change_is_seen() {
        let changes: &[fn(&mut ExecutionPointer)] = &[
            |p| p.id = "other".into(),
            |p| p.step_id = 2,
            |p| p.active = !p.active,
            |p| p.status = PointerStatus::Failed,
            |p| p.sleep_until = Some(DateTime::UNIX_EPOCH),
            |p| p.start_time = Some(DateTime::UNIX_EPOCH),
            |p| p.end_time = Some(DateTime::UNIX_EPOCH),
            |p| p.end_time = Some(DateTime::UNIX_EPOCH + chrono::TimeDelta::nanoseconds(1)),
            |p| p.persistence_data = Some(json!(null)),
            |p| p.event_data = Some(json!(null)),
            |p| p.context_item = Some(json!(null)),
            |p| p.outcome = Some(json!(null)),
            |p| p.outcome = Some(json!(1)),
            |p| p.outcome = Some(json!(1.0)),
            |p| p.event_name = Some(String::new()),
            |p| p.event_key = Some(String::new()),
            |p| p.step_name = Some(String::new()),
            |p| p.step_name = Some("a".into()),
            |p| p.predecessor_id = Some(String::new()),
            |p| p.event_published = true,
            |p| p.retry_count = 1,
            |p| p.children = vec![String::new()],
            |p| p.children = vec!["a".into(), "b".into()],
            |p| p.children = vec!["ab".into()],
            |p| p.scope = vec![String::new()],
            |p| p.scope = vec!["a".into(), "b".into()],
            |p| {
                p.extension_attributes.insert("a".into(), json!(null));
            },
            |p| {
                p.extension_attributes.insert("b".into(), json!(null));
            },
            |p| {
                p.extension_attributes.insert("a".into(), json!({"a": 1}));
            },
        ];
        let mut pointer = ExecutionPointer::new(1);
        pointer.id = "p".into();
        let mut seen = vec![of(&pointer)];
        for change in changes {
            let mut changed = pointer.clone();
            change(&mut changed);
            seen.push(of(&changed));
        }
        let all = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), all);
    }

    #[test]
    fn attributes_have_no_order() {
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let mut pointer = ExecutionPointer::new(1);
        let mut other = pointer.clone();
        for name in names {
            pointer.extension_attributes.insert(name.into(), json!(1));
        }
        for name in names.iter().rev() {
            let name = (*name).to_string();
            other.extension_attributes.insert(name, json!(1));
        }
        assert_eq!(of(&pointer), of(&other));
    }
}
