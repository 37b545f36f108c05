//! Spreading: how evenly a pod's likes lie over the domains of a node label.
//! Worked out once per pod, asked once per node. Pure.
//!
//! A pod without constraints of its own gets upstream's defaults, as wishes: few
//! of its likes on one node, few in one zone. Its likes are what its Services
//! and its controller select.

use std::collections::{HashMap, HashSet};

use k8s_openapi::{
    api::core::v1::TopologySpreadConstraint, apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use super::{
    affinity::{Labels, selects, untolerated},
    filter::{Reason, node_fits},
    node::{NodeInfo, Nodes},
    pod::PodInfo,
    tally::Tally,
};

/// A node's own domain.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// Keys and skews of the defaults.
const DEFAULTS: [(&str, i64); 2] = [(HOSTNAME, 3), ("topology.kubernetes.io/zone", 5)];
const MAX: i64 = 100;

/// One constraint.
#[derive(Clone, Debug)]
pub struct Constraint {
    key: String,
    max_skew: i64,
    min_domains: usize,
    /// `None` selects nothing.
    selector: Option<LabelSelector>,
    /// The selector as JSON, under which its pods are counted.
    group: String,
    heeds_affinity: bool,
    heeds_taints: bool,
    required: bool,
}

impl Constraint {
    /// As a pod with these labels asks for it.
    pub fn of(asked: TopologySpreadConstraint, labels: &Labels) -> Self {
        let mut selector = asked.label_selector;
        for key in asked.match_label_keys.into_iter().flatten() {
            if let Some(value) = labels.get(&key) {
                let selected = &mut selector.get_or_insert_default().match_labels;
                selected.get_or_insert_default().insert(key, value.clone());
            }
        }
        let honour = |policy: Option<String>, default: bool| match policy.as_deref() {
            Some("Honor") => true,
            Some("Ignore") => false,
            _ => default,
        };
        Self {
            key: asked.topology_key,
            max_skew: i64::from(asked.max_skew),
            min_domains: asked
                .min_domains
                .map_or(1, |wanted| usize::try_from(wanted).unwrap_or(0)),
            group: group(selector.as_ref()),
            selector,
            heeds_affinity: honour(asked.node_affinity_policy, true),
            heeds_taints: honour(asked.node_taints_policy, false),
            required: asked.when_unsatisfiable == "DoNotSchedule",
        }
    }

    fn defaults(likes: &LabelSelector) -> Vec<Self> {
        let group = group(Some(likes));
        let one = |(key, max_skew): (&str, i64)| Self {
            key: key.to_owned(),
            max_skew,
            min_domains: 1,
            selector: Some(likes.clone()),
            group: group.clone(),
            heeds_affinity: true,
            heeds_taints: false,
            required: false,
        };
        DEFAULTS.map(one).into()
    }

    /// Whether the pods of a node count.
    fn heeds(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        let blocked = || untolerated(&node.taints, &pod.tolerations, &["NoSchedule", "NoExecute"]);
        (!self.heeds_affinity || node_fits(pod, node))
            && (!self.heeds_taints || blocked().is_none())
    }

    fn domain<'n>(&self, node: &'n NodeInfo) -> Option<&'n str> {
        node.labels.get(&self.key).map(String::as_str)
    }
}

fn group(selector: Option<&LabelSelector>) -> String {
    serde_json::to_string(&selector).unwrap_or_default()
}

/// A pod's constraints: its own, or the defaults of its likes.
#[derive(Debug, Default)]
pub struct Wishes {
    required: Vec<Constraint>,
    soft: Vec<Constraint>,
    /// Whether nodes without one of the soft constraints' labels are out of it.
    strict: bool,
}

impl Wishes {
    /// Of a pod; `likes` selects those it has something in common with.
    pub fn of(pod: &PodInfo, likes: Option<&LabelSelector>) -> Self {
        let own = !pod.spread.is_empty();
        let all = match likes {
            Some(likes) if !own => Constraint::defaults(likes),
            _ => pod.spread.clone(),
        };
        let (required, soft) = all.into_iter().partition(|constraint| constraint.required);
        Self {
            required,
            soft,
            strict: own,
        }
    }

    /// Has the pods counted that it asks about.
    pub fn keep_counts(&self, pod: &PodInfo, nodes: &mut Nodes) {
        for constraint in self.required.iter().chain(&self.soft) {
            if let Some(selector) = &constraint.selector {
                nodes.keep_count(&pod.meta.namespace, &constraint.group, selector);
            }
        }
    }
}

/// A pod's wishes against the nodes as they are.
#[derive(Debug)]
pub struct Spread<'a> {
    pod: &'a PodInfo,
    nodes: &'a Nodes,
    wishes: &'a Wishes,
    required: Vec<Required<'a>>,
}

#[derive(Debug)]
struct Required<'a> {
    constraint: &'a Constraint,
    counts: HashMap<&'a str, i64>,
    fewest: i64,
    own: i64,
}

impl<'a> Spread<'a> {
    /// Looks at all nodes, as far as the pod demands it.
    pub fn of(pod: &'a PodInfo, nodes: &'a Nodes, wishes: &'a Wishes) -> Self {
        let mut spread = Self {
            pod,
            nodes,
            wishes,
            required: Vec::new(),
        };
        let required = wishes.required.iter();
        spread.required = required.map(|c| spread.demand(c)).collect();
        spread
    }

