//! ADD: addresses, a record, a veth pair, the data path, the interface up, and
//! the pod's policy in force, in this order.

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use proxy_ebpf::record::{Answer, DefaultPolicy, EndpointRecord, Notice};
use serde_json::Value;

use super::{delegate, delegated, gc, warn};
use crate::config::{DataPath, Ipam, Network, Runtime, Settings};
use crate::daemon::{self, Told};
use crate::datapath::{Pins, Pod};
use crate::delegate::Delegate;
use crate::env::{Args, Attachment, Call};
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
    settings: Settings,
    runtime: Runtime,
    ipam: Ipam,
    attachment: &'a Attachment,
    netns: NetNs,
    host_ifname: String,
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
    let settings = network.settings()?;
    let mut runtime = network.runtime()?;
    let args = Args::parse(&call.args)?;
    let ipam = network.ipam()?;
    if let Some(ip) = args.ip
        && runtime.ips.is_empty()
    {
        runtime.ips.push(ip);
    }
    let netns = NetNs::open(path)?.ok_or_else(|| {
        let message = format!("CNI_NETNS {} does not exist", path.display());
        Failure::new(Code::UnknownContainer, message)
    })?;
    let state = State::open(&network.state_dir)?;
    refuse_existing(&state, attachment)?;
    let work = Work {
        pins: pins(network, &settings)?,
        host_ifname: attachment.host_ifname(),
        pod_mac: runtime
            .mac
            .or(args.mac)
            .unwrap_or_else(|| attachment.pod_mac()),
        host_mac: attachment.host_mac(),
        socket: Socket::open()?,
        network,
        settings,
        runtime,
        ipam,
        attachment,
        netns,
        state,
    };
    let delegate = delegate(delegated(&work.ipam), network, call)?;
    let given = delegate.as_ref().map(Delegate::add).transpose()?;
    let record = EndpointRecord {
        version: 1,
        network: network.name.clone(),
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
        netns: path.display().to_string(),
        slot: 0,
        host_ifname: work.host_ifname.clone(),
        host_ifindex: 0,
        mac: work.pod_mac.to_string(),
        host_mac: work.host_mac.to_string(),
        ips: given
            .iter()
            .flat_map(|given| &given.ips)
            .map(|ip| ip.address.ip())
            .collect(),
        pod: args.pod,
        default_policy: work.settings.default_policy,
        port_mappings: work.runtime.port_mappings.clone(),
        boot_id: state::boot_id()?,
    };
    work.carry_out(record, given).inspect_err(|_| {
        // What is half done goes away at once; DEL would do the same.
        let leftover = work.undo().err();
        let leftover = delegate
            .and_then(|delegate| delegate.call("DEL").err())
            .or(leftover);
        if let Some(leftover) = leftover {
            warn(&format!("after a failed ADD: {}", leftover.message));
        }
    })
}

fn pins(network: &Network, settings: &Settings) -> Result<Option<Pins>, Failure> {
    let pins = Pins::open(&network.bpffs)?;
    if pins.is_none() && settings.data_path == DataPath::Required {
        let message = format!("no data path is pinned below {}", network.bpffs.display());
        return Err(Failure::new(Code::TryAgainLater, message).hint(
            "start fairlead-proxy on this node and see that it shares /sys/fs/bpf; \
             or set \"dataPath\": \"optional\"",
        ));
    }
    Ok(pins)
}

fn refuse_existing(state: &State, attachment: &Attachment) -> Result<(), Failure> {
    let Some(record) = state.record(attachment)? else {
        return Ok(());
    };
    if record.boot_id != state::boot_id()? {
        return Ok(());
    }
    let message = format!(
        "{} of container {} is attached already",
        attachment.ifname, attachment.container_id
    );
    Err(Failure::new(Code::Exists, message).hint("call DEL first"))
}

