//! The RBAC authorizer: roles and bindings indexed by subject, and the decision over them.
//!
//! Pure state: [`Rbac::apply`] takes one object in, [`Rbac::authorize`] judges. A request costs
//! one look-up per group of the caller and scope, however many bindings there are.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;

use super::identity::{Attributes, Decision, MASTERS, Target, User, split_service_account};
use super::rule::Rule;

/// Group of the RBAC API.
pub const GROUP: &str = "rbac.authorization.k8s.io";

/// The four kinds that the index follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Namespaced rules.
    Role,
    /// Namespaced binding.
    RoleBinding,
    /// Cluster-wide rules.
    ClusterRole,
    /// Cluster-wide binding.
    ClusterRoleBinding,
}

/// What the authorizer reads of a Role or ClusterRole.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RoleObject {
    /// The rules; `null` is none.
    #[serde(default)]
    pub rules: Option<Vec<Rule>>,
}

/// What the authorizer reads of a binding.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BindingObject {
    /// The role.
    pub role_ref: RoleRef,
    /// Who gets it; `null` is nobody.
    #[serde(default)]
    pub subjects: Option<Vec<Subject>>,
}

/// The role that a binding grants.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Deserialize)]
pub struct RoleRef {
    /// `Role` or `ClusterRole`.
    pub kind: String,
    /// Its name; a Role is of the binding's namespace.
    pub name: String,
}

/// Somebody who gets a role.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
pub struct Subject {
    /// `User`, `Group` or `ServiceAccount`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Of a ServiceAccount; the binding's own if empty.
    #[serde(default)]
    pub namespace: String,
}

/// A subject as look-ups find it: ServiceAccounts are users.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Holder {
    User(String),
    Group(String),
}

/// Bindings of one scope: all of the cluster's, or all of one namespace.
#[derive(Debug, Default)]
struct Scope {
    bindings: HashMap<String, Arc<Binding>>,
    by_holder: HashMap<Holder, Vec<Arc<Binding>>>,
}

#[derive(Debug)]
struct Binding {
    name: String,
    role: RoleRef,
    holders: Vec<Holder>,
}

/// All roles and bindings.
#[derive(Debug, Default)]
pub struct Rbac {
    roles: HashMap<(String, String), Arc<[Rule]>>,
    cluster_roles: HashMap<String, Arc<[Rule]>>,
    namespaces: HashMap<String, Scope>,
    cluster: Scope,
}

/// Rules that somebody holds, with the binding that gives them.
struct Grant<'a> {
    scope: &'static str,
    binding: &'a Binding,
    rules: &'a [Rule],
}

// === impl Rbac ===

impl Rbac {
    /// Takes in one object, or its deletion (`None`). An object that cannot be read grants
    /// nothing and is an error.
    pub fn apply(
        &mut self,
        kind: Kind,
        namespace: &str,
        name: &str,
        object: Option<&[u8]>,
    ) -> Result<(), serde_json::Error> {
        match kind {
            Kind::Role | Kind::ClusterRole => self.apply_role(kind, namespace, name, object),
            Kind::RoleBinding | Kind::ClusterRoleBinding => {
                self.apply_binding(kind, namespace, name, object)
            }
        }
    }

    /// Forgets every object of a kind.
    pub fn clear(&mut self, kind: Kind) {
        match kind {
            Kind::Role => self.roles.clear(),
            Kind::RoleBinding => self.namespaces.clear(),
            Kind::ClusterRole => self.cluster_roles.clear(),
            Kind::ClusterRoleBinding => self.cluster = Scope::default(),
        }
    }

    fn apply_role(
        &mut self,
        kind: Kind,
        namespace: &str,
        name: &str,
        object: Option<&[u8]>,
    ) -> Result<(), serde_json::Error> {
        let parsed = object.map(serde_json::from_slice::<RoleObject>).transpose();
        let rules: Option<Arc<[Rule]>> = parsed.as_ref().ok().and_then(|role| {
            role.as_ref()
                .map(|role| role.rules.clone().unwrap_or_default().into())
        });
        if kind == Kind::ClusterRole {
            replace(&mut self.cluster_roles, name.to_owned(), rules);
        } else {
            replace(
                &mut self.roles,
                (namespace.to_owned(), name.to_owned()),
                rules,
            );
        }
        parsed.map(drop)
    }

    fn apply_binding(
        &mut self,
        kind: Kind,
        namespace: &str,
        name: &str,
        object: Option<&[u8]>,
    ) -> Result<(), serde_json::Error> {
        let parsed = object
            .map(serde_json::from_slice::<BindingObject>)
            .transpose();
        let binding = parsed.as_ref().ok().and_then(Option::as_ref).map(|object| {
            Arc::new(Binding {
                name: name.to_owned(),
                role: object.role_ref.clone(),
                holders: holders(object.subjects.as_deref().unwrap_or_default(), namespace),
            })
        });
        if kind == Kind::ClusterRoleBinding {
            self.cluster.replace(name, binding);
        } else {
            let scope = self.namespaces.entry(namespace.to_owned()).or_default();
            scope.replace(name, binding);
            if scope.bindings.is_empty() {
                self.namespaces.remove(namespace);
            }
        }
        parsed.map(drop)
    }

