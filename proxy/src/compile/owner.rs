//! Who owns an address. Several may claim one; the first in the order of
//! [`Owner`] wins, and the others are reported.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::{ObjectName, Pod};

/// In order of precedence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A pod attached to this node, by endpoint slot.
    Endpoint(u32),
    /// A node: its own addresses and those of its host-network pods.
    Node { is_remote: bool },
    /// A pod elsewhere: one that is not terminating before one that is, then
    /// the youngest.
    Pod {
        is_terminating: bool,
        created: Reverse<i64>,
        name: ObjectName,
    },
    /// A Service's ClusterIP.
    Service,
}

impl Owner {
    pub(super) fn pod(pod: &Pod) -> Self {
        Self::Pod {
            is_terminating: pod.terminating,
            created: Reverse(pod.created),
            name: pod.name.clone(),
        }
    }
}

/// Address -> claims, best first.
#[derive(Clone, Debug, Default)]
pub(super) struct Owners {
    claims: BTreeMap<IpAddr, Vec<Owner>>,
    contested: BTreeSet<IpAddr>,
}

impl Owners {
    pub(super) fn claim(&mut self, address: IpAddr, owner: Owner) {
        let claims = self.claims.entry(address).or_default();
        if let Err(place) = claims.binary_search(&owner) {
            claims.insert(place, owner);
        }
        if claims.len() > 1 {
            self.contested.insert(address);
        }
    }

    pub(super) fn disclaim(&mut self, address: IpAddr, owner: &Owner) {
        let Some(claims) = self.claims.get_mut(&address) else {
            return;
        };
        claims.retain(|claim| claim != owner);
        if claims.len() < 2 {
            self.contested.remove(&address);
        }
        if claims.is_empty() {
            self.claims.remove(&address);
        }
    }

    pub(super) fn winner(&self, address: IpAddr) -> Option<&Owner> {
        self.claims.get(&address)?.first()
    }

    pub(super) fn len(&self) -> usize {
        self.claims.len()
    }

    /// Every address with its winner, in order of precedence, then of address.
    pub(super) fn by_precedence(&self) -> Vec<(&Owner, IpAddr)> {
        let mut all: Vec<_> = self
            .claims
            .iter()
            .filter_map(|(address, claims)| Some((claims.first()?, *address)))
            .collect();
        all.sort_unstable();
        all
    }

    /// Addresses that several claim, with all claims, the winner first.
    pub(super) fn contested(&self) -> impl Iterator<Item = (IpAddr, &[Owner])> {
        self.contested
            .iter()
            .filter_map(|address| Some((*address, self.claims.get(address)?.as_slice())))
    }
}
