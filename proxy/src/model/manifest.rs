//! From JSON documents to objects: decoded, then searched for fields that got
//! lost on the way (unknown ones), then checked by kind.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::{
    core::v1 as core, discovery::v1 as discovery, networking::v1 as networking,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fault::Check;
use super::label::{Labels, Selector, check_labels, is_dns_label, is_dns_subdomain};
use super::{
    Change, EndpointSlice, FieldError, Instead, Key, Kind, Namespace, NetworkPolicy, Node, Object,
    ObjectName, Pod, Rejected, Service, policy,
};

/// A document and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    pub origin: Arc<str>,
    pub value: Value,
}

/// What to do with fields that this version does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// A person wrote it: reject the object.
    Reject,
    /// An API server checked it, perhaps a newer one than we know.
    Ignore,
}

/// What one document is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    Object(Object),
    Rejected(Rejected),
    /// Of a kind that the daemon has no use for: `apiVersion/kind`.
    Unsupported(String),
}

/// All documents of a source at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub objects: BTreeMap<Key, Object>,
    pub rejected: Vec<Rejected>,
    /// How often each kind without use was seen.
    pub unsupported: BTreeMap<String, usize>,
}

impl Batch {
    /// Reads documents in order. Of several objects of one kind and name the
    /// last wins, as with `kubectl apply`; the others are rejected.
    pub fn read(documents: impl IntoIterator<Item = Document>, unknown: Unknown) -> Self {
        let mut batch = Self::default();
        let mut origins: BTreeMap<Key, Arc<str>> = BTreeMap::new();
        for document in documents.into_iter().flat_map(flatten) {
            let (key, object) = match parse(&document, unknown) {
                Parsed::Unsupported(kind) => {
                    *batch.unsupported.entry(kind).or_default() += 1;
                    continue;
                }
                Parsed::Object(object) => (object.key(), Some(object)),
                Parsed::Rejected(rejected) => {
                    let key = rejected.key.clone();
                    batch.rejected.push(rejected);
                    (key, None)
                }
            };
            if let Some(earlier) = origins.insert(key.clone(), Arc::clone(&document.origin)) {
                batch.supersede(&key, &earlier, &document.origin);
            }
            if let Some(object) = object {
                batch.objects.insert(key, object);
            }
        }
        batch
    }

    /// The object `key` from `earlier` gives way to the one from `later`.
    fn supersede(&mut self, key: &Key, earlier: &Arc<str>, later: &Arc<str>) {
        if self.objects.remove(key).is_some() {
            self.rejected.push(Rejected {
                key: key.clone(),
                origin: Arc::clone(earlier),
                errors: vec![FieldError {
                    path: "metadata.name".to_owned(),
                    reason: format!("is defined again in {later}, which wins"),
                    hint: "remove one of the two, or rename it".to_owned(),
                }],
                instead: Instead::Later,
            });
            return;
        }
        for rejected in &mut self.rejected {
            if rejected.key == *key && rejected.origin == *earlier {
                rejected.instead = Instead::Later;
            }
        }
    }

    /// The changes that lead from `earlier` to this batch.
    pub fn since(&self, earlier: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        let effective = |batch: &Self| -> BTreeMap<Key, Rejected> {
            let in_place = batch
                .rejected
                .iter()
                .filter(|r| r.instead != Instead::Later);
            in_place.map(|r| (r.key.clone(), r.clone())).collect()
        };
        let (old_rejected, new_rejected) = (effective(earlier), effective(self));
        let gone =
            |key: &&Key| !self.objects.contains_key(*key) && !new_rejected.contains_key(*key);
        let old_keys = earlier.objects.keys().chain(old_rejected.keys());
        changes.extend(old_keys.filter(gone).cloned().map(Change::Remove));
        for (key, object) in &self.objects {
            if earlier.objects.get(key) != Some(object) || old_rejected.contains_key(key) {
                changes.push(Change::Upsert(object.clone()));
            }
        }
        for (key, rejected) in new_rejected {
            if old_rejected.get(&key) != Some(&rejected) {
                changes.push(Change::Reject(rejected));
            }
        }
        changes
    }
}

