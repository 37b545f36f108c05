//! Validation, as upstream does it: what is wrong with an object of a kind, or with a change to
//! one, each fault with upstream's field path, reason and words. Objects come converted and
//! defaulted; metadata is checked elsewhere, alike for all kinds.
//!
//! Pure.

mod cluster;
mod config;
mod container;
mod environment;
mod event;
mod job;
mod network_policy;
mod pod;
mod scheduling;
mod service;
mod storage;
mod volume;
mod workload;

use serde_json::Value;

pub use cluster::{
    endpoint_slice, endpoint_slice_update, endpoints, lease, namespace, node, node_update,
};
pub use config::{config_map, config_map_update, secret, secret_update, service_account};
pub use event::{event, event_v1, event_v1_update};
pub use job::{cron_job, job, job_update};
pub use network_policy::network_policy;
pub use pod::{ephemeral_containers_update, pod, pod_create, pod_template, pod_update};
pub use service::{service, service_update};
pub use storage::{
    persistent_volume, persistent_volume_claim, persistent_volume_claim_update,
    persistent_volume_update, storage_class, storage_class_update,
};
pub use workload::{
    daemon_set, daemon_set_update, deployment, deployment_update, horizontal_pod_autoscaler,
    replica_set, replica_set_update, replication_controller, scale, stateful_set,
    stateful_set_update,
};

use crate::cache::selector::{label_key_problem, label_value_problem};
use crate::registry::name_problem;
use crate::resource::{Causes, NameRule};
use crate::status::Cause;

const IMMUTABLE: &str = "field is immutable";
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const PORT: &str = "must be between 1 and 65535, inclusive";

static NULL: Value = Value::Null;

/// A value and where it is.
#[derive(Debug, Clone)]
struct At<'v> {
    value: &'v Value,
    path: String,
}

impl<'v> At<'v> {
    fn root(value: &'v Value) -> Self {
        Self {
            value,
            path: String::new(),
        }
    }

    fn field(&self, name: &str) -> Self {
        let path = if self.path.is_empty() {
            name.to_owned()
        } else {
            [&*self.path, ".", name].concat()
        };
        Self {
            value: self.value.get(name).unwrap_or(&NULL),
            path,
        }
    }

