//! The real programs over private maps, fed with packets by
//! `BPF_PROG_TEST_RUN`: what a node would do, without a node.
//!
//! Nothing is pinned or attached, and no packet leaves: the kernel runs a
//! program on a buffer and says what it returned.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use aya::programs::{Program, ProgramError, SchedClassifier, TestRun, TestRunOptions};
use proxy_ebpf::abi::{Address, Endpoint, kind, pin};
use proxy_ebpf::addr::{BePort, Tuple, V4, V6};
use proxy_ebpf::event::{Counter, Hook};
use thiserror::Error;

use super::frame::{self, Opening};
use super::load::{self, LoadError, Loaded};
use super::map::Maps;
use super::write::{self, WriteError};
use crate::compile::{Compiler, Tables, Write};
use crate::explain::Packet;
use crate::trial::Kernel;

/// The loopback interface: the one that a fresh network namespace has, and the
/// one that test runs of packets come in by.
const LOOPBACK: u32 = 1;

/// The slot of the endpoint that sends at the moment, found by [`LOOPBACK`].
const SENDER: u32 = 1;

/// The first slot for endpoints: no interface number leads to it by chance.
pub const SLOT_FIRST: u32 = 16;

/// From a trial's slots, which begin with 1, to the rig's.
const SHIFT: u32 = SLOT_FIRST - 1;

/// Interface numbers of endpoints that do not send; no such interface exists.
const IFINDEX_BASE: u32 = 1 << 20;

/// `struct __sk_buff` of include/uapi/linux/bpf.h: its size, and where
/// `ingress_ifindex` is.
const SKB_BYTES: usize = 192;
const SKB_INGRESS_IFINDEX: usize = 36;

/// `TC_ACT_SHOT`.
const SHOT: u32 = 2;

#[derive(Debug, Error)]
pub enum RigError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("the kernel did not run {program} on a packet")]
    Run {
        program: &'static str,
        #[source]
        source: ProgramError,
    },
    #[error("cannot use the maps of the test")]
    Maps(#[from] io::Error),
    #[error("{from} and {to} are of different address families")]
    Families { from: IpAddr, to: IpAddr },
    #[error("the slot {slot} has no endpoint")]
    NoEndpoint { slot: u32 },
}

/// What the programs did with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Delivered to a pod, or handed to the host's network stack.
    Passed,
    Dropped(Counter),
    /// Answered with RST or ICMP: a Service without endpoints.
    Rejected,
}

/// The loaded programs and their maps.
#[derive(Debug)]
pub struct Rig {
    loaded: Loaded,
    maps: Maps,
    next_port: u16,
}

impl Rig {
    /// Loads `object`. Needs the rights to load programs, nothing else.
    pub fn new(object: &[u8]) -> Result<Self, RigError> {
        let loaded = load::load(object, None, &BTreeMap::new())?;
        let maps = Maps::open(&loaded)?;
        Ok(Self {
            loaded,
            maps,
            next_port: 0,
        })
    }

    /// Puts an endpoint into a slot, as the CNI plugin would: closed, with an
    /// address and MACs of its own.
    pub fn add_endpoint(&self, slot: u32, ips: &[IpAddr]) -> Result<(), RigError> {
        let mut endpoint = Endpoint {
            ifindex: IFINDEX_BASE + slot,
            mac: mac(2, slot),
            gateway_mac: mac(6, slot),
            ..Endpoint::default()
        };
        for ip in ips {
            match ip {
                IpAddr::V4(ip) => endpoint.v4 = V4::new(ip.octets()),
                IpAddr::V6(ip) => endpoint.v6 = V6::new(ip.octets()),
            }
        }
        Ok(self.maps.endpoints.set(&slot, &endpoint)?)
    }

    /// Carries out the compilers' writes.
    pub fn apply(&self, writes: &[Write]) -> Result<(), RigError> {
        Ok(write::apply(&self.maps, writes, 0)?)
    }

