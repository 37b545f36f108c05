//! CHECK: everything that ADD has made is still there and unchanged.

use std::net::IpAddr;

use proxy_ebpf::abi::kind;
use proxy_ebpf::record::EndpointRecord;

use super::{delegate, delegated};
use crate::config::Network;
use crate::datapath::Pins;
use crate::env::{Attachment, Call};
use crate::link::{self, Link, Seen, Socket};
use crate::netns::NetNs;
use crate::spec::result::Outcome;
use crate::spec::{Code, Failure};
use crate::state::State;

fn changed(what: impl Into<String>) -> Failure {
    Failure::new(Code::CheckFailed, what).hint("call DEL and ADD again")
}

pub(super) fn run(network: &Network, call: &Call) -> Result<(), Failure> {
    let (Some(attachment), Some(path)) = (&call.attachment, &call.netns) else {
        return Err(Failure::new(Code::InvalidEnvironment, "not set: CNI_NETNS"));
    };
    network.check_fields()?;
    let previous = network.previous().ok_or_else(|| {
        Failure::new(Code::InvalidConfig, "prevResult: missing").hint("pass the result of ADD")
    })?;
    let previous = Outcome::read(network.version, previous, "prevResult")?;
    let netns = NetNs::open(path)?.ok_or_else(|| {
        let message = format!("CNI_NETNS {} does not exist", path.display());
        Failure::new(Code::UnknownContainer, message)
    })?;
    let record = State::open(&network.state_dir)?
        .record(attachment)?
        .ok_or_else(|| {
            let message = format!("no record of container {}", attachment.container_id);
            Failure::new(Code::UnknownContainer, message)
        })?;
    // Another name: the interface is that of the plugin before us in the chain.
    let own = record.host_ifname == attachment.host_ifname();
    if own && let Some(delegate) = delegate(delegated(&network.ipam()?), network, call)? {
        delegate.call("CHECK")?;
    }
    let host = check_host(&record, own)?;
    let seen = check_pod(&netns, attachment, &record, &previous)?;
    for ip in record.ips.iter().filter(|_| own) {
        check_gateway(&attachment.ifname, *ip, &record, &seen)?;
    }
    if record.slot != 0 {
        check_data_path(network, &record, &host)?;
    }
    Ok(())
}

/// The interface is there, up, and has the recorded number; routes lead to it
/// if it is our `own`.
fn check_host(record: &EndpointRecord, own: bool) -> Result<Link, Failure> {
    let name = &record.host_ifname;
    let socket = Socket::open()?;
    let host = link::find(&socket, name)?.ok_or_else(|| changed(format!("{name} is gone")))?;
    if host.ifindex != record.host_ifindex {
        return Err(changed(format!(
            "{name} is another interface than the recorded one"
        )));
    }
    if !host.up {
        return Err(changed(format!("{name} is down")));
    }
    let seen = link::look(&socket, host.ifindex)?;
    for ip in record.ips.iter().filter(|_| own) {
        if !seen
            .routes
            .iter()
            .any(|(to, prefix, _)| to == ip && *prefix == link::whole(*ip))
        {
            return Err(changed(format!("the node has no route to {ip} by {name}")));
        }
    }
    Ok(host)
}

fn check_pod(
    netns: &NetNs,
    attachment: &Attachment,
    record: &EndpointRecord,
    previous: &Outcome,
) -> Result<Seen, Failure> {
    let name = &attachment.ifname;
    let failed = |error: std::io::Error| Failure::new(Code::InvalidNamespace, error.to_string());
    let socket = netns.run(Socket::open).map_err(failed)??;
    let pod = link::find(&socket, name)?
        .ok_or_else(|| changed(format!("the container has no interface {name}")))?;
    if !pod.up {
        return Err(changed(format!("{name} is down")));
    }
    let is_ours = |interface: &&crate::spec::result::Interface| {
        interface.name == *name && !interface.sandbox.is_empty()
    };
    let mac = previous
        .interfaces
        .iter()
        .find(is_ours)
        .map_or(&record.mac, |i| &i.mac);
    if pod
        .mac
        .is_none_or(|found| !found.to_string().eq_ignore_ascii_case(mac))
    {
        return Err(changed(format!("{name} does not have the address {mac}")));
    }
    let seen = link::look(&socket, pod.ifindex)?;
    for ip in &record.ips {
        if !seen.addresses.iter().any(|(found, _)| found == ip) {
            return Err(changed(format!("{name} does not have the address {ip}")));
        }
    }
    let given = previous
        .ips
        .iter()
        .map(|ip| (ip.address.ip(), ip.address.prefix()));
    for (ip, prefix) in given {
        if !seen.addresses.contains(&(ip, prefix)) {
            return Err(changed(format!(
                "{name} does not have {ip}/{prefix} of prevResult"
            )));
        }
    }
    Ok(seen)
}

/// The default route and the neighbour entry that it needs.
fn check_gateway(
    name: &str,
    ip: IpAddr,
    record: &EndpointRecord,
    seen: &Seen,
) -> Result<(), Failure> {
    let gateway = link::gateway(ip);
    let by_gateway =
        |(_, prefix, by): &(IpAddr, u8, Option<IpAddr>)| *prefix == 0 && *by == Some(gateway);
    if !seen.routes.iter().any(by_gateway) {
        return Err(changed(format!(
            "the container has no default route by {gateway}"
        )));
    }
    let resolves = |(found, mac): &(IpAddr, crate::mac::Mac)| {
        *found == gateway && mac.to_string() == record.host_mac
    };
    if !seen.neighbours.iter().any(resolves) {
        return Err(changed(format!(
            "{name} does not resolve {gateway} to {}",
            record.host_mac
        )));
    }
    Ok(())
}

fn check_data_path(network: &Network, record: &EndpointRecord, host: &Link) -> Result<(), Failure> {
    let socket = Socket::open()?;
    let pins = Pins::open(&network.bpffs)?.ok_or_else(|| {
        changed(format!(
            "no data path is pinned below {}",
            network.bpffs.display()
        ))
    })?;
    if let Some(program) = pins.unattached(&socket, record) {
        return Err(changed(format!(
            "{program} is not attached to {}",
            record.host_ifname
        )));
    }
    if pins.endpoint(record.slot)?.ifindex != host.ifindex {
        return Err(changed(format!(
            "endpoint slot {} is not the pod's",
            record.slot
        )));
    }
    for ip in &record.ips {
        let address = pins.address(*ip)?;
        if address.is_none_or(|a| a.kind != kind::LOCAL_POD || a.slot != record.slot) {
            return Err(changed(format!("the data path does not know {ip}")));
        }
    }
    Ok(())
}
