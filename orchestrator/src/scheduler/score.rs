//! Which of the nodes that can take a pod is best. Pure.
//!
//! Every part gives 0 to 100 and is weighted as upstream's: taints 3; node
//! affinity, spreading and pod affinity 2; free resources, balance, images 1.

use super::{
    affinity::{term_takes, tolerates},
    node::{NodeInfo, Nodes},
    pod::PodInfo,
    spread::Spread,
    topology::Topology,
};

const MAX: i64 = 100;
/// An image counts from here ..
const IMAGE_MIN: i64 = 23 << 20;
/// .. up to here, per container.
const IMAGE_MAX: i64 = 1000 << 20;

/// Scores of the `nodes` among `all`, in their order; higher is better.
pub fn scores(
    pod: &PodInfo,
    nodes: &[&NodeInfo],
    spread: &Spread<'_>,
    topology: &Topology,
    all: &Nodes,
) -> Vec<i64> {
    let mut total: Vec<i64> = nodes
        .iter()
        .map(|node| least_allocated(pod, node) + balanced(pod, node) + images(pod, node, all))
        .collect();
    let mut add = |weight: i64, part: Vec<i64>| {
        for (sum, score) in total.iter_mut().zip(part) {
            *sum += weight * score;
        }
    };
    if nodes
        .iter()
        .any(|node| node.taints.iter().any(|t| t.effect == "PreferNoSchedule"))
    {
        let raw = nodes
            .iter()
            .map(|node| disliked_taints(pod, node))
            .collect();
        add(3, normalized(raw, true));
    }
    if !pod.preferred_nodes.is_empty() {
        let raw = nodes.iter().map(|node| liked_node(pod, node)).collect();
        add(2, normalized(raw, false));
    }
    if spread.is_soft() {
        add(2, spread.scores(nodes));
    }
    if topology.has_likes() {
        add(2, liked_pods(nodes, topology));
    }
    total
}

fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let free = |asked: i64, used: i64, offered: i64| {
        let wanted = asked.saturating_add(used);
        if offered == 0 || wanted > offered {
            0
        } else {
            (offered - wanted) * MAX / offered
        }
    };
    let cpu = free(
        pod.usage.scored_cpu_milli,
        node.used.scored_cpu_milli,
        node.allocatable.cpu_milli,
    );
    let memory = free(
        pod.usage.scored_memory,
        node.used.scored_memory,
        node.allocatable.memory,
    );
    i64::midpoint(cpu, memory)
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "shares of a node, between 0 and 1"
)]
fn balanced(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let share = |asked: i64, used: i64, offered: i64| {
        if offered == 0 {
            1.0
        } else {
            ((asked + used) as f64 / offered as f64).min(1.0)
        }
    };
    let (asked, used, offered) = (&pod.usage.requests, &node.used.requests, &node.allocatable);
    // Pods that ask for nothing would all gather where the balance is best.
    if asked.cpu_milli == 0 && asked.memory == 0 {
        return 0;
    }
    let cpu = share(asked.cpu_milli, used.cpu_milli, offered.cpu_milli);
    let memory = share(asked.memory, used.memory, offered.memory);
    // The deviation of two shares is half their distance.
    ((1.0 - (cpu - memory).abs() / 2.0) * MAX as f64) as i64
}

fn images(pod: &PodInfo, node: &NodeInfo, all: &Nodes) -> i64 {
    if node.images.is_empty() {
        return 0;
    }
    let sum: i64 = pod
        .images
        .iter()
        .filter_map(|image| {
            let size = node.images.get(image)?;
            let having = i64::try_from(all.having_image(image)).ok()?;
            let present = i64::try_from(all.count()).ok()?;
            // Images that are everywhere count more, so that one node does not draw all pods.
            size.saturating_mul(having).checked_div(present)
        })
        .sum();
    let containers = i64::try_from(pod.images.len().max(1)).unwrap_or(1);
    let most = IMAGE_MAX * containers;
    MAX * (sum.clamp(IMAGE_MIN, most) - IMAGE_MIN) / (most - IMAGE_MIN)
}

fn disliked_taints(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let disliked = node.taints.iter().filter(|taint| {
        taint.effect == "PreferNoSchedule" && !pod.tolerations.iter().any(|t| tolerates(t, taint))
    });
    i64::try_from(disliked.count()).unwrap_or(MAX)
}

fn liked_node(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let liked = pod
        .preferred_nodes
        .iter()
        .filter(|term| term_takes(&term.preference, node));
    liked.map(|term| i64::from(term.weight)).sum()
}

/// To 0 .. 100 by the largest; `reversed` turns more into worse.
fn normalized(raw: Vec<i64>, reversed: bool) -> Vec<i64> {
    let most = raw.iter().copied().max().unwrap_or(0);
    if most == 0 {
        return vec![if reversed { MAX } else { 0 }; raw.len()];
    }
    let scale = |score: i64| score * MAX / most;
    raw.into_iter()
        .map(|s| if reversed { MAX - scale(s) } else { scale(s) })
        .collect()
}

fn liked_pods(nodes: &[&NodeInfo], topology: &Topology) -> Vec<i64> {
    let raw: Vec<i64> = nodes.iter().map(|node| topology.liking(node)).collect();
    let least = raw.iter().copied().min().unwrap_or(0);
    let most = raw.iter().copied().max().unwrap_or(0);
    let scale = |score: i64| {
        if most > least {
            MAX * (score - least) / (most - least)
        } else {
            0
        }
    };
    raw.into_iter().map(scale).collect()
}
