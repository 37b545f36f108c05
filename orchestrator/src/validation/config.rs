//! ConfigMaps, Secrets and ServiceAccounts.

use serde_json::Value;

use super::{At, config_key_problem};
use crate::resource::Causes;
use crate::status::Cause;

/// Most bytes in the values of one ConfigMap or Secret.
const BYTES_MAX: usize = 1 << 20;
const SEALED: &str = "field is immutable when `immutable` is set";

/// Bytes that base64 text stands for.
fn decoded_length(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

fn keys(at: &At<'_>, causes: &mut Causes) {
    for (key, value) in at.entries() {
        if let Some(why) = config_key_problem(key) {
            causes.push(Cause::invalid(value.path, &key.into(), why));
        }
    }
}

/// ConfigMap.
pub fn config_map(object: &Value, causes: &mut Causes) {
    let root = At::root(object);
    let (text, binary) = (root.field("data"), root.field("binaryData"));
    keys(&text, causes);
    keys(&binary, causes);
    for (key, value) in text.entries() {
        if binary.value.get(key).is_some() {
            let why = "duplicate of key present in binaryData";
            causes.push(Cause::invalid(value.path, &key.into(), why));
        }
    }
    let plain = text.entries().map(|(_, value)| value.text().len());
    let encoded = binary
        .entries()
        .map(|(_, value)| decoded_length(value.text()));
    if plain.chain(encoded).sum::<usize>() > BYTES_MAX {
        causes.push(Cause::too_long("", BYTES_MAX));
    }
}

/// A change of a ConfigMap.
pub fn config_map_update(new: &Value, old: &Value, causes: &mut Causes) {
    sealed(new, old, &["data", "binaryData"], causes);
}

/// What is marked immutable stays as it is, mark and all.
fn sealed(new: &Value, old: &Value, fields: &[&str], causes: &mut Causes) {
    if old["immutable"] != true {
        return;
    }
    for field in ["immutable"].iter().chain(fields) {
        if new[field] != old[field] {
            causes.push(Cause::forbidden(*field, SEALED));
        }
    }
}

/// Secret.
pub fn secret(object: &Value, causes: &mut Causes) {
    let root = At::root(object);
    let data = root.field("data");
    keys(&data, causes);
    if data
        .entries()
        .map(|(_, value)| decoded_length(value.text()))
        .sum::<usize>()
        > BYTES_MAX
    {
        causes.push(Cause::too_long("data", BYTES_MAX));
    }
    let missing = |key: &str| data.value.get(key).is_none();
    let mut require = |key: &str| {
        if missing(key) {
            causes.push(Cause::required(format!("data[{key}]"), ""));
        }
    };
    match root.field("type").text() {
        "kubernetes.io/service-account-token" => {
            let name = "kubernetes.io/service-account.name";
            let annotation = root.field("metadata").field("annotations").value.get(name);
            if annotation
                .and_then(Value::as_str)
                .unwrap_or_default()
                .is_empty()
            {
                let path = format!("metadata.annotations[{name}]");
                causes.push(Cause::required(path, ""));
            }
        }
        "kubernetes.io/dockercfg" => json_value(&data, ".dockercfg", causes),
        "kubernetes.io/dockerconfigjson" => json_value(&data, ".dockerconfigjson", causes),
        "kubernetes.io/basic-auth" if missing("username") && missing("password") => {
            require("username");
            require("password");
        }
        "kubernetes.io/ssh-auth" => require("ssh-privatekey"),
        "kubernetes.io/tls" => {
            require("tls.crt");
            require("tls.key");
        }
        _ => {}
    }
}

/// A value that must be there and be JSON.
fn json_value(data: &At<'_>, key: &str, causes: &mut Causes) {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    let path = format!("data[{key}]");
    let Some(text) = data.value.get(key).and_then(Value::as_str) else {
        causes.push(Cause::required(path, ""));
        return;
    };
    let is_json = STANDARD
        .decode(text)
        .is_ok_and(|bytes| serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok());
    if !is_json {
        // The value is a secret: it is not repeated.
        let why = "the value is not valid JSON";
        causes.push(Cause::invalid(
            path,
            &"<secret contents redacted>".into(),
            why,
        ));
    }
}

/// A change of a Secret.
pub fn secret_update(new: &Value, old: &Value, causes: &mut Causes) {
    At::root(new).field("type").unchanged(&old["type"], causes);
    sealed(new, old, &["data"], causes);
}

/// ServiceAccount: everything it refers to may come later.
pub fn service_account(object: &Value, causes: &mut Causes) {
    for secret in At::root(object).field("imagePullSecrets").items() {
        secret.field("name").require(causes);
    }
}
