//! Nodes and what is on them: the state that decisions are made on.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Taint;
use serde::Deserialize;

use super::{
    pod::PodInfo,
    resources::{Resources, Usage},
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
        self.present -= usize::from(self.list[index].present);
        self.list[index].present = false;
        self.forget_if_empty(index);
    }

    /// A pod is, or is assumed to be, on its node.
    pub fn put(&mut self, pod: Arc<PodInfo>) {
        let index = self.index(&pod.node);
        match self.places.insert(Arc::clone(&pod.key), index) {
            Some(before) if before != index => drop(self.list[before].take(&pod.key)),
            _ => {}
        }
        self.list[index].put(pod);
    }

    /// The node that a pod is on.
    pub fn place_of(&self, key: &str) -> Option<String> {
        let index = *self.places.get(key)?;
        self.list.get(index).map(|node| node.name.clone())
    }

    /// A pod is gone from its node, if it was on one.
    pub fn take(&mut self, key: &str) -> Option<Arc<PodInfo>> {
        let index = self.places.remove(key)?;
        let pod = self.list[index].take(key);
        self.forget_if_empty(index);
        pod
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
