//! A kubelet writes only about itself: its Node, its Lease, its pods' status and mirror pods.
//!
//! What it may read, and which verbs it has at all, is for [`crate::auth::node`].

use serde_json::Value;

use super::service_account::MIRROR;
use super::{each, text};
use crate::auth::node::LEASE_NAMESPACE;
use crate::registry::{Admission, Operation, Request};
use crate::status::Status;

/// Labels in Kubernetes' own domains that a kubelet sets on its Node.
const OWN_LABELS: [&str; 14] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "kubernetes.io/os-version",
];

/// Label domains that kubelets own, with all below them.
const OWN_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// The label domain that no kubelet may touch.
const RESTRICTED_DOMAIN: &str = "node-restriction.kubernetes.io";

/// The rule.
#[derive(Debug)]
pub struct NodeRestriction;

impl Admission for NodeRestriction {
    fn admit(&self, _request: &mut Request<'_>, _object: &mut Value) -> Result<(), Status> {
        Ok(())
    }

    fn review(&self, request: &mut Request<'_>, object: &Value) -> Result<(), Status> {
        let Some(node) = request.caller.user.node() else {
            return Ok(());
        };
        let target = request.target;
        let write = Write {
            operation: request.operation,
            subresource: target.subresource,
            namespace: target.namespace,
            new: object,
            old: request.old,
        };
        let problem = match target.resource.key {
            "pods" => write.pod(node),
            "nodes" => write.node(node),
            "leases.coordination.k8s.io" => write.lease(node),
            _ => None,
        };
        problem.map_or(Ok(()), |why| {
            let name = text(object, "/metadata/name");
            Err(Status::forbidden(target.resource.subject(), name, why))
        })
    }
}

/// One write by a node, as the checks see it; each answers why not.
struct Write<'a> {
    operation: Operation,
    subresource: &'a str,
    namespace: &'a str,
    new: &'a Value,
    old: Option<&'a Value>,
}

fn unless(holds: bool, why: impl FnOnce() -> String) -> Option<String> {
    (!holds).then(why)
}

// === impl Write ===

impl Write<'_> {
    fn pod(&self, node: &str) -> Option<String> {
        let stored = self.old.unwrap_or(self.new);
        let own = text(stored, "/spec/nodeName") == node;
        match (self.operation, self.subresource) {
            (Operation::Create, "") => mirror_pod(self.new, node),
            (Operation::Delete, _) => unless(own, || {
                format!("node {node:?} can only delete pods with spec.nodeName set to itself")
            }),
            (Operation::Update, "status") => unless(own, || {
                format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself")
            })
            .or_else(|| {
                let same = self.new["metadata"]["labels"] == stored["metadata"]["labels"];
                unless(same, || format!("node {node:?} cannot update labels through pod status"))
            }),
            _ => Some(format!(
                "unexpected operation, node {node:?} can only create and delete mirror pods"
            )),
        }
    }

    fn node(&self, node: &str) -> Option<String> {
        let name = text(self.new, "/metadata/name");
        unless(name == node, || {
            format!("node {node:?} is not allowed to modify node {name:?}")
        })
        .or_else(|| {
            let taints = |object: &Value| object["spec"]["taints"].clone();
            let same = self.old.is_none_or(|old| taints(old) == taints(self.new));
            unless(same, || {
                format!("node {node:?} is not allowed to modify taints")
            })
        })
        .or_else(|| {
            let owners = |object: &Value| object["metadata"]["ownerReferences"].clone();
            let same = self.old.is_none_or(|old| owners(old) == owners(self.new));
            unless(same, || {
                format!("node {node:?} is not allowed to modify ownerReferences")
            })
        })
        .or_else(|| {
            let forbidden = forbidden_labels(self.new, self.old);
            let verb = if self.old.is_some() { "modify" } else { "set" };
            unless(forbidden.is_empty(), || {
                let list = forbidden.join(", ");
                format!("node {node:?} is not allowed to {verb} the following labels: {list}")
            })
        })
    }

    fn lease(&self, node: &str) -> Option<String> {
        let name = text(self.new, "/metadata/name");
        unless(self.namespace == LEASE_NAMESPACE && name == node, || {
            format!("node {node:?} can only write the lease {LEASE_NAMESPACE}/{node}")
        })
    }
}

