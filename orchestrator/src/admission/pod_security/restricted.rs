//! The checks that the restricted level adds to, or puts in place of, the baseline's.

use serde_json::Value;

use super::Violation;
use super::baseline::{added_capabilities, forbidden_additions, forbidden_seccomp, seccomp_detail};
use super::pod::{Found, Pod, name, plural, quoted, violation};

type Check = fn(&Pod<'_>) -> Option<Violation>;

/// The restricted checks, in upstream's order.
pub(super) const ALL: &[Check] = &[
    privilege_escalation,
    capabilities,
    volumes,
    run_as_non_root,
    run_as_user,
    seccomp,
];

const VOLUME_TYPES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

fn privilege_escalation(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let found = pod.search(|container| {
        (container["securityContext"]["allowPrivilegeEscalation"] != false).then(Vec::new)
    });
    if found.is_none() {
        return None;
    }
    violation(
        "allowPrivilegeEscalation != false",
        format!(
            "{} must set securityContext.allowPrivilegeEscalation=false",
            found.containers()
        ),
    )
}

fn capabilities(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let undropped = pod.search(|container| {
        let dropped = container["securityContext"]["capabilities"]["drop"].as_array();
        let all = dropped.is_some_and(|list| list.iter().any(|name| name == "ALL"));
        (!all).then(Vec::new)
    });
    let added = added_capabilities(pod, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !undropped.is_none() {
        details.push(format!(
            "{} must set securityContext.capabilities.drop=[\"ALL\"]",
            undropped.containers()
        ));
    }
    if !added.is_none() {
        details.push(forbidden_additions(&added));
    }
    if details.is_empty() {
        None
    } else {
        violation("unrestricted capabilities", details.join("; "))
    }
}

fn volumes(pod: &Pod<'_>) -> Option<Violation> {
    let mut found = Found::default();
    for volume in pod.volumes() {
        let kind = volume.as_object().into_iter().flatten();
        let kind = kind.map(|(key, _)| key.as_str()).find(|key| *key != "name");
        // A volume without a source is an emptyDir.
        if kind.is_some_and(|kind| !VOLUME_TYPES.contains(&kind)) {
            found.names.push(name(volume));
            found.values.extend(kind.map(str::to_owned));
        }
    }
    if found.is_none() {
        return None;
    }
    let verb = if found.names.len() == 1 {
        "uses"
    } else {
        "use"
    };
    let types = quoted(found.values.iter().map(String::as_str));
    let ending = plural(found.values.len());
    let detail = format!(
        "{} {verb} restricted volume type{ending} {types}",
        found.called("volume")
    );
    violation("restricted volume types", detail)
}

fn run_as_non_root(pod: &Pod<'_>) -> Option<Violation> {
    let field = |context: &Value| context["runAsNonRoot"].as_bool();
    let setters = pod.setters(|context| field(context) == Some(false));
    let reason = "runAsNonRoot != true";
    if !setters.is_empty() {
        let detail = format!(
            "{} must not set securityContext.runAsNonRoot=false",
            setters.join(" and ")
        );
        return violation(reason, detail);
    }
    if field(pod.security()) == Some(true) {
        return None;
    }
    let silent = pod.search(|c| field(&c["securityContext"]).is_none().then(Vec::new));
    if silent.is_none() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.runAsNonRoot=true",
        silent.containers()
    );
    violation(reason, detail)
}

fn run_as_user(pod: &Pod<'_>) -> Option<Violation> {
    let setters = pod.setters(|context| context["runAsUser"] == 0);
    if setters.is_empty() {
        return None;
    }
    violation(
        "runAsUser=0",
        format!("{} must not set runAsUser=0", setters.join(" and ")),
    )
}

fn seccomp(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let reason = "seccompProfile";
    let (setters, values) = forbidden_seccomp(pod);
    if !setters.is_empty() {
        return violation(reason, seccomp_detail(&setters, &values));
    }
    let set = |context: &Value| context["seccompProfile"]["type"].is_string();
    if set(pod.security()) {
        return None;
    }
    let silent = pod.search(|container| (!set(&container["securityContext"])).then(Vec::new));
    if silent.is_none() {
        return None;
    }
    violation(
        reason,
        format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \
             \"Localhost\"",
            silent.containers()
        ),
    )
}
