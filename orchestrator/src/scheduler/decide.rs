//! One pod, all nodes: the decision and its reasons. Pure.

use std::collections::BTreeMap;

use super::{
    filter::{Reason, refusals, wake},
    node::{NodeInfo, Nodes},
    pod::PodInfo,
    score::scores,
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

/// Decides. `turn` remembers where the last search ended, so that all nodes
/// get their share.
pub fn decide(
    pod: &PodInfo,
    nodes: &Nodes,
    namespaces: &Namespaces,
    volumes: &Volumes,
    turn: &mut usize,
) -> Decision {
    if nodes.count() == 0 {
        let message = "no nodes available to schedule pods".to_owned();
        return Decision::Refused {
            message,
            wakes: wake::NODE,
        };
    }
    let topology = Topology::of(pod, nodes, namespaces);
    let all = nodes.all();
    let enough = choice(nodes.count());
    let mut fitting: Vec<&NodeInfo> = Vec::new();
    let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
    let mut seen = 0;
    for offset in 0..all.len() {
        let node = &all[(*turn + offset) % all.len()];
        seen += 1;
        if !node.present {
            continue;
        }
        let refused = refusals(pod, node, &topology, volumes);
        if refused.is_empty() {
            fitting.push(node);
            if fitting.len() >= enough {
                break;
            }
        }
        for reason in refused {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    *turn = (*turn + seen) % all.len();
    if fitting.is_empty() {
        return refused(nodes.count(), &reasons);
    }
    Decision::Node(best(pod, &fitting, &topology, nodes.count()))
}

/// The node of the highest score; of several the one with the fewest pods, of
/// several the first.
fn best(pod: &PodInfo, fitting: &[&NodeInfo], topology: &Topology, present: usize) -> String {
    if let [only] = fitting {
        return only.name.clone();
    }
    let scores = scores(pod, fitting, topology, present);
    let most = scores.iter().copied().max().unwrap_or(0);
    scores
        .iter()
        .zip(fitting)
        .filter(|(score, _)| **score == most)
        .min_by_key(|(_, node)| node.pods.len())
        .map_or_else(String::new, |(_, node)| node.name.clone())
}

fn refused(nodes: usize, reasons: &BTreeMap<Reason, usize>) -> Decision {
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