    fn tally(&self, constraint: &Constraint) -> Option<&'a Tally> {
        constraint.selector.as_ref()?;
        self.nodes
            .tally(&self.pod.meta.namespace, &constraint.group)
    }

    fn demand(&self, constraint: &'a Constraint) -> Required<'a> {
        let tally = self.tally(constraint);
        let mut counts: HashMap<&str, i64> = HashMap::new();
        for node in self.nodes.present() {
            if has_all(&self.wishes.required, node)
                && constraint.heeds(self.pod, node)
                && let Some(domain) = constraint.domain(node)
            {
                *counts.entry(domain).or_default() += count(tally, node);
            }
        }
        let fewest = if counts.len() < constraint.min_domains {
            0
        } else {
            counts.values().min().copied().unwrap_or(0)
        };
        let own = selects(constraint.selector.as_ref(), &self.pod.meta.labels);
        Required {
            constraint,
            counts,
            fewest,
            own: i64::from(own),
        }
    }

    /// Why the pod cannot be on the node, if so.
    pub fn refusal(&self, node: &NodeInfo) -> Option<Reason> {
        self.required.iter().find_map(|required| {
            let Some(domain) = required.constraint.domain(node) else {
                return Some(Reason::SpreadLabel);
            };
            let there = required.counts.get(domain).copied().unwrap_or(0);
            let skew = there + required.own - required.fewest;
            (skew > required.constraint.max_skew).then_some(Reason::Spread)
        })
    }

    /// Whether scores depend on it.
    pub fn is_soft(&self) -> bool {
        !self.wishes.soft.is_empty()
    }

    /// Scores of nodes that would do, in their order: 0 to 100, more where
    /// fewer of the likes are.
    pub fn scores(&self, fitting: &[&NodeInfo]) -> Vec<i64> {
        let counted = |node: &NodeInfo| !self.wishes.strict || has_all(&self.wishes.soft, node);
        let known: Vec<&NodeInfo> = fitting.iter().copied().filter(|n| counted(n)).collect();
        let soft = self.wishes.soft.iter();
        let crowds: Vec<Crowd<'_>> = soft.map(|c| self.crowd(c, &known)).collect();
        let raw: Vec<Option<i64>> = fitting
            .iter()
            .map(|node| counted(node).then(|| crowds.iter().map(|c| c.around(node)).sum::<f64>()))
            .map(|sum| sum.map(rounded))
            .collect();
        let least = raw.iter().flatten().min().copied().unwrap_or(0);
        let most = raw.iter().flatten().max().copied().unwrap_or(0);
        let score = |crowd: i64| match most {
            0 => MAX,
            _ => MAX * (most + least - crowd) / most,
        };
        raw.into_iter()
            .map(|crowd| crowd.map_or(0, score))
            .collect()
    }

    fn crowd<'s>(&'s self, constraint: &'s Constraint, known: &[&'s NodeInfo]) -> Crowd<'s> {
        let tally = self.tally(constraint);
        if constraint.key == HOSTNAME {
            return Crowd {
                constraint,
                tally,
                by_domain: None,
                weight: weight(known.len()),
            };
        }
        let domains = known.iter().filter_map(|node| constraint.domain(node));
        let domains: HashSet<&str> = domains.collect();
        let mut counts: HashMap<&str, i64> = HashMap::new();
        for (name, count) in tally.into_iter().flatten() {
            if let Some(node) = self.nodes.named(name)
                && (!self.wishes.strict || has_all(&self.wishes.soft, node))
                && constraint.heeds(self.pod, node)
                && let Some(domain) = constraint.domain(node)
            {
                *counts.entry(domain).or_default() += count;
            }
        }
        Crowd {
            constraint,
            tally,
            by_domain: Some(counts),
            weight: weight(domains.len()),
        }
    }
}

/// Likes around nodes under one soft constraint.
struct Crowd<'a> {
    constraint: &'a Constraint,
    tally: Option<&'a Tally>,
    /// `None` where every node is a domain.
    by_domain: Option<HashMap<&'a str, i64>>,
    weight: f64,
}

impl Crowd<'_> {
    /// A node outside of all domains has no crowd.
    fn around(&self, node: &NodeInfo) -> f64 {
        let Some(domain) = self.constraint.domain(node) else {
            return 0.0;
        };
        let there = match &self.by_domain {
            None => count(self.tally, node),
            Some(counts) => counts.get(domain).copied().unwrap_or(0),
        };
        to_f64(there) * self.weight + to_f64(self.constraint.max_skew - 1)
    }
}

fn has_all(constraints: &[Constraint], node: &NodeInfo) -> bool {
    let has = |constraint: &Constraint| node.labels.contains_key(&constraint.key);
    constraints.iter().all(has)
}

fn count(tally: Option<&Tally>, node: &NodeInfo) -> i64 {
    let there = tally.and_then(|tally| tally.get(&node.name));
    there.copied().unwrap_or(0)
}

/// The more domains there are, the more a pod in one of them counts.
fn weight(domains: usize) -> f64 {
    f64::ln(to_f64(i64::try_from(domains).unwrap_or(i64::MAX)) + 2.0)
}

fn to_f64(count: i64) -> f64 {
    f64::from(i32::try_from(count).unwrap_or(i32::MAX))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "pods of a cluster times a small weight"
)]
fn rounded(crowd: f64) -> i64 {
    crowd.round() as i64
}
