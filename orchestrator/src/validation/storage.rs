//! Volumes, claims and storage classes.

use serde_json::Value;

use super::At;
use super::container::amounts;
use super::scheduling::node_selector;
use super::volume::host_path;
use crate::resource::{Causes, NameRule};
use crate::schema::Quantity;
use crate::status::Cause;

const ACCESS_MODES: [&str; 4] = [
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];
/// Fields of a PersistentVolume's spec that are not its source.
const NOT_A_SOURCE: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

fn access_modes(spec: &At<'_>, causes: &mut Causes) {
    let modes = spec.field("accessModes");
    if !modes.is_set() {
        causes.push(Cause::required(
            &modes.path,
            "at least 1 access mode is required",
        ));
    }
    for mode in modes.items() {
        // Upstream names the list, not the item.
        if !ACCESS_MODES.contains(&mode.text()) {
            causes.push(Cause::not_supported(&modes.path, mode.value, &ACCESS_MODES));
        }
    }
    let count = modes.value.as_array().map_or(0, Vec::len);
    if count > 1 && modes.items().any(|mode| mode.text() == "ReadWriteOncePod") {
        modes.forbid(
            "may not use ReadWriteOncePod with other access modes",
            causes,
        );
    }
}

/// PersistentVolume.
pub fn persistent_volume(object: &Value, causes: &mut Causes) {
    let spec = At::root(object).field("spec");
    access_modes(&spec, causes);
    let capacity = spec.field("capacity");
    if capacity
        .value
        .as_object()
        .is_none_or(serde_json::Map::is_empty)
    {
        causes.push(Cause::required(&capacity.path, ""));
    } else if capacity.value.get("storage").is_none() || capacity.entries().count() > 1 {
        causes.push(Cause::not_supported(
            &capacity.path,
            capacity.value,
            &["storage"],
        ));
    }
    positive(&capacity, causes);
    let policy = spec.field("persistentVolumeReclaimPolicy");
    policy.choose_if_set(&["Delete", "Recycle", "Retain"], causes);
    spec.field("volumeMode")
        .choose_if_set(&["Block", "Filesystem"], causes);
    spec.field("storageClassName")
        .name_if_set(NameRule::Subdomain, causes);
    let affinity = spec.field("nodeAffinity").field("required");
    if affinity.value.is_object() {
        node_selector(&affinity, causes);
    } else if spec.field("nodeAffinity").value.is_object() {
        let why = "must specify required node constraints";
        causes.push(Cause::required(&affinity.path, why));
    }
    let sources = sources(&spec);
    match sources.as_slice() {
        [] => causes.push(Cause::required(&spec.path, "must specify a volume type")),
        [_, extra @ ..] => {
            for extra in extra {
                extra.forbid("may not specify more than 1 volume type", causes);
            }
        }
    }
    if spec.field("hostPath").value.is_object() {
        host_path(&spec.field("hostPath"), causes);
    }
    if spec.field("local").value.is_object() {
        spec.field("local").field("path").require(causes);
        if !affinity.value.is_object() {
            let path = "spec.nodeAffinity";
            causes.push(Cause::required(path, "Local volume requires node affinity"));
        }
    }
    if policy.text() == "Recycle" && spec.field("hostPath").field("path").text() == "/" {
        policy.forbid("may not be 'recycle' for a hostPath mount of '/'", causes);
    }
}

fn sources<'v>(spec: &At<'v>) -> Vec<At<'v>> {
    let fields = spec.value.as_object().into_iter().flatten();
    fields
        .filter(|(field, value)| value.is_object() && !NOT_A_SOURCE.contains(&&***field))
        .map(|(field, _)| spec.field(field))
        .collect()
}

fn positive(amounts: &At<'_>, causes: &mut Causes) {
    for (_, amount) in amounts.entries() {
        if amount
            .text()
            .parse::<Quantity>()
            .is_ok_and(|amount| amount.nanos() <= 0)
        {
            amount.invalid("must be greater than zero", causes);
        }
    }
}

