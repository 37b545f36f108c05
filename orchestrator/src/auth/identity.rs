//! Who asks and for what: the values that authentication makes and authorization judges.

use std::collections::BTreeMap;
use std::fmt;

/// Group of every caller that has proven who it is.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of the anonymous caller.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Name of the anonymous caller.
pub const ANONYMOUS: &str = "system:anonymous";
/// The group that may do everything, whatever RBAC objects say.
pub const MASTERS: &str = "system:masters";
/// Group of the people who hold the cluster's own kubeconfig; bound to `cluster-admin`.
pub const CLUSTER_ADMINS: &str = "fairlead:cluster-admins";
/// Group of all nodes.
pub const NODES: &str = "system:nodes";
/// Prefix of a node's user name.
pub const NODE_PREFIX: &str = "system:node:";
/// Group of all ServiceAccounts; with `:namespace`, of those of one namespace.
pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
/// Prefix of a ServiceAccount's user name, before `namespace:name`.
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// An authenticated (or anonymous) caller.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// Unique name.
    pub name: String,
    /// Unique id, empty if the authenticator knows none.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Further facts, e.g. the pod that a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What a request asks to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// `get list watch create update patch delete deletecollection`, or a virtual verb such as
    /// `impersonate`; for paths the lower-case HTTP method.
    pub verb: &'a str,
    /// On what.
    pub target: Target<'a>,
}

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// An API resource.
    Resource(ResourceTarget<'a>),
    /// Any other path, e.g. `/healthz`.
    Path(&'a str),
}

/// An API resource as a request names it; absent parts are empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResourceTarget<'a> {
    /// API group, empty for core.
    pub group: &'a str,
    /// Plural name.
    pub resource: &'a str,
    /// `status`, `scale`, `log` ...
    pub subresource: &'a str,
    /// Namespace, empty for cluster scope or all namespaces.
    pub namespace: &'a str,
    /// Object name. For list, watch and deletecollection the name that a field selector
    /// `metadata.name=` demands.
    pub name: &'a str,
    /// The node that a field selector `spec.nodeName=` demands.
    pub node_name: &'a str,
}

/// The answer to "may they?".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Yes; the reason is for reviews and audit.
    Allow(String),
    /// No rule allows it; the reason may be empty.
    Deny(String),
}

// === impl User ===

impl User {
    /// The caller without credentials.
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// A component of this process, by user name and groups.
    pub fn component(name: &str, groups: &[&str]) -> Self {
        let groups = groups
            .iter()
            .chain(&[AUTHENTICATED])
            .map(|&group| group.to_owned())
            .collect();
        Self {
            name: name.to_owned(),
            groups,
            ..Self::default()
        }
    }

    /// A controller of this process: the ServiceAccount `kube-system/name`, as upstream's.
    pub fn controller(name: &str) -> Self {
        Self::service_account("kube-system", name, "")
    }

    /// The ServiceAccount `namespace/name`.
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            name: format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}"),
            uid: uid.to_owned(),
            groups: vec![
                SERVICE_ACCOUNTS.to_owned(),
                format!("{SERVICE_ACCOUNTS}:{namespace}"),
                AUTHENTICATED.to_owned(),
            ],
            extra: BTreeMap::new(),
        }
    }

    /// Whether the user is in the group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// The node whose kubelet this is: named `system:node:NAME` and in `system:nodes`.
    pub fn node(&self) -> Option<&str> {
        let name = self.name.strip_prefix(NODE_PREFIX)?;
        (!name.is_empty() && self.in_group(NODES)).then_some(name)
    }

    /// Namespace and name, if this is a ServiceAccount.
    pub fn as_service_account(&self) -> Option<(&str, &str)> {
        split_service_account(&self.name)
    }
}

/// Namespace and name inside `system:serviceaccount:NAMESPACE:NAME`.
pub fn split_service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT_PREFIX)?.split_once(':')?;
    let plain = !namespace.is_empty() && !name.is_empty() && !name.contains(':');
    plain.then_some((namespace, name))
}

// === impl Decision ===

impl Decision {
    /// Whether it is a yes.
    pub fn allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// The reason, possibly empty.
    pub fn reason(&self) -> &str {
        match self {
            Self::Allow(reason) | Self::Deny(reason) => reason,
        }
    }
}

// === impl Attributes ===

impl<'a> Attributes<'a> {
    /// A verb on a resource.
    pub fn resource(verb: &'a str, target: ResourceTarget<'a>) -> Self {
        Self {
            verb,
            target: Target::Resource(target),
        }
    }

    /// A verb on a path.
    pub fn path(verb: &'a str, path: &'a str) -> Self {
        Self {
            verb,
            target: Target::Path(path),
        }
    }
}

/// `resource` or `resource/subresource`.
impl fmt::Display for ResourceTarget<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.resource)?;
        if self.subresource.is_empty() {
            Ok(())
        } else {
            write!(f, "/{}", self.subresource)
        }
    }
}

/// What a refused caller reads after `... is forbidden: `, as upstream words it.
pub fn refusal(user: &User, attributes: &Attributes<'_>, reason: &str) -> String {
    let Attributes { verb, target } = attributes;
    let mut text = match target {
        Target::Path(path) => format!("User {:?} cannot {verb} path {path:?}", user.name),
        Target::Resource(target) => {
            let scope = if target.namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace {:?}", target.namespace)
            };
            let what = target.to_string();
            let (name, group) = (&user.name, target.group);
            format!("User {name:?} cannot {verb} resource {what:?} in API group {group:?} {scope}")
        }
    };
    if !reason.is_empty() {
        text.push_str(": ");
        text.push_str(reason);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_named_member_of_the_nodes_group_is_a_node() {
        let user = |name: &str, groups: &[&str]| User::component(name, groups);
        assert_eq!(user("system:node:a", &[NODES]).node(), Some("a"));
        assert_eq!(user("system:node:a", &[]).node(), None);
        assert_eq!(user("system:node:", &[NODES]).node(), None);
        assert_eq!(user("a", &[NODES]).node(), None);
    }

    #[test]
    fn a_service_account_name_has_exactly_two_parts() {
        assert_eq!(
            split_service_account("system:serviceaccount:a:b"),
            Some(("a", "b"))
        );
        for wrong in [
            "system:serviceaccount:a",
            "system:serviceaccount:a:b:c",
            "a:b",
            "system:serviceaccount::b",
        ] {
            assert_eq!(split_service_account(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_refusal_reads_as_upstreams() {
        let user = User::component("bob", &[]);
        let pods = ResourceTarget {
            resource: "pods",
            namespace: "default",
            ..Default::default()
        };
        assert_eq!(
            refusal(&user, &Attributes::resource("list", pods), ""),
            r#"User "bob" cannot list resource "pods" in API group "" in the namespace "default""#
        );
        let log = ResourceTarget {
            subresource: "log",
            namespace: "",
            ..pods
        };
        assert_eq!(
            refusal(&user, &Attributes::resource("get", log), "no path"),
            r#"User "bob" cannot get resource "pods/log" in API group "" at the cluster scope: no path"#
        );
        assert_eq!(
            refusal(&user, &Attributes::path("get", "/metrics"), ""),
            r#"User "bob" cannot get path "/metrics""#
        );
    }
}
