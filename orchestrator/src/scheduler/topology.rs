//! Where other pods are, for a pod that minds: affinity and anti-affinity.
//! Worked out once per pod, asked once per node. Pure.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::PodAffinityTerm;

use super::{
    affinity::{Labels, selects},
    filter::Reason,
    node::{NodeInfo, Nodes},
    pod::PodInfo,
};

/// Labels of namespaces, for terms that select them.
pub type Namespaces = BTreeMap<String, Labels>;

/// What matters about other pods to one pod.
#[derive(Debug, Default)]
pub struct Topology {
    near: Vec<Near>,
    /// Matching pods by domain, per term.
    apart: Vec<(String, HashMap<String, i64>)>,
    /// Domains with a pod that must not be near this one.
    unwelcome: Domains,
    /// Likes (and dislikes, negative).
    liking: Domains,
}

/// Numbers by label key and value.
type Domains = HashMap<String, HashMap<String, i64>>;

#[derive(Debug)]
struct Near {
    key: String,
    /// Pods that are what all terms want, by domain.
    counts: HashMap<String, i64>,
    /// The pod matches its own terms and no pod does yet: anywhere will do.
    first: bool,
}

impl Topology {
    /// Looks at all nodes' pods, as far as the pod or they mind.
    pub fn of(pod: &PodInfo, nodes: &Nodes, namespaces: &Namespaces) -> Self {
        Self {
            near: near(pod, nodes, namespaces),
            apart: pod
                .apart
                .iter()
                .map(|term| {
                    let meant = |other: &PodInfo| means(pod, term, other, namespaces);
                    (term.topology_key.clone(), counts(term, nodes, meant))
                })
                .collect(),
            unwelcome: unwelcome(pod, nodes, namespaces),
            liking: liking(pod, nodes, namespaces),
        }
    }

    /// Why the pod cannot be on the node, if so.
    pub fn refusal(&self, node: &NodeInfo) -> Option<Reason> {
        let count = |key: &String, counts: &HashMap<String, i64>| {
            let domain = node.labels.get(key)?;
            Some(counts.get(domain).copied().unwrap_or(0))
        };
        let near = |near: &Near| match count(&near.key, &near.counts) {
            None => false,
            Some(pods) => pods > 0 || near.first,
        };
        if !self.near.iter().all(near) {
            return Some(Reason::NotNear);
        }
        if self
            .apart
            .iter()
            .any(|(key, counts)| count(key, counts).unwrap_or(0) > 0)
        {
            return Some(Reason::NotApart);
        }
        found(&self.unwelcome, node)
            .next()
            .map(|_| Reason::Unwelcome)
    }

    /// Whether scores depend on it.
    pub fn has_likes(&self) -> bool {
        !self.liking.is_empty()
    }

    /// Likes and dislikes that come together on a node.
    pub fn liking(&self, node: &NodeInfo) -> i64 {
        found(&self.liking, node).sum()
    }
}

/// The numbers of the domains that a node is in.
fn found<'a>(domains: &'a Domains, node: &'a NodeInfo) -> impl Iterator<Item = i64> + use<'a> {
    domains
        .iter()
        .filter_map(|(key, values)| values.get(node.labels.get(key)?).copied())
}

fn note(domains: &mut Domains, key: &str, domain: &str, by: i64) {
    if !domains.contains_key(key) {
        domains.insert(key.to_owned(), HashMap::new());
    }
    let Some(values) = domains.get_mut(key) else {
        return;
    };
    match values.get_mut(domain) {
        Some(number) => *number += by,
        None => drop(values.insert(domain.to_owned(), by)),
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

/// The pods on nodes with the term's label that are `meant`, by domain.
fn counts(
    term: &PodAffinityTerm,
    nodes: &Nodes,
    meant: impl Fn(&PodInfo) -> bool,
) -> HashMap<String, i64> {
    let mut counts = HashMap::new();
    for node in nodes.present() {
        let Some(domain) = node.labels.get(&term.topology_key) else {
            continue;
        };
        let there = node.pods.values().filter(|other| meant(other)).count();
        if there > 0 {
            *counts.entry(domain.clone()).or_default() += i64::try_from(there).unwrap_or(i64::MAX);
        }
    }
    counts
}

fn near(pod: &PodInfo, nodes: &Nodes, namespaces: &Namespaces) -> Vec<Near> {
    // One pod must be what all terms want.
    let meant = |other: &PodInfo| {
        let mut terms = pod.near.iter();
        terms.all(|term| means(pod, term, other, namespaces))
    };
    let mut terms: Vec<Near> = pod
        .near
        .iter()
        .map(|term| Near {
            key: term.topology_key.clone(),
            counts: counts(term, nodes, meant),
            first: false,
        })
        .collect();
    let nobody = terms.iter().all(|term| term.counts.is_empty());
    if nobody && meant(pod) {
        for term in &mut terms {
            term.first = true;
        }
    }
    terms
}

fn unwelcome(pod: &PodInfo, nodes: &Nodes, namespaces: &Namespaces) -> Domains {
    let mut domains = Domains::new();
    if !nodes.has_minding() {
        return domains;
    }
    for node in nodes.present().filter(|node| node.minding > 0) {
        for other in node.pods.values() {
            for term in &other.apart {
                if let Some(domain) = node.labels.get(&term.topology_key)
                    && means(other, term, pod, namespaces)
                {
                    note(&mut domains, &term.topology_key, domain, 1);
                }
            }
        }
    }
    domains
}

/// Weight of an existing pod's demand to be near, as a like.
const NEAR_WEIGHT: i64 = 1;

fn liking(pod: &PodInfo, nodes: &Nodes, namespaces: &Namespaces) -> Domains {
    let mut liking = Domains::new();
    let mut note = |node: &NodeInfo, key: &String, weight: i64| {
        if let Some(domain) = node.labels.get(key) {
            note(&mut liking, key, domain, weight);
        }
    };
    let opinionated = !pod.likes.is_empty() || !pod.dislikes.is_empty();
    if !opinionated && !nodes.has_minding() {
        return liking;
    }
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
