//! Backends: numbers that stand for an address and port, and say by their
//! generation when they do no longer.

use std::collections::HashMap;
use std::net::IpAddr;

use proxy_ebpf::abi::bound;

use crate::compile::alloc::Ranges;
use crate::compile::tables::{Backend, BackendKey, Tables};

/// What a backend number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Identity {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// UDP and `ClientIP` affinity remember backends: each such Service port has
    /// its own, which end when that Service has them no more. Others share: 0.
    pub(super) service: u32,
}

#[derive(Clone, Debug)]
struct Use {
    id: u32,
    ranges: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Backends {
    uses: HashMap<Identity, Use>,
    numbers_v4: Ranges,
    numbers_v6: Ranges,
}

impl Default for Backends {
    fn default() -> Self {
        // Id 0 is never used.
        Self {
            uses: HashMap::new(),
            numbers_v4: Ranges::new(1, bound::BACKENDS),
            numbers_v6: Ranges::new(1, bound::BACKENDS),
        }
    }
}

impl Backends {
    pub(super) fn settle(&mut self) {
        self.numbers_v4.settle();
        self.numbers_v6.settle();
    }

    fn numbers(&mut self, is_v6: bool) -> &mut Ranges {
        if is_v6 {
            &mut self.numbers_v6
        } else {
            &mut self.numbers_v4
        }
    }

    /// Ids found in the kernel are not handed out in this update.
    pub(super) fn reserve(&mut self, tables: &Tables) {
        let live = tables
            .backends
            .iter()
            .filter(|(_, backend)| backend.is_live);
        for (key, _) in live {
            self.numbers(key.is_v6).reserve(key.id, 1);
        }
    }

    /// A found id goes on standing for what it stood for.
    pub(super) fn adopt(&mut self, identity: Identity, id: u32) {
        let is_v6 = identity.address.is_ipv6();
        if !self.uses.contains_key(&identity) && self.numbers(is_v6).adopt(id, 1) {
            self.uses.insert(identity, Use { id, ranges: 0 });
        }
    }

    /// One more range of slots uses the backend; its id, or `None` if there is
    /// none left.
    pub(super) fn take(&mut self, identity: Identity, tables: &mut Tables) -> Option<u32> {
        let is_v6 = identity.address.is_ipv6();
        if let Some(known) = self.uses.get_mut(&identity) {
            known.ranges += 1;
            return Some(known.id);
        }
        let id = self.numbers(is_v6).take(1)?;
        self.uses.insert(identity, Use { id, ranges: 1 });
        let key = BackendKey { is_v6, id };
        let earlier = tables.backends.get(&key).map_or(0, |b| b.generation);
        let backend = Backend {
            address: identity.address,
            port: identity.port,
            is_live: true,
            generation: earlier.wrapping_add(1),
        };
        tables.backends.set(key, Some(backend));
        Some(id)
    }

    /// One range less uses it; the last one ends it. Whether it did.
    pub(super) fn give_up(&mut self, identity: Identity, tables: &mut Tables) -> bool {
        let is_v6 = identity.address.is_ipv6();
        let Some(known) = self.uses.get_mut(&identity) else {
            return false;
        };
        known.ranges = known.ranges.saturating_sub(1);
        if known.ranges > 0 {
            return false;
        }
        let id = known.id;
        self.uses.remove(&identity);
        self.numbers(is_v6).give_up(id, 1);
        end(BackendKey { is_v6, id }, tables);
        true
    }

    /// Ends the backends found in the kernel that no Service has any more.
    pub(super) fn sweep(&mut self, tables: &mut Tables) {
        self.uses.retain(|_, known| known.ranges > 0);
        let used = self.uses.iter().map(|(identity, known)| BackendKey {
            is_v6: identity.address.is_ipv6(),
            id: known.id,
        });
        let used: std::collections::HashSet<BackendKey> = used.collect();
        let live = tables
            .backends
            .iter()
            .filter(|(_, backend)| backend.is_live);
        let dead: Vec<_> = live
            .map(|(key, _)| key)
            .filter(|key| !used.contains(key))
            .collect();
        for key in dead {
            end(key, tables);
        }
    }
}

fn end(key: BackendKey, tables: &mut Tables) {
    if let Some(backend) = tables.backends.get(&key) {
        let ended = Backend {
            is_live: false,
            generation: backend.generation.wrapping_add(1),
            ..backend
        };
        tables.backends.set(key, Some(ended));
    }
}
