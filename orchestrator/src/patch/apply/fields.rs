//! Sets of fields, as `fieldsV1` writes them: `f:name` a field, `k:{..}` a list item by key,
//! `v:..` one by value, `.` the thing itself.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::{Map, Value};

/// A set of paths, as a tree. An empty subtree is never kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FieldSet {
    /// Whether the path that ends here is in the set.
    pub(super) member: bool,
    pub(super) below: BTreeMap<String, Self>,
}

impl FieldSet {
    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }

    /// Adds a subtree, unless it is empty.
    pub(super) fn put(&mut self, element: String, set: Self) {
        if !set.is_empty() {
            self.below.insert(element, set);
        }
    }

    pub(super) fn union(&mut self, other: &Self) {
        self.member |= other.member;
        for (element, set) in &other.below {
            match self.below.entry(element.clone()) {
                Entry::Occupied(mut own) => own.get_mut().union(set),
                Entry::Vacant(free) => {
                    free.insert(set.clone());
                }
            }
        }
    }

    /// As [`Self::union`], with a set that is not needed any more.
    pub(super) fn absorb(&mut self, other: Self) {
        self.member |= other.member;
        for (element, set) in other.below {
            match self.below.entry(element) {
                Entry::Occupied(mut own) => own.get_mut().absorb(set),
                Entry::Vacant(free) => drop(free.insert(set)),
            }
        }
    }

    /// Removes the paths of `other`, not what is below them.
    pub(super) fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        self.below.retain(|element, set| {
            if let Some(other) = other.below.get(element) {
                set.subtract(other);
            }
            !set.is_empty()
        });
    }

    /// Keeps only the paths that are in `other` too.
    pub(super) fn intersect(&mut self, other: &Self) {
        self.member &= other.member;
        self.below.retain(|element, set| {
            let Some(other) = other.below.get(element) else {
                return false;
            };
            set.intersect(other);
            !set.is_empty()
        });
    }

    /// Removes a path of named fields and all that is below it.
    pub(super) fn exclude(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let element = format!("f:{first}");
        if rest.is_empty() {
            self.below.remove(&element);
        } else if let Some(set) = self.below.get_mut(&element) {
            set.exclude(rest);
            if set.is_empty() {
                self.below.remove(&element);
            }
        }
    }

    /// Removes a path of named fields, not what is below it.
    pub(super) fn exclude_member(&mut self, path: &[&str]) {
        match path.split_first() {
            None => self.member = false,
            Some((first, rest)) => {
                let element = format!("f:{first}");
                if let Some(set) = self.below.get_mut(&element) {
                    set.exclude_member(rest);
                    if set.is_empty() {
                        self.below.remove(&element);
                    }
                }
            }
        }
    }

    /// Every path of the set in the form that messages use: `.spec.containers[name="a"].image`.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.walk(&mut String::new(), &mut paths);
        paths
    }

    fn walk(&self, path: &mut String, paths: &mut Vec<String>) {
        if self.member && !path.is_empty() {
            paths.push(path.clone());
        }
        for (element, set) in &self.below {
            let length = path.len();
            path.push_str(&shown(element));
            set.walk(path, paths);
            path.truncate(length);
        }
    }

    /// Reads `fieldsV1`; `None` for what is no such set.
    pub(super) fn from_json(value: &Value) -> Option<Self> {
        let mut set = Self::default();
        for (element, below) in value.as_object()? {
            if element == "." {
                set.member = true;
                continue;
            }
            if !["f:", "k:", "v:", "i:"]
                .iter()
                .any(|prefix| element.starts_with(prefix))
            {
                return None;
            }
            let mut child = Self::from_json(below)?;
            child.member |= child.below.is_empty();
            set.below.insert(element.clone(), child);
        }
        Some(set)
    }

    /// Writes `fieldsV1`.
    pub(super) fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.below.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (element, set) in &self.below {
            map.insert(element.clone(), set.to_json());
        }
        Value::Object(map)
    }
}

/// One path element as messages write it.
pub(super) fn shown(element: &str) -> String {
    match element.split_at_checked(2) {
        Some(("f:", name)) => format!(".{name}"),
        Some(("k:", keys)) => match serde_json::from_str(keys) {
            Ok(Value::Object(keys)) => {
                let keys: Vec<String> = keys
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                format!("[{}]", keys.join(","))
            }
            _ => format!("[{keys}]"),
        },
        Some(("v:", value)) => format!("[={value}]"),
        Some((_, index)) => format!("[{index}]"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_set_reads_and_writes_the_documented_form() {
        let text = json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}},
                "f:finalizers": {"v:\"a\"": {}}},
        });
        let set = FieldSet::from_json(&text).expect("a set");
        assert_eq!(set.to_json(), text);
        assert_eq!(
            set.paths(),
            [
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.finalizers[=\"a\"]",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].port",
            ]
        );
        assert!(FieldSet::from_json(&json!({"x": {}})).is_none());
        assert!(FieldSet::from_json(&json!([])).is_none());
    }

    #[test]
    fn sets_unite_subtract_and_intersect_by_path() {
        let read = |value| FieldSet::from_json(&value).expect("a set");
        let left = read(json!({"f:a": {".": {}, "f:x": {}}, "f:b": {}}));
        let right = read(json!({"f:a": {"f:x": {}, "f:y": {}}}));
        let mut both = left.clone();
        both.union(&right);
        assert_eq!(
            both.to_json(),
            json!({"f:a": {".": {}, "f:x": {}, "f:y": {}}, "f:b": {}})
        );
        let mut less = left.clone();
        less.subtract(&right);
        assert_eq!(less.to_json(), json!({"f:a": {}, "f:b": {}}));
        let mut common = left;
        common.intersect(&right);
        assert_eq!(common.to_json(), json!({"f:a": {"f:x": {}}}));
    }
}