/// A change of a PersistentVolume.
pub fn persistent_volume_update(new: &Value, old: &Value, causes: &mut Causes) {
    let (spec, before) = (
        At::root(new).field("spec"),
        At {
            value: old,
            path: String::new(),
        },
    );
    let before = before.field("spec");
    let pair = |spec: &At<'_>| -> Vec<(String, Value)> {
        sources(spec)
            .into_iter()
            .map(|source| (source.path, source.value.clone()))
            .collect()
    };
    if pair(&spec) != pair(&before) {
        let path = "spec.persistentvolumesource";
        causes.push(Cause::forbidden(
            path,
            "spec.persistentvolumesource is immutable after creation",
        ));
    }
    spec.field("volumeMode")
        .unchanged(before.field("volumeMode").value, causes);
    if before.field("nodeAffinity").value.is_object() {
        spec.field("nodeAffinity")
            .unchanged(before.field("nodeAffinity").value, causes);
    }
}

/// PersistentVolumeClaim.
pub fn persistent_volume_claim(object: &Value, causes: &mut Causes) {
    claim_spec(&At::root(object).field("spec"), causes);
}

/// The spec of a claim, wherever one is.
pub(super) fn claim_spec(spec: &At<'_>, causes: &mut Causes) {
    access_modes(spec, causes);
    spec.field("selector").selector(causes);
    let requests = spec.field("resources").field("requests");
    let storage = requests.value.get("storage");
    if storage.is_none() {
        causes.push(Cause::required(format!("{}[storage]", requests.path), ""));
    }
    amounts(&requests, causes);
    positive(&requests, causes);
    let class = spec.field("storageClassName");
    class.name_if_set(NameRule::Subdomain, causes);
    spec.field("volumeMode")
        .choose_if_set(&["Block", "Filesystem"], causes);
    for source in ["dataSource", "dataSourceRef"].map(|source| spec.field(source)) {
        if source.value.is_object() {
            source.field("name").require(causes);
            source.field("kind").require(causes);
        }
    }
}

/// A change of a PersistentVolumeClaim: once bound, it may grow.
pub fn persistent_volume_claim_update(new: &Value, old: &Value, causes: &mut Causes) {
    let mut rest = new["spec"].clone();
    let before = &old["spec"];
    let bound = !before["volumeName"].as_str().unwrap_or_default().is_empty();
    let mut keep = |field: &str| {
        if let Some(fields) = rest.as_object_mut() {
            match before.get(field) {
                Some(value) => fields.insert(field.to_owned(), value.clone()),
                None => fields.remove(field),
            };
        }
    };
    if bound || old["status"]["phase"] == "Bound" {
        keep("resources");
        keep("volumeAttributesClassName");
    } else {
        // The binder names the volume; a default class may come late.
        keep("volumeName");
        if before.get("storageClassName").is_none() {
            keep("storageClassName");
        }
    }
    if rest != *before {
        causes.push(Cause::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and \
             volumeAttributesClassName for bound claims",
        ));
    }
    let amount = |claim: &Value| {
        let text = claim["spec"]["resources"]["requests"]["storage"].as_str();
        text.and_then(|text| text.parse::<Quantity>().ok())
    };
    if amount(new) < amount(old) {
        let at = At::root(new)
            .field("spec")
            .field("resources")
            .field("requests")
            .field("storage");
        at.forbid("field can not be less than status.capacity", causes);
    }
}

/// StorageClass.
pub fn storage_class(object: &Value, causes: &mut Causes) {
    let root = At::root(object);
    let provisioner = root.field("provisioner");
    if provisioner.require(causes) {
        At {
            value: &provisioner.text().to_ascii_lowercase().into(),
            path: provisioner.path.clone(),
        }
        .qualified_name(causes);
    }
    root.field("reclaimPolicy")
        .choose_if_set(&["Delete", "Retain"], causes);
    root.field("volumeBindingMode")
        .choose(&["Immediate", "WaitForFirstConsumer"], causes);
}

/// A change of a StorageClass.
pub fn storage_class_update(new: &Value, old: &Value, causes: &mut Causes) {
    for field in ["parameters", "provisioner", "reclaimPolicy"] {
        if new[field] != old[field] {
            causes.push(Cause::forbidden(
                field,
                &format!("updates to {field} are forbidden."),
            ));
        }
    }
    At::root(new)
        .field("volumeBindingMode")
        .unchanged(&old["volumeBindingMode"], causes);
}
