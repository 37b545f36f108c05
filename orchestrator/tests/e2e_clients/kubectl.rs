//! kubectl, unmodified and of two releases, Helm and the Python client.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    clients,
    harness::Cluster,
    tool::{Tool, with_each},
};

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: applied, labels: {tier: front}}
spec:
  replicas: 3
  paused: true
  selector: {matchLabels: {app: applied}}
  template:
    metadata: {labels: {app: applied}}
    spec:
      containers:
      - {name: web, image: 'nginx:1', ports: [{containerPort: 80}]}
";

#[test]
fn kubectl_finds_its_way() {
    with_each("discovery", |kubectl| {
        kubectl.good("version", "Server Version: v1.");
        let all = kubectl.good("api-resources", "deployments");
        for line in ["deploy ", "netpol ", "cm ", "leases", "clusterrolebindings"] {
            assert!(all.contains(line), "{line} in {all}");
        }
        kubectl.good("api-versions", "networking.k8s.io/v1");
        kubectl.good("cluster-info", "is running at");
        kubectl.good("get ns", "kube-system");
        kubectl.good("get ns default -o jsonpath={.status.phase}", "Active");
        kubectl.good("get --raw /readyz?verbose", "[+]store ok");
        kubectl.good("get --raw /metrics", "apiserver_request_total");
        kubectl.good(
            "explain deployment.spec.replicas",
            "FIELD: replicas <integer>",
        );
        kubectl.bad(
            "get deploymentz",
            "",
            "the server doesn't have a resource type",
        );
    });
}

#[test]
fn kubectl_creates_in_protobuf_and_json() {
    with_each("create", |kubectl| {
        kubectl.good("create ns team", "namespace/team created");
        kubectl.good(
            "create cm c --from-literal=a=b -n team",
            "configmap/c created",
        );
        kubectl.good("get cm c -n team -o jsonpath={.data.a}", "b");
        kubectl.good(
            "create secret generic s --from-literal=p=q",
            "secret/s created",
        );
        kubectl.good("get secret s -o jsonpath={.data.p}{.type}", "cQ==Opaque");
        kubectl.good("create sa bob", "serviceaccount/bob created");
        kubectl.good("create deploy web --image=nginx:1 --replicas=2", "created");
        kubectl.good(
            "get deploy web -o jsonpath={.spec.strategy.rollingUpdate.maxSurge}",
            "25%",
        );
        kubectl.good(
            "create job j --image=busybox -- true",
            "job.batch/j created",
        );
        kubectl.good(
            "create cronjob c --image=busybox --schedule='* * * * *'",
            "created",
        );
        kubectl.good("create role r --verb=get,list --resource=pods", "created");
        kubectl.good(
            "create rolebinding rb --role=r --serviceaccount=default:bob",
            "created",
        );
        kubectl.good(
            "create clusterrole cr --verb=get --resource=nodes",
            "created",
        );
        kubectl.good("create quota q --hard=pods=3", "resourcequota/q created");
        kubectl.good("run p --image=busybox --restart=Never", "pod/p created");
        kubectl.good(
            "expose deploy web --port=80 --target-port=8080",
            "service/web exposed",
        );
        kubectl.good("create svc nodeport np --tcp=80:80", "service/np created");
        kubectl.bad("create ns team", "", "AlreadyExists");
        kubectl.bad(
            "create cm c -n nowhere",
            "",
            "namespaces \"nowhere\" not found",
        );
        kubectl.good("get all", "deployment.apps/web");
        kubectl.good("get po,svc -o wide", "NODE");
        kubectl.good("describe deploy web", "25% max unavailable, 25% max surge");
        kubectl.good("describe svc web", "TargetPort:               8080/TCP");
        kubectl.good("describe pod p", "Image:");
        kubectl.good("describe secret s", "p:  1 bytes");
        kubectl.good("create token bob", "ey");
    });
}

