//! Pods and pod templates.

use std::collections::BTreeSet;

use serde_json::Value;

use super::container::{self, Names};
use super::{At, scheduling, volume};
use crate::resource::{Causes, NameRule};
use crate::status::Cause;

const SPEC_CHANGE: &str = "pod updates may not change fields other than \
    `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
    `spec.tolerations` (only additions to existing tolerations),\
    `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// What is wrong with a Pod.
pub fn pod(object: &Value, causes: &mut Causes) {
    pod_spec(&At::root(object).field("spec"), causes);
}

/// What is wrong with a Pod that is new.
pub fn pod_create(object: &Value, causes: &mut Causes) {
    let ephemeral = At::root(object).field("spec").field("ephemeralContainers");
    if ephemeral.is_set() {
        ephemeral.forbid("cannot be set on create", causes);
    }
}

/// What is wrong with the template at `spec.template` of a workload.
pub fn pod_template(object: &Value, path: &str, causes: &mut Causes) {
    let template = At {
        value: object,
        path: path.to_owned(),
    };
    template.field("metadata").field("labels").labels(causes);
    pod_spec(&template.field("spec"), causes);
    let ephemeral = template.field("spec").field("ephemeralContainers");
    if ephemeral.is_set() {
        ephemeral.forbid("ephemeral containers not allowed in pod template", causes);
    }
}

fn pod_spec(spec: &At<'_>, causes: &mut Causes) {
    let mut names = Names::of(spec);
    names.volumes = volume::volumes(&spec.field("volumes"), causes);
    let host_network = spec.field("hostNetwork").flag();
    if spec.field("containers").require(causes) {
        for container in spec.field("containers").items() {
            container::container(&container, &mut names, host_network, causes);
        }
    }
    for container in spec.field("initContainers").items() {
        container::init_container(&container, &mut names, host_network, causes);
    }
    for container in spec.field("ephemeralContainers").items() {
        container::ephemeral_container(&container, &mut names, causes);
    }
    container::host_ports(spec, causes);
    spec.field("restartPolicy")
        .choose(&["Always", "OnFailure", "Never"], causes);
    dns(spec, causes);
    spec.field("terminationGracePeriodSeconds")
        .not_negative(causes);
    spec.field("activeDeadlineSeconds")
        .in_range(1, i64::from(i32::MAX), causes);
    spec.field("nodeSelector").labels(causes);
    for name in [
        "nodeName",
        "serviceAccountName",
        "priorityClassName",
        "runtimeClassName",
    ] {
        spec.field(name).name_if_set(NameRule::Subdomain, causes);
    }
    for name in ["hostname", "subdomain"] {
        spec.field(name).name_if_set(NameRule::Label, causes);
    }
    for secret in spec.field("imagePullSecrets").items() {
        if !secret.field("name").is_set() {
            causes.push(Cause::required(secret.field("name").path, ""));
        }
    }
    host_aliases(spec, causes);
    security(spec, causes);
    scheduling::scheduling(spec, causes);
    spec.field("preemptionPolicy")
        .choose_if_set(&["Never", "PreemptLowerPriority"], causes);
    let os = spec.field("os");
    if os.value.is_object() {
        os.field("name").choose(&["linux", "windows"], causes);
    }
    let mut gates = BTreeSet::new();
    for gate in spec.field("schedulingGates").items() {
        let name = gate.field("name");
        if name.require(causes) {
            name.qualified_name(causes);
            if !gates.insert(name.text()) {
                gate.duplicate(causes);
            }
        }
    }
    for gate in spec.field("readinessGates").items() {
        gate.field("conditionType").qualified_name(causes);
    }
    container::amounts(&spec.field("overhead"), causes);
}

fn dns(spec: &At<'_>, causes: &mut Causes) {
    let policy = spec.field("dnsPolicy");
    policy.choose(
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        causes,
    );
    let config = spec.field("dnsConfig");
    let servers = config.field("nameservers");
    if policy.text() == "None" && !servers.is_set() {
        causes.push(Cause::required(
            "spec.dnsConfig.nameservers",
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        ));
    }
    let count = |at: &At<'_>| at.value.as_array().map_or(0, Vec::len);
    if count(&servers) > 3 {
        servers.invalid("must not have more than 3 nameservers", causes);
    }
    for server in servers.items() {
        ip_address(&server, causes);
    }
    let searches = config.field("searches");
    if count(&searches) > 32 {
        searches.invalid("must not have more than 32 search paths", causes);
    }
    for option in config.field("options").items() {
        option.field("name").require(causes);
    }
}

/// An IP address, v4 or v6.
pub(super) fn ip_address(at: &At<'_>, causes: &mut Causes) {
    if at.text().parse::<std::net::IpAddr>().is_err() {
        at.invalid(
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            causes,
        );
    }
}

fn host_aliases(spec: &At<'_>, causes: &mut Causes) {
    for alias in spec.field("hostAliases").items() {
        ip_address(&alias.field("ip"), causes);
        for name in alias.field("hostnames").items() {
            name.name(NameRule::Subdomain, causes);
        }
    }
}

fn security(spec: &At<'_>, causes: &mut Causes) {
    let context = spec.field("securityContext");
    for id in ["runAsUser", "runAsGroup", "fsGroup"] {
        context.field(id).in_range(0, i64::from(i32::MAX), causes);
    }
    for group in context.field("supplementalGroups").items() {
        group.in_range(0, i64::from(i32::MAX), causes);
    }
    context
        .field("fsGroupChangePolicy")
        .choose_if_set(&["Always", "OnRootMismatch"], causes);
    container::seccomp(&context.field("seccompProfile"), causes);
    let mut seen = BTreeSet::new();
    for control in context.field("sysctls").items() {
        let name = control.field("name");
        if name.require(causes) && !seen.insert(name.text()) {
            name.duplicate(causes);
        }
    }
    if spec.field("shareProcessNamespace").flag() && spec.field("hostPID").flag() {
        let at = spec.field("shareProcessNamespace");
        at.invalid(
            "ShareProcessNamespace and HostPID cannot both be enabled",
            causes,
        );
    }
}

/// What is wrong with a change of a Pod's spec.
pub fn pod_update(new: &Value, old: &Value, causes: &mut Causes) {
    for list in ["containers", "initContainers"] {
        let count = |pod: &Value| pod["spec"][list].as_array().map_or(0, Vec::len);
        if count(new) != count(old) {
            let path = format!("spec.{list}");
            causes.push(Cause::forbidden(
                path,
                "pod updates may not add or remove containers",
            ));
            return;
        }
    }
    let deadline = At::root(new).field("spec").field("activeDeadlineSeconds");
    let before = old["spec"]["activeDeadlineSeconds"].as_i64();
    match (deadline.int(), before) {
        (Some(new), Some(old)) if new > old => {
            deadline.invalid("must be less than or equal to previous value", causes);
        }
        (None, Some(_)) => deadline.invalid(
            "must not update from a positive integer to nil value",
            causes,
        ),
        _ => {}
    }
    tolerations_update(new, old, causes);
    let mut allowed = new.clone();
    permit(&mut allowed, old);
    if without_nulls(&allowed["spec"]) != without_nulls(&old["spec"]) {
        causes.push(Cause::forbidden("spec", SPEC_CHANGE));
    }
}

/// Rules that fill in fields may leave nulls where there was nothing.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), without_nulls(value)))
            .collect(),
        Value::Array(list) => list.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// Sets everything that may change back to what it was.
fn permit(new: &mut Value, old: &Value) {
    let before = &old["spec"];
    let Some(spec) = new.get_mut("spec") else {
        return;
    };
    for list in ["containers", "initContainers"] {
        let after = spec.get_mut(list).and_then(Value::as_array_mut);
        let before = before[list].as_array().into_iter().flatten();
        for (new, old) in after.into_iter().flatten().zip(before) {
            put_back(new, old, "image");
        }
    }
    put_back(spec, before, "activeDeadlineSeconds");
    put_back(spec, before, "tolerations");
    let grace = |spec: &Value| spec["terminationGracePeriodSeconds"].as_i64();
    if grace(before).is_some_and(|seconds| seconds < 0) && grace(spec) == Some(1) {
        put_back(spec, before, "terminationGracePeriodSeconds");
    }
    // Gates may go but not come.
    let gates = |spec: &Value| {
        spec["schedulingGates"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    let held = gates(before);
    if gates(spec).iter().all(|gate| held.contains(gate)) {
        put_back(spec, before, "schedulingGates");
    }
    if !held.is_empty() {
        permit_narrowing(spec, before);
    }
}

/// While a pod is gated its node selection may become narrower.
fn permit_narrowing(spec: &mut Value, old: &Value) {
    let before = old["nodeSelector"].as_object();
    let kept = before
        .into_iter()
        .flatten()
        .all(|(key, value)| spec["nodeSelector"].get(key) == Some(value));
    if kept {
        put_back(spec, old, "nodeSelector");
    }
    if old.get("affinity").is_none() {
        put_back(spec, old, "affinity");
    }
}

fn put_back(new: &mut Value, old: &Value, field: &str) {
    let Some(fields) = new.as_object_mut() else {
        return;
    };
    match old.get(field) {
        Some(value) => fields.insert(field.to_owned(), value.clone()),
        None => fields.remove(field),
    };
}

fn tolerations_update(new: &Value, old: &Value, causes: &mut Causes) {
    let list = |pod: &Value| {
        pod["spec"]["tolerations"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    let without_time = |toleration: &Value| {
        let mut toleration = toleration.clone();
        if let Some(fields) = toleration.as_object_mut() {
            fields.remove("tolerationSeconds");
        }
        toleration
    };
    let now: Vec<Value> = list(new).iter().map(without_time).collect();
    if !list(old)
        .iter()
        .all(|toleration| now.contains(&without_time(toleration)))
    {
        causes.push(Cause::forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
}

/// What is wrong with a change through `/ephemeralcontainers`: they may only be added.
pub fn ephemeral_containers_update(new: &Value, old: &Value, causes: &mut Causes) {
    let at = At::root(new).field("spec").field("ephemeralContainers");
    let after = at.value.as_array().map_or(&[][..], Vec::as_slice);
    for before in old["spec"]["ephemeralContainers"]
        .as_array()
        .into_iter()
        .flatten()
    {
        match after
            .iter()
            .find(|container| container["name"] == before["name"])
        {
            None => {
                let name = before["name"].as_str().unwrap_or_default();
                at.forbid(
                    &format!("existing ephemeral containers {name:?} may not be removed\n"),
                    causes,
                );
            }
            Some(container) if container != before => {
                let name = before["name"].as_str().unwrap_or_default();
                at.forbid(
                    &format!("existing ephemeral containers {name:?} may not be changed\n"),
                    causes,
                );
            }
            Some(_) => {}
        }
    }
    let mut names = Names::of(&At::root(new).field("spec"));
    names.volumes = volume::names(&At::root(new).field("spec").field("volumes"));
    for container in at.items() {
        container::ephemeral_container(&container, &mut names, causes);
    }
}
