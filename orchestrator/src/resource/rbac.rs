//! rbac.authorization.k8s.io: roles and who holds them.

use serde_json::Value;

use super::{
    Causes, NameRule, PLAIN, Resource, Rules,
    table::{self, AGE_COLUMN, Column},
};
use crate::{auth::rbac::GROUP, status::Cause};

/// `rbac.authorization.k8s.io/v1`.
pub const ALL: &[&Resource] = &[&CLUSTER_ROLE_BINDING, &CLUSTER_ROLE, &ROLE_BINDING, &ROLE];

const CREATED_COLUMN: Column = Column::text("Created At", |object, _| {
    table::text_or(object, "/metadata/creationTimestamp", "<unknown>")
});

const BINDING_COLUMNS: &[Column] = &[
    Column::text("Role", |object, _| {
        let part = |name: &str| object["roleRef"][name].as_str().unwrap_or_default();
        Value::from(format!("{}/{}", part("kind"), part("name")))
    }),
    AGE_COLUMN,
    Column::text("Users", |object, _| subjects_of(object, "User")).wide(),
    Column::text("Groups", |object, _| subjects_of(object, "Group")).wide(),
    Column::text("ServiceAccounts", |object, _| {
        subjects_of(object, "ServiceAccount")
    })
    .wide(),
];

/// Rules within one namespace.
pub static ROLE: Resource = Resource {
    columns: &[CREATED_COLUMN],
    rules: Rules {
        name: NameRule::PathSegment,
        validate: |object, causes| validate_rules(object, true, causes),
        ..PLAIN
    },
    ..Resource::namespaced(
        "roles.rbac.authorization.k8s.io",
        GROUP,
        "Role",
        "roles",
        "role",
    )
};

/// Rules for the whole cluster, or for whichever namespace binds them.
pub static CLUSTER_ROLE: Resource = Resource {
    columns: &[CREATED_COLUMN],
    rules: Rules {
        name: NameRule::PathSegment,
        validate: |object, causes| validate_rules(object, false, causes),
        ..PLAIN
    },
    ..Resource::cluster(
        "clusterroles.rbac.authorization.k8s.io",
        GROUP,
        "ClusterRole",
        "clusterroles",
        "clusterrole",
    )
};

const BINDING_RULES: Rules = Rules {
    name: NameRule::PathSegment,
    default: default_binding,
    validate: |object, causes| validate_binding(object, &["Role", "ClusterRole"], causes),
    validate_update: same_role,
    ..PLAIN
};

/// Who holds a role in one namespace.
pub static ROLE_BINDING: Resource = Resource {
    columns: BINDING_COLUMNS,
    rules: BINDING_RULES,
    ..Resource::namespaced(
        "rolebindings.rbac.authorization.k8s.io",
        GROUP,
        "RoleBinding",
        "rolebindings",
        "rolebinding",
    )
};

/// Who holds a role everywhere.
pub static CLUSTER_ROLE_BINDING: Resource = Resource {
    columns: BINDING_COLUMNS,
    rules: Rules {
        validate: |object, causes| validate_binding(object, &["ClusterRole"], causes),
        ..BINDING_RULES
    },
    ..Resource::cluster(
        "clusterrolebindings.rbac.authorization.k8s.io",
        GROUP,
        "ClusterRoleBinding",
        "clusterrolebindings",
        "clusterrolebinding",
    )
};

/// Names of the subjects of a kind; of ServiceAccounts with their namespace.
fn subjects_of(object: &Value, kind: &str) -> Value {
    let subjects = object["subjects"].as_array().into_iter().flatten();
    let names: Vec<String> = subjects
        .filter(|subject| subject["kind"] == kind)
        .map(|subject| {
            let part = |name: &str| subject[name].as_str().unwrap_or_default();
            if kind == "ServiceAccount" {
                format!("{}/{}", part("namespace"), part("name"))
            } else {
                part("name").to_owned()
            }
        })
        .collect();
    Value::from(names.join(", "))
}

fn has(rule: &Value, field: &str) -> bool {
    rule[field].as_array().is_some_and(|list| !list.is_empty())
}

fn validate_rules(object: &Value, namespaced: bool, causes: &mut Causes) {
    for (index, rule) in object["rules"].as_array().into_iter().flatten().enumerate() {
        let at = |field: &str| format!("rules[{index}].{field}");
        if !has(rule, "verbs") {
            causes.push(Cause::required(
                at("verbs"),
                "verbs must contain at least one value",
            ));
        }
        if has(rule, "nonResourceURLs") {
            let urls = &rule["nonResourceURLs"];
            if namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                causes.push(Cause::invalid(at("nonResourceURLs"), urls, why));
            }
            if ["apiGroups", "resources", "resourceNames"]
                .into_iter()
                .any(|field| has(rule, field))
            {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                causes.push(Cause::invalid(at("nonResourceURLs"), urls, why));
            }
            continue;
        }
        if !has(rule, "apiGroups") {
            let why = "resource rules must supply at least one api group";
            causes.push(Cause::required(at("apiGroups"), why));
        }
        if !has(rule, "resources") {
            let why = "resource rules must supply at least one resource";
            causes.push(Cause::required(at("resources"), why));
        }
    }
    let selectors = &object["aggregationRule"]["clusterRoleSelectors"];
    if !object["aggregationRule"].is_null() && selectors.as_array().is_none_or(Vec::is_empty) {
        let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        causes.push(Cause::required("aggregationRule.clusterRoleSelectors", why));
    }
}