#[test]
fn kubectl_applies_edits_and_patches() {
    with_each("apply", |kubectl| {
        kubectl.piped("apply -f -", DEPLOYMENT, "deployment.apps/applied created");
        kubectl.piped(
            "apply -f -",
            DEPLOYMENT,
            "deployment.apps/applied unchanged",
        );
        let four = DEPLOYMENT.replace("replicas: 3", "replicas: 4");
        let diff = kubectl.run("diff -f -", &four);
        assert_eq!(diff.code, 1, "{}", diff.stderr);
        assert!(diff.stdout.contains("+  replicas: 4"), "{}", diff.stdout);
        kubectl.piped(
            "apply --dry-run=server -f -",
            &four,
            "configured (server dry run)",
        );
        kubectl.good("get deploy applied -o jsonpath={.spec.replicas}", "3");
        kubectl.piped("apply -f -", &four, "configured");
        kubectl.good("scale deploy applied --replicas=5", "scaled");
        kubectl.good(
            "get deploy applied -o jsonpath={.spec.replicas},{.metadata.generation}",
            "5,3",
        );
        kubectl.good("set image deploy/applied web=nginx:2", "image updated");
        kubectl.good("set env deploy/applied A=b", "env updated");
        kubectl.good("patch deploy applied -p '{\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"web\",\"image\":\"nginx:3\"}]}}}}'", "patched");
        kubectl.good(
            "get deploy applied -o jsonpath={.spec.template.spec.containers[*].env[0].value}",
            "b",
        );
        kubectl.good("patch deploy applied --type=json -p '[{\"op\":\"replace\",\"path\":\"/spec/replicas\",\"value\":2}]'", "patched");
        kubectl.good(
            "patch deploy applied --type=merge -p '{\"spec\":{\"minReadySeconds\":5}}'",
            "patched",
        );
        kubectl.good(
            "get deploy applied -o jsonpath={.spec.replicas},{.spec.minReadySeconds}",
            "2,5",
        );
        kubectl.good("patch deploy applied --subresource=status --type=merge -p '{\"status\":{\"collisionCount\":7}}'", "patched");
        kubectl.good(
            "get deploy applied -o jsonpath={.status.collisionCount}",
            "7",
        );
        kubectl.good("label deploy applied x=y", "labeled");
        kubectl.good("annotate deploy applied note='two words'", "annotated");
        kubectl.good(
            "get deploy -l x=y,tier!=back -o name",
            "deployment.apps/applied",
        );
        kubectl.good(
            "get deploy -l 'tier in (front,back),!absent' -o name",
            "deployment.apps/applied",
        );
        kubectl.bad("patch deploy applied --type=merge -p '{\"spec\":{\"selector\":{\"matchLabels\":{\"app\":\"x\"}}}}'", "", "field is immutable");
        let unknown = DEPLOYMENT.replace("replicas: 3", "replicaz: 3");
        kubectl.bad("apply -f -", &unknown, "unknown field \"spec.replicaz\"");
        kubectl.bad("get deploy -l 'a in b'", "", "unable to parse requirement");
        kubectl.bad(
            "get pods --field-selector spec.color=red",
            "",
            "field label not supported",
        );
        kubectl.good("delete deploy applied --wait=true", "deleted");
        kubectl.bad("get deploy applied", "", "NotFound");
    });
}

#[test]
fn kubectl_applies_on_the_server_with_owners() {
    with_each("ssa", |kubectl| {
        kubectl.piped(
            "apply --server-side --field-manager=a -f -",
            DEPLOYMENT,
            "serverside-applied",
        );
        let four = DEPLOYMENT.replace("replicas: 3", "replicas: 4");
        kubectl.bad(
            "apply --server-side --field-manager=b -f -",
            &four,
            "conflict with \"a\": .spec.replicas",
        );
        kubectl.piped(
            "apply --server-side --field-manager=b --force-conflicts -f -",
            &four,
            "serverside-applied",
        );
        kubectl.bad(
            "apply --server-side --field-manager=a -f -",
            DEPLOYMENT,
            "conflict with \"b\"",
        );
        let without = DEPLOYMENT.replace("  replicas: 3\n", "");
        kubectl.piped(
            "apply --server-side --field-manager=a -f -",
            &without,
            "serverside-applied",
        );
        kubectl.good("get deploy applied -o jsonpath={.spec.replicas}", "4");
    });
}

