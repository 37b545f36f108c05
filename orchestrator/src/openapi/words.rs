//! What `kubectl explain` says: a short text per type and field, in a table
//! that is part of the binary and read when a document is asked for. Pure.

use std::collections::HashMap;

use crate::schema::{Field, Kind, ObjectType, schema};

/// Lines: `>TYPE TEXT` begins a type, `FIELD TEXT` is one of its fields. The
/// type `*` stands for all.
pub(super) const TABLE: &str = include_str!("words.txt");
/// Fields of `*` that are meant only where a type has metadata.
const OF_OBJECTS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

/// The table, by type.
#[derive(Debug, Default)]
pub(super) struct Words {
    types: HashMap<&'static str, &'static str>,
    fields: HashMap<(&'static str, &'static str), &'static str>,
}

impl Words {
    /// Reads the table.
    pub(super) fn read() -> Self {
        let mut words = Self::default();
        let mut of = "";
        for line in TABLE.lines() {
            let (name, text) = line.split_once(' ').unwrap_or((line, ""));
            if let Some(name) = name.strip_prefix('>') {
                of = name;
                words.types.insert(of, text);
            } else {
                words.fields.insert((of, name), text);
            }
        }
        words
    }

    /// What a type is.
    pub(super) fn of(&self, object: &ObjectType) -> Option<&'static str> {
        self.types.get(object.name).copied()
    }

    /// What a field is: by its own row, by that for all types, or by the type
    /// that it leads to.
    pub(super) fn of_field(&self, object: &ObjectType, field: &Field) -> Option<&'static str> {
        let own = self.fields.get(&(object.name, field.name)).copied();
        let common = || {
            let has_metadata = object.fields.iter().any(|field| field.name == "metadata");
            let meant = has_metadata || !OF_OBJECTS.contains(&field.name);
            let row = self.fields.get(&("*", field.name)).copied();
            row.filter(|_| meant)
        };
        let target = || match &field.kind {
            Kind::Object(index) => self.of(schema().object(*index)),
            _ => None,
        };
        own.or_else(common).or_else(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource;

    #[test]
    fn each_served_kind_and_all_its_top_fields_are_described() {
        let words = Words::read();
        for resource in resource::all() {
            let (group, version, kind) = (resource.group, resource.version, resource.kind);
            let object = schema().kind(group, version, kind).unwrap();
            assert!(words.of(object).is_some(), "{kind} has no description");
            for field in &object.fields {
                let text = words.of_field(object, field);
                assert!(text.is_some(), "{kind}.{} has no description", field.name);
            }
        }
    }

    #[test]
    fn each_row_is_about_something_that_exists() {
        let words = Words::read();
        let rows = TABLE.lines().count();
        assert_eq!(
            rows,
            words.types.len() + words.fields.len(),
            "a row is there twice"
        );
        for (&name, text) in &words.types {
            assert!(
                name == "*" || schema().named(name).is_some(),
                "no type {name}"
            );
            assert!(name == "*" || text.ends_with('.'), "{name}: {text:?}");
        }
        for (&(of, name), text) in &words.fields {
            let has = |object: &ObjectType| object.fields.iter().any(|field| field.name == name);
            let exists = match schema().named(of) {
                Some(object) => has(object),
                None => schema().objects().iter().any(has),
            };
            assert!(exists, "{of} has no field {name}");
            // Clients show what the type is behind it.
            let twice = words.types.values().any(|other| other == text);
            assert!(!twice, "{of}.{name} and a type are both {text:?}");
            assert!(text.ends_with('.'), "{of}.{name}: {text:?}");
        }
    }

    #[test]
    fn a_word_for_all_types_is_not_for_references() {
        let words = Words::read();
        let reference = schema().named("core.v1.ObjectReference").unwrap();
        let kind = reference.fields.iter().find(|field| field.name == "kind");
        assert_eq!(words.of_field(reference, kind.unwrap()), None);
    }
}
