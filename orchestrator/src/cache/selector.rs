//! Label and field selectors: parsed once, matched against cache entries.

use serde_json::Value;

use super::Entry;
use crate::resource::Resource;

/// Longest selector text that is parsed.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// Which objects; the default is all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<LabelTerm>,
    fields: Vec<FieldTerm>,
}

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelTerm {
    key: String,
    test: LabelTest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum LabelTest {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    field: Field,
    equal: bool,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
    Indexed(usize),
}

/// Why a selector is refused (400).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text does not parse.
    #[error("unable to parse requirement: {why} in selector {text:?}")]
    Syntax {
        /// The whole selector.
        text: String,
        /// What was wrong.
        why: &'static str,
    },
    /// The resource has no such selectable field.
    #[error("field label not supported: {field}; supported: {supported}")]
    UnknownField {
        /// What was asked for.
        field: String,
        /// What there is.
        supported: String,
    },
    /// A label key or value that can never be one.
    #[error("{what} {text:?} is not valid: {why}")]
    NotALabel {
        /// Key or value.
        what: &'static str,
        /// The text.
        text: String,
        /// The rule.
        why: &'static str,
    },
}

impl Selector {
    /// Parses the two query parameters of a request; empty means all.
    ///
    /// # Errors
    /// [`SelectorError`] naming the part that is wrong.
    pub fn parse(labels: &str, fields: &str, resource: &Resource) -> Result<Self, SelectorError> {
        Ok(Self {
            labels: parse_labels(labels)?,
            fields: parse_fields(fields, resource)?,
        })
    }

    /// A selector over labels only.
    ///
    /// # Errors
    /// [`SelectorError`] naming the part that is wrong.
    pub fn labels(text: &str) -> Result<Self, SelectorError> {
        Ok(Self {
            labels: parse_labels(text)?,
            fields: Vec::new(),
        })
    }

    /// From a `LabelSelector` object (`matchLabels`, `matchExpressions`).
    /// An empty one selects everything; an unknown operator selects nothing.
    pub fn from_object(selector: &Value) -> Self {
        let mut labels = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            let values = vec![value.as_str().unwrap_or_default().to_owned()];
            labels.push(LabelTerm {
                key: key.clone(),
                test: In(values),
            });
        }
        for expression in selector["matchExpressions"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let key = expression["key"].as_str().unwrap_or_default().to_owned();
            let values = || -> Vec<String> {
                let values = expression["values"].as_array().into_iter().flatten();
                values
                    .filter_map(|v| v.as_str().map(str::to_owned))
                    .collect()
            };
            let test = match expression["operator"].as_str().unwrap_or_default() {
                "In" => In(values()),
                "NotIn" => NotIn(values()),
                "Exists" => LabelTest::Exists,
                "DoesNotExist" => LabelTest::Absent,
                _ => In(Vec::new()),
            };
            labels.push(LabelTerm { key, test });
        }
        Self {
            labels,
            fields: Vec::new(),
        }
    }

    /// The same selector, for the object of this name only.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        let value = name.to_owned();
        self.fields.push(FieldTerm {
            field: Field::Name,
            equal: true,
            value,
        });
        self
    }

    /// The name that a term demands, if one does.
    pub fn wanted_name(&self) -> Option<&str> {
        let term = self
            .fields
            .iter()
            .find(|term| term.equal && term.field == Field::Name)?;
        Some(&term.value)
    }

    /// The value that a term demands of an indexed field, if one does.
    pub fn wanted_field(&self, index: usize) -> Option<&str> {
        let wanted = Field::Indexed(index);
        let term = self
            .fields
            .iter()
            .find(|term| term.equal && term.field == wanted)?;
        Some(&term.value)
    }

    /// Whether this selects every object.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether the entry is selected.
    pub fn matches(&self, entry: &Entry) -> bool {
        self.labels
            .iter()
            .all(|term| term.matches(entry.label(&term.key)))
            && self.fields.iter().all(|term| {
                let value = match term.field {
                    Field::Name => entry.name(),
                    Field::Namespace => entry.namespace(),
                    Field::Indexed(index) => entry.fields.get(index).map_or("", |f| f),
                };
                (value == term.value) == term.equal
            })
    }

    /// Whether a set of labels is selected; field terms are not looked at.
    pub fn matches_labels<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.labels.iter().all(|term| term.matches(get(&term.key)))
    }
}

