//! How many pods a selector takes on each node: counted once, then kept as
//! pods come and go, so that a decision costs the same among few pods and many.
//! Pure.
//!
//! Bound: [`GROUPS_MAX`] selectors; one more, and all are forgotten and counted
//! again when they are asked for.

use std::collections::HashMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{affinity::selects, pod::PodInfo};

/// Selectors whose pods are counted.
const GROUPS_MAX: usize = 1024;

/// Pods that do not end yet, by the name of their node.
pub type Tally = HashMap<String, i64>;

/// All counts.
#[derive(Debug, Default)]
pub struct Tallies {
    /// By namespace, then by the selector as JSON.
    groups: HashMap<String, HashMap<String, Group>>,
    count: usize,
}

#[derive(Debug)]
struct Group {
    selector: LabelSelector,
    by_node: Tally,
}

impl Group {
    fn change(&mut self, pod: &PodInfo, by: i64) {
        if !selects(Some(&self.selector), &pod.meta.labels) {
            return;
        }
        let Some(count) = self.by_node.get_mut(&pod.node) else {
            self.by_node.insert(pod.node.clone(), by);
            return;
        };
        *count += by;
        if *count == 0 {
            self.by_node.remove(&pod.node);
        }
    }
}

impl Tallies {
    /// The counts of a selector, if they are kept.
    pub fn get(&self, namespace: &str, key: &str) -> Option<&Tally> {
        let group = self.groups.get(namespace)?.get(key)?;
        Some(&group.by_node)
    }

    /// Begins to count what a selector takes; `pods` are all that are placed.
    pub fn keep<'a>(
        &mut self,
        namespace: &str,
        key: &str,
        selector: &LabelSelector,
        pods: impl Iterator<Item = &'a PodInfo>,
    ) {
        if self.get(namespace, key).is_some() {
            return;
        }
        if self.count >= GROUPS_MAX {
            *self = Self::default();
        }
        let mut group = Group {
            selector: selector.clone(),
            by_node: Tally::new(),
        };
        for pod in pods.filter(|pod| counts(pod) && pod.meta.namespace == namespace) {
            group.change(pod, 1);
        }
        let groups = self.groups.entry(namespace.to_owned()).or_default();
        groups.insert(key.to_owned(), group);
        self.count += 1;
    }

    /// A pod is on its node.
    pub fn add(&mut self, pod: &PodInfo) {
        self.change(pod, 1);
    }

    /// A pod that was added is there no more.
    pub fn remove(&mut self, pod: &PodInfo) {
        self.change(pod, -1);
    }

    fn change(&mut self, pod: &PodInfo, by: i64) {
        if counts(pod)
            && let Some(groups) = self.groups.get_mut(&pod.meta.namespace)
        {
            for group in groups.values_mut() {
                group.change(pod, by);
            }
        }
    }
}

/// Pods on their way out leave room for others already.
fn counts(pod: &PodInfo) -> bool {
    !pod.meta.deleting()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::scheduler::node::{NodeInfo, Nodes};

    fn pod(name: u8, app: u8, node: u8, ending: bool) -> PodInfo {
        let ends = ending.then_some("2026-01-01T00:00:00Z");
        PodInfo::from_value(&json!({
            "metadata": {
                "name": name.to_string(), "namespace": "ns",
                "labels": {"app": app.to_string()}, "deletionTimestamp": ends,
            },
            "spec": {"nodeName": node.to_string(), "containers": []},
        }))
        .unwrap()
    }

    fn selector(app: u8) -> LabelSelector {
        serde_json::from_value(json!({"matchLabels": {"app": app.to_string()}})).unwrap()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8, u8, u8, bool),
        Take(u8),
        Node(u8, bool),
        Ask(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..6_u8, 0..3_u8, 0..4_u8, any::<bool>())
                .prop_map(|(name, app, node, ending)| Step::Put(name, app, node, ending)),
            2 => (0..6_u8).prop_map(Step::Take),
            1 => (0..4_u8, any::<bool>()).prop_map(|(node, there)| Step::Node(node, there)),
            2 => (0..3_u8).prop_map(Step::Ask),
        ]
    }

    proptest! {
        #[test]
        fn kept_counts_are_those_of_a_recount(steps in prop::collection::vec(step(), 0..60)) {
            let mut nodes = Nodes::default();
            let mut kept = Vec::new();
            for step in steps {
                match step {
                    Step::Put(name, app, node, ending) => {
                        nodes.put(std::sync::Arc::new(pod(name, app, node, ending)));
                    }
                    Step::Take(name) => drop(nodes.take(&format!("ns/{name}"))),
                    Step::Node(node, true) => {
                        let name = json!({"metadata": {"name": node.to_string()}});
                        nodes.set(NodeInfo::from_value(&name).unwrap());
                    }
                    Step::Node(node, false) => nodes.remove(&node.to_string()),
                    Step::Ask(app) => {
                        nodes.keep_count("ns", &app.to_string(), &selector(app));
                        kept.push(app);
                    }
                }
                for app in &kept {
                    let mut expected = Tally::new();
                    for node in nodes.all() {
                        let fits = |pod: &&std::sync::Arc<PodInfo>| {
                            pod.meta.labels["app"] == app.to_string() && !pod.meta.deleting()
                        };
                        let count = node.pods.values().filter(fits).count();
                        if count > 0 {
                            expected.insert(node.name.clone(), i64::try_from(count).unwrap());
                        }
                    }
                    prop_assert_eq!(nodes.tally("ns", &app.to_string()), Some(&expected));
                }
            }
        }
    }
}
