//! A node with pods and nothing else: no policies, no Services.

use std::net::IpAddr;

use fairlead_tests::generate::pod_ip;
use fairlead_tests::kernel::{Kernel, ifindex, macs, slot};
use fairlead_tests::packet::{Body, Ip, Packet};
use proxy_ebpf::abi::{Address, Endpoint, kind, pin};
use proxy_ebpf::addr::{V4, V6};

pub(crate) fn v4(ip: IpAddr) -> V4 {
    match ip {
        IpAddr::V4(ip) => V4::new(ip.octets()),
        IpAddr::V6(_) => panic!("{ip} is not IPv4"),
    }
}

pub(crate) fn v6(ip: IpAddr) -> V6 {
    match ip {
        IpAddr::V6(ip) => V6::new(ip.octets()),
        IpAddr::V4(_) => panic!("{ip} is not IPv6"),
    }
}

/// What the CNI plugin writes of pod number `index`.
pub(crate) fn endpoint(index: usize) -> Endpoint {
    let (mac, gateway_mac) = macs(index);
    Endpoint {
        ifindex: ifindex(index),
        v4: v4(pod_ip(false, true, index)),
        v6: v6(pod_ip(true, true, index)),
        mac,
        gateway_mac,
        ..Endpoint::default()
    }
}

/// Loads the object with `pods` pods that know each other.
pub(crate) fn open(pods: usize) -> Kernel {
    let mut kernel = Kernel::load(fairlead_proxy::OBJECT, pods, &[]);
    for index in 0..pods {
        kernel.set_endpoint(slot(index), endpoint(index));
        let address = Address {
            class: 0,
            slot: slot(index),
            kind: kind::LOCAL_POD,
        };
        let (ip4, ip6) = (
            v4(pod_ip(false, true, index)),
            v6(pod_ip(true, true, index)),
        );
        kernel
            .hash(pin::ADDRESSES_V4)
            .insert(ip4, address, 0)
            .unwrap();
        kernel
            .hash(pin::ADDRESSES_V6)
            .insert(ip6, address, 0)
            .unwrap();
    }
    kernel
}

/// A packet as pod number `pod` sends it.
pub(crate) fn sent_by(pod: usize, dst: IpAddr, body: Body) -> Packet {
    let (mac, gateway_mac) = macs(pod);
    Packet::new(
        mac,
        gateway_mac,
        Ip::new(pod_ip(dst.is_ipv6(), true, pod), dst, body),
    )
}