impl Work<'_> {
    fn carry_out(
        &self,
        mut record: EndpointRecord,
        given: Option<Outcome>,
    ) -> Result<Value, Failure> {
        let mtu = match self.settings.mtu {
            Some(mtu) => mtu,
            None => link::uplink_mtu(&self.socket)?,
        };
        let link = self.claim(&mut record, mtu)?;
        let pod = self.connect(&link, &record.ips)?;
        self.announce()?;
        link::settle(&self.socket, &self.host_ifname, &pod, &record.ips)?;
        let outcome = self.outcome(&record, given, mtu);
        Ok(outcome.render(self.network.version))
    }

    /// Everything that must not happen twice at a time: addresses, the record,
    /// the pair, the endpoint slot and its maps. The kernel makes links one
    /// after the other anyway.
    fn claim(&self, record: &mut EndpointRecord, mtu: u32) -> Result<Link, Failure> {
        let locked = self.state.lock()?;
        locked.sweep_after_boot(&record.boot_id)?;
        refuse_existing(&self.state, self.attachment)?;
        if let Ipam::Own(_) = self.ipam {
            record.ips = self.allocate(&locked)?;
            locked.take(&record.ips, self.attachment)?;
        }
        locked.write(record)?;
        let link = link::create(
            &self.socket,
            &Pair {
                host_ifname: &self.host_ifname,
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
            let pod = Pod {
                ifindex: link.ifindex,
                ips: &record.ips,
                mac: self.pod_mac,
                host_mac: self.host_mac,
                default_policy: record.default_policy,
            };
            pins.add(record.slot, &pod)?;
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
        let wishes = &self.runtime.ips;
        let first = pools.allocate(&self.state.taken()?, &locked.last(), wishes);
        if let Ok(ips) = first {
            return Ok(ips);
        }
        gc::sweep_vanished(self.network, &self.state, locked, &self.socket)?;
        Ok(pools.allocate(&self.state.taken()?, &locked.last(), wishes)?)
    }

    /// Attaches the programs, then brings both sides up. Returns a socket to
    /// the pod's namespace.
    fn connect(&self, link: &Link, ips: &[IpAddr]) -> Result<Socket, Failure> {
        if let Some(pins) = &self.pins {
            pins.attach(&self.host_ifname, link.ifindex)?;
        }
        let v6 = ips.iter().any(IpAddr::is_ipv6);
        sysctl::forward(ips.iter().any(IpAddr::is_ipv4), v6)?;
        let ifname = &self.attachment.ifname;
        let inside = self
            .netns
            .run(|| {
                if v6 {
                    sysctl::prepare_pod(ifname)?;
                }
                Ok::<_, Failure>(Socket::open()?)
            })
            .map_err(|error| {
                let message = format!("cannot enter the container's network namespace: {error}");
                Failure::new(Code::InvalidNamespace, message)
            })??;
        let bandwidth = self.runtime.bandwidth;
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

    /// Tells the daemon, which answers once the pod's policy is in force.
    fn announce(&self) -> Result<(), Failure> {
        let timeout_ms = self.settings.wait_for_policy_ms;
        let notice = Notice::EndpointAdded {
            container_id: self.attachment.container_id.clone(),
            ifname: self.attachment.ifname.clone(),
            timeout_ms,
        };
        let holds = match self.settings.default_policy {
            DefaultPolicy::Closed => "closed",
            DefaultPolicy::Open => "open",
        };
        match daemon::tell(
            &self.network.socket,
            &notice,
            Duration::from_millis(timeout_ms),
        ) {
            Told::Answered(Answer::Done | Answer::PodUnknown) | Told::Absent => {}
            Told::Answered(Answer::Failed { message }) => {
                return Err(Failure::new(Code::Policy, message));
            }
            Told::Silent(why) => {
                warn(&format!(
                    "fairlead-proxy gives no answer ({why}): the pod stays {holds}"
                ));
            }
        }
        Ok(())
    }

    fn undo(&self) -> Result<(), Failure> {
        let locked = self.state.lock()?;
        super::del::tear_down(
            self.network,
            &self.state,
            &locked,
            &self.socket,
            self.attachment,
        )
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
        let mut dns = self.settings.dns.clone();
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
