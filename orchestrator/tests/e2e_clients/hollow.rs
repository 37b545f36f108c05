//! Workloads on hollow nodes, from apply to deletion, told by kubectl alone.

use clap::Parser;
use fairlead::hollow::{Hollow, HollowArgs};

use crate::{
    harness::wait_until,
    tool::{Tool, with_each},
};

const NODES: &str = "3";

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    hollow: HollowArgs,
}

/// Runs `check` with each kubectl against a cluster with hollow nodes.
pub(crate) fn with_nodes(name: &str, check: impl Fn(&Tool<'_>)) {
    with_each(name, |kubectl| {
        let kubeconfig = kubectl.cluster.server.kubeconfig.display().to_string();
        let flags = Flags::parse_from([
            "test",
            "--nodes",
            NODES,
            "--kubeconfig",
            &kubeconfig,
            "--pod-start-delay",
            "50ms",
            "--pod-run-time",
            "50ms",
        ]);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let hollow = runtime.block_on(Hollow::start(flags.hollow)).unwrap();
        runtime.spawn(hollow.run());
        kubectl.good(
            "wait node --all --for=condition=Ready --timeout=30s",
            "condition met",
        );
        check(kubectl);
        runtime.shutdown_background();
    });
}

const WORKLOADS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: red}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: nginx:1
        ports: [{name: http, containerPort: 80}]
        envFrom: [{configMapRef: {name: settings}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: work}
spec:
  completions: 3
  parallelism: 2
  template:
    spec: {restartPolicy: Never, containers: [{name: work, image: busybox}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: db, image: 'db:1'}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-from-web}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
";

fn become_ready(kubectl: &Tool<'_>) {
    kubectl.piped(
        "apply -f -",
        WORKLOADS,
        "networkpolicy.networking.k8s.io/db-from-web created",
    );
    kubectl.good(
        "rollout status deploy/web --timeout=60s",
        "successfully rolled out",
    );
    kubectl.good(
        "wait deploy/web --for=condition=Available --timeout=60s",
        "condition met",
    );
    kubectl.good(
        "rollout status sts/db --timeout=60s",
        "partitioned roll out complete",
    );
    kubectl.good(
        "wait job/work --for=condition=Complete --timeout=60s",
        "condition met",
    );
    kubectl.good("get deploy web", "3/3     3            3");
    kubectl.good("get sts db", "2/2");
    kubectl.good("get job work", "3/3");
    wait_until("the Service's endpoints", || {
        let slices = "get endpointslices -l kubernetes.io/service-name=web -o jsonpath={.items[*].endpoints[*].addresses[0]}";
        kubectl
            .run(slices, "")
            .stdout
            .split(' ')
            .filter(|a| !a.is_empty())
            .count()
            == 3
    });
    let pods = kubectl.good("get pods -l app=web -o wide", "hollow-");
    assert_eq!(pods.matches("1/1     Running").count(), 3, "{pods}");
    let diff = kubectl.run("diff -f -", WORKLOADS);
    assert_eq!(
        (diff.code, diff.stdout.as_str()),
        (0, ""),
        "{}",
        diff.stderr
    );
}

fn read_well(kubectl: &Tool<'_>) {
    let deploy = kubectl.good(
        "describe deploy web",
        "3 desired | 3 updated | 3 total | 3 available | 0 unavailable",
    );
    assert!(deploy.contains("Scaled up replica set web-"), "{deploy}");
    let pod = kubectl.good(
        "describe pod db-0",
        "Successfully assigned default/db-0 to hollow-",
    );
    assert!(pod.contains("Controlled By:  StatefulSet/db"), "{pod}");
    kubectl.good("describe job work", "/ 3 Succeeded / 0 Failed");
    kubectl.good("describe svc web", "Endpoints:");
    kubectl.good("describe netpol db-from-web", "PodSelector: app=web");
    kubectl.good(
        "describe sts db",
        "2 Running / 0 Waiting / 0 Succeeded / 0 Failed",
    );
    kubectl.good("describe node hollow-0", "Non-terminated Pods:");
    kubectl.good(
        "get events --field-selector involvedObject.name=web",
        "ScalingReplicaSet",
    );
    kubectl.good("auth can-i create deployments", "yes");
    kubectl.good(
        "explain sts.spec.serviceName",
        "FIELD: serviceName <string>",
    );
    kubectl.good("get pods --sort-by=.metadata.name -o custom-columns=NAME:.metadata.name,NODE:.spec.nodeName", "db-0");
}

fn image(kubectl: &Tool<'_>) -> String {
    kubectl.good(
        "get deploy web -o jsonpath={.spec.template.spec.containers[0].image}",
        "",
    )
}

fn roll(kubectl: &Tool<'_>) {
    kubectl.good("set image deploy/web web=nginx:2", "image updated");
    kubectl.good(
        "rollout status deploy/web --timeout=60s",
        "successfully rolled out",
    );
    kubectl.good("rollout history deploy/web --revision=2", "nginx:2");
    let old = "get rs -l app=web -o jsonpath={.items[?(@.spec.template.spec.containers[0].image==\"nginx:1\")].spec.replicas}";
    kubectl.good(old, "0");
    kubectl.good("rollout undo deploy/web", "rolled back");
    kubectl.good(
        "rollout status deploy/web --timeout=60s",
        "successfully rolled out",
    );
    assert_eq!(image(kubectl), "nginx:1");
    let history = kubectl.good("rollout history deploy/web", "3");
    assert!(
        !history.contains("\n1 "),
        "revision 1 has become 3: {history}"
    );
    kubectl.good("rollout pause deploy/web", "paused");
    kubectl.good("set image deploy/web web=nginx:4", "image updated");
    kubectl.good("rollout resume deploy/web", "resumed");
    kubectl.good(
        "rollout status deploy/web --timeout=60s",
        "successfully rolled out",
    );
    kubectl.good("rollout restart sts/db", "restarted");
    kubectl.good("rollout status sts/db --timeout=60s", "roll");
}

fn hold_a_bad_roll(kubectl: &Tool<'_>) {
    let bad = "patch deploy web -p '{\"spec\":{\"progressDeadlineSeconds\":2,\"template\":{\"metadata\":{\"annotations\":{\"hollow.fairlead.dev/ready\":\"false\"}}}}}'";
    kubectl.good(bad, "patched");
    kubectl.bad(
        "rollout status deploy/web --timeout=60s",
        "",
        "exceeded its progress deadline",
    );
    // A quarter of three may be missing: none, rounded down.
    kubectl.good(
        "get deploy web -o jsonpath={.status.availableReplicas}",
        "3",
    );
    kubectl.good("rollout undo deploy/web", "rolled back");
    kubectl.good(
        "rollout status deploy/web --timeout=60s",
        "successfully rolled out",
    );
}

fn scale(kubectl: &Tool<'_>) {
    kubectl.good("scale deploy/web --replicas=6", "scaled");
    kubectl.good(
        "wait deploy/web --for=jsonpath={.status.availableReplicas}=6 --timeout=60s",
        "condition met",
    );
    kubectl.good("scale sts/db --replicas=4", "scaled");
    kubectl.good("rollout status sts/db --timeout=60s", "roll");
    kubectl.good("get pod db-3 -o jsonpath={.status.phase}", "Running");
    kubectl.good("scale sts/db --replicas=1", "scaled");
    for gone in ["db-3", "db-2", "db-1"] {
        kubectl.good(&format!("wait pod/{gone} --for=delete --timeout=60s"), "");
    }
    kubectl.good("get pod db-0 -o jsonpath={.status.phase}", "Running");
}

fn drain(kubectl: &Tool<'_>) {
    kubectl.good(
        "drain hollow-0 --force --delete-emptydir-data --timeout=60s",
        "drained",
    );
    kubectl.good(
        "wait deploy/web --for=jsonpath={.status.availableReplicas}=6 --timeout=60s",
        "condition met",
    );
    let nodes = kubectl.good(
        "get pods -l app=web -o jsonpath={.items[*].spec.nodeName}",
        "hollow-",
    );
    assert!(!nodes.contains("hollow-0"), "{nodes}");
    kubectl.good("get node hollow-0", "Ready,SchedulingDisabled");
    kubectl.good("uncordon hollow-0", "uncordoned");
}

fn go(kubectl: &Tool<'_>) {
    kubectl.piped("delete -f - --timeout=60s", WORKLOADS, "deleted");
    wait_until("the pods' end", || {
        kubectl
            .run("get pods", "")
            .stderr
            .contains("No resources found")
    });
    kubectl.good("create ns team", "created");
    kubectl.piped("apply -n team -f -", WORKLOADS, "created");
    kubectl.good(
        "rollout status -n team deploy/web --timeout=60s",
        "successfully rolled out",
    );
    kubectl.good("delete ns team --timeout=60s", "deleted");
    kubectl.bad("get ns team", "", "NotFound");
}

#[test]
fn workloads_become_ready_roll_roll_back_scale_and_go() {
    with_nodes("hollow", |kubectl| {
        become_ready(kubectl);
        read_well(kubectl);
        roll(kubectl);
        hold_a_bad_roll(kubectl);
        scale(kubectl);
        drain(kubectl);
        go(kubectl);
    });
}

#[test]
fn a_node_makes_its_lease_anew_when_it_is_gone() {
    with_nodes("leases", |kubectl| {
        let lease = "lease hollow-1 -n kube-node-lease";
        kubectl.good(&format!("delete {lease}"), "deleted");
        wait_until("the lease is there again", || {
            kubectl.run(&format!("get {lease}"), "").code == 0
        });
    });
}
