//! Labels and label selectors: syntax and matching.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::fault::Check;

pub type Labels = BTreeMap<String, String>;

/// A label selector in canonical form: equal selectors are equal values.
/// No requirement selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
}

/// Values are sorted and unique.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.binary_search(v).is_ok()),
            Operator::NotIn(values) => value.is_none_or(|v| values.binary_search(v).is_err()),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl Selector {
    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        for requirement in &mut requirements {
            if let Operator::In(values) | Operator::NotIn(values) = &mut requirement.operator {
                values.sort_unstable();
                values.dedup();
            }
        }
        requirements.sort_unstable();
        requirements.dedup();
        Self { requirements }
    }

    /// Selects what has all of `labels`.
    pub fn of_labels(labels: &Labels) -> Self {
        Self::new(
            labels
                .iter()
                .map(|(key, value)| Requirement {
                    key: key.clone(),
                    operator: Operator::In(vec![value.clone()]),
                })
                .collect(),
        )
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|r| r.matches(labels))
    }

    pub fn selects_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// A label that everything selected has, to find candidates by.
    pub fn required_label(&self) -> Option<(&str, &str)> {
        self.requirements.iter().find_map(|r| match &r.operator {
            Operator::In(values) => match values.as_slice() {
                [value] => Some((r.key.as_str(), value.as_str())),
                _ => None,
            },
            _ => None,
        })
    }

    pub(super) fn read(check: &mut Check, path: &str, selector: &LabelSelector) -> Self {
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            let path = format!("{path}.matchLabels");
            check_key(check, &path, key);
            check_value(check, &path, value);
            requirements.push(Requirement {
                key: key.clone(),
                operator: Operator::In(vec![value.clone()]),
            });
        }
        for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
            let path = format!("{path}.matchExpressions[{index}]");
            check_key(check, &format!("{path}.key"), &expression.key);
            let values = expression.values.clone().unwrap_or_default();
            for value in &values {
                check_value(check, &format!("{path}.values"), value);
            }
            if let Some(operator) = read_operator(check, &path, &expression.operator, values) {
                requirements.push(Requirement {
                    key: expression.key.clone(),
                    operator,
                });
            }
        }
        Self::new(requirements)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requirements.is_empty() {
            return f.write_str("everything");
        }
        for (index, requirement) in self.requirements.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let key = &requirement.key;
            match &requirement.operator {
                Operator::In(values) if values.len() == 1 => {
                    write!(f, "{comma}{key}={}", values.concat())?;
                }
                Operator::In(values) => write!(f, "{comma}{key} in ({})", values.join(","))?,
                Operator::NotIn(values) => write!(f, "{comma}{key} notin ({})", values.join(","))?,
                Operator::Exists => write!(f, "{comma}{key}")?,
                Operator::DoesNotExist => write!(f, "{comma}!{key}")?,
            }
        }
        Ok(())
    }
}

fn read_operator(
    check: &mut Check,
    path: &str,
    operator: &str,
    values: Vec<String>,
) -> Option<Operator> {
    let values_path = format!("{path}.values");
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            let reason = format!("{operator} needs at least one value");
            check.fault(
                &values_path,
                reason,
                "list values, or use Exists or DoesNotExist",
            );
            None
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let reason = format!("{operator} takes no values");
            check.fault(
                &values_path,
                reason,
                "remove the values, or use In or NotIn",
            );
            None
        }
        "In" => Some(Operator::In(values)),
        "NotIn" => Some(Operator::NotIn(values)),
        "Exists" => Some(Operator::Exists),
        "DoesNotExist" => Some(Operator::DoesNotExist),
        _ => {
            check.fault(
                &format!("{path}.operator"),
                format!("unknown operator \"{operator}\""),
                "use In, NotIn, Exists or DoesNotExist",
            );
            None
        }
    }
}

pub(super) fn check_labels(check: &mut Check, path: &str, labels: &Labels) {
    for (key, value) in labels {
        check_key(check, path, key);
        check_value(check, path, value);
    }
}

/// At most 63 of `A-Za-z0-9-_.`, alphanumeric at both ends.
fn is_qualified(text: &str) -> bool {
    let alphanumeric = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    text.len() <= 63
        && alphanumeric(text.as_bytes().first())
        && alphanumeric(text.as_bytes().last())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Lower-case parts of `a-z0-9-` joined by dots, at most `length` bytes. A part
/// may be longer than a DNS label: the API server allows it in names.
pub(super) fn is_dns_subdomain(text: &str, length: usize) -> bool {
    text.len() <= length && text.split('.').all(is_dns_part)
}

/// At most 63 of `a-z0-9-`, no hyphen at an end.
pub(super) fn is_dns_label(text: &str) -> bool {
    text.len() <= 63 && is_dns_part(text)
}

fn is_dns_part(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn check_key(check: &mut Check, path: &str, key: &str) {
    let good = match key.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix, 253) && is_qualified(name),
        None => is_qualified(key),
    };
    if !good {
        check.fault(
            path,
            format!("\"{key}\" is not a label key"),
            "use [dns.prefix/]name, the name at most 63 of A-Z a-z 0-9 - _ . and alphanumeric at both ends",
        );
    }
}

fn check_value(check: &mut Check, path: &str, value: &str) {
    if !value.is_empty() && !is_qualified(value) {
        check.fault(
            path,
            format!("\"{value}\" is not a label value"),
            "use at most 63 of A-Z a-z 0-9 - _ . and alphanumeric at both ends",
        );
    }
}
