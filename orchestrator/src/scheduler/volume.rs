//! Which nodes a pod's volumes allow. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::NodeSelector;

use super::{affinity::node_selected, filter::Reason, node::NodeInfo};

/// One claim of a pod, as far as nodes go.
#[derive(Clone, Debug)]
pub enum Claim {
    /// Bound to a volume that is reachable from these nodes; from all if `None`.
    Bound(Option<NodeSelector>),
    /// To be bound when the pod has a node.
    Waiting {
        /// Volumes that would do, best first: name and place.
        candidates: Vec<(String, Option<NodeSelector>)>,
        /// Where a volume can be made.
        room: Room,
    },
}

/// Where a volume can be made.
#[derive(Clone, Debug)]
pub enum Room {
    /// Volumes are made by hand.
    Nowhere,
    /// On every node.
    Anywhere,
    /// On these nodes.
    Within(NodeSelector),
}

impl Room {
    fn holds(&self, node: &NodeInfo) -> bool {
        match self {
            Self::Nowhere => false,
            Self::Anywhere => true,
            Self::Within(nodes) => node_selected(nodes, node),
        }
    }
}

/// A pod's claims.
#[derive(Clone, Debug, Default)]
pub struct Volumes {
    /// By name.
    pub claims: BTreeMap<String, Claim>,
    /// Whether another pod uses one of them that only one pod may use.
    pub taken: bool,
}

impl Volumes {
    /// Why the node cannot have them, if so.
    pub fn refusal(&self, node: &NodeInfo) -> Option<Reason> {
        let reachable = |place: &Option<NodeSelector>| {
            place
                .as_ref()
                .is_none_or(|selector| node_selected(selector, node))
        };
        if self.taken {
            return Some(Reason::ClaimTaken);
        }
        // Two claims of a pod never get the same volume.
        let mut taken = BTreeSet::new();
        self.claims.values().find_map(|claim| match claim {
            Claim::Bound(place) => (!reachable(place)).then_some(Reason::VolumeElsewhere),
            Claim::Waiting { candidates, room } => {
                let free = |name: &String| !taken.contains(name);
                let found = candidates
                    .iter()
                    .find(|(name, place)| free(name) && reachable(place));
                match found {
                    Some((name, _)) => {
                        taken.insert(name.clone());
                        None
                    }
                    None => (!room.holds(node)).then_some(Reason::NoVolume),
                }
            }
        })
    }

    /// The claims that wait for the pod's node.
    pub fn waiting(&self) -> impl Iterator<Item = &String> {
        let waiting = |claim: &Claim| matches!(claim, Claim::Waiting { .. });
        self.claims
            .iter()
            .filter(move |(_, c)| waiting(c))
            .map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(zone: &str) -> NodeInfo {
        NodeInfo::from_value(&json!({"metadata": {"name": "n", "labels": {"zone": zone}}})).unwrap()
    }

    fn zone(zone: &str) -> NodeSelector {
        let term =
            json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]});
        serde_json::from_value(json!({"nodeSelectorTerms": [term]})).unwrap()
    }

    fn waiting(candidates: &[(&str, &str)], room: Room) -> Claim {
        let candidates = candidates
            .iter()
            .map(|(name, place)| ((*name).to_owned(), Some(zone(place))))
            .collect();
        Claim::Waiting { candidates, room }
    }

    fn check<const N: usize>(claims: [Claim; N], expected: Option<&Reason>) {
        let named = claims.into_iter().enumerate();
        let claims = named.map(|(i, claim)| (i.to_string(), claim)).collect();
        let taken = false;
        let volumes = Volumes { claims, taken };
        assert_eq!(volumes.refusal(&node("a")).as_ref(), expected);
    }

    #[test]
    fn a_bound_volume_must_be_reachable() {
        check([Claim::Bound(Some(zone("a"))), Claim::Bound(None)], None);
        check(
            [Claim::Bound(Some(zone("b")))],
            Some(&Reason::VolumeElsewhere),
        );
    }

    #[test]
    fn each_waiting_claim_needs_a_volume_of_its_own() {
        let two = [("v", "a"), ("w", "a")];
        let one = [("v", "a"), ("w", "b")];
        check(
            [waiting(&two, Room::Nowhere), waiting(&two, Room::Nowhere)],
            None,
        );
        check(
            [waiting(&one, Room::Nowhere), waiting(&one, Room::Nowhere)],
            Some(&Reason::NoVolume),
        );
        check(
            [waiting(&one, Room::Nowhere), waiting(&one, Room::Anywhere)],
            None,
        );
    }

    #[test]
    fn volumes_are_made_only_where_their_class_allows() {
        check([waiting(&[], Room::Within(zone("a")))], None);
        check(
            [waiting(&[], Room::Within(zone("b")))],
            Some(&Reason::NoVolume),
        );
    }
}
