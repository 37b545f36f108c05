//! The programs with compiled state, beside the evaluator that knows what is right.

use std::net::IpAddr;

use fairlead_proxy::compile::{Attachment, Compiler, Input};
use fairlead_proxy::model::ObjectName;
use fairlead_proxy::model::manifest::{Batch, Document, Unknown};
use fairlead_tests::cluster::{Cluster, LOCAL_NODE};
use fairlead_tests::generate::traffic::{Entry, Sent, Step};
use fairlead_tests::generate::{LOCAL_PODS, pod_ip};
use fairlead_tests::kernel::{Action, Kernel, Run, UPLINK_IFINDEX, macs, slot};
use fairlead_tests::oracle::{Drop, Expected, Oracle, SourcePort, Verdict};
use fairlead_tests::packet::{Body, IcmpError, Ip, Packet, flag, fragments, protocol};
use proxy_ebpf::abi::{Flow, VipFlow, pin};
use proxy_ebpf::addr::{FlowKey, V4, V6};
use proxy_ebpf::event::Counter;

use crate::apply::apply;
use crate::node::endpoint;

pub(crate) struct World {
    pub(crate) kernel: Kernel,
    pub(crate) oracle: Oracle,
    compiler: Compiler,
    batch: Batch,
}

impl World {
    /// A node with [`LOCAL_PODS`] pods attached and nothing known of a cluster.
    pub(crate) fn new(sizes: &[(&'static str, u32)]) -> Self {
        let mut kernel = Kernel::load(fairlead_proxy::OBJECT, LOCAL_PODS, sizes);
        for index in 0..LOCAL_PODS {
            kernel.set_endpoint(slot(index), endpoint(index));
        }
        Self {
            kernel,
            oracle: Oracle::new(Cluster::default()),
            compiler: Compiler::new(LOCAL_NODE),
            batch: Batch::default(),
        }
    }

    /// Another cluster, with no packet sent yet.
    pub(crate) fn restart(&mut self, cluster: Cluster) {
        self.compile(&cluster);
        self.oracle = Oracle::new(cluster);
        self.kernel.clear::<FlowKey<V4>, Flow<V4>>(pin::FLOWS_V4);
        self.kernel.clear::<FlowKey<V6>, Flow<V6>>(pin::FLOWS_V6);
        self.kernel
            .clear::<FlowKey<V4>, VipFlow<V4>>(pin::VIP_FLOWS_V4);
        self.kernel
            .clear::<FlowKey<V6>, VipFlow<V6>>(pin::VIP_FLOWS_V6);
    }

    /// The cluster changes, connections stay.
    pub(crate) fn change(&mut self, cluster: Cluster) {
        self.compile(&cluster);
        self.oracle.change(cluster);
    }

    fn compile(&mut self, cluster: &Cluster) {
        let documents = cluster.manifests().into_iter().map(|value| Document {
            origin: "generated".into(),
            value,
        });
        let batch = Batch::read(documents, Unknown::Reject);
        assert!(batch.rejected.is_empty(), "{:?}", batch.rejected);
        let mut inputs: Vec<Input> = batch
            .since(&self.batch)
            .into_iter()
            .map(Input::Object)
            .collect();
        self.batch = batch;
        for (index, pod) in cluster.pods.iter().filter(|pod| pod.is_local()).enumerate() {
            let attachment = Attachment {
                pod: Some(ObjectName::new(&pod.namespace, &pod.name)),
                ips: pod.ips.clone(),
                starts_open: false,
            };
            inputs.push(Input::Attach {
                slot: slot(index),
                attachment,
            });
        }
        loop {
            let update = self.compiler.update(inputs.drain(..));
            for write in &update.writes {
                apply(&mut self.kernel, write);
            }
            if !update.again {
                break;
            }
        }
        let problems = self.compiler.problems();
        assert!(problems.is_empty(), "{problems:?}");
    }

    /// Sends a packet through the programs; what came out, or how it differs
    /// from everything that would be right.
    pub(crate) fn step(&mut self, step: &Step) -> Result<Option<Sent>, String> {
        let expected = self.expected(step);
        let frame = Self::frame(step, &step.ip).encode();
        let run = self.run(step.entry, &frame);
        let found = expected
            .iter()
            .find_map(|one| fits(step, one, &run).map(|ip| (one, ip)));
        let Some((right, ip)) = found else {
            return Err(self.difference(step, &expected, &run));
        };
        let port = ip.as_ref().and_then(Ip::ports).map(|(source, _)| source);
        self.oracle.saw(right, port);
        Ok(ip.map(|ip| Sent { ip }))
    }

    /// As [`World::step`], the packet cut into fragments of `size` bytes.
    pub(crate) fn step_in_pieces(
        &mut self,
        step: &Step,
        id: u32,
        size: usize,
    ) -> Result<(), String> {
        let expected = self.expected(step);
        let whole = Self::frame(step, &step.ip);
        let runs: Vec<Run> = fragments(&whole, id, size)
            .iter()
            .map(|piece| self.run(step.entry, &piece.encode()))
            .collect();
        let found = expected
            .iter()
            .find_map(|one| fits_in_pieces(step, one, &runs).map(|ip| (one, ip)));
        let Some((right, ip)) = found else {
            return Err(format!(
                "{} pieces: {}",
                runs.len(),
                self.difference(step, &expected, &runs[0])
            ));
        };
        let port = ip.as_ref().and_then(Ip::ports).map(|(source, _)| source);
        self.oracle.saw(right, port);
        Ok(())
    }

    fn expected(&self, step: &Step) -> Vec<Expected> {
        let own = |pod| [pod_ip(false, true, pod), pod_ip(true, true, pod)];
        match step.entry {
            Entry::Pod(pod) => self.oracle.from_pod(&own(pod), true, &step.ip),
            Entry::WrongMac(pod) => self.oracle.from_pod(&own(pod), false, &step.ip),
            Entry::Outside { .. } => self.oracle.to_pod(false, &step.ip),
            Entry::Host(_) => self.oracle.to_pod(true, &step.ip),
        }
    }

    fn frame(step: &Step, ip: &Ip) -> Packet {
        let (src, dst) = match step.entry {
            Entry::Pod(pod) => macs(pod),
            Entry::WrongMac(pod) => (macs(pod + 1).0, macs(pod).1),
            Entry::Outside { to } | Entry::Host(to) => {
                let (mac, gateway_mac) = macs(to);
                (gateway_mac, mac)
            }
        };
        Packet::new(src, dst, ip.clone())
    }

    fn run(&mut self, entry: Entry, frame: &[u8]) -> Run {
        match entry {
            Entry::Pod(pod) | Entry::WrongMac(pod) => self.kernel.from_pod(pod, frame),
            Entry::Outside { to } => self.kernel.to_pod(to, frame, UPLINK_IFINDEX),
            Entry::Host(to) => self.kernel.to_pod(to, frame, 0),
        }
    }

    fn difference(&self, step: &Step, expected: &[Expected], run: &Run) -> String {
        use std::fmt::Write;
        let mut text = format!("{:?}: {:?}\nright would be:\n", step.entry, step.ip);
        for one in expected {
            writeln!(text, "  {:?} {:?}", one.verdict, one.ip).unwrap();
        }
        let seen = Packet::decode(&run.frame);
        writeln!(
            text,
            "seen: {:?}, counted {:?}, {seen:?}",
            run.action, run.counted
        )
        .unwrap();
        for end in [step.ip.src, step.ip.dst] {
            if let Some(pod) = self.oracle.cluster().pod_at(end) {
                writeln!(text, "{end}: {pod:?}").unwrap();
            }
        }
        for policy in &self.oracle.cluster().policies {
            writeln!(text, "{}", policy.manifest()).unwrap();
        }
        text
    }
}

/// The packet as it went on, `None` if it did not; or `None` if the outcome differs.
#[expect(
    clippy::option_option,
    reason = "differs, or stopped as expected, or went on"
)]
fn fits(step: &Step, expected: &Expected, run: &Run) -> Option<Option<Ip>> {
    match expected.verdict {
        Verdict::Drop(reason) => {
            (run.action == Action::Drop && run.counted == [counter(reason)]).then_some(None)
        }
        Verdict::Reject => rejected(&step.ip, false, run).then_some(None),
        Verdict::Deliver(_) | Verdict::Pass => {
            goes_on(step, expected, run)?;
            let seen = Packet::decode(&run.frame).ok()?;
            same(expected, &seen.ip).then_some(Some(seen.ip))
        }
    }
}

