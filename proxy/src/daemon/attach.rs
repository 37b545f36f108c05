//! The programs where they belong: on the sockets' cgroup and on every pod's
//! host interface, whoever took them away.

use std::io;
use std::time::SystemTime;

use proxy_ebpf::abi::pin;
use proxy_ebpf::record::Hooks;
use tracing::{debug, error, info, warn};

use super::Daemon;
use super::core::Core;
use crate::netlink::{Filter, Side};

/// The programs on a pod's host interface, and the sides that filters put them on.
const FILTERS: [(&str, Side); 2] = [(pin::POD_OUT, Side::Ingress), (pin::POD_IN, Side::Egress)];

impl Daemon {
    /// Attaches what should be attached and is not; `filters`: looks for those
    /// too. What had to be attached.
    pub(super) async fn attach(&mut self, filters: bool) -> Vec<String> {
        let (mut made, mut problem) = tokio::task::block_in_place(|| self.core.attach_links());
        if filters {
            problem = self.attach_filters(&mut made).await.or(problem);
        }
        if let Some(problem) = &problem {
            error!(%problem, "cannot attach a program");
        }
        // What filters lack is not forgotten by a look at links alone.
        if filters || problem.is_some() {
            self.core.unattached = problem.map(|text| format!("cannot attach a program: {text}"));
        }
        if !made.is_empty() {
            info!(hooks = ?made, "programs attached");
        }
        made
    }

    /// Puts back what is missing; counts it.
    pub(super) async fn repair_hooks(&mut self, filters: bool) {
        let made = self.attach(filters).await;
        if !made.is_empty() {
            let count = u64::try_from(made.len()).unwrap_or(u64::MAX);
            self.core.count_repair("link", count);
        }
    }

    /// Why one could not be attached; the others are all the same.
    async fn attach_filters(&self, made: &mut Vec<String>) -> Option<String> {
        let mut problem = None;
        for (name, ifindex) in self.core.settled(Hooks::Filters) {
            for (program, side) in FILTERS {
                match self.attach_filter(ifindex, program, side).await {
                    Ok(true) => made.push(format!("{name}-{program}")),
                    Ok(false) => {}
                    Err(error) => problem = Some(format!("{program} to {name}: {error}")),
                }
            }
        }
        problem
    }

    async fn attach_filter(
        &self,
        ifindex: u32,
        name: &'static str,
        side: Side,
    ) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
        let (program, id) = self.core.datapath.program(name)?;
        let filter = Filter {
            side,
            name,
            program,
            id,
        };
        Ok(self.netlink.ensure_filter(ifindex, &filter).await?)
    }
}

impl Core {
    /// Names and numbers of host interfaces that the plugin has finished with.
    fn settled(&self, hooks: Hooks) -> Vec<(String, u32)> {
        let now = SystemTime::now();
        let live = self.live();
        let settled = live
            .values()
            .filter(|stored| stored.record.hooks == hooks && stored.is_settled(now));
        settled
            .map(|stored| {
                (
                    stored.record.host_ifname.clone(),
                    stored.record.host_ifindex,
                )
            })
            .collect()
    }

    /// What had to be linked, and why something could not be.
    fn attach_links(&self) -> (Vec<String>, Option<String>) {
        let mut made = Vec::new();
        let mut problem = None;
        let mut note = |result: io::Result<Vec<String>>| match result {
            Ok(links) => made.extend(links),
            Err(error) => problem = Some(error.to_string()),
        };
        note(self.datapath.ensure_socket_links());
        for (name, ifindex) in self.settled(Hooks::Links) {
            note(self.datapath.ensure_pod_links(&name, ifindex));
        }
        match self.datapath.remove_dead_links() {
            Ok(links) if !links.is_empty() => debug!(?links, "links of gone interfaces removed"),
            Ok(_) => {}
            Err(error) => warn!(%error, "cannot look through the pinned links"),
        }
        (made, problem)
    }
}