    /// What becomes of the first packet of a connection that the endpoint in
    /// `slot` opens. Leaves no flow behind.
    pub fn send(
        &mut self,
        slot: u32,
        from: IpAddr,
        to: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Result<Outcome, RigError> {
        self.open(true, slot, (from, to), protocol, port)
    }

    /// What becomes of the first packet of a connection from outside this node
    /// to the endpoint in `slot`.
    pub fn receive(
        &mut self,
        slot: u32,
        from: IpAddr,
        to: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Result<Outcome, RigError> {
        self.open(false, slot, (from, to), protocol, port)
    }

    /// Runs the program of a pod's interface on the first packet of a
    /// connection, `outgoing` from the pod or coming in to it. The
    /// endpoint lends its place to the loopback interface for the time: a test
    /// run takes no other interface.
    fn open(
        &mut self,
        outgoing: bool,
        slot: u32,
        (from, to): (IpAddr, IpAddr),
        protocol: u8,
        port: u16,
    ) -> Result<Outcome, RigError> {
        let endpoint = self.endpoint(slot)?;
        let (pod, gateway) = (endpoint.mac, endpoint.gateway_mac);
        let (program, hook, source_mac, destination_mac) = if outgoing {
            (pin::POD_OUT, Hook::PodOut, pod, gateway)
        } else {
            (pin::POD_IN, Hook::PodIn, gateway, pod)
        };
        let opening = Opening {
            from,
            to,
            protocol,
            source_port: self.source_port(),
            port,
            source_mac,
            destination_mac,
        };
        let lent = Endpoint {
            ifindex: LOOPBACK,
            ..endpoint
        };
        self.maps.endpoints.set(&SENDER, &lent)?;
        let outcome = self.run(program, hook, &opening);
        self.maps.endpoints.set(&SENDER, &Endpoint::default())?;
        outcome
    }

    /// Undoes what compilers and rig disagree on: the rig's own slots come first.
    fn shift(write: Write) -> Write {
        match write {
            Write::EndpointClasses { slot, v4, v6 } => Write::EndpointClasses {
                slot: slot + SHIFT,
                v4,
                v6,
            },
            Write::EndpointSets {
                slot,
                ingress,
                egress,
            } => Write::EndpointSets {
                slot: slot + SHIFT,
                ingress,
                egress,
            },
            Write::Address(ip, Some(address)) if address.kind == kind::LOCAL_POD => {
                let slot = address.slot + SHIFT;
                Write::Address(ip, Some(Address { slot, ..address }))
            }
            other => other,
        }
    }

    fn endpoint(&self, slot: u32) -> Result<Endpoint, RigError> {
        let found = self.maps.endpoints.get(&slot)?;
        found
            .filter(|endpoint| endpoint.ifindex != 0)
            .ok_or(RigError::NoEndpoint { slot })
    }

    /// Another one each time: a connection is never taken for an earlier one.
    fn source_port(&mut self) -> u16 {
        self.next_port = self.next_port.wrapping_add(1);
        0x8000 | self.next_port
    }

    fn run(
        &self,
        program: &'static str,
        hook: Hook,
        opening: &Opening,
    ) -> Result<Outcome, RigError> {
        let frame = frame::build(opening).ok_or(RigError::Families {
            from: opening.from,
            to: opening.to,
        })?;
        let before = self.counters(hook)?;
        let action = self.run_program(program, &frame)?;
        self.forget(opening)?;
        let after = self.counters(hook)?;
        let counted = before
            .iter()
            .zip(&after)
            .find(|((_, before), (_, after))| after > before);
        Ok(match counted {
            Some(((Counter::Rejected, _), _)) => Outcome::Rejected,
            Some(((counter, _), _)) => Outcome::Dropped(*counter),
            None if action == SHOT => Outcome::Dropped(Counter::Malformed),
            None => Outcome::Passed,
        })
    }

    fn run_program(&self, name: &'static str, frame: &[u8]) -> Result<u32, RigError> {
        let failed = |source| RigError::Run {
            program: name,
            source,
        };
        let program: &Program = self
            .loaded
            .ebpf
            .program(name)
            .ok_or(LoadError::ProgramMissing { name })?;
        let program: &SchedClassifier = program.try_into().map_err(failed)?;
        let mut out = vec![0; frame.len() + 256];
        // Came in by an interface: what the host itself sends is not judged.
        let mut context = [0; SKB_BYTES];
        context[SKB_INGRESS_IFINDEX..][..4].copy_from_slice(&LOOPBACK.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        Ok(program.test_run(options).map_err(failed)?.return_value)
    }

    /// Drops and rejections so far.
    fn counters(&self, hook: Hook) -> io::Result<Vec<(Counter, u64)>> {
        let counters = Counter::ALL
            .iter()
            .filter(|c| c.is_drop() || **c == Counter::Rejected);
        counters
            .map(|counter| Ok((*counter, self.maps.counters.sum(counter.slot(hook))?)))
            .collect()
    }

    /// Removes the flow that the packet opened, if it did.
    fn forget(&self, opening: &Opening) -> io::Result<()> {
        let (sport, dport) = (BePort::new(opening.source_port), BePort::new(opening.port));
        match (opening.from, opening.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let tuple = Tuple {
                    src: V4::new(from.octets()),
                    dst: V4::new(to.octets()),
                    sport,
                    dport,
                    proto: opening.protocol,
                };
                self.maps.v4.flows.remove(&tuple.canonical().0)?;
                self.maps.v4.vip_flows.remove(&tuple.canonical().0)?;
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let tuple = Tuple {
                    src: V6::new(from.octets()),
                    dst: V6::new(to.octets()),
                    sport,
                    dport,
                    proto: opening.protocol,
                };
                self.maps.v6.flows.remove(&tuple.canonical().0)?;
                self.maps.v6.vip_flows.remove(&tuple.canonical().0)?;
            }
            _ => {}
        }
        Ok(())
    }
}

impl Kernel for Rig {
    type Error = RigError;

    fn load(&mut self, compiler: &Compiler) -> Result<(), RigError> {
        for (slot, attachment) in compiler.attachments() {
            self.add_endpoint(slot + SHIFT, &attachment.ips)?;
        }
        let writes = compiler.tables().writes_since(&Tables::default());
        let writes: Vec<_> = writes.into_iter().map(Self::shift).collect();
        self.apply(&writes)
    }

    fn send(
        &mut self,
        packet: Packet,
        from_slot: Option<u32>,
        to_slot: Option<u32>,
    ) -> Result<bool, RigError> {
        let Packet {
            from,
            to,
            protocol,
            port,
        } = packet;
        let outcome = match (from_slot, to_slot) {
            (Some(slot), _) => self.send(slot + SHIFT, from, to, protocol, port)?,
            (None, Some(slot)) => self.receive(slot + SHIFT, from, to, protocol, port)?,
            // Nobody's pod is concerned.
            (None, None) => Outcome::Passed,
        };
        Ok(outcome == Outcome::Passed)
    }
}

/// A locally administered address.
fn mac(prefix: u8, slot: u32) -> [u8; 6] {
    let [a, b, c, d] = slot.to_be_bytes();
    [prefix, 0, a, b, c, d]
}