#[expect(clippy::option_option, reason = "as for `fits`")]
fn fits_in_pieces(step: &Step, expected: &Expected, runs: &[Run]) -> Option<Option<Ip>> {
    match expected.verdict {
        // Of a dropped first piece the later ones may be unknown, or dropped like it.
        Verdict::Drop(_) => runs
            .iter()
            .all(|run| run.action == Action::Drop)
            .then_some(None),
        Verdict::Reject => rejected(&step.ip, true, &runs[0]).then_some(None),
        Verdict::Deliver(_) | Verdict::Pass => {
            let mut pieces = Vec::new();
            for run in runs {
                goes_on(step, expected, run)?;
                pieces.push(Packet::decode(&run.frame).ok()?);
            }
            let seen = Packet::reassemble(&pieces).ok()?;
            same(expected, &seen.ip).then_some(Some(seen.ip))
        }
    }
}

/// Action, count and MAC addresses of a packet that goes on.
fn goes_on(step: &Step, expected: &Expected, run: &Run) -> Option<()> {
    let inward = matches!(step.entry, Entry::Outside { .. } | Entry::Host(_));
    let redirected = matches!(expected.verdict, Verdict::Deliver(_)) && !inward;
    let action = if redirected {
        Action::Redirect
    } else {
        Action::Pass
    };
    let counted_right = run.counted.iter().all(|one| *one == Counter::FlowsOpened);
    let macs_right = match expected.verdict {
        Verdict::Deliver(ip) if redirected => {
            let pod = (0..LOCAL_PODS).find(|pod| own(*pod).contains(&ip))?;
            let (mac, gateway_mac) = macs(pod);
            run.frame[..6] == mac && run.frame[6..12] == gateway_mac
        }
        _ => true,
    };
    (run.action == action && counted_right && macs_right).then_some(())
}

