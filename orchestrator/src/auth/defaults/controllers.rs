//! Roles of the controllers, each bound to the ServiceAccount `kube-system/NAME`.

use super::{DefaultBinding, DefaultRole, Holder, READ, Rule};

/// Name, and rules as (verbs, groups, resources).
type Controller = (
    &'static str,
    &'static [(&'static str, &'static str, &'static str)],
);

const PODS_OF_OWNER: (&str, &str, &str) = ("create,delete,list,patch,watch", "", "pods");

const CONTROLLERS: &[Controller] = &[
    (
        "certificate-controller",
        &[
            (
                "delete,get,list,watch",
                "certificates.k8s.io",
                "certificatesigningrequests",
            ),
            (
                "update",
                "certificates.k8s.io",
                "certificatesigningrequests/approval,certificatesigningrequests/status",
            ),
            ("approve,sign", "certificates.k8s.io", "signers"),
            ("create", "authorization.k8s.io", "subjectaccessreviews"),
        ],
    ),
    (
        "clusterrole-aggregation-controller",
        &[(
            "escalate,get,list,patch,update,watch",
            "rbac.authorization.k8s.io",
            "clusterroles",
        )],
    ),
    (
        "cronjob-controller",
        &[
            ("get,list,update,watch", "batch", "cronjobs"),
            ("create,delete,get,list,patch,update,watch", "batch", "jobs"),
            ("update", "batch", "cronjobs/status,cronjobs/finalizers"),
            ("delete,list", "", "pods"),
        ],
    ),
    (
        "daemon-set-controller",
        &[
            (READ, "apps", "daemonsets"),
            ("update", "apps", "daemonsets/status,daemonsets/finalizers"),
            ("list,watch", "", "nodes"),
            PODS_OF_OWNER,
            ("create", "", "pods/binding"),
            (
                "create,delete,get,list,patch,update,watch",
                "apps",
                "controllerrevisions",
            ),
        ],
    ),
    (
        "deployment-controller",
        &[
            ("get,list,update,watch", "apps", "deployments"),
            (
                "update",
                "apps",
                "deployments/status,deployments/finalizers",
            ),
            (
                "create,delete,get,list,patch,update,watch",
                "apps",
                "replicasets",
            ),
            ("get,list,update,watch", "", "pods"),
        ],
    ),
    (
        "endpoint-controller",
        &[
            (READ, "", "pods,services"),
            ("create,delete,get,list,update", "", "endpoints"),
            ("create", "", "endpoints/restricted"),
        ],
    ),
    (
        "endpointslice-controller",
        &[
            (READ, "", "nodes,pods,services"),
            ("update", "", "services/finalizers"),
            (
                "create,delete,get,list,update",
                "discovery.k8s.io",
                "endpointslices",
            ),
            ("create", "discovery.k8s.io", "endpointslices/restricted"),
        ],
    ),
    (
        "endpointslicemirroring-controller",
        &[
            (READ, "", "endpoints,services"),
            ("update", "", "services/finalizers,endpoints/finalizers"),
            (
                "create,delete,get,list,update",
                "discovery.k8s.io",
                "endpointslices",
            ),
            ("create", "discovery.k8s.io", "endpointslices/restricted"),
        ],
    ),
    (
        "generic-garbage-collector",
        &[("delete,get,list,patch,update,watch", "*", "*")],
    ),
    (
        "job-controller",
        &[
            ("get,list,patch,update,watch", "batch", "jobs"),
            ("update", "batch", "jobs/status,jobs/finalizers"),
            PODS_OF_OWNER,
        ],
    ),
    (
        "namespace-controller",
        &[
            ("delete,get,list,watch", "", "namespaces"),
            ("update", "", "namespaces/finalize,namespaces/status"),
            ("delete,deletecollection,get,list", "*", "*"),
        ],
    ),
    (
        "node-controller",
        &[
            ("delete,get,list,patch,update", "", "nodes"),
            ("patch,update", "", "nodes/status"),
            ("patch,update", "", "pods/status"),
            ("delete,get,list", "", "pods"),
        ],
    ),
    (
        "persistent-volume-binder",
        &[
            (
                "create,delete,get,list,update,watch",
                "",
                "persistentvolumes",
            ),
            ("update", "", "persistentvolumes/status"),
            ("get,list,update,watch", "", "persistentvolumeclaims"),
            ("update", "", "persistentvolumeclaims/status"),
            ("create,delete,get,list,watch", "", "pods"),
            (READ, "storage.k8s.io", "storageclasses"),
            (READ, "", "nodes"),
            ("watch", "", "events"),
        ],
    ),
    (
        "pod-garbage-collector",
        &[
            ("delete,list,watch", "", "pods"),
            ("get,list", "", "nodes"),
            ("patch", "", "pods/status"),
        ],
    ),
    (
        "pv-protection-controller",
        &[("get,list,update,watch", "", "persistentvolumes")],
    ),
    (
        "pvc-protection-controller",
        &[
            ("get,list,update,watch", "", "persistentvolumeclaims"),
            (READ, "", "pods"),
        ],
    ),
    (
        "replicaset-controller",
        &[
            ("get,list,update,watch", "apps", "replicasets"),
            (
                "update",
                "apps",
                "replicasets/status,replicasets/finalizers",
            ),
            PODS_OF_OWNER,
        ],
    ),
    (
        "root-ca-cert-publisher",
        &[("create,update", "", "configmaps")],
    ),
    (
        "service-account-controller",
        &[("create", "", "serviceaccounts")],
    ),
    (
        "statefulset-controller",
        &[
            ("list,watch", "", "pods"),
            (READ, "apps", "statefulsets"),
            (
                "update",
                "apps",
                "statefulsets/status,statefulsets/finalizers",
            ),
            ("create,delete,get,patch,update", "", "pods"),
            (
                "create,delete,get,list,patch,update,watch",
                "apps",
                "controllerrevisions",
            ),
            (
                "create,delete,get,list,update,watch",
                "",
                "persistentvolumeclaims",
            ),
        ],
    ),
    (
        "ttl-after-finished-controller",
        &[("delete,get,list,watch", "batch", "jobs")],
    ),
];

pub(super) fn roles() -> Vec<DefaultRole> {
    let role = |(name, rules): &Controller| {
        let mut rules: Vec<Rule> = rules
            .iter()
            .map(|(verbs, groups, resources)| Rule::on(verbs, groups, resources))
            .collect();
        rules.push(Rule::on("create,patch,update", ",events.k8s.io", "events"));
        DefaultRole::new(format!("system:controller:{name}"), rules)
    };
    CONTROLLERS.iter().map(role).collect()
}

pub(super) fn bindings() -> Vec<DefaultBinding> {
    let binding = |(name, _): &Controller| {
        DefaultBinding::new(
            format!("system:controller:{name}"),
            vec![Holder::ServiceAccount(name)],
        )
    };
    CONTROLLERS.iter().map(binding).collect()
}
