//! Containers of every sort.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{At, environment, port_name_problem, port_number_or_name};
use crate::cache::selector::label_key_problem;
use crate::resource::{Causes, NameRule};
use crate::schema::Quantity;
use crate::status::Cause;

/// Names that containers of one pod may not share, or may refer to.
#[derive(Debug, Default)]
pub(super) struct Names<'v> {
    containers: BTreeSet<&'v str>,
    pub(super) volumes: BTreeSet<&'v str>,
    /// Containers that an ephemeral one may aim at.
    targets: BTreeSet<&'v str>,
}

impl<'v> Names<'v> {
    pub(super) fn of(spec: &At<'v>) -> Self {
        let lists = ["containers", "initContainers"].map(|list| spec.field(list));
        let targets = lists
            .iter()
            .flat_map(At::items)
            .map(|container| container.field("name").text());
        Self {
            targets: targets.collect(),
            ..Self::default()
        }
    }
}

/// What only sidecars may have among init containers.
const SIDECAR_ONLY: [&str; 4] = [
    "lifecycle",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
];

pub(super) fn container<'v>(
    at: &At<'v>,
    names: &mut Names<'v>,
    host_network: bool,
    causes: &mut Causes,
) {
    common(at, names, causes);
    ports(&at.field("ports"), host_network, causes);
    for (probe, once) in [
        ("livenessProbe", true),
        ("readinessProbe", false),
        ("startupProbe", true),
    ] {
        self::probe(&at.field(probe), once, causes);
    }
    for hook in ["postStart", "preStop"] {
        let hook = at.field("lifecycle").field(hook);
        if hook.value.is_object() {
            handler(&hook, &["exec", "httpGet", "tcpSocket", "sleep"], causes);
        }
    }
}

pub(super) fn init_container<'v>(
    at: &At<'v>,
    names: &mut Names<'v>,
    host_network: bool,
    causes: &mut Causes,
) {
    at.field("restartPolicy")
        .choose_if_set(&["Always", "Never", "OnFailure"], causes);
    let sidecar = at.field("restartPolicy").text() == "Always";
    container(at, names, host_network, causes);
    for field in SIDECAR_ONLY.iter().filter(|_| !sidecar) {
        if at.field(field).value.is_object() {
            let why = "may not be set for init containers without restartPolicy=Always";
            at.field(field).forbid(why, causes);
        }
    }
}

pub(super) fn ephemeral_container<'v>(at: &At<'v>, names: &mut Names<'v>, causes: &mut Causes) {
    common(at, names, causes);
    let target = at.field("targetContainerName");
    if target.is_set() && !names.targets.contains(target.text()) {
        causes.push(Cause::not_found(&target.path, target.value));
    }
    for field in [
        "ports",
        "lifecycle",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "resizePolicy",
    ] {
        if at.field(field).is_set() {
            at.field(field)
                .forbid("cannot be set for an Ephemeral Container", causes);
        }
    }
    let resources = at.field("resources");
    if resources.field("limits").value.is_object() || resources.field("requests").value.is_object()
    {
        resources.forbid("cannot be set for an Ephemeral Container", causes);
    }
}

/// What all containers have.
fn common<'v>(at: &At<'v>, names: &mut Names<'v>, causes: &mut Causes) {
    let name = at.field("name");
    name.name(NameRule::Label, causes);
    if name.is_set() && !names.containers.insert(name.text()) {
        name.duplicate(causes);
    }
    let image = at.field("image");
    if image.require(causes) && image.text().trim() != image.text() {
        image.invalid("must not have leading or trailing whitespace", causes);
    }
    at.field("imagePullPolicy")
        .choose(&["Always", "IfNotPresent", "Never"], causes);
    let message = at.field("terminationMessagePolicy");
    message.choose(&["FallbackToLogsOnError", "File"], causes);
    environment::environment(at, causes);
    mounts(at, names, causes);
    resources(&at.field("resources"), causes);
    security(&at.field("securityContext"), causes);
}

