//! Roles of the cluster's parts: scheduler, controller manager, nodes, DNS, approvers.

use super::super::identity::NODES;
use super::super::node;
use super::{DefaultBinding, DefaultRole, Holder, READ, Rule};

const BOOTSTRAPPERS: &str = "system:bootstrappers";
const NODE_CLIENT: &str = "system:certificates.k8s.io:certificatesigningrequests:nodeclient";
const NODE_RENEWAL: &str = "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient";
const CERTIFICATES: &str = "certificates.k8s.io";

pub(super) fn roles() -> Vec<DefaultRole> {
    let mut roles = vec![
        DefaultRole::new("system:kube-scheduler", scheduler()),
        DefaultRole::new("system:kube-controller-manager", controller_manager()),
        DefaultRole::new("system:volume-scheduler", volume_scheduler()),
        DefaultRole::new("system:node", kubelet()),
        DefaultRole::new("system:node-proxier", node_proxier()),
        DefaultRole::new("system:node-problem-detector", problem_detector()),
        DefaultRole::new(
            "system:kube-dns",
            vec![Rule::on("list,watch", "", "endpoints,services")],
        ),
        DefaultRole::new(
            "system:node-bootstrapper",
            vec![Rule::on(
                "create,get,list,watch",
                CERTIFICATES,
                "certificatesigningrequests",
            )],
        ),
        DefaultRole::new(
            "system:auth-delegator",
            vec![
                Rule::on("create", "authentication.k8s.io", "tokenreviews"),
                Rule::on("create", "authorization.k8s.io", "subjectaccessreviews"),
            ],
        ),
        DefaultRole::new(
            "system:kubelet-api-admin",
            vec![
                Rule::on(READ, "", "nodes"),
                Rule::on("proxy", "", "nodes"),
                Rule::on(
                    "*",
                    "",
                    "nodes/log,nodes/metrics,nodes/proxy,nodes/stats,nodes/configz,\
                     nodes/healthz,nodes/pods",
                ),
            ],
        ),
        DefaultRole::new("system:persistent-volume-provisioner", provisioner()),
        DefaultRole {
            namespace: "kube-system",
            ..DefaultRole::new(
                "extension-apiserver-authentication-reader",
                vec![Rule::on(READ, "", "configmaps").named("extension-apiserver-authentication")],
            )
        },
    ];
    roles.extend(certificate_roles());
    roles
}

pub(super) fn bindings() -> Vec<DefaultBinding> {
    let scheduler = || vec![Holder::User("system:kube-scheduler")];
    vec![
        DefaultBinding::new("system:kube-scheduler", scheduler()),
        DefaultBinding::new("system:volume-scheduler", scheduler()),
        DefaultBinding::new(
            "system:kube-controller-manager",
            vec![Holder::User("system:kube-controller-manager")],
        ),
        DefaultBinding::new(
            "system:node-proxier",
            vec![Holder::User("system:kube-proxy")],
        ),
        DefaultBinding::new("system:kube-dns", vec![Holder::ServiceAccount("kube-dns")]),
        joining(
            "system:node-bootstrapper",
            "fairlead:node-bootstrapper",
            BOOTSTRAPPERS,
        ),
        joining(NODE_CLIENT, "fairlead:node-client-approval", BOOTSTRAPPERS),
        joining(NODE_RENEWAL, "fairlead:node-renewal-approval", NODES),
        // Granted by the node authorizer; the binding is there for those who look for it.
        DefaultBinding::new("system:node", Vec::new()),
    ]
}

/// A binding that lets nodes join and renew their certificates.
fn joining(role: &str, name: &str, group: &'static str) -> DefaultBinding {
    let binding = DefaultBinding::new(role, vec![Holder::Group(group)]);
    DefaultBinding {
        name: name.to_owned(),
        ..binding
    }
}

fn events() -> Rule {
    Rule::on("create,patch,update", ",events.k8s.io", "events")
}

fn scheduler() -> Vec<Rule> {
    vec![
        events(),
        Rule::on("create", "coordination.k8s.io", "leases"),
        Rule::on("get,list,update,watch", "coordination.k8s.io", "leases"),
        Rule::on(READ, "", "nodes"),
        Rule::on("delete,get,list,watch", "", "pods"),
        Rule::on("create", "", "bindings,pods/binding"),
        Rule::on("patch,update", "", "pods/status"),
        Rule::on(READ, "", "replicationcontrollers,services"),
        Rule::on(READ, "apps", "replicasets,statefulsets"),
        Rule::on(READ, "policy", "poddisruptionbudgets"),
        Rule::on(
            READ,
            "",
            "persistentvolumeclaims,persistentvolumes,namespaces",
        ),
        Rule::on("create", "authentication.k8s.io", "tokenreviews"),
        Rule::on("create", "authorization.k8s.io", "subjectaccessreviews"),
        Rule::on(
            READ,
            "storage.k8s.io",
            "csinodes,csidrivers,csistoragecapacities",
        ),
    ]
}

