//! One policy set: its rules' ports sorted into port classes, and for any peer
//! class the bits of the port classes it may use.

use std::collections::{BTreeMap, HashMap};

use proxy_ebpf::abi::{PeerKey, PolicySet};
use proxy_ebpf::addr::proto;

use super::super::tables::{RangeKey, Tables, mask, port_key};
use super::atom::AtomId;
use super::class::{NameId, Signature};
use super::rule::{Lowered, PortMatch};

/// All that a set's contents depend on: equal specifications share a set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Spec {
    /// Sorted, unique, each able to match something.
    pub(crate) rules: Vec<Lowered>,
    /// For each name in `rules`: its protocol and every number that it stands
    /// for somewhere. Sorted.
    pub(crate) names: Vec<(NameId, u8, Vec<u16>)>,
}

/// Sets that list no more single ports than this keep them in `POLICY_PORTS`;
/// above, ranges become prefixes in the slower `POLICY_RANGES`.
const LISTED_PORTS_MAX: usize = 64;

const PROTOCOLS: [u8; 3] = [proto::TCP, proto::UDP, proto::SCTP];

/// What the rules of a set say of a port: which rules match it by number, and,
/// where a name may stand for it, which port it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct PortSignature {
    rules: Vec<usize>,
    exact: Option<(u8, u16)>,
}

/// Ports `from..=to` of a protocol, which are of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interval {
    proto: u8,
    from: u16,
    to: u16,
    class: usize,
}

/// A set, ready to be written at any index.
#[derive(Clone, Debug)]
pub(crate) struct Compiled {
    default_class: [u16; 4],
    /// Those that are not of their protocol's default class.
    intervals: Vec<Interval>,
    has_prefixes: bool,
    /// Per rule, a bit per port class that it matches by number, by word.
    rule_bits: Vec<BTreeMap<usize, u64>>,
    /// Rules for any peer.
    open_rules: Vec<usize>,
    rules_by_atom: HashMap<AtomId, Vec<usize>>,
    /// (rule, name) -> nothing: the rule has the named port.
    rules_by_name: HashMap<NameId, Vec<usize>>,
    /// (name, number) -> port class.
    class_of_named: HashMap<(NameId, u16), usize>,
    words: usize,
    /// Bits of a peer that only `open_rules` match and that has no named port.
    default_bits: Vec<u64>,
}

impl Compiled {
    /// `None`: more port classes than 16 bits can number.
    pub(crate) fn new(spec: &Spec) -> Option<Self> {
        let mut classes = PortClasses::default();
        let whole = |proto: u8| {
            let by_number = |rule: &Lowered| match &rule.ports {
                None => true,
                Some(ports) => ports.contains(&PortMatch::Range(proto, 0, u16::MAX)),
            };
            rules_that(spec, by_number)
        };
        let mut default_class = [0; 4];
        for (slot, proto) in default_class.iter_mut().zip(PROTOCOLS) {
            *slot = u16::try_from(classes.number(whole(proto), None)).ok()?;
        }
        let portless = rules_that(spec, |rule| rule.ports.is_none());
        default_class[3] = u16::try_from(classes.number(portless, None)).ok()?;
        let mut intervals = Vec::new();
        for (proto, default) in PROTOCOLS.into_iter().zip(default_class) {
            let mut found = elementary(spec, proto, &mut classes);
            found.retain(|interval| interval.class != usize::from(default));
            intervals.extend(found);
        }
        let listed: usize = intervals
            .iter()
            .map(|interval| usize::from(interval.to - interval.from) + 1)
            .sum();
        let singles = intervals
            .iter()
            .all(|interval| interval.from == interval.to);
        let mut compiled = Self {
            default_class,
            intervals,
            has_prefixes: !singles && listed > LISTED_PORTS_MAX,
            rule_bits: Vec::new(),
            open_rules: rules_that(spec, |rule| rule.peers.is_none()),
            rules_by_atom: HashMap::new(),
            rules_by_name: HashMap::new(),
            class_of_named: HashMap::new(),
            words: classes.len().div_ceil(64),
            default_bits: Vec::new(),
        };
        if classes.len() > usize::from(u16::MAX) {
            return None;
        }
        compiled.index(spec, &classes);
        compiled.default_bits = compiled.bits(&Signature::default());
        Some(compiled)
    }

