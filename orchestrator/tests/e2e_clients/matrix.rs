//! The commands of kubectl that the other tests leave out, and what they say.

use base64::Engine as _;

use crate::{hollow::with_nodes, tool::with_each};

const MAP: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data: {colour: red}
";

const LIST: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: l1}, data: {a: b}}
- {apiVersion: v1, kind: Secret, metadata: {name: l2}, stringData: {a: b}}
";

#[test]
fn kubectl_replaces_edits_and_applies_lists() {
    with_each("files", |kubectl| {
        kubectl.piped("create -f -", MAP, "configmap/c created");
        kubectl.bad("create -f -", MAP, "\"c\" already exists");
        kubectl.piped("replace -f -", MAP, "configmap/c replaced");
        kubectl.piped("replace --force -f -", MAP, "configmap/c replaced");
        kubectl.good("edit cm c", "configmap/c edited");
        kubectl.good("get cm c -o jsonpath={.data.colour}", "blue");
        kubectl.good("edit cm c", "");
        let green = MAP.replace("red", "green");
        let server = "apply --server-side -f -";
        kubectl.bad(server, &green, "conflict with \"kubectl-edit\"");
        kubectl.piped("apply -f -", &green, "configmap/c configured");
        kubectl.good("apply view-last-applied cm c", "colour: green");
        kubectl.piped("delete -f -", MAP, "configmap \"c\" deleted");
        kubectl.bad("edit cm c", "", "not found");

        kubectl.piped("apply -f -", LIST, "secret/l2 created");
        kubectl.piped("apply -f -", LIST, "configmap/l1 unchanged");
        let wrong = LIST.replace("data: {a: b}}\n- ", "datum: {a: b}}\n- ");
        kubectl.bad("apply -f -", &wrong, "unknown field \"datum\"");
        let version = MAP.replace("v1", "v2");
        let unknown = "no matches for kind \"ConfigMap\" in version \"v2\"";
        kubectl.bad("apply -f -", &version, unknown);
        let kind = MAP.replace("ConfigMap", "ConfigMop");
        let unknown = "no matches for kind \"ConfigMop\" in version \"v1\"";
        kubectl.bad("apply -f -", &kind, unknown);

        let test = r#"patch cm l1 --type=json -p '[{"op":"test","path":"/data/a","value":"z"}]'"#;
        kubectl.bad(test, "", "value did not match");
        let number = r#"patch cm l1 -p {"data":{"a":1}}"#;
        kubectl.bad(number, "", "patch: Invalid value");
    });
}

const ROLE: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: default}
rules: [{apiGroups: [''], resources: [pods], verbs: [get]}]
";

