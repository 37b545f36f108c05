//! Objects as stored bytes, and the bytes that a response shows.

use bytes::Bytes;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};

use crate::{status::Status, store::Revision};

/// Largest object that is kept; a request's body may have as much.
pub const OBJECT_BYTES_MAX: usize = 3 << 20;

/// Stored form: `apiVersion`, `kind`, `metadata` first, no resourceVersion.
///
/// # Panics
/// Never: the registry only encodes objects with metadata.
pub fn stored(object: &Value) -> Bytes {
    let map = object
        .as_object()
        .expect("an object on the write path is a JSON object");
    serde_json::to_vec(&Ordered(map))
        .expect("JSON trees always serialize")
        .into()
}

/// Stored form of an object that is not too large to be kept: many small changes must not make
/// what one request may not.
///
/// # Errors
/// 413 beyond [`OBJECT_BYTES_MAX`].
pub fn bounded(object: &Value) -> Result<Bytes, Status> {
    let stored = stored(object);
    if stored.len() > OBJECT_BYTES_MAX {
        return Err(Status::object_too_large(stored.len(), OBJECT_BYTES_MAX));
    }
    Ok(stored)
}

/// Stored bytes with the revision spliced in, as clients see them.
pub fn shown(stored: &[u8], revision: Revision) -> Bytes {
    crate::cache::entry::splice(stored, revision)
}

struct Ordered<'a>(&'a Map<String, Value>);

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const FIRST: [&str; 2] = ["apiVersion", "kind"];
        let mut map = serializer.serialize_map(None)?;
        for key in FIRST {
            map.serialize_entry(key, self.0.get(key).unwrap_or(&Value::Null))?;
        }
        let empty = Map::new();
        let metadata = self
            .0
            .get("metadata")
            .and_then(Value::as_object)
            .unwrap_or(&empty);
        map.serialize_entry("metadata", &Versionless(metadata))?;
        for (key, value) in self.0 {
            if !FIRST.contains(&key.as_str()) && key != "metadata" {
                map.serialize_entry(key, value)?;
            }
        }
        map.end()
    }
}

struct Versionless<'a>(&'a Map<String, Value>);

impl Serialize for Versionless<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let rest = self.0.iter().filter(|(key, _)| *key != "resourceVersion");
        serializer.collect_map(rest)
    }
}
