//! The index against a naive evaluator that looks at every object for every question.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::auth::identity::ResourceTarget;

/// An object store that the naive evaluator reads and the index follows.
#[derive(Debug, Default)]
struct Model {
    objects: BTreeMap<(u8, String, String), Value>,
    index: Rbac,
}

const KINDS: [Kind; 4] = [
    Kind::Role,
    Kind::RoleBinding,
    Kind::ClusterRole,
    Kind::ClusterRoleBinding,
];

impl Model {
    fn put(&mut self, kind: usize, namespace: &str, name: &str, object: Option<Value>) {
        let namespace = if kind < 2 { namespace } else { "" };
        let bytes = object
            .as_ref()
            .map(|object| object.to_string().into_bytes());
        self.index
            .apply(KINDS[kind], namespace, name, bytes.as_deref())
            .unwrap();
        let key = (
            u8::try_from(kind).unwrap(),
            namespace.to_owned(),
            name.to_owned(),
        );
        match object {
            Some(object) => drop(self.objects.insert(key, object)),
            None => drop(self.objects.remove(&key)),
        }
    }

    /// From the specification: is there a binding, its role, a rule that all fit?
    fn naive(&self, user: &User, verb: &str, target: &ResourceTarget<'_>) -> bool {
        self.objects.iter().any(|((kind, namespace, _), binding)| {
            let scope_fits = *kind == 3
                || (*kind == 1 && !target.namespace.is_empty() && namespace == target.namespace);
            if !scope_fits {
                return false;
            }
            let subject_fits = binding["subjects"]
                .as_array()
                .unwrap()
                .iter()
                .any(|subject| {
                    let name = subject["name"].as_str().unwrap();
                    match subject["kind"].as_str().unwrap() {
                        "User" => user.name == name,
                        "Group" => user.groups.iter().any(|group| group == name),
                        _ => {
                            let given = subject["namespace"].as_str().unwrap();
                            let of = if given.is_empty() { namespace } else { given };
                            !of.is_empty()
                                && user.name == format!("system:serviceaccount:{of}:{name}")
                        }
                    }
                });
            let role = &binding["roleRef"];
            let key = if role["kind"] == "Role" {
                (
                    0,
                    namespace.clone(),
                    role["name"].as_str().unwrap().to_owned(),
                )
            } else {
                (2, String::new(), role["name"].as_str().unwrap().to_owned())
            };
            if *kind == 3 && key.0 == 0 {
                return false;
            }
            let Some(role) = self.objects.get(&key) else {
                return false;
            };
            subject_fits
                && role["rules"].as_array().unwrap().iter().any(|rule| {
                    let any = |field: &str, value: &str| {
                        rule[field]
                            .as_array()
                            .unwrap()
                            .iter()
                            .any(|own| own == "*" || own == value)
                    };
                    let combined = target.to_string();
                    let names = rule["resourceNames"].as_array().unwrap();
                    let star = format!("*/{}", target.subresource);
                    any("verbs", verb)
                        && any("apiGroups", target.group)
                        && (any("resources", &combined)
                            || (!target.subresource.is_empty()
                                && rule["resources"]
                                    .as_array()
                                    .unwrap()
                                    .iter()
                                    .any(|r| *r == star)))
                        && (names.is_empty() || names.iter().any(|name| name == target.name))
                })
        })
    }
}

fn pick(from: &'static [&'static str]) -> impl Strategy<Value = String> + Clone {
    prop::sample::select(from).prop_map(str::to_owned)
}

fn some(from: &'static [&'static str], least: usize) -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(pick(from), least..3)
}

const NAMESPACES: &[&str] = &["a", "b"];
const NAMES: &[&str] = &["x", "y", "z"];
const VERBS: &[&str] = &["get", "list", "create", "*"];
const RESOURCES: &[&str] = &["pods", "pods/log", "secrets", "*/log", "*"];
const GROUPS: &[&str] = &["", "apps", "*"];

fn rule() -> impl Strategy<Value = Value> {
    (some(VERBS, 1), some(GROUPS, 1), some(RESOURCES, 1), some(NAMES, 0)).prop_map(
        |(verbs, groups, resources, names)| {
            json!({"verbs": verbs, "apiGroups": groups, "resources": resources, "resourceNames": names})
        },
    )
}

fn subject() -> impl Strategy<Value = Value> {
    (
        pick(&["User", "Group", "ServiceAccount"]),
        pick(NAMES),
        pick(&["", "a", "b"]),
    )
        .prop_map(
            |(kind, name, namespace)| json!({"kind": kind, "name": name, "namespace": namespace}),
        )
}