#[test]
fn kubectl_sets_labels_and_reconciles() {
    with_each("sets", |kubectl| {
        let warned = kubectl.run("get endpoints", "").stderr;
        let warning = "Warning: v1 Endpoints is deprecated in v1.33+";
        assert!(warned.contains(warning), "{warned}");
        kubectl.all_good(&[
            ("create deploy web --image=nginx:1 --replicas=0", "created"),
            (
                "set resources deploy/web --limits=cpu=1,memory=1Gi",
                "updated",
            ),
            (
                "set serviceaccount deploy/web bob",
                "serviceaccount updated",
            ),
            (
                "get deploy web -o jsonpath={..limits.memory},{..serviceAccountName}",
                "1Gi,bob",
            ),
            (
                "create svc clusterip web --tcp=80:http",
                "service/web created",
            ),
            ("set selector svc web app=other", "selector updated"),
            ("describe svc web", "app=other"),
            ("label deploy web x=y", "labeled"),
            ("label deploy web x-", "unlabeled"),
            ("annotate deploy web x=y", "annotated"),
            ("annotate deploy web x-", "annotated"),
            ("create rolebinding rb --role=reader --user=ann", "created"),
            ("set subject rolebinding rb --user=zed", "subjects updated"),
            ("describe rolebinding rb", "User  zed"),
            ("get rolebinding rb -o wide", "USERS"),
        ]);
        let reconcile = "auth reconcile -f -";
        kubectl.piped(reconcile, ROLE, "");
        kubectl.good("describe role reader", "pods       []");
        kubectl.good("auth can-i get pods --as=zed", "yes");
        kubectl.good("create sa bob", "created");
        kubectl.all_bad(&[
            ("label deploy web app=a", "already has a value (web)"),
            ("set image deploy/web none=nginx:2", "unable to find container"),
            ("set image deploy/none web=nginx:2", "\"none\" not found"),
            ("scale deploy web --replicas=2 --current-replicas=1", "Expected replicas to be 1, was 0"),
            ("scale deploy none --replicas=2", "\"none\" not found"),
            ("create token none", "serviceaccounts \"none\" not found"),
            ("create token bob --duration=1m", "may not specify a duration less than 10 minutes"),
            ("get pods --as=ann", "User \"ann\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""),
            ("autoscale deploy web --max=3", ""),
            ("top pods", "Metrics API not available"),
            ("explain pod.spec.none", "field \"none\" does not exist"),
            ("get pods -l '=x'", "unable to parse requirement"),
            ("get --raw /api/v1/podz", "did you mean \"pods\" in v1?"),
            ("delete ns default", "this namespace may not be deleted"),
        ]);
    });
}

const SETS: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec: {containers: [{name: a, image: 'a:1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: bare}
spec: {containers: [{name: a, image: a}]}
---
apiVersion: v1
kind: Pod
metadata: {name: nowhere}
spec: {nodeSelector: {no: node}, containers: [{name: a, image: a}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec:
  schedule: '0 3 * * *'
  jobTemplate:
    spec: {template: {spec: {restartPolicy: Never, containers: [{name: a, image: a}]}}}
";

const TENDED: &[(&str, &str)] = &[
    (
        "rollout status ds/agent --timeout=60s",
        "\"agent\" successfully rolled out",
    ),
    (
        "get ds agent -o wide",
        "3         3         3       3            3           <none>",
    ),
    ("set image ds/agent a=a:2", "image updated"),
    (
        "rollout status ds/agent --timeout=60s",
        "successfully rolled out",
    ),
    ("rollout history ds/agent", "2         <none>"),
    ("rollout undo ds/agent", "rolled back"),
    (
        "rollout status ds/agent --timeout=60s",
        "successfully rolled out",
    ),
    (
        "describe ds agent",
        "Number of Nodes Scheduled with Available Pods: 3",
    ),
    ("get controllerrevisions", "daemonset.apps/agent"),
    (
        "wait pod/bare --for=condition=Ready --timeout=60s",
        "condition met",
    ),
    (
        "describe pod nowhere",
        "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.",
    ),
    (
        "debug bare --image=busybox --container=look --attach=false",
        "",
    ),
    ("describe pod bare", "Ephemeral Containers:\n  look:"),
    (
        "create job once --from=cronjob/nightly",
        "job.batch/once created",
    ),
    (
        "wait job/once --for=condition=Complete --timeout=60s",
        "condition met",
    ),
    ("get job once", "Complete   1/1"),
    ("describe cj nightly", "0 3 * * *"),
    (
        "get cj nightly",
        "0 3 * * *   <none>     False     0        <none>",
    ),
    (
        "taint node hollow-1 a=b:NoSchedule",
        "node/hollow-1 tainted",
    ),
    ("describe node hollow-1", "a=b:NoSchedule"),
    ("taint node hollow-1 a-", "untainted"),
    ("cordon hollow-2", "cordoned"),
    ("get node hollow-2", "Ready,SchedulingDisabled"),
    ("uncordon hollow-2", "uncordoned"),
    ("events --for pod/nowhere", "FailedScheduling"),
    ("events --types=Warning", "FailedScheduling"),
    ("get events", "LAST SEEN   TYPE      REASON"),
    ("get events -o wide", "COUNT   NAME"),
];

#[test]
fn kubectl_tends_nodes_daemons_and_pods() {
    with_nodes("tends", |kubectl| {
        kubectl.piped("apply -f -", SETS, "cronjob.batch/nightly created");
        kubectl.all_good(TENDED);
        kubectl.all_bad(&[
            ("drain hollow-0", "cannot delete DaemonSet-managed Pods"),
            ("logs bare", "pods have no subresource \"log\""),
            (
                "wait pod/nowhere --for=condition=Ready --timeout=1s",
                "timed out waiting for the condition on pods/nowhere",
            ),
            (
                "rollout history ds/agent --revision=9",
                "unable to find the specified revision",
            ),
        ]);
        kubectl.good("uncordon hollow-0", "");
    });
}

#[test]
fn kubectl_deletes_in_each_way() {
    with_nodes("deletes", |kubectl| {
        kubectl.all_good(&[
            ("create deploy a --image=i --replicas=2", "created"),
            (
                "rollout status deploy/a --timeout=60s",
                "successfully rolled out",
            ),
            ("delete deploy a --cascade=orphan", "deleted"),
            ("get rs -l app=a", "2         2         2"),
            (
                "delete rs -l app=a --cascade=foreground --timeout=60s",
                "deleted",
            ),
            ("create deploy b --image=i", "created"),
            (
                "wait deploy/b --for=condition=Available --timeout=60s",
                "condition met",
            ),
            ("delete deploy --all --timeout=60s", "\"b\" deleted"),
            ("wait pod -l app=b --for=delete --timeout=60s", ""),
            ("run p --image=i", "created"),
            (
                "delete pod p --grace-period=0 --force",
                "\"p\" force deleted",
            ),
            ("delete cm none --ignore-not-found", ""),
            ("create svc clusterip s --tcp=80", "created"),
            ("delete all --all --timeout=60s", "service \"s\" deleted"),
        ]);
        let left = kubectl.run("get pods,rs,deploy", "").stderr;
        assert!(left.contains("No resources found"), "{left}");
        kubectl.bad("delete cm none", "", "configmaps \"none\" not found");
    });
}

/// A request for a client certificate of the user zoe, as a manifest.
fn certificate_request() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut wanted = rcgen::CertificateParams::default();
    wanted.distinguished_name = rcgen::DistinguishedName::new();
    wanted
        .distinguished_name
        .push(rcgen::DnType::CommonName, "zoe");
    let request = wanted.serialize_request(&key).unwrap().pem().unwrap();
    let request = base64::engine::general_purpose::STANDARD.encode(request);
    format!(
        "
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {{name: zoe}}
spec:
  request: {request}
  signerName: kubernetes.io/kube-apiserver-client
  usages: [client auth]
  expirationSeconds: 86400
"
    )
}

#[test]
fn kubectl_approves_a_certificate() {
    let request = certificate_request();
    with_each("certificate", |kubectl| {
        kubectl.piped("apply -f -", &request, "created");
        kubectl.all_good(&[
            ("get csr zoe", "24h                 Pending"),
            ("certificate approve zoe", "zoe approved"),
            (
                "wait csr/zoe --for=jsonpath={.status.certificate} --timeout=30s",
                "condition met",
            ),
            ("get csr zoe", "Approved,Issued"),
            ("describe csr zoe", "Common Name:    zoe"),
        ]);
        kubectl.bad("certificate deny zoe", "", "is already Approved");
    });
}
