//! Brings a value into the form upstream would store: types checked, unknown fields noted and
//! dropped, nulls and Go zero values left out, quantities and times canonical.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value};
use thiserror::Error;

use super::{Field, Kind, ObjectType, Quantity, QuantityError, Timestamp, clip, schema};

/// Upstream stops listing strict errors here.
pub(super) const MAX_COMPLAINTS: usize = 100;

/// What to do with unknown and duplicate fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

impl FieldValidation {
    /// Reads the query parameter; empty means `Warn`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "Ignore" => Self::Ignore,
            "" | "Warn" => Self::Warn,
            "Strict" => Self::Strict,
            _ => return None,
        })
    }
}

/// A converted value's leftovers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Converted {
    /// Paths of the fields that the type does not know, now gone; at most 100.
    pub unknown: Vec<String>,
}

impl Converted {
    /// The complaints of upstream's wording, one for each unknown and each duplicate field: the
    /// text of a `Warning` header under `Warn`.
    pub fn complaints(&self, duplicates: &[String]) -> Vec<String> {
        let unknown = self
            .unknown
            .iter()
            .map(|path| format!("unknown field \"{path}\""));
        let duplicates = duplicates
            .iter()
            .map(|path| format!("duplicate field \"{path}\""));
        unknown.chain(duplicates).take(MAX_COMPLAINTS).collect()
    }
}

/// The error text of `Strict`, made of [`Converted::complaints`].
pub fn strict_error(complaints: &[String]) -> String {
    format!("strict decoding error: {}", complaints.join(", "))
}

/// A value whose type is wrong. The wording is that of Go's decoder, which clients know.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConvertError {
    #[error("json: cannot unmarshal {found} into Go value of type {wanted}")]
    Root { found: String, wanted: String },
    #[error("json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {wanted}")]
    Type {
        found: String,
        owner: &'static str,
        path: String,
        wanted: String,
    },
    #[error("{path}: {reason}")]
    Text { path: String, reason: String },
}

/// Converts `value` in place.
pub fn convert(object: &'static ObjectType, value: &mut Value) -> Result<Converted, ConvertError> {
    let mut walk = Walk {
        unknown: Vec::new(),
        owner: object,
        prune: true,
    };
    walk.object(object, value, &Path::ROOT)?;
    Ok(Converted {
        unknown: walk.unknown,
    })
}

/// Checks types and writes scalars in canonical form, but keeps what a person wrote: nulls, zero
/// values, and unknown fields, whose paths it returns. For configurations that are applied.
pub fn canonicalise(
    object: &'static ObjectType,
    value: &mut Value,
) -> Result<Vec<String>, ConvertError> {
    let mut walk = Walk {
        unknown: Vec::new(),
        owner: object,
        prune: false,
    };
    walk.object(object, value, &Path::ROOT)?;
    Ok(walk.unknown)
}

enum Step<'a> {
    Root,
    Field(&'a str),
    Key(&'a str),
    Item(usize),
}

struct Path<'a> {
    parent: Option<&'a Self>,
    step: Step<'a>,
}

impl Path<'static> {
    const ROOT: Self = Self {
        parent: None,
        step: Step::Root,
    };
}

impl Path<'_> {
    /// Go's form of the path: field names only.
    fn fields(&self) -> String {
        let head = self.parent.map(Self::fields).unwrap_or_default();
        match self.step {
            Step::Field(name) if head.is_empty() => name.to_owned(),
            Step::Field(name) => format!("{head}.{name}"),
            _ => head,
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else {
            return Ok(());
        };
        parent.fmt(f)?;
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) | Step::Key(name) if parent.parent.is_some() => write!(f, ".{name}"),
            Step::Field(name) | Step::Key(name) => f.write_str(name),
            Step::Item(at) => write!(f, "[{at}]"),
        }
    }
}

struct Walk {
    unknown: Vec<String>,
    /// The innermost type being filled, for messages.
    owner: &'static ObjectType,
    /// Whether unknown and unset fields go.
    prune: bool,
}

type Outcome = Result<(), ConvertError>;

impl Walk {
    fn object(
        &mut self,
        object: &'static ObjectType,
        value: &mut Value,
        path: &Path<'_>,
    ) -> Outcome {
        let outer = std::mem::replace(&mut self.owner, object);
        let Value::Object(fields) = value else {
            self.owner = outer;
            return Err(self.mistyped(value, path, format!("v1.{}", object.go_name())));
        };
        let mut failed = Ok(());
        fields.retain(|name, value| {
            if failed.is_err() {
                return true;
            }
            let path = Path {
                parent: Some(path),
                step: Step::Field(name),
            };
            let Some(field) = object.field(name) else {
                if self.unknown.len() < MAX_COMPLAINTS {
                    self.unknown.push(clip(&path.to_string()).to_owned());
                }
                return !self.prune;
            };
            if value.is_null() {
                return !self.prune;
            }
            failed = self.value(&field.kind, value, &path);
            !(self.prune && is_unset(field, value))
        });
        self.owner = outer;
        failed
    }