    fn index(&mut self, spec: &Spec, classes: &PortClasses) {
        self.rule_bits = vec![BTreeMap::new(); spec.rules.len()];
        for (signature, class) in &classes.numbers {
            for rule in &signature.rules {
                *self.rule_bits[*rule].entry(class / 64).or_default() |= 1 << (class % 64);
            }
            if let Some((proto, port)) = signature.exact {
                let names = spec.names.iter();
                for (name, ..) in names.filter(|(_, p, ports)| *p == proto && ports.contains(&port))
                {
                    self.class_of_named.insert((*name, port), *class);
                }
            }
        }
        for (index, rule) in spec.rules.iter().enumerate() {
            for atom in rule.peers.iter().flatten() {
                self.rules_by_atom.entry(*atom).or_default().push(index);
            }
            for port in rule.ports.iter().flatten() {
                if let PortMatch::Peer(name) = port {
                    self.rules_by_name.entry(*name).or_default().push(index);
                }
            }
        }
    }

    /// Elements of `POLICY_SETS` that it takes.
    pub(crate) fn words(&self) -> u32 {
        u32::try_from(self.words).expect("at most 65535 classes")
    }

    /// The port classes that an address of this signature may use, 64 a word.
    pub(crate) fn bits(&self, signature: &Signature) -> Vec<u64> {
        let mut bits = vec![0; self.words];
        let by_atom = signature
            .atoms
            .iter()
            .filter_map(|atom| self.rules_by_atom.get(atom));
        for rule in self.open_rules.iter().chain(by_atom.flatten()) {
            for (word, more) in &self.rule_bits[*rule] {
                bits[*word] |= more;
            }
        }
        for (name, port) in &signature.ports {
            let Some(rules) = self.rules_by_name.get(name) else {
                continue;
            };
            let matches = |rule: &usize| {
                let by_atom = |atom| {
                    let rules = self.rules_by_atom.get(atom);
                    rules.is_some_and(|rules| rules.contains(rule))
                };
                self.open_rules.contains(rule) || signature.atoms.iter().any(by_atom)
            };
            if let Some(class) = self.class_of_named.get(&(*name, *port))
                && rules.iter().any(matches)
            {
                bits[class / 64] |= 1 << (class % 64);
            }
        }
        bits
    }

    /// The elements of `POLICY_PEERS` that a class needs in the set at `base`:
    /// those that differ from the default.
    pub(crate) fn peer_entries(
        &self,
        base: u32,
        class: u32,
        signature: &Signature,
    ) -> impl Iterator<Item = (PeerKey, u64)> {
        let words = self
            .bits(signature)
            .into_iter()
            .zip(self.default_bits.clone());
        words
            .zip(base..)
            .filter(|((bits, default), _)| bits != default)
            .map(move |((bits, _), word)| (PeerKey { word, class }, bits))
    }

    /// How many elements [`Compiled::write`] makes in `POLICY_PORTS` and `POLICY_RANGES`.
    pub(crate) fn port_entries(&self) -> (usize, usize) {
        if self.has_prefixes {
            let prefixes = self.intervals.iter().map(|i| prefixes(i.from, i.to).len());
            (0, prefixes.sum())
        } else {
            let ports = self.intervals.iter();
            (ports.map(|i| usize::from(i.to - i.from) + 1).sum(), 0)
        }
    }

