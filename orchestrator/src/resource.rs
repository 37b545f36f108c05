//! What a resource is, described in one place per resource.
//!
//! Everything else (paths, discovery, selectors, tables, the write pipeline)
//! reads these descriptions. To add a resource, describe it in the file of its
//! group and name it in that file's `ALL`.

use std::{collections::HashMap, sync::LazyLock};

use serde_json::Value;

use crate::status::{Cause, Subject};

pub mod apps;
pub mod batch;
pub mod certificates;
pub mod cluster;
pub mod core;
pub mod event;
pub mod node;
pub mod pod;
pub mod rbac;
pub mod review;
pub mod service;
pub mod storage;
pub mod table;
mod template;

pub use table::Column;

/// One resource of one group and version.
#[derive(Debug)]
pub struct Resource {
    /// Storage prefix, unique: `configmaps`, `deployments.apps`.
    pub key: &'static str,
    /// API group, empty for core.
    pub group: &'static str,
    /// Version, `v1`.
    pub version: &'static str,
    /// Kind, `ConfigMap`.
    pub kind: &'static str,
    /// Path segment, `configmaps`.
    pub plural: &'static str,
    /// What a person types for one, `configmap`.
    pub singular: &'static str,
    /// Short names, `cm`.
    pub short_names: &'static [&'static str],
    /// Categories, `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// What can be done to it.
    pub verbs: &'static [&'static str],
    /// Subresources, in discovery order.
    pub subresources: &'static [Subresource],
    /// Fields besides name and namespace that a field selector may name.
    pub fields: &'static [SelectableField],
    /// What `kubectl get` shows: after the name, unless the name is among them.
    pub columns: &'static [Column],
    /// Whether `metadata.generation` counts changes of the desired state.
    pub generation: bool,
    /// If set, objects in this namespace are kept in memory only.
    pub volatile: Option<&'static str>,
    /// Rules of this kind that the schema cannot say.
    pub rules: Rules,
    /// If set, what clients are warned of.
    pub deprecated: Option<&'static str>,
    /// If set, this is another version of stored objects, and its rules for
    /// creates and updates see objects in this version.
    pub view: Option<&'static View>,
}

/// How a version differs from the stored one: by names of fields.
#[derive(Debug)]
pub struct View {
    /// The stored version. Its `key` is the view's too, and its selectable
    /// fields begin with the view's.
    pub of: &'static Resource,
    /// Top-level fields, here and as stored.
    pub renamed: &'static [(&'static str, &'static str)],
}

/// All verbs of an ordinary stored resource.
pub const ALL_VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
/// The verbs of a review: answered, never stored.
pub const REVIEW_VERBS: &[&str] = &["create"];

/// A field that field selectors may name.
#[derive(Debug)]
pub struct SelectableField {
    /// As the client writes it, `spec.nodeName`.
    pub name: &'static str,
    /// Where it is in the object; the same, but for a few old names.
    pub pointer: &'static str,
    /// Its value where the object has none.
    pub default: &'static str,
}

impl SelectableField {
    /// A text field that is empty by default.
    pub const fn text(name: &'static str) -> Self {
        Self::renamed(name, name)
    }

    /// As [`Self::text`], stored under another name.
    pub const fn renamed(name: &'static str, pointer: &'static str) -> Self {
        Self {
            name,
            pointer,
            default: "",
        }
    }
}

/// A path below an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// Path segment, `status`.
    pub name: &'static str,
    /// The kind that goes in and out.
    pub kind: &'static str,
    /// That kind's group; empty for core.
    pub group: &'static str,
    /// That kind's version.
    pub version: &'static str,
    /// What can be done to it.
    pub verbs: &'static [&'static str],
}

impl Subresource {
    /// `/status` of a resource of this group and kind.
    pub const fn status(group: &'static str, kind: &'static str) -> Self {
        Self {
            name: "status",
            kind,
            group,
            version: "v1",
            verbs: &["get", "patch", "update"],
        }
    }

    /// `/scale`.
    pub const fn scale() -> Self {
        Self {
            name: "scale",
            kind: "Scale",
            group: "autoscaling",
            version: "v1",
            verbs: &["get", "patch", "update"],
        }
    }

    /// A subresource that is only posted to.
    pub const fn posted(
        name: &'static str,
        group: &'static str,
        version: &'static str,
        kind: &'static str,
    ) -> Self {
        Self {
            name,
            kind,
            group,
            version,
            verbs: &["create"],
        }
    }
}

/// What a kind does beyond its schema. Pure functions over the JSON tree.
#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts of a kind, not a state"
)]
pub struct Rules {
    /// Fills in defaults that depend on other fields; runs on every write.
    pub default: fn(&mut Value),
    /// Makes a new object's server-owned fields right.
    pub create: fn(&mut Value),
    /// Makes an update's server-owned fields right: `(new, old)`.
    pub update: fn(&mut Value, &Value),
    /// What is wrong with an object.
    pub validate: fn(&Value, &mut Causes),
    /// What is wrong with an object only because it is new.
    pub validate_create: fn(&Value, &mut Causes),
    /// What is wrong with a change: `(new, old)`.
    pub validate_update: fn(&Value, &Value, &mut Causes),
    /// Which names are allowed.
    pub name: NameRule,
    /// Seconds of grace that a deletion gives, of those asked for.
    pub grace: fn(&Value, Option<i64>) -> i64,
    /// Whether something besides metadata.finalizers holds a deleted object.
    pub held: fn(&Value) -> bool,
    /// What else the beginning of a deletion changes.
    pub terminate: fn(&mut Value),
    /// Whether dependents stay unless the client says otherwise.
    pub orphans: bool,
    /// Whether a deletion answers with the object instead of a `Status`.
    pub returns_deleted: bool,
    /// Whether a create may bring a status of its own.
    pub keeps_status: bool,
    /// Whether writes of the status may set labels too.
    pub status_writes_labels: bool,
}

