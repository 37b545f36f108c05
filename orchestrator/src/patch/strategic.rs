//! Strategic merge patch: a merge patch that knows which lists merge by key.
//!
//! Directives: `$patch: replace|delete` in an object or list item, `$retainKeys`,
//! `$deleteFromPrimitiveList/FIELD`, `$setElementOrder/FIELD`. Errors name what upstream names.

mod order;

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{Kind, ObjectType, schema};

type Object = Map<String, Value>;

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Merges `patch` into `target`, both of type `object`. On an error `target` is undefined.
pub fn strategic_merge(
    object: &ObjectType,
    target: &mut Value,
    patch: Value,
) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else {
        return Err(malformed("a strategic merge patch must be an object"));
    };
    match target {
        Value::Object(fields) => merge_object(Type::Object(object), fields, patch),
        _ => Err(malformed("only an object can be patched")),
    }
}

fn malformed(text: impl Into<String>) -> PatchError {
    PatchError::Malformed(text.into())
}

/// What is known of a value's type: unknown fields merge as plain JSON.
#[derive(Clone, Copy)]
enum Type<'a> {
    Object(&'a ObjectType),
    Kind(&'a Kind),
    Unknown,
}

impl<'a> Type<'a> {
    fn of(kind: &'a Kind) -> Self {
        match kind {
            Kind::Object(index) => Self::Object(schema().object(*index)),
            kind => Self::Kind(kind),
        }
    }

    /// The type of a field and the key its list merges by.
    fn field(self, name: &str) -> (Self, Option<&'a str>) {
        match self {
            Self::Object(object) => object.field(name).map_or((Self::Unknown, None), |field| {
                (Self::of(&field.kind), field.strategy.merge_key)
            }),
            Self::Kind(Kind::Map(of)) => (Self::of(of), None),
            _ => (Self::Unknown, None),
        }
    }

    fn item(self) -> Self {
        match self {
            Self::Kind(Kind::List(of)) => Self::of(of),
            _ => Self::Unknown,
        }
    }
}

fn merge_object(of: Type<'_>, target: &mut Object, mut patch: Object) -> Result<(), PatchError> {
    if let Some(directive) = patch.remove(PATCH) {
        match directive.as_str() {
            Some("replace") => *target = patch,
            Some("delete") => target.clear(),
            _ => {
                let patch = Value::Object(patch);
                return Err(malformed(format!(
                    "unknown patch type: {directive} in map: {patch}"
                )));
            }
        }
        return Ok(());
    }
    retain_keys(target, &mut patch)?;
    merge_ordered_lists(of, target, &mut patch)?;
    for (name, change) in patch {
        if let Some(list) = name.strip_prefix(DELETE_FROM) {
            if let Some(Value::Array(items)) = target.get_mut(list) {
                delete_scalars(items, &change)?;
            }
            continue;
        }
        if change.is_null() {
            target.remove(&name);
            continue;
        }
        let (kind, merge_key) = of.field(&name);
        match (target.get_mut(&name), change) {
            (Some(Value::Object(old)), Value::Object(new)) => merge_object(kind, old, new)?,
            (Some(Value::Array(old)), Value::Array(new)) => {
                merge_list(kind.item(), merge_key, old, new)?;
            }
            (_, mut new) => {
                clean(&mut new);
                target.insert(name, new);
            }
        }
    }
    Ok(())
}

/// `$retainKeys` names the fields that stay; each field of the patch must be among them.
fn retain_keys(target: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(keys) = patch.remove(RETAIN) else {
        return Ok(());
    };
    let wrong = || malformed("invalid patch format of retainKeys");
    let keys = keys.as_array().ok_or_else(wrong)?;
    let kept = |name: &str| keys.iter().any(|key| key.as_str() == Some(name));
    let directive = |name: &str| name.starts_with(ORDER) || name.starts_with(DELETE_FROM);
    if patch
        .iter()
        .any(|(name, value)| !value.is_null() && !directive(name) && !kept(name))
    {
        return Err(wrong());
    }
    target.retain(|name, _| kept(name));
    Ok(())
}

/// Merges the lists that come with a `$setElementOrder` and puts them in that order.
fn merge_ordered_lists(
    of: Type<'_>,
    target: &mut Object,
    patch: &mut Object,
) -> Result<(), PatchError> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|name| name.starts_with(ORDER))
        .cloned()
        .collect();
    for directive in directives {
        let name = directive.strip_prefix(ORDER).unwrap_or_default();
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(malformed("invalid patch format of setElementOrder list"));
        };
        let (kind, merge_key) = of.field(name);
        let key = merge_key.unwrap_or_default();
        let changes = match patch.remove(name) {
            None => None,
            Some(Value::Array(changes)) => Some(changes),
            Some(other) => {
                patch.insert(name.to_owned(), other);
                continue;
            }
        };
        if let Some(changes) = &changes {
            order::check(&order, changes, key)?;
        }
        let mut merged = match (target.get(name), changes) {
            (Some(Value::Array(old)), Some(changes)) => {
                let mut merged = old.clone();
                merge_list(kind.item(), merge_key, &mut merged, changes)?;
                merged
            }
            (Some(Value::Array(old)), None) => old.clone(),
            (_, Some(mut changes)) => {
                changes.iter_mut().for_each(clean);
                changes
            }
            (_, None) => continue,
        };
        let old = target
            .get(name)
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        merged = order::arrange(merged, &order, old, key);
        target.insert(name.to_owned(), Value::Array(merged));
    }
    Ok(())
}

