//! Objects as tables and as bare metadata.

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::options;
use crate::{
    cache::Entry,
    resource::{Column, Resource, table::NAME_COLUMN},
};

/// What a table row carries besides its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Include {
    Nothing,
    Metadata,
    Object,
}

impl Include {
    pub(super) fn parse(query: &str) -> Self {
        match options::value(query, "includeObject").as_deref() {
            Some("None") => Self::Nothing,
            Some("Object") => Self::Object,
            _ => Self::Metadata,
        }
    }
}

/// A table of these objects; `columns` is false where the client has seen them.
pub(super) fn table(
    resource: &Resource,
    entries: &[&Entry],
    include: Include,
    columns: bool,
    now: Timestamp,
    metadata: &Value,
) -> Value {
    let objects = entries.iter().map(|entry| entry.value());
    rows_of(resource, objects, include, columns, now, metadata)
}

/// A table of one object that is not in the cache: the answer to a write.
pub(super) fn table_of(
    resource: &Resource,
    object: Value,
    include: Include,
    now: Timestamp,
) -> Value {
    let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
    rows_of(
        resource,
        std::iter::once(object),
        include,
        true,
        now,
        &metadata,
    )
}

fn rows_of(
    resource: &Resource,
    objects: impl Iterator<Item = Value>,
    include: Include,
    columns: bool,
    now: Timestamp,
    metadata: &Value,
) -> Value {
    let rows: Vec<Value> = objects
        .map(|object| {
            let cells: Vec<Value> = columns_of(resource)
                .map(|column| (column.cell)(&object, now))
                .collect();
            let shown = match include {
                Include::Nothing => Value::Null,
                Include::Metadata => partial(&object["metadata"]),
                Include::Object => resource.shown(&object),
            };
            json!({"cells": cells, "object": shown})
        })
        .collect();
    let definitions: Vec<Value> = if columns {
        columns_of(resource)
            .map(|column| {
                json!({
                    "name": column.name,
                    "type": column.kind,
                    "format": column.format,
                    "description": "",
                    "priority": column.priority,
                })
            })
            .collect()
    } else {
        Vec::new()
    };
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

/// All columns: the name comes first where the resource does not place it.
fn columns_of(resource: &Resource) -> impl Iterator<Item = &Column> {
    let placed = resource
        .columns
        .iter()
        .any(|column| column.format == "name");
    let name = (!placed).then_some(&NAME_COLUMN);
    name.into_iter().chain(resource.columns)
}

/// An object's bytes in the version that the client asked for.
pub(super) fn plain(resource: &Resource, bytes: Bytes) -> Bytes {
    if resource.view.is_none() {
        return bytes;
    }
    let stored: Value = serde_json::from_slice(&bytes).expect("the registry writes JSON");
    bytes_of(&resource.shown(&stored))
}

/// A `PartialObjectMetadata` of this metadata.
pub(super) fn partial(metadata: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
    })
}

/// One object's metadata as bytes.
pub(super) fn partial_bytes(entry: &Entry) -> Bytes {
    let object = entry.value();
    bytes_of(&partial(&object["metadata"]))
}

pub(super) fn bytes_of(value: &Value) -> Bytes {
    serde_json::to_vec(value)
        .expect("JSON trees always serialize")
        .into()
}
