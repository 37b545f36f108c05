//! Peer classes: what all selectors, ipBlocks and port names in use say of an
//! address, and the number that stands for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::super::alloc::Ranges;
use super::atom::AtomId;
use crate::model::Protocol;

/// A name of ports that egress rules use; never reused.
pub(crate) type NameId = u32;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PortName {
    pub(crate) protocol: Protocol,
    pub(crate) name: String,
}

/// What makes two addresses one class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Signature {
    /// Sorted.
    pub(crate) atoms: Vec<AtomId>,
    /// What the port names in use stand for on the pod, sorted.
    pub(crate) ports: Vec<(NameId, u16)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Classes {
    ids: HashMap<Arc<Signature>, u32>,
    signatures: BTreeMap<u32, Arc<Signature>>,
    numbers: Ranges,
    /// Numbered since the last [`Classes::take_fresh`].
    fresh: Vec<u32>,
}

impl Default for Classes {
    /// Class 0 is what nothing matches.
    fn default() -> Self {
        let nothing = Arc::new(Signature::default());
        Self {
            ids: HashMap::from([(Arc::clone(&nothing), 0)]),
            signatures: BTreeMap::from([(0, nothing)]),
            numbers: Ranges::new(1, u32::MAX),
            fresh: Vec::new(),
        }
    }
}

impl Classes {
    /// Numbers last given up may be reused.
    pub(crate) fn settle(&mut self) {
        self.numbers.settle();
    }

    /// These numbers are in use in the kernel.
    pub(crate) fn reserve(&mut self, numbers: &BTreeSet<u32>) {
        for number in numbers {
            self.numbers.reserve(*number, 1);
        }
    }

    /// A reserved number goes on standing for these addresses.
    pub(crate) fn adopt(&mut self, signature: Signature, id: u32) {
        if !self.ids.contains_key(&signature) && self.numbers.adopt(id, 1) {
            let signature = Arc::new(signature);
            self.ids.insert(Arc::clone(&signature), id);
            self.signatures.insert(id, signature);
        }
    }

    pub(crate) fn number(&mut self, signature: Signature) -> u32 {
        if let Some(id) = self.ids.get(&signature) {
            return *id;
        }
        let id = self
            .numbers
            .take(1)
            .expect("fewer classes than addresses, which are fewer than u32::MAX");
        let signature = Arc::new(signature);
        self.ids.insert(Arc::clone(&signature), id);
        self.signatures.insert(id, signature);
        self.fresh.push(id);
        id
    }

    pub(crate) fn signature(&self, id: u32) -> Option<&Arc<Signature>> {
        self.signatures.get(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Arc<Signature>)> {
        self.signatures
            .iter()
            .map(|(id, signature)| (*id, signature))
    }

    pub(crate) fn len(&self) -> usize {
        self.signatures.len()
    }

    /// Classes numbered since the last call.
    pub(crate) fn take_fresh(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.fresh)
    }

    /// Gives up all classes but `used` and 0; returns those given up.
    pub(crate) fn retain(&mut self, used: &BTreeSet<u32>) -> Vec<u32> {
        let dead = self.signatures.keys().copied();
        let dead: Vec<u32> = dead.filter(|id| *id != 0 && !used.contains(id)).collect();
        for id in &dead {
            if let Some(signature) = self.signatures.remove(id) {
                self.ids.remove(&signature);
            }
            self.numbers.give_up(*id, 1);
        }
        dead
    }
}
