//! ADD: addresses, a record, a veth pair, the data path, the interface up, and
//! the pod's policy in force, in this order.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use proxy_ebpf::record::{EndpointRecord, Hooks};
use serde_json::Value;

use super::shared::{self, Wishes};
use super::{chain, delegate, delegated, gc, warn};
use crate::config::{Ipam, Network};
use crate::datapath::Pins;
use crate::delegate::Delegate;
use crate::env::{Attachment, Call};
use crate::link::{self, Link, Pair, Socket};
use crate::mac::Mac;
use crate::netns::NetNs;
use crate::spec::result::{Interface, Ip, Outcome, Route};
use crate::spec::{Code, Failure};
use crate::state::{self, Locked, State};
use crate::sysctl;

/// All that ADD works with.
struct Work<'a> {
    network: &'a Network,
    wishes: Wishes,
    ipam: Ipam,
    attachment: &'a Attachment,
    netns: NetNs,
    pod_mac: Mac,
    host_mac: Mac,
    state: State,
    pins: Option<Pins>,
    socket: Socket,
}

pub(super) fn run(network: &Network, call: &Call) -> Result<Value, Failure> {
    let (Some(attachment), Some(path)) = (&call.attachment, &call.netns) else {
        return Err(Failure::new(Code::InvalidEnvironment, "not set: CNI_NETNS"));
    };
    network.check_fields()?;
    let wishes = Wishes::read(network, &call.args)?;
    let previous = network.previous();
    let ipam = previous.is_none().then(|| network.ipam()).transpose()?;
    let netns = NetNs::open(path)?.ok_or_else(|| {
        let message = format!("CNI_NETNS {} does not exist", path.display());
        Failure::new(Code::UnknownContainer, message)
    })?;
    let mut record = EndpointRecord {
        version: 1,
        network: network.name.clone(),
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
        netns: path.display().to_string(),
        slot: 0,
        host_ifname: attachment.host_ifname(),
        host_ifindex: 0,
        mac: String::new(),
        host_mac: String::new(),
        ips: Vec::new(),
        pod: wishes.args.pod.clone(),
        default_policy: wishes.settings.default_policy,
        shaped: wishes.runtime.bandwidth.ingress.is_some(),
        hooks: Hooks::Filters,
        port_mappings: wishes.runtime.port_mappings.clone(),
        boot_id: state::boot_id()?,
    };
    let (None, Some(ipam)) = (previous, ipam) else {
        let previous = previous.unwrap_or(&Value::Null);
        return chain::run(network, attachment, &wishes, &netns, record, previous);
    };
    let state = State::open(&network.state_dir)?;
    shared::refuse_existing(&state, attachment)?;
    let work = Work {
        pins: shared::pins(network, &wishes.settings)?,
        pod_mac: wishes.mac().unwrap_or_else(|| attachment.pod_mac()),
        host_mac: attachment.host_mac(),
        socket: Socket::open()?,
        network,
        wishes,
        ipam,
        attachment,
        netns,
        state,
    };
    let delegate = delegate(delegated(&work.ipam), network, call)?;
    let given = delegate.as_ref().map(Delegate::add).transpose()?;
    if let Some(given) = &given {
        record.ips = given.ips.iter().map(|ip| ip.address.ip()).collect();
    }
    record.mac = work.pod_mac.to_string();
    record.host_mac = work.host_mac.to_string();
    work.carry_out(record, given).inspect_err(|_| {
        // What is half done goes away at once; DEL would do the same.
        shared::undo(network, &work.state, &work.socket, attachment);
        if let Some(failure) = delegate.and_then(|delegate| delegate.call("DEL").err()) {
            warn(&format!("after a failed ADD: {}", failure.message));
        }
    })
}

/// A delegated plugin may give more than a pod's endpoint holds.
fn one_per_family(ips: &[IpAddr]) -> Result<(), Failure> {
    let v6 = ips.iter().filter(|ip| ip.is_ipv6()).count();
    if v6 <= 1 && ips.len() - v6 <= 1 {
        return Ok(());
    }
    let message = format!("ipam: more than one address of a family: {ips:?}");
    Err(Failure::new(Code::InvalidConfig, message).hint("give the IPAM plugin one range of each"))
}

