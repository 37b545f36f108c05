//! The checks of the baseline level.

use serde_json::Value;

use super::Violation;
use super::pod::{Found, Pod, name, plural, quoted, violation};

type Check = fn(&Pod<'_>) -> Option<Violation>;

/// Checks that hold at baseline and restricted alike.
pub(super) const ALWAYS: &[Check] = &[
    app_armor,
    host_namespaces,
    host_ports,
    probe_hosts,
    privileged,
    proc_mount,
    selinux,
    sysctls,
    windows_host_process,
];

/// Checks for which restricted has a stricter one.
pub(super) const REPLACED_BY_RESTRICTED: &[Check] = &[capabilities, host_path, seccomp];

const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

fn app_armor(pod: &Pod<'_>) -> Option<Violation> {
    let kind = |context: &Value| {
        context["appArmorProfile"]["type"]
            .as_str()
            .map(str::to_owned)
    };
    let bad = |context: &Value| {
        kind(context).is_some_and(|k| !["RuntimeDefault", "Localhost"].contains(&&*k))
    };
    let mut setters = pod.setters(bad);
    let mut values: Vec<String> = pod
        .containers()
        .map(|c| &c["securityContext"])
        .chain([pod.security()])
        .filter(|context| bad(context))
        .filter_map(kind)
        .collect();
    let annotations = pod.metadata["annotations"].as_object();
    for (key, value) in annotations.into_iter().flatten() {
        let Some(text) = value.as_str() else { continue };
        let allowed =
            text.is_empty() || text == "runtime/default" || text.starts_with("localhost/");
        if key.starts_with("container.apparmor.security.beta.kubernetes.io/") && !allowed {
            setters.push(format!("annotation {key:?}"));
            values.push(text.to_owned());
        }
    }
    values.sort_unstable();
    values.dedup();
    if setters.is_empty() {
        return None;
    }
    violation(
        format!("forbidden AppArmor profile{}", plural(values.len())),
        format!(
            "{} must not set AppArmor profile type to {}",
            setters.join(" and "),
            quoted(values.iter().map(String::as_str))
        ),
    )
}

fn capabilities(pod: &Pod<'_>) -> Option<Violation> {
    let found = added_capabilities(pod, &DEFAULT_CAPABILITIES);
    if found.is_none() {
        return None;
    }
    violation("non-default capabilities", forbidden_additions(&found))
}

/// Containers that add capabilities other than those allowed.
pub(super) fn added_capabilities<'a>(pod: &Pod<'a>, allowed: &[&str]) -> Found<'a> {
    pod.search(|container| {
        let added = container["securityContext"]["capabilities"]["add"].as_array()?;
        let bad = added
            .iter()
            .filter_map(Value::as_str)
            .filter(|name| !allowed.contains(name));
        let bad: Vec<String> = bad.map(str::to_owned).collect();
        (!bad.is_empty()).then_some(bad)
    })
}

pub(super) fn forbidden_additions(found: &Found<'_>) -> String {
    format!(
        "{} must not include {} in securityContext.capabilities.add",
        found.containers(),
        quoted(found.values.iter().map(String::as_str))
    )
}