#[test]
fn kubectl_asks_what_it_may_do() {
    with_each("auth", |kubectl| {
        kubectl.good("auth whoami", "fairlead-admin");
        kubectl.good("auth can-i '*' '*'", "yes");
        kubectl.good("auth can-i --list", "*.*");
        kubectl.good("create sa bob", "created");
        kubectl.good("create role r --verb=list --resource=pods", "created");
        kubectl.good(
            "create rolebinding rb --role=r --serviceaccount=default:bob",
            "created",
        );
        let bob = "--as=system:serviceaccount:default:bob";
        kubectl.good(&format!("auth can-i list pods {bob}"), "yes");
        let no = kubectl.run(&format!("auth can-i delete pods {bob}"), "");
        assert_eq!(no.stdout.trim(), "no");
        kubectl.good(&format!("get pods {bob}"), "");
        kubectl.bad(&format!("get secrets {bob}"), "", "Forbidden");
    });
}

#[test]
fn kubectl_waits_and_watches() {
    with_each("wait", |kubectl| {
        kubectl.good("create cm c --from-literal=a=b", "created");
        kubectl.good(
            "wait cm/c --for=jsonpath={.data.a}=b --timeout=10s",
            "condition met",
        );
        let home = kubectl.cluster.folder.path("home");
        let mut watch = Command::new(&kubectl.binary)
            .args([
                "get",
                "cm",
                "c",
                "--watch-only",
                "-o",
                "jsonpath={.data.a} ",
            ])
            .env("KUBECONFIG", &kubectl.cluster.server.kubeconfig)
            .env("HOME", &home)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let metrics = || kubectl.run("get --raw /metrics", "").stdout;
        let open = "apiserver_longrunning_requests{resource=\"configmaps\"} 1";
        crate::harness::wait_until("the watch", || metrics().contains(open));
        kubectl.good(
            "patch cm c --type=merge -p '{\"data\":{\"a\":\"seen\"}}'",
            "patched",
        );
        let mut seen = [0; 4];
        std::io::Read::read_exact(watch.stdout.as_mut().unwrap(), &mut seen).unwrap();
        assert_eq!(&seen, b"seen");
        watch.kill().unwrap();
        watch.wait().unwrap();
        kubectl.good("run p --image=busybox", "created");
        kubectl.good("delete pod p --now", "deleted");
        kubectl.good("wait --for=delete pod/p --timeout=10s", "");
    });
}

const CHART: &[(&str, &str)] = &[
    ("Chart.yaml", "apiVersion: v2\nname: demo\nversion: 0.1.0\n"),
    ("values.yaml", "colour: red\n"),
    (
        "templates/all.yaml",
        "apiVersion: v1
kind: ConfigMap
metadata: {name: '{{ .Release.Name }}-settings'}
data: {colour: '{{ .Values.colour }}'}
---
apiVersion: v1
kind: Service
metadata: {name: '{{ .Release.Name }}'}
spec: {clusterIP: None, ports: [{port: 80}], selector: {app: demo}}
",
    ),
    (
        "templates/hook.yaml",
        "apiVersion: v1
kind: ConfigMap
metadata:
  name: '{{ .Release.Name }}-hook'
  annotations: {'helm.sh/hook': 'pre-install,pre-upgrade', 'helm.sh/hook-delete-policy': before-hook-creation}
data: {revision: '{{ .Release.Revision }}'}
",
    ),
];

