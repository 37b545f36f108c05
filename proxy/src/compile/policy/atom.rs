//! Atoms: the distinct questions that policies in use ask of an address. Two
//! addresses that answer all of them alike are of one peer class.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::policy::IpBlock;
use crate::model::{Cidr, Labels, Namespace, Selector};

/// Never reused, so that a forgotten atom cannot be taken for another.
pub(crate) type AtomId = u32;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Atom {
    Pods { scope: Scope, pods: Selector },
    Block(IpBlock),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// The namespace of this name.
    Own(String),
    Matching(Selector),
}

/// All atoms in use, with indexes that find the ones an address may match.
#[derive(Clone, Debug, Default)]
pub(crate) struct Atoms {
    ids: HashMap<Atom, AtomId>,
    next: AtomId,
    /// Selector atoms by the namespace they name, or `any`.
    own: HashMap<String, Bucket>,
    any: Bucket,
    prefixes: Prefixes,
    /// (namespace, labels) -> matching selector atoms. Emptied whenever atoms
    /// or namespaces change, and when it outgrows [`MEMO_MAX`].
    memo: HashMap<String, HashMap<Labels, Arc<[AtomId]>>>,
    memo_len: usize,
}

/// Label sets remembered; beyond it the memo starts anew.
const MEMO_MAX: usize = 131_072;

#[derive(Clone, Debug, Default)]
struct Bucket {
    /// By a label that everything selected has: key -> value -> atoms.
    labelled: HashMap<String, HashMap<String, Entries>>,
    rest: Entries,
}

type Entries = Vec<(AtomId, Arc<Atom>)>;

impl Bucket {
    fn add(&mut self, id: AtomId, atom: &Atom, selector: &Selector) {
        let list = match selector.required_label() {
            Some((key, value)) => {
                let values = self.labelled.entry(key.to_owned()).or_default();
                values.entry(value.to_owned()).or_default()
            }
            None => &mut self.rest,
        };
        list.push((id, Arc::new(atom.clone())));
    }

    fn collect(&self, namespace: &Namespace, labels: &Labels, into: &mut Vec<AtomId>) {
        let by_label = labels
            .iter()
            .filter_map(|(key, value)| self.labelled.get(key)?.get(value))
            .flatten();
        let matching = by_label
            .chain(&self.rest)
            .filter(|(_, atom)| match &**atom {
                Atom::Pods { scope, pods } => {
                    let in_scope = match scope {
                        Scope::Own(name) => *name == namespace.name,
                        Scope::Matching(selector) => selector.matches(&namespace.labels),
                    };
                    in_scope && pods.matches(labels)
                }
                Atom::Block(_) => false,
            });
        into.extend(matching.map(|(id, _)| *id));
    }
}

impl Atoms {
    pub(crate) fn intern(&mut self, atom: Atom) -> AtomId {
        if let Some(id) = self.ids.get(&atom) {
            return *id;
        }
        self.next += 1;
        self.ids.insert(atom, self.next);
        self.next
    }

    /// Forgets all atoms but `used` and makes the indexes anew.
    pub(crate) fn retain(&mut self, used: &BTreeSet<AtomId>) {
        self.ids.retain(|_, id| used.contains(id));
        self.own.clear();
        self.any = Bucket::default();
        let mut blocks = Vec::new();
        for (atom, id) in &self.ids {
            match atom {
                Atom::Pods { scope, pods } => {
                    let bucket = match scope {
                        Scope::Own(name) => self.own.entry(name.clone()).or_default(),
                        Scope::Matching(_) => &mut self.any,
                    };
                    bucket.add(*id, atom, pods);
                }
                Atom::Block(block) => blocks.push((*id, block)),
            }
        }
        self.prefixes = Prefixes::new(&blocks);
        self.forget_matches();
    }

    /// Namespaces have changed.
    pub(crate) fn forget_matches(&mut self) {
        self.memo.clear();
        self.memo_len = 0;
    }

