//! The Node authorizer: a kubelet reads only what its own pods need. Pure.
//!
//! A node may get the secrets, config maps, claims and volumes that pods bound to it refer to,
//! ask for tokens of their ServiceAccounts, and read and write its own Node and Lease. What else
//! a kubelet does (its events, reviews, certificate requests, services) is in a fixed list of
//! rules. Whether a write is right is for the admission of [`crate::admission`].

use super::identity::{Attributes, Decision, ResourceTarget, Target};
use super::references::PodSpec;
use super::rule::Rule;

/// Namespace of the nodes' leases.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";

/// What the authorizer asks about the cluster.
pub trait Graph {
    /// Whether this pod is bound to the node.
    fn has_pod(&self, node: &str, namespace: &str, name: &str) -> bool;
    /// Specs of the pods of one namespace (all if empty) that are bound to the node.
    fn pods(&self, node: &str, namespace: &str) -> Vec<(String, PodSpec)>;
    /// The volume that a claim is bound to, empty if none.
    fn claim_volume(&self, namespace: &str, claim: &str) -> String;
}

/// Judges a request of the node's kubelet.
pub fn decide(
    node: &str,
    attributes: &Attributes<'_>,
    graph: &dyn Graph,
    rules: &[Rule],
) -> Decision {
    if let Target::Resource(target) = &attributes.target
        && let Some(answer) = guarded(node, attributes.verb, target, graph)
    {
        return match answer {
            Ok(()) => Decision::Allow(String::new()),
            Err(reason) => Decision::Deny(reason),
        };
    }
    if rules.iter().any(|rule| rule.allows(attributes)) {
        Decision::Allow(String::new())
    } else {
        Decision::Deny(String::new())
    }
}

/// The resources with rules of their own; `None` for all others.
fn guarded(
    node: &str,
    verb: &str,
    target: &ResourceTarget<'_>,
    graph: &dyn Graph,
) -> Option<Result<(), String>> {
    Some(match (target.group, target.resource) {
        ("", "secrets" | "configmaps") => settings(node, verb, target, graph),
        ("", "persistentvolumeclaims" | "persistentvolumes") => volumes(node, verb, target, graph),
        ("", "serviceaccounts") => tokens(node, verb, target, graph),
        ("", "nodes") => own_node(node, verb, target),
        ("", "pods") => pods(node, verb, target, graph),
        ("coordination.k8s.io", "leases") => lease(node, verb, target),
        _ => return None,
    })
}

fn settings(
    node: &str,
    verb: &str,
    target: &ResourceTarget<'_>,
    graph: &dyn Graph,
) -> Result<(), String> {
    let ResourceTarget {
        resource,
        subresource,
        namespace,
        name,
        ..
    } = *target;
    let reads = matches!(verb, "get" | "list" | "watch");
    only(
        reads && subresource.is_empty(),
        "can only read resources of this type",
    )?;
    only(
        !name.is_empty() && !namespace.is_empty(),
        "can only read one named object of this type",
    )?;
    let used = |pod: &PodSpec| {
        if resource == "secrets" {
            pod.uses_secret(name)
        } else {
            pod.uses_config_map(name)
        }
    };
    related(
        node,
        graph.pods(node, namespace).iter().any(|(_, pod)| used(pod)),
    )
}

fn volumes(
    node: &str,
    verb: &str,
    target: &ResourceTarget<'_>,
    graph: &dyn Graph,
) -> Result<(), String> {
    let ResourceTarget {
        resource,
        subresource,
        namespace,
        name,
        ..
    } = *target;
    let claims = resource == "persistentvolumeclaims";
    let gets = verb == "get" && subresource.is_empty() && !name.is_empty();
    let reports = claims && subresource == "status" && matches!(verb, "update" | "patch");
    only(
        gets || reports,
        "can only get individual resources of this type, or report on claims",
    )?;
    let used = graph.pods(node, namespace).iter().any(|(of, pod)| {
        pod.claims().any(|claim| {
            if claims {
                claim == name
            } else {
                graph.claim_volume(of, claim) == name
            }
        })
    });
    related(node, used)
}

