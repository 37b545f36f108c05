//! What the default roles give to whom, and that keeping them changes only what is missing.

use std::collections::{BTreeMap, HashSet};

use super::super::identity::{Attributes, NODES, ResourceTarget, User};
use super::super::rbac::{Kind, Rbac};
use super::super::rule::unite;
use super::*;

/// An index with every default object, aggregated roles united.
fn defaults() -> Rbac {
    let mut rbac = Rbac::default();
    let mut parts = BTreeMap::new();
    for role in roles().into_iter().filter(|role| role.namespace.is_empty()) {
        parts.insert(role.name, (role.part_of, role.rules));
    }
    // From the innermost outwards, as the controller does in rounds.
    for whole in ["view", "edit", "admin"] {
        let taken = parts
            .values()
            .filter(|(part_of, _)| *part_of == Some(whole));
        let united = unite(taken.map(|(_, rules)| rules.clone()).collect::<Vec<_>>());
        parts.get_mut(whole).unwrap().1 = united;
    }
    for (name, (_, rules)) in &parts {
        let object = json!({"rules": rules}).to_string();
        rbac.apply(Kind::ClusterRole, "", name, Some(object.as_bytes()))
            .unwrap();
    }
    for binding in bindings() {
        let object = binding.object().to_string();
        rbac.apply(
            Kind::ClusterRoleBinding,
            "",
            &binding.name,
            Some(object.as_bytes()),
        )
        .unwrap();
    }
    rbac
}

fn grant(rbac: &mut Rbac, namespace: &str, role: &str, user: &str) {
    let object = json!({
        "roleRef": {"kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "name": user}],
    });
    let name = format!("{role}-{user}");
    rbac.apply(
        Kind::RoleBinding,
        namespace,
        &name,
        Some(object.to_string().as_bytes()),
    )
    .unwrap();
}

#[test]
fn admin_edit_and_view_mean_what_they_say() {
    let mut rbac = defaults();
    for role in ["admin", "edit", "view"] {
        grant(&mut rbac, "team", role, role);
    }
    // verb, resource, allowed to admin, edit, view
    let table = [
        ("get", "pods", true, true, true),
        ("get", "pods/log", true, true, true),
        ("get", "secrets", true, true, false),
        ("create", "pods", true, true, false),
        ("create", "pods/exec", true, true, false),
        ("create", "apps:deployments", true, true, false),
        ("patch", "apps:deployments/scale", true, true, false),
        ("watch", "apps:statefulsets", true, true, true),
        (
            "create",
            "rbac.authorization.k8s.io:roles",
            true,
            false,
            false,
        ),
        (
            "get",
            "rbac.authorization.k8s.io:rolebindings",
            true,
            false,
            false,
        ),
        ("create", "serviceaccounts/token", true, true, false),
        (
            "update",
            "networking.k8s.io:networkpolicies",
            true,
            true,
            false,
        ),
        ("get", "nodes", false, false, false),
        ("delete", "namespaces", false, false, false),
        ("create", "batch:jobs", true, true, false),
        ("impersonate", "users", false, false, false),
    ];
    for (verb, what, admin, edit, view) in table {
        for (name, expected) in [("admin", admin), ("edit", edit), ("view", view)] {
            let (group, what) = what.split_once(':').unwrap_or(("", what));
            let (resource, subresource) = what.split_once('/').unwrap_or((what, ""));
            for (namespace, expected) in [("team", expected), ("other", false)] {
                let target = ResourceTarget {
                    group,
                    resource,
                    subresource,
                    namespace,
                    ..Default::default()
                };
                let user = User::component(name, &[]);
                let decision = rbac.authorize(&user, &Attributes::resource(verb, target));
                assert_eq!(
                    decision.allowed(),
                    expected,
                    "{name} {verb} {what} in {namespace}"
                );
            }
        }
    }
}

#[test]
fn nobody_in_particular_gets_discovery_and_questions_about_themselves() {
    let rbac = defaults();
    let somebody = User::component("somebody", &[]);
    let may = |user: &User, attributes| rbac.authorize(user, &attributes).allowed();
    for path in [
        "/api",
        "/apis/apps/v1",
        "/openapi/v3",
        "/version",
        "/healthz",
    ] {
        assert!(may(&somebody, Attributes::path("get", path)), "{path}");
    }
    assert!(!may(&somebody, Attributes::path("get", "/metrics")));
    assert!(!may(&somebody, Attributes::path("post", "/api")));
    let review = ResourceTarget {
        group: "authorization.k8s.io",
        resource: "selfsubjectaccessreviews",
        ..Default::default()
    };
    assert!(may(&somebody, Attributes::resource("create", review)));
    let anonymous = User::anonymous();
    assert!(may(&anonymous, Attributes::path("get", "/livez")));
    assert!(!may(&anonymous, Attributes::path("get", "/api")));
    assert!(!may(&anonymous, Attributes::resource("create", review)));
    let node = User::component("system:node:one", &[NODES]);
    let pods = ResourceTarget {
        resource: "pods",
        namespace: "a",
        ..Default::default()
    };
    assert!(
        !may(&node, Attributes::resource("list", pods)),
        "nodes hold no role"
    );
}

#[test]
fn names_are_unique_and_every_binding_finds_its_role() {
    let mut names = HashSet::new();
    for role in roles() {
        assert!(names.insert(role.name.clone()), "{} twice", role.name);
    }
    for binding in bindings() {
        assert!(names.contains(&binding.role), "{}", binding.role);
    }
}

#[test]
fn what_is_right_stays_untouched() {
    for role in roles() {
        assert_eq!(role.amended(&role.object()), None, "{}", role.name);
    }
    for binding in bindings() {
        assert_eq!(binding.amended(&binding.object()), None, "{}", binding.name);
    }
}

#[test]
fn missing_rules_come_back_and_added_ones_stay() {
    let view = roles()
        .into_iter()
        .find(|role| role.name == "system:aggregate-to-view")
        .unwrap();
    let mut stored = view.object();
    let own = json!({"verbs": ["get"], "apiGroups": ["acme.com"], "resources": ["things"]});
    stored["rules"] = json!([own]);
    stored["metadata"]["labels"]["mine"] = "yes".into();
    let next = view.amended(&stored).unwrap();
    assert_eq!(next["rules"][0], own);
    assert_eq!(next["metadata"]["labels"]["mine"], "yes");
    let held: Vec<Rule> = serde_json::from_value(next["rules"].clone()).unwrap();
    assert!(missing(&held, &view.rules).is_empty());
    stored["metadata"]["annotations"][AUTO_UPDATE] = "false".into();
    assert_eq!(view.amended(&stored), None, "left alone on request");
}

#[test]
fn a_missing_subject_comes_back_and_a_foreign_role_is_noticed() {
    let binding = bindings()
        .into_iter()
        .find(|b| b.name == "cluster-admin")
        .unwrap();
    let mut stored = binding.object();
    stored["subjects"] = json!([{"kind": "User", "apiGroup": GROUP, "name": "boss"}]);
    let next = binding.amended(&stored).unwrap();
    assert_eq!(next["subjects"].as_array().unwrap().len(), 2);
    assert!(!binding.grants_another_role(&stored));
    stored["roleRef"]["name"] = "view".into();
    assert!(binding.grants_another_role(&stored));
}
