//! A stream of packets: connections are remembered, Services chosen, replies
//! translated back.
//!
//! The rules that the published ones leave open, as this project states them:
//! - A bare SYN is always judged as a new connection. Any other TCP packet of
//!   no known flow is admitted if either direction would be (so that a lost
//!   table breaks nothing).
//! - A flow is judged again, in the direction it was opened, after any change.
//! - A flow is surely known only if policies kept anything from an end when it
//!   was admitted, or an address was translated; otherwise it may or may not be.
//! - An echo reply belongs to the flow of a request, or is judged by itself and
//!   remembered by nobody: it lets no request pass the other way.
//! - An ICMP error about a known flow passes; any other is judged as ICMP, which
//!   only rules without ports match.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::policy::{self, Side, Traffic};
use super::service::{self, Target};
use crate::cluster::{Cluster, Direction};
use crate::packet::{Body, Ip, flag, protocol};

/// The source of a pod's packets to itself.
pub const MIRROR_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
pub const MIRROR_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfdfa, 0x1ead, 0, 0, 0, 0, 0, 1));

/// Why a packet is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Drop {
    Egress,
    Ingress,
    SpoofedMac,
    SpoofedAddress,
    FragmentUnknown,
    NoLocalEndpoint,
    /// An ICMP error to a Service's address about no known flow.
    UnrelatedError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// To the pod with this address.
    Deliver(IpAddr),
    /// To the node's own network stack.
    Pass,
    Drop(Drop),
    /// Answered with RST or ICMP port unreachable.
    Reject,
}

/// One right outcome of a packet.
#[derive(Clone, Debug)]
pub struct Expected {
    pub verdict: Verdict,
    /// The packet as it goes on, where it does; hop limit as before. Of a
    /// fragment the transport header is not rewritten here.
    pub ip: Option<Ip>,
    pub source_port: SourcePort,
    effect: Effect,
}

/// The source port that a translated packet leaves with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourcePort {
    /// The client's.
    #[default]
    Kept,
    /// Any but the client's: that is taken towards the backend.
    Another,
    /// The client's may be taken, by a flow that may not be known.
    Any,
}

/// What the evaluator remembers if the outcome was the one that happened.
#[derive(Clone, Debug, Default)]
struct Effect {
    forget: Vec<Tuple>,
    doubt: Vec<Tuple>,
    flow: Option<Flow>,
    fragment: Option<(FragmentKey, (u16, u16))>,
    affinity: Option<(AffinityKey, (IpAddr, u16))>,
}

/// Addresses and ports of a packet; an echo request has its id as source port,
/// a reply as destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub sport: u16,
    pub dport: u16,
    pub protocol: u8,
}

impl Tuple {
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            protocol: self.protocol,
        }
    }

    fn is(self, other: Self) -> bool {
        self == other || self.reversed() == other
    }
}

#[derive(Clone, Debug)]
struct Flow {
    /// Real addresses, as the opener sent it.
    opener: Tuple,
    /// Picked up in mid-stream: either end may have opened it.
    either: bool,
    /// The data path may have no memory of it.
    doubtful: bool,
    generation: u64,
    /// What the client sent, where that was a Service's address.
    client: Option<Tuple>,
    /// FIN or RST was seen.
    closing: bool,
}

type FragmentKey = (IpAddr, IpAddr, u32, u8);
type AffinityKey = (IpAddr, IpAddr, u16, u8);

/// The evaluator: a cluster and the memory of what went before.
#[derive(Clone, Debug)]
pub struct Oracle {
    cluster: Cluster,
    generation: u64,
    flows: Vec<Flow>,
    fragments: HashMap<FragmentKey, (u16, u16)>,
    affinity: HashMap<AffinityKey, (IpAddr, u16)>,
}

/// Admitted with what to remember, or dropped.
type Admission = (Result<(), Drop>, Effect);

