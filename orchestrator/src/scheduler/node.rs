//! Nodes and what is on them: the state that decisions are made on.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::{api::core::v1::Taint, apimachinery::pkg::apis::meta::v1::LabelSelector};
use serde::Deserialize;

use super::{
    pod::PodInfo,
    resources::{Resources, Usage},
    tally::{Tallies, Tally},
};
use crate::cache::Entry;

/// A node.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// Whether it takes no new pods.
    pub unschedulable: bool,
    /// What it offers.
    pub allocatable: Resources,
    /// Bytes of the images it has.
    pub images: HashMap<String, i64>,
    /// What its pods take.
    pub used: Usage,
    /// Its pods.
    pub pods: HashMap<Arc<str>, Arc<PodInfo>>,
    /// Those of them that mind other pods.
    pub minding: usize,
    /// False for a name that pods mention before, or after, there is a node.
    pub present: bool,
}

#[derive(Deserialize)]
struct Raw {
    metadata: crate::controller::runtime::object::Meta,
    #[serde(default)]
    spec: RawSpec,
    #[serde(default)]
    status: RawStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawSpec {
    taints: Vec<Taint>,
    unschedulable: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawStatus {
    allocatable: BTreeMap<String, String>,
    images: Vec<RawImage>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawImage {
    names: Vec<String>,
    size_bytes: i64,
}

impl NodeInfo {
    /// Reads a node, without pods.
    ///
    /// # Errors
    /// If the object is no node.
    pub fn of(entry: &Entry) -> Result<Self, serde_json::Error> {
        entry.decode().map(Self::from_raw)
    }

    /// Reads a node from JSON, without pods.
    ///
    /// # Errors
    /// If the object is no node.
    pub fn from_value(node: &serde_json::Value) -> Result<Self, serde_json::Error> {
        Raw::deserialize(node).map(Self::from_raw)
    }

    fn from_raw(raw: Raw) -> Self {
        let images = raw.status.images.into_iter();
        Self {
            name: raw.metadata.name,
            labels: raw.metadata.labels,
            taints: raw.spec.taints,
            unschedulable: raw.spec.unschedulable,
            allocatable: Resources::parse(&raw.status.allocatable),
            images: images
                .flat_map(|image| {
                    image
                        .names
                        .into_iter()
                        .map(move |name| (name, image.size_bytes))
                })
                .collect(),
            present: true,
            ..Self::default()
        }
    }

    /// Puts a pod on it; one of the same key is replaced.
    pub fn put(&mut self, pod: Arc<PodInfo>) {
        self.take(&Arc::clone(&pod.key));
        self.used.add(&pod.usage);
        self.minding += usize::from(pod.minds_pods());
        self.pods.insert(Arc::clone(&pod.key), pod);
    }

    /// Takes a pod off it.
    pub fn take(&mut self, key: &str) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(key)?;
        self.used.subtract(&pod.usage);
        self.minding -= usize::from(pod.minds_pods());
        Some(pod)
    }
}

/// All nodes.
#[derive(Debug, Default)]
pub struct Nodes {
    list: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    /// Pod key to the node it is on or is assumed to be on.
    places: HashMap<Arc<str>, usize>,
    present: usize,
    /// How many nodes have an image.
    images: HashMap<String, usize>,
    /// How many placed pods use a claim, by `namespace/name`.
    claims: HashMap<String, usize>,
    /// Placed pods that mind other pods, and those of them that ask for namespaces.
    minding: usize,
    asking: usize,
    tallies: Tallies,
}

/// One more of something, or one less.
fn count(counts: &mut HashMap<String, usize>, name: &str, more: bool) {
    match counts.get_mut(name) {
        Some(count) if more => *count += 1,
        Some(count) if *count > 1 => *count -= 1,
        Some(_) => drop(counts.remove(name)),
        None if more => drop(counts.insert(name.to_owned(), 1)),
        None => {}
    }
}

impl Nodes {
    /// All nodes that exist.
    pub fn present(&self) -> impl Iterator<Item = &NodeInfo> {
        self.list.iter().filter(|node| node.present)
    }

    /// How many nodes exist.
    pub fn count(&self) -> usize {
        self.present
    }

    /// A node that exists.
    pub fn named(&self, name: &str) -> Option<&NodeInfo> {
        let node = self.list.get(*self.by_name.get(name)?)?;
        node.present.then_some(node)
    }

    /// How many nodes have an image.
    pub fn having_image(&self, name: &str) -> usize {
        self.images.get(name).copied().unwrap_or(0)
    }

    /// Whether a pod on some node uses this claim: `namespace/name`.
    pub fn uses_claim(&self, key: &str) -> bool {
        self.claims.contains_key(key)
    }

    /// Begins to count the pods that a selector takes; `key` is its name.
    pub fn keep_count(&mut self, namespace: &str, key: &str, selector: &LabelSelector) {
        let pods = self.list.iter().flat_map(|node| node.pods.values());
        let pods = pods.map(|pod| &**pod);
        self.tallies.keep(namespace, key, selector, pods);
    }

    /// The count of a selector, if it is kept.
    pub fn tally(&self, namespace: &str, key: &str) -> Option<&Tally> {
        self.tallies.get(namespace, key)
    }

    /// The nodes by index, absent ones included.
    pub fn all(&self) -> &[NodeInfo] {
        &self.list
    }

    fn index(&mut self, name: &str) -> usize {
        if let Some(&index) = self.by_name.get(name) {
            return index;
        }
        self.list.push(NodeInfo {
            name: name.to_owned(),
            ..NodeInfo::default()
        });
        self.by_name.insert(name.to_owned(), self.list.len() - 1);
        self.list.len() - 1
    }

    /// A node is there or has changed; whether that may help a waiting pod.
    pub fn set(&mut self, node: NodeInfo) -> bool {
        let index = self.index(&node.name);
        let slot = &mut self.list[index];
        self.present += usize::from(!slot.present);
        if slot.images != node.images {
            slot.images
                .keys()
                .for_each(|i| count(&mut self.images, i, false));
            node.images
                .keys()
                .for_each(|i| count(&mut self.images, i, true));
        }
        let changed = !slot.present
            || slot.labels != node.labels
            || slot.taints != node.taints
            || slot.unschedulable != node.unschedulable
            || slot.allocatable != node.allocatable;
        *slot = NodeInfo {
            pods: std::mem::take(&mut slot.pods),
            used: std::mem::take(&mut slot.used),
            minding: slot.minding,
            ..node
        };
        changed
    }

    /// A node is gone; its pods are still there until they are deleted.
    pub fn remove(&mut self, name: &str) {
        let Some(&index) = self.by_name.get(name) else {
            return;
        };
        let node = &mut self.list[index];
        self.present -= usize::from(node.present);
        node.present = false;
        for (image, _) in node.images.drain() {
            count(&mut self.images, &image, false);
        }
        self.forget_if_empty(index);
    }

    /// A pod is, or is assumed to be, on its node.
    pub fn put(&mut self, pod: Arc<PodInfo>) {
        let index = self.index(&pod.node);
        let before = self.places.insert(Arc::clone(&pod.key), index);
        let old = before.and_then(|before| self.list[before].take(&pod.key));
        if !old.as_ref().is_some_and(|old| old.counts_as(&pod)) {
            if let Some(old) = &old {
                self.tallies.remove(old);
            }
            self.tallies.add(&pod);
        }
        if let Some(old) = &old {
            self.uncount(old);
        }
        for claim in pod.claim_keys() {
            count(&mut self.claims, &claim, true);
        }
        self.minding += usize::from(pod.minds_pods());
        self.asking += usize::from(pod.asks_namespaces());
        self.list[index].put(pod);
    }

    fn uncount(&mut self, pod: &PodInfo) {
        for claim in pod.claim_keys() {
            count(&mut self.claims, &claim, false);
        }
        self.minding -= usize::from(pod.minds_pods());
        self.asking -= usize::from(pod.asks_namespaces());
    }

    /// Whether where others are matters to a placed pod.
    pub fn has_minding(&self) -> bool {
        self.minding > 0
    }

    /// Whether namespaces' labels matter to a placed pod.
    pub fn has_asking(&self) -> bool {
        self.asking > 0
    }

    /// A pod that is, or is assumed to be, on a node.
    pub fn pod(&self, key: &str) -> Option<&Arc<PodInfo>> {
        self.list.get(*self.places.get(key)?)?.pods.get(key)
    }

    /// The node that a pod is on.
    pub fn place_of(&self, key: &str) -> Option<String> {
        let index = *self.places.get(key)?;
        self.list.get(index).map(|node| node.name.clone())
    }

    /// A pod is gone from its node, if it was on one.
    pub fn take(&mut self, key: &str) -> Option<Arc<PodInfo>> {
        let index = self.places.remove(key)?;
        let pod = self.list[index].take(key)?;
        self.tallies.remove(&pod);
        self.uncount(&pod);
        self.forget_if_empty(index);
        Some(pod)
    }

    /// Drops the place of an absent node without pods; the last one moves in.
    fn forget_if_empty(&mut self, index: usize) {
        if self.list[index].present || !self.list[index].pods.is_empty() {
            return;
        }
        let gone = self.list.swap_remove(index);
        self.by_name.remove(&gone.name);
        let Some(moved) = self.list.get(index) else {
            return;
        };
        self.by_name.insert(moved.name.clone(), index);
        for key in moved.pods.keys() {
            self.places.insert(Arc::clone(key), index);
        }
    }
}