    /// The selector atoms that a pod matches, sorted.
    pub(crate) fn of_pod(&mut self, namespace: &Namespace, labels: &Labels) -> Arc<[AtomId]> {
        let known = self
            .memo
            .get(&namespace.name)
            .and_then(|memo| memo.get(labels));
        if let Some(known) = known {
            return Arc::clone(known);
        }
        let mut found = Vec::new();
        if let Some(bucket) = self.own.get(&namespace.name) {
            bucket.collect(namespace, labels, &mut found);
        }
        self.any.collect(namespace, labels, &mut found);
        found.sort_unstable();
        let found: Arc<[AtomId]> = found.into();
        if self.memo_len >= MEMO_MAX {
            self.forget_matches();
        }
        self.memo_len += 1;
        let memo = self.memo.entry(namespace.name.clone()).or_default();
        memo.insert(labels.clone(), Arc::clone(&found));
        found
    }

    /// The ipBlock atoms that an address matches, sorted.
    pub(crate) fn of_address(&self, address: IpAddr) -> &[AtomId] {
        self.prefixes.find(address)
    }

    /// The ipBlock atoms that the addresses of a prefix match which no longer
    /// prefix in use contains.
    pub(crate) fn of_prefix(&self, cidr: Cidr) -> &[AtomId] {
        self.prefixes.find_around(cidr.address(), cidr.length())
    }

    /// Whether an ipBlock in use states this prefix.
    pub(crate) fn is_prefix(&self, cidr: Cidr) -> bool {
        self.prefixes.atoms.contains_key(&cidr)
    }

    /// Every prefix that ipBlocks in use state, with the atoms that addresses
    /// match whose longest prefix it is.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = (Cidr, &[AtomId])> {
        self.prefixes
            .atoms
            .iter()
            .map(|(cidr, atoms)| (*cidr, atoms.as_slice()))
    }

    /// Whether a selector atom has this namespace selector or name, i.e. a
    /// change of namespaces can matter.
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }
}

/// The distinct prefixes of all ipBlocks (cidr and except). The longest one
/// that contains an address says which blocks contain it.
#[derive(Clone, Debug, Default)]
struct Prefixes {
    atoms: HashMap<Cidr, Vec<AtomId>>,
    /// Lengths in use, longest first.
    lengths_v4: Vec<u8>,
    lengths_v6: Vec<u8>,
}

impl Prefixes {
    fn new(blocks: &[(AtomId, &IpBlock)]) -> Self {
        let mut cidrs = BTreeSet::new();
        for (_, block) in blocks {
            cidrs.insert(block.cidr);
            cidrs.extend(block.except.iter().copied());
        }
        let mut prefixes = Self::default();
        for cidr in &cidrs {
            let lengths = if cidr.is_v6() {
                &mut prefixes.lengths_v6
            } else {
                &mut prefixes.lengths_v4
            };
            lengths.push(cidr.length());
        }
        for lengths in [&mut prefixes.lengths_v4, &mut prefixes.lengths_v6] {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
        }
        for cidr in cidrs {
            // No block's prefix ends between this prefix and the addresses for
            // which it is the longest: its first address speaks for all.
            let within = |outer: &Cidr| *outer == cidr || outer.strictly_contains(&cidr);
            let matching = blocks
                .iter()
                .filter(|(_, block)| within(&block.cidr) && !block.except.iter().any(within));
            let mut atoms: Vec<AtomId> = matching.map(|(id, _)| *id).collect();
            atoms.sort_unstable();
            prefixes.atoms.insert(cidr, atoms);
        }
        prefixes
    }

    fn find(&self, address: IpAddr) -> &[AtomId] {
        self.find_around(address, u8::MAX)
    }

    /// By the prefixes that have at most `length` bits.
    fn find_around(&self, address: IpAddr, length: u8) -> &[AtomId] {
        let lengths = if address.is_ipv6() {
            &self.lengths_v6
        } else {
            &self.lengths_v4
        };
        let lengths = lengths.iter().filter(|of| **of <= length);
        let mut candidates = lengths.filter_map(|length| Cidr::new(address, *length));
        let found = candidates.find_map(|cidr| self.atoms.get(&cidr));
        found.map_or(&[], Vec::as_slice)
    }
}