fn tokens(
    node: &str,
    verb: &str,
    target: &ResourceTarget<'_>,
    graph: &dyn Graph,
) -> Result<(), String> {
    let creates = verb == "create" && target.subresource == "token" && !target.name.is_empty();
    only(
        creates,
        "can only create tokens for individual service accounts",
    )?;
    let pods = graph.pods(node, target.namespace);
    related(
        node,
        pods.iter()
            .any(|(_, pod)| pod.service_account_name == target.name),
    )
}

fn lease(node: &str, verb: &str, target: &ResourceTarget<'_>) -> Result<(), String> {
    only(
        matches!(verb, "get" | "create" | "update" | "patch" | "delete"),
        "can only get, create, update, patch, or delete a node lease",
    )?;
    only(
        target.namespace == LEASE_NAMESPACE,
        "can only access leases in the \"kube-node-lease\" system namespace",
    )?;
    only(
        verb == "create" || target.name == node,
        "can only access node lease with the same name as the requesting node",
    )
}

fn related(node: &str, found: bool) -> Result<(), String> {
    only(
        found,
        &format!("no relationship found between node {node:?} and this object"),
    )
}

fn only(holds: bool, otherwise: &str) -> Result<(), String> {
    holds.then_some(()).ok_or_else(|| otherwise.to_owned())
}

fn own_node(node: &str, verb: &str, target: &ResourceTarget<'_>) -> Result<(), String> {
    let own = target.name == node;
    match (verb, target.subresource) {
        // Admission holds the name of what is created against the node's own.
        ("create", "") => Ok(()),
        ("get" | "list" | "watch", "") => only(own, "node can only read its own Node object"),
        ("update" | "patch", "" | "status") => {
            only(own, "node can only modify its own Node object")
        }
        _ => Err("node can only create, read and modify its own Node object".to_owned()),
    }
}

fn pods(
    node: &str,
    verb: &str,
    target: &ResourceTarget<'_>,
    graph: &dyn Graph,
) -> Result<(), String> {
    match (verb, target.subresource) {
        ("get", "") => related(node, graph.has_pod(node, target.namespace, target.name)),
        ("list" | "watch", "") => only(
            target.node_name == node,
            "can only list/watch pods with spec.nodeName field selector",
        ),
        // Admission holds these against the pod.
        ("create" | "delete", "") | ("update" | "patch", "status") | ("create", "eviction") => {
            Ok(())
        }
        _ => Err(
            "can only create mirror pods, and read, delete, evict and report own pods".to_owned(),
        ),
    }
}

