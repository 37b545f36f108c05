//! JSON text to a value, noting every field that an object names twice.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use thiserror::Error;

use super::clip;
use super::convert::MAX_COMPLAINTS;

/// A body that is no JSON. Nesting deeper than 128 is refused too, so that no later walk over the
/// value can exhaust the stack.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct ParseError(#[from] serde_json::Error);

/// A parsed body.
#[derive(Debug, PartialEq)]
pub struct Parsed {
    pub value: Value,
    /// Paths of fields given more than once, at most 100; the last value counts.
    pub duplicates: Vec<String>,
}

/// Reads one JSON document.
pub fn parse_json(text: &[u8]) -> Result<Parsed, ParseError> {
    let duplicates = RefCell::new(Vec::new());
    let mut reader = serde_json::Deserializer::from_slice(text);
    let path = Path {
        parent: None,
        step: Step::Root,
    };
    let value = Seed {
        duplicates: &duplicates,
        path: &path,
    }
    .deserialize(&mut reader)?;
    reader.end()?;
    Ok(Parsed {
        value,
        duplicates: duplicates.into_inner(),
    })
}

enum Step<'a> {
    Root,
    Field(&'a str),
    Item(usize),
}

/// Where the reader is, as a list of steps on the stack.
struct Path<'a> {
    parent: Option<&'a Self>,
    step: Step<'a>,
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else {
            return Ok(());
        };
        parent.fmt(f)?;
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) if parent.parent.is_some() => write!(f, ".{name}"),
            Step::Field(name) => f.write_str(name),
            Step::Item(at) => write!(f, "[{at}]"),
        }
    }
}

struct Seed<'a> {
    duplicates: &'a RefCell<Vec<String>>,
    path: &'a Path<'a>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = Path {
                parent: Some(self.path),
                step: Step::Item(items.len()),
            };
            match access.next_element_seed(Seed {
                duplicates: self.duplicates,
                path: &path,
            })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            let path = Path {
                parent: Some(self.path),
                step: Step::Field(&name),
            };
            let seed = Seed {
                duplicates: self.duplicates,
                path: &path,
            };
            let value = access.next_value_seed(seed)?;
            if fields.contains_key(&name) {
                let mut duplicates = self.duplicates.try_borrow_mut().map_err(A::Error::custom)?;
                if duplicates.len() < MAX_COMPLAINTS {
                    duplicates.push(clip(&path.to_string()).to_owned());
                }
            }
            fields.insert(name, value);
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_given_twice_are_named_by_path_and_the_last_counts() {
        let parsed = parse_json(br#"{"a":1,"b":[{"c":1},{"c":1,"c":2}],"a":{"d":0,"d":3}}"#)
            .expect("valid JSON");
        assert_eq!(
            parsed.value,
            json!({"a": {"d": 3}, "b": [{"c": 1}, {"c": 2}]})
        );
        assert_eq!(parsed.duplicates, ["b[1].c", "a.d", "a"]);
    }

    #[test]
    fn what_is_no_single_document_is_refused() {
        for text in [
            "",
            "{",
            "{} {}",
            "[1,]",
            "\u{0}",
            "nul",
            &"[".repeat(100_000),
        ] {
            assert!(parse_json(text.as_bytes()).is_err(), "{text:.20}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(parse_json(&bytes));
        }

        #[test]
        fn without_duplicates_it_reads_what_serde_reads(text in "[\\[\\]{}:,\"a0-9.e-]{0,40}") {
            let expected: Option<Value> = serde_json::from_str(&text).ok();
            prop_assert_eq!(parse_json(text.as_bytes()).ok().map(|parsed| parsed.value), expected);
        }
    }
}