/// The items of a `v1` `List` (and lists of a kind, `PodList`), or the document itself.
fn flatten(mut document: Document) -> Vec<Document> {
    let text = |field: &str| {
        let text = document.value.get(field).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let items = kind
        .strip_suffix("List")
        .and_then(|kind| Some((kind, document.value.get_mut("items")?.take())));
    let Some((kind, Value::Array(items))) = items else {
        return vec![document];
    };
    let items = items.into_iter().enumerate().map(|(index, mut value)| {
        // Items of a list of a kind are of that kind, and need not say so.
        if let (Value::Object(fields), false) = (&mut value, kind.is_empty()) {
            for (field, of_list) in [("apiVersion", &*api_version), ("kind", kind)] {
                fields.entry(field).or_insert_with(|| of_list.into());
            }
        }
        Document {
            origin: format!("{}, item {}", document.origin, index + 1).into(),
            value,
        }
    });
    items.flat_map(flatten).collect()
}

/// Reads one document.
pub fn parse(document: &Document, unknown: Unknown) -> Parsed {
    let text = |field: &str| document.value.get(field).and_then(Value::as_str);
    let (api_version, kind_name) = (text("apiVersion"), text("kind"));
    let (api_version, kind_name) = (api_version.unwrap_or("?"), kind_name.unwrap_or("?"));
    let read = match Kind::of(api_version, kind_name) {
        None if is_policy(api_version, kind_name, &document.value) => {
            let name = raw_name(Kind::NetworkPolicy, document);
            Err((
                Kind::NetworkPolicy,
                (name, of_no_kind(api_version, kind_name)),
            ))
        }
        None => return Parsed::Unsupported(format!("{api_version}/{kind_name}")),
        Some(kind) => read(kind, document, unknown).map_err(|faults| (kind, faults)),
    };
    match read {
        Ok(object) => Parsed::Object(object),
        Err((kind, (name, errors))) => Parsed::Rejected(reject(kind, name, document, errors)),
    }
}

/// Whether something of no kind that we know is meant to be a Kubernetes
/// NetworkPolicy, by an old or misspelt apiVersion or a misspelt kind. Others
/// have kinds of this name too, in groups of their own.
fn is_policy(api_version: &str, kind: &str, value: &Value) -> bool {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let is_foreign = group.contains('.') && !group.contains("k8s");
    let is_named = kind.eq_ignore_ascii_case(Kind::NetworkPolicy.name());
    let has_subject = || value.pointer("/spec/podSelector").is_some();
    (is_named && !is_foreign) || (group == "networking.k8s.io" && has_subject())
}

fn of_no_kind(api_version: &str, kind: &str) -> Vec<FieldError> {
    let (known, mut check) = (Kind::NetworkPolicy, Check::default());
    for (path, is, wanted) in [
        ("apiVersion", api_version, known.api_version()),
        ("kind", kind, known.name()),
    ] {
        if is != wanted {
            let reason = format!("\"{is}\" is not known");
            check.fault(path, reason, format!("write {wanted}"));
        }
    }
    check.errors
}

type Faults = (ObjectName, Vec<FieldError>);

fn read(kind: Kind, document: &Document, unknown: Unknown) -> Result<Object, Faults> {
    let context = Context {
        kind,
        document,
        unknown,
    };
    match kind {
        Kind::Node => context.decode(
            |o: &core::Node| &o.metadata,
            |check, name, o| Object::Node(Node::read(check, name, o).into()),
        ),
        Kind::Namespace => context.decode(
            |o: &core::Namespace| &o.metadata,
            |check, name, o| Object::Namespace(Namespace::read(check, &name, o).into()),
        ),
        Kind::Pod => context.decode(
            |o: &core::Pod| &o.metadata,
            |check, name, o| Object::Pod(Pod::read(check, name, o).into()),
        ),
        Kind::Service => context.decode(
            |o: &core::Service| &o.metadata,
            |check, name, o| Object::Service(Service::read(check, name, o).into()),
        ),
        Kind::EndpointSlice => context.decode(
            |o: &discovery::EndpointSlice| &o.metadata,
            |check, name, o| Object::EndpointSlice(EndpointSlice::read(check, name, o).into()),
        ),
        Kind::NetworkPolicy => context.decode(
            |o: &networking::NetworkPolicy| &o.metadata,
            |check, name, o| Object::NetworkPolicy(NetworkPolicy::read(check, name, o).into()),
        ),
    }
}

struct Context<'a> {
    kind: Kind,
    document: &'a Document,
    unknown: Unknown,
}

