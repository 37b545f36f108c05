//! One hollow node: its objects and its addresses. Pure but for the clock.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::HollowArgs;
use crate::controller::runtime::stamp;

/// Pods get their addresses from 100.64.0.0/10, a /24 per node.
const PODS_BASE: u32 = u32::from_be_bytes([100, 64, 0, 0]);
/// Nodes have theirs from 198.18.0.0/15, the range for tests.
const NODES_BASE: u32 = u32::from_be_bytes([198, 18, 0, 0]);

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    index: u32,
    zone: u32,
    /// Addresses in use, as a bit set of 256.
    slots: [u64; 4],
}

impl Node {
    pub(super) fn new(args: &HollowArgs, index: u32) -> Self {
        Self {
            name: format!("{}{index}", args.name_prefix),
            index,
            zone: index % args.zones,
            // The network's own address and the gateway are taken.
            slots: [0b11, 0, 0, 0],
        }
    }

    /// A free address's slot; the last one is shared when all are taken.
    pub(super) fn take(&mut self) -> u8 {
        for (word, bits) in (0_u8..).zip(&mut self.slots) {
            let free = bits.trailing_ones();
            if free < 64 {
                *bits |= 1 << free;
                return word * 64 + u8::try_from(free).expect("below 64");
            }
        }
        u8::MAX
    }

    pub(super) fn free(&mut self, slot: u8) {
        if let Some(bits) = self.slots.get_mut(usize::from(slot / 64)) {
            *bits &= !(1 << (slot % 64));
        }
    }

    pub(super) fn address(&self) -> String {
        Ipv4Addr::from(NODES_BASE + self.index + 1).to_string()
    }

    pub(super) fn pod_address(&self, slot: u8) -> String {
        Ipv4Addr::from(PODS_BASE + self.index * 256 + u32::from(slot)).to_string()
    }

    pub(super) fn object(&self, args: &HollowArgs) -> Value {
        let zone = format!("zone-{}", self.zone);
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": {
                    "kubernetes.io/hostname": self.name,
                    "kubernetes.io/os": "linux",
                    "kubernetes.io/arch": "amd64",
                    "topology.kubernetes.io/zone": zone,
                    "fairlead.dev/hollow": "true",
                },
            },
            "spec": {
                "podCIDR": format!("{}/24", self.pod_address(0)),
                "podCIDRs": [format!("{}/24", self.pod_address(0))],
            },
            "status": self.status(args)["status"],
        })
    }

    pub(super) fn status(&self, args: &HollowArgs) -> Value {
        let now = stamp(Timestamp::now());
        let condition = |r#type, status, reason, message| {
            json!({
                "type": r#type,
                "status": status,
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": now,
                "lastTransitionTime": now,
            })
        };
        let resources = json!({
            "cpu": args.cpu,
            "memory": args.memory,
            "ephemeral-storage": "100Gi",
            "pods": args.pods.to_string(),
        });
        json!({"status": {
            "capacity": resources,
            "allocatable": resources,
            "addresses": [
                {"type": "InternalIP", "address": self.address()},
                {"type": "Hostname", "address": self.name},
            ],
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                condition("Ready", "True", "KubeletReady", "hollow node is ready"),
            ],
            "nodeInfo": {
                "machineID": self.name, "systemUUID": self.name, "bootID": self.name,
                "kernelVersion": "hollow", "osImage": "hollow", "operatingSystem": "linux",
                "architecture": "amd64", "containerRuntimeVersion": "hollow://1",
                "kubeletVersion": "v1.34.0", "kubeProxyVersion": "v1.34.0",
            },
        }})
    }

    pub(super) fn lease(&self) -> Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name, "namespace": "kube-node-lease"},
            "spec": {
                "holderIdentity": self.name,
                "leaseDurationSeconds": 40,
                "renewTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_used_once_and_come_back() {
        let mut node = Node {
            name: "n".into(),
            index: 3,
            zone: 0,
            slots: [0b11, 0, 0, 0],
        };
        let taken: Vec<u8> = (0..254).map(|_| node.take()).collect();
        let mut unique = taken.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), 254);
        assert_eq!(node.pod_address(taken[0]), "100.64.3.2");
        node.free(100);
        assert_eq!(node.take(), 100);
    }
}
