//! Messages as upstream words them, and one violation at a time against both levels.

use serde_json::json;

use super::*;

fn hardened() -> Value {
    json!({
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "a",
            "image": "x",
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        }],
        "volumes": [{"name": "v", "emptyDir": {}}, {"name": "t", "projected": {}}],
    })
}

fn found(level: Level, spec: &Value) -> String {
    violations(level, &json!({}), spec).unwrap_or_default()
}

#[test]
fn a_plain_pod_violates_restricted_in_upstreams_words() {
    let spec = json!({"containers": [{"name": "nginx", "image": "nginx"}]});
    assert_eq!(found(Level::Privileged, &spec), "");
    assert_eq!(found(Level::Baseline, &spec), "");
    assert_eq!(
        found(Level::Restricted, &spec),
        "allowPrivilegeEscalation != false (container \"nginx\" must set \
         securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \
         \"nginx\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod \
         or container \"nginx\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or \
         container \"nginx\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \
         \"Localhost\")"
    );
}

#[test]
fn a_hardened_pod_passes_everywhere() {
    for level in [Level::Privileged, Level::Baseline, Level::Restricted] {
        assert_eq!(found(level, &hardened()), "");
    }
}

/// (path in the spec, value, baseline's message, restricted's message)
#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn one_change_is_one_violation() {
    let same = |text: &'static str| (text, text);
    let table = [
        (
            "/hostNetwork",
            json!(true),
            same("host namespaces (hostNetwork=true)"),
        ),
        (
            "/containers/0/securityContext/privileged",
            json!(true),
            same("privileged (container \"a\" must not set securityContext.privileged=true)"),
        ),
        (
            "/containers/0/ports",
            json!([{"containerPort": 1, "hostPort": 80}]),
            same("hostPort (container \"a\" uses hostPort 80)"),
        ),
        (
            "/containers/0/securityContext/procMount",
            json!("Unmasked"),
            same(
                "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
            ),
        ),
        (
            "/securityContext/sysctls",
            json!([{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_syncookies"}]),
            same("forbidden sysctls (kernel.msgmax)"),
        ),
        (
            "/securityContext/appArmorProfile",
            json!({"type": "Unconfined"}),
            same(
                "forbidden AppArmor profile (pod must not set AppArmor profile type to \"Unconfined\")",
            ),
        ),
        (
            "/securityContext/seLinuxOptions",
            json!({"user": "root"}),
            same(
                "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: user may not be set)",
            ),
        ),
        (
            "/containers/0/securityContext/windowsOptions",
            json!({"hostProcess": true}),
            same(
                "hostProcess (container \"a\" must not set securityContext.windowsOptions.hostProcess=true)",
            ),
        ),
        (
            "/containers/0/livenessProbe",
            json!({"httpGet": {"host": "10.0.0.1"}}),
            same(
                "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"10.0.0.1\")",
            ),
        ),
        (
            "/volumes/0",
            json!({"name": "h", "hostPath": {"path": "/"}}),
            (
                "hostPath volumes (volume \"h\")",
                "restricted volume types (volume \"h\" uses restricted volume type \"hostPath\")",
            ),
        ),
        (
            "/volumes/0",
            json!({"name": "n", "nfs": {}}),
            (
                "",
                "restricted volume types (volume \"n\" uses restricted volume type \"nfs\")",
            ),
        ),
        (
            "/containers/0/securityContext/capabilities",
            json!({"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
            (
                "non-default capabilities (container \"a\" must not include \"SYS_ADMIN\" in securityContext.capabilities.add)",
                "unrestricted capabilities (container \"a\" must not include \"SYS_ADMIN\" in securityContext.capabilities.add)",
            ),
        ),
        (
            "/containers/0/securityContext/capabilities",
            json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}),
            same(""),
        ),
        (
            "/containers/0/securityContext/capabilities",
            json!({"drop": ["ALL"], "add": ["CHOWN"]}),
            (
                "",
                "unrestricted capabilities (container \"a\" must not include \"CHOWN\" in securityContext.capabilities.add)",
            ),
        ),
        (
            "/securityContext/seccompProfile/type",
            json!("Unconfined"),
            same(
                "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
        ),
        (
            "/securityContext/runAsUser",
            json!(0),
            ("", "runAsUser=0 (pod must not set runAsUser=0)"),
        ),
        ("/securityContext/runAsUser", json!(1000), same("")),
        (
            "/securityContext/runAsNonRoot",
            json!(false),
            (
                "",
                "runAsNonRoot != true (pod must not set securityContext.runAsNonRoot=false)",
            ),
        ),
        (
            "/containers/0/securityContext/runAsNonRoot",
            json!(false),
            (
                "",
                "runAsNonRoot != true (container \"a\" must not set securityContext.runAsNonRoot=false)",
            ),
        ),
        (
            "/containers/0/securityContext/allowPrivilegeEscalation",
            json!(true),
            (
                "",
                "allowPrivilegeEscalation != false (container \"a\" must set securityContext.allowPrivilegeEscalation=false)",
            ),
        ),
    ];
    for (path, value, (baseline, restricted)) in table {
        let mut spec = hardened();
        let (parent, field) = path.rsplit_once('/').unwrap();
        match (spec.pointer_mut(parent).unwrap(), field.parse::<usize>()) {
            (Value::Array(list), Ok(index)) => list[index] = value.clone(),
            (parent, _) => parent[field] = value.clone(),
        }
        assert_eq!(found(Level::Baseline, &spec), baseline, "{path} = {value}");
        assert_eq!(
            found(Level::Restricted, &spec),
            restricted,
            "{path} = {value}"
        );
    }
}

#[test]
fn every_kind_of_container_is_looked_at() {
    for list in ["initContainers", "ephemeralContainers"] {
        let mut spec = hardened();
        spec[list] = json!([{"name": "x", "securityContext": {"privileged": true}}]);
        let message = found(Level::Baseline, &spec);
        assert!(
            message.contains("container \"x\" must not set"),
            "{list}: {message}"
        );
    }
    let mut spec = hardened();
    spec["containers"] = json!([{"name": "b"}, {"name": "c"}]);
    let message = found(Level::Restricted, &spec);
    assert!(
        message.contains("containers \"b\", \"c\" must set"),
        "{message}"
    );
}

#[test]
fn labels_choose_the_level_and_an_unknown_one_is_the_strictest() {
    let policies = |labels: Value| Policies::of(|key| labels[key].as_str().map(str::to_owned));
    let none = policies(json!({}));
    assert_eq!(none.enforce.to_string(), "privileged:latest");
    let some = policies(json!({
        "pod-security.kubernetes.io/enforce": "baseline",
        "pod-security.kubernetes.io/enforce-version": "v1.30",
        "pod-security.kubernetes.io/warn": "strict",
    }));
    assert_eq!(some.enforce.to_string(), "baseline:v1.30");
    assert_eq!(some.warn.level, Level::Restricted);
    let problems = label_problems(&json!({
        "pod-security.kubernetes.io/enforce": "strict",
        "pod-security.kubernetes.io/audit-version": "1.30",
        "pod-security.kubernetes.io/warn": "baseline",
    }));
    let labels: Vec<_> = problems
        .iter()
        .map(|(label, _, _)| label.as_str())
        .collect();
    assert_eq!(
        labels,
        [
            "pod-security.kubernetes.io/enforce",
            "pod-security.kubernetes.io/audit-version"
        ]
    );
}

#[test]
fn an_image_change_is_not_judged_again() {
    let pod = |image: &str| json!({"spec": {"containers": [{"name": "a", "image": image}]}});
    assert!(!is_significant(&pod("y"), &pod("x")));
    let mut other = pod("x");
    other["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    assert!(is_significant(&other, &pod("x")));
}