    fn value(&mut self, kind: &Kind, value: &mut Value, path: &Path<'_>) -> Outcome {
        match kind {
            Kind::Object(index) => self.object(schema().object(*index), value, path),
            Kind::List(of) => {
                let Value::Array(items) = value else {
                    return Err(self.mistyped(value, path, go_type(kind)));
                };
                for (at, item) in items.iter_mut().enumerate() {
                    let path = Path {
                        parent: Some(path),
                        step: Step::Item(at),
                    };
                    self.element(of, item, &path)?;
                }
                Ok(())
            }
            Kind::Map(of) => {
                let Value::Object(entries) = value else {
                    return Err(self.mistyped(value, path, go_type(kind)));
                };
                for (key, entry) in entries {
                    let path = Path {
                        parent: Some(path),
                        step: Step::Key(key),
                    };
                    self.element(of, entry, &path)?;
                }
                Ok(())
            }
            _ => self.scalar(kind, value, path),
        }
    }

    /// An item of a list or map: null is the zero value there, and of a time it is written so.
    fn element(&mut self, kind: &Kind, value: &mut Value, path: &Path<'_>) -> Outcome {
        if value.is_null() {
            if matches!(kind, Kind::Time | Kind::MicroTime) {
                return Ok(());
            }
            *value = zero(kind);
        }
        self.value(kind, value, path)
    }

    fn scalar(&self, kind: &Kind, value: &mut Value, path: &Path<'_>) -> Outcome {
        let canonical = match (kind, &*value) {
            (Kind::String | Kind::IntOrString, Value::String(_))
            | (Kind::Bool, Value::Bool(_))
            | (Kind::Double, Value::Number(_))
            | (Kind::Fields, Value::Object(_))
            | (Kind::Raw, _) => return Ok(()),
            (Kind::Int32 | Kind::IntOrString, Value::Number(number)) if fits_32(number) => {
                return Ok(());
            }
            (Kind::Int64, Value::Number(number)) if number.is_i64() => return Ok(()),
            (Kind::Quantity, Value::Number(number)) => canonical_quantity(&number.to_string()),
            (Kind::Quantity, Value::String(text)) => canonical_quantity(text),
            (Kind::Time, Value::String(text)) => canonical_time(text, Timestamp::to_seconds),
            (Kind::MicroTime, Value::String(text)) => canonical_time(text, Timestamp::to_micros),
            (Kind::Bytes, Value::String(text)) => canonical_bytes(text),
            _ => return Err(self.mistyped(value, path, go_type(kind))),
        };
        let path = || path.to_string();
        *value = canonical
            .map_err(|reason| ConvertError::Text {
                path: path(),
                reason,
            })?
            .into();
        Ok(())
    }

    fn mistyped(&self, value: &Value, path: &Path<'_>, wanted: String) -> ConvertError {
        let path = path.fields();
        let numeric = ["int32", "int64"].contains(&&*wanted);
        let found = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(number) if numeric => format!("number {number}"),
            Value::Number(_) => "number".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        if path.is_empty() {
            ConvertError::Root { found, wanted }
        } else {
            ConvertError::Type {
                found,
                owner: self.owner.go_name(),
                path,
                wanted,
            }
        }
    }
}

fn fits_32(number: &Number) -> bool {
    number
        .as_i64()
        .is_some_and(|number| i32::try_from(number).is_ok())
}

fn canonical_quantity(text: &str) -> Result<String, String> {
    let quantity: Quantity = text
        .trim()
        .parse()
        .map_err(|e: QuantityError| e.to_string())?;
    Ok(quantity.to_string())
}

fn canonical_time(text: &str, write: fn(Timestamp) -> String) -> Result<String, String> {
    Timestamp::parse(text).map(write).map_err(|e| e.to_string())
}

fn canonical_bytes(text: &str) -> Result<String, String> {
    let text: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    match STANDARD.decode(&text) {
        Ok(_) => Ok(text),
        Err(base64::DecodeError::InvalidByte(at, _)) => {
            Err(format!("illegal base64 data at input byte {at}"))
        }
        Err(_) => Err(format!("illegal base64 data at input byte {}", text.len())),
    }
}

/// Whether Go would leave the field out when writing.
fn is_unset(field: &Field, value: &Value) -> bool {
    if field.pointer || field.required {
        return false;
    }
    let always_written = matches!(
        field.kind,
        Kind::Quantity | Kind::IntOrString | Kind::Raw | Kind::Fields | Kind::Object(_)
    );
    match value {
        _ if always_written => false,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::Null => true,
    }
}

fn zero(kind: &Kind) -> Value {
    match kind {
        Kind::Bool => Value::Bool(false),
        Kind::Int32 | Kind::Int64 | Kind::Double | Kind::IntOrString => Value::from(0),
        Kind::Quantity => Value::from("0"),
        Kind::String | Kind::Bytes => Value::from(""),
        Kind::Time | Kind::MicroTime => Value::Null,
        Kind::List(_) => Value::Array(Vec::new()),
        Kind::Object(_) | Kind::Map(_) | Kind::Raw | Kind::Fields => Value::Object(Map::new()),
    }
}

/// The name Go's decoder gives a type.
fn go_type(kind: &Kind) -> String {
    match kind {
        Kind::String | Kind::Time | Kind::MicroTime | Kind::Quantity => "string".to_owned(),
        Kind::Bool => "bool".to_owned(),
        Kind::Int32 | Kind::IntOrString => "int32".to_owned(),
        Kind::Int64 => "int64".to_owned(),
        Kind::Double => "float64".to_owned(),
        Kind::Bytes => "[]uint8".to_owned(),
        Kind::Fields | Kind::Raw => "map[string]interface {}".to_owned(),
        Kind::Object(index) => format!("v1.{}", schema().object(*index).go_name()),
        Kind::List(of) => format!("[]{}", go_type(of)),
        Kind::Map(of) => format!("map[string]{}", go_type(of)),
    }
}

#[cfg(test)]
mod tests;
