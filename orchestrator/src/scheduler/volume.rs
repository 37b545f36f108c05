//! Which nodes a pod's volumes allow. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::NodeSelector;

use super::{affinity::node_selected, filter::Reason, node::NodeInfo};

/// One claim of a pod, as far as nodes go.
#[derive(Clone, Debug)]
pub enum Claim {
    /// Bound to a volume that is reachable from these nodes; from all if `None`.
    Bound(Option<NodeSelector>),
    /// To be bound when the pod has a node: to one of these volumes, or, if
    /// `dynamic`, to a new one wherever `allowed` permits.
    Waiting {
        /// Volumes that would do, by where they are.
        candidates: Vec<Option<NodeSelector>>,
        /// Whether a volume can be made.
        dynamic: bool,
    },
}

/// A pod's claims.
#[derive(Clone, Debug, Default)]
pub struct Volumes {
    /// By name.
    pub claims: BTreeMap<String, Claim>,
}

impl Volumes {
    /// Why the node cannot have them, if so.
    pub fn refusal(&self, node: &NodeInfo) -> Option<Reason> {
        let reachable = |place: &Option<NodeSelector>| {
            place
                .as_ref()
                .is_none_or(|selector| node_selected(selector, node))
        };
        self.claims.values().find_map(|claim| match claim {
            Claim::Bound(place) => (!reachable(place)).then_some(Reason::VolumeElsewhere),
            Claim::Waiting {
                candidates,
                dynamic,
            } => {
                let fits = *dynamic || candidates.iter().any(reachable);
                (!fits).then_some(Reason::NoVolume)
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
