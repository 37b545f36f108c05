//! The EndpointSlices of one manager: what is there, and the writes that make
//! them hold what they should.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::packing::{Packed, Plan, pack};
use crate::{
    cache::Entry,
    controller::runtime::{
        Change, Clock, Context, Key,
        object::{self, served},
        stamp,
    },
    registry::{DeleteOptions, Target, client::Client},
    resource::Resource,
    status::Status,
};

use super::backend::TRIGGER;

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Which Service a slice belongs to.
pub(super) const SERVICE: &str = "kubernetes.io/service-name";

/// A slice's kind: address family and ports in JSON. Slices of different
/// kinds hold different endpoints of one Service.
pub(super) type Kind = (String, String);
/// Endpoints by what makes them the same one.
pub(super) type Endpoints = BTreeMap<String, Value>;

/// Access to the slices of one manager.
#[derive(Debug)]
pub(super) struct Slices {
    client: Client,
    clock: Clock,
    manager: &'static str,
    /// Endpoints in one slice at most.
    most: usize,
    /// What makes two endpoints the same one.
    identity: fn(&Value) -> &str,
}

/// What the slices of one Service have in common.
#[derive(Debug)]
pub(super) struct Parent<'a> {
    pub(super) namespace: &'a str,
    /// The Service's name.
    pub(super) service: &'a str,
    /// Owner reference.
    pub(super) owner: Value,
    /// Labels besides those that make them slices of this Service.
    pub(super) labels: Value,
    /// Annotations.
    pub(super) annotations: Value,
    /// Families that have an empty slice when there is no endpoint.
    pub(super) families: Vec<String>,
}

/// What is there.
#[derive(Debug, Default)]
struct Existing {
    by_kind: BTreeMap<Kind, Vec<Packed<Value>>>,
    /// Those whose labels are not what they should be.
    stale: BTreeSet<String>,
}

pub(super) fn resource() -> &'static Resource {
    served("discovery.k8s.io", "endpointslices")
}

/// Identity of endpoints that are pods.
pub(super) fn by_pod(endpoint: &Value) -> &str {
    endpoint["targetRef"]["uid"].as_str().unwrap_or_default()
}

/// Identity of endpoints that are addresses.
pub(super) fn by_address(endpoint: &Value) -> &str {
    endpoint["addresses"][0].as_str().unwrap_or_default()
}

impl Slices {
    pub(super) fn new(
        context: &Context,
        manager: &'static str,
        most: usize,
        identity: fn(&Value) -> &str,
    ) -> Self {
        Self {
            client: context.client.clone(),
            clock: context.clock.clone(),
            manager,
            most,
            identity,
        }
    }

    /// The Service of a changed slice of this manager.
    pub(super) fn keys(manager: &'static str) -> impl Fn(&Change<'_>) -> Vec<Key> + Send + Sync {
        move |change| {
            let entry = change.entry;
            let ours = entry.label(MANAGED_BY) == Some(manager);
            let service = entry.label(SERVICE).filter(|_| ours);
            let key = service.map(|name| format!("{}/{name}", entry.namespace()).into());
            key.into_iter().collect()
        }
    }

    /// Writes what is missing, removes what is too much.
    ///
    /// # Errors
    /// The refusal of a write.
    pub(super) async fn settle(
        &self,
        parent: &Parent<'_>,
        mut wanted: BTreeMap<Kind, Endpoints>,
    ) -> Result<(), Status> {
        let labels = self.labels(parent);
        let Existing { mut by_kind, stale } =
            self.existing(parent.namespace, parent.service, &labels)?;
        let empty = |family: &&String| !wanted.keys().any(|(of, _)| of == *family);
        let empty: Vec<Kind> = parent
            .families
            .iter()
            .filter(empty)
            .map(|family| placeholder(family))
            .collect();
        for kind in &empty {
            wanted.insert(kind.clone(), Endpoints::new());
        }
        let kinds: BTreeSet<Kind> = by_kind.keys().chain(wanted.keys()).cloned().collect();
        for kind in kinds {
            let existing = by_kind.remove(&kind).unwrap_or_default();
            let endpoints = wanted.remove(&kind).unwrap_or_default();
            let mislabelled: Vec<_> = existing
                .iter()
                .filter(|s| is_in(s, &stale))
                .cloned()
                .collect();
            let mut plan = if empty.contains(&kind) {
                keep_one(existing)
            } else {
                pack(existing, endpoints, self.most)
            };
            let untouched = |slice: &Packed<Value>| {
                let same = |other: &Packed<Value>| other.name == slice.name;
                let name = slice.name.as_ref();
                !plan.update.iter().any(same) && !plan.delete.iter().any(|gone| Some(gone) == name)
            };
            let relabel: Vec<_> = mislabelled.into_iter().filter(untouched).collect();
            plan.update.extend(relabel);
            self.write(parent, &labels, &kind, plan).await?;
        }
        Ok(())
    }

