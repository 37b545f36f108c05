//! The types of a document: everything its kinds reach.

use std::collections::{BTreeMap, BTreeSet};

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value, json};

use super::{GVK, gvk, words::Words};
use crate::resource::Resource;
use crate::schema::{Field, Kind, ObjectType, Topology, schema};

/// Types that are no objects with fields, by the name other types refer to them.
const SCALARS: [&str; 6] = [
    "io.k8s.apimachinery.pkg.api.resource.Quantity",
    "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1",
    "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Time",
    "io.k8s.apimachinery.pkg.runtime.RawExtension",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
];

/// The object types of one document, by full name.
pub(super) struct Schemas {
    types: BTreeMap<String, &'static ObjectType>,
}

impl Schemas {
    pub(super) fn of(resources: &[&Resource]) -> Self {
        let mut seen = BTreeSet::new();
        let mut types = BTreeMap::new();
        let mut todo: Vec<&'static ObjectType> = Vec::new();
        for resource in resources {
            let (group, version) = (resource.group, resource.version);
            todo.extend(schema().kind(group, version, resource.kind));
            todo.extend(schema().kind(group, version, &format!("{}List", resource.kind)));
            let posted = resource.subresources.iter();
            todo.extend(posted.filter_map(|sub| schema().kind(sub.group, sub.version, sub.kind)));
        }
        todo.extend(schema().named("meta.v1.DeleteOptions"));
        todo.extend(schema().named("meta.v1.Status"));
        while let Some(object) = todo.pop() {
            if seen.insert(object.name) {
                types.insert(object.full_name(), object);
                todo.extend(object.fields.iter().filter_map(|field| target(&field.kind)));
            }
        }
        Self { types }
    }
}

/// The object type that a field leads to.
fn target(kind: &Kind) -> Option<&'static ObjectType> {
    match kind {
        Kind::Object(index) => Some(schema().object(*index)),
        Kind::List(of) | Kind::Map(of) => target(of),
        _ => None,
    }
}

impl Serialize for Schemas {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for name in SCALARS {
            map.serialize_entry(name, &scalar(name))?;
        }
        let words = Words::read();
        for (name, object) in &self.types {
            map.serialize_entry(name, &definition(object, &words))?;
        }
        map.end()
    }
}

fn scalar(name: &str) -> Value {
    match name.rsplit('.').next() {
        Some("Quantity") => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        Some("IntOrString") => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        Some("Time" | "MicroTime") => json!({"type": "string", "format": "date-time"}),
        _ => json!({"type": "object"}),
    }
}

fn definition(object: &ObjectType, words: &Words) -> Value {
    let mut fields = Map::new();
    for field in &object.fields {
        let mut property = property(field);
        if let Some(text) = words.of_field(object, field) {
            property["description"] = text.into();
        }
        fields.insert(field.name.to_owned(), property);
    }
    let mut definition = json!({"type": "object"});
    if let Some(text) = words.of(object) {
        definition["description"] = text.into();
    }
    if !fields.is_empty() {
        definition["properties"] = fields.into();
    }
    let required: Vec<&str> = object
        .fields
        .iter()
        .filter(|field| field.required)
        .map(|field| field.name)
        .collect();
    if !required.is_empty() {
        definition["required"] = required.into();
    }
    if object.atomic {
        definition["x-kubernetes-map-type"] = "atomic".into();
    }
    let kinds: Vec<Value> = schema()
        .kinds()
        .filter(|(_, of)| std::ptr::eq(*of, object))
        .map(|(of, _)| gvk(of.group, of.version, of.kind))
        .collect();
    if !kinds.is_empty() {
        definition[GVK] = kinds.into();
    }
    definition
}

fn property(field: &Field) -> Value {
    let mut property = value(&field.kind);
    let is_map = matches!(field.kind, Kind::Map(_) | Kind::Object(_));
    let form = if is_map {
        "x-kubernetes-map-type"
    } else {
        "x-kubernetes-list-type"
    };
    match &field.topology {
        Topology::Default => {}
        Topology::Atomic => property[form] = "atomic".into(),
        Topology::Granular => property[form] = "granular".into(),
        Topology::Set => property[form] = "set".into(),
        Topology::Map(keys) => {
            property[form] = "map".into();
            property["x-kubernetes-list-map-keys"] = keys.clone().into();
        }
    }
    let strategy = match (field.strategy.merge_key, field.strategy.retain_keys) {
        (Some(_), true) => "merge,retainKeys",
        (Some(_), false) => "merge",
        (None, true) => "retainKeys",
        (None, false) => return property,
    };
    property["x-kubernetes-patch-strategy"] = strategy.into();
    if let Some(key) = field.strategy.merge_key.filter(|key| !key.is_empty()) {
        property["x-kubernetes-patch-merge-key"] = key.into();
    }
    property
}

/// A reference to a type of this document, in the form upstream writes.
pub(super) fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn value(kind: &Kind) -> Value {
    let named = |name: &str| json!({"allOf": [reference(name)]});
    match kind {
        Kind::String => json!({"type": "string"}),
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Int32 => json!({"type": "integer", "format": "int32"}),
        Kind::Int64 => json!({"type": "integer", "format": "int64"}),
        Kind::Double => json!({"type": "number", "format": "double"}),
        Kind::Bytes => json!({"type": "string", "format": "byte"}),
        Kind::Quantity => named(SCALARS[0]),
        Kind::Fields => named(SCALARS[1]),
        Kind::MicroTime => named(SCALARS[2]),
        Kind::Time => named(SCALARS[3]),
        Kind::Raw => named(SCALARS[4]),
        Kind::IntOrString => named(SCALARS[5]),
        Kind::Object(index) => named(&schema().object(*index).full_name()),
        Kind::List(of) => json!({"type": "array", "items": value(of)}),
        Kind::Map(of) => json!({"type": "object", "additionalProperties": value(of)}),
    }
}
