//! Which daemons come and go. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::controller::{
    apps::{revision::is_of, rollout::scaled},
    runtime::object::Pod,
};

/// What to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Nodes that need a pod.
    pub(super) start: Vec<String>,
    /// Names of pods that go.
    pub(super) stop: Vec<String>,
    /// Pods that have ended and hold up others.
    pub(super) ended: Vec<Ended>,
}

/// A pod that has ended, which a daemon should not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) node: String,
    pub(super) pod: String,
    pub(super) failed: bool,
}

/// One node: whether a daemon should be started, and whether one may stay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) start: bool,
    pub(super) stay: bool,
}

/// How an update goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Update<'a> {
    /// Revision of the present template.
    pub(super) hash: &'a str,
    /// Whether old pods are replaced without being asked.
    rolling: bool,
    /// Nodes that may have an old and a new pod at a time.
    surge: i64,
    /// Nodes that may have no serving pod.
    unavailable: i64,
    /// Seconds of readiness that make a pod serve.
    ready: i64,
    now: Timestamp,
}

impl<'a> Update<'a> {
    /// From `spec.updateStrategy`; `wanted` daemons in all.
    pub(super) fn new(
        strategy: &Value,
        wanted: usize,
        hash: &'a str,
        ready: i64,
        now: Timestamp,
    ) -> Self {
        let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
        let rolling = strategy["type"] != "OnDelete";
        let limits = &strategy["rollingUpdate"];
        let limit = |field: &str| scaled(&limits[field], wanted, true);
        let surge = if rolling {
            limit("maxSurge").unwrap_or(0)
        } else {
            0
        };
        let least = i64::from(surge == 0);
        Self {
            hash,
            rolling,
            surge,
            unavailable: limit("maxUnavailable").unwrap_or(least).max(least),
            ready,
            now,
        }
    }

    fn serves(&self, pod: &Pod) -> bool {
        pod.is_active() && pod.is_available(self.ready, self.now)
    }

    fn is_new(&self, pod: &Pod) -> bool {
        is_of(pod, self.hash)
    }
}

type ByNode<'a> = BTreeMap<String, Vec<&'a Pod>>;

/// Decides which pods come and go.
pub(super) fn plan(
    places: &BTreeMap<String, Place>,
    pods: &ByNode<'_>,
    update: &Update<'_>,
) -> Plan {
    let mut plan = Plan::default();
    for (node, place) in places {
        let there = pods.get(node).map(Vec::as_slice).unwrap_or_default();
        let over = there
            .iter()
            .filter(|pod| pod.is_over() && !pod.metadata.deleting());
        plan.ended.extend(over.map(|pod| Ended {
            node: node.clone(),
            pod: pod.metadata.name.clone(),
            failed: pod.status.phase == "Failed",
        }));
        if !place.stay {
            let active = there.iter().filter(|pod| pod.is_active());
            plan.stop
                .extend(active.map(|pod| pod.metadata.name.clone()));
        } else if there.is_empty() && place.start {
            plan.start.push(node.clone());
        } else {
            plan.stop.extend(surplus(there, update));
        }
    }
    // Nobody else ends a pod that waits for a node which is gone.
    let lost = pods.iter().filter(|(node, _)| !places.contains_key(*node));
    let lost = lost.flat_map(|(_, there)| there);
    let lost = lost.filter(|pod| pod.spec.node_name.is_empty() && pod.is_active());
    plan.stop.extend(lost.map(|pod| pod.metadata.name.clone()));
    if update.rolling && update.surge > 0 {
        surge(&mut plan, places, pods, update);
    } else if update.rolling {
        replace(&mut plan, places, pods, update);
    }
    plan
}

/// Pods of one node beyond the oldest; with a surge, beyond the oldest of the
/// new and of the old ones, and the old one as soon as the new one serves.
fn surplus(there: &[&Pod], update: &Update<'_>) -> Vec<String> {
    let active = there.iter().copied().filter(|pod| pod.is_active());
    let mut active: Vec<&Pod> = active.collect();
    active.sort_by_key(|pod| (pod.metadata.born(), &pod.metadata.name));
    let from = |pods: &[&Pod], first: usize| -> Vec<String> {
        let surplus = pods.iter().skip(first);
        surplus.map(|pod| pod.metadata.name.clone()).collect()
    };
    if update.surge == 0 {
        return from(&active, 1);
    }
    let (new, old): (Vec<&Pod>, Vec<&Pod>) = active.into_iter().partition(|pod| update.is_new(pod));
    let done = match (new.first(), old.first()) {
        (Some(new), Some(old)) => update.serves(new) || !old.is_ready(),
        _ => false,
    };
    let mut surplus = from(&new, 1);
    surplus.extend(from(&old, usize::from(!done)));
    surplus
}

