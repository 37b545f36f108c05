//! The roles and bindings that every cluster has, and how they are kept at start.
//!
//! Pure: tables of what is wanted, and the difference to what is there. As upstream, rules and
//! subjects that somebody added stay, missing ones come back, and an object annotated
//! `rbac.authorization.kubernetes.io/autoupdate: "false"` is left alone.

use serde_json::{Value, json};

use super::rbac::GROUP;
use super::rule::{Rule, missing};

mod components;
mod controllers;
mod people;

const READ: &str = "get,list,watch";
const WRITE: &str = "create,delete,deletecollection,patch,update";
const READ_WRITE: &str = "create,delete,deletecollection,get,list,patch,update,watch";
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const API_VERSION: &str = "rbac.authorization.k8s.io/v1";
/// Label prefix that makes a ClusterRole part of `admin`, `edit` or `view`.
const AGGREGATE: &str = "rbac.authorization.k8s.io/aggregate-to-";

/// A default ClusterRole, or a Role if it names a namespace.
#[derive(Debug, Clone)]
pub struct DefaultRole {
    /// Empty for a ClusterRole.
    pub namespace: &'static str,
    /// Name.
    pub name: String,
    /// What it allows; empty for an aggregated role.
    pub rules: Vec<Rule>,
    /// Which aggregated role (`admin`, `edit`, `view`) takes it in.
    pub part_of: Option<&'static str>,
    /// Which parts it takes in, if it is an aggregated role.
    pub unites: Option<&'static str>,
}

/// Somebody who gets a default ClusterRole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A user.
    User(&'static str),
    /// A group.
    Group(&'static str),
    /// A ServiceAccount of `kube-system`.
    ServiceAccount(&'static str),
}

/// A default ClusterRoleBinding; it is named as its role unless it says otherwise.
#[derive(Debug, Clone)]
pub struct DefaultBinding {
    /// Name of the binding.
    pub name: String,
    /// Name of the ClusterRole.
    pub role: String,
    /// Who gets it.
    pub holders: Vec<Holder>,
}

// === impl DefaultRole ===

impl DefaultRole {
    fn new(name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Self {
            namespace: "",
            name: name.into(),
            rules,
            part_of: None,
            unites: None,
        }
    }

    /// The object to create.
    pub fn object(&self) -> Value {
        let kind = if self.namespace.is_empty() {
            "ClusterRole"
        } else {
            "Role"
        };
        let mut object = bootstrap_object(kind, &self.name);
        object["rules"] = json!(self.rules);
        if !self.namespace.is_empty() {
            object["metadata"]["namespace"] = self.namespace.into();
        }
        if let Some(whole) = self.part_of {
            object["metadata"]["labels"][format!("{AGGREGATE}{whole}")] = "true".into();
        }
        if let Some(own) = self.unites {
            object["aggregationRule"] = json!({"clusterRoleSelectors": [
                {"matchLabels": {format!("{AGGREGATE}{own}"): "true"}},
            ]});
            object["rules"] = Value::Null;
        }
        object
    }

    /// What the stored object must become, `None` if it is right.
    pub fn amended(&self, stored: &Value) -> Option<Value> {
        let mut next = amendable(stored)?;
        let wanted = self.object();
        merge_labels(&mut next, &wanted);
        if self.unites.is_some() {
            next["aggregationRule"] = wanted["aggregationRule"].clone();
        } else {
            let held: Vec<Rule> =
                serde_json::from_value(stored["rules"].clone()).unwrap_or_default();
            let missing = missing(&held, &self.rules);
            if !missing.is_empty() {
                next["rules"] = json!([held, missing].concat());
            }
        }
        (next != *stored).then_some(next)
    }
}

// === impl DefaultBinding ===

impl DefaultBinding {
    fn new(role: impl Into<String>, holders: Vec<Holder>) -> Self {
        let role = role.into();
        Self {
            name: role.clone(),
            role,
            holders,
        }
    }

    /// The object to create.
    pub fn object(&self) -> Value {
        let mut object = bootstrap_object("ClusterRoleBinding", &self.name);
        object["roleRef"] = json!({"apiGroup": GROUP, "kind": "ClusterRole", "name": self.role});
        object["subjects"] = self.holders.iter().map(Holder::subject).collect();
        object
    }

    /// What the stored object must become, `None` if it is right.
    pub fn amended(&self, stored: &Value) -> Option<Value> {
        let mut next = amendable(stored)?;
        let wanted = self.object();
        merge_labels(&mut next, &wanted);
        let held = stored["subjects"].as_array().cloned().unwrap_or_default();
        let mut subjects = held.clone();
        let same = |one: &Value, two: &Value| {
            ["kind", "name", "namespace"]
                .iter()
                .all(|field| one[field] == two[field])
        };
        for subject in wanted["subjects"].as_array().into_iter().flatten() {
            if !subjects.iter().any(|own| same(own, subject)) {
                subjects.push(subject.clone());
            }
        }
        if subjects != held {
            next["subjects"] = Value::Array(subjects);
        }
        (next != *stored).then_some(next)
    }

    /// Whether the stored binding grants another role, and so must be made anew.
    pub fn grants_another_role(&self, stored: &Value) -> bool {
        let role = &stored["roleRef"];
        amendable(stored).is_some() && (role["kind"] != "ClusterRole" || role["name"] != *self.role)
    }
}

// === impl Holder ===

impl Holder {
    fn subject(&self) -> Value {
        match self {
            Self::User(name) => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
            Self::Group(name) => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
            Self::ServiceAccount(name) => {
                json!({"kind": "ServiceAccount", "name": name, "namespace": "kube-system"})
            }
        }
    }
}

fn bootstrap_object(kind: &str, name: &str) -> Value {
    json!({
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {
            "name": name,
            "annotations": {AUTO_UPDATE: "true"},
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        },
    })
}

/// A copy of the stored object, unless it is not to be touched.
fn amendable(stored: &Value) -> Option<Value> {
    (stored["metadata"]["annotations"][AUTO_UPDATE] != "false").then(|| stored.clone())
}

fn merge_labels(object: &mut Value, wanted: &Value) {
    for field in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][field].as_object().into_iter().flatten() {
            object["metadata"][field][key] = value.clone();
        }
    }
}

/// Every default role.
pub fn roles() -> Vec<DefaultRole> {
    [people::roles(), components::roles(), controllers::roles()].concat()
}

/// Every default binding.
pub fn bindings() -> Vec<DefaultBinding> {
    [
        people::bindings(),
        components::bindings(),
        controllers::bindings(),
    ]
    .concat()
}

#[cfg(test)]
mod tests;
