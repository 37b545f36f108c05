//! After a restart: what is in the kernel keeps its numbers where it means the
//! same, so that nothing needs writing; what does not is moved over as in any
//! other update.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use proxy_ebpf::abi::{PeerKey, SET_FIRST};

use super::super::owner::Owner;
use super::super::tables::{RangeKey, Tables, port_key};
use super::atom::AtomId;
use super::class::Signature;
use super::set::Compiled;
use super::{Inputs, PolicyCompiler};
use crate::model::Cidr;

/// What was found, until the first rebuild is done.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) tables: Tables,
    /// The found classes that addresses of a signature had.
    classes: HashMap<Signature, BTreeSet<u32>>,
    /// Signatures whose addresses were of several classes. They stay apart for
    /// one update ([`Found::told_apart`]), so that the found sets, which may
    /// treat those classes differently, judge rightly until they go.
    merging: HashSet<Signature>,
    /// Classes that did not get their numbers from there.
    pub(super) fresh: BTreeSet<u32>,
}

impl Found {
    /// The signature of an address of the found `class`, which is told from
    /// those of other found classes that now mean the same. The mark is no atom
    /// that any rule asks for.
    pub(super) fn told_apart(&self, mut signature: Signature, class: Option<u32>) -> Signature {
        if let Some(class) = class
            && self.merging.contains(&signature)
        {
            signature.atoms.push(AtomId::MAX - class);
        }
        signature
    }

    /// Prefixes that are kept for one update, though no ipBlock in use states
    /// them: the found sets go by their classes until they go.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = Cidr> {
        self.tables.cidrs.iter().map(|(cidr, _)| cidr)
    }
}

impl PolicyCompiler {
    /// Numbers in `tables`, found in the kernel, are not handed out for anything
    /// else before the first rebuild is done.
    pub(crate) fn adopt(&mut self, tables: &Tables) {
        let addresses = tables.addresses.iter().map(|(_, address)| address.class);
        let cidrs = tables.cidrs.iter().map(|(_, class)| class);
        let peers = tables.peers.iter().map(|(key, _)| key.class);
        let endpoints = tables
            .endpoints
            .iter()
            .flat_map(|(_, e)| [e.class_v4, e.class_v6]);
        let classes = addresses.chain(cidrs).chain(peers).chain(endpoints);
        self.classes.reserve(&classes.collect());
        let sets = tables.sets.iter().map(|(index, _)| index);
        let words = tables.peers.iter().map(|(key, _)| key.word);
        let ports = tables.ports.iter().map(|(key, _)| key.set);
        let ranges = tables.ranges.iter().map(|(key, _)| key.set);
        let endpoints = tables.endpoints.iter();
        let endpoints = endpoints.flat_map(|(_, e)| [e.ingress_set, e.egress_set]);
        for index in sets
            .chain(words)
            .chain(ports)
            .chain(ranges)
            .chain(endpoints)
        {
            self.set_numbers.reserve(index, 1);
        }
        self.found = Some(Found {
            tables: tables.clone(),
            ..Found::default()
        });
    }

    /// A found class keeps its number if it had all addresses of one signature
    /// and no others.
    pub(super) fn adopt_classes(&mut self, inputs: Inputs<'_>) {
        let Some(mut found) = self.found.take() else {
            return;
        };
        let mut members = Vec::new();
        for (owner, ip) in inputs.owners.by_precedence() {
            if let (Some(address), false) =
                (found.tables.addresses.get(&ip), *owner == Owner::Service)
            {
                let pod = self.pod_of(inputs, owner);
                let signature = self.signature(inputs.state, ip, pod.as_deref());
                members.push((signature, address.class));
            }
        }
        for (cidr, class) in found.tables.cidrs.iter() {
            let signature = Signature {
                atoms: self.atoms.of_prefix(cidr).to_vec(),
                ports: Vec::new(),
            };
            members.push((signature, class));
        }
        let mut of: HashMap<&Signature, BTreeSet<u32>> = HashMap::new();
        for (signature, class) in &members {
            of.entry(signature).or_default().insert(*class);
        }
        let merging = of.into_iter().filter(|(_, classes)| classes.len() > 1);
        found.merging = merging.map(|(signature, _)| signature.clone()).collect();
        let mut signatures: BTreeMap<u32, BTreeSet<Signature>> = BTreeMap::new();
        for (signature, class) in members {
            let signature = found.told_apart(signature, Some(class));
            found
                .classes
                .entry(signature.clone())
                .or_default()
                .insert(class);
            signatures.entry(class).or_default().insert(signature);
        }
        for (signature, classes) in &found.classes {
            let class = classes.first().copied().filter(|_| classes.len() == 1);
            if let Some(class) = class
                && signatures.get(&class).is_some_and(|of| of.len() == 1)
            {
                self.classes.adopt(signature.clone(), class);
            }
        }
        self.found = Some(found);
    }

