//! How the checks look at a pod, and how they word what they find.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Violation;

/// A pod or a pod template.
pub(super) struct Pod<'a> {
    pub(super) metadata: &'a Value,
    pub(super) spec: &'a Value,
}

/// Containers that failed a check and the values that made them fail.
#[derive(Default)]
pub(super) struct Found<'a> {
    /// Container or volume names in order.
    pub(super) names: Vec<&'a str>,
    /// Sorted forbidden values.
    pub(super) values: BTreeSet<String>,
}

// === impl Pod ===

impl<'a> Pod<'a> {
    /// Init containers, containers, ephemeral containers.
    pub(super) fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(move |list| spec[list].as_array().into_iter().flatten())
    }

    pub(super) fn volumes(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        self.spec["volumes"].as_array().into_iter().flatten()
    }

    /// The pod's own security context.
    pub(super) fn security(&self) -> &'a Value {
        &self.spec["securityContext"]
    }

    pub(super) fn is_windows(&self) -> bool {
        self.spec["os"]["name"] == "windows"
    }

    /// Collects the containers in which `find` finds forbidden values.
    pub(super) fn search(&self, find: impl Fn(&'a Value) -> Option<Vec<String>>) -> Found<'a> {
        let mut found = Found::default();
        for container in self.containers() {
            if let Some(values) = find(container) {
                found.names.push(name(container));
                found.values.extend(values);
            }
        }
        found
    }

    /// Where the pod or a container sets a field so that `is_bad`: `pod`, `container "a"`.
    pub(super) fn setters(&self, is_bad: impl Fn(&'a Value) -> bool) -> Vec<String> {
        let mut setters = Vec::new();
        if is_bad(self.security()) {
            setters.push("pod".to_owned());
        }
        let found = self.search(|c| is_bad(&c["securityContext"]).then(Vec::new));
        if !found.is_none() {
            setters.push(found.containers());
        }
        setters
    }
}

// === impl Found ===

impl Found<'_> {
    pub(super) fn is_none(&self) -> bool {
        self.names.is_empty()
    }

    /// `container "a"`, `containers "a", "b"`.
    pub(super) fn containers(&self) -> String {
        self.called("container")
    }

    /// The names behind `one` (`volume`) or its plural.
    pub(super) fn called(&self, one: &str) -> String {
        format!(
            "{}{} {}",
            one,
            plural(self.names.len()),
            quoted(self.names.iter().copied())
        )
    }
}

/// The ending of a plural.
pub(super) fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// `"a", "b"`.
pub(super) fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("{name:?}"))
        .collect::<Vec<_>>()
        .join(", ")
}

pub(super) fn name(value: &Value) -> &str {
    value["name"].as_str().unwrap_or_default()
}

/// A failed check.
#[expect(clippy::unnecessary_wraps, reason = "a check returns it as it is")]
pub(super) fn violation(reason: impl Into<String>, detail: impl Into<String>) -> Option<Violation> {
    Some(Violation {
        reason: reason.into(),
        detail: detail.into(),
    })
}
