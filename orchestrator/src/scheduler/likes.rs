//! A pod's likes: what its Services and its controller select. By default they
//! are spread over nodes and zones.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;

use super::{affinity::Labels, pod::PodInfo};
use crate::{cache::Entry, controller::runtime::object::served, registry::client::Client};

/// The selectors of all Services that have one.
#[derive(Debug, Default)]
pub(super) struct Services {
    /// By namespace, then by key.
    selectors: HashMap<String, HashMap<Arc<str>, Labels>>,
}

#[derive(Deserialize)]
struct Selecting<S> {
    spec: Spec<S>,
}

#[derive(Deserialize)]
struct Spec<S> {
    selector: Option<S>,
}

impl Services {
    /// A Service is there or has changed.
    pub(super) fn set(&mut self, entry: &Entry) {
        match entry.decode::<Selecting<Labels>>() {
            Ok(service) => self.put(entry, service.spec.selector.unwrap_or_default()),
            Err(error) => {
                tracing::error!(service = &*entry.key, %error, "a Service cannot be read");
            }
        }
    }

    fn put(&mut self, entry: &Entry, selector: Labels) {
        if selector.is_empty() {
            return self.remove(entry);
        }
        let namespace = entry.namespace().to_owned();
        let services = self.selectors.entry(namespace).or_default();
        services.insert(Arc::clone(&entry.key), selector);
    }

    /// A Service is gone.
    pub(super) fn remove(&mut self, entry: &Entry) {
        let Some(services) = self.selectors.get_mut(entry.namespace()) else {
            return;
        };
        services.remove(&entry.key);
        if services.is_empty() {
            self.selectors.remove(entry.namespace());
        }
    }

    /// What those that select the pod demand together.
    fn of(&self, pod: &PodInfo) -> Labels {
        let services = self.selectors.get(&pod.meta.namespace);
        let services = services.into_iter().flat_map(HashMap::values);
        let selecting = services.filter(|selector| {
            let mut terms = selector.iter();
            terms.all(|(key, value)| pod.meta.labels.get(key) == Some(value))
        });
        let terms = selecting.flatten();
        terms
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }
}

/// What selects a pod's likes; `None` if nothing does.
pub(super) fn likes(client: &Client, services: &Services, pod: &PodInfo) -> Option<LabelSelector> {
    if !pod.spread.is_empty() {
        return None;
    }
    let mut labels = services.of(pod);
    let mut expressions = Vec::new();
    if let Some(selector) = controllers(client, pod) {
        labels.extend(selector.match_labels.unwrap_or_default());
        expressions = selector.match_expressions.unwrap_or_default();
    }
    if labels.is_empty() && expressions.is_empty() {
        return None;
    }
    let some = |labels: BTreeMap<_, _>| (!labels.is_empty()).then_some(labels);
    Some(LabelSelector {
        match_labels: some(labels),
        match_expressions: (!expressions.is_empty()).then_some(expressions),
    })
}

/// What the pod's controller selects, if it is one whose pods are alike for ever.
fn controllers(client: &Client, pod: &PodInfo) -> Option<LabelSelector> {
    let owner = pod.meta.controller()?;
    let resource = match (owner.api_version.as_str(), owner.kind.as_str()) {
        ("apps/v1", "ReplicaSet") => served("apps", "replicasets"),
        ("apps/v1", "StatefulSet") => served("apps", "statefulsets"),
        _ => return None,
    };
    let key = resource.object_key(&pod.meta.namespace, &owner.name);
    let entry = client.cache_of(resource).get(&key)?;
    entry
        .decode::<Selecting<LabelSelector>>()
        .ok()?
        .spec
        .selector
}
