//! Which endpoints of a Service port new connections go to.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::compile::Attachments;
use crate::model::service::{Endpoint, ServicePort, Target};
use crate::model::{EndpointSlice, Pod, Service, State};

/// An endpoint of one Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the conditions that the API states, one by one"
)]
pub(super) struct Candidate<'a> {
    ready: bool,
    serving: bool,
    terminating: bool,
    is_local: bool,
    hint_zones: &'a [String],
    hint_nodes: &'a [String],
}

/// By address and port.
pub(super) type Candidates<'a> = BTreeMap<(IpAddr, u16), Candidate<'a>>;

/// Where this node is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) node: &'a str,
    pub(super) zone: Option<&'a str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) endpoints: Vec<(IpAddr, u16)>,
    /// There are endpoints, but none that the Local policy admits.
    pub(super) drops: bool,
}

/// An endpoint that several slices list counts once: rather as local, then
/// rather as ready (it may be on its way from one slice to the other).
fn add<'a>(candidates: &mut Candidates<'a>, key: (IpAddr, u16), candidate: Candidate<'a>) {
    let rank = |c: &Candidate<'_>| (c.is_local, c.ready, c.serving);
    let known = candidates.get(&key);
    if known.is_none_or(|known| rank(known) < rank(&candidate)) {
        candidates.insert(key, candidate);
    }
}

/// The endpoints that slices list for a port, in one family. Slice ports are
/// matched by name: the number is per endpoint.
pub(super) fn from_slices<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &ServicePort,
    is_v6: bool,
    place: Place<'_>,
) -> Candidates<'a> {
    let mut candidates = Candidates::new();
    for slice in slices {
        let same = |p: &&crate::model::service::SlicePort| {
            p.name == port.name && p.protocol == port.protocol
        };
        for slice_port in slice.ports.iter().filter(same) {
            let listed = slice.endpoints.iter();
            for endpoint in listed.filter(|e| e.address.is_ipv6() == is_v6) {
                let key = (endpoint.address, slice_port.port);
                add(&mut candidates, key, candidate(endpoint, place));
            }
        }
    }
    candidates
}

fn candidate<'a>(endpoint: &'a Endpoint, place: Place<'_>) -> Candidate<'a> {
    Candidate {
        ready: endpoint.ready,
        serving: endpoint.serving,
        terminating: endpoint.terminating,
        is_local: endpoint.node.as_deref() == Some(place.node),
        hint_zones: &endpoint.hint_zones,
        hint_nodes: &endpoint.hint_nodes,
    }
}

/// The endpoints that the EndpointSlice controller would list, for a source
/// that has no controllers.
pub(super) fn from_selector(
    state: &State,
    attachments: &Attachments,
    service: &Service,
    port: &ServicePort,
    is_v6: bool,
    place: Place<'_>,
) -> Candidates<'static> {
    let mut candidates = Candidates::new();
    let namespace = &service.name.namespace;
    let first = crate::model::ObjectName::new(namespace, "");
    let pods = state.pods.range(first..).map(|(_, pod)| pod);
    let pods = pods.take_while(|pod| pod.name.namespace == *namespace);
    let selected = |pod: &Pod| {
        let mut selector = service.selector.iter();
        selector.all(|(key, value)| pod.labels.get(key) == Some(value))
    };
    for pod in pods.filter(|pod| !pod.is_over() && selected(pod)) {
        let number = match &port.target {
            Target::Number(number) => Some(*number),
            Target::Named(name) => pod.resolve(name, port.protocol),
        };
        let Some(number) = number else { continue };
        let attached = attachments
            .values()
            .find(|a| a.pod.as_ref() == Some(&pod.name));
        let ips = attached.map_or(&pod.ips, |attachment| &attachment.ips);
        let Some(ip) = ips.iter().find(|ip| ip.is_ipv6() == is_v6) else {
            continue;
        };
        let serving = pod.is_ready();
        let candidate = Candidate {
            ready: service.publish_not_ready || (serving && !pod.terminating),
            serving,
            terminating: pod.terminating,
            is_local: attached.is_some() || pod.node.as_deref() == Some(place.node),
            hint_zones: &[],
            hint_nodes: &[],
        };
        add(&mut candidates, (*ip, number), candidate);
    }
    candidates
}

/// Applies the internal traffic policy, hints and the terminating fallback.
pub(super) fn choose(candidates: &Candidates<'_>, is_local_only: bool, place: Place<'_>) -> Choice {
    let pick = |predicate: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<(IpAddr, u16)> {
        let picked = candidates
            .iter()
            .filter(|(_, candidate)| predicate(candidate));
        picked.map(|(key, _)| *key).collect()
    };
    let fallback = |c: &Candidate<'_>| c.serving && c.terminating;
    if is_local_only {
        let mut endpoints = pick(&|c| c.ready && c.is_local);
        if endpoints.is_empty() {
            endpoints = pick(&|c| fallback(c) && c.is_local);
        }
        let drops = endpoints.is_empty() && candidates.values().any(|c| c.ready || fallback(c));
        return Choice { endpoints, drops };
    }
    let near = topology(candidates, place);
    let mut endpoints = pick(&|c| c.ready && near(c));
    if endpoints.is_empty() {
        endpoints = pick(&fallback);
    }
    Choice {
        endpoints,
        drops: false,
    }
}

/// Hints count only if every ready endpoint has one and one of them is for us:
/// those for nodes first, then those for zones.
fn topology<'a>(
    candidates: &Candidates<'_>,
    place: Place<'a>,
) -> Box<dyn Fn(&Candidate<'_>) -> bool + 'a> {
    let ready = || candidates.values().filter(|c| c.ready);
    let for_node = |c: &Candidate<'_>| c.hint_nodes.iter().any(|node| node == place.node);
    if ready().all(|c| !c.hint_nodes.is_empty()) && ready().any(for_node) {
        return Box::new(move |c| c.hint_nodes.iter().any(|node| node == place.node));
    }
    let Some(zone) = place.zone else {
        return Box::new(|_| true);
    };
    let for_zone = |c: &Candidate<'_>| c.hint_zones.iter().any(|hint| hint == zone);
    if ready().all(|c| !c.hint_zones.is_empty()) && ready().any(for_zone) {
        return Box::new(move |c| c.hint_zones.iter().any(|hint| hint == zone));
    }
    Box::new(|_| true)
}
