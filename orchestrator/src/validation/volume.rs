//! Volumes of a pod.

use std::collections::BTreeSet;

use super::At;
use super::container::{no_steps_up, relative_path};
use super::environment::{field_reference, key, resource_reference};
use crate::resource::{Causes, NameRule};
use crate::schema::Quantity;
use crate::status::Cause;

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// The names of the volumes.
pub(super) fn names<'v>(list: &At<'v>) -> BTreeSet<&'v str> {
    list.items()
        .map(|volume| volume.field("name").text())
        .collect()
}

/// Checks the volumes and returns their names.
pub(super) fn volumes<'v>(list: &At<'v>, causes: &mut Causes) -> BTreeSet<&'v str> {
    let mut seen = BTreeSet::new();
    for volume in list.items() {
        let name = volume.field("name");
        name.name(NameRule::Label, causes);
        if name.is_set() && !seen.insert(name.text()) {
            name.duplicate(causes);
        }
        let fields = volume.value.as_object().into_iter().flatten();
        let sources: Vec<At<'v>> = fields
            .filter(|(field, source)| *field != "name" && source.is_object())
            .map(|(field, _)| volume.field(field))
            .collect();
        if sources.is_empty() {
            causes.push(Cause::required(&volume.path, "must specify a volume type"));
        }
        for extra in sources.iter().skip(1) {
            extra.forbid("may not specify more than 1 volume type", causes);
        }
        if let Some(first) = sources.first() {
            source(first, causes);
        }
    }
    seen
}

fn source(at: &At<'_>, causes: &mut Causes) {
    match at.path.rsplit('.').next().unwrap_or_default() {
        "emptyDir" => {
            let limit = at.field("sizeLimit");
            if limit
                .text()
                .parse::<Quantity>()
                .is_ok_and(|limit| limit.nanos() < 0)
            {
                limit.forbid("SizeLimit field must be a valid resource quantity", causes);
            }
        }
        "hostPath" => host_path(at, causes),
        "secret" => {
            at.field("secretName").require(causes);
            items(at, causes);
        }
        "configMap" => {
            at.field("name").require(causes);
            items(at, causes);
        }
        "downwardAPI" => {
            mode(&at.field("defaultMode"), causes);
            downward_items(at, causes);
        }
        "projected" => projected(at, causes),
        "persistentVolumeClaim" => drop(at.field("claimName").require(causes)),
        "nfs" => {
            at.field("server").require(causes);
            let path = at.field("path");
            if path.require(causes) && !path.text().starts_with('/') {
                path.invalid("must be an absolute path", causes);
            }
        }
        "csi" => drop(at.field("driver").require(causes)),
        "image" => {
            at.field("reference").require(causes);
            at.field("pullPolicy")
                .choose_if_set(&["Always", "IfNotPresent", "Never"], causes);
        }
        "ephemeral" => {
            let template = at.field("volumeClaimTemplate");
            if template.value.is_object() {
                super::storage::claim_spec(&template.field("spec"), causes);
            } else {
                causes.push(Cause::required(&template.path, ""));
            }
        }
        _ => {}
    }
}

/// A path on the host.
pub(super) fn host_path(at: &At<'_>, causes: &mut Causes) {
    let path = at.field("path");
    if path.require(causes) {
        no_steps_up(&path, causes);
    }
    at.field("type").choose_if_set(
        &[
            "BlockDevice",
            "CharDevice",
            "Directory",
            "DirectoryOrCreate",
            "File",
            "FileOrCreate",
            "Socket",
        ],
        causes,
    );
}

fn mode(at: &At<'_>, causes: &mut Causes) {
    if at.int().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        at.invalid(MODE, causes);
    }
}

/// Keys of a Secret or ConfigMap and the paths they go to.
fn items(at: &At<'_>, causes: &mut Causes) {
    mode(&at.field("defaultMode"), causes);
    for item in at.field("items").items() {
        key(&item.field("key"), causes);
        let path = item.field("path");
        if path.require(causes) {
            relative_path(&path, causes);
            if path.text().starts_with("..") && !path.text().starts_with("../") {
                path.invalid("must not start with '..'", causes);
            }
        }
        mode(&item.field("mode"), causes);
    }
}

fn downward_items(at: &At<'_>, causes: &mut Causes) {
    for item in at.field("items").items() {
        let path = item.field("path");
        if path.require(causes) {
            relative_path(&path, causes);
        }
        let (field, resource) = (item.field("fieldRef"), item.field("resourceFieldRef"));
        match (field.value.is_object(), resource.value.is_object()) {
            (true, true) => {
                item.invalid(
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                    causes,
                );
            }
            (false, false) => causes.push(Cause::required(
                &item.path,
                "one of fieldRef and resourceFieldRef is required",
            )),
            _ => {}
        }
        field_reference(&field, false, causes);
        resource_reference(&resource, true, causes);
        mode(&item.field("mode"), causes);
    }
}

fn projected(at: &At<'_>, causes: &mut Causes) {
    mode(&at.field("defaultMode"), causes);
    for entry in at.field("sources").items() {
        for source in ["secret", "configMap"].map(|source| entry.field(source)) {
            if source.value.is_object() {
                source.field("name").require(causes);
                items(&source, causes);
            }
        }
        downward_items(&entry.field("downwardAPI"), causes);
        let token = entry.field("serviceAccountToken");
        if token.value.is_object() {
            let seconds = token.field("expirationSeconds");
            if seconds.int().is_some_and(|seconds| seconds < 600) {
                seconds.invalid("may not specify a duration less than 10 minutes", causes);
            }
            if seconds.int().is_some_and(|seconds| seconds > 1 << 32) {
                seconds.invalid(
                    "may not specify a duration larger than 2^32 seconds",
                    causes,
                );
            }
            let path = token.field("path");
            if path.require(causes) {
                relative_path(&path, causes);
            }
        }
    }
}
