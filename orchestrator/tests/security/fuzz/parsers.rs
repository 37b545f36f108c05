//! The parsers by themselves.

use std::sync::Arc;

use fairlead::cache::Selector;
use fairlead::patch;
use fairlead::proto;
use fairlead::resource;
use fairlead::schedule::{self, Schedule};
use fairlead::schema::{Gvk, ObjectType, Quantity, Timestamp, convert, parse_json, schema};
use serde_json::{Value, json};

use super::{Cases, Random, bend, kinds};

fn kinds() -> Vec<(Gvk, &'static ObjectType)> {
    schema().kinds().collect()
}

/// An object of any kind in stored form.
fn any_object(random: &mut Random) -> (Gvk, &'static ObjectType, Value) {
    let all = kinds();
    let (gvk, object) = *random.pick(&all);
    let mut value = kinds::any(random, object);
    convert(object, &mut value).expect("the types fit");
    let api_version = resource::join(gvk.group, gvk.version);
    for (field, text) in [("apiVersion", &*api_version), ("kind", gvk.kind)] {
        value[field] = json!(text);
    }
    (gvk, object, value)
}

/// Defaults and validates, as a create and an update would.
fn judge(gvk: Gvk, value: &Value) {
    let Some(resource) = resource::find_kind(gvk.group, gvk.version, gvk.kind) else {
        return;
    };
    let rules = &resource.rules;
    let mut new = value.clone();
    if !new["metadata"].is_object() {
        new["metadata"] = json!({"name": "a"});
    }
    let mut causes = Vec::new();
    if resource.view.is_some() {
        (rules.validate_create)(&new, &mut causes);
        resource.keep(&mut new);
    }
    let resource = resource.stored_as();
    let rules = &resource.rules;
    (rules.default)(&mut new);
    let old = new.clone();
    (rules.default)(&mut new);
    assert_eq!(new, old, "defaulting twice is defaulting once");
    (rules.create)(&mut new);
    (rules.validate)(&new, &mut causes);
    (rules.validate_create)(&new, &mut causes);
    let mut update = new.clone();
    (rules.update)(&mut update, &old);
    (rules.validate_update)(&update, &old, &mut causes);
    (rules.held)(&new);
    (rules.grace)(&new, None);
}

fn size(value: &Value) -> usize {
    32 + match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, field)| name.len() + size(field))
            .sum(),
        _ => 0,
    }
}

#[test]
fn objects_of_every_kind_come_through_protobuf_defaults_and_validation() {
    let mut cases = Cases::new(3000);
    while let Some(mut random) = cases.next() {
        let (gvk, object, value) = any_object(&mut random);
        let api_version = resource::join(gvk.group, gvk.version);
        let body = kinds::body(&api_version, gvk.kind, object, &value);
        let decoded = proto::decode(&body).expect("what was encoded decodes");
        assert_eq!(decoded.unknown, Vec::<String>::new(), "{value}");
        let mut back = decoded.value;
        convert(decoded.object, &mut back).expect("the types fit");
        assert_eq!(back, value, "{}", gvk.kind);
        judge(gvk, &value);
    }
}

#[test]
fn bent_protobuf_is_decoded_or_refused() {
    let mut cases = Cases::new(6000);
    let mut other = Vec::new();
    while let Some(mut random) = cases.next() {
        let (gvk, object, value) = any_object(&mut random);
        let api_version = resource::join(gvk.group, gvk.version);
        let mut body = kinds::body(&api_version, gvk.kind, object, &value);
        let whole = body.clone();
        bend::bytes(&mut random, &mut body, &other);
        other = whole;
        let Ok(mut decoded) = proto::decode(&body) else {
            continue;
        };
        let listed: usize = decoded.unknown.iter().map(String::len).sum();
        assert!(size(&decoded.value) + listed < 4096 + 64 * body.len());
        if convert(decoded.object, &mut decoded.value).is_ok() {
            judge(gvk, &decoded.value);
        }
    }
}

#[test]
fn bent_json_is_converted_or_refused() {
    let mut cases = Cases::new(6000);
    while let Some(mut random) = cases.next() {
        let (gvk, object, value) = any_object(&mut random);
        let (_, _, other) = any_object(&mut random);
        let mut bent = value.clone();
        bend::nodes(&mut random, &mut bent, &other);
        let mut text = bent.to_string().into_bytes();
        if random.chance(40) {
            bend::bytes(&mut random, &mut text, other.to_string().as_bytes());
        }
        let Ok(mut parsed) = parse_json(&text) else {
            continue;
        };
        if convert(object, &mut parsed.value).is_err() {
            continue;
        }
        let once = parsed.value.clone();
        convert(object, &mut parsed.value).expect("what was converted fits");
        assert_eq!(parsed.value, once, "converting twice is converting once");
        judge(gvk, &once);
    }
}