impl Oracle {
    pub fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            generation: 0,
            flows: Vec::new(),
            fragments: HashMap::new(),
            affinity: HashMap::new(),
        }
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Any change but the order of events: pods, labels, policies, Services.
    pub fn change(&mut self, cluster: Cluster) {
        self.cluster = cluster;
        self.generation += 1;
    }

    /// Remembers the outcome that happened. `source_port`: the one it left
    /// with, where that was not foreseeable.
    pub fn saw(&mut self, expected: &Expected, source_port: Option<u16>) {
        let effect = expected.effect.clone();
        self.flows
            .retain(|flow| !effect.forget.iter().any(|gone| gone.is(flow.opener)));
        for flow in &mut self.flows {
            flow.doubtful |= effect.doubt.iter().any(|tuple| tuple.is(flow.opener));
        }
        if let Some(mut flow) = effect.flow {
            if let Some(port) = source_port.filter(|_| expected.source_port != SourcePort::Kept) {
                flow.opener.sport = port;
            }
            self.flows.retain(|old| {
                !old.opener.is(flow.opener) && (flow.client.is_none() || old.client != flow.client)
            });
            self.flows.push(flow);
        }
        if let Some((key, ports)) = effect.fragment {
            self.fragments.insert(key, ports);
        }
        if let Some((key, backend)) = effect.affinity {
            self.affinity.insert(key, backend);
        }
    }

    /// A packet that a pod sends. `own`: the pod's addresses; `mac_is_right`:
    /// the frame carries its MAC address. Every outcome that is right.
    pub fn from_pod(&self, own: &[IpAddr], mac_is_right: bool, ip: &Ip) -> Vec<Expected> {
        let mut spoofed = Vec::new();
        if !mac_is_right {
            spoofed.push(Drop::SpoofedMac);
        }
        if !own.contains(&ip.src) {
            spoofed.push(Drop::SpoofedAddress);
        }
        if !spoofed.is_empty() {
            return spoofed.into_iter().map(dropped).collect();
        }
        if let Body::Error { inner, .. } = &ip.body {
            return self.error_from_pod(ip, inner);
        }
        let (tuple, fragment) = match self.tuple(ip) {
            Ok(found) => found,
            Err(reason) => return vec![dropped(reason)],
        };
        let mut all = Vec::new();
        for route in self.routes(tuple, ip.tcp_flags()) {
            match route {
                Err(verdict) => all.push(Expected {
                    verdict,
                    ip: None,
                    source_port: SourcePort::Kept,
                    effect: Effect::default(),
                }),
                Ok(route) => {
                    for (result, effect) in self.admit(&route, ip) {
                        all.push(self.outcome(ip, &route, result, effect, fragment));
                    }
                }
            }
        }
        all
    }

    /// A packet that the host's stack hands to a pod: its own (`from_host`,
    /// always allowed), or one that came in from other machines.
    pub fn to_pod(&self, from_host: bool, ip: &Ip) -> Vec<Expected> {
        if from_host {
            return vec![Expected {
                verdict: Verdict::Deliver(ip.dst),
                ip: Some(ip.clone()),
                source_port: SourcePort::Kept,
                effect: Effect::default(),
            }];
        }
        if let Body::Error { inner, .. } = &ip.body {
            return self.error_from_pod(ip, inner);
        }
        let (tuple, fragment) = match self.tuple(ip) {
            Ok(found) => found,
            Err(reason) => return vec![dropped(reason)],
        };
        let route = self.route_back(tuple);
        self.admit(&route, ip)
            .into_iter()
            .map(|(result, effect)| self.outcome(ip, &route, result, effect, fragment))
            .collect()
    }

    /// What the packet is in terms of ports; fragments borrow their first one's.
    #[expect(clippy::type_complexity, reason = "one caller's pair")]
    fn tuple(&self, ip: &Ip) -> Result<(Tuple, Option<(FragmentKey, (u16, u16))>), Drop> {
        let number = ip.protocol();
        let mut learned = None;
        let (sport, dport) = match (&ip.body, ip.fragment) {
            (Body::Raw { bytes, .. }, Some(fragment)) => {
                let key = (ip.src, ip.dst, fragment.id, number);
                if fragment.offset == 0 {
                    let ports = first_ports(number, bytes);
                    learned = Some((key, ports));
                    ports
                } else {
                    *self.fragments.get(&key).ok_or(Drop::FragmentUnknown)?
                }
            }
            (
                Body::Echo {
                    reply: false, id, ..
                },
                _,
            ) => (*id, 0),
            (
                Body::Echo {
                    reply: true, id, ..
                },
                _,
            ) => (0, *id),
            _ => ip.ports().unwrap_or((0, 0)),
        };
        Ok((
            Tuple {
                src: ip.src,
                dst: ip.dst,
                sport,
                dport,
                protocol: number,
            },
            learned,
        ))
    }

    /// Where a pod's packet may go: as it is, back through a translation, or
    /// to each backend of a Service.
    fn routes(&self, tuple: Tuple, tcp_flags: u8) -> Vec<Result<Route, Verdict>> {
        if let Some(flow) = self.flows.iter().find(|flow| flow.client == Some(tuple)) {
            return self.routes_of_known(tuple, flow, tcp_flags);
        }
        match service::target(&self.cluster, tuple.dst, tuple.dport, tuple.protocol) {
            Target::Plain => vec![Ok(self.route_back(tuple))],
            Target::UnknownPort | Target::NoEndpoint => vec![Err(Verdict::Reject)],
            Target::NoLocalEndpoint => vec![Err(Verdict::Drop(Drop::NoLocalEndpoint))],
            Target::Backends(backends) => self
                .affine(tuple, backends)
                .into_iter()
                .map(|backend| Ok(self.route_to(tuple, backend)))
                .collect(),
        }
    }

    /// A client's next packet to a Service: to the same backend, unless that
    /// has gone (then UDP moves, TCP stays until it opens anew).
    fn routes_of_known(
        &self,
        tuple: Tuple,
        flow: &Flow,
        tcp_flags: u8,
    ) -> Vec<Result<Route, Verdict>> {
        let backend = (flow.opener.dst, flow.opener.dport);
        let stay = Route {
            sent: tuple,
            real: flow.opener,
            client: Some(tuple),
            source_port: SourcePort::Kept,
            affinity: None,
        };
        let target = service::target(&self.cluster, tuple.dst, tuple.dport, tuple.protocol);
        let eligible = match &target {
            Target::Backends(backends) => backends.as_slice(),
            _ => &[],
        };
        let tcp = tuple.protocol == protocol::TCP;
        let opens = tcp && tcp_flags & (flag::SYN | flag::ACK) == flag::SYN;
        if eligible.contains(&backend) && !(opens && flow.closing) {
            return vec![Ok(stay)];
        }
        let mut all = Vec::new();
        if target == Target::Plain {
            // The Service is gone: its connections may end with it.
            all.push(Ok(self.route_back(tuple)));
        }
        let listed = self.cluster.services.iter().any(|service| {
            service.ips.contains(&tuple.dst)
                && service
                    .slices
                    .iter()
                    .flat_map(|s| &s.endpoints)
                    .any(|e| e.ip == backend.0)
        });
        if tcp || listed {
            all.push(Ok(stay));
        }
        if !tcp || opens {
            match target {
                Target::Backends(backends) => {
                    all.extend(backends.into_iter().map(|b| Ok(self.route_to(tuple, b))));
                }
                Target::NoLocalEndpoint => all.push(Err(Verdict::Drop(Drop::NoLocalEndpoint))),
                Target::Plain => {}
                _ => all.push(Err(Verdict::Reject)),
            }
        }
        all
    }

    /// Under `ClientIP` affinity a client keeps its backend while that is there.
    fn affine(&self, tuple: Tuple, backends: Vec<(IpAddr, u16)>) -> Vec<(IpAddr, u16)> {
        let key = (tuple.src, tuple.dst, tuple.dport, tuple.protocol);
        match self.affinity.get(&key) {
            Some(kept) if backends.contains(kept) => vec![*kept],
            _ => backends,
        }
    }

    fn route_to(&self, sent: Tuple, backend: (IpAddr, u16)) -> Route {
        let hairpin = backend.0 == sent.src;
        let mirror = if sent.src.is_ipv6() {
            MIRROR_V6
        } else {
            MIRROR_V4
        };
        let real = Tuple {
            src: if hairpin { mirror } else { sent.src },
            dst: backend.0,
            dport: backend.1,
            ..sent
        };
        let source_port = match self.flows.iter().find(|flow| flow.opener.is(real)) {
            None => SourcePort::Kept,
            Some(flow) if flow.doubtful => SourcePort::Any,
            Some(_) => SourcePort::Another,
        };
        let sticky = self
            .cluster
            .services
            .iter()
            .any(|service| service.affinity.is_some() && service.ips.contains(&sent.dst));
        let key = (sent.src, sent.dst, sent.dport, sent.protocol);
        Route {
            sent,
            real,
            client: Some(sent),
            source_port,
            affinity: sticky.then_some((key, backend)),
        }
    }

    /// No Service's address: as it is, or the reply of a translated flow.
    fn route_back(&self, sent: Tuple) -> Route {
        let answered = self
            .flows
            .iter()
            .find(|flow| flow.opener == sent.reversed());
        Route {
            sent,
            real: sent,
            client: answered.and_then(|flow| flow.client),
            source_port: SourcePort::Kept,
            affinity: None,
        }
    }

    /// Policies and flows: every admission or refusal that is right.
    fn admit(&self, route: &Route, ip: &Ip) -> Vec<Admission> {
        let real = route.real;
        let tcp_flags = ip.tcp_flags();
        let answers = matches!(ip.body, Body::Echo { reply: true, .. });
        let tcp = real.protocol == protocol::TCP;
        let opens = tcp && tcp_flags & (flag::SYN | flag::ACK) == flag::SYN;
        let closing = tcp && tcp_flags & (flag::FIN | flag::RST) != 0;
        let flow = |opener: Tuple, either: bool| Flow {
            opener,
            either,
            doubtful: route.client.is_none() && !self.is_watched(opener),
            generation: self.generation,
            // A reply changes nothing of who the client was.
            client: route.client,
            closing,
        };
        // To a Service only its clients open connections.
        let midstream = tcp && !opens && route.client.is_none();
        let known = self.flows.iter().find(|known| known.opener.is(real));
        let fresh = || {
            let all = self.admit_new(real, midstream, &flow);
            if answers {
                return unremembered(all, known);
            }
            all
        };
        let Some(known) = known.filter(|_| !opens) else {
            return fresh();
        };
        let mut kept = known.clone();
        kept.closing |= closing;
        let mut all = Vec::new();
        let directions = if known.either {
            vec![known.opener, known.opener.reversed()]
        } else {
            vec![known.opener]
        };
        let current = known.generation == self.generation;
        kept.generation = self.generation;
        for opener in directions {
            match self.refusals(opener) {
                refusals if current || refusals.is_empty() => {
                    let flow = Some(kept.clone());
                    all.push((
                        Ok(()),
                        Effect {
                            flow,
                            ..Effect::default()
                        },
                    ));
                }
                refusals => {
                    let doubt = vec![known.opener];
                    all.extend(refusals.into_iter().map(|reason| {
                        (
                            Err(reason),
                            Effect {
                                doubt: doubt.clone(),
                                ..Effect::default()
                            },
                        )
                    }));
                    // The revoked flow may already be forgotten.
                    all.extend(fresh());
                }
            }
        }
        if known.doubtful {
            all.extend(fresh());
            // An answer makes nobody the opener, nor a flow known that was not.
            if !answers {
                self.leave_open(known, real, &mut all);
            }
        }
        all
    }

    /// `known` is known or not: which end counts as the opener from now on is
    /// open too, unless this packet comes from the one that did so far.
    fn leave_open(&self, known: &Flow, real: Tuple, all: &mut [Admission]) {
        let watched = self.is_watched(real);
        let turned = real != known.opener;
        for flow in all
            .iter_mut()
            .filter_map(|(_, effect)| effect.flow.as_mut())
        {
            flow.either |= turned || real.protocol == protocol::TCP;
            flow.doubtful &= !watched;
        }
    }

    fn admit_new(
        &self,
        real: Tuple,
        midstream: bool,
        flow: &dyn Fn(Tuple, bool) -> Flow,
    ) -> Vec<Admission> {
        let admitted = |opener, either| {
            let flow = Some(flow(opener, either));
            (
                Ok(()),
                Effect {
                    flow,
                    ..Effect::default()
                },
            )
        };
        let forward = self.refusals(real);
        let backward = if midstream {
            Some(self.refusals(real.reversed()))
        } else {
            None
        };
        match (forward.is_empty(), backward) {
            (true, Some(backward)) => vec![admitted(real, backward.is_empty())],
            (true, None) => vec![admitted(real, false)],
            (false, Some(backward)) if backward.is_empty() => {
                vec![admitted(real.reversed(), false)]
            }
            (false, backward) => forward
                .into_iter()
                .chain(backward.into_iter().flatten())
                .map(|reason| (Err(reason), Effect::default()))
                .collect(),
        }
    }

    /// Which directions deny a new flow.
    fn refusals(&self, opener: Tuple) -> Vec<Drop> {
        if is_mirror(opener.src) || is_mirror(opener.dst) {
            // A pod with itself.
            return Vec::new();
        }
        let portless = !matches!(
            opener.protocol,
            protocol::TCP | protocol::UDP | protocol::SCTP
        );
        let (egress, ingress) = policy::sides(
            &self.cluster,
            &Traffic {
                src: opener.src,
                dst: opener.dst,
                protocol: opener.protocol,
                port: if portless { 0 } else { opener.dport },
            },
        );
        let mut refusals = Vec::new();
        if egress == Side::Denied {
            refusals.push(Drop::Egress);
        }
        if ingress == Side::Denied {
            refusals.push(Drop::Ingress);
        }
        refusals
    }

    /// Whether an end is a pod of this node that policies keep anything from.
    fn is_watched(&self, tuple: Tuple) -> bool {
        [tuple.src, tuple.dst].into_iter().any(|ip| {
            self.cluster
                .pod_at(ip)
                .filter(|pod| pod.is_local())
                .is_some_and(|pod| {
                    [Direction::Ingress, Direction::Egress]
                        .into_iter()
                        .any(|direction| policy::is_restricted(&self.cluster, pod, direction))
                })
        })
    }

    fn outcome(
        &self,
        ip: &Ip,
        route: &Route,
        result: Result<(), Drop>,
        mut effect: Effect,
        fragment: Option<(FragmentKey, (u16, u16))>,
    ) -> Expected {
        effect.fragment = fragment;
        if let Err(reason) = result {
            return Expected {
                effect,
                ..dropped(reason)
            };
        }
        effect.affinity = route.affinity;
        let leaves = route.leaves();
        let mut ip = ip.clone();
        (ip.src, ip.dst) = (leaves.src, leaves.dst);
        if ip.ports().is_some() {
            ip.set_ports(leaves.sport, leaves.dport);
        }
        Expected {
            verdict: self.towards(ip.dst),
            ip: Some(ip),
            source_port: route.source_port,
            effect,
        }
    }

    fn towards(&self, address: IpAddr) -> Verdict {
        match self.cluster.pod_at(address) {
            Some(pod) if pod.is_local() => Verdict::Deliver(address),
            _ => Verdict::Pass,
        }
    }

    /// An ICMP error: about a known flow it goes where the flow's packets came
    /// from, its quotation translated as they were; else it is plain ICMP.
    fn error_from_pod(&self, ip: &Ip, inner: &Ip) -> Vec<Expected> {
        let icmp = Tuple {
            src: ip.src,
            dst: ip.dst,
            sport: 0,
            dport: 0,
            protocol: ip.protocol(),
        };
        let mut all = Vec::new();
        let mut sure = false;
        if let Ok((quoted, _)) = self.tuple(inner) {
            for flow in &self.flows {
                // As the sender of the error saw the packet it complains of.
                let seen_by_server = flow.opener == quoted;
                let seen_by_client =
                    flow.client.map_or(flow.opener, |client| client).reversed() == quoted;
                if !seen_by_server && !seen_by_client {
                    continue;
                }
                // A change since may have revoked the flow; whether that is known
                // shows only with its next own packet.
                let stale = flow.generation != self.generation;
                if stale {
                    all.extend(self.refusals(flow.opener).into_iter().map(dropped));
                }
                // Its connections may end with a Service.
                let gone = flow.client.is_some_and(|client| {
                    let (ip, port) = (client.dst, client.dport);
                    seen_by_client
                        && service::target(&self.cluster, ip, port, client.protocol)
                            == Target::Plain
                });
                sure |= !(flow.doubtful || stale || gone);
                all.push(self.translated_error(ip, flow, seen_by_server));
            }
        }
        if !sure {
            let refusals = self.refusals(icmp);
            if service::target(&self.cluster, ip.dst, 0, ip.protocol()) != Target::Plain {
                all.push(Expected {
                    verdict: Verdict::Reject,
                    ..dropped(Drop::Ingress)
                });
            } else if refusals.is_empty() {
                all.push(Expected {
                    verdict: self.towards(ip.dst),
                    ip: Some(ip.clone()),
                    source_port: SourcePort::Kept,
                    effect: Effect::default(),
                });
            } else {
                all.extend(refusals.into_iter().map(dropped));
            }
        }
        all
    }

    fn translated_error(&self, ip: &Ip, flow: &Flow, from_server: bool) -> Expected {
        let mut ip = ip.clone();
        if let (Some(client), Body::Error { inner, .. }) = (flow.client, &mut ip.body) {
            let quoted = if from_server {
                client
            } else {
                flow.opener.reversed()
            };
            (inner.src, inner.dst) = (quoted.src, quoted.dst);
            if inner.ports().is_some() {
                inner.set_ports(quoted.sport, quoted.dport);
            }
            // Back to whom the quoted packet came from; as if from where it was sent to.
            ip.dst = quoted.src;
            if ip.src == flow.opener.dst || ip.src == client.src {
                ip.src = quoted.dst;
            }
        }
        Expected {
            verdict: self.towards(ip.dst),
            ip: Some(ip),
            source_port: SourcePort::Kept,
            effect: Effect::default(),
        }
    }
}

