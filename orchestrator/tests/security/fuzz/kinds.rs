//! Values of every type in the schema, and their protobuf form.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fairlead::proto::MAGIC;
use fairlead::schema::{Field, Kind, ObjectType, Timestamp, schema};
use prost::encoding::{WireType, encode_key, encode_varint};
use serde_json::{Map, Value, json};

use super::{Random, bend};

/// Values of one object at most; it ends where this is used up.
const NODES: usize = 120;

/// An object of this type, of the right types all through. Only fields that protobuf knows.
pub(super) fn any(random: &mut Random, object: &ObjectType) -> Value {
    any_object(random, object, &mut NODES.clone(), 60)
}

fn any_object(random: &mut Random, object: &ObjectType, left: &mut usize, odds: usize) -> Value {
    let mut fields = Map::new();
    for field in object.fields.iter().filter(|field| field.number != 0) {
        if *left > 0 && random.chance(odds) {
            *left -= 1;
            let value = any_value(random, &field.kind, left, (odds * 2 / 3).max(12));
            fields.insert(field.name.to_owned(), value);
        }
    }
    Value::Object(fields)
}

fn any_value(random: &mut Random, kind: &Kind, left: &mut usize, odds: usize) -> Value {
    match kind {
        Kind::String => json!(random.pick(&bend::WORDS)),
        Kind::Bool => json!(random.chance(50)),
        Kind::Int32 => json!(random.pick(&[0, 1, -1, 3, 80, 65_536, i32::MAX, i32::MIN])),
        Kind::Int64 => json!(random.pick(&[0, 1, -1, 30, i64::MAX, i64::MIN])),
        Kind::Double => json!(random.pick(&[0.5, -1.0, 1e300])),
        Kind::Bytes => json!(STANDARD.encode(random.pick(&bend::WORDS))),
        Kind::Time => json!(random.pick(&TIMES)),
        Kind::MicroTime => json!(random.pick(&TIMES).replace('Z', ".000001Z")),
        Kind::Quantity => json!(random.pick(&QUANTITIES)),
        Kind::IntOrString if random.chance(50) => json!(random.pick(&bend::WORDS)),
        Kind::IntOrString => json!(random.pick(&[0, 1, -1, 80, i32::MAX, i32::MIN])),
        Kind::Fields => json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}}),
        Kind::Raw => json!({"a": {"b": [1, "c"]}}),
        Kind::Object(index) => any_object(random, schema().object(*index), left, odds),
        Kind::List(of) => {
            let items = (0..=random.below(3)).map(|_| any_value(random, of, left, odds));
            items.collect()
        }
        Kind::Map(of) => {
            let mut entries = Map::new();
            for _ in 0..=random.below(2) {
                let key = (*random.pick(&bend::WORDS)).to_owned();
                entries.insert(key, any_value(random, of, left, odds));
            }
            Value::Object(entries)
        }
    }
}

const TIMES: [&str; 4] = [
    "2026-01-02T03:04:05Z",
    "0000-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "1969-12-31T23:59:59Z",
];
const QUANTITIES: [&str; 9] = [
    "0",
    "1",
    "-1",
    "100m",
    "1.5Gi",
    "1n",
    "9223372036854775807",
    "-9223372036854775808",
    "8Ei",
];

/// A whole body: the envelope and the object in it.
pub(super) fn body(api_version: &str, kind: &str, object: &ObjectType, value: &Value) -> Vec<u8> {
    let mut meta = Vec::new();
    put_bytes(1, api_version.as_bytes(), &mut meta);
    put_bytes(2, kind.as_bytes(), &mut meta);
    let mut body = MAGIC.to_vec();
    put_bytes(1, &meta, &mut body);
    put_bytes(2, &message(object, 0, value), &mut body);
    body
}

fn put_bytes(number: u16, bytes: &[u8], into: &mut Vec<u8>) {
    encode_key(number.into(), WireType::LengthDelimited, into);
    encode_varint(bytes.len() as u64, into);
    into.extend_from_slice(bytes);
}

fn put_varint(number: u16, value: i64, into: &mut Vec<u8>) {
    encode_key(number.into(), WireType::Varint, into);
    encode_varint(value.cast_unsigned(), into);
}

/// The message of a type, or the one that Go inlines into it under number `outer`.
fn message(object: &ObjectType, outer: u16, value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut inlined: Vec<u16> = Vec::new();
    for field in object.fields.iter().filter(|field| field.number != 0) {
        let Some(value) = value.get(field.name) else {
            continue;
        };
        if field.outer == outer {
            put_field(field, value, &mut bytes);
        } else if outer == 0 && !inlined.contains(&field.outer) {
            inlined.push(field.outer);
        }
    }
    for number in inlined {
        put_bytes(number, &message(object, number, value), &mut bytes);
    }
    bytes
}

fn put_field(field: &Field, value: &Value, into: &mut Vec<u8>) {
    match (&field.kind, value) {
        (Kind::List(of), Value::Array(items)) => {
            for item in items {
                put(field.number, of, item, into);
            }
        }
        (Kind::Map(of), Value::Object(entries)) => {
            for (key, value) in entries {
                let mut entry = Vec::new();
                put_bytes(1, key.as_bytes(), &mut entry);
                match (&**of, value) {
                    (Kind::List(of), Value::Array(items)) if field.wrapped => {
                        let mut list = Vec::new();
                        for item in items {
                            put(1, of, item, &mut list);
                        }
                        put_bytes(2, &list, &mut entry);
                    }
                    (of, value) => put(2, of, value, &mut entry),
                }
                put_bytes(field.number, &entry, into);
            }
        }
        (kind, value) => put(field.number, kind, value, into),
    }
}

/// One value; what does not fit its type is left out.
fn put(number: u16, kind: &Kind, value: &Value, into: &mut Vec<u8>) {
    let text = value.as_str().unwrap_or_default();
    let mut inner = Vec::new();
    match kind {
        Kind::String => return put_bytes(number, text.as_bytes(), into),
        Kind::Bool => return put_varint(number, (*value == json!(true)).into(), into),
        Kind::Int32 | Kind::Int64 => {
            return put_varint(number, value.as_i64().unwrap_or_default(), into);
        }
        Kind::Double => {
            encode_key(number.into(), WireType::SixtyFourBit, into);
            into.extend_from_slice(&value.as_f64().unwrap_or_default().to_le_bytes());
            return;
        }
        Kind::Bytes => inner = STANDARD.decode(text).unwrap_or_default(),
        Kind::Object(index) => inner = message(schema().object(*index), 0, value),
        Kind::Quantity => put_bytes(1, text.as_bytes(), &mut inner),
        Kind::IntOrString => {
            if let Some(number) = value.as_i64() {
                put_varint(2, number, &mut inner);
            } else {
                put_varint(1, 1, &mut inner);
                put_bytes(3, text.as_bytes(), &mut inner);
            }
        }
        Kind::Time | Kind::MicroTime => {
            if let Ok(time) = Timestamp::parse(text) {
                put_varint(1, time.seconds, &mut inner);
                put_varint(2, time.nanos.into(), &mut inner);
            }
        }
        Kind::Fields | Kind::Raw => put_bytes(1, value.to_string().as_bytes(), &mut inner),
        Kind::List(_) | Kind::Map(_) => return,
    }
    put_bytes(number, &inner, into);
}
