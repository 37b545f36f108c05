//! The order of a merged list: what the patch names in the patch's order, everything else where it
//! was relative to that. Lists may be as long as a request body allows, so nothing here is
//! quadratic.

use std::collections::HashMap;

use serde_json::Value;

use super::super::PatchError;

/// What tells an item of a list apart: its key, or its value where `key` is empty.
pub(super) fn identity(item: &Value, key: &str) -> String {
    if key.is_empty() {
        item.to_string()
    } else {
        item.get(key).unwrap_or(&Value::Null).to_string()
    }
}

/// Identity -> first position.
pub(super) fn positions(items: &[Value], key: &str) -> HashMap<String, usize> {
    let mut positions = HashMap::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        positions.entry(identity(item, key)).or_insert(at);
    }
    positions
}

/// A patch's items must come in the order that its `$setElementOrder` gives.
pub(super) fn check(order: &[Value], patch: &[Value], key: &str) -> Result<(), PatchError> {
    let mut rest = order.iter();
    let kept = patch.iter().filter(|item| item.get(super::PATCH).is_none());
    for item in kept {
        let wanted = identity(item, key);
        if !rest.any(|other| identity(other, key) == wanted) {
            let (patch, order) = (Value::from(patch), Value::from(order));
            return Err(super::malformed(format!(
                "The order in patch list:\n{patch}\n doesn't match $setElementOrder list:\n{order}\n"
            )));
        }
    }
    Ok(())
}

/// Arranges `merged`: items in `order` as it says, the others as they were in `old`.
pub(super) fn arrange(merged: Vec<Value>, order: &[Value], old: &[Value], key: &str) -> Vec<Value> {
    let (order, old) = (positions(order, key), positions(old, key));
    let mut named = Vec::new();
    let mut others = Vec::new();
    for item in merged {
        let identity = identity(&item, key);
        let before = old.get(&identity).copied();
        match order.get(&identity) {
            Some(at) => named.push((*at, before, item)),
            None => others.push((before.unwrap_or(usize::MAX), item)),
        }
    }
    named.sort_by_key(|(at, ..)| *at);
    others.sort_by_key(|(before, _)| *before);
    let mut arranged = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for (_, before, item) in named {
        let Some(before) = before else {
            arranged.push(item);
            continue;
        };
        while let Some((_, other)) = others.next_if(|(other, _)| *other < before) {
            arranged.push(other);
        }
        arranged.push(item);
    }
    arranged.extend(others.map(|(_, item)| item));
    arranged
}