impl Context<'_> {
    fn decode<T: DeserializeOwned + Serialize>(
        &self,
        metadata: impl Fn(&T) -> &ObjectMeta,
        read: impl Fn(&mut Check, ObjectName, &T) -> Object,
    ) -> Result<Object, Faults> {
        let value = &self.document.value;
        let mut check = Check::default();
        let mut input = value.clone();
        stringify_quantities(&mut input);
        let decoded: T = match serde_path_to_error::deserialize(&input) {
            Ok(decoded) => decoded,
            Err(error) => {
                let path = error.path().to_string();
                let reason = error.into_inner().to_string();
                // `no`, `on` and `80` are no text to YAML.
                let hint = if reason.ends_with("expected a string") {
                    "put the value in quotes"
                } else {
                    "give the field a value of its type"
                };
                check.fault(&path, reason, hint);
                let name = raw_name(self.kind, self.document);
                return Err((name, check.errors));
            }
        };
        if self.unknown == Unknown::Reject {
            match serde_json::to_value(&decoded) {
                Ok(output) => find_lost(&mut check, "", &input, &output),
                Err(error) => check.fault("", error.to_string(), "report this object"),
            }
        }
        let name = read_name(&mut check, self.kind, metadata(&decoded));
        let object = read(&mut check, name, &decoded);
        if check.errors.is_empty() {
            Ok(object)
        } else {
            Err((raw_name(self.kind, self.document), check.errors))
        }
    }
}

/// Quantities may be written as numbers; the API machinery makes text of them.
fn stringify_quantities(value: &mut Value) {
    const MAPS: [&str; 6] = [
        "limits",
        "requests",
        "capacity",
        "allocatable",
        "overhead",
        "hard",
    ];
    const FIELDS: [&str; 2] = ["sizeLimit", "divisor"];
    let stringify = |value: &mut Value| {
        if let Value::Number(number) = value {
            *value = Value::String(number.to_string());
        }
    };
    match value {
        Value::Array(items) => items.iter_mut().for_each(stringify_quantities),
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::Object(quantities) if MAPS.contains(&name.as_str()) => {
                        quantities.values_mut().for_each(stringify);
                    }
                    field if FIELDS.contains(&name.as_str()) => stringify(field),
                    field => stringify_quantities(field),
                }
            }
        }
        _ => {}
    }
}

/// Faults for every field of `input` that is not in `output`.
fn find_lost(check: &mut Check, path: &str, input: &Value, output: &Value) {
    match (input, output) {
        (Value::Object(input), Value::Object(output)) => {
            for (name, value) in input {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                match output.get(name) {
                    Some(output) => find_lost(check, &path, value, output),
                    None if value.is_null() => {}
                    None => {
                        let reason = "unknown field";
                        check.fault(&path, reason, "correct its spelling or place, or remove it");
                    }
                }
            }
        }
        (Value::Array(input), Value::Array(output)) => {
            for (index, (input, output)) in input.iter().zip(output).enumerate() {
                find_lost(check, &format!("{path}[{index}]"), input, output);
            }
        }
        _ => {}
    }
}

fn read_name(check: &mut Check, kind: Kind, metadata: &ObjectMeta) -> ObjectName {
    let name = metadata.name.clone().unwrap_or_default();
    let good = match kind {
        Kind::Namespace | Kind::Service => is_dns_label(&name),
        _ => is_dns_subdomain(&name, 253),
    };
    if name.is_empty() {
        check.fault("metadata.name", "is missing", "give the object a name");
    } else if !good {
        check.fault(
            "metadata.name",
            format!("\"{name}\" is not a name"),
            "use a-z, 0-9 and '-' (and '.', where the kind allows it), alphanumeric at both ends",
        );
    }
    if !kind.is_namespaced() {
        return ObjectName::new("", &name);
    }
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let namespace = Some(namespace).filter(|text| !text.is_empty());
    let namespace = namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    if !is_dns_label(&namespace) {
        check.fault(
            "metadata.namespace",
            format!("\"{namespace}\" is not a namespace name"),
            "use at most 63 of a-z, 0-9 and '-', alphanumeric at both ends",
        );
    }
    ObjectName { namespace, name }
}