fn ports(list: &At<'_>, host_network: bool, causes: &mut Causes) {
    let mut names = BTreeSet::new();
    for port in list.items() {
        let name = port.field("name");
        if name.is_set() {
            if let Some(why) = port_name_problem(name.text()) {
                name.invalid(why, causes);
            } else if !names.insert(name.text()) {
                name.duplicate(causes);
            }
        }
        let number = port.field("containerPort");
        if number.int().unwrap_or(0) == 0 {
            causes.push(Cause::required(&number.path, ""));
        } else {
            number.in_range(1, 65535, causes);
        }
        let host = port.field("hostPort");
        if host.int().unwrap_or(0) != 0 {
            host.in_range(1, 65535, causes);
            if host_network && host.int() != number.int() {
                number.invalid("must match `hostPort` when `hostNetwork` is true", causes);
            }
        }
        port.field("protocol")
            .choose(&["SCTP", "TCP", "UDP"], causes);
        if port.field("hostIP").is_set() {
            super::pod::ip_address(&port.field("hostIP"), causes);
        }
    }
}

/// Two ports of a pod may not take the same port of its host.
pub(super) fn host_ports(spec: &At<'_>, causes: &mut Causes) {
    let mut taken = BTreeSet::new();
    for list in ["containers", "initContainers"] {
        for port in spec
            .field(list)
            .items()
            .flat_map(|container| container.field("ports").items())
        {
            let number = port.field("hostPort").int().unwrap_or(0);
            let (protocol, ip) = (port.field("protocol").text(), port.field("hostIP").text());
            let name = format!("{protocol}/{ip}/{number}");
            if number != 0 && list == "containers" && !taken.insert(name.clone()) {
                causes.push(Cause::duplicate(port.field("hostPort").path, &name.into()));
            }
        }
    }
}

fn mounts(at: &At<'_>, names: &Names<'_>, causes: &mut Causes) {
    let mut paths = BTreeSet::new();
    for mount in at.field("volumeMounts").items() {
        let name = mount.field("name");
        if name.require(causes) && !names.volumes.contains(name.text()) {
            causes.push(Cause::not_found(&name.path, name.value));
        }
        let path = mount.field("mountPath");
        if path.require(causes) && !paths.insert(path.text()) {
            path.invalid("must be unique", causes);
        }
        let (sub, expression) = (mount.field("subPath"), mount.field("subPathExpr"));
        for path in [&sub, &expression] {
            relative_path(path, causes);
        }
        if sub.is_set() && expression.is_set() {
            expression.invalid("subPathExpr and subPath are mutually exclusive", causes);
        }
        let propagation = mount.field("mountPropagation");
        propagation.choose_if_set(&["Bidirectional", "HostToContainer", "None"], causes);
        let privileged = at.field("securityContext").field("privileged").flag();
        if propagation.text() == "Bidirectional" && !privileged {
            let why = "Bidirectional mount propagation is available only to privileged containers";
            propagation.forbid(why, causes);
        }
    }
}

/// A path below another: relative, without steps up.
pub(super) fn relative_path(at: &At<'_>, causes: &mut Causes) {
    if at.text().starts_with('/') {
        at.invalid("must be a relative path", causes);
    }
    no_steps_up(at, causes);
}

pub(super) fn no_steps_up(at: &At<'_>, causes: &mut Causes) {
    if at.text().split('/').any(|step| step == "..") {
        at.invalid("must not contain '..'", causes);
    }
}

/// Amounts of resources: known names, none negative. Returns those that can be read.
pub(super) fn amounts<'v>(at: &At<'v>, causes: &mut Causes) -> BTreeMap<&'v str, Quantity> {
    let mut amounts = BTreeMap::new();
    for (name, amount) in at.entries() {
        if let Some(why) = label_key_problem(name) {
            causes.push(Cause::invalid(&amount.path, &name.into(), why));
        } else if !is_standard(name) && !name.contains('/') {
            let why = "must be a standard resource type or fully qualified";
            causes.push(Cause::invalid(&amount.path, &name.into(), why));
        }
        if let Ok(quantity) = amount.text().parse::<Quantity>() {
            if quantity.nanos() < 0 {
                amount.invalid(super::NOT_NEGATIVE, causes);
            } else if name != "cpu" && quantity.nanos() % 1_000_000_000 != 0 && name.contains('/') {
                amount.invalid("must be an integer", causes);
            }
            amounts.insert(name, quantity);
        }
    }
    amounts
}

fn is_standard(name: &str) -> bool {
    matches!(
        name,
        "cpu" | "memory" | "ephemeral-storage" | "storage" | "pods"
    ) || name.starts_with("hugepages-")
}

