//! Protobuf request bodies: the `k8s\0` envelope and what is in it, to a JSON value.
//!
//! One decoder walks the wire format by the schema table, which carries every field's number. That
//! is smaller than generated types for some 400 messages plus code to turn each into JSON, keeps
//! the difference between absent and zero, and can say which field numbers it does not know: they
//! are listed, never dropped in silence.
//!
//! Pure. Nesting is bounded by the table, which has no cycles.

mod wire;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::schema::{self, Field, Kind, ObjectType, ParseError, Timestamp, parse_json, schema};
pub use wire::WireError;
use wire::{Fields, Raw};

/// What a protobuf body starts with.
pub const MAGIC: &[u8; 4] = b"k8s\0";
/// The media type of such bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// Unknown fields listed at most.
const UNKNOWN_MAX: usize = 100;

/// A decoded body, not yet converted (see `schema::convert`): Go writes zero values out, so they
/// are in here too.
#[derive(Debug)]
pub struct Decoded {
    pub object: &'static ObjectType,
    /// With `apiVersion` and `kind`.
    pub value: Value,
    /// Paths of fields that the table does not know, by number: `spec.#99`; at most 100.
    pub unknown: Vec<String>,
}

/// A body that is not what it claims to be.
#[derive(Debug, Error)]
pub enum ProtoError {
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    NoMagic,
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
    #[error("content encoding {0:?} of the protobuf envelope is not supported; send none")]
    Encoding(String),
    #[error("{path}: {error}")]
    Wire { path: String, error: WireError },
    #[error("{path}: {error}")]
    Json { path: String, error: ParseError },
}

/// Decodes a whole request body.
pub fn decode(body: &[u8]) -> Result<Decoded, ProtoError> {
    let envelope = body.strip_prefix(MAGIC).ok_or(ProtoError::NoMagic)?;
    let at = |path: &str| {
        let path = path.to_owned();
        move |error| ProtoError::Wire { path, error }
    };
    let (mut api_version, mut kind, mut raw) = ("", "", &[][..]);
    for field in Fields::new(envelope) {
        let (number, value) = field.map_err(at("envelope"))?;
        match number {
            1 => {
                for field in Fields::new(value.bytes().map_err(at("typeMeta"))?) {
                    let (number, value) = field.map_err(at("typeMeta"))?;
                    match number {
                        1 => api_version = value.text().map_err(at("apiVersion"))?,
                        2 => kind = value.text().map_err(at("kind"))?,
                        _ => {}
                    }
                }
            }
            2 => raw = value.bytes().map_err(at("raw"))?,
            3 => {
                let encoding = value.text().map_err(at("contentEncoding"))?;
                if !encoding.is_empty() {
                    return Err(ProtoError::Encoding(encoding.to_owned()));
                }
            }
            _ => {}
        }
    }
    let object = find(api_version, kind).ok_or_else(|| ProtoError::UnknownKind {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
    })?;
    let mut walk = Walk {
        path: String::new(),
        unknown: Vec::new(),
    };
    let mut fields = walk.object(object, raw)?;
    fields.insert("apiVersion".to_owned(), api_version.into());
    fields.insert("kind".to_owned(), kind.into());
    Ok(Decoded {
        object,
        value: Value::Object(fields),
        unknown: walk.unknown,
    })
}

/// `DeleteOptions` exist in every group and are one type.
fn find(api_version: &str, kind: &str) -> Option<&'static ObjectType> {
    match kind {
        "DeleteOptions" => schema().named("meta.v1.DeleteOptions"),
        _ => schema().api_kind(api_version, kind),
    }
}

struct Walk {
    /// Where the walk is, for messages.
    path: String,
    unknown: Vec<String>,
}

impl Walk {
    fn object(
        &mut self,
        object: &ObjectType,
        bytes: &[u8],
    ) -> Result<Map<String, Value>, ProtoError> {
        let mut into = Map::new();
        self.fields(object, 0, bytes, &mut into)?;
        Ok(into)
    }

