//! Roles for people and for everybody: `cluster-admin`, `admin`, `edit`, `view`, discovery.

use super::super::identity::{
    AUTHENTICATED, CLUSTER_ADMINS, MASTERS, SERVICE_ACCOUNTS, UNAUTHENTICATED,
};
use super::{DefaultBinding, DefaultRole, Holder, READ, READ_WRITE, Rule, WRITE};

const APPS: &str = "daemonsets,deployments,deployments/scale,replicasets,replicasets/scale,\
                    statefulsets,statefulsets/scale";
const APPS_STATUS: &str = "controllerrevisions,daemonsets/status,deployments/status,replicasets/status,statefulsets/status";

pub(super) fn roles() -> Vec<DefaultRole> {
    let urls = |paths| vec![Rule::urls("get", paths)];
    vec![
        DefaultRole::new(
            "cluster-admin",
            vec![Rule::on("*", "*", "*"), Rule::urls("*", "*")],
        ),
        DefaultRole::new(
            "system:discovery",
            urls(
                "/api,/api/*,/apis,/apis/*,/healthz,/livez,/openapi,/openapi/*,/readyz,/version,/version/",
            ),
        ),
        DefaultRole::new(
            "system:public-info-viewer",
            urls("/healthz,/livez,/readyz,/version,/version/"),
        ),
        DefaultRole::new(
            "system:monitoring",
            urls("/healthz,/healthz/*,/livez,/livez/*,/metrics,/metrics/slis,/readyz,/readyz/*"),
        ),
        DefaultRole::new(
            "system:service-account-issuer-discovery",
            urls(
                "/.well-known/openid-configuration,/.well-known/openid-configuration/,/openid/v1/jwks,/openid/v1/jwks/",
            ),
        ),
        DefaultRole::new(
            "system:basic-user",
            vec![
                Rule::on(
                    "create",
                    "authorization.k8s.io",
                    "selfsubjectaccessreviews,selfsubjectrulesreviews",
                ),
                Rule::on("create", "authentication.k8s.io", "selfsubjectreviews"),
            ],
        ),
        united("admin", None),
        united("edit", Some("admin")),
        united("view", Some("edit")),
        part("admin", admin()),
        part("edit", edit()),
        part("view", view()),
    ]
}

pub(super) fn bindings() -> Vec<DefaultBinding> {
    let all = || vec![Holder::Group(AUTHENTICATED)];
    vec![
        DefaultBinding::new("cluster-admin", vec![Holder::Group(MASTERS)]),
        // The kubeconfig's group: unlike system:masters, its rights can be taken away.
        DefaultBinding {
            name: CLUSTER_ADMINS.to_owned(),
            ..DefaultBinding::new("cluster-admin", vec![Holder::Group(CLUSTER_ADMINS)])
        },
        DefaultBinding::new(
            "system:monitoring",
            vec![Holder::Group("system:monitoring")],
        ),
        DefaultBinding::new("system:discovery", all()),
        DefaultBinding::new("system:basic-user", all()),
        DefaultBinding::new(
            "system:public-info-viewer",
            vec![Holder::Group(AUTHENTICATED), Holder::Group(UNAUTHENTICATED)],
        ),
        DefaultBinding::new(
            "system:service-account-issuer-discovery",
            vec![Holder::Group(SERVICE_ACCOUNTS)],
        ),
    ]
}

/// A role that takes in the parts labelled for it, and is itself part of the next higher one.
fn united(name: &'static str, part_of: Option<&'static str>) -> DefaultRole {
    DefaultRole {
        unites: Some(name),
        part_of,
        ..DefaultRole::new(name, Vec::new())
    }
}

fn part(of: &'static str, rules: Vec<Rule>) -> DefaultRole {
    let name = format!("system:aggregate-to-{of}");
    DefaultRole {
        part_of: Some(of),
        ..DefaultRole::new(name, rules)
    }
}

fn admin() -> Vec<Rule> {
    vec![
        Rule::on(
            "create",
            "authorization.k8s.io",
            "localsubjectaccessreviews",
        ),
        Rule::on(
            READ_WRITE,
            "rbac.authorization.k8s.io",
            "roles,rolebindings",
        ),
    ]
}

fn edit() -> Vec<Rule> {
    vec![
        Rule::on(
            READ,
            "",
            "pods/attach,pods/proxy,pods/exec,pods/portforward,secrets,services/proxy",
        ),
        Rule::on("impersonate", "", "serviceaccounts"),
        Rule::on(
            WRITE,
            "",
            "pods,pods/attach,pods/proxy,pods/exec,pods/portforward",
        ),
        Rule::on("create", "", "pods/eviction"),
        Rule::on(
            WRITE,
            "",
            "configmaps,events,persistentvolumeclaims,replicationcontrollers,\
             replicationcontrollers/scale,secrets,serviceaccounts,services,services/proxy",
        ),
        Rule::on("create", "", "serviceaccounts/token"),
        Rule::on(WRITE, "apps", &format!("{APPS},deployments/rollback")),
        Rule::on(WRITE, "autoscaling", "horizontalpodautoscalers"),
        Rule::on(WRITE, "batch", "cronjobs,jobs"),
        Rule::on(WRITE, "policy", "poddisruptionbudgets"),
        Rule::on(WRITE, "networking.k8s.io", "ingresses,networkpolicies"),
        Rule::on(READ_WRITE, "coordination.k8s.io", "leases"),
    ]
}

fn view() -> Vec<Rule> {
    vec![
        Rule::on(
            READ,
            "",
            "configmaps,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,pods,\
             replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,\
             services/status",
        ),
        Rule::on(
            READ,
            "",
            "bindings,events,limitranges,namespaces/status,pods/log,pods/status,\
             replicationcontrollers/status,resourcequotas,resourcequotas/status",
        ),
        Rule::on(READ, "", "namespaces"),
        Rule::on(READ, "discovery.k8s.io", "endpointslices"),
        Rule::on(READ, "apps", &format!("{APPS},{APPS_STATUS}")),
        Rule::on(
            READ,
            "autoscaling",
            "horizontalpodautoscalers,horizontalpodautoscalers/status",
        ),
        Rule::on(READ, "batch", "cronjobs,cronjobs/status,jobs,jobs/status"),
        Rule::on(
            READ,
            "policy",
            "poddisruptionbudgets,poddisruptionbudgets/status",
        ),
        Rule::on(
            READ,
            "networking.k8s.io",
            "ingresses,ingresses/status,networkpolicies",
        ),
    ]
}