const DEFAULT_NAMESPACE: &str = "default";

/// The name as far as the document has one; otherwise one made of its origin,
/// so that nameless objects do not hide one another.
fn raw_name(kind: Kind, document: &Document) -> ObjectName {
    let text = |field: &str| -> Option<String> {
        let text = document.value.pointer(field)?.as_str()?;
        Some(text.to_owned()).filter(|text| !text.is_empty())
    };
    let name = text("/metadata/name");
    let name = name.unwrap_or_else(|| format!("<unnamed in {}>", document.origin));
    let namespace = if kind.is_namespaced() {
        text("/metadata/namespace").unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())
    } else {
        String::new()
    };
    ObjectName { namespace, name }
}

fn reject(kind: Kind, name: ObjectName, document: &Document, errors: Vec<FieldError>) -> Rejected {
    let instead = match kind {
        Kind::NetworkPolicy => {
            Instead::Closed(Arc::new(close(name.clone(), &document.value, &errors)))
        }
        Kind::Namespace => match readable_labels(&document.value) {
            labels if labels.is_empty() => Instead::Nothing,
            labels => Instead::Labelled(Namespace::with_labels(&name.name, labels).into()),
        },
        Kind::Node | Kind::Pod | Kind::Service | Kind::EndpointSlice => Instead::Nothing,
    };
    Rejected {
        key: Key { kind, name },
        origin: Arc::clone(&document.origin),
        errors,
        instead,
    }
}

/// The labels of an object that is not understood, but for those that are none.
fn readable_labels(document: &Value) -> Labels {
    let labels = document.pointer("/metadata/labels");
    let labels = labels.and_then(Value::as_object).into_iter().flatten();
    let readable = labels.filter_map(|(key, value)| {
        let label = Labels::from([(key.clone(), value.as_str()?.to_owned())]);
        let mut check = Check::default();
        check_labels(&mut check, "metadata.labels", &label);
        check.errors.is_empty().then_some(label)
    });
    readable.flatten().collect()
}

/// What a policy that is not understood does: it isolates the pods that its
/// podSelector selects, or all of the namespace if the selector is at fault, in
/// the directions it names, or both if that is unclear; it allows nothing.
fn close(name: ObjectName, document: &Value, errors: &[FieldError]) -> NetworkPolicy {
    let spec = document.get("spec").unwrap_or(&Value::Null);
    let selector_at_fault = errors
        .iter()
        .any(|e| e.path.starts_with("spec.podSelector"));
    let selector = spec.get("podSelector").filter(|_| !selector_at_fault);
    let mut check = Check::default();
    let subject = selector
        .and_then(|value| serde_json::from_value::<LabelSelector>(value.clone()).ok())
        .map(|selector| Selector::read(&mut check, "spec.podSelector", &selector))
        .filter(|_| check.errors.is_empty())
        .unwrap_or_default();
    let types = match spec.get("policyTypes") {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(types) => serde_json::from_value::<Vec<String>>(types.clone()).ok(),
    };
    // A misspelt `egress` is an unknown field right below `spec`.
    let misspelt = errors.iter().any(|e| {
        e.path.starts_with("spec.") && e.path.matches('.').count() == 1 && !e.path.contains('[')
    });
    let has_egress = spec.get("egress").is_some_and(|egress| !egress.is_null());
    let (ingress, egress) = match types {
        Some(types) if spec.is_object() && !(types.is_empty() && misspelt) => {
            let mut check = Check::default();
            let directions = policy::directions(&mut check, &types, has_egress);
            if check.errors.is_empty() {
                directions
            } else {
                (true, true)
            }
        }
        _ => (true, true),
    };
    NetworkPolicy::closed(name, subject, ingress, egress)
}

#[cfg(test)]
mod tests;