fn mirror_pod(pod: &Value, node: &str) -> Option<String> {
    let owners: Vec<&Value> = each(pod, "/metadata/ownerReferences").collect();
    let owned = matches!(owners.as_slice(), [owner]
        if owner["apiVersion"] == "v1" && owner["kind"] == "Node" && owner["name"] == node
            && owner["controller"] == true && owner["blockOwnerDeletion"] != true);
    let can_not = |what: &str| format!("node {node:?} can not create pods that reference {what}");
    unless(pod["metadata"]["annotations"][MIRROR].is_string(), || {
        format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        )
    })
    .or_else(|| {
        unless(text(pod, "/spec/nodeName") == node, || {
            format!("node {node:?} can only create pods with spec.nodeName set to itself")
        })
    })
    .or_else(|| {
        unless(owned, || {
            format!("node {node:?} can only create pods with an owner reference set to itself")
        })
    })
    .or_else(|| {
        let none = text(pod, "/spec/serviceAccountName").is_empty();
        unless(none, || can_not("a service account"))
    })
    .or_else(|| foreign_object(&pod["spec"]).map(can_not))
}

/// A resource that a pod's volumes, containers or pull secrets refer to. Wherever a volume or a
/// variable names one, it does so under one of these keys.
fn foreign_object(spec: &Value) -> Option<&'static str> {
    const REFERENCES: [(&str, &str); 12] = [
        ("secret", "secrets"),
        ("secretName", "secrets"),
        ("secretRef", "secrets"),
        ("secretKeyRef", "secrets"),
        ("nodePublishSecretRef", "secrets"),
        ("imagePullSecrets", "secrets"),
        ("configMap", "configmaps"),
        ("configMapRef", "configmaps"),
        ("configMapKeyRef", "configmaps"),
        ("persistentVolumeClaim", "persistentvolumeclaims"),
        ("ephemeral", "persistentvolumeclaims"),
        ("resourceClaims", "resourceclaims"),
    ];
    match spec {
        Value::Object(fields) => {
            let given = |name: &str| match fields.get(name) {
                None | Some(Value::Null) => false,
                Some(Value::Array(items)) => !items.is_empty(),
                Some(_) => true,
            };
            let found = REFERENCES.into_iter().find(|(name, _)| given(name));
            if let Some((_, what)) = found {
                return Some(what);
            }
            fields.values().find_map(foreign_object)
        }
        Value::Array(items) => items.iter().find_map(foreign_object),
        _ => None,
    }
}

/// Labels that are set or changed and are not a kubelet's to set, sorted.
fn forbidden_labels(new: &Value, old: Option<&Value>) -> Vec<String> {
    let empty = Value::Null;
    let (new, old) = (
        &new["metadata"]["labels"],
        old.map_or(&empty, |old| &old["metadata"]["labels"]),
    );
    let keys = |labels: &Value| -> Vec<String> {
        labels
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key.clone())
            .collect()
    };
    let mut changed: Vec<String> = [keys(new), keys(old)]
        .concat()
        .into_iter()
        .filter(|key| new[key] != old[key] && !may_set(key))
        .collect();
    changed.sort_unstable();
    changed.dedup();
    changed
}

