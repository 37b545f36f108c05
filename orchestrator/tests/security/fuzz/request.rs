//! Requests bent at random.

use fairlead::proto;
use fairlead::resource::Resource;
use fairlead::schema::schema;
use serde_json::{Value, json};

use super::cluster::Request;
use super::parsers::text;
use super::{Random, bend, kinds};

/// A body in one of the encodings, now and then with bytes bent too.
pub(super) fn encoded(
    random: &mut Random,
    resource: Option<&Resource>,
    value: &Value,
) -> (&'static str, Vec<u8>) {
    let text = value.to_string().into_bytes();
    let (kind, mut body) = match (random.below(4), resource) {
        (0, Some(resource)) => {
            let object = schema()
                .kind(resource.group, resource.version, resource.kind)
                .unwrap();
            let body = kinds::body(&resource.api_version(), resource.kind, object, value);
            (proto::MEDIA_TYPE, body)
        }
        (1, _) => ("application/yaml", text),
        _ => ("application/json", text),
    };
    if random.chance(25) {
        bend::bytes(random, &mut body, b"{\"a\":[{\"b\":null}]}");
    }
    (kind, body)
}

pub(super) fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escape = |byte: u8| {
        if plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(escape).collect()
}

pub(super) fn query(random: &mut Random) -> String {
    const NAMES: [&str; 20] = [
        "labelSelector",
        "fieldSelector",
        "resourceVersion",
        "resourceVersionMatch",
        "limit",
        "continue",
        "timeoutSeconds",
        "watch",
        "allowWatchBookmarks",
        "sendInitialEvents",
        "dryRun",
        "fieldManager",
        "fieldValidation",
        "force",
        "pretty",
        "gracePeriodSeconds",
        "propagationPolicy",
        "orphanDependents",
        "includeObject",
        "verbose",
    ];
    let pair = |random: &mut Random| {
        let value = match random.below(4) {
            0 => text(random),
            1 => (*random.pick(&[
                "All",
                "Strict",
                "Exact",
                "NotOlderThan",
                "true",
                "0",
                "1",
                "Orphan",
            ]))
            .to_owned(),
            2 => base64_token(random),
            _ => (*random.pick(&bend::WORDS)).to_owned(),
        };
        let value = if random.chance(5) {
            format!("%{}", value.len())
        } else {
            escaped(&value)
        };
        format!("{}={value}", random.pick(&NAMES))
    };
    let pairs: Vec<String> = (0..random.below(4)).map(|_| pair(random)).collect();
    pairs.join("&")
}

/// Something like a continue token.
pub(super) fn base64_token(random: &mut Random) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let token = json!({"rv": bend::leaf(random), "after": bend::leaf(random)});
    URL_SAFE_NO_PAD.encode(token.to_string())
}

/// A request that changes an object at `path`, which now looks as `current`.
pub(super) fn change(
    random: &mut Random,
    resource: &Resource,
    path: String,
    current: &Value,
    other: &Value,
) -> Request {
    let mut bent = current.clone();
    bend::nodes(random, &mut bent, other);
    if random.chance(50)
        && let Some(metadata) = bent.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.remove("resourceVersion");
    }
    let part = bend::part(random, current, other);
    let (method, kind, body) = match random.below(5) {
        0 => {
            let (kind, body) = encoded(random, Some(resource), &bent);
            ("PUT", kind, body)
        }
        1 => (
            "PATCH",
            "application/json-patch+json",
            bend::json_patch(random, current).to_string().into(),
        ),
        2 => (
            "PATCH",
            "application/merge-patch+json",
            part.to_string().into(),
        ),
        3 => (
            "PATCH",
            "application/strategic-merge-patch+json",
            part.to_string().into(),
        ),
        _ => {
            let mut part = part;
            if let Some(metadata) = part.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
            (
                "PATCH",
                "application/apply-patch+yaml",
                part.to_string().into(),
            )
        }
    };
    let manager = if kind.contains("apply") {
        "?fieldManager=fuzz&force=true"
    } else {
        ""
    };
    Request {
        method,
        path: path + manager,
        kind,
        body,
    }
}