fn object(kind: usize) -> BoxedStrategy<Option<Value>> {
    let object = if kind.is_multiple_of(2) {
        prop::collection::vec(rule(), 0..3)
            .prop_map(|rules| json!({"rules": rules}))
            .boxed()
    } else {
        (pick(&["Role", "ClusterRole"]), pick(NAMES), prop::collection::vec(subject(), 0..3))
            .prop_map(|(kind, name, subjects)| {
                json!({"roleRef": {"kind": kind, "name": name}, "subjects": subjects})
            })
            .boxed()
    };
    prop::option::weighted(0.8, object).boxed()
}

fn change() -> impl Strategy<Value = (usize, String, String, Option<Value>)> {
    (0..4_usize).prop_flat_map(|kind| (Just(kind), pick(NAMESPACES), pick(NAMES), object(kind)))
}

fn user() -> impl Strategy<Value = User> {
    let plain = (pick(NAMES), some(NAMES, 0)).prop_map(|(name, groups)| User {
        name,
        groups,
        ..User::default()
    });
    let account = (pick(NAMESPACES), pick(NAMES))
        .prop_map(|(ns, name)| User::service_account(&ns, &name, ""));
    prop_oneof![plain, account]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn the_index_decides_as_the_naive_evaluator(
        changes in prop::collection::vec(change(), 1..24),
        asker in user(),
        verb in pick(&["get", "list", "create"]),
        group in pick(&["", "apps"]),
        resource in pick(&["pods", "secrets"]),
        subresource in pick(&["", "log", "status"]),
        namespace in pick(&["", "a", "b"]),
        name in pick(&["", "x", "y"]),
    ) {
        let mut model = Model::default();
        for (kind, namespace, name, object) in changes {
            model.put(kind, &namespace, &name, object);
        }
        let target = ResourceTarget {
            group: &group, resource: &resource, subresource: &subresource,
            namespace: &namespace, name: &name, node_name: "",
        };
        let expected = model.naive(&asker, &verb, &target);
        let attributes = Attributes::resource(&verb, target);
        prop_assert_eq!(model.index.authorize(&asker, &attributes).allowed(), expected);
        let held = model.index.rules_of(&asker, &namespace);
        prop_assert_eq!(held.iter().any(|rule| rule.allows(&attributes)), expected);
    }
}

fn put(rbac: &mut Rbac, kind: Kind, namespace: &str, name: &str, object: &Value) {
    rbac.apply(kind, namespace, name, Some(object.to_string().as_bytes()))
        .unwrap();
}

#[test]
fn a_deleted_binding_or_role_grants_nothing_at_once() {
    let mut rbac = Rbac::default();
    let role = json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]});
    let binding = json!({
        "roleRef": {"kind": "ClusterRole", "name": "reader"},
        "subjects": [{"kind": "User", "name": "bob"}, {"kind": "User", "name": "bob"}],
    });
    put(&mut rbac, Kind::ClusterRole, "", "reader", &role);
    put(&mut rbac, Kind::ClusterRoleBinding, "", "readers", &binding);
    let bob = User::component("bob", &[]);
    let pods = ResourceTarget {
        resource: "pods",
        namespace: "a",
        ..Default::default()
    };
    let get = Attributes::resource("get", pods);
    assert_eq!(
        rbac.authorize(&bob, &get).reason(),
        r#"RBAC: allowed by ClusterRoleBinding "readers" of ClusterRole "reader" to User "bob""#
    );
    rbac.apply(Kind::ClusterRoleBinding, "", "readers", None)
        .unwrap();
    assert!(!rbac.authorize(&bob, &get).allowed());
    put(&mut rbac, Kind::RoleBinding, "a", "readers", &binding);
    assert!(rbac.authorize(&bob, &get).allowed());
    rbac.apply(Kind::ClusterRole, "", "reader", None).unwrap();
    assert!(!rbac.authorize(&bob, &get).allowed());
}

#[test]
fn an_unreadable_object_grants_nothing() {
    let mut rbac = Rbac::default();
    let role = json!({"rules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]});
    put(&mut rbac, Kind::ClusterRole, "", "all", &role);
    assert!(
        rbac.apply(Kind::ClusterRole, "", "all", Some(b"{\"rules\": 3}"))
            .is_err()
    );
    let role = RoleRef {
        kind: "ClusterRole".into(),
        name: "all".into(),
    };
    assert!(
        rbac.role_rules(&role, "").is_none(),
        "the old rules do not stay in force"
    );
}

#[test]
fn masters_may_do_everything_with_no_objects_at_all() {
    let rbac = Rbac::default();
    let admin = User::component("someone", &[MASTERS]);
    assert!(
        rbac.authorize(&admin, &Attributes::path("delete", "/x"))
            .allowed()
    );
    assert!(
        !rbac
            .authorize(&User::anonymous(), &Attributes::path("get", "/healthz"))
            .allowed()
    );
}