    /// Sets (or, if not `present`, removes) all but the peers' elements.
    pub(crate) fn write(&self, tables: &mut Tables, base: u32, present: bool) {
        let flags = match (self.intervals.is_empty(), self.has_prefixes) {
            (true, _) => 0,
            (false, false) => PolicySet::PORTS,
            (false, true) => PolicySet::RANGES,
        };
        for (offset, bits) in (0..).zip(&self.default_bits) {
            let set = PolicySet {
                default_bits: *bits,
                default_class: if offset == 0 {
                    self.default_class
                } else {
                    [0; 4]
                },
                flags: if offset == 0 { flags } else { 0 },
                _pad: 0,
            };
            let value = Some(set).filter(|set| present && *set != PolicySet::default());
            tables.sets.set(base + offset, value);
        }
        for interval in &self.intervals {
            let class = u32::try_from(interval.class).expect("at most 65535 classes");
            let class = Some(class).filter(|_| present);
            if self.has_prefixes {
                for (port, bits) in prefixes(interval.from, interval.to) {
                    let key = RangeKey {
                        set: base,
                        proto: u16::from(interval.proto),
                        port,
                        bits,
                    };
                    tables.ranges.set(key, class);
                }
            } else {
                for port in interval.from..=interval.to {
                    tables
                        .ports
                        .set(port_key(base, interval.proto, port), class);
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct PortClasses {
    numbers: HashMap<PortSignature, usize>,
}

impl PortClasses {
    fn number(&mut self, rules: Vec<usize>, exact: Option<(u8, u16)>) -> usize {
        let next = self.numbers.len();
        let signature = PortSignature { rules, exact };
        *self.numbers.entry(signature).or_insert(next)
    }

    fn len(&self) -> usize {
        self.numbers.len()
    }
}

fn rules_that(spec: &Spec, predicate: impl Fn(&Lowered) -> bool) -> Vec<usize> {
    let rules = spec.rules.iter().enumerate();
    rules
        .filter(|(_, rule)| predicate(rule))
        .map(|(index, _)| index)
        .collect()
}

/// Cuts a protocol's ports where the rules that match change, and around each
/// port that a name may stand for.
fn elementary(spec: &Spec, proto: u8, classes: &mut PortClasses) -> Vec<Interval> {
    // Port -> rules that begin to match, rules that cease to. u32: 65536 is the end.
    let mut events: BTreeMap<u32, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    events.entry(0).or_default();
    for (index, rule) in spec.rules.iter().enumerate() {
        let whole = [PortMatch::Range(proto, 0, u16::MAX)];
        let ports = rule.ports.as_deref().unwrap_or(&whole);
        for port in ports {
            if let PortMatch::Range(of, from, to) = port
                && *of == proto
            {
                events.entry(u32::from(*from)).or_default().0.push(index);
                events.entry(u32::from(*to) + 1).or_default().1.push(index);
            }
        }
    }
    let named = spec.names.iter().filter(|(_, of, _)| *of == proto);
    let named: std::collections::BTreeSet<u16> = named
        .flat_map(|(.., ports)| ports.iter().copied())
        .collect();
    for port in &named {
        events.entry(u32::from(*port)).or_default();
        events.entry(u32::from(*port) + 1).or_default();
    }
    let ends: Vec<u32> = events.keys().copied().skip(1).chain([1 << 16]).collect();
    // A rule may list overlapping ranges: it matches while its count is above 0.
    let mut active: BTreeMap<usize, usize> = BTreeMap::new();
    let mut intervals = Vec::new();
    for ((start, (begin, cease)), end) in events.into_iter().zip(ends) {
        for rule in begin {
            *active.entry(rule).or_default() += 1;
        }
        for rule in cease {
            if let Some(count) = active.get_mut(&rule) {
                *count -= 1;
            }
        }
        active.retain(|_, count| *count > 0);
        let Ok(from) = u16::try_from(start) else {
            break;
        };
        let to = u16::try_from(end - 1).unwrap_or(u16::MAX);
        let exact = named.contains(&from).then_some((proto, from));
        let class = classes.number(active.keys().copied().collect(), exact);
        intervals.push(Interval {
            proto,
            from,
            to,
            class,
        });
    }
    intervals
}

/// The fewest prefixes (first port, length) that make up `from..=to`.
fn prefixes(from: u16, to: u16) -> Vec<(u16, u8)> {
    let mut found = Vec::new();
    let (mut start, end) = (u32::from(from), u32::from(to) + 1);
    while start < end {
        let aligned = start.trailing_zeros().min(16);
        let fitting = (end - start).ilog2();
        let size = aligned.min(fitting);
        let bits = u8::try_from(16 - size).expect("at most 16");
        let port = u16::try_from(start).expect("below the end");
        debug_assert_eq!(mask(port, bits), port);
        found.push((port, bits));
        start += 1 << size;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_make_up_their_range_exactly() {
        for (from, to) in [
            (0, 65535),
            (1, 65535),
            (80, 80),
            (8000, 9999),
            (1, 2),
            (65535, 65535),
        ] {
            let covered: Vec<u32> = prefixes(from, to)
                .into_iter()
                .flat_map(|(port, bits)| {
                    let start = u32::from(port);
                    start..start + (1 << (16 - bits))
                })
                .collect();
            let expected: Vec<u32> = (u32::from(from)..=u32::from(to)).collect();
            assert_eq!(covered, expected);
            assert!(prefixes(from, to).len() <= 30);
        }
    }
}