impl Work<'_> {
    fn carry_out(
        &self,
        mut record: EndpointRecord,
        given: Option<Outcome>,
    ) -> Result<Value, Failure> {
        let mtu = match self.wishes.settings.mtu {
            Some(mtu) => mtu,
            None => link::uplink_mtu(&self.socket)?,
        };
        let link = self.claim(&mut record, mtu)?;
        self.attach(&mut record)?;
        let pod = self.connect(&link, &record)?;
        shared::announce(self.network, &self.wishes.settings, self.attachment)?;
        link::settle(&self.socket, &record.host_ifname, &pod, &record.ips)?;
        let outcome = self.outcome(&record, given, mtu);
        Ok(outcome.render(self.network.version))
    }

    /// Everything that must not happen twice at a time: addresses, the record,
    /// the pair, the endpoint slot and its maps. The kernel makes links one
    /// after the other anyway.
    fn claim(&self, record: &mut EndpointRecord, mtu: u32) -> Result<Link, Failure> {
        let locked = self.state.lock()?;
        locked.sweep_after_boot(&record.boot_id)?;
        one_per_family(&record.ips)?;
        shared::refuse_existing(&self.state, self.attachment)?;
        if let Ipam::Own(_) = self.ipam {
            record.ips = self.allocate(&locked)?;
            locked.take(&record.ips, self.attachment)?;
        }
        locked.write(record)?;
        let link = link::create(
            &self.socket,
            &Pair {
                host_ifname: &record.host_ifname,
                pod_ifname: &self.attachment.ifname,
                netns: &self.netns,
                host_mac: self.host_mac,
                pod_mac: self.pod_mac,
                mtu,
            },
        )
        .map_err(|error| self.explain(error.into()))?;
        record.host_ifindex = link.ifindex;
        if let Some(pins) = &self.pins {
            record.slot = pins.choose_slot(link.ifindex)?;
        }
        locked.write(record)?;
        if let Some(pins) = &self.pins {
            pins.add(record, self.pod_mac, self.host_mac)?;
        }
        Ok(link)
    }

    fn explain(&self, failure: Failure) -> Failure {
        let taken = format!(
            "; is there an interface {} already?",
            self.attachment.ifname
        );
        Failure {
            message: failure.message + &taken,
            ..failure
        }
    }

    /// Addresses from the own ranges; when there are none left, those of
    /// containers that vanished without DEL are taken back.
    fn allocate(&self, locked: &Locked<'_>) -> Result<Vec<IpAddr>, Failure> {
        let Ipam::Own(pools) = &self.ipam else {
            return Ok(Vec::new());
        };
        let wishes = &self.wishes.runtime.ips;
        let first = pools.allocate(&self.state.taken()?, &locked.last(), wishes);
        if let Ok(ips) = first {
            return Ok(ips);
        }
        gc::sweep_vanished(self.network, &self.state, locked, &self.socket)?;
        Ok(pools.allocate(&self.state.taken()?, &locked.last(), wishes)?)
    }

    /// Attaches the programs: by filters, or where the kernel has none, by links.
    fn attach(&self, record: &mut EndpointRecord) -> Result<(), Failure> {
        let Some(pins) = &self.pins else {
            return Ok(());
        };
        match pins.filter(&self.socket, record.host_ifindex) {
            Err(error) if error.lacks_filters() => {
                record.hooks = Hooks::Links;
                self.state.lock()?.write(record)?;
                Ok(pins.attach(&record.host_ifname, record.host_ifindex)?)
            }
            done => Ok(done?),
        }
    }

    /// Brings both sides up. Returns a socket to the pod's namespace.
    fn connect(&self, link: &Link, record: &EndpointRecord) -> Result<Socket, Failure> {
        let ips = &record.ips;
        let v6 = ips.iter().any(IpAddr::is_ipv6);
        sysctl::forward(ips.iter().any(IpAddr::is_ipv4), v6)?;
        let ifname = &self.attachment.ifname;
        let inside = shared::enter(&self.netns, || {
            if v6 {
                sysctl::prepare_pod(ifname)?;
            }
            Ok(())
        })?;
        let bandwidth = self.wishes.runtime.bandwidth;
        link::connect_host(
            &self.socket,
            link.ifindex,
            ips,
            self.pod_mac,
            bandwidth.ingress,
        )?;
        link::connect_pod(&inside, link.peer, ips, self.host_mac, bandwidth.egress)?;
        Ok(inside)
    }

    fn outcome(&self, record: &EndpointRecord, given: Option<Outcome>, mtu: u32) -> Outcome {
        let interfaces = vec![
            Interface {
                name: record.host_ifname.clone(),
                mac: record.host_mac.clone(),
                mtu: Some(mtu),
                ..Interface::default()
            },
            Interface {
                name: record.ifname.clone(),
                mac: record.mac.clone(),
                mtu: Some(mtu),
                sandbox: record.netns.clone(),
                ..Interface::default()
            },
        ];
        let single = |ip: IpAddr| {
            IpNetwork::new(ip, link::whole(ip)).expect("the length is the family's own")
        };
        let any = |ip: IpAddr| match ip {
            IpAddr::V4(_) => IpNetwork::V4("0.0.0.0/0".parse().expect("a constant")),
            IpAddr::V6(_) => IpNetwork::V6("::/0".parse().expect("a constant")),
        };
        let mut dns = self.wishes.settings.dns.clone();
        if dns.is_empty() {
            dns = given.map(|given| given.dns).unwrap_or_default();
        }
        Outcome {
            interfaces,
            ips: record
                .ips
                .iter()
                .map(|ip| Ip {
                    address: single(*ip),
                    gateway: Some(link::gateway(*ip)),
                    interface: Some(1),
                })
                .collect(),
            routes: record
                .ips
                .iter()
                .map(|ip| Route::new(any(*ip), link::gateway(*ip)))
                .collect(),
            dns,
        }
    }
}