    /// Reads the fields of a message, or of the message `outer` that Go inlines into it.
    fn fields(
        &mut self,
        object: &ObjectType,
        outer: u16,
        bytes: &[u8],
        into: &mut Map<String, Value>,
    ) -> Result<(), ProtoError> {
        for field in Fields::new(bytes) {
            let (number, raw) = field.map_err(|error| self.wire(error))?;
            let named = |field: &&Field| {
                field.outer == outer && field.number != 0 && u32::from(field.number) == number
            };
            if let Some(field) = object.fields.iter().find(named) {
                self.at(&format!(".{}", field.name), |walk| {
                    walk.field(field, raw, into)
                })?;
            } else if let Some(inlined) = u16::try_from(number).ok().filter(|number| {
                outer == 0 && object.fields.iter().any(|field| field.outer == *number)
            }) {
                let bytes = raw.bytes().map_err(|error| self.wire(error))?;
                self.fields(object, inlined, bytes, into)?;
            } else {
                self.note(number);
            }
        }
        Ok(())
    }

    /// Lists a field that the table does not know. What is listed is bounded in number and length:
    /// a map's key, as long as the body, is part of the path.
    fn note(&mut self, number: u32) {
        if self.unknown.len() < UNKNOWN_MAX {
            let path = format!("{}.#{number}", schema::clip(&self.path));
            self.unknown.push(path.trim_start_matches('.').to_owned());
        }
    }

    fn at<T>(
        &mut self,
        step: &str,
        work: impl FnOnce(&mut Self) -> Result<T, ProtoError>,
    ) -> Result<T, ProtoError> {
        let length = self.path.len();
        self.path.push_str(step);
        let done = work(self);
        self.path.truncate(length);
        done
    }

    fn wire(&self, error: WireError) -> ProtoError {
        ProtoError::Wire {
            path: self.path.trim_start_matches('.').to_owned(),
            error,
        }
    }

    fn field(
        &mut self,
        field: &Field,
        raw: Raw<'_>,
        into: &mut Map<String, Value>,
    ) -> Result<(), ProtoError> {
        match &field.kind {
            Kind::List(of) => {
                let items = self.items(of, raw)?;
                if let Value::Array(list) = into
                    .entry(field.name)
                    .or_insert_with(|| Value::Array(Vec::new()))
                {
                    list.extend(items);
                }
            }
            Kind::Map(of) => {
                let (key, value) = self.entry(of, field.wrapped, raw)?;
                if let Value::Object(entries) = into
                    .entry(field.name)
                    .or_insert_with(|| Value::Object(Map::new()))
                {
                    entries.insert(key, value);
                }
            }
            kind => {
                if let Some(value) = self.value(kind, raw)? {
                    into.insert(field.name.to_owned(), value);
                }
            }
        }
        Ok(())
    }

    /// One item, or several where numbers are packed.
    fn items(&mut self, of: &Kind, raw: Raw<'_>) -> Result<Vec<Value>, ProtoError> {
        let numeric = matches!(of, Kind::Int32 | Kind::Int64 | Kind::Bool);
        if let (true, Raw::Bytes(packed)) = (numeric, raw) {
            let numbers = wire::packed(packed).map_err(|error| self.wire(error))?;
            return Ok(numbers
                .into_iter()
                .map(|number| integer(of, number))
                .collect());
        }
        Ok(self.value(of, raw)?.into_iter().collect())
    }

    fn entry(
        &mut self,
        of: &Kind,
        wrapped: bool,
        raw: Raw<'_>,
    ) -> Result<(String, Value), ProtoError> {
        let (mut key, mut value) = ("", Raw::Bytes(&[]));
        for field in Fields::new(raw.bytes().map_err(|error| self.wire(error))?) {
            match field.map_err(|error| self.wire(error))? {
                (1, raw) => key = raw.text().map_err(|error| self.wire(error))?,
                (2, raw) => value = raw,
                _ => {}
            }
        }
        let value = self.at(&format!("[{key}]"), |walk| match of {
            Kind::List(of) if wrapped => {
                let mut items = Vec::new();
                for field in Fields::new(value.bytes().map_err(|error| walk.wire(error))?) {
                    match field.map_err(|error| walk.wire(error))? {
                        (1, raw) => items.extend(walk.items(of, raw)?),
                        (number, _) => walk.note(number),
                    }
                }
                Ok(Value::Array(items))
            }
            of => Ok(walk.value(of, value)?.unwrap_or(Value::Null)),
        })?;
        Ok((key.to_owned(), value))
    }

