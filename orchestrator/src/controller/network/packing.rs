//! How endpoints are put into slices with as few writes as possible. Pure.
//!
//! An endpoint stays where it is; slices that change anyway are filled first;
//! what is left goes into one slice that can hold all of it, or into new ones.

use std::collections::BTreeMap;

/// A slice as the packing sees it: its name and its endpoints by identity.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed<E> {
    /// Name; `None` for one to be made.
    pub name: Option<String>,
    /// Endpoints by identity.
    pub endpoints: BTreeMap<String, E>,
}

/// What is to be written.
#[derive(Debug, PartialEq)]
pub struct Plan<E> {
    /// New slices.
    pub create: Vec<Packed<E>>,
    /// Slices with other contents.
    pub update: Vec<Packed<E>>,
    /// Names of slices that have nothing left.
    pub delete: Vec<String>,
}

/// Packs `wanted` into the existing slices and new ones of at most `most`.
pub fn pack<E: Clone + PartialEq>(
    existing: Vec<Packed<E>>,
    mut wanted: BTreeMap<String, E>,
    most: usize,
) -> Plan<E> {
    let mut same = Vec::new();
    let mut changed: Vec<Packed<E>> = Vec::new();
    for slice in existing {
        let mut kept = BTreeMap::new();
        for identity in slice.endpoints.keys() {
            if kept.len() < most
                && let Some(endpoint) = wanted.remove(identity)
            {
                kept.insert(identity.clone(), endpoint);
            }
        }
        if kept == slice.endpoints {
            same.push(slice);
        } else {
            changed.push(Packed {
                name: slice.name,
                endpoints: kept,
            });
        }
    }
    // The fullest first: the emptier ones may become empty and go.
    changed.sort_by_key(|slice| std::cmp::Reverse(slice.endpoints.len()));
    for slice in &mut changed {
        fill(slice, &mut wanted, most);
    }
    let mut create = Vec::new();
    while !wanted.is_empty() {
        let room = |slice: &&mut Packed<E>| slice.endpoints.len() + wanted.len() <= most;
        let best = same
            .iter_mut()
            .filter(room)
            .max_by_key(|slice| slice.endpoints.len());
        if let Some(slice) = best {
            let mut slice = slice.clone();
            same.retain(|other| other.name != slice.name);
            fill(&mut slice, &mut wanted, most);
            changed.push(slice);
        } else {
            let mut slice = Packed {
                name: None,
                endpoints: BTreeMap::new(),
            };
            fill(&mut slice, &mut wanted, most);
            create.push(slice);
        }
    }
    let (empty, update): (Vec<_>, Vec<_>) = changed
        .into_iter()
        .partition(|slice| slice.endpoints.is_empty());
    let surplus = same.iter().filter(|slice| slice.endpoints.is_empty());
    let delete = empty
        .iter()
        .chain(surplus)
        .filter_map(|slice| slice.name.clone())
        .collect();
    Plan {
        create,
        update,
        delete,
    }
}

fn fill<E>(slice: &mut Packed<E>, wanted: &mut BTreeMap<String, E>, most: usize) {
    while slice.endpoints.len() < most {
        let Some((identity, endpoint)) = wanted.pop_first() else {
            return;
        };
        slice.endpoints.insert(identity, endpoint);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Slices = Vec<Packed<u8>>;

    fn apply(existing: Slices, plan: Plan<u8>, turn: usize) -> Slices {
        let mut slices = existing;
        slices.retain(|slice| !plan.delete.contains(slice.name.as_ref().unwrap()));
        for update in plan.update {
            let old = slices
                .iter_mut()
                .find(|slice| slice.name == update.name)
                .unwrap();
            *old = update;
        }
        for (index, mut slice) in plan.create.into_iter().enumerate() {
            slice.name = Some(format!("slice-{turn}-{index}"));
            slices.push(slice);
        }
        slices
    }

    fn endpoints(set: &BTreeMap<u8, u8>) -> BTreeMap<String, u8> {
        set.iter()
            .map(|(key, value)| (key.to_string(), *value))
            .collect()
    }

    fn sets() -> impl Strategy<Value = Vec<BTreeMap<u8, u8>>> {
        prop::collection::vec(prop::collection::btree_map(0..60_u8, 0..3_u8, 0..40), 1..6)
    }

    proptest! {
        /// After each step the slices hold exactly what is wanted, none too
        /// full, none empty; and what has not changed was not written.
        #[test]
        fn slices_follow_the_endpoints_with_little_churn(steps in sets(), most in 1..12_usize) {
            let mut slices: Slices = Vec::new();
            for (turn, step) in steps.into_iter().enumerate() {
                let wanted = endpoints(&step);
                let plan = pack(slices.clone(), wanted.clone(), most);
                let again = plan.update.len() + plan.create.len() + plan.delete.len();
                let changed = slices.iter().flat_map(|s| &s.endpoints)
                    .filter(|(key, value)| wanted.get(*key) != Some(value)).count();
                let held: usize = slices.iter().map(|s| s.endpoints.len()).sum();
                let added = wanted.keys().filter(|k| !slices.iter().any(|s| s.endpoints.contains_key(*k))).count();
                prop_assert!(again <= changed + added.div_ceil(most) + usize::from(added > 0), "{again} writes for {changed} changed of {held} and {added} added");
                slices = apply(slices, plan, turn);
                let mut found = BTreeMap::new();
                for slice in &slices {
                    prop_assert!(!slice.endpoints.is_empty() && slice.endpoints.len() <= most);
                    for (key, value) in &slice.endpoints {
                        prop_assert!(found.insert(key.clone(), *value).is_none(), "{key} twice");
                    }
                }
                prop_assert_eq!(found, wanted.clone());
                let idle = pack(slices.clone(), wanted, most);
                prop_assert!(idle.create.is_empty() && idle.update.is_empty() && idle.delete.is_empty());
            }
        }
    }
}