/// Validation errors of one object.
pub type Causes = Vec<Cause>;

/// What a name must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain, at most 253 characters.
    Subdomain,
    /// RFC 1123 label, at most 63 characters.
    Label,
    /// RFC 1035 label: starts with a letter.
    Label1035,
    /// Any text that is one path segment.
    PathSegment,
}

/// Rules of a kind that has none of its own.
pub const PLAIN: Rules = Rules {
    default: |_| {},
    create: |_| {},
    update: |_, _| {},
    validate: |_, _| {},
    validate_create: |_, _| {},
    validate_update: |_, _, _| {},
    name: NameRule::Subdomain,
    grace: |_, _| 0,
    held: |_| false,
    terminate: |_| {},
    orphans: false,
    returns_deleted: false,
    keeps_status: false,
    status_writes_labels: false,
};

impl Resource {
    /// A namespaced stored resource; a description overrides what differs.
    pub const fn namespaced(
        key: &'static str,
        group: &'static str,
        kind: &'static str,
        plural: &'static str,
        singular: &'static str,
    ) -> Self {
        Self {
            key,
            group,
            version: "v1",
            kind,
            plural,
            singular,
            short_names: &[],
            categories: &[],
            namespaced: true,
            verbs: ALL_VERBS,
            subresources: &[],
            fields: &[],
            columns: table::AGE,
            generation: false,
            volatile: None,
            rules: PLAIN,
            deprecated: None,
            view: None,
        }
    }

    /// A cluster-scoped stored resource.
    pub const fn cluster(
        key: &'static str,
        group: &'static str,
        kind: &'static str,
        plural: &'static str,
        singular: &'static str,
    ) -> Self {
        Self {
            namespaced: false,
            ..Self::namespaced(key, group, kind, plural, singular)
        }
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        join(self.group, self.version)
    }

    /// How refusals name it.
    pub fn subject(&self) -> Subject<'static> {
        Subject {
            group: self.group,
            resource: self.plural,
        }
    }

    /// The subresource of this name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether spec and status are written through different doors.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Whether objects are stored, rather than answered.
    pub fn is_stored(&self) -> bool {
        self.verbs.contains(&"get")
    }

    /// The version that is stored: this one, but for views.
    pub fn stored_as(&'static self) -> &'static Self {
        self.view.map_or(self, |view| view.of)
    }

    /// Brings a stored object into this version.
    pub fn show(&self, object: &mut Value) {
        if let Some(view) = self.view {
            let names = view.renamed.iter().map(|(here, stored)| (*stored, *here));
            self.rename(object, names);
        }
    }

    /// A stored object in this version.
    #[must_use]
    pub fn shown(&self, stored: &Value) -> Value {
        let mut object = stored.clone();
        self.show(&mut object);
        object
    }

    /// Brings an object of this version into the stored one.
    pub fn keep(&self, object: &mut Value) {
        if let Some(view) = self.view {
            view.of.rename(object, view.renamed.iter().copied());
        }
    }

    /// Renames fields, and makes the object one of this version.
    fn rename(
        &self,
        object: &mut Value,
        names: impl Iterator<Item = (&'static str, &'static str)>,
    ) {
        let Some(map) = object.as_object_mut() else {
            return;
        };
        for (from, to) in names {
            if let Some(value) = map.remove(from) {
                map.insert(to.to_owned(), value);
            }
        }
        map.insert("apiVersion".to_owned(), self.api_version().into());
    }

    /// How this version names a field of a stored object.
    pub fn field_here(&self, stored: &str) -> String {
        let renamed = self.view.map_or(&[][..], |view| view.renamed);
        let top = stored.split(['.', '[']).next().unwrap_or_default();
        match renamed.iter().find(|(_, of)| *of == top) {
            Some((here, _)) => stored.replacen(top, here, 1),
            None => stored.to_owned(),
        }
    }

    /// The cache key of an object: `namespace/name`, or `name`.
    pub fn object_key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{namespace}/{name}")
        } else {
            name.to_owned()
        }
    }
}

/// `group/version`, or the version alone for core.
pub fn join(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// Every described resource, in discovery order.
pub fn all() -> impl Iterator<Item = &'static Resource> {
    [
        core::ALL,
        apps::ALL,
        event::ALL,
        review::ALL,
        batch::ALL,
        certificates::ALL,
        cluster::ALL,
        rbac::ALL,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// Those that have objects of their own in the store.
pub fn stored() -> impl Iterator<Item = &'static Resource> {
    all().filter(|r| r.is_stored() && r.view.is_none())
}

/// The resource of a path.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    static BY_PATH: LazyLock<HashMap<(&str, &str, &str), &Resource>> =
        LazyLock::new(|| all().map(|r| ((r.group, r.version, r.plural), r)).collect());
    BY_PATH.get(&(group, version, plural)).copied()
}

/// The resource of a kind.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    static BY_KIND: LazyLock<HashMap<(&str, &str, &str), &Resource>> =
        LazyLock::new(|| all().map(|r| ((r.group, r.version, r.kind), r)).collect());
    BY_KIND.get(&(group, version, kind)).copied()
}

/// Groups and their versions, core first, in discovery order.
pub fn groups() -> Vec<(&'static str, &'static str)> {
    let mut groups = Vec::new();
    for resource in all() {
        if !groups.contains(&(resource.group, resource.version)) {
            groups.push((resource.group, resource.version));
        }
    }
    groups
}
