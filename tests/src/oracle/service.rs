//! Services by their definition: which endpoints a connection may get.

use std::net::IpAddr;

use crate::cluster::{Cluster, Endpoint, LOCAL_NODE, Service, ServicePort};

/// What a destination address and port is to the Service layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// No Service's address.
    Plain,
    /// A Service's address, but none of its ports.
    UnknownPort,
    /// A Service port: all (address, port) a new connection may get.
    Backends(Vec<(IpAddr, u16)>),
    /// No endpoint anywhere.
    NoEndpoint,
    /// Endpoints, but none where the Local policy wants them.
    NoLocalEndpoint,
}

/// Looks up (address, port, protocol number).
pub fn target(cluster: &Cluster, address: IpAddr, port: u16, protocol: u8) -> Target {
    let Some(service) = cluster
        .services
        .iter()
        .find(|service| service.ips.contains(&address))
    else {
        return Target::Plain;
    };
    let wanted = service
        .ports
        .iter()
        .find(|candidate| candidate.number == port && candidate.protocol.number() == protocol);
    match wanted {
        Some(found) => backends(service, found, address.is_ipv6()),
        None => Target::UnknownPort,
    }
}

fn backends(service: &Service, port: &ServicePort, v6: bool) -> Target {
    let mut all: Vec<(&Endpoint, u16)> = Vec::new();
    for slice in service.slices.iter().filter(|slice| slice.v6 == v6) {
        for slice_port in &slice.ports {
            if slice_port.name == port.name && slice_port.protocol == port.protocol {
                all.extend(
                    slice
                        .endpoints
                        .iter()
                        .map(|endpoint| (endpoint, slice_port.number)),
                );
            }
        }
    }
    let everywhere = usable(&all);
    if everywhere.is_empty() {
        return Target::NoEndpoint;
    }
    if !service.internal_local {
        return Target::Backends(everywhere);
    }
    all.retain(|(endpoint, _)| endpoint.node.as_deref() == Some(LOCAL_NODE));
    match usable(&all) {
        local if local.is_empty() => Target::NoLocalEndpoint,
        local => Target::Backends(local),
    }
}

/// The ready ones; without any, those that still serve while they terminate.
fn usable(all: &[(&Endpoint, u16)]) -> Vec<(IpAddr, u16)> {
    let pick = |wanted: fn(&Endpoint) -> bool| {
        let mut found: Vec<_> = all
            .iter()
            .filter(|(endpoint, _)| wanted(endpoint))
            .map(|(endpoint, port)| (endpoint.ip, *port))
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    let ready = pick(|endpoint| endpoint.ready);
    if ready.is_empty() {
        pick(|endpoint| endpoint.serving && endpoint.terminating)
    } else {
        ready
    }
}

#[cfg(test)]
mod tests;