#[test]
fn bent_patches_apply_or_are_refused() {
    let mut cases = Cases::new(6000);
    while let Some(mut random) = cases.next() {
        let (_, object, target) = any_object(&mut random);
        let (_, _, other) = any_object(&mut random);
        let mut patched = target.clone();
        let part = bend::part(&mut random, &target, &other);
        let outcome = match random.below(3) {
            0 => {
                let operations = bend::json_patch(&mut random, &target);
                patch::json_patch(&mut patched, operations)
            }
            1 => {
                patch::merge_patch(&mut patched, part.clone());
                let once = patched.clone();
                patch::merge_patch(&mut patched, part);
                assert_eq!(patched, once, "merging twice is merging once");
                Ok(())
            }
            _ => patch::strategic_merge(object, &mut patched, part),
        };
        if outcome.is_ok() {
            drop(convert(object, &mut patched));
        }
    }
}

#[test]
fn applying_again_conflicts_with_nobody() {
    let mut cases = Cases::new(3000);
    while let Some(mut random) = cases.next() {
        let (_, object, mut live) = any_object(&mut random);
        let (_, _, other) = any_object(&mut random);
        let api_version = live["apiVersion"].as_str().unwrap().to_owned();
        let writer = |manager| patch::Writer {
            object,
            api_version: &api_version,
            manager,
            subresource: "",
            reset: &[],
            now: "2026-01-02T03:04:05Z",
        };
        patch::track_update(&writer("kubectl"), None, &mut live);
        let mut configuration = bend::part(&mut random, &live, &other);
        if let Some(metadata) = configuration
            .get_mut("metadata")
            .and_then(Value::as_object_mut)
        {
            metadata.remove("managedFields");
        }
        let manager = *random.pick(&["kubectl", "helm", ""]);
        let force = random.chance(70);
        let apply =
            |live: &Value| patch::apply(&writer(manager), Some(live), configuration.clone(), force);
        let Ok(mut once) = apply(&live) else { continue };
        if convert(object, &mut once).is_err() {
            continue;
        }
        drop(apply(&once).expect("one's own fields are no conflict"));
        let mut updated = bend::part(&mut random, &once, &other);
        if convert(object, &mut updated).is_ok() {
            patch::track_update(&writer("edit"), Some(&once), &mut updated);
            drop(apply(&updated));
        }
    }
}

/// Text from pieces of the grammars and from nowhere.
pub(super) fn text(random: &mut Random) -> String {
    const PIECES: [&str; 44] = [
        "=",
        "==",
        "!=",
        "!",
        ",",
        " in ",
        " notin ",
        "(",
        ")",
        "<",
        ">",
        "\t",
        " ",
        "metadata.name",
        "metadata.namespace",
        "spec.nodeName",
        "status.phase",
        "app.kubernetes.io/name",
        "*",
        "/",
        "-",
        "1",
        "59",
        "60",
        "MON",
        "JAN",
        "@daily",
        "CRON_TZ=",
        "T",
        "Z",
        ":",
        "+",
        ".",
        "e",
        "E",
        "Ki",
        "m",
        "i",
        "0",
        "99999999999999999999999999999999999999999999",
        "999999999999",
        "\u{e4}",
        "\u{202e}",
        "%",
    ];
    let piece = |random: &mut Random| match random.below(10) {
        0 => *random.pick(&bend::WORDS),
        _ => *random.pick(&PIECES),
    };
    (0..random.below(10)).map(|_| piece(random)).collect()
}

#[test]
fn selectors_numbers_times_and_schedules_are_read_or_refused() {
    let mut cases = Cases::new(30_000);
    let pods = resource::find("", "v1", "pods").unwrap();
    let start = jiff::Timestamp::UNIX_EPOCH;
    while let Some(mut random) = cases.next() {
        let (left, right) = (text(&mut random), text(&mut random));
        drop(Selector::parse(&left, &right, pods));
        drop(Timestamp::parse(&left).map(Timestamp::to_micros));
        if let Ok(quantity) = left.parse::<Quantity>() {
            let shown = quantity.to_string();
            let again: Quantity = shown.parse().expect("what is written is read");
            assert_eq!(again.to_string(), shown, "{left}");
            let _numbers = (quantity.nanos(), quantity.value(), quantity.milli_value());
        }
        if let Ok(schedule) = Schedule::parse(&left) {
            let next = schedule.next(start, &jiff::tz::TimeZone::UTC);
            assert!(next.is_none_or(|next| next > start), "{left}");
        }
        drop(schedule::zone(&left));
    }
}

#[test]
fn no_bent_token_is_taken_and_none_harms() {
    let secret = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let key = Arc::new(fairlead::auth::jwt::SigningKey::from_pem(&secret).unwrap());
    let token = key.sign(&json!({"sub": "a", "exp": 1})).unwrap();
    assert!(key.verify(&token).is_ok());
    let mut cases = Cases::new(3000);
    while let Some(mut random) = cases.next() {
        let mut bent = token.clone().into_bytes();
        bend::bytes(&mut random, &mut bent, token.as_bytes());
        if let Ok(text) = std::str::from_utf8(&bent) {
            assert!(text == token || key.verify(text).is_err(), "{text}");
        }
    }
}