    /// Removes all slices of a Service.
    ///
    /// # Errors
    /// The refusal of a deletion.
    pub(super) async fn clear(&self, namespace: &str, service: &str) -> Result<(), Status> {
        let existing = self.existing(namespace, service, &Value::Null)?;
        let all = existing.by_kind.into_values().flatten();
        let names: Vec<String> = all.filter_map(|slice| slice.name).collect();
        self.remove(namespace, &names).await
    }

    fn labels(&self, parent: &Parent<'_>) -> Value {
        let mut labels = if parent.labels.is_object() {
            parent.labels.clone()
        } else {
            json!({})
        };
        labels[SERVICE] = parent.service.into();
        labels[MANAGED_BY] = self.manager.into();
        labels
    }

    fn existing(&self, namespace: &str, service: &str, labels: &Value) -> Result<Existing, Status> {
        let mut existing = Existing::default();
        for entry in object::list(&self.client, resource(), namespace)? {
            if !self.is_ours(&entry, service) {
                continue;
            }
            let mut slice = entry.value();
            if !slice["metadata"]["deletionTimestamp"].is_null() {
                continue;
            }
            if slice["metadata"]["labels"] != *labels {
                existing.stale.insert(entry.name().to_owned());
            }
            let family = slice["addressType"].as_str().unwrap_or_default().to_owned();
            let ports = match slice["ports"].take() {
                Value::Null => json!([]),
                ports => ports,
            };
            let endpoints = match slice["endpoints"].take() {
                Value::Array(endpoints) => endpoints,
                _ => Vec::new(),
            };
            let identified = |(index, endpoint): (usize, Value)| {
                let identity = match (self.identity)(&endpoint) {
                    "" => format!("#{index}"),
                    identity => identity.to_owned(),
                };
                (identity, endpoint)
            };
            let kind = (family, ports.to_string());
            existing.by_kind.entry(kind).or_default().push(Packed {
                name: Some(entry.name().to_owned()),
                endpoints: endpoints.into_iter().enumerate().map(identified).collect(),
            });
        }
        Ok(existing)
    }

    fn is_ours(&self, entry: &Entry, service: &str) -> bool {
        entry.label(MANAGED_BY) == Some(self.manager) && entry.label(SERVICE) == Some(service)
    }

    async fn write(
        &self,
        parent: &Parent<'_>,
        labels: &Value,
        kind: &Kind,
        plan: Plan<Value>,
    ) -> Result<(), Status> {
        let now = stamp(self.clock.now());
        let list = |slice: &Packed<Value>| -> Value {
            slice.endpoints.values().cloned().collect::<Vec<_>>().into()
        };
        let mut annotations = parent.annotations.clone();
        annotations[TRIGGER] = now.clone().into();
        let ports: Value = serde_json::from_str(&kind.1).unwrap_or_default();
        for slice in &plan.create {
            let object = json!({
                "metadata": {
                    "generateName": format!("{}-", parent.service),
                    "labels": labels,
                    "annotations": annotations,
                    "ownerReferences": [parent.owner],
                },
                "addressType": kind.0,
                "ports": ports,
                "endpoints": list(slice),
            });
            let made = self
                .client
                .create_value(resource(), parent.namespace, object);
            made.await?;
        }
        for slice in &plan.update {
            let change = |current: &Value| {
                let mut new = current.clone();
                new["endpoints"] = list(slice);
                new["metadata"]["labels"] = labels.clone();
                new["metadata"]["annotations"][TRIGGER] = now.clone().into();
                Ok(new)
            };
            let name = slice.name.as_deref().unwrap_or_default();
            let target = Target::object(resource(), parent.namespace, name);
            self.client.change(target, &change).await?;
        }
        self.remove(parent.namespace, &plan.delete).await
    }

    async fn remove(&self, namespace: &str, names: &[String]) -> Result<(), Status> {
        for name in names {
            let options = DeleteOptions::default();
            let gone = self.client.delete_of(resource(), namespace, name, &options);
            match gone.await {
                Err(status) if !status.is("NotFound") => return Err(status),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The kind of a family's slice without endpoints.
fn placeholder(family: &str) -> Kind {
    (family.to_owned(), "[]".to_owned())
}

fn is_in(slice: &Packed<Value>, names: &BTreeSet<String>) -> bool {
    slice.name.as_ref().is_some_and(|name| names.contains(name))
}

/// One empty slice, out of those that are there if there are any. Pure.
fn keep_one(existing: Vec<Packed<Value>>) -> Plan<Value> {
    let mut plan = Plan {
        create: Vec::new(),
        update: Vec::new(),
        delete: Vec::new(),
    };
    let mut existing = existing.into_iter();
    match existing.next() {
        None => plan.create.push(Packed {
            name: None,
            endpoints: Endpoints::new(),
        }),
        Some(first) if first.endpoints.is_empty() => {}
        Some(first) => plan.update.push(Packed {
            endpoints: Endpoints::new(),
            ..first
        }),
    }
    plan.delete.extend(existing.filter_map(|slice| slice.name));
    plan
}
