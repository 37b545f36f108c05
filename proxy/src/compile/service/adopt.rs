//! After a restart: entries found in the kernel keep their ids, ranges and
//! backends where they still mean the same.

use std::collections::BTreeSet;

use super::ServiceCompiler;
use super::backend::Identity;
use crate::compile::tables::{BackendKey, ServiceKey, Tables};

impl ServiceCompiler {
    /// Numbers that `tables`, found in the kernel, have are kept where their
    /// meaning stays, and not handed out for anything else in the first update.
    pub(crate) fn adopt(&mut self, tables: &Tables) {
        self.backends.reserve(tables);
        for (_, service) in tables.services.iter() {
            self.id_numbers.reserve(service.id, 1);
        }
        for (index, _) in tables.slots.iter() {
            self.slot_numbers.reserve(index, 1);
        }
        self.found = Some(tables.clone());
        // Backends may have gone while nobody looked.
        self.lost = true;
    }

    /// The found range of this entry if it has these backends and no others;
    /// in any case found backends keep their ids.
    pub(super) fn adopt_range(&mut self, key: ServiceKey, wanted: &[Identity]) -> Option<u32> {
        let found = self.found.as_ref()?;
        let service = found.services.get(&key)?;
        let indexes = service.base..service.base.checked_add(service.count)?;
        let is_v6 = key.vip.is_ipv6();
        let mut listed = Vec::new();
        for index in indexes {
            let id = found.slots.get(&index)?;
            let backend = found.backends.get(&BackendKey { is_v6, id })?;
            listed.push((id, backend));
        }
        let mut is_same = listed.len() == wanted.len() && !listed.is_empty();
        for (place, (id, backend)) in listed.into_iter().enumerate() {
            let at = (backend.address, backend.port);
            let same = wanted
                .iter()
                .find(|identity| (identity.address, identity.port) == at);
            if let Some(identity) = same.filter(|_| backend.is_live) {
                self.backends.adopt(*identity, id);
                is_same &= wanted.get(place) == Some(identity);
            } else {
                is_same = false;
            }
        }
        let adopts = is_same && self.slot_numbers.adopt(service.base, service.count);
        adopts.then_some(service.base)
    }

    /// Removes what was found in the kernel and is no Service's any more.
    pub(super) fn sweep(&mut self, found: &Tables, tables: &mut Tables) {
        let programmed = || self.known.values().flat_map(|known| &known.programmed);
        let keys: BTreeSet<ServiceKey> = programmed().map(|p| p.frontend.key).collect();
        let slots = programmed().flat_map(|p| {
            let count = u32::try_from(p.backends.len()).expect("fewer than backend ids");
            p.base..p.base + count
        });
        let slots: BTreeSet<u32> = slots.collect();
        for (key, _) in found.services.iter().filter(|(key, _)| !keys.contains(key)) {
            tables.services.set(key, None);
        }
        for (index, _) in found
            .slots
            .iter()
            .filter(|(index, _)| !slots.contains(index))
        {
            tables.slots.set(index, None);
        }
        self.backends.sweep(tables);
    }
}