fn delete_scalars(items: &mut Vec<Value>, gone: &Value) -> Result<(), PatchError> {
    let Value::Array(gone) = gone else {
        return Err(malformed("invalid patch format of primitive list"));
    };
    let gone = order::positions(gone, "");
    items.retain(|item| !gone.contains_key(&order::identity(item, "")));
    Ok(())
}

/// Merges a list by key or as a set, or replaces it where the type names no key.
fn merge_list(
    item: Type<'_>,
    merge_key: Option<&str>,
    target: &mut Vec<Value>,
    mut patch: Vec<Value>,
) -> Result<(), PatchError> {
    let Some(key) = merge_key else {
        patch.iter_mut().for_each(clean);
        *target = patch;
        return Ok(());
    };
    let old = target.clone();
    if !key.is_empty() && !special_items(target, &mut patch, key)? {
        *target = patch;
        return Ok(());
    }
    let mut known = order::positions(target, key);
    for change in patch.clone() {
        let end = target.len();
        let at = *known.entry(order::identity(&change, key)).or_insert(end);
        match (target.get_mut(at), change) {
            (Some(Value::Object(old)), Value::Object(new)) => merge_object(item, old, new)?,
            (Some(old), new) => *old = new,
            (None, mut new) => {
                clean(&mut new);
                target.push(new);
            }
        }
    }
    *target = order::arrange(std::mem::take(target), &patch, &old, key);
    Ok(())
}

/// Carries out the items that are directives and leaves the others in `patch`. False: the list is
/// to be replaced by them.
fn special_items(
    target: &mut Vec<Value>,
    patch: &mut Vec<Value>,
    key: &str,
) -> Result<bool, PatchError> {
    let mut merges = true;
    let mut gone = HashSet::new();
    let mut plain = Vec::with_capacity(patch.len());
    for item in patch.drain(..) {
        match item.get(PATCH).map(Value::as_str) {
            None => plain.push(item),
            Some(Some("replace")) => merges = false,
            Some(Some("delete")) => {
                key_of(&item, key)?;
                gone.insert(order::identity(&item, key));
            }
            Some(_) => {
                return Err(malformed(format!(
                    "unknown patch type in list item: {item}"
                )));
            }
        }
    }
    plain
        .iter()
        .try_for_each(|item| key_of(item, key).map(drop))?;
    if !gone.is_empty() {
        target.retain(|old| !gone.contains(&order::identity(old, key)));
    }
    if !merges {
        plain.iter_mut().for_each(clean);
    }
    *patch = plain;
    Ok(merges)
}

fn key_of<'a>(item: &'a Value, key: &str) -> Result<&'a Value, PatchError> {
    item.get(key).ok_or_else(|| {
        malformed(format!(
            "map: {item} does not contain declared merge key: {key}"
        ))
    })
}

/// Takes directives and nulls out of a value that is new as a whole.
fn clean(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, field| {
                let directive = name == PATCH
                    || name == RETAIN
                    || name.starts_with(ORDER)
                    || name.starts_with(DELETE_FROM);
                !directive && !field.is_null()
            });
            fields.values_mut().for_each(clean);
        }
        Value::Array(items) => {
            items.retain(|item| item.get(PATCH).and_then(Value::as_str) != Some("delete"));
            items.iter_mut().for_each(clean);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
