//! Server-owned metadata: identity, times, generation, names.

use std::fmt::Write as _;

use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Map, Value, json};

use super::Target;
use crate::{resource::Resource, status::Status};

/// Letters of generated names: no vowels, nothing that looks like another.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Letters behind a `generateName`.
const SUFFIX: usize = 5;
/// Longest generated name.
const NAME_MAX: usize = 63;

/// `2026-01-02T03:04:05Z`.
pub(super) fn stamp(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn random<const N: usize>() -> Result<[u8; N], Status> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_unspecified| Status::internal("no random numbers to be had"))?;
    Ok(bytes)
}

/// A version 4 UUID.
pub(super) fn uid() -> Result<String, Status> {
    let mut bytes = random::<16>()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
    }
    Ok(text)
}

/// `prefix` cut to fit, and five letters.
pub(super) fn generate_name(prefix: &str) -> Result<String, Status> {
    let prefix: String = prefix.chars().take(NAME_MAX - SUFFIX).collect();
    let letters =
        random::<SUFFIX>()?.map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
    Ok(prefix + &letters.iter().collect::<String>())
}

/// The metadata map, made if absent.
///
/// # Errors
/// 400 if `object` or its metadata is no JSON object.
pub(super) fn map(object: &mut Value) -> Result<&mut Map<String, Value>, Status> {
    let top = object
        .as_object_mut()
        .ok_or_else(|| Status::bad_request("the body is not an object"))?;
    let metadata = top.entry("metadata").or_insert_with(|| json!({}));
    if metadata.is_null() {
        *metadata = json!({});
    }
    metadata
        .as_object_mut()
        .ok_or_else(|| Status::bad_request("metadata is not an object"))
}

/// Checks and sets kind, version and namespace.
pub(super) fn identify(target: Target<'_>, object: &mut Value) -> Result<(), Status> {
    let resource = target.resource;
    let metadata = map(object)?;
    if resource.namespaced {
        match metadata
            .get("namespace")
            .and_then(Value::as_str)
            .unwrap_or_default()
        {
            "" => drop(metadata.insert("namespace".to_owned(), json!(target.namespace))),
            given if given == target.namespace => {}
            given => {
                return Err(Status::bad_request(format!(
                    "the namespace of the provided object does not match the namespace sent on the request: {given:?} is not {:?}",
                    target.namespace
                )));
            }
        }
    } else {
        metadata.remove("namespace");
    }
    object["apiVersion"] = json!(resource.api_version());
    object["kind"] = json!(resource.kind);
    Ok(())
}

/// Checks that a configuration to apply says the target's version and kind, and no other name.
pub(super) fn identify_applied(target: Target<'_>, object: &mut Value) -> Result<(), Status> {
    let resource = target.resource;
    let given = |field: &str| object[field].as_str().unwrap_or_default();
    let (version, kind) = (given("apiVersion"), given("kind"));
    let wanted = resource.api_version();
    if object.is_object() && version != wanted {
        return Err(Status::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {version}, expected: {wanted}"
        )));
    }
    if object.is_object() && kind != resource.kind {
        return Err(Status::bad_request(format!(
            "{kind:?} in version {version:?} cannot be handled as a {}",
            resource.kind
        )));
    }
    let metadata = map(object)?;
    match metadata
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
    {
        "" => drop(metadata.insert("name".to_owned(), json!(target.name))),
        given if given == target.name => {}
        given => {
            return Err(Status::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({})",
                target.name
            )));
        }
    }
    identify(target, object)
}

/// Sets what only the server may say about a new object.
pub(super) fn begin(resource: &Resource, object: &mut Value, now: Timestamp) -> Result<(), Status> {
    let metadata = map(object)?;
    if metadata
        .get("resourceVersion")
        .and_then(Value::as_str)
        .is_some_and(|v| !v.is_empty())
    {
        return Err(Status::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    for owned in [
        "resourceVersion",
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
    ] {
        metadata.remove(owned);
    }
    metadata.insert("uid".to_owned(), json!(uid()?));
    metadata.insert("creationTimestamp".to_owned(), json!(stamp(now)));
    if resource.generation {
        metadata.insert("generation".to_owned(), json!(1));
    }
    Ok(())
}

/// Keeps what an update may not change.
pub(super) fn carry(new: &mut Value, old: &Value) -> Result<(), Status> {
    let metadata = map(new)?;
    for owned in [
        "uid",
        "creationTimestamp",
        "generateName",
        "selfLink",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        match &old["metadata"][owned] {
            Value::Null => drop(metadata.remove(owned)),
            kept => drop(metadata.insert(owned.to_owned(), kept.clone())),
        }
    }
    Ok(())
}

/// Counts a change of the desired state: anything but metadata and status.
pub(super) fn count_generation(resource: &Resource, new: &mut Value, old: &Value) {
    if !resource.generation {
        return;
    }
    if !desired(new).eq(desired(old)) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
        new["metadata"]["generation"] = json!(generation + 1);
    }
}

/// What its owner wants of an object, in the order of the fields' names.
fn desired(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let fields = object.as_object().into_iter().flatten();
    fields.filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status"))
}

/// Empty maps and lists of metadata are not kept, as upstream's encoder omits them.
pub(super) fn tidy(object: &mut Value) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    metadata.retain(|_, value| match value {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_a_random_uuid() {
        let uid = uid().unwrap();
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes()[14], b'4');
        assert!(matches!(uid.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
    }

    #[test]
    fn a_generated_name_is_cut_to_fit() {
        assert_eq!(generate_name(&"a".repeat(80)).unwrap().len(), 63);
        assert!(generate_name("web-").unwrap().starts_with("web-"));
    }
}