fn resources(at: &At<'_>, causes: &mut Causes) {
    let limits = amounts(&at.field("limits"), causes);
    let requests = amounts(&at.field("requests"), causes);
    for (name, request) in at.field("requests").entries() {
        match (requests.get(name), limits.get(name)) {
            (Some(amount), Some(limit)) if amount > limit => {
                request.invalid(
                    format!("must be less than or equal to {name} limit of {limit}"),
                    causes,
                );
            }
            (Some(amount), Some(limit)) if name.contains('/') && amount != limit => {
                request.invalid(format!("must be equal to {name} limit of {limit}"), causes);
            }
            (Some(_), None) if name.contains('/') || name.starts_with("hugepages-") => {
                causes.push(Cause::required(
                    format!("{}.limits", at.path),
                    "Limit must be set for non overcommitable resources",
                ));
            }
            _ => {}
        }
    }
}

fn security(at: &At<'_>, causes: &mut Causes) {
    for id in ["runAsUser", "runAsGroup"] {
        at.field(id).in_range(0, i64::from(i32::MAX), causes);
    }
    at.field("procMount")
        .choose_if_set(&["Default", "Unmasked"], causes);
    seccomp(&at.field("seccompProfile"), causes);
    let escalation = at.field("allowPrivilegeEscalation");
    if escalation.value == &Value::Bool(false) {
        let added = at.field("capabilities").field("add");
        if at.field("privileged").flag() {
            at.invalid(
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
                causes,
            );
        }
        if added
            .items()
            .any(|capability| matches!(capability.text(), "CAP_SYS_ADMIN" | "SYS_ADMIN"))
        {
            at.invalid(
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
                causes,
            );
        }
    }
}

/// A seccomp profile: a local one has a path, no other has.
pub(super) fn seccomp(at: &At<'_>, causes: &mut Causes) {
    if !at.value.is_object() {
        return;
    }
    at.field("type")
        .choose(&["Localhost", "RuntimeDefault", "Unconfined"], causes);
    let path = at.field("localhostProfile");
    if at.field("type").text() == "Localhost" {
        if path.is_set() {
            relative_path(&path, causes);
        } else {
            let why = "must be set when seccomp type is Localhost";
            causes.push(Cause::required(&path.path, why));
        }
    } else if path.is_set() {
        path.invalid("can only be set when seccomp type is Localhost", causes);
    }
}

fn probe(at: &At<'_>, once: bool, causes: &mut Causes) {
    if !at.value.is_object() {
        return;
    }
    handler(at, &["exec", "grpc", "httpGet", "tcpSocket"], causes);
    for number in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        at.field(number).not_negative(causes);
    }
    let grace = at.field("terminationGracePeriodSeconds");
    if grace.int().is_some_and(|seconds| seconds <= 0) {
        grace.invalid("must be greater than 0", causes);
    }
    let successes = at.field("successThreshold");
    if once && successes.int().is_some_and(|count| count != 1) {
        successes.invalid("must be 1", causes);
    }
    if !once && grace.value.is_number() {
        grace.invalid("must not be set for readinessProbes", causes);
    }
}

fn handler(at: &At<'_>, kinds: &[&str], causes: &mut Causes) {
    let given: Vec<_> = kinds
        .iter()
        .map(|kind| at.field(kind))
        .filter(|kind| kind.value.is_object())
        .collect();
    if given.is_empty() {
        causes.push(Cause::required(&at.path, "must specify a handler type"));
    }
    for extra in given.iter().skip(1) {
        extra.forbid("may not specify more than 1 handler type", causes);
    }
    if let Some(action) = given.first() {
        match action.path.rsplit('.').next() {
            Some("exec") => drop(action.field("command").require(causes)),
            Some("httpGet") => {
                action.field("path").require(causes);
                port_number_or_name(&action.field("port"), causes);
                action
                    .field("scheme")
                    .choose_if_set(&["HTTP", "HTTPS"], causes);
                for header in action.field("httpHeaders").items() {
                    let name = header.field("name");
                    let token = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
                    if !name.is_set() || !name.text().bytes().all(token) {
                        name.invalid(
                            "a valid HTTP header must consist of alphanumeric characters or '-' \
                             (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')",
                            causes,
                        );
                    }
                }
            }
            Some("grpc") => action.field("port").in_range(1, 65535, causes),
            Some("tcpSocket") => port_number_or_name(&action.field("port"), causes),
            _ => {}
        }
    }
}
