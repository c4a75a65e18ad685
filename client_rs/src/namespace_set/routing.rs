//! Which member of a namespace set a thing belongs to.
//!
//! The same in every language; `protos/wfe/persistence/v1/namespace_sets.json` has test vectors.

use sha2::{Digest, Sha256};

/// The index of the member that has what has this key: a workflow's id, a name, a resource.
pub(crate) fn member_of(key: &str, members: usize) -> usize {
    let digest = Sha256::digest(key.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    jump(u64::from_be_bytes(first), members)
}

/// Jump consistent hash, by Lamping and Veach: the bucket of a key, from 0.
fn jump(mut key: u64, buckets: usize) -> usize {
    let (mut bucket, mut following) = (0, 0.0);
    while following < buckets as f64 {
        bucket = following as usize;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        following =
            ((bucket + 1) as f64 * (f64::from(1u32 << 31) / ((key >> 33) + 1) as f64)).floor();
    }
    bucket
}

/// What the engine's host puts in front of a workflow's id for a lock of its own.
const EXECUTION: &str = "workflow-execution.";

/// The member of a lock: of one on a workflow, that of the workflow.
pub(crate) fn lock_home(resource: &str, members: usize) -> usize {
    let key = resource.strip_prefix(EXECUTION).unwrap_or(resource);
    member_of(key, members)
}

/// An id that the client makes up, with the member that it belongs to.
pub(crate) fn tag(id: &str, index: usize) -> String {
    format!("{id}@{index}")
}

/// The member that an id was tagged with.
pub(crate) fn tagged(id: &str, members: usize) -> Option<usize> {
    let (_, digits) = id.rsplit_once('@')?;
    let index: usize = digits.parse().ok()?;
    (index < members && digits == index.to_string()).then_some(index)
}

/// Where an event or a subscription with this id is looked for first.
pub(crate) fn home_of(id: &str, members: usize) -> usize {
    tagged(id, members).unwrap_or_else(|| member_of(id, members))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../protos/wfe/persistence/v1/namespace_sets.json"
        );
        let text = std::fs::read_to_string(path).unwrap();
        let vectors: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut checked = 0;
        for vector in vectors["vectors"].as_array().unwrap() {
            let key = vector["key"].as_str().unwrap();
            for (members, index) in vector["members"].as_object().unwrap() {
                let found = member_of(key, members.parse().unwrap());
                assert_eq!(Some(found as u64), index.as_u64(), "{key:?} of {members}");
                checked += 1;
            }
        }
        assert!(checked >= 200, "{checked}");
        for vector in vectors["locks"].as_array().unwrap() {
            let resource = vector["resource"].as_str().unwrap();
            for (members, index) in vector["members"].as_object().unwrap() {
                let found = lock_home(resource, members.parse().unwrap());
                assert_eq!(Some(found as u64), index.as_u64(), "{resource:?}");
            }
        }
    }

    #[test]
    fn jump_as_published() {
        assert_eq!(jump(0xdead_10cc, 1), 0);
        assert_eq!(jump(0xdead_10cc, 666), 361);
        assert_eq!(jump(256, 1024), 520);
        assert_eq!(jump(10_863_919_174_838_991, 11), 6);
    }

    #[test]
    fn tags() {
        assert_eq!(tagged(&tag("a@b", 3), 4), Some(3));
        for id in ["", "a", "a@", "a@4", "a@03", "a@-1", "a@+1", "a@1 "] {
            assert_eq!(tagged(id, 4), None, "{id}");
            assert_eq!(home_of(id, 4), member_of(id, 4));
        }
    }
}