fn volume_scheduler() -> Vec<Rule> {
    vec![
        Rule::on("get,list,patch,update,watch", "", "persistentvolumes"),
        Rule::on(READ, "storage.k8s.io", "storageclasses"),
        Rule::on("get,list,patch,update,watch", "", "persistentvolumeclaims"),
    ]
}

fn controller_manager() -> Vec<Rule> {
    vec![
        events(),
        Rule::on("create", "coordination.k8s.io", "leases"),
        Rule::on("get,list,update,watch", "coordination.k8s.io", "leases"),
        Rule::on("create", "", "secrets,serviceaccounts"),
        Rule::on("delete", "", "secrets"),
        Rule::on("get", "", "namespaces,secrets,serviceaccounts,configmaps"),
        Rule::on("update", "", "secrets,serviceaccounts"),
        Rule::on("create", "authentication.k8s.io", "tokenreviews"),
        Rule::on("create", "authorization.k8s.io", "subjectaccessreviews"),
        Rule::on("list,watch", "*", "*"),
        Rule::on("create", "", "serviceaccounts/token"),
    ]
}

/// For those who bind it to a node that the node authorizer does not know.
fn kubelet() -> Vec<Rule> {
    let mut rules = node::rules();
    rules.extend([
        Rule::on("create,get,list,watch", "", "nodes"),
        Rule::on("patch,update", "", "nodes,nodes/status"),
        Rule::on("create,delete,get,list,watch", "", "pods"),
        Rule::on("patch,update", "", "pods/status"),
        Rule::on("create", "", "pods/eviction"),
        Rule::on("get,list,watch", "", "configmaps,secrets"),
        Rule::on("get", "", "persistentvolumeclaims,persistentvolumes"),
        Rule::on("get,patch,update", "", "persistentvolumeclaims/status"),
        Rule::on("create", "", "serviceaccounts/token"),
        Rule::on(
            "create,delete,get,patch,update",
            "coordination.k8s.io",
            "leases",
        ),
    ]);
    rules
}

fn node_proxier() -> Vec<Rule> {
    vec![
        Rule::on("list,watch", "", "endpoints,services"),
        Rule::on("get,list,watch", "", "nodes"),
        events(),
        Rule::on("list,watch", "discovery.k8s.io", "endpointslices"),
        Rule::on("list,watch", "networking.k8s.io", "servicecidrs"),
    ]
}

fn problem_detector() -> Vec<Rule> {
    vec![
        Rule::on("get", "", "nodes"),
        Rule::on("patch", "", "nodes/status"),
        events(),
    ]
}

fn provisioner() -> Vec<Rule> {
    vec![
        Rule::on("create,delete,get,list,watch", "", "persistentvolumes"),
        Rule::on("get,list,update,watch", "", "persistentvolumeclaims"),
        Rule::on(READ, "storage.k8s.io", "storageclasses"),
        Rule::on("watch", "", "events"),
        events(),
    ]
}

/// Signing and approval of each signer, and the right to approve node certificates.
fn certificate_roles() -> Vec<DefaultRole> {
    let mut roles = vec![
        DefaultRole::new(
            NODE_CLIENT,
            vec![Rule::on(
                "create",
                CERTIFICATES,
                "certificatesigningrequests/nodeclient",
            )],
        ),
        DefaultRole::new(
            NODE_RENEWAL,
            vec![Rule::on(
                "create",
                CERTIFICATES,
                "certificatesigningrequests/selfnodeclient",
            )],
        ),
    ];
    for signer in [
        "kube-apiserver-client-kubelet",
        "kubelet-serving",
        "kube-apiserver-client",
        "legacy-unknown",
    ] {
        let name = format!("kubernetes.io/{signer}");
        roles.push(DefaultRole::new(
            format!("system:certificates.k8s.io:{signer}-approver"),
            vec![
                Rule::on(READ, CERTIFICATES, "certificatesigningrequests"),
                Rule::on(
                    "update",
                    CERTIFICATES,
                    "certificatesigningrequests/approval",
                ),
                Rule::on("approve", CERTIFICATES, "signers").named(&name),
            ],
        ));
    }
    roles
}
