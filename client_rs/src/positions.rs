//! What reads see of a database with replicas: what was written before, wherever they go.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

const POSITION_KEY: &str = "wfe-lsn";
const READ_KEY: &str = "wfe-read";

/// A position that no replica has.
const UNKNOWN: &str = "unknown";

/// Where the server reads, if the database of the namespace has replicas; see
/// [`Builder::reads`](crate::Builder::reads).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// From a replica, whatever may be stale by a moment.
    Replica,
    /// From the primary.
    Primary,
}

/// Up to where a provider has written in its namespace: the highest position that the server has
/// told. Reads are sent with it. Shared by the clones of the provider.
#[derive(Clone, Default)]
pub(crate) struct Positions {
    pub(crate) reads: Option<Reads>,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    position: Option<MetadataValue<Ascii>>,
    /// How often it was lost.
    losses: u64,
}

impl Positions {
    pub(crate) fn new(reads: Option<Reads>) -> Self {
        Self {
            reads,
            known: Arc::default(),
        }
    }

    /// Adds to the metadata of a read what it relies on.
    pub(crate) fn add_to(&self, metadata: &mut MetadataMap) {
        if let Some(reads) = self.reads {
            let source = match reads {
                Reads::Replica => "replica",
                Reads::Primary => "primary",
            };
            metadata.insert(READ_KEY, MetadataValue::from_static(source));
        }
        if let Some(position) = &self.lock().position {
            metadata.insert(POSITION_KEY, position.clone());
        }
    }

    /// Begins an attempt at a write.
    pub(crate) fn write(&self) -> Write<'_> {
        Write {
            positions: self,
            losses: self.lock().losses,
            is_settled: false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing panics while it is locked.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt at a write. Unless it says how it has ended, it may have written, and nobody knows up
/// to where: also if it is dropped with the call that it is a part of.
pub(crate) struct Write<'a> {
    positions: &'a Positions,
    /// How many positions had been lost when it began.
    losses: u64,
    is_settled: bool,
}

impl Write<'_> {
    /// It has succeeded, with this metadata in its answer.
    pub(crate) fn succeeded(mut self, metadata: &MetadataMap) {
        self.is_settled = true;
        let mut known = self.positions.lock();
        let Some(told) = metadata.get(POSITION_KEY) else {
            // The server has no replicas. If others have, they may not have replayed this.
            if known.position.is_some() {
                known.lose();
            }
            return;
        };
        let is_news = match &known.position {
            None => true,
            // It says nothing of what was lost since it was begun.
            Some(known_as) if known_as == UNKNOWN => known.losses == self.losses,
            Some(before) => is_later(told.as_bytes(), before.as_bytes()),
        };
        if is_news {
            known.position = Some(told.clone());
        }
    }

    /// It has failed, and has certainly written nothing.
    pub(crate) fn failed(mut self) {
        self.is_settled = true;
    }
}

impl Drop for Write<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.positions.lock().lose();
        }
    }
}

impl Known {
    fn lose(&mut self) {
        self.losses += 1;
        self.position = Some(MetadataValue::from_static(UNKNOWN));
    }
}

/// Whether a position is to replace another one. Those of one database are in the order of their
/// texts; of two databases, which can't be compared, the one that was told last counts.
fn is_later(told: &[u8], before: &[u8]) -> bool {
    let database = |position: &[u8]| {
        position
            .split(|byte| *byte == b'/')
            .next()
            .map(<[u8]>::to_vec)
    };
    database(told) != database(before) || told > before
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATABASE: &str = "home.7437223450117823451";

    fn at(lsn: u64, timeline: u32, database: &str) -> String {
        format!("{database}/{timeline:08X}/{lsn:016X}")
    }

    fn told(position: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("other", MetadataValue::from_static("x"));
        metadata.insert(POSITION_KEY, position.parse().unwrap());
        metadata
    }

    fn sent(positions: &Positions, key: &str) -> Option<String> {
        let mut metadata = MetadataMap::new();
        positions.add_to(&mut metadata);
        metadata
            .get(key)
            .map(|value| value.to_str().unwrap().into())
    }

    fn known(positions: &Positions) -> Option<String> {
        sent(positions, POSITION_KEY)
    }

    #[test]
    fn the_highest_is_kept() {
        let positions = Positions::default();
        assert_eq!(known(&positions), None);
        for lsn in [5, 300, 20] {
            positions.write().succeeded(&told(&at(lsn, 1, DATABASE)));
        }
        assert_eq!(known(&positions.clone()), Some(at(300, 1, DATABASE)));
    }

    #[test]
    fn a_later_timeline_is_higher_and_another_database_replaces() {
        let positions = Positions::default();
        for position in [
            at(300, 1, DATABASE),
            at(20, 2, DATABASE),
            at(1, 1, "west.1"),
        ] {
            positions.write().succeeded(&told(&position));
            assert_eq!(known(&positions), Some(position));
        }
    }

    #[test]
    fn what_is_lost_is_known_again_only_from_a_write_that_was_begun_later() {
        let positions = Positions::default();
        positions.write().succeeded(&told(&at(5, 1, DATABASE)));
        let begun_before = positions.write();
        drop(positions.write());
        assert_eq!(known(&positions).as_deref(), Some(UNKNOWN));
        begun_before.succeeded(&told(&at(9, 1, DATABASE)));
        assert_eq!(known(&positions).as_deref(), Some(UNKNOWN));
        positions.write().failed();
        assert_eq!(known(&positions).as_deref(), Some(UNKNOWN));
        positions.write().succeeded(&told(&at(10, 1, DATABASE)));
        assert_eq!(known(&positions), Some(at(10, 1, DATABASE)));
        positions.write().failed();
        assert_eq!(known(&positions), Some(at(10, 1, DATABASE)));
    }

    #[test]
    fn a_server_that_tells_none_is_not_trusted_where_others_do() {
        let positions = Positions::default();
        positions.write().succeeded(&MetadataMap::new());
        assert_eq!(known(&positions), None);
        positions.write().succeeded(&told(&at(5, 1, DATABASE)));
        positions.write().succeeded(&MetadataMap::new());
        assert_eq!(known(&positions).as_deref(), Some(UNKNOWN));
        // What the server itself does not know.
        positions.write().succeeded(&told(&at(6, 1, DATABASE)));
        positions.write().succeeded(&told(UNKNOWN));
        assert_eq!(known(&positions).as_deref(), Some(UNKNOWN));
    }

    #[test]
    fn a_read_says_where_it_goes() {
        for (reads, source) in [
            (None, None),
            (Some(Reads::Replica), Some("replica")),
            (Some(Reads::Primary), Some("primary")),
        ] {
            assert_eq!(sent(&Positions::new(reads), READ_KEY).as_deref(), source);
        }
    }
}
