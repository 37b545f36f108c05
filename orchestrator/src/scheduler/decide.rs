//! One pod, all nodes: the decision and its reasons. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{
    affinity::named_nodes,
    filter::{Reason, refusals, wake},
    node::{NodeInfo, Nodes},
    pod::PodInfo,
    score::scores,
    spread::{Spread, Wishes},
    topology::{Namespaces, Topology},
    volume::Volumes,
};

/// Enough nodes to choose from.
const CHOICE_MIN: usize = 100;

/// Where a pod goes, or why nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// To this node.
    Node(String),
    /// Nowhere.
    Refused {
        /// As `PodScheduled` says it.
        message: String,
        /// Events that may change that.
        wakes: u8,
    },
}

/// How many fitting nodes are enough: all of up to 100, a shrinking share of more.
fn choice(nodes: usize) -> usize {
    if nodes <= CHOICE_MIN {
        return nodes;
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(CHOICE_MIN)
}

/// What there is to know besides pods and nodes.
#[derive(Debug, Default)]
pub struct Around {
    /// Where a pod's terms ask for them.
    pub namespaces: Namespaces,
    /// Of the pod.
    pub volumes: Volumes,
    /// The pod's likes: what its Services and its controller select, if any.
    pub likes: Option<LabelSelector>,
}

/// Decides. `turn` remembers where the last search ended, so that all nodes
/// get their share.
pub fn decide(pod: &PodInfo, nodes: &mut Nodes, around: &Around, turn: &mut usize) -> Decision {
    if nodes.count() == 0 {
        let message = "no nodes available to schedule pods".to_owned();
        return Decision::Refused {
            message,
            wakes: wake::NODE,
        };
    }
    let wishes = Wishes::of(pod, around.likes.as_ref());
    wishes.keep_counts(pod, nodes);
    let nodes: &Nodes = nodes;
    let search = Search {
        pod,
        nodes,
        spread: Spread::of(pod, nodes, &wishes),
        topology: Topology::of(pod, nodes, &around.namespaces),
        volumes: &around.volumes,
    };
    let (fitting, reasons) = match named_nodes(pod.required_nodes.as_ref()) {
        Some(names) => search.among(&names),
        None => search.everywhere(turn),
    };
    if fitting.is_empty() {
        refused(nodes.count(), &reasons)
    } else {
        Decision::Node(search.best(&fitting))
    }
}

/// Reasons and how many nodes they hold for.
type Reasons = BTreeMap<Reason, usize>;

/// A search for one pod's node.
struct Search<'a> {
    pod: &'a PodInfo,
    nodes: &'a Nodes,
    spread: Spread<'a>,
    topology: Topology,
    volumes: &'a Volumes,
}

impl<'a> Search<'a> {
    /// Whether the node fits; if not, its reasons are counted.
    fn fits(&self, node: &NodeInfo, reasons: &mut Reasons) -> bool {
        let refused = refusals(self.pod, node, &self.spread, &self.topology, self.volumes);
        let fits = refused.is_empty();
        for reason in refused {
            *reasons.entry(reason).or_default() += 1;
        }
        fits
    }

    /// Looks at the nodes that the pod names.
    fn among(&self, names: &BTreeSet<&str>) -> (Vec<&'a NodeInfo>, Reasons) {
        let mut reasons = Reasons::new();
        let named: Vec<&NodeInfo> = names.iter().filter_map(|n| self.nodes.named(n)).collect();
        let others = self.nodes.count() - named.len();
        if others > 0 {
            reasons.insert(Reason::NotNamed, others);
        }
        let fitting = named.into_iter();
        let fitting = fitting
            .filter(|node| self.fits(node, &mut reasons))
            .collect();
        (fitting, reasons)
    }

    /// Looks at nodes, from `turn` on, until enough fit.
    fn everywhere(&self, turn: &mut usize) -> (Vec<&'a NodeInfo>, Reasons) {
        let all = self.nodes.all();
        let enough = choice(self.nodes.count());
        let (mut fitting, mut reasons) = (Vec::new(), Reasons::new());
        let mut seen = 0;
        for offset in 0..all.len() {
            let node = &all[(*turn + offset) % all.len()];
            seen += 1;
            if node.present && self.fits(node, &mut reasons) {
                fitting.push(node);
                if fitting.len() >= enough {
                    break;
                }
            }
        }
        *turn = (*turn + seen) % all.len();
        (fitting, reasons)
    }

    /// The node of the highest score; of several the one with the fewest pods, of
    /// several the first.
    fn best(&self, fitting: &[&NodeInfo]) -> String {
        if let [only] = fitting {
            return only.name.clone();
        }
        let scores = scores(self.pod, fitting, &self.spread, &self.topology, self.nodes);
        let most = scores.iter().copied().max().unwrap_or(0);
        scores
            .iter()
            .zip(fitting)
            .filter(|(score, _)| **score == most)
            .min_by_key(|(_, node)| node.pods.len())
            .map_or_else(String::new, |(_, node)| node.name.clone())
    }
}

fn refused(nodes: usize, reasons: &Reasons) -> Decision {
    let mut texts: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    texts.sort();
    Decision::Refused {
        message: format!("0/{nodes} nodes are available: {}.", texts.join(", ")),
        wakes: reasons
            .keys()
            .fold(0, |wakes, reason| wakes | reason.wakes()),
    }
}

#[cfg(test)]
mod tests;