fn may_set(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else {
        return true;
    };
    let within = |root: &str| {
        domain
            .strip_suffix(root)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if within(RESTRICTED_DOMAIN) {
        return false;
    }
    let of_kubernetes = within("kubernetes.io") || within("k8s.io");
    !of_kubernetes || OWN_LABELS.contains(&label) || OWN_DOMAINS.into_iter().any(within)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn write<'a>(
        operation: Operation,
        subresource: &'a str,
        new: &'a Value,
        old: Option<&'a Value>,
    ) -> Write<'a> {
        Write {
            operation,
            subresource,
            namespace: "a",
            new,
            old,
        }
    }

    fn mirror() -> Value {
        json!({
            "metadata": {
                "name": "static",
                "annotations": {MIRROR: "hash"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "one", "uid": "u", "controller": true}],
            },
            "spec": {"nodeName": "one", "containers": [{"name": "a"}]},
        })
    }

    #[test]
    fn a_node_creates_only_mirror_pods_of_its_own() {
        let check = |pod: &Value| write(Operation::Create, "", pod, None).pod("one");
        assert_eq!(check(&mirror()), None);
        let changes: &[(&str, Value)] = &[
            ("/metadata/annotations", json!({})),
            ("/metadata/ownerReferences", json!([])),
            ("/metadata/ownerReferences/0/name", json!("two")),
            ("/spec/nodeName", json!("two")),
            (
                "/spec/containers/0",
                json!({"envFrom": [{"secretRef": {"name": "x"}}]}),
            ),
            (
                "/spec",
                json!({"nodeName": "one", "volumes": [
                    {"name": "v", "projected": {"sources": [{"secret": {"name": "x"}}]}},
                ]}),
            ),
            (
                "/spec",
                json!({"nodeName": "one", "volumes": [
                    {"name": "v", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "x"}}},
                ]}),
            ),
            (
                "/spec",
                json!({"nodeName": "one", "imagePullSecrets": [{"name": "x"}]}),
            ),
        ];
        for (path, value) in changes {
            let mut pod = mirror();
            *pod.pointer_mut(path).unwrap() = value.clone();
            assert!(check(&pod).is_some(), "{path}");
        }
        let mut pod = mirror();
        pod["spec"]["serviceAccountName"] = "robot".into();
        assert!(check(&pod).is_some());
    }

    #[test]
    fn a_node_reports_on_and_deletes_its_own_pods_only() {
        let pod = |node: &str, label: &str| json!({"metadata": {"labels": {"a": label}}, "spec": {"nodeName": node}});
        let status = |new: &Value, old: &Value| {
            write(Operation::Update, "status", new, Some(old)).pod("one")
        };
        assert_eq!(status(&pod("one", "x"), &pod("one", "x")), None);
        assert!(
            status(&pod("one", "y"), &pod("one", "x")).is_some(),
            "labels"
        );
        assert!(
            status(&pod("one", "x"), &pod("two", "x")).is_some(),
            "another node's"
        );
        let own = pod("one", "x");
        assert!(
            write(Operation::Update, "", &own, Some(&own))
                .pod("one")
                .is_some(),
            "spec"
        );
        assert_eq!(
            write(Operation::Delete, "", &own, Some(&own)).pod("one"),
            None
        );
        assert!(
            write(Operation::Delete, "", &own, Some(&own))
                .pod("two")
                .is_some()
        );
    }

    #[test]
    fn a_node_changes_neither_its_taints_nor_labels_that_are_not_its_own() {
        let node = |labels: Value, taints: Value| json!({"metadata": {"name": "one", "labels": labels}, "spec": {"taints": taints}});
        let old = node(json!({}), json!([]));
        let check = |new: &Value| write(Operation::Update, "", new, Some(&old)).node("one");
        assert_eq!(
            check(&node(
                json!({"kubernetes.io/hostname": "one", "rack": "7"}),
                json!([])
            )),
            None
        );
        assert!(
            check(&node(json!({}), json!([{"key": "x"}])))
                .unwrap()
                .contains("taints")
        );
        let refused = check(&node(
            json!({"node-restriction.kubernetes.io/pci": "yes"}),
            json!([]),
        ));
        assert!(
            refused
                .unwrap()
                .ends_with("labels: node-restriction.kubernetes.io/pci")
        );
        assert!(
            write(Operation::Update, "", &old, Some(&old))
                .node("two")
                .is_some()
        );
    }

    #[test]
    fn label_domains_are_told_apart() {
        for label in [
            "plain",
            "acme.com/x",
            "kubernetes.io/arch",
            "node.kubernetes.io/x",
            "a.node.kubernetes.io/x",
            "mykubernetes.io/x",
        ] {
            assert!(may_set(label), "{label}");
        }
        for label in [
            "kubernetes.io/x",
            "node-role.kubernetes.io/master",
            "k8s.io/x",
            "x.node-restriction.kubernetes.io/y",
        ] {
            assert!(!may_set(label), "{label}");
        }
    }

    #[test]
    fn a_node_writes_its_own_lease() {
        let lease = json!({"metadata": {"name": "one"}});
        let of = |namespace| Write {
            namespace,
            ..write(Operation::Create, "", &lease, None)
        };
        assert_eq!(of(LEASE_NAMESPACE).lease("one"), None);
        assert!(of(LEASE_NAMESPACE).lease("two").is_some());
        assert!(of("default").lease("one").is_some());
    }
}
