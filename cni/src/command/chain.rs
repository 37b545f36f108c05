//! ADD behind another plugin, told by a `prevResult`: that plugin's veth pair,
//! addresses and routes stay as they are, and the pod is put into the data
//! path, with Services and policies. The result passes through.

use std::net::IpAddr;

use proxy_ebpf::record::{EndpointRecord, Hooks};
use serde_json::Value;

use super::shared::{self, Wishes};
use crate::config::{Bandwidth, Network};
use crate::datapath::Pins;
use crate::env::Attachment;
use crate::link::{self, Link, Socket};
use crate::mac::Mac;
use crate::netns::NetNs;
use crate::spec::result::Outcome;
use crate::spec::{Code, Failure};
use crate::state::State;

/// Both sides of the other plugin's pair.
struct Found {
    host: Link,
    host_mac: Mac,
    pod_mac: Mac,
}

pub(super) fn run(
    network: &Network,
    attachment: &Attachment,
    wishes: &Wishes,
    netns: &NetNs,
    record: EndpointRecord,
    previous: &Value,
) -> Result<Value, Failure> {
    let outcome = Outcome::read(network.version, previous, "prevResult")?;
    if wishes.runtime.bandwidth != Bandwidth::default() {
        let message = "runtimeConfig.bandwidth: the interface is another plugin's";
        return Err(Failure::new(Code::InvalidConfig, message)
            .hint("declare the capability at the bandwidth plugin"));
    }
    // Without a data path there is nothing to add.
    let Some(pins) = shared::pins(network, &wishes.settings)? else {
        return Ok(outcome.render(network.version));
    };
    let socket = Socket::open()?;
    let found = find(&socket, netns, attachment, &outcome)?;
    let state = State::open(&network.state_dir)?;
    let record = EndpointRecord {
        host_ifname: found.host.name.clone(),
        hooks: Hooks::Links,
        host_ifindex: found.host.ifindex,
        mac: found.pod_mac.to_string(),
        host_mac: found.host_mac.to_string(),
        ips: addresses(&outcome, attachment),
        ..record
    };
    let done = attach(&state, &pins, attachment, record, &found)
        .and_then(|()| shared::announce(network, &wishes.settings, attachment));
    done.inspect_err(|_| shared::undo(network, &state, &socket, attachment))?;
    Ok(outcome.render(network.version))
}

/// The other plugin must name both sides in its result: a number alone could
/// by chance be that of an interface of yet another namespace.
fn find(
    socket: &Socket,
    netns: &NetNs,
    attachment: &Attachment,
    previous: &Outcome,
) -> Result<Found, Failure> {
    let name = &attachment.ifname;
    let inside = shared::enter(netns, || Ok(()))?;
    let unfit = |problem: &str| {
        Failure::new(Code::InvalidConfig, format!("prevResult: {name} {problem}"))
            .hint("chain behind a plugin that makes a veth pair to the node, such as ptp")
    };
    let pod = link::find(&inside, name)?.ok_or_else(|| unfit("is not in the container"))?;
    let mut names = previous
        .interfaces
        .iter()
        .filter(|interface| interface.sandbox.is_empty());
    let host = match names.find_map(|interface| link::find(socket, &interface.name).transpose()) {
        Some(found) => Some(found?),
        None => None,
    };
    let host = host
        .filter(|host| host.peer == pod.ifindex && pod.peer == host.ifindex)
        .ok_or_else(|| unfit("has no other side on the node"))?;
    let (Some(host_mac), Some(pod_mac)) = (host.mac, pod.mac) else {
        return Err(unfit("is no Ethernet interface"));
    };
    Ok(Found {
        host,
        host_mac,
        pod_mac,
    })
}

/// The addresses of the container's interface; at most one of each family.
fn addresses(outcome: &Outcome, attachment: &Attachment) -> Vec<IpAddr> {
    let is_ours = |index: usize| {
        let interface = outcome.interfaces.get(index);
        interface.is_none_or(|interface| interface.name == attachment.ifname)
    };
    let mut ips: Vec<IpAddr> = Vec::new();
    for ip in outcome
        .ips
        .iter()
        .filter(|ip| ip.interface.is_none_or(is_ours))
    {
        let ip = ip.address.ip();
        if ips.iter().all(|other| other.is_ipv6() != ip.is_ipv6()) {
            ips.push(ip);
        }
    }
    ips
}

fn attach(
    state: &State,
    pins: &Pins,
    attachment: &Attachment,
    mut record: EndpointRecord,
    found: &Found,
) -> Result<(), Failure> {
    let locked = state.lock()?;
    locked.sweep_after_boot(&record.boot_id)?;
    shared::refuse_existing(state, attachment)?;
    record.slot = pins.choose_slot(found.host.ifindex)?;
    locked.write(&record)?;
    pins.add(&record, found.pod_mac, found.host_mac)?;
    pins.attach(&record.host_ifname, record.host_ifindex)?;
    Ok(())
}