/// A packet's way: as sent and with real addresses. With `client` and
/// `real == sent` it is a reply that must look as if from the Service.
#[derive(Clone, Copy, Debug)]
struct Route {
    sent: Tuple,
    real: Tuple,
    client: Option<Tuple>,
    source_port: SourcePort,
    affinity: Option<(AffinityKey, (IpAddr, u16))>,
}

impl Route {
    /// Addresses and ports on leaving.
    fn leaves(&self) -> Tuple {
        match self.client {
            Some(client) if client != self.sent => client.reversed(),
            _ => self.real,
        }
    }
}

/// The same, leaving nothing behind but doubt about `known`.
fn unremembered(mut all: Vec<Admission>, known: Option<&Flow>) -> Vec<Admission> {
    for (_, effect) in &mut all {
        *effect = Effect {
            doubt: known.map(|known| known.opener).into_iter().collect(),
            ..Effect::default()
        };
    }
    all
}

fn is_mirror(ip: IpAddr) -> bool {
    ip == MIRROR_V4 || ip == MIRROR_V6
}

fn dropped(reason: Drop) -> Expected {
    Expected {
        verdict: Verdict::Drop(reason),
        ip: None,
        source_port: SourcePort::Kept,
        effect: Effect::default(),
    }
}

/// Ports out of the first bytes of a transport header; zeros without ports.
fn first_ports(number: u8, bytes: &[u8]) -> (u16, u16) {
    let has_ports = matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP);
    match bytes {
        [a, b, c, d, ..] if has_ports => {
            (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))
        }
        _ => (0, 0),
    }
}

#[cfg(test)]
mod tests;