    /// A single value; `None` for a time that is not set.
    fn value(&mut self, kind: &Kind, raw: Raw<'_>) -> Result<Option<Value>, ProtoError> {
        let wrong = |error| ProtoError::Wire {
            path: self.path.trim_start_matches('.').to_owned(),
            error,
        };
        Ok(Some(match kind {
            Kind::String => raw.text().map_err(wrong)?.into(),
            Kind::Bool | Kind::Int32 | Kind::Int64 => integer(kind, raw.integer().map_err(wrong)?),
            Kind::Double => raw.double().map_err(wrong)?.into(),
            Kind::Bytes => STANDARD.encode(raw.bytes().map_err(wrong)?).into(),
            Kind::Object(index) => {
                let bytes = raw.bytes().map_err(wrong)?;
                Value::Object(self.object(schema().object(*index), bytes)?)
            }
            Kind::Quantity => wire::first_text(raw, 1).map_err(wrong)?.into(),
            Kind::IntOrString => int_or_string(raw).map_err(wrong)?,
            Kind::Time | Kind::MicroTime => {
                let time = timestamp(raw).map_err(wrong)?;
                return Ok(time.map(|time| match kind {
                    Kind::Time => time.to_seconds().into(),
                    _ => time.to_micros().into(),
                }));
            }
            Kind::Fields | Kind::Raw => self.embedded(raw)?,
            // The schema has lists and maps as fields only.
            Kind::List(_) | Kind::Map(_) => return Err(wrong(WireError::Type)),
        }))
    }

    /// JSON inside a message: `RawExtension` and `FieldsV1`.
    fn embedded(&mut self, raw: Raw<'_>) -> Result<Value, ProtoError> {
        let text = wire::first_bytes(raw, 1).map_err(|error| self.wire(error))?;
        if text.is_empty() {
            return Ok(Value::Object(Map::new()));
        }
        let path = || self.path.trim_start_matches('.').to_owned();
        let parsed = parse_json(text).map_err(|error| ProtoError::Json {
            path: path(),
            error,
        })?;
        Ok(parsed.value)
    }
}

fn integer(kind: &Kind, number: i64) -> Value {
    match kind {
        Kind::Bool => (number != 0).into(),
        // Go reads the low 32 bits of what is on the wire.
        #[expect(clippy::cast_possible_truncation, reason = "as protobuf defines int32")]
        Kind::Int32 => (number as i32).into(),
        _ => number.into(),
    }
}

fn int_or_string(raw: Raw<'_>) -> Result<Value, WireError> {
    let (mut is_text, mut number, mut text) = (false, 0, "");
    for field in Fields::new(raw.bytes()?) {
        match field? {
            (1, raw) => is_text = raw.integer()? == 1,
            (2, raw) => number = raw.integer()?,
            (3, raw) => text = raw.text()?,
            _ => {}
        }
    }
    Ok(if is_text {
        text.into()
    } else {
        integer(&Kind::Int32, number)
    })
}

/// A time; an empty message means none.
fn timestamp(raw: Raw<'_>) -> Result<Option<Timestamp>, WireError> {
    let bytes = raw.bytes()?;
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields::new(bytes) {
        match field? {
            (1, raw) => seconds = raw.integer()?,
            (2, raw) => nanos = u32::try_from(raw.integer()?).ok().ok_or(WireError::Range)?,
            _ => {}
        }
    }
    let in_range = Timestamp::SECONDS.contains(&seconds) && nanos < 1_000_000_000;
    if !in_range {
        return Err(WireError::Range);
    }
    Ok((!bytes.is_empty()).then_some(Timestamp { seconds, nanos }))
}

#[cfg(test)]
mod tests;
