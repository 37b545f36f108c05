//! Finding what others changed, and putting it back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use proxy_ebpf::abi::Endpoint;
use tracing::{info, warn};

use super::core::{Core, StepError};
use super::pods;
use crate::compile::Write;
use crate::datapath::read::{Extent, Found};
use crate::netlink::PodPath;

impl Core {
    /// Looks for what others changed in the maps and puts it back.
    pub(super) fn audit(&mut self) {
        if !self.is_synced() || !self.is_in_step() {
            self.advance();
            return;
        }
        let result = self.audit_maps();
        let result = result.map(|repaired| {
            if repaired > 0 {
                warn!(
                    elements = repaired,
                    "map contents that differed were put back"
                );
                self.count_repair("map", repaired);
            }
        });
        self.settle(result);
        self.publish(None);
    }

    fn audit_maps(&mut self) -> Result<u64, StepError> {
        let found = self.datapath.read(Extent::of(self.compiler.tables()))?;
        self.reload_records();
        // What is news to the compilers is no tampering: apply it first.
        let mut expected = found;
        let update = self.compile();
        for write in &update.writes {
            expected.tables.apply(*write);
        }
        self.follow(update)?;
        let endpoints = self.repair_endpoints(&expected)?;
        let writes = self.compiler.tables().writes_since(&expected.tables);
        self.write(&writes)?;
        let mut repaired = writes
            .iter()
            .filter(|write| **write != Write::Grace)
            .count();
        if expected.flags != self.flags {
            self.write(&[Write::Decision(self.compiler.tables().decision)])?;
            repaired += 1;
        }
        Ok(endpoints + u64::try_from(repaired).unwrap_or(u64::MAX))
    }

    /// Writes one endpoint's sets, classes and addresses whatever the kernel
    /// has: the plugin has just written its defaults over them.
    pub(super) fn rewrite_endpoint(&mut self, slot: u32) {
        if !self.is_synced() || !self.is_in_step() {
            return;
        }
        let tables = self.compiler.tables();
        let Some(policy) = tables.endpoints.get(&slot) else {
            return;
        };
        let ips = self
            .compiler
            .attachments()
            .get(&slot)
            .map(|attachment| &attachment.ips);
        let mut writes: Vec<Write> = ips
            .into_iter()
            .flatten()
            .map(|ip| Write::Address(*ip, tables.addresses.get(ip)))
            .collect();
        writes.push(Write::EndpointClasses {
            slot,
            v4: policy.class_v4,
            v6: policy.class_v6,
        });
        writes.push(Write::EndpointSets {
            slot,
            ingress: policy.ingress_set,
            egress: policy.egress_set,
        });
        let result = self.write(&writes);
        self.settle(result);
    }

    /// Clears slots without a record and writes whole endpoints that differ in
    /// what the plugin wrote.
    pub(super) fn repair_endpoints(&self, found: &Found) -> Result<u64, StepError> {
        let mut repaired = 0;
        let live = self.live();
        let now = SystemTime::now();
        for (slot, _) in found
            .endpoints
            .iter()
            .filter(|(slot, _)| !live.contains_key(slot))
        {
            self.datapath
                .maps
                .endpoints
                .set(slot, &Endpoint::default())?;
            info!(slot, "an endpoint without a record was cleared");
            repaired += 1;
        }
        let there: BTreeMap<u32, Endpoint> = found.endpoints.iter().copied().collect();
        for (slot, stored) in live.iter().filter(|(_, stored)| stored.is_settled(now)) {
            let policy = self.compiler.tables().endpoints.get(slot);
            let wanted = pods::endpoint(&stored.record, policy);
            let is = there.get(slot).copied().unwrap_or_default();
            if without_policy(is) != without_policy(wanted) {
                self.datapath.maps.endpoints.set(slot, &wanted)?;
                warn!(slot, pod = ?stored.record.pod, "an endpoint that differed was put back");
                repaired += 1;
            }
        }
        Ok(repaired)
    }

    /// The ways through the host's stack that settled endpoints must have.
    pub(super) fn wanted_paths(&self) -> BTreeSet<PodPath> {
        let now = SystemTime::now();
        let live = self.live();
        let settled = live.values().filter(|stored| stored.is_settled(now));
        settled
            .flat_map(|stored| pods::paths(&stored.record))
            .collect()
    }

    pub(super) fn count_repair(&self, what: &'static str, count: u64) {
        self.admin
            .update(|health| *health.metrics.repairs.entry(what).or_default() += count);
    }
}

/// The part of an endpoint that the plugin alone writes.
fn without_policy(endpoint: Endpoint) -> Endpoint {
    Endpoint {
        ingress_set: 0,
        egress_set: 0,
        class_v4: 0,
        class_v6: 0,
        ..endpoint
    }
}