/// What every kubelet may do besides.
pub fn rules() -> Vec<Rule> {
    vec![
        Rule::on("create", "authentication.k8s.io", "tokenreviews"),
        Rule::on(
            "create",
            "authorization.k8s.io",
            "subjectaccessreviews,localsubjectaccessreviews",
        ),
        Rule::on("get,list,watch", "", "services"),
        Rule::on("create,patch,update", ",events.k8s.io", "events"),
        Rule::on(
            "create,get,list,watch",
            "certificates.k8s.io",
            "certificatesigningrequests",
        ),
        Rule::on("get,list,watch", "node.k8s.io", "runtimeclasses"),
        Rule::on("get,list,watch", "storage.k8s.io", "csidrivers"),
        Rule::on("get", "storage.k8s.io", "volumeattachments"),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct World;

    impl Graph for World {
        fn has_pod(&self, node: &str, namespace: &str, name: &str) -> bool {
            (node, namespace, name) == ("one", "a", "web")
        }

        fn pods(&self, node: &str, namespace: &str) -> Vec<(String, PodSpec)> {
            let spec = json!({
                "serviceAccountName": "robot",
                "imagePullSecrets": [{"name": "pull"}],
                "volumes": [
                    {"name": "v", "secret": {"secretName": "volume"}},
                    {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
                    {"name": "p", "projected": {"sources": [
                        {"secret": {"name": "projected"}}, {"configMap": {"name": "root-ca"}},
                        {"serviceAccountToken": {"path": "token"}},
                    ]}},
                ],
                "containers": [{"name": "x", "env": [
                    {"name": "K", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}},
                    {"name": "L", "value": "plain"},
                ]}],
                "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "init"}}]}],
            });
            let here = node == "one" && ["", "a"].contains(&namespace);
            let pod = || {
                (
                    "a".to_owned(),
                    serde_json::from_value(spec.clone()).unwrap(),
                )
            };
            here.then(pod).into_iter().collect()
        }

        fn claim_volume(&self, namespace: &str, claim: &str) -> String {
            if (namespace, claim) == ("a", "claim") {
                "volume-1".into()
            } else {
                String::new()
            }
        }
    }

    #[track_caller]
    fn check(verb: &str, what: &str, namespace: &str, name: &str, expected: bool) {
        let (group, what) = what.split_once(':').unwrap_or(("", what));
        let (resource, subresource) = what.split_once('/').unwrap_or((what, ""));
        let target = ResourceTarget {
            group,
            resource,
            subresource,
            namespace,
            name,
            node_name: "",
        };
        let attributes = Attributes::resource(verb, target);
        let decision = decide("one", &attributes, &World, &rules());
        assert_eq!(
            decision.allowed(),
            expected,
            "{verb} {what} {namespace}/{name}: {decision:?}"
        );
        let stranger = decide("two", &attributes, &World, &rules());
        let own = matches!(
            resource,
            "secrets"
                | "configmaps"
                | "serviceaccounts"
                | "persistentvolumes"
                | "persistentvolumeclaims"
        );
        assert!(
            !(own && stranger.allowed()),
            "another node: {verb} {what} {namespace}/{name}"
        );
    }

    #[test]
    fn a_node_reads_only_what_its_pods_name() {
        for secret in ["pull", "volume", "projected", "env"] {
            check("get", "secrets", "a", secret, true);
            check("get", "secrets", "b", secret, false);
            check("update", "secrets", "a", secret, false);
        }
        check("get", "secrets", "a", "other", false);
        check("list", "secrets", "a", "", false);
        check("watch", "secrets", "a", "env", true);
        check("get", "configmaps", "a", "root-ca", true);
        check("get", "configmaps", "a", "init", true);
        check("get", "configmaps", "a", "env", false);
        check("get", "persistentvolumeclaims", "a", "claim", true);
        check("get", "persistentvolumeclaims", "a", "other", false);
        check("get", "persistentvolumes", "", "volume-1", true);
        check("get", "persistentvolumes", "", "", false);
        check("list", "persistentvolumes", "", "", false);
        check("create", "serviceaccounts/token", "a", "robot", true);
        check("create", "serviceaccounts/token", "a", "other", false);
        check("get", "serviceaccounts", "a", "robot", false);
    }

    #[test]
    fn a_node_touches_only_its_own_node_and_lease() {
        check("get", "nodes", "", "one", true);
        check("get", "nodes", "", "two", false);
        check("list", "nodes", "", "", false);
        check("list", "nodes", "", "one", true);
        check("patch", "nodes/status", "", "one", true);
        check("patch", "nodes/status", "", "two", false);
        check("delete", "nodes", "", "one", false);
        check("create", "nodes", "", "", true);
        check(
            "update",
            "coordination.k8s.io:leases",
            "kube-node-lease",
            "one",
            true,
        );
        check(
            "update",
            "coordination.k8s.io:leases",
            "kube-node-lease",
            "two",
            false,
        );
        check(
            "get",
            "coordination.k8s.io:leases",
            "kube-system",
            "one",
            false,
        );
    }

    #[test]
    fn a_node_sees_its_own_pods() {
        check("get", "pods", "a", "web", true);
        check("get", "pods", "a", "other", false);
        check("list", "pods", "", "", false);
        check("create", "pods", "a", "", true);
        check("create", "pods/exec", "a", "web", false);
        check("patch", "pods", "a", "web", false);
        check("create", "pods/binding", "a", "web", false);
        let target = ResourceTarget {
            resource: "pods",
            node_name: "one",
            ..Default::default()
        };
        let list = Attributes::resource("list", target);
        assert!(decide("one", &list, &World, &rules()).allowed());
        assert!(!decide("two", &list, &World, &rules()).allowed());
    }

    #[test]
    fn the_rest_is_a_fixed_list() {
        check("list", "services", "", "", true);
        check("create", "events", "a", "", true);
        check("create", "events.k8s.io:events", "a", "", true);
        check("create", "authentication.k8s.io:tokenreviews", "", "", true);
        check(
            "get",
            "rbac.authorization.k8s.io:clusterroles",
            "",
            "x",
            false,
        );
        check("create", "apps:deployments", "a", "", false);
    }
}
