//! One object as the cache holds it: encoded once, with what selectors ask for.
//!
//! Stored bytes begin `{"apiVersion":..,"kind":..,"metadata":{` and carry no
//! resourceVersion: that is the commit's revision, known only afterwards, and
//! is spliced in behind that opening when an entry is built.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::Revision;
use crate::resource::Resource;

/// Where the resourceVersion goes: behind the first of these in stored bytes.
const OPENING: &[u8] = br#""metadata":{"#;

/// An object in the cache.
#[derive(Debug)]
pub struct Entry {
    /// `namespace/name`, or `name` if cluster-scoped.
    pub key: Arc<str>,
    /// Revision of the last write.
    pub revision: Revision,
    /// The JSON document, resourceVersion included.
    pub bytes: Bytes,
    /// Labels, ascending by key.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the resource's selectable fields, in their order.
    pub fields: Box<[Box<str>]>,
    /// The object's UID.
    pub uid: Box<str>,
    /// UIDs of its owners.
    pub owners: Box<[Box<str>]>,
    /// Which of them is its controller.
    pub controller: Option<usize>,
}

/// Why stored bytes make no entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// Not the JSON this server writes.
    #[error("stored bytes are not an object: {0}")]
    Json(#[from] serde_json::Error),
    /// The opening is missing.
    #[error("stored bytes have no metadata")]
    NoMetadata,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow, default)]
    uid: Cow<'a, str>,
    #[serde(borrow, default)]
    labels: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    #[serde(borrow, default, rename = "ownerReferences")]
    owners: Vec<Owner<'a>>,
}

#[derive(Deserialize)]
struct Owner<'a> {
    #[serde(borrow, default)]
    uid: Cow<'a, str>,
    #[serde(default)]
    controller: Option<bool>,
}

impl Entry {
    /// Builds the entry and the watch frame that says `label` about it. The
    /// entry's bytes are a slice of the frame: one allocation for both.
    ///
    /// # Errors
    /// [`EntryError`] if the bytes are not what the registry writes.
    pub fn parse(
        resource: &Resource,
        key: &str,
        revision: Revision,
        stored: &[u8],
        label: &'static str,
    ) -> Result<(Arc<Self>, Bytes), EntryError> {
        let (frame, bytes) = frame(stored, revision, label)?;
        let entry = Self::of(resource, key, revision, stored, bytes)?;
        Ok((Arc::new(entry), frame))
    }

    /// Builds an entry that nobody is told of: its bytes have no frame around
    /// them and take no more memory than they need.
    ///
    /// # Errors
    /// As for [`Self::parse`].
    pub fn load(
        resource: &Resource,
        key: &str,
        revision: Revision,
        stored: &[u8],
    ) -> Result<Arc<Self>, EntryError> {
        let (_, framed) = frame(stored, revision, "")?;
        let bytes = Bytes::copy_from_slice(&framed);
        Ok(Arc::new(Self::of(resource, key, revision, stored, bytes)?))
    }

    fn of(
        resource: &Resource,
        key: &str,
        revision: Revision,
        stored: &[u8],
        bytes: Bytes,
    ) -> Result<Self, EntryError> {
        let mut levels = Levels(vec![("", serde_json::from_slice(stored)?)]);
        let metadata = levels.value("metadata").ok_or(EntryError::NoMetadata)?;
        let metadata: Metadata<'_> = serde_json::from_str(metadata.get())?;
        let labels = metadata
            .labels
            .iter()
            .map(|(k, v)| (Box::from(&**k), Box::from(&**v)))
            .collect();
        let fields = resource.fields.iter();
        let fields = fields.map(|f| levels.text(f.pointer, f.default)).collect();
        let uid = Box::from(&*metadata.uid);
        let owners = &metadata.owners;
        let controller = owners.iter().position(|o| o.controller == Some(true));
        let owners = owners.iter().map(|o| Box::from(&*o.uid)).collect();
        Ok(Self {
            key: key.into(),
            revision,
            bytes,
            labels,
            fields,
            uid,
            owners,
            controller,
        })
    }

    /// The last state of a deleted object, at the revision of its deletion.
    pub(super) fn deleted_at(&self, revision: Revision) -> (Self, Bytes) {
        let stored = without_version(&self.bytes);
        let (frame, bytes) =
            frame(&stored, revision, "DELETED").expect("an entry's bytes have metadata");
        let entry = Self {
            key: Arc::clone(&self.key),
            revision,
            bytes,
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            uid: self.uid.clone(),
            owners: self.owners.clone(),
            controller: self.controller,
        };
        (entry, frame)
    }