fn default_binding(object: &mut Value) {
    let empty = |value: &Value| value.as_str().is_none_or(str::is_empty);
    if object["roleRef"].is_object() && empty(&object["roleRef"]["apiGroup"]) {
        object["roleRef"]["apiGroup"] = GROUP.into();
    }
    let Some(subjects) = object.get_mut("subjects").and_then(Value::as_array_mut) else {
        return;
    };
    for subject in subjects {
        let of_rbac = matches!(subject["kind"].as_str(), Some("User" | "Group"));
        if of_rbac && empty(&subject["apiGroup"]) {
            subject["apiGroup"] = GROUP.into();
        }
    }
}

fn validate_binding(object: &Value, kinds: &[&str], causes: &mut Causes) {
    let role = &object["roleRef"];
    if role["apiGroup"] != GROUP {
        causes.push(Cause::not_supported(
            "roleRef.apiGroup",
            &role["apiGroup"],
            &[GROUP],
        ));
    }
    if !kinds.iter().any(|kind| role["kind"] == *kind) {
        causes.push(Cause::not_supported("roleRef.kind", &role["kind"], kinds));
    }
    if role["name"].as_str().is_none_or(str::is_empty) {
        causes.push(Cause::required("roleRef.name", ""));
    }
    let cluster = kinds.len() == 1;
    for (index, subject) in object["subjects"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let at = |field: &str| format!("subjects[{index}].{field}");
        let filled = |field: &str| subject[field].as_str().is_some_and(|text| !text.is_empty());
        if !filled("name") {
            causes.push(Cause::required(at("name"), ""));
        }
        match subject["kind"].as_str().unwrap_or_default() {
            "ServiceAccount" => {
                if filled("apiGroup") {
                    causes.push(Cause::not_supported(
                        at("apiGroup"),
                        &subject["apiGroup"],
                        &[""],
                    ));
                }
                if cluster && !filled("namespace") {
                    causes.push(Cause::required(at("namespace"), ""));
                }
            }
            "User" | "Group" => {
                if subject["apiGroup"] != GROUP {
                    let group = &subject["apiGroup"];
                    causes.push(Cause::not_supported(at("apiGroup"), group, &[GROUP]));
                }
            }
            _ => {
                let kinds = ["ServiceAccount", "User", "Group"];
                causes.push(Cause::not_supported(at("kind"), &subject["kind"], &kinds));
            }
        }
    }
}

fn same_role(new: &Value, old: &Value, causes: &mut Causes) {
    if new["roleRef"] != old["roleRef"] {
        causes.push(Cause::invalid(
            "roleRef",
            &new["roleRef"],
            "cannot change roleRef",
        ));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(validate: fn(&Value, &mut Causes), object: &Value) -> Vec<String> {
        let mut causes = Vec::new();
        validate(object, &mut causes);
        causes.into_iter().map(|cause| cause.field).collect()
    }

    #[test]
    fn a_rule_names_each_missing_part() {
        let role = json!({"rules": [
            {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
            {},
            {"verbs": ["get"], "nonResourceURLs": ["/x"]},
        ]});
        let of_role = [
            "rules[1].verbs",
            "rules[1].apiGroups",
            "rules[1].resources",
            "rules[2].nonResourceURLs",
        ];
        assert_eq!(fields(ROLE.rules.validate, &role), of_role);
        assert_eq!(fields(CLUSTER_ROLE.rules.validate, &role), of_role[..3]);
    }

    #[test]
    fn a_binding_gets_its_groups_and_is_checked() {
        let mut binding = json!({
            "roleRef": {"kind": "ClusterRole", "name": "view"},
            "subjects": [
                {"kind": "User", "name": "a"},
                {"kind": "ServiceAccount", "name": "b"},
                {"kind": "Robot", "name": "c"},
            ],
        });
        default_binding(&mut binding);
        assert_eq!(binding["roleRef"]["apiGroup"], GROUP);
        assert_eq!(
            fields(ROLE_BINDING.rules.validate, &binding),
            ["subjects[2].kind"]
        );
        assert_eq!(
            fields(CLUSTER_ROLE_BINDING.rules.validate, &binding),
            ["subjects[1].namespace", "subjects[2].kind"]
        );
        let mut other = binding.clone();
        other["roleRef"]["name"] = "edit".into();
        let mut causes = Vec::new();
        same_role(&other, &binding, &mut causes);
        assert_eq!(causes.len(), 1);
        assert!(causes[0].message.contains("cannot change roleRef"));
    }
}