#[test]
fn helm_installs_upgrades_rolls_back_and_uninstalls() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cluster = runtime.block_on(Cluster::start("helm"));
    let chart = cluster.folder.path("chart");
    for (path, text) in CHART {
        let path = chart.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let helm = Tool {
        binary: clients::helm(),
        cluster: &cluster,
    };
    let kubectl = Tool {
        binary: clients::kubectls().remove(0),
        cluster: &cluster,
    };
    let chart = chart.display();
    helm.good(&format!("install demo {chart}"), "STATUS: deployed");
    kubectl.good("get cm demo-settings -o jsonpath={.data.colour}", "red");
    helm.good(
        &format!("upgrade demo {chart} --set colour=blue"),
        "REVISION: 2",
    );
    kubectl.good("get cm demo-settings -o jsonpath={.data.colour}", "blue");
    kubectl.good("get cm demo-hook -o jsonpath={.data.revision}", "2");
    helm.good("rollback demo 1", "Rollback was a success");
    kubectl.good("get cm demo-settings -o jsonpath={.data.colour}", "red");
    helm.good("list", "demo");
    helm.good("history demo", "Rollback to 1");
    helm.good("get manifest demo", "demo-settings");
    helm.good("uninstall demo", "uninstalled");
    kubectl.bad("get cm demo-settings", "", "NotFound");
    runtime.block_on(cluster.server.stop());
}

const SCRIPT: &str = r#"
import sys
from kubernetes import client, config, watch, dynamic
config.load_kube_config(sys.argv[1])
core, apps = client.CoreV1Api(), client.AppsV1Api()
core.create_namespaced_config_map("default", {"metadata": {"name": "c", "labels": {"a": "b"}}, "data": {"k": "v"}})
rv = core.list_namespaced_config_map("default", label_selector="a=b").metadata.resource_version
core.patch_namespaced_config_map("c", "default", {"data": {"k": "w"}})
for event in watch.Watch().stream(core.list_namespaced_config_map, "default", resource_version=rv, timeout_seconds=10):
    assert event["type"] == "MODIFIED" and event["object"].data["k"] == "w", event
    break
labels = {"app": "x"}
apps.create_namespaced_deployment("default", {"metadata": {"name": "d"}, "spec": {"replicas": 1, "paused": True, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
apps.patch_namespaced_deployment_scale("d", "default", {"spec": {"replicas": 3}})
assert apps.read_namespaced_deployment("d", "default").spec.replicas == 3
dyn = dynamic.DynamicClient(client.ApiClient())
maps = dyn.resources.get(api_version="v1", kind="ConfigMap")
maps.server_side_apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "s"}, "data": {"x": "y"}}, namespace="default", field_manager="py")
assert maps.get(name="s", namespace="default").data["x"] == "y"
found = list(dyn.resources.get(api_version="apps/v1", kind="Deployment").watch(namespace="default", timeout=1))
assert [event["object"].metadata.name for event in found] == ["d"], found
page = client.RbacAuthorizationV1Api().list_cluster_role(limit=3)
assert len(page.items) == 3 and page.metadata._continue, page
token = core.create_namespaced_service_account_token("default", "default", {"spec": {"audiences": ["a"], "expirationSeconds": 600}})
assert token.status.token, token
access = client.AuthorizationV1Api().create_self_subject_access_review({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}})
assert access.status.allowed, access
core.create_namespaced_pod("default", {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
core.create_namespaced_pod_eviction("p", "default", {"metadata": {"name": "p"}})
try:
    core.create_namespaced_config_map("default", {"metadata": {"name": "X_"}})
    sys.exit("must be 422")
except client.ApiException as e:
    assert e.status == 422 and "metadata.name" in e.body, e
try:
    core.read_namespaced_config_map("none", "default")
    sys.exit("must be 404")
except client.ApiException as e:
    assert e.status == 404, e
core.delete_namespaced_config_map("c", "default")
print("python is content")
"#;

#[test]
fn the_python_client_reads_writes_and_watches() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cluster = runtime.block_on(Cluster::start("python"));
    let script = cluster.folder.path("script.py");
    std::fs::write(&script, SCRIPT).unwrap();
    let python = Tool {
        binary: clients::python(),
        cluster: &cluster,
    };
    let kubeconfig: &Path = &cluster.server.kubeconfig;
    let arguments = format!("{} {}", script.display(), kubeconfig.display());
    python.good(&arguments, "python is content");
    runtime.block_on(cluster.server.stop());
}
