//! The sets in force: which an endpoint has, and how they come and go.

use std::collections::BTreeSet;
use std::sync::Arc;

use proxy_ebpf::abi::{self, PeerKey, bound};

use super::super::Problem;
use super::super::tables::Tables;
use super::adopt::{first_peer, last_peer};
use super::class::NameId;
use super::rule::{Direction, Lowered, PortMatch};
use super::set::{Compiled, Spec};
use super::{PolicyCompiler, Subject, size};

#[derive(Clone, Debug)]
pub(super) struct LiveSet {
    pub(super) base: u32,
    pub(super) compiled: Compiled,
}

enum Wanted {
    Ready(u32),
    Set(Spec),
}

impl PolicyCompiler {
    /// Gives classes that are new their bits in the sets that stay.
    /// A class without its bits is judged by the set's default, which never
    /// allows more.
    pub(super) fn add_fresh(
        &mut self,
        fresh: &[u32],
        tables: &mut Tables,
        problems: &mut Vec<Problem>,
    ) {
        for (index, class) in fresh.iter().enumerate() {
            let Some(signature) = self.classes.signature(*class) else {
                continue;
            };
            for live in self.sets.values() {
                for (key, bits) in live.compiled.peer_entries(live.base, *class, signature) {
                    if tables.peers.len() >= size(bound::POLICY_PEERS) {
                        self.pending = fresh[index..].to_vec();
                        let left_out = self.pending.len();
                        problems.push(Problem::PeersFull { left_out });
                        return;
                    }
                    tables.peers.set(key, Some(bits));
                }
            }
        }
    }

    /// Gives every endpoint its sets; returns the sets that none has any more.
    pub(super) fn build_sets(
        &mut self,
        tables: &mut Tables,
        problems: &mut Vec<Problem>,
    ) -> Vec<LiveSet> {
        let mut used: BTreeSet<u32> = BTreeSet::new();
        let mut wanted = Vec::new();
        for (slot, subject) in &self.subjects {
            for direction in [Direction::Ingress, Direction::Egress] {
                wanted.push((*slot, direction, self.spec(subject, direction)));
            }
        }
        for (slot, direction, wanted) in wanted {
            let set = match wanted {
                Wanted::Ready(set) => set,
                Wanted::Set(spec) => {
                    self.set(spec, (slot, direction), tables)
                        .unwrap_or_else(|full| {
                            let pod = self.subjects.get(&slot).and_then(|s| s.pod.as_ref());
                            problems.push(Problem::SetFull {
                                pod: pod.map(|pod| pod.name.clone()).unwrap_or_default(),
                                direction,
                                full,
                            });
                            abi::SET_CLOSED
                        })
                }
            };
            used.insert(set);
            let mut endpoint = tables.endpoints.get(&slot).unwrap_or_default();
            match direction {
                Direction::Ingress => endpoint.ingress_set = set,
                Direction::Egress => endpoint.egress_set = set,
            }
            tables.endpoints.set(slot, Some(endpoint));
        }
        let dead = self
            .sets
            .iter()
            .filter(|(_, live)| !used.contains(&live.base));
        let dead: Vec<Arc<Spec>> = dead.map(|(spec, _)| Arc::clone(spec)).collect();
        dead.iter()
            .filter_map(|spec| self.sets.remove(spec))
            .collect()
    }

    fn spec(&self, subject: &Subject, direction: Direction) -> Wanted {
        if subject.pod.is_none() {
            return Wanted::Ready(subject.unknown_set);
        }
        let Some(isolation) = subject.isolation(direction) else {
            return Wanted::Ready(abi::SET_NONE);
        };
        let rules = isolation.rules.iter().map(|rule| &rule.lowered);
        let mut rules: Vec<Lowered> = rules.filter(|rule| rule.is_alive()).cloned().collect();
        rules.sort_unstable();
        rules.dedup();
        if rules.is_empty() {
            return Wanted::Ready(abi::SET_CLOSED);
        }
        if rules.iter().any(Lowered::allows_everything) {
            return Wanted::Ready(abi::SET_NONE);
        }
        let ports = rules.iter().flat_map(|rule| rule.ports.iter().flatten());
        let names: BTreeSet<NameId> = ports
            .filter_map(|port| match port {
                PortMatch::Peer(name) => Some(*name),
                PortMatch::Range(..) => None,
            })
            .collect();
        let names = names.into_iter().filter_map(|id| {
            let protocol = self.names.get(id)?.protocol.number();
            let ports = self.universe.get(&id).into_iter().flatten().copied();
            Some((id, protocol, ports.collect()))
        });
        let names = names.collect();
        Wanted::Set(Spec { rules, names })
    }

    /// The index of the set of this specification, made if there is none.
    fn set(
        &mut self,
        spec: Spec,
        wanted_by: (u32, Direction),
        tables: &mut Tables,
    ) -> Result<u32, &'static str> {
        if let Some(live) = self.sets.get(&spec) {
            return Ok(live.base);
        }
        let compiled = Compiled::new(&spec).ok_or("port classes")?;
        let adopted = self.found_set(wanted_by);
        let adopted = adopted.filter(|base| self.adopt_set(&compiled, *base));
        let (ports, ranges) = compiled.port_entries();
        if adopted.is_none() && tables.ports.len() + ports > size(bound::POLICY_PORTS) {
            return Err(abi::pin::POLICY_PORTS);
        }
        if adopted.is_none() && tables.ranges.len() + ranges > size(bound::POLICY_RANGES) {
            return Err(abi::pin::POLICY_RANGES);
        }
        let base = adopted.or_else(|| self.set_numbers.take(compiled.words()));
        let base = base.ok_or(abi::pin::POLICY_SETS)?;
        let classes = self.classes.iter();
        let entries: Vec<_> = classes
            .flat_map(|(class, signature)| compiled.peer_entries(base, class, signature))
            .collect();
        if adopted.is_none() && tables.peers.len() + entries.len() > size(bound::POLICY_PEERS) {
            self.set_numbers.give_up(base, compiled.words());
            return Err(abi::pin::POLICY_PEERS);
        }
        for (key, bits) in entries {
            tables.peers.set(key, Some(bits));
        }
        compiled.write(tables, base, true);
        self.sets.insert(Arc::new(spec), LiveSet { base, compiled });
        Ok(base)
    }

    fn found_set(&self, (slot, direction): (u32, Direction)) -> Option<u32> {
        let endpoint = self.found.as_ref()?.tables.endpoints.get(&slot)?;
        Some(match direction {
            Direction::Ingress => endpoint.ingress_set,
            Direction::Egress => endpoint.egress_set,
        })
    }

    pub(super) fn retire(
        &mut self,
        retired: &[LiveSet],
        fresh: &[u32],
        tables: &mut Tables,
    ) -> Vec<(PeerKey, u64)> {
        let mut bridge = Vec::new();
        for set in retired {
            let words = set.compiled.words();
            for class in fresh {
                for word in set.base..set.base + words {
                    // Written by `add_fresh`, which did not know that the set goes.
                    let key = PeerKey {
                        word,
                        class: *class,
                    };
                    if let Some(bits) = tables.peers.get(&key) {
                        bridge.push((key, bits));
                    }
                }
            }
            for word in set.base..set.base + words {
                let entries = tables.peers.range(first_peer(word), last_peer(word));
                let keys: Vec<_> = entries.map(|(key, _)| key).collect();
                for key in keys {
                    tables.peers.set(key, None);
                }
            }
            set.compiled.write(tables, set.base, false);
            self.set_numbers.give_up(set.base, words);
        }
        bridge
    }
}
