//! Nine pods in three namespaces, with servers in each, on one node: as
//! upstream's own policy tests have them. Built once and shared by the tests
//! that run after one another.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use fairlead_tests::cluster::{
    self, Cluster, LOCAL_NODE, NamedPort, Namespace, Policy, Protocol, labels,
};
use fairlead_tests::node::{Node, Pod};
use fairlead_tests::oracle::policy::{Side, Traffic, sides};
use fairlead_tests::traffic::{Met, Server, Transport, probe};

pub(crate) const NAMESPACES: [&str; 3] = ["x", "y", "z"];
pub(crate) const PODS: [&str; 3] = ["a", "b", "c"];
/// Served with every transport.
pub(crate) const PORTS: [u16; 2] = [80, 81];
/// How long a change may take to be in force, probes included.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// Probes at a time.
const PROBES: usize = 24;

/// One of the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) ns: &'static str,
    pub(crate) pod: &'static str,
}

impl Who {
    pub(crate) fn all() -> Vec<Self> {
        NAMESPACES
            .iter()
            .flat_map(|ns| PODS.iter().map(|pod| Self { ns, pod }))
            .collect()
    }

    /// `x/a`.
    pub(crate) fn is(self, name: &str) -> bool {
        name.split_once('/') == Some((self.ns, self.pod))
    }

    fn index(self) -> usize {
        Self::all().iter().position(|who| *who == self).unwrap()
    }

    pub(crate) fn ip(self, v6: bool) -> IpAddr {
        let host = u8::try_from(self.index() + 10).unwrap();
        if v6 {
            IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, u16::from(host)))
        } else {
            IpAddr::V4(Ipv4Addr::new(10, 244, 0, host))
        }
    }

    fn title(self) -> String {
        format!("{}/{}", self.ns, self.pod)
    }
}

pub(crate) struct Bench {
    pub(crate) cluster: Cluster,
    servers: Vec<Server>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) node: Node,
}

type Shared = Mutex<Bench>;

/// The bench, alone for the caller, without policies. It lives as long as a test
/// has it or waits for it.
pub(crate) fn with_bench(test: impl FnOnce(&mut Bench)) {
    static BENCH: OnceLock<Mutex<Weak<Shared>>> = OnceLock::new();
    let shared: Arc<Shared> = {
        let slot = BENCH.get_or_init(Mutex::default);
        let mut slot = slot
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        slot.upgrade().unwrap_or_else(|| {
            let made = Arc::new(Mutex::new(Bench::new()));
            *slot = Arc::downgrade(&made);
            made
        })
    };
    let mut bench: MutexGuard<'_, Bench> = shared
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    bench.cluster = base();
    test(&mut bench);
}

/// The pods as they are before a test changes labels.
fn base() -> Cluster {
    let namespace = |name: &str| Namespace {
        name: name.into(),
        labels: labels(&[("kubernetes.io/metadata.name", name), ("ns", name)]),
    };
    let mut ports = Vec::new();
    for protocol in Protocol::ALL {
        for number in PORTS {
            let name = format!("serve-{number}-{}", protocol.name().to_lowercase());
            ports.push(NamedPort {
                name,
                protocol,
                number,
            });
        }
    }
    Cluster {
        nodes: vec![cluster::Node {
            name: LOCAL_NODE.into(),
            addresses: ["203.0.113.1", "2001:db8:77::1"]
                .map(|ip| ip.parse().unwrap())
                .into(),
        }],
        namespaces: NAMESPACES.iter().map(|name| namespace(name)).collect(),
        pods: Who::all()
            .into_iter()
            .map(|who| cluster::Pod {
                namespace: who.ns.into(),
                name: who.pod.into(),
                labels: labels(&[("pod", who.pod)]),
                node: LOCAL_NODE.into(),
                ips: vec![who.ip(false), who.ip(true)],
                host_network: false,
                ports: ports.clone(),
            })
            .collect(),
        ..Cluster::default()
    }
}

