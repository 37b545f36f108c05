//! What all sources together say of each object. Pure.
//!
//! Of an object that several sources know the last of them, in the order of
//! the command line, is in force. If it lets go of the object, the one before
//! it is: an object goes only when no source has it any more.

use std::collections::BTreeMap;

use super::SourceId;
use crate::model::{Change, Key};

/// Remembers what each source has said last. Bounded by what the sources hold;
/// with one source there is nothing to remember.
#[derive(Debug, Default)]
pub struct Merge {
    is_needed: bool,
    said: BTreeMap<Key, BTreeMap<SourceId, Change>>,
}

impl Merge {
    /// For so many sources.
    pub fn new(sources: usize) -> Self {
        Self {
            is_needed: sources > 1,
            said: BTreeMap::new(),
        }
    }

    /// One source's change; what holds for the object now.
    pub fn take(&mut self, id: SourceId, change: Change) -> Change {
        if !self.is_needed {
            return change;
        }
        let key = change.key();
        let said = self.said.entry(key.clone()).or_default();
        match change {
            Change::Remove(_) => said.remove(&id),
            Change::Upsert(_) | Change::Reject(_) => said.insert(id, change),
        };
        if let Some((_, change)) = said.last_key_value() {
            return change.clone();
        }
        self.said.remove(&key);
        Change::Remove(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Kind, Labels, Namespace, Object, ObjectName};

    fn namespace(team: &str) -> Change {
        let labels = Labels::from([("team".to_owned(), team.to_owned())]);
        let namespace = Namespace::with_labels("a", labels);
        Change::Upsert(Object::Namespace(namespace.into()))
    }

    fn removed() -> Change {
        Change::Remove(Key {
            kind: Kind::Namespace,
            name: ObjectName::new("", "a"),
        })
    }

    #[test]
    fn an_object_goes_only_when_no_source_has_it_any_more() {
        let (first, last) = (SourceId(0), SourceId(1));
        let mut merge = Merge::new(2);
        assert_eq!(merge.take(last, namespace("y")), namespace("y"));
        assert_eq!(merge.take(first, namespace("x")), namespace("y"));
        assert_eq!(merge.take(last, removed()), namespace("x"));
        assert_eq!(merge.take(last, namespace("z")), namespace("z"));
        assert_eq!(merge.take(first, removed()), namespace("z"));
        assert_eq!(merge.take(last, removed()), removed());
        assert!(merge.said.is_empty());
    }

    #[test]
    fn of_a_single_source_nothing_is_remembered() {
        let mut merge = Merge::new(1);
        assert_eq!(merge.take(SourceId(0), namespace("x")), namespace("x"));
        assert!(merge.said.is_empty());
    }
}
