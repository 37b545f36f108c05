//! Nobody grants what they do not hold: checks on roles and bindings before they are written.

use serde::Deserialize;
use serde_json::Value;

use super::rbac::{GROUP, RoleRef};
use super::rule::{Rule, missing};
use super::{Attributes, Auth, ResourceTarget, User};
use crate::status::{Status, Subject};

/// A write of an RBAC object.
#[derive(Debug, Clone, Copy)]
pub struct RbacWrite<'a> {
    /// `roles`, `clusterroles`, `rolebindings` or `clusterrolebindings`.
    pub resource: &'a str,
    /// Empty for cluster scope.
    pub namespace: &'a str,
    /// Object name.
    pub name: &'a str,
    /// What is to be stored.
    pub new: &'a Value,
    /// What is stored now.
    pub old: Option<&'a Value>,
}

impl Auth {
    /// Refuses a write that would give anybody more than the writer holds: a role with more
    /// rules unless they may `escalate` it, a binding of such a role unless they may `bind` it.
    pub fn check_escalation(&self, user: &User, write: &RbacWrite<'_>) -> Result<(), Status> {
        if write
            .old
            .is_some_and(|old| same_but_for_ownership(write.new, old))
        {
            return Ok(());
        }
        match write.resource {
            "roles" | "clusterroles" => self.check_role(user, write),
            _ => self.check_binding(user, write),
        }
    }

    fn check_role(&self, user: &User, write: &RbacWrite<'_>) -> Result<(), Status> {
        let mut wanted: Vec<Rule> = read(write.new, "rules")?;
        if !write.new["aggregationRule"].is_null() {
            // What it will collect is not known now, so it stands for everything.
            wanted.extend([Rule::on("*", "*", "*"), Rule::urls("*", "*")]);
        }
        if wanted.is_empty() || self.may(user, "escalate", write.resource, write, write.name) {
            return Ok(());
        }
        self.held_or_refused(user, write, &wanted)
    }

    fn check_binding(&self, user: &User, write: &RbacWrite<'_>) -> Result<(), Status> {
        let role: RoleRef = read(write.new, "roleRef")?;
        let roles = if role.kind == "Role" {
            "roles"
        } else {
            "clusterroles"
        };
        if self.may(user, "bind", roles, write, &role.name) {
            return Ok(());
        }
        let Some(rules) = self
            .rbac
            .ask(|rbac| rbac.role_rules(&role, write.namespace))
        else {
            return Err(Status::not_found(
                Subject {
                    group: GROUP,
                    resource: roles,
                },
                &role.name,
            ));
        };
        self.held_or_refused(user, write, &rules)
    }

    fn may(
        &self,
        user: &User,
        verb: &str,
        resource: &str,
        write: &RbacWrite<'_>,
        name: &str,
    ) -> bool {
        let namespace = write.namespace;
        let target = ResourceTarget {
            group: GROUP,
            resource,
            namespace,
            name,
            ..Default::default()
        };
        self.authorize(user, &Attributes::resource(verb, target))
            .allowed()
    }

    fn held_or_refused(
        &self,
        user: &User,
        write: &RbacWrite<'_>,
        wanted: &[Rule],
    ) -> Result<(), Status> {
        let missing = missing(&self.rules_of(user, write.namespace), wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let groups: Vec<_> = user
            .groups
            .iter()
            .map(|group| format!("{group:?}"))
            .collect();
        let list: Vec<_> = missing.iter().map(Rule::to_string).collect();
        let why = format!(
            "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name,
            groups.join(" "),
            list.join("\n"),
        );
        let subject = Subject {
            group: GROUP,
            resource: write.resource,
        };
        Err(Status::forbidden(subject, write.name, why))
    }
}

fn read<T: for<'a> Deserialize<'a> + Default>(object: &Value, field: &str) -> Result<T, Status> {
    match object.get(field) {
        None | Some(Value::Null) => Ok(T::default()),
        Some(value) => {
            T::deserialize(value).map_err(|error| Status::bad_request(format!("{field}: {error}")))
        }
    }
}

/// Whether a write changes only what garbage collection must be able to change.
fn same_but_for_ownership(new: &Value, old: &Value) -> bool {
    let bare = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in [
                "ownerReferences",
                "finalizers",
                "resourceVersion",
                "managedFields",
                "generation",
            ] {
                metadata.remove(field);
            }
        }
        object
    };
    bare(new) == bare(old)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn removing_a_finalizer_is_no_escalation_and_changing_rules_is() {
        let role = |finalizers: Value, verb: &str| json!({"metadata": {"name": "a", "finalizers": finalizers}, "rules": [{"verbs": [verb]}]});
        assert!(same_but_for_ownership(
            &role(json!([]), "get"),
            &role(json!(["x"]), "get")
        ));
        assert!(!same_but_for_ownership(
            &role(json!([]), "*"),
            &role(json!([]), "get")
        ));
    }
}