fn host_namespaces(pod: &Pod<'_>) -> Option<Violation> {
    let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| pod.spec[field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    if used.is_empty() {
        None
    } else {
        violation("host namespaces", used.join(", "))
    }
}

fn host_path(pod: &Pod<'_>) -> Option<Violation> {
    let names = pod
        .volumes()
        .filter(|volume| !volume["hostPath"].is_null())
        .map(name)
        .collect();
    let found = Found {
        names,
        ..Found::default()
    };
    if found.is_none() {
        None
    } else {
        violation("hostPath volumes", found.called("volume"))
    }
}

fn host_ports(pod: &Pod<'_>) -> Option<Violation> {
    let found = pod.search(|container| {
        let ports = container["ports"].as_array()?.iter();
        let used = ports
            .filter_map(|port| port["hostPort"].as_u64())
            .filter(|port| *port != 0);
        let used: Vec<String> = used.map(|port| port.to_string()).collect();
        (!used.is_empty()).then_some(used)
    });
    if found.is_none() {
        return None;
    }
    let verb = if found.names.len() == 1 {
        "uses"
    } else {
        "use"
    };
    let ports = found.values.iter().cloned().collect::<Vec<_>>().join(", ");
    let detail = format!(
        "{} {verb} hostPort{} {ports}",
        found.containers(),
        plural(found.values.len())
    );
    violation("hostPort", detail)
}

fn probe_hosts(pod: &Pod<'_>) -> Option<Violation> {
    const HANDLERS: [&str; 5] = [
        "/livenessProbe",
        "/readinessProbe",
        "/startupProbe",
        "/lifecycle/postStart",
        "/lifecycle/preStop",
    ];
    let found = pod.search(|container| {
        let handlers = HANDLERS.iter().filter_map(|path| container.pointer(path));
        let hosts = handlers
            .flat_map(|handler| [&handler["httpGet"]["host"], &handler["tcpSocket"]["host"]])
            .filter_map(Value::as_str)
            .filter(|host| !["", "127.0.0.1", "::1"].contains(host));
        let hosts: Vec<String> = hosts.map(str::to_owned).collect();
        (!hosts.is_empty()).then_some(hosts)
    });
    if found.is_none() {
        return None;
    }
    let verb = if found.names.len() == 1 {
        "uses"
    } else {
        "use"
    };
    let hosts = quoted(found.values.iter().map(String::as_str));
    let ending = plural(found.values.len());
    let detail = format!(
        "{} {verb} probe or lifecycle host{ending} {hosts}",
        found.containers()
    );
    violation("probe or lifecycle host", detail)
}

fn privileged(pod: &Pod<'_>) -> Option<Violation> {
    let found = pod.search(|c| (c["securityContext"]["privileged"] == true).then(Vec::new));
    if found.is_none() {
        return None;
    }
    let detail = format!(
        "{} must not set securityContext.privileged=true",
        found.containers()
    );
    violation("privileged", detail)
}

fn proc_mount(pod: &Pod<'_>) -> Option<Violation> {
    let found = pod.search(|container| {
        let mount = container["securityContext"]["procMount"].as_str()?;
        (mount != "Default").then(|| vec![mount.to_owned()])
    });
    if found.is_none() {
        return None;
    }
    let values = quoted(found.values.iter().map(String::as_str));
    let detail = format!(
        "{} must not set securityContext.procMount to {values}",
        found.containers()
    );
    violation("procMount", detail)
}

fn selinux(pod: &Pod<'_>) -> Option<Violation> {
    const TYPES: [&str; 5] = [
        "",
        "container_t",
        "container_init_t",
        "container_kvm_t",
        "container_engine_t",
    ];
    let options = |context: &'_ Value, field: &str| {
        context["seLinuxOptions"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let bad_type = |context: &Value| !TYPES.contains(&&*options(context, "type"));
    let contexts = || {
        pod.containers()
            .map(|c| &c["securityContext"])
            .chain([pod.security()])
    };
    let setters = pod.setters(|context| {
        bad_type(context)
            || !options(context, "user").is_empty()
            || !options(context, "role").is_empty()
    });
    if setters.is_empty() {
        return None;
    }
    let mut types: Vec<String> = contexts()
        .filter(|c| bad_type(c))
        .map(|c| options(c, "type"))
        .collect();
    types.sort_unstable();
    types.dedup();
    let mut data = Vec::new();
    if !types.is_empty() {
        let list = quoted(types.iter().map(String::as_str));
        data.push(format!(
            "securityContext.seLinuxOptions: type{} {list}",
            plural(types.len())
        ));
    }
    for field in ["user", "role"] {
        if contexts().any(|context| !options(context, field).is_empty()) {
            data.push(format!("{field} may not be set"));
        }
    }
    violation(
        "seLinuxOptions",
        format!(
            "{} set forbidden securityContext.seLinuxOptions: {}",
            setters.join(" and "),
            data.join("; ")
        ),
    )
}

fn seccomp(pod: &Pod<'_>) -> Option<Violation> {
    let (setters, values) = forbidden_seccomp(pod);
    if setters.is_empty() {
        return None;
    }
    violation("seccompProfile", seccomp_detail(&setters, &values))
}

/// Where a seccomp profile is switched off, and how.
pub(super) fn forbidden_seccomp(pod: &Pod<'_>) -> (Vec<String>, Vec<String>) {
    let kind = |context: &Value| {
        context["seccompProfile"]["type"]
            .as_str()
            .map(str::to_owned)
    };
    let bad = |context: &Value| {
        kind(context).is_some_and(|kind| !["RuntimeDefault", "Localhost"].contains(&&*kind))
    };
    let contexts = pod
        .containers()
        .map(|c| &c["securityContext"])
        .chain([pod.security()]);
    let mut values: Vec<String> = contexts.filter(|c| bad(c)).filter_map(kind).collect();
    values.sort_unstable();
    values.dedup();
    (pod.setters(bad), values)
}

pub(super) fn seccomp_detail(setters: &[String], values: &[String]) -> String {
    format!(
        "{} must not set securityContext.seccompProfile.type to {}",
        setters.join(" and "),
        quoted(values.iter().map(String::as_str))
    )
}

fn sysctls(pod: &Pod<'_>) -> Option<Violation> {
    let used = pod.security()["sysctls"]
        .as_array()
        .into_iter()
        .flatten()
        .map(name);
    let mut bad: Vec<&str> = used.filter(|name| !SAFE_SYSCTLS.contains(name)).collect();
    bad.sort_unstable();
    if bad.is_empty() {
        None
    } else {
        violation("forbidden sysctls", bad.join(", "))
    }
}

fn windows_host_process(pod: &Pod<'_>) -> Option<Violation> {
    let setters = pod.setters(|context| context["windowsOptions"]["hostProcess"] == true);
    if setters.is_empty() {
        return None;
    }
    let detail = format!(
        "{} must not set securityContext.windowsOptions.hostProcess=true",
        setters.join(" and ")
    );
    violation("hostProcess", detail)
}
