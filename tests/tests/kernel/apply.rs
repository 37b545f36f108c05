//! Compiled writes into the object's private maps, one by one.

use std::net::IpAddr;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, MapError};
use fairlead_proxy::compile::Write;
use fairlead_proxy::compile::tables::{self as compiled, BackendKey};
use fairlead_tests::kernel::Kernel;
use proxy_ebpf::abi::{
    BACKEND_LIVE, Backend, PolicySet, PortKey, RANGE_PREFIX_BASE, Service, ServiceKey, Settings,
    pin, setting,
};
use proxy_ebpf::addr::BePort;

use crate::node::{v4, v6};

/// Performs one write.
pub(crate) fn apply(kernel: &mut Kernel, write: &Write) {
    match *write {
        Write::Set(index, set) => kernel.set_array::<PolicySet>(pin::POLICY_SETS, index, set),
        Write::Peer(key, bits) => hash(kernel, pin::POLICY_PEERS, key, bits),
        Write::Port(key, class) => hash(kernel, pin::POLICY_PORTS, key, class),
        Write::Range(key, class) => {
            let data = PortKey {
                set: key.set,
                proto: key.proto,
                port: BePort::new(key.port),
            };
            let bits = RANGE_PREFIX_BASE + u32::from(key.bits);
            trie(kernel, pin::POLICY_RANGES, &Key::new(bits, data), class);
        }
        Write::Backend(key, backend) => set_backend(kernel, key, backend),
        Write::Slot(index, id) => kernel.set_array(pin::SLOTS, index, id),
        Write::Service(key, service) => set_service(kernel, key, service),
        Write::Address(ip, address) if ip.is_ipv6() => {
            hash(kernel, pin::ADDRESSES_V6, v6(ip), address);
        }
        Write::Address(ip, address) => hash(kernel, pin::ADDRESSES_V4, v4(ip), address),
        Write::Cidr(cidr, class) => {
            let bits = u32::from(cidr.length());
            match cidr.address() {
                ip @ IpAddr::V4(_) => trie(kernel, pin::CIDRS_V4, &Key::new(bits, v4(ip)), class),
                ip @ IpAddr::V6(_) => trie(kernel, pin::CIDRS_V6, &Key::new(bits, v6(ip)), class),
            }
        }
        Write::EndpointClasses { slot, v4, v6 } => {
            let mut endpoint = kernel.endpoint(slot);
            (endpoint.class_v4, endpoint.class_v6) = (v4, v6);
            kernel.set_endpoint(slot, endpoint);
        }
        Write::EndpointSets {
            slot,
            ingress,
            egress,
        } => {
            let mut endpoint = kernel.endpoint(slot);
            (endpoint.ingress_set, endpoint.egress_set) = (ingress, egress);
            kernel.set_endpoint(slot, endpoint);
        }
        Write::Decision(decision) => {
            let mut flags = 0;
            if decision.has_cidrs_v4 {
                flags |= setting::CIDRS_V4;
            }
            if decision.has_cidrs_v6 {
                flags |= setting::CIDRS_V6;
            }
            let settings = Settings {
                generation: decision.generation,
                flags,
            };
            kernel.set_array(pin::SETTINGS, 0, settings);
        }
        // No program runs while this one writes.
        Write::Grace => {}
    }
}

fn set_backend(kernel: &mut Kernel, key: BackendKey, backend: compiled::Backend) {
    let flags = if backend.is_live { BACKEND_LIVE } else { 0 };
    let (port, generation) = (BePort::new(backend.port), backend.generation);
    if key.is_v6 {
        let value = Backend {
            address: v6(backend.address),
            port,
            flags,
            generation,
        };
        kernel.set_array(pin::BACKENDS_V6, key.id, value);
    } else {
        let value = Backend {
            address: v4(backend.address),
            port,
            flags,
            generation,
        };
        kernel.set_array(pin::BACKENDS_V4, key.id, value);
    }
}

fn set_service(kernel: &mut Kernel, key: compiled::ServiceKey, service: Option<Service>) {
    let (port, proto) = (BePort::new(key.port), key.proto);
    if key.vip.is_ipv6() {
        let key = ServiceKey {
            vip: v6(key.vip),
            port,
            proto,
            scope: 0,
        };
        hash(kernel, pin::SERVICES_V6, key, service);
    } else {
        let key = ServiceKey {
            vip: v4(key.vip),
            port,
            proto,
            scope: 0,
        };
        hash(kernel, pin::SERVICES_V4, key, service);
    }
}

fn hash<K: aya::Pod, V: aya::Pod>(kernel: &mut Kernel, name: &str, key: K, value: Option<V>) {
    let mut map = kernel.hash::<K, V>(name);
    match value {
        Some(value) => map.insert(key, value, 0).unwrap(),
        None => absent_is_fine(map.remove(&key)),
    }
}

fn trie<K: aya::Pod>(kernel: &mut Kernel, name: &str, key: &Key<K>, value: Option<u32>) {
    let map = kernel
        .ebpf()
        .map_mut(name)
        .unwrap_or_else(|| panic!("no map {name}"));
    let mut trie: LpmTrie<&mut MapData, K, u32> = LpmTrie::try_from(map).unwrap();
    match value {
        Some(value) => trie.insert(key, value, 0).unwrap(),
        None => absent_is_fine(trie.remove(key)),
    }
}

fn absent_is_fine(removed: Result<(), MapError>) {
    match removed {
        Ok(()) | Err(MapError::KeyNotFound) => {}
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => panic!("{error:?}"),
    }
}