impl Bench {
    fn new() -> Self {
        let mut node = Node::new(LOCAL_NODE);
        node.namespace
            .add_address("lo", "203.0.113.1".parse().unwrap(), 32);
        node.namespace
            .add_address("lo", "2001:db8:77::1".parse().unwrap(), 128);
        let cluster = base();
        node.apply(&cluster);
        node.start_daemon();
        let mut served = Vec::new();
        for port in PORTS {
            served.extend([
                (Transport::Tcp, port),
                (Transport::Udp, port),
                (Transport::Sctp, port),
            ]);
        }
        let (mut pods, mut servers) = (Vec::new(), Vec::new());
        for who in Who::all() {
            let pod = node.pod(who.ns, who.pod, &[who.ip(false), who.ip(true)]);
            servers.push(Server::start(&pod.namespace, &who.title(), &served));
            pods.push(pod);
        }
        Self {
            cluster,
            servers,
            pods,
            node,
        }
    }

    pub(crate) fn pod(&self, who: Who) -> &Pod {
        &self.pods[who.index()]
    }

    /// These policies and no others.
    pub(crate) fn policies(&mut self, policies: Vec<Policy>) {
        self.cluster.policies = policies;
        self.apply();
    }

    /// What `cluster` holds is what the daemon is to know.
    pub(crate) fn apply(&self) {
        self.node.apply(&self.cluster);
    }

    /// One connection.
    pub(crate) fn probe(
        &self,
        from: Who,
        to: Who,
        v6: bool,
        transport: Transport,
        port: u16,
    ) -> Met {
        let address = SocketAddr::new(to.ip(v6), port);
        probe(&self.pod(from).namespace, transport, address)
    }

    /// Every pod calls every pod: exactly those pass that `allowed` says. The
    /// expectation itself is checked against the evaluator.
    pub(crate) fn expect(
        &self,
        transport: Transport,
        port: u16,
        allowed: impl Fn(Who, Who) -> bool,
    ) {
        let pairs: Vec<(Who, Who)> = Who::all()
            .into_iter()
            .flat_map(|from| Who::all().into_iter().map(move |to| (from, to)))
            .collect();
        for (from, to) in &pairs {
            let traffic = Traffic {
                src: from.ip(false),
                dst: to.ip(false),
                protocol: match transport {
                    Transport::Tcp => 6,
                    Transport::Udp => 17,
                    Transport::Sctp => 132,
                },
                port,
            };
            let (egress, ingress) = sides(&self.cluster, &traffic);
            let by_rules = egress != Side::Denied && ingress != Side::Denied;
            let text = format!("{} to {}", from.title(), to.title());
            assert_eq!(
                allowed(*from, *to),
                by_rules,
                "the expectation is wrong for {text}"
            );
        }
        let end = Instant::now() + DEADLINE;
        let mut open = pairs;
        // The whole table must hold at once, at least once; later only what was wrong is asked again.
        while !open.is_empty() {
            open = self.wrong(&open, transport, port, &allowed);
            assert!(
                open.is_empty() || Instant::now() < end,
                "{transport:?} {port}: wrong for {}",
                open.iter()
                    .map(|(from, to)| format!("{} to {}", from.title(), to.title()))
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        }
    }

    fn wrong(
        &self,
        pairs: &[(Who, Who)],
        transport: Transport,
        port: u16,
        allowed: &impl Fn(Who, Who) -> bool,
    ) -> Vec<(Who, Who)> {
        let mut wrong = Vec::new();
        for chunk in pairs.chunks(PROBES) {
            let met: Vec<Met> = std::thread::scope(|scope| {
                let probes: Vec<_> = chunk
                    .iter()
                    .map(|(from, to)| {
                        scope.spawn(|| self.probe(*from, *to, false, transport, port))
                    })
                    .collect();
                probes
                    .into_iter()
                    .map(|probe| probe.join().unwrap())
                    .collect()
            });
            for ((from, to), met) in chunk.iter().zip(met) {
                let passed = match &met {
                    Met::Server(name) => {
                        assert_eq!(*name, to.title(), "from {}", from.title());
                        true
                    }
                    Met::Refused | Met::Unreachable | Met::Silence => false,
                };
                if passed != allowed(*from, *to) {
                    wrong.push((*from, *to));
                }
            }
        }
        wrong
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.servers.clear();
        for pod in self.pods.drain(..) {
            if !std::thread::panicking() {
                self.node.remove(pod);
            }
        }
    }
}