impl LabelTerm {
    fn matches(&self, value: Option<&str>) -> bool {
        match &self.test {
            In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
            NotIn(values) => value.is_none_or(|v| values.iter().all(|w| w != v)),
            LabelTest::Exists => value.is_some(),
            LabelTest::Absent => value.is_none(),
            LabelTest::Greater(bound) => number(value).is_some_and(|n| n > *bound),
            LabelTest::Less(bound) => number(value).is_some_and(|n| n < *bound),
        }
    }
}

fn number(value: Option<&str>) -> Option<i64> {
    value?.parse().ok()
}

fn parse_labels(text: &str) -> Result<Vec<LabelTerm>, SelectorError> {
    let syntax = |why| SelectorError::Syntax {
        text: clip(text),
        why,
    };
    if text.len() > TEXT_BYTES_MAX {
        return Err(syntax("more than 64 KiB"));
    }
    let mut terms = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (term, after) = parse_term(rest).map_err(syntax)?;
        check_label(&term)?;
        terms.push(term);
        rest = after.trim_start();
        if let Some(after) = rest.strip_prefix(',') {
            rest = after.trim_start();
            if rest.is_empty() {
                return Err(syntax("a requirement is missing after ','"));
            }
        } else if !rest.is_empty() {
            return Err(syntax("found text where ',' or the end was expected"));
        }
    }
    Ok(terms)
}

/// One requirement and what follows it.
fn parse_term(text: &str) -> Result<(LabelTerm, &str), &'static str> {
    if let Some(rest) = text.strip_prefix('!') {
        let (key, rest) = word(rest.trim_start());
        if key.is_empty() {
            return Err("a key is missing after '!'");
        }
        return Ok((
            LabelTerm {
                key: key.to_owned(),
                test: LabelTest::Absent,
            },
            rest,
        ));
    }
    let (key, rest) = word(text);
    if key.is_empty() {
        return Err("a key was expected");
    }
    let term = |test| LabelTerm {
        key: key.to_owned(),
        test,
    };
    let rest = rest.trim_start();
    for (sign, make) in [
        ("==", In as fn(Vec<String>) -> LabelTest),
        ("=", In),
        ("!=", NotIn),
    ] {
        if let Some(after) = rest.strip_prefix(sign) {
            let (value, after) = word(after.trim_start());
            return Ok((term(make(vec![value.to_owned()])), after));
        }
    }
    for (sign, make) in [
        (">", LabelTest::Greater as fn(i64) -> LabelTest),
        ("<", LabelTest::Less),
    ] {
        if let Some(after) = rest.strip_prefix(sign) {
            let (value, after) = word(after.trim_start());
            let bound = value
                .parse()
                .map_err(|_not_a_number| "'>' and '<' need an integer")?;
            return Ok((term(make(bound)), after));
        }
    }
    let (operator, after) = word(rest);
    match operator {
        "in" | "notin" => {
            let (values, after) = set(after.trim_start())?;
            let make = if operator == "in" { In } else { NotIn };
            Ok((term(make(values)), after))
        }
        "" => Ok((term(LabelTest::Exists), rest)),
        _ => Err("an operator was expected: one of =, ==, !=, in, notin, >, <"),
    }
}

use LabelTest::{In, NotIn};

/// `(a, b)`.
fn set(text: &str) -> Result<(Vec<String>, &str), &'static str> {
    let inner = text
        .strip_prefix('(')
        .ok_or("'(' was expected after in or notin")?;
    let (inner, after) = inner.split_once(')').ok_or("')' is missing")?;
    let values = inner
        .split(',')
        .map(|v| v.trim().to_owned())
        .collect::<Vec<_>>();
    if values.iter().any(|v| word(v).0.len() != v.len()) {
        return Err("a set holds plain values, separated by ','");
    }
    Ok((values, after))
}

fn word(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/')))
        .unwrap_or(text.len());
    text.split_at(end)
}

fn check_label(term: &LabelTerm) -> Result<(), SelectorError> {
    if let Some(why) = label_key_problem(&term.key) {
        return Err(SelectorError::NotALabel {
            what: "label key",
            text: clip(&term.key),
            why,
        });
    }
    if let In(values) | NotIn(values) = &term.test {
        for value in values {
            if let Some(why) = label_value_problem(value) {
                let text = clip(value);
                return Err(SelectorError::NotALabel {
                    what: "label value",
                    text,
                    why,
                });
            }
        }
    }
    Ok(())
}