    /// Takes over the found set `base` if it is what was compiled, but for
    /// classes that are new or that nothing has any more.
    pub(super) fn adopt_set(&mut self, compiled: &Compiled, base: u32) -> bool {
        let Some(found) = self.found.as_ref().filter(|_| base >= SET_FIRST) else {
            return false;
        };
        let is_known = |key: &PeerKey| {
            let is_live = self.classes.signature(key.class).is_some();
            is_live && !found.fresh.contains(&key.class)
        };
        let found = &found.tables;
        let mut wanted = Tables::default();
        compiled.write(&mut wanted, base, true);
        let words = base..base.saturating_add(compiled.words());
        let same_words = words
            .clone()
            .all(|word| found.sets.get(&word) == wanted.sets.get(&word));
        let ports = (port_key(base, 0, 0), port_key(base + 1, 0, 0));
        let of_set = |tables: &Tables| -> BTreeMap<_, _> {
            let ports = tables.ports.range(ports.0, ports.1);
            ports.filter(|(key, _)| key.set == base).collect()
        };
        let range_key = |set| RangeKey {
            set,
            proto: 0,
            port: 0,
            bits: 0,
        };
        let ranges = |tables: &Tables| -> BTreeMap<_, _> {
            tables
                .ranges
                .range(range_key(base), range_key(base + 1))
                .collect()
        };
        let classes = self.classes.iter();
        let peers: BTreeMap<PeerKey, u64> = classes
            .flat_map(|(class, signature)| compiled.peer_entries(base, class, signature))
            .filter(|(key, _)| is_known(key))
            .collect();
        let found_peers: BTreeMap<PeerKey, u64> = words
            .flat_map(|word| found.peers.range(first_peer(word), last_peer(word)))
            .filter(|(key, _)| is_known(key))
            .collect();
        let same = same_words
            && of_set(found) == of_set(&wanted)
            && ranges(found) == ranges(&wanted)
            && found_peers == peers;
        same && self.set_numbers.adopt(base, compiled.words())
    }

    /// Removes found sets that are not in force any more. Returns what their
    /// peers' bits were, for the new numbers of the same addresses: they judge
    /// until the endpoints have their new sets. Where addresses of one new class
    /// were of several, what all might do counts.
    pub(super) fn sweep(&mut self, fresh: &[u32], tables: &mut Tables) -> Vec<(PeerKey, u64)> {
        let Some(found) = self.found.take() else {
            return Vec::new();
        };
        let mut found_prefixes = found.prefixes();
        let is_kept = found_prefixes.any(|cidr| !self.atoms.is_prefix(cidr));
        self.has_leftovers = is_kept || !found.merging.is_empty();
        let live = self.sets.values();
        let live: BTreeSet<u32> = live
            .flat_map(|set| set.base..set.base + set.compiled.words())
            .collect();
        let gone = |set: u32| !live.contains(&set);
        for (index, _) in found.tables.sets.iter().filter(|(index, _)| gone(*index)) {
            tables.sets.set(index, None);
        }
        for (key, _) in found.tables.ports.iter().filter(|(key, _)| gone(key.set)) {
            tables.ports.set(key, None);
        }
        for (key, _) in found.tables.ranges.iter().filter(|(key, _)| gone(key.set)) {
            tables.ranges.set(key, None);
        }
        let mut judging: BTreeMap<u32, BTreeMap<u32, u64>> = BTreeMap::new();
        for (key, bits) in found.tables.peers.iter() {
            let is_gone = gone(key.word);
            if is_gone || self.classes.signature(key.class).is_none() {
                tables.peers.set(key, None);
            }
            if is_gone {
                judging.entry(key.word).or_default().insert(key.class, bits);
            }
        }
        let mut bridge = Vec::new();
        for class in fresh {
            let signature = self.classes.signature(*class);
            let Some(ancestors) = signature.and_then(|s| found.classes.get(&**s)) else {
                continue;
            };
            for (word, bits) in &judging {
                let default = found
                    .tables
                    .sets
                    .get(word)
                    .map_or(0, |set| set.default_bits);
                let of = |class: &u32| bits.get(class).copied().unwrap_or(default);
                let common = ancestors.iter().map(of).fold(u64::MAX, |a, b| a & b);
                if common != default {
                    let (word, class) = (*word, *class);
                    bridge.push((PeerKey { word, class }, common));
                }
            }
        }
        bridge
    }
}

pub(super) const fn first_peer(word: u32) -> PeerKey {
    PeerKey { word, class: 0 }
}

pub(super) const fn last_peer(word: u32) -> PeerKey {
    PeerKey {
        word,
        class: u32::MAX,
    }
}