/// Takes old pods down: those that serve nobody, and as many others as may be
/// missing at a time.
fn replace(
    plan: &mut Plan,
    places: &BTreeMap<String, Place>,
    pods: &ByNode<'_>,
    update: &Update<'_>,
) {
    let there = |node: &String| pods.get(node).map(Vec::as_slice).unwrap_or_default();
    let missing = places
        .iter()
        .filter(|(node, place)| place.start && !there(node).iter().any(|pod| update.serves(pod)))
        .count();
    let mut budget = update.unavailable - i64::try_from(missing).unwrap_or(i64::MAX);
    for pod in pods.values().flatten() {
        if update.is_new(pod) || !pod.is_active() || plan.stop.contains(&pod.metadata.name) {
            continue;
        }
        if update.serves(pod) {
            if budget <= 0 {
                continue;
            }
            budget -= 1;
        }
        plan.stop.push(pod.metadata.name.clone());
    }
}

/// Starts new pods beside old ones: beside those that serve nobody, and beside
/// as many others as the surge allows.
fn surge(
    plan: &mut Plan,
    places: &BTreeMap<String, Place>,
    pods: &ByNode<'_>,
    update: &Update<'_>,
) {
    let mut budget = update.surge;
    let mut candidates = Vec::new();
    for (node, there) in pods {
        let active: Vec<&&Pod> = there.iter().filter(|pod| pod.is_active()).collect();
        let new = active.iter().find(|pod| update.is_new(pod));
        let old = active.iter().find(|pod| !update.is_new(pod));
        match (new, old) {
            (Some(new), Some(_)) if !update.serves(new) => budget -= 1,
            (None, Some(old)) if places.get(node).is_some_and(|place| place.start) => {
                if update.serves(old) {
                    candidates.push(node);
                } else {
                    plan.start.push(node.clone());
                }
            }
            _ => {}
        }
    }
    let budget = usize::try_from(budget).unwrap_or(0);
    plan.start
        .extend(candidates.into_iter().take(budget).cloned());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::controller::apps::revision::HASH;

    /// A node's pods: name, whether new, ready, going.
    #[derive(Clone, Debug)]
    struct Daemon {
        name: String,
        new: bool,
        ready: bool,
        going: bool,
    }

    fn pod(daemon: &Daemon, age: usize) -> Pod {
        let mut pod = json!({
            "metadata": {
                "name": daemon.name,
                "labels": {HASH: if daemon.new { "new" } else { "old" }},
                "creationTimestamp": format!("2026-01-01T00:00:{:02}Z", age.min(59)),
            },
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": if daemon.ready { "True" } else { "False" }}],
            },
        });
        if daemon.going {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T01:00:00Z");
        }
        serde_json::from_value(pod).unwrap()
    }

    struct Sim {
        nodes: BTreeMap<String, Vec<Daemon>>,
        strategy: Value,
        made: usize,
    }

    impl Sim {
        fn new(nodes: usize, strategy: Value) -> Self {
            let daemon = |index: usize| Daemon {
                name: format!("old-{index}"),
                new: false,
                ready: true,
                going: false,
            };
            let nodes = (0..nodes)
                .map(|n| (format!("n{n}"), vec![daemon(n)]))
                .collect();
            Self {
                nodes,
                strategy,
                made: 0,
            }
        }

        fn look(&mut self) {
            let pods: BTreeMap<String, Vec<Pod>> = self
                .nodes
                .iter()
                .map(|(node, there)| {
                    let pods = there
                        .iter()
                        .enumerate()
                        .map(|(age, daemon)| pod(daemon, age));
                    (node.clone(), pods.collect())
                })
                .collect();
            let by_node: ByNode<'_> = pods
                .iter()
                .map(|(n, p)| (n.clone(), p.iter().collect()))
                .collect();
            let place = Place {
                start: true,
                stay: true,
            };
            let places = self
                .nodes
                .keys()
                .map(|node| (node.clone(), place))
                .collect();
            let update = Update::new(
                &self.strategy,
                self.nodes.len(),
                "new",
                0,
                Timestamp::UNIX_EPOCH,
            );
            let plan = plan(&places, &by_node, &update);
            for daemon in self.nodes.values_mut().flatten() {
                daemon.going |= plan.stop.contains(&daemon.name);
            }
            for node in plan.start {
                self.made += 1;
                self.nodes.get_mut(&node).unwrap().push(Daemon {
                    name: format!("new-{}", self.made),
                    new: true,
                    ready: false,
                    going: false,
                });
            }
        }

        fn settle(&mut self, node: usize, ready: bool, gone: bool) {
            let Some(there) = self.nodes.values_mut().nth(node) else {
                return;
            };
            if gone {
                there.retain(|daemon| !daemon.going);
            }
            for daemon in there {
                daemon.ready |= ready;
            }
        }

        /// Nodes without a serving pod, and nodes with two.
        fn counts(&self) -> (i64, i64) {
            let count = |test: &dyn Fn(&Vec<Daemon>) -> bool| {
                i64::try_from(self.nodes.values().filter(|there| test(there)).count()).unwrap()
            };
            (
                count(&|there| !there.iter().any(|d| d.ready && !d.going)),
                count(&|there| there.iter().filter(|d| !d.going).count() > 1),
            )
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Whatever the order of things, no more nodes than allowed are without
        /// a daemon or have two, and in the end all are new.
        #[test]
        fn an_update_stays_within_its_limits_and_ends(
            nodes in 1..7_usize, limit in 1..4_i64, surges: bool,
            steps in prop::collection::vec((0..7_usize, any::<bool>(), any::<bool>()), 0..120),
        ) {
            let (surge, unavailable) = if surges { (limit, 0) } else { (0, limit) };
            let rolling = json!({"maxSurge": surge, "maxUnavailable": unavailable});
            let mut sim = Sim::new(nodes, json!({"type": "RollingUpdate", "rollingUpdate": rolling}));
            let rest = (0..12 * nodes).map(|turn| (turn % nodes, true, true));
            for (node, ready, gone) in steps.into_iter().chain(rest) {
                sim.look();
                let (missing, doubled) = sim.counts();
                prop_assert!(missing <= unavailable, "{missing} missing: {:?}", sim.nodes);
                prop_assert!(doubled <= surge, "{doubled} doubled: {:?}", sim.nodes);
                sim.settle(node, ready, gone);
            }
            prop_assert!(sim.nodes.values().all(|there| there.len() == 1 && there[0].new), "{:?}", sim.nodes);
        }
    }

    #[test]
    fn daemons_are_replaced_by_hand_only_if_told_so() {
        let mut sim = Sim::new(3, json!({"type": "OnDelete"}));
        sim.look();
        assert_eq!(sim.counts(), (0, 0));
        sim.nodes.get_mut("n1").unwrap().clear();
        sim.look();
        assert!(sim.nodes["n1"][0].new);
    }

    #[test]
    fn what_has_ended_or_waits_for_a_node_that_is_gone_makes_room() {
        let mut ended = pod(
            &Daemon {
                name: "e".into(),
                new: true,
                ready: false,
                going: false,
            },
            0,
        );
        ended.status.phase = "Failed".into();
        let waiting = pod(
            &Daemon {
                name: "w".into(),
                new: true,
                ready: false,
                going: false,
            },
            0,
        );
        let mut placed = waiting.clone();
        (placed.metadata.name, placed.spec.node_name) = ("p".into(), "gone".into());
        let place = Place {
            start: true,
            stay: true,
        };
        let places = [("n".to_owned(), place)].into();
        let pods = [
            ("n".to_owned(), vec![&ended]),
            ("gone".to_owned(), vec![&waiting, &placed]),
        ];
        let update = Update::new(&json!({}), 1, "new", 0, Timestamp::UNIX_EPOCH);
        let plan = plan(&places, &pods.into(), &update);
        let over = Ended {
            node: "n".into(),
            pod: "e".into(),
            failed: true,
        };
        assert_eq!(
            plan,
            Plan {
                start: vec![],
                stop: vec!["w".into()],
                ended: vec![over]
            }
        );
    }

    #[test]
    fn a_surge_passes_old_pods_that_serve_nobody_at_once() {
        let rolling = json!({"maxSurge": 1, "maxUnavailable": 0});
        let mut sim = Sim::new(
            3,
            json!({"type": "RollingUpdate", "rollingUpdate": rolling}),
        );
        sim.nodes.get_mut("n2").unwrap()[0].ready = false;
        sim.look();
        let sizes: Vec<usize> = sim.nodes.values().map(Vec::len).collect();
        assert_eq!(sizes, [2, 1, 2]);
    }
}
