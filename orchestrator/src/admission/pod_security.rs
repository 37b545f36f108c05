//! Pod Security Standards: which level a namespace demands and what a pod violates.
//!
//! Pure. Levels and messages are upstream's (k8s.io/pod-security-admission, latest policy);
//! a version in a label is echoed, the newest rules always apply.

use std::fmt;

use serde_json::Value;

mod baseline;
mod pod;
mod restricted;
pub mod rule;

use pod::Pod;

/// How strict a namespace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Anything goes.
    Privileged,
    /// No known privilege escalation.
    Baseline,
    /// Hardened pods only.
    Restricted,
}

/// A level with the version that its label names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The level.
    pub level: Level,
    /// `latest` or `v1.N`.
    pub version: String,
}

/// What a namespace's labels say about its pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policies {
    /// Pods that violate it are refused.
    pub enforce: Policy,
    /// Writers of violating pods and templates are warned.
    pub warn: Policy,
}

/// A failed check.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Violation {
    reason: String,
    detail: String,
}

const PREFIX: &str = "pod-security.kubernetes.io/";

// === impl Level ===

impl Level {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "privileged" => Self::Privileged,
            "baseline" => Self::Baseline,
            "restricted" => Self::Restricted,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.level.name(), self.version)
    }
}

// === impl Policies ===

impl Policies {
    /// Reads a namespace's labels. A level that is not known counts as restricted.
    pub fn of(label: impl Fn(&str) -> Option<String>) -> Self {
        let policy = |mode: &str| {
            let level = label(&format!("{PREFIX}{mode}"));
            let version = label(&format!("{PREFIX}{mode}-version"));
            Policy {
                level: level.map_or(Level::Privileged, |text| {
                    Level::parse(&text).unwrap_or(Level::Restricted)
                }),
                version: version
                    .filter(|v| is_version(v))
                    .unwrap_or_else(|| "latest".to_owned()),
            }
        };
        Self {
            enforce: policy("enforce"),
            warn: policy("warn"),
        }
    }
}

fn is_version(text: &str) -> bool {
    let minor = text.strip_prefix("v1.");
    let number = |digits: &str| {
        !digits.is_empty()
            && digits.bytes().all(|b| b.is_ascii_digit())
            && (digits == "0" || !digits.starts_with('0'))
    };
    text == "latest" || minor.is_some_and(number)
}

/// What is wrong with the labels of a namespace: (label, value, why).
pub fn label_problems(labels: &Value) -> Vec<(String, String, &'static str)> {
    let mut problems = Vec::new();
    for mode in ["enforce", "audit", "warn"] {
        let level = format!("{PREFIX}{mode}");
        let version = format!("{level}-version");
        if let Some(text) = labels[&level].as_str()
            && Level::parse(text).is_none()
        {
            let why = "must be one of privileged, baseline, restricted";
            problems.push((level, text.to_owned(), why));
        }
        if let Some(text) = labels[&version].as_str()
            && !is_version(text)
        {
            let why = "must be \"latest\" or \"v1.x\"";
            problems.push((version, text.to_owned(), why));
        }
    }
    problems
}

/// What a pod (its metadata and spec) violates at a level, `None` if nothing:
/// `reason (detail), reason (detail)`, checks of the baseline first.
pub fn violations(level: Level, metadata: &Value, spec: &Value) -> Option<String> {
    let pod = Pod { metadata, spec };
    let checks: Vec<fn(&Pod<'_>) -> Option<Violation>> = match level {
        Level::Privileged => Vec::new(),
        Level::Baseline => [baseline::ALWAYS, baseline::REPLACED_BY_RESTRICTED].concat(),
        Level::Restricted => [baseline::ALWAYS, restricted::ALL].concat(),
    };
    let mut failed: Vec<String> = Vec::new();
    for Violation { reason, detail } in checks.iter().filter_map(|check| check(&pod)) {
        failed.push(if detail.is_empty() {
            reason
        } else {
            format!("{reason} ({detail})")
        });
    }
    (!failed.is_empty()).then(|| failed.join(", "))
}

/// The pod template of a workload, and where it is.
pub fn template<'a>(group: &str, plural: &str, object: &'a Value) -> Option<&'a Value> {
    match (group, plural) {
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => object.pointer("/spec/template"),
        ("batch", "cronjobs") => object.pointer("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

/// Whether an update of a pod changes anything that the checks look at, but for images.
pub fn is_significant(new: &Value, old: &Value) -> bool {
    let bare = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                drop(
                    container
                        .as_object_mut()
                        .map(|fields| fields.remove("image")),
                );
            }
        }
        for field in [
            "activeDeadlineSeconds",
            "tolerations",
            "nodeName",
            "schedulingGates",
        ] {
            drop(spec.as_object_mut().map(|fields| fields.remove(field)));
        }
        spec
    };
    bare(new) != bare(old)
}

#[cfg(test)]
mod tests;
