//! Where other pods are, for a pod that minds: spreading and (anti-)affinity.
//! Worked out once per pod, asked once per node. Pure.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{PodAffinityTerm, TopologySpreadConstraint};

use super::{
    affinity::{Labels, selects, untolerated},
    filter::{Reason, node_fits},
    node::{NodeInfo, Nodes},
    pod::PodInfo,
};

/// Labels of namespaces, for terms that select them.
pub type Namespaces = BTreeMap<String, Labels>;

/// What matters about other pods to one pod.
#[derive(Debug, Default)]
pub struct Topology {
    spread: Vec<Spread>,
    near: Vec<Near>,
    /// Matching pods by domain, per term.
    apart: Vec<(String, HashMap<String, i64>)>,
    /// Domains (key, value) with a pod that must not be near this one.
    unwelcome: HashMap<(String, String), i64>,
    /// Likes (and dislikes, negative) by domain (key, value).
    liking: HashMap<(String, String), i64>,
}

#[derive(Debug)]
struct Spread {
    key: String,
    required: bool,
    max_skew: i64,
    fewest: i64,
    counts: HashMap<String, i64>,
    own: bool,
}

#[derive(Debug)]
struct Near {
    key: String,
    counts: HashMap<String, i64>,
    /// The pod matches its own term and no pod does yet: anywhere will do.
    first: bool,
}

impl Topology {
    /// Looks at all nodes' pods, as far as the pod or they mind.
    pub fn of(pod: &PodInfo, nodes: &Nodes, namespaces: &Namespaces) -> Self {
        Self {
            spread: pod.spread.iter().map(|c| spread(pod, c, nodes)).collect(),
            near: near(pod, nodes, namespaces),
            apart: pod
                .apart
                .iter()
                .map(|term| {
                    (
                        term.topology_key.clone(),
                        counts(pod, term, nodes, namespaces),
                    )
                })
                .collect(),
            unwelcome: unwelcome(pod, nodes, namespaces),
            liking: liking(pod, nodes, namespaces),
        }
    }

    /// Why the pod cannot be on the node, if so.
    pub fn refusal(&self, node: &NodeInfo) -> Option<Reason> {
        for spread in self.spread.iter().filter(|spread| spread.required) {
            let Some(domain) = node.labels.get(&spread.key) else {
                return Some(Reason::SpreadLabel);
            };
            let there = spread.counts.get(domain).copied().unwrap_or(0);
            if there + i64::from(spread.own) - spread.fewest > spread.max_skew {
                return Some(Reason::Spread);
            }
        }
        let welcome = self.unwelcome.is_empty()
            || node
                .labels
                .iter()
                .all(|(key, value)| !self.unwelcome.contains_key(&(key.clone(), value.clone())));
        if !welcome {
            return Some(Reason::Unwelcome);
        }
        let count = |key: &String, counts: &HashMap<String, i64>| {
            let domain = node.labels.get(key)?;
            Some(counts.get(domain).copied().unwrap_or(0))
        };
        if self
            .apart
            .iter()
            .any(|(key, counts)| count(key, counts).unwrap_or(0) > 0)
        {
            return Some(Reason::NotApart);
        }
        let near = |near: &Near| match count(&near.key, &near.counts) {
            None => false,
            Some(pods) => pods > 0 || near.first,
        };
        (!self.near.iter().all(near)).then_some(Reason::NotNear)
    }

    /// Whether scores depend on it.
    pub fn has_likes(&self) -> bool {
        !self.liking.is_empty()
    }

    /// Likes and dislikes that come together on a node.
    pub fn liking(&self, node: &NodeInfo) -> i64 {
        if self.liking.is_empty() {
            return 0;
        }
        let domains = node.labels.iter();
        domains
            .filter_map(|(key, value)| self.liking.get(&(key.clone(), value.clone())))
            .sum()
    }

    /// Whether soft spreading is asked for.
    pub fn spreads_softly(&self) -> bool {
        self.spread.iter().any(|spread| !spread.required)
    }

    /// Matching pods around a node under soft constraints: fewer is better.
    /// `None` if the node has not all the labels.
    pub fn crowd(&self, node: &NodeInfo) -> Option<f64> {
        let soft = self.spread.iter().filter(|spread| !spread.required);
        soft.map(|spread| {
            let there = spread
                .counts
                .get(node.labels.get(&spread.key)?)
                .copied()
                .unwrap_or(0);
            let weight = f64::ln(to_f64(spread.counts.len()) + 2.0);
            let there = f64::from(i32::try_from(there).unwrap_or(i32::MAX));
            let skew = f64::from(i32::try_from(spread.max_skew).unwrap_or(1));
            Some(there * weight + (skew - 1.0))
        })
        .sum()
    }
}

