//! OpenAPI v3: the root document and one document per group and version, written from the schema
//! table and the resource descriptions whenever a client asks; nothing of it is kept. And an empty
//! document of version 2.
//!
//! kubectl reads here whether an operation takes `fieldValidation`, how lists merge, and what
//! `explain` prints. Pure.

mod paths;
mod schemas;
mod words;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value, json};

use crate::resource;
use crate::schema::{TABLE_HASH, fingerprint};
use paths::Paths;
use schemas::Schemas;

/// The root document: where each group's document is. The hash changes when schema or texts do, so a
/// client may cache what it got for as long as it likes.
pub fn root(build: &str) -> Vec<u8> {
    let hash = *TABLE_HASH ^ fingerprint(words::TABLE);
    let mut paths = Map::new();
    for (group, version) in resource::groups() {
        let path = group_path(group, version);
        let url = format!("/openapi/v3/{path}?hash={hash:016X}-{build}");
        paths.insert(path, json!({ "serverRelativeURL": url }));
    }
    let mut text = serde_json::to_vec(&json!({ "paths": paths })).unwrap_or_default();
    text.push(b'\n');
    text
}

/// The old document, of version 2, without types: kubectl insists on one for what it finds in no
/// newer document (a `List`, a kind that is not served), and leaves to the server what it finds in
/// none. In JSON.
pub fn old(build: &str) -> Value {
    json!({
        "swagger": "2.0",
        "info": {"title": TITLE, "version": build},
        "paths": {},
        "definitions": {},
    })
}

/// [`old`] as a protobuf message `openapi.v2.Document`, which is how kubectl asks for it.
pub fn old_protobuf(build: &str) -> Vec<u8> {
    let info = [message(1, TITLE.as_bytes()), message(2, build.as_bytes())].concat();
    [
        message(1, b"2.0"),
        message(2, &info),
        message(8, b""), // paths
        message(9, b""), // definitions
    ]
    .concat()
}

/// A protobuf field of up to 127 bytes.
fn message(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).expect("a title and a version are short");
    let mut field = vec![number << 3 | 2, length];
    field.extend_from_slice(bytes);
    field
}

const TITLE: &str = "Kubernetes";

/// `api/v1`, `apis/apps/v1`.
fn group_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// The document of one group and version, or `None` where it has no resources.
pub fn document(group: &str, version: &str, build: &str) -> Option<Vec<u8>> {
    let resources: Vec<_> = resource::all()
        .filter(|r| (r.group, r.version) == (group, version))
        .collect();
    if resources.is_empty() {
        return None;
    }
    let document = Document {
        build,
        paths: Paths {
            prefix: format!("/{}", group_path(group, version)),
            resources: &resources,
        },
        schemas: Schemas::of(&resources),
    };
    serde_json::to_vec(&document).ok()
}

struct Document<'a> {
    build: &'a str,
    paths: Paths<'a>,
    schemas: Schemas,
}

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("openapi", "3.0.0")?;
        map.serialize_entry("info", &json!({"title": TITLE, "version": self.build}))?;
        map.serialize_entry("paths", &self.paths)?;
        map.serialize_entry("components", &Components(&self.schemas))?;
        map.end()
    }
}

struct Components<'a>(&'a Schemas);

impl Serialize for Components<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("schemas", self.0)?;
        map.end()
    }
}

/// A group-version-kind as the extension of that name has it.
fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

const GVK: &str = "x-kubernetes-group-version-kind";

#[cfg(test)]
mod tests;