fn own(pod: usize) -> [IpAddr; 2] {
    [pod_ip(false, true, pod), pod_ip(true, true, pod)]
}

/// The packet is the expected one, but for a source port that had to be another.
fn same(expected: &Expected, seen: &Ip) -> bool {
    let Some(mut wanted) = expected.ip.clone() else {
        return false;
    };
    if expected.source_port != SourcePort::Kept {
        let (Some((source, _)), Some((taken, destination))) = (seen.ports(), wanted.ports()) else {
            return false;
        };
        if source == taken && expected.source_port == SourcePort::Another {
            return false;
        }
        wanted.set_ports(source, destination);
    }
    truncated(&wanted) == truncated(seen)
}

/// What of a packet can be compared: inside an ICMP error the quotation's
/// transport checksum and length are its first sender's.
fn truncated(ip: &Ip) -> Ip {
    let mut ip = ip.clone();
    if let Body::Error { inner, .. } = &mut ip.body
        && let Body::Udp { checksum, .. } = &mut inner.body
    {
        *checksum = true;
    }
    ip
}

fn counter(reason: Drop) -> Counter {
    match reason {
        Drop::Egress => Counter::PolicyEgress,
        Drop::Ingress => Counter::PolicyIngress,
        Drop::SpoofedMac => Counter::SpoofedMac,
        Drop::SpoofedAddress => Counter::SpoofedAddress,
        Drop::FragmentUnknown => Counter::FragmentUnknown,
        Drop::NoLocalEndpoint => Counter::ServiceWithoutLocalEndpoint,
        Drop::UnrelatedError => Counter::UnrelatedError,
    }
}

/// Whether the sender was told; what may not be answered is dropped instead.
fn rejected(sent: &Ip, cut: bool, run: &Run) -> bool {
    let is_icmp = [protocol::ICMP, protocol::ICMPV6].contains(&sent.protocol());
    let tcp = sent.protocol() == protocol::TCP;
    let unanswerable = is_icmp
        || sent.tcp_flags() & flag::RST != 0
        || !(tcp || sent.options.is_empty() && sent.extensions.is_empty())
        || (cut && sent.is_v6());
    if unanswerable {
        return run.action == Action::Drop && run.counted == [Counter::NotRejectable];
    }
    let Ok(answer) = Packet::decode(&run.frame) else {
        return false;
    };
    let ip = &answer.ip;
    let addressed = ip.src == sent.dst && ip.dst == sent.src;
    let said = match &ip.body {
        Body::Tcp {
            sport,
            dport,
            flags,
            ..
        } => tcp && flags & flag::RST != 0 && sent.ports() == Some((*dport, *sport)),
        Body::Error {
            error: IcmpError::PortUnreachable,
            inner,
        } => {
            !tcp && (inner.src, inner.dst) == (sent.src, sent.dst) && {
                // SCTP's 8 quoted bytes are not a whole header.
                inner.ports().is_none() || inner.ports() == sent.ports()
            }
        }
        _ => false,
    };
    run.action == Action::Redirect && run.counted == [Counter::Rejected] && addressed && said
}
