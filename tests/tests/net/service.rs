//! Services of the bench: what a test needs of one, on both families.

use std::net::{IpAddr, SocketAddr};

use fairlead_tests::cluster::{Endpoint, NamedPort, Protocol, Service, ServicePort, Slice};

use crate::bench::{Bench, Who};

/// Addresses of [`front`].
pub(crate) const VIPS: [&str; 2] = ["10.96.0.50", "fd00:96::50"];

/// The Service's address of a family.
pub(crate) fn vip(v6: bool, port: u16) -> SocketAddr {
    SocketAddr::new(VIPS[usize::from(v6)].parse().unwrap(), port)
}

/// Makes [`front`] the only Service.
pub(crate) fn offer(bench: &mut Bench, backends: &[[IpAddr; 2]], ports: &[u16]) {
    bench.cluster.services = vec![front(backends, ports)];
    bench.apply();
}

/// The Service y/front: every transport of `ports`, the same at the backends,
/// which have an address of each family.
pub(crate) fn front(backends: &[[IpAddr; 2]], ports: &[u16]) -> Service {
    let (mut service_ports, mut targets) = (Vec::new(), Vec::new());
    for protocol in Protocol::ALL {
        for number in ports.iter().copied() {
            let name = format!("{}-{number}", protocol.name().to_lowercase());
            service_ports.push(ServicePort {
                name: name.clone(),
                protocol,
                number,
            });
            targets.push(NamedPort {
                name,
                protocol,
                number,
            });
        }
    }
    let endpoint = |ip: IpAddr| Endpoint {
        ip,
        ready: true,
        serving: true,
        terminating: false,
        node: None,
    };
    let slices = [false, true].map(|v6| Slice {
        v6,
        ports: targets.clone(),
        endpoints: backends
            .iter()
            .map(|ips| endpoint(ips[usize::from(v6)]))
            .collect(),
    });
    Service {
        namespace: "y".into(),
        name: "front".into(),
        ips: VIPS.iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: service_ports,
        slices: slices.into(),
        internal_local: false,
        affinity: None,
    }
}

/// Both addresses of a pod.
pub(crate) fn of(who: Who) -> [IpAddr; 2] {
    [who.ip(false), who.ip(true)]
}