    /// Namespace, empty if cluster-scoped.
    pub fn namespace(&self) -> &str {
        self.key
            .split_once('/')
            .map_or("", |(namespace, _)| namespace)
    }

    /// Name.
    pub fn name(&self) -> &str {
        self.key
            .split_once('/')
            .map_or(&*self.key, |(_, name)| name)
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        let index = self.labels.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        self.labels.get(index).map(|(_, value)| &**value)
    }

    /// UID of the owner that controls it.
    pub fn controller_uid(&self) -> Option<&str> {
        self.owners.get(self.controller?).map(|uid| &**uid)
    }

    /// The whole object as a tree.
    ///
    /// # Panics
    /// Never: the bytes were parsed when the entry was built.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes).expect("cached bytes are JSON")
    }

    /// The object as a typed value.
    ///
    /// # Errors
    /// If the object does not fit `T`.
    pub fn decode<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.bytes)
    }
}

/// A watch event's line around the object: `{"type":"ADDED","object":{..}}\n`.
fn frame(stored: &[u8], revision: Revision, label: &str) -> Result<(Bytes, Bytes), EntryError> {
    let opening = find(stored, OPENING).ok_or(EntryError::NoMetadata)? + OPENING.len();
    let (head, tail) = stored.split_at(opening);
    let mut line = Vec::with_capacity(stored.len() + 80);
    line.extend_from_slice(br#"{"type":""#);
    line.extend_from_slice(label.as_bytes());
    line.extend_from_slice(br#"","object":"#);
    let start = line.len();
    line.extend_from_slice(head);
    line.extend_from_slice(br#""resourceVersion":""#);
    line.extend_from_slice(revision.to_string().as_bytes());
    line.push(b'"');
    if tail.first() != Some(&b'}') {
        line.push(b',');
    }
    line.extend_from_slice(tail);
    let end = line.len();
    line.extend_from_slice(b"}\n");
    let line = Bytes::from(line);
    let object = line.slice(start..end);
    Ok((line, object))
}

/// Stored bytes as clients see them, with their revision.
///
/// # Panics
/// If the bytes are not what the registry stores.
pub fn splice(stored: &[u8], revision: Revision) -> Bytes {
    frame(stored, revision, "")
        .expect("stored bytes have metadata")
        .1
}

/// An entry's bytes as they were stored.
pub fn unspliced(shown: &[u8]) -> Vec<u8> {
    without_version(shown)
}

/// The frame of `bytes` under another label; for watchers whose selector an
/// object enters or leaves.
pub(super) fn relabel(bytes: &[u8], label: &str) -> Bytes {
    let mut line = Vec::with_capacity(bytes.len() + 40);
    line.extend_from_slice(br#"{"type":""#);
    line.extend_from_slice(label.as_bytes());
    line.extend_from_slice(br#"","object":"#);
    line.extend_from_slice(bytes);
    line.extend_from_slice(b"}\n");
    Bytes::from(line)
}

/// Undoes the splice.
fn without_version(bytes: &[u8]) -> Vec<u8> {
    let opening = find(bytes, OPENING).expect("an entry has metadata") + OPENING.len();
    let (head, tail) = bytes.split_at(opening);
    // `"resourceVersion":"N"` and perhaps a comma.
    let close = tail.iter().enumerate().filter(|(_, b)| **b == b'"').nth(3);
    let mut end = close.map_or(0, |(index, _)| index + 1);
    if tail.get(end) == Some(&b',') {
        end += 1;
    }
    [head, tail.get(end..).unwrap_or_default()].concat()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

/// An object of raw JSON, one level deep.
type Level<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// Objects within a document by their path (`""`, `spec`), each read once.
struct Levels<'a>(Vec<(&'static str, Level<'a>)>);

impl<'a> Levels<'a> {
    fn value(&mut self, path: &'static str) -> Option<&'a RawValue> {
        let (parent, last) = path.rsplit_once('.').unwrap_or(("", path));
        if !self.0.iter().any(|(known, _)| *known == parent) {
            let raw = self.value(parent);
            let level = raw.and_then(|raw| serde_json::from_str(raw.get()).ok());
            self.0.push((parent, level.unwrap_or_default()));
        }
        let (_, level) = self.0.iter().find(|(known, _)| *known == parent)?;
        level.get(last).copied()
    }

    /// A scalar as selectors compare it.
    fn text(&mut self, path: &'static str, default: &str) -> Box<str> {
        let Some(raw) = self.value(path) else {
            return default.into();
        };
        match serde_json::from_str::<Cow<'_, str>>(raw.get()) {
            Ok(text) => text.into(),
            Err(_) => raw.get().into(), // booleans and numbers as they are written
        }
    }
}
