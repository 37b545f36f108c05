//! `metadata.managedFields`: reading, writing and bounding the list of managers.

use serde_json::{Map, Value, json};

use super::fields::FieldSet;

/// Managers by update that an object keeps apart, as upstream; older ones are merged.
const UPDATERS_MAX: usize = 10;
/// The name of the entry that they are merged into.
const ANCIENT: &str = "ancient-changes";

/// Whether fields are owned by having been applied or by having been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// Who owns fields. An applier is the same one whatever version it applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manager {
    pub(super) name: String,
    pub(super) operation: Operation,
    pub(super) api_version: String,
    pub(super) subresource: String,
}

impl Manager {
    pub(super) fn is(&self, other: &Self) -> bool {
        (&self.name, self.operation, &self.subresource)
            == (&other.name, other.operation, &other.subresource)
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// As conflict messages name it.
    pub(super) fn shown(&self) -> String {
        let subresource = match &*self.subresource {
            "" => String::new(),
            name => format!(" with subresource {name:?}"),
        };
        let version = match self.operation {
            Operation::Update => format!(" using {}", self.api_version),
            Operation::Apply => String::new(),
        };
        format!("{:?}{subresource}{version}", self.name)
    }
}

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) manager: Manager,
    /// RFC 3339; empty if unknown.
    pub(super) time: String,
    pub(super) set: FieldSet,
}

impl Entry {
    /// Its place in the list.
    fn rank(&self) -> (Operation, [&str; 4]) {
        let manager = &self.manager;
        let texts = [
            &self.time,
            &manager.name,
            &manager.api_version,
            &manager.subresource,
        ];
        (manager.operation, texts.map(String::as_str))
    }
}

/// All entries of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Managed(pub(super) Vec<Entry>);

impl Managed {
    /// Reads the list; one that cannot be read in full is none.
    pub(super) fn of(object: &Value) -> Self {
        let list = object
            .pointer("/metadata/managedFields")
            .and_then(Value::as_array);
        let entries: Option<Vec<Entry>> = list.into_iter().flatten().map(read).collect();
        Self(entries.unwrap_or_default())
    }

    /// Writes the list into an object, sorted as upstream sorts it.
    pub(super) fn put(mut self, object: &mut Value) {
        self.0.retain(|entry| !entry.set.is_empty());
        self.0.sort_by(|a, b| a.rank().cmp(&b.rank()));
        let Some(metadata) = metadata_of(object) else {
            return;
        };
        if self.0.is_empty() {
            metadata.remove("managedFields");
        } else {
            let list: Vec<Value> = self.0.iter().map(write).collect();
            metadata.insert("managedFields".to_owned(), list.into());
        }
    }

    pub(super) fn find(&mut self, manager: &Manager) -> Option<&mut Entry> {
        self.0.iter_mut().find(|entry| entry.manager.is(manager))
    }

    /// Merges the oldest updaters until few enough are left.
    pub(super) fn cap(&mut self) {
        let mut updaters: Vec<usize> = (0..self.0.len())
            .filter(|at| self.0[*at].manager.operation == Operation::Update)
            .collect();
        let excess = updaters.len().saturating_sub(UPDATERS_MAX);
        if excess == 0 {
            return;
        }
        updaters.sort_by_key(|at| (self.0[*at].time.clone(), self.0[*at].manager.name.clone()));
        // Merging n entries into one makes n - 1 fewer.
        let oldest = &updaters[..=excess];
        let mut merged: Vec<Entry> = Vec::new();
        for at in oldest {
            let mut entry = self.0[*at].clone();
            ANCIENT.clone_into(&mut entry.manager.name);
            entry.manager.subresource = String::new();
            match merged
                .iter_mut()
                .find(|other| other.manager.is(&entry.manager))
            {
                Some(other) => {
                    other.set.union(&entry.set);
                    other.time = entry.time;
                }
                None => merged.push(entry),
            }
        }
        let mut at = 0;
        self.0.retain(|_| {
            at += 1;
            !oldest.contains(&(at - 1))
        });
        self.0.extend(merged);
    }
}

fn read(entry: &Value) -> Option<Entry> {
    let text = |key: &str| {
        entry
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let operation = match &*text("operation") {
        "Apply" => Operation::Apply,
        "Update" => Operation::Update,
        _ => return None,
    };
    Some(Entry {
        manager: Manager {
            name: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
        },
        time: text("time"),
        set: match entry.get("fieldsV1") {
            Some(fields) => FieldSet::from_json(fields)?,
            None => FieldSet::default(),
        },
    })
}

fn write(entry: &Entry) -> Value {
    let mut fields = Map::new();
    let mut put = |key: &str, value: &str| {
        if !value.is_empty() {
            fields.insert(key.to_owned(), value.into());
        }
    };
    let manager = &entry.manager;
    put("manager", &manager.name);
    put(
        "operation",
        if manager.operation == Operation::Apply {
            "Apply"
        } else {
            "Update"
        },
    );
    put("apiVersion", &manager.api_version);
    put("subresource", &manager.subresource);
    put("time", &entry.time);
    put("fieldsType", "FieldsV1");
    fields.insert("fieldsV1".to_owned(), entry.set.to_json());
    Value::Object(fields)
}

/// The metadata of an object, made if it is not there.
fn metadata_of(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object
        .as_object_mut()?
        .entry("metadata")
        .or_insert_with(|| json!({}))
        .as_object_mut()
}

/// Takes the list out of an object.
pub(super) fn strip(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
}