    /// The items of a list, with their index in the path.
    fn items(&self) -> impl Iterator<Item = Self> + use<'v> {
        let path = self.path.clone();
        let items = self.value.as_array().into_iter().flatten().enumerate();
        items.map(move |(at, value)| Self {
            value,
            path: format!("{path}[{at}]"),
        })
    }

    /// The entries of a map, with their key in the path.
    fn entries(&self) -> impl Iterator<Item = (&'v str, Self)> + use<'v> {
        let path = self.path.clone();
        let entries = self.value.as_object().into_iter().flatten();
        entries.map(move |(key, value)| {
            (
                &**key,
                Self {
                    value,
                    path: format!("{path}[{key}]"),
                },
            )
        })
    }

    fn is_set(&self) -> bool {
        match self.value {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => true,
        }
    }

    fn text(&self) -> &'v str {
        self.value.as_str().unwrap_or_default()
    }

    fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    fn flag(&self) -> bool {
        self.value == &Value::Bool(true)
    }

    fn invalid(&self, why: impl AsRef<str>, causes: &mut Causes) {
        causes.push(Cause::invalid(&self.path, self.value, why));
    }

    fn forbid(&self, why: &str, causes: &mut Causes) {
        causes.push(Cause::forbidden(&self.path, why));
    }

    fn duplicate(&self, causes: &mut Causes) {
        causes.push(Cause::duplicate(&self.path, self.value));
    }

    /// Whether the value is there; says so if not.
    fn require(&self, causes: &mut Causes) -> bool {
        if !self.is_set() {
            causes.push(Cause::required(&self.path, ""));
        }
        self.is_set()
    }

    /// One of these words, and there.
    fn choose(&self, supported: &[&str], causes: &mut Causes) {
        if self.require(causes) {
            self.choose_if_set(supported, causes);
        }
    }

    fn choose_if_set(&self, supported: &[&str], causes: &mut Causes) {
        if self.is_set() && !supported.contains(&self.text()) {
            causes.push(Cause::not_supported(&self.path, self.value, supported));
        }
    }

    fn not_negative(&self, causes: &mut Causes) {
        if self.int().is_some_and(|number| number < 0) {
            self.invalid(NOT_NEGATIVE, causes);
        }
    }

    fn in_range(&self, from: i64, to: i64, causes: &mut Causes) {
        if self
            .int()
            .is_some_and(|number| !(from..=to).contains(&number))
        {
            self.invalid(
                format!("must be between {from} and {to}, inclusive"),
                causes,
            );
        }
    }

    /// A name under a rule, and there.
    fn name(&self, rule: NameRule, causes: &mut Causes) {
        if self.require(causes) {
            self.name_if_set(rule, causes);
        }
    }

    fn name_if_set(&self, rule: NameRule, causes: &mut Causes) {
        if let Some(why) = name_problem(rule, self.text()).filter(|_| self.is_set()) {
            self.invalid(why, causes);
        }
    }

    /// A qualified name such as a label key.
    fn qualified_name(&self, causes: &mut Causes) {
        if let Some(why) = label_key_problem(self.text()) {
            self.invalid(why, causes);
        }
    }

    /// Labels: keys and values.
    fn labels(&self, causes: &mut Causes) {
        for (key, value) in self.entries() {
            if let Some(why) = label_key_problem(key) {
                causes.push(Cause::invalid(&self.path, &key.into(), why));
            }
            if let Some(why) = label_value_problem(value.text()) {
                causes.push(Cause::invalid(&self.path, value.value, why));
            }
        }
    }

    /// A label selector.
    fn selector(&self, causes: &mut Causes) {
        self.field("matchLabels").labels(causes);
        for expression in self.field("matchExpressions").items() {
            let values = expression.field("values");
            match expression.field("operator").text() {
                "In" | "NotIn" if !values.is_set() => causes.push(Cause::required(
                    &values.path,
                    "must be specified when `operator` is 'In' or 'NotIn'",
                )),
                "Exists" | "DoesNotExist" if values.is_set() => values.forbid(
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    causes,
                ),
                "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                _ => expression
                    .field("operator")
                    .invalid("not a valid selector operator", causes),
            }
            expression.field("key").qualified_name(causes);
            for value in values.items() {
                if let Some(why) = label_value_problem(value.text()) {
                    value.invalid(why, causes);
                }
            }
        }
    }

    /// Says that a value differs from what it was.
    fn unchanged(&self, old: &Value, causes: &mut Causes) {
        if self.value != old {
            self.invalid(IMMUTABLE, causes);
        }
    }
}

/// An IANA service name, which a named port is.
fn port_name_problem(name: &str) -> Option<&'static str> {
    if name.len() > 15 {
        Some("must be no more than 15 characters")
    } else if !name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    {
        Some("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    } else if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        Some("must contain at least one letter (a-z)")
    } else if name.contains("--") {
        Some("must not contain consecutive hyphens")
    } else if name.starts_with('-') || name.ends_with('-') {
        Some("must not begin or end with a hyphen")
    } else {
        None
    }
}

/// A port by number or by name.
fn port_number_or_name(at: &At<'_>, causes: &mut Causes) {
    match at.value {
        Value::Number(_) if !(1..=65535).contains(&at.int().unwrap_or(0)) => {
            at.invalid(PORT, causes);
        }
        Value::String(name) => {
            if let Some(why) = port_name_problem(name) {
                at.invalid(why, causes);
            }
        }
        _ => {}
    }
}

/// The key of a ConfigMap or Secret: a file name.
fn config_key_problem(key: &str) -> Option<&'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if key.len() > 253 {
        Some("must be no more than 253 bytes")
    } else if key.is_empty() || !key.bytes().all(plain) {
        Some(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
             'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is \
             '[-._a-zA-Z0-9]+')",
        )
    } else if key == "." {
        Some("must not be '.'")
    } else if key == ".." {
        Some("must not be '..'")
    } else if key.starts_with("..") {
        Some("must not start with '..'")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