fn to_f64(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn spread(pod: &PodInfo, constraint: &TopologySpreadConstraint, nodes: &Nodes) -> Spread {
    let mut selector = constraint.label_selector.clone();
    for key in constraint.match_label_keys.iter().flatten() {
        if let Some(value) = pod.meta.labels.get(key) {
            let labels = &mut selector.get_or_insert_default().match_labels;
            labels
                .get_or_insert_default()
                .insert(key.clone(), value.clone());
        }
    }
    let honour = |policy: &Option<String>, default: bool| match policy.as_deref() {
        Some("Honor") => true,
        Some("Ignore") => false,
        _ => default,
    };
    let affinity = honour(&constraint.node_affinity_policy, true);
    let taints = honour(&constraint.node_taints_policy, false);
    let all_keys = |node: &NodeInfo| {
        pod.spread
            .iter()
            .all(|c| node.labels.contains_key(&c.topology_key))
    };
    let counted = |node: &&NodeInfo| {
        all_keys(node)
            && (!affinity || node_fits(pod, node))
            && (!taints
                || untolerated(&node.taints, &pod.tolerations, &["NoSchedule", "NoExecute"])
                    .is_none())
    };
    let mut counts: HashMap<String, i64> = HashMap::new();
    for node in nodes.present().filter(counted) {
        let Some(domain) = node.labels.get(&constraint.topology_key) else {
            continue;
        };
        let matching = node.pods.values().filter(|other| {
            other.meta.namespace == pod.meta.namespace
                && !other.meta.deleting()
                && selects(selector.as_ref(), &other.meta.labels)
        });
        let matching = i64::try_from(matching.count()).unwrap_or(i64::MAX);
        *counts.entry(domain.clone()).or_default() += matching;
    }
    let fewest = counts.values().min().copied().unwrap_or(0);
    let few_domains = constraint
        .min_domains
        .is_some_and(|wanted| usize::try_from(wanted).unwrap_or(0) > counts.len());
    Spread {
        key: constraint.topology_key.clone(),
        required: constraint.when_unsatisfiable == "DoNotSchedule",
        max_skew: i64::from(constraint.max_skew),
        fewest: if few_domains { 0 } else { fewest },
        counts,
        own: selects(selector.as_ref(), &pod.meta.labels),
    }
}

/// Whether `other` is one of the pods that a term of `pod` means.
fn means(pod: &PodInfo, term: &PodAffinityTerm, other: &PodInfo, namespaces: &Namespaces) -> bool {
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let here = if listed.is_empty() && term.namespace_selector.is_none() {
        other.meta.namespace == pod.meta.namespace
    } else {
        let empty = Labels::new();
        let labels = namespaces.get(&other.meta.namespace).unwrap_or(&empty);
        listed.contains(&other.meta.namespace)
            || (term.namespace_selector.is_some()
                && selects(term.namespace_selector.as_ref(), labels))
    };
    let value = |key: &String| pod.meta.labels.get(key);
    let same = |key: &String| value(key).is_none() || other.meta.labels.get(key) == value(key);
    let differs = |key: &String| value(key).is_none() || other.meta.labels.get(key) != value(key);
    here && selects(term.label_selector.as_ref(), &other.meta.labels)
        && term.match_label_keys.iter().flatten().all(same)
        && term.mismatch_label_keys.iter().flatten().all(differs)
}

fn counts(
    pod: &PodInfo,
    term: &PodAffinityTerm,
    nodes: &Nodes,
    namespaces: &Namespaces,
) -> HashMap<String, i64> {
    let mut counts = HashMap::new();
    for node in nodes.present() {
        let Some(domain) = node.labels.get(&term.topology_key) else {
            continue;
        };
        let meant = node
            .pods
            .values()
            .filter(|other| means(pod, term, other, namespaces));
        let meant = i64::try_from(meant.count()).unwrap_or(i64::MAX);
        if meant > 0 {
            *counts.entry(domain.clone()).or_default() += meant;
        }
    }
    counts
}

fn near(pod: &PodInfo, nodes: &Nodes, namespaces: &Namespaces) -> Vec<Near> {
    let mut terms: Vec<Near> = pod
        .near
        .iter()
        .map(|term| Near {
            key: term.topology_key.clone(),
            counts: counts(pod, term, nodes, namespaces),
            first: false,
        })
        .collect();
    let nobody = terms.iter().all(|term| term.counts.is_empty());
    let own = pod
        .near
        .iter()
        .all(|term| means(pod, term, pod, namespaces));
    if nobody && own {
        for term in &mut terms {
            term.first = true;
        }
    }
    terms
}

fn unwelcome(
    pod: &PodInfo,
    nodes: &Nodes,
    namespaces: &Namespaces,
) -> HashMap<(String, String), i64> {
    let mut domains = HashMap::new();
    for node in nodes.present().filter(|node| node.minding > 0) {
        for other in node.pods.values() {
            for term in &other.apart {
                if let Some(domain) = node.labels.get(&term.topology_key)
                    && means(other, term, pod, namespaces)
                {
                    *domains
                        .entry((term.topology_key.clone(), domain.clone()))
                        .or_default() += 1;
                }
            }
        }
    }
    domains
}

/// Weight of an existing pod's demand to be near, as a like.
const NEAR_WEIGHT: i64 = 1;

fn liking(pod: &PodInfo, nodes: &Nodes, namespaces: &Namespaces) -> HashMap<(String, String), i64> {
    let mut liking: HashMap<(String, String), i64> = HashMap::new();
    let mut note = |node: &NodeInfo, key: &String, weight: i64| {
        if let Some(domain) = node.labels.get(key) {
            *liking.entry((key.clone(), domain.clone())).or_default() += weight;
        }
    };
    let opinionated = !pod.likes.is_empty() || !pod.dislikes.is_empty();
    for node in nodes
        .present()
        .filter(|node| opinionated || node.minding > 0)
    {
        for other in node.pods.values() {
            let both = [(pod, &**other), (&**other, pod)];
            for (who, whom) in both {
                for (terms, sign) in [(&who.likes, 1), (&who.dislikes, -1)] {
                    for weighted in terms {
                        let term = &weighted.pod_affinity_term;
                        if means(who, term, whom, namespaces) {
                            note(node, &term.topology_key, sign * i64::from(weighted.weight));
                        }
                    }
                }
            }
            for term in &other.near {
                if means(other, term, pod, namespaces) {
                    note(node, &term.topology_key, NEAR_WEIGHT);
                }
            }
        }
    }
    liking
}