/// What is wrong with a label or annotation key, if anything.
pub fn label_key_problem(key: &str) -> Option<&'static str> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if let Some(prefix) = prefix
        && (prefix.is_empty() || prefix.len() > 253 || !is_dns_subdomain(prefix))
    {
        return Some("the prefix must be a lowercase RFC 1123 subdomain of at most 253 characters");
    }
    if name.is_empty() {
        return Some("name part must be non-empty");
    }
    if name.len() > 63 {
        return Some("name part must be no more than 63 bytes");
    }
    (!is_qualified(name)).then_some(
        "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
    )
}

/// What is wrong with a label value, if anything.
pub fn label_value_problem(value: &str) -> Option<&'static str> {
    if value.len() > 63 {
        return Some("must be no more than 63 bytes");
    }
    (!value.is_empty() && !is_qualified(value)).then_some(
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
    )
}

fn is_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.iter()
        .all(|b| b.is_some_and(u8::is_ascii_alphanumeric))
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Whether `text` is a lowercase RFC 1123 subdomain (length not checked).
pub fn is_dns_subdomain(text: &str) -> bool {
    text.split('.').all(is_dns_label)
}

/// Whether `text` is a lowercase RFC 1123 label (length not checked).
pub fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    [bytes.first(), bytes.last()]
        .iter()
        .all(|b| b.is_some_and(plain))
        && bytes.iter().all(|b| plain(b) || *b == b'-')
}

/// `a=b,c!=d`; a backslash quotes `,`, `=` and itself.
fn parse_fields(text: &str, resource: &Resource) -> Result<Vec<FieldTerm>, SelectorError> {
    let syntax = |why| SelectorError::Syntax {
        text: clip(text),
        why,
    };
    if text.len() > TEXT_BYTES_MAX {
        return Err(syntax("more than 64 KiB"));
    }
    let mut terms = Vec::new();
    for part in split_unquoted(text) {
        if part.is_empty() {
            continue;
        }
        let (name, equal, value) = [("!=", false), ("==", true), ("=", true)]
            .iter()
            .filter_map(|(sign, equal)| part.find(sign).map(|at| (at, *sign, *equal)))
            .min_by_key(|(at, sign, _)| (*at, std::cmp::Reverse(sign.len())))
            .and_then(|(at, sign, equal)| {
                Some((part.get(..at)?, equal, part.get(at + sign.len()..)?))
            })
            .ok_or_else(|| syntax("'=', '==' or '!=' was expected"))?;
        let field = match name {
            "metadata.name" => Field::Name,
            "metadata.namespace" if resource.namespaced => Field::Namespace,
            _ => resource
                .fields
                .iter()
                .position(|f| f.name == name)
                .map(Field::Indexed)
                .ok_or_else(|| unknown_field(name, resource))?,
        };
        let value = unquote(value).ok_or_else(|| syntax("a dangling or unknown escape"))?;
        terms.push(FieldTerm {
            field,
            equal,
            value,
        });
    }
    Ok(terms)
}

fn unknown_field(name: &str, resource: &Resource) -> SelectorError {
    let mut supported = vec!["metadata.name"];
    if resource.namespaced {
        supported.push("metadata.namespace");
    }
    supported.extend(resource.fields.iter().map(|f| f.name));
    SelectorError::UnknownField {
        field: clip(name),
        supported: supported.join(", "),
    }
}

fn split_unquoted(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut quoted) = (0, false);
    for (at, c) in text.char_indices() {
        if quoted {
            quoted = false;
        } else if c == '\\' {
            quoted = true;
        } else if c == ',' {
            parts.push(text.get(start..at).unwrap_or_default());
            start = at + 1;
        }
    }
    parts.push(text.get(start..).unwrap_or_default());
    parts
}

fn unquote(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                quoted @ ('\\' | ',' | '=') => out.push(quoted),
                _ => return None,
            },
            '=' => return None,
            _ => out.push(c),
        }
    }
    Some(out)
}

/// A selector inside a message, cut so that a message stays readable.
fn clip(text: &str) -> String {
    text.chars().take(200).collect()
}