    /// Whether some rule that the user holds allows the request.
    pub fn authorize(&self, user: &User, attributes: &Attributes<'_>) -> Decision {
        if user.in_group(MASTERS) {
            return Decision::Allow(format!("group {MASTERS:?} may do everything"));
        }
        let namespace = match &attributes.target {
            Target::Resource(target) => target.namespace,
            Target::Path(_) => "",
        };
        for grant in self.grants(user, namespace) {
            if grant.rules.iter().any(|rule| rule.allows(attributes)) {
                let Grant { scope, binding, .. } = grant;
                let RoleRef { kind, name } = &binding.role;
                let own = match scope {
                    "RoleBinding" => format!("{}/{namespace}", binding.name),
                    _ => binding.name.clone(),
                };
                return Decision::Allow(format!(
                    "RBAC: allowed by {scope} {own:?} of {kind} {name:?} to {}",
                    subject_of(user, binding),
                ));
            }
        }
        Decision::Deny(String::new())
    }

    /// Every rule that the user holds in the namespace, cluster-wide ones included.
    pub fn rules_of(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let mut rules = Vec::new();
        if user.in_group(MASTERS) {
            rules.extend([Rule::on("*", "*", "*"), Rule::urls("*", "*")]);
        }
        rules.extend(
            self.grants(user, namespace)
                .flat_map(|grant| grant.rules)
                .cloned(),
        );
        rules
    }

    /// The rules of the role that a binding in `namespace` (empty: a cluster binding) names.
    pub fn role_rules(&self, role: &RoleRef, namespace: &str) -> Option<Arc<[Rule]>> {
        self.rules(role, namespace).cloned()
    }

    fn rules(&self, role: &RoleRef, namespace: &str) -> Option<&Arc<[Rule]>> {
        match role.kind.as_str() {
            "ClusterRole" => self.cluster_roles.get(&role.name),
            "Role" if !namespace.is_empty() => {
                self.roles.get(&(namespace.to_owned(), role.name.clone()))
            }
            _ => None,
        }
    }

    /// Each binding that holds for the user in the namespace, with its rules; may repeat.
    fn grants<'a>(&'a self, user: &'a User, namespace: &'a str) -> impl Iterator<Item = Grant<'a>> {
        let cluster = self.cluster.of(user).filter_map(|binding| {
            let rules = self.rules(&binding.role, "")?;
            Some(Grant {
                scope: "ClusterRoleBinding",
                binding,
                rules,
            })
        });
        let local = self
            .namespaces
            .get(namespace)
            .into_iter()
            .flat_map(|scope| scope.of(user));
        cluster.chain(local.filter_map(move |binding| {
            let rules = self.rules(&binding.role, namespace)?;
            Some(Grant {
                scope: "RoleBinding",
                binding,
                rules,
            })
        }))
    }
}

fn replace<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

fn holders(subjects: &[Subject], namespace: &str) -> Vec<Holder> {
    let mut holders: Vec<Holder> = subjects
        .iter()
        .filter_map(|subject| match subject.kind.as_str() {
            "User" => Some(Holder::User(subject.name.clone())),
            "Group" => Some(Holder::Group(subject.name.clone())),
            "ServiceAccount" => {
                let namespace = if subject.namespace.is_empty() {
                    namespace
                } else {
                    &subject.namespace
                };
                let user = User::service_account(namespace, &subject.name, "").name;
                split_service_account(&user)
                    .is_some()
                    .then_some(Holder::User(user))
            }
            _ => None,
        })
        .collect();
    let mut seen = std::collections::HashSet::new();
    holders.retain(|holder| seen.insert(holder.clone()));
    holders
}

fn subject_of(user: &User, binding: &Binding) -> String {
    let held = |holder: &&Holder| match holder {
        Holder::User(name) => *name == user.name,
        Holder::Group(name) => user.in_group(name),
    };
    match binding.holders.iter().find(held) {
        Some(Holder::Group(name)) => format!("Group {name:?}"),
        _ => match user.as_service_account() {
            Some((namespace, name)) => {
                format!("ServiceAccount {:?}", format!("{name}/{namespace}"))
            }
            None => format!("User {:?}", user.name),
        },
    }
}

// === impl Scope ===

impl Scope {
    fn replace(&mut self, name: &str, binding: Option<Arc<Binding>>) {
        if let Some(old) = self.bindings.remove(name) {
            for holder in &old.holders {
                if let Some(held) = self.by_holder.get_mut(holder) {
                    held.retain(|binding| !Arc::ptr_eq(binding, &old));
                    if held.is_empty() {
                        self.by_holder.remove(holder);
                    }
                }
            }
        }
        if let Some(binding) = binding {
            for holder in &binding.holders {
                self.by_holder
                    .entry(holder.clone())
                    .or_default()
                    .push(Arc::clone(&binding));
            }
            self.bindings.insert(name.to_owned(), binding);
        }
    }

    fn of<'a>(&'a self, user: &'a User) -> impl Iterator<Item = &'a Binding> {
        let of_user = self.by_holder.get(&Holder::User(user.name.clone()));
        let of_groups = user
            .groups
            .iter()
            .filter_map(|group| self.by_holder.get(&Holder::Group(group.clone())));
        of_user
            .into_iter()
            .chain(of_groups)
            .flatten()
            .map(AsRef::as_ref)
    }
}

#[cfg(test)]
mod tests;
