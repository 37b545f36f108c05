//! Decisions on hand-made clusters, and against a naive reading of the rules.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::scheduler::{node::NodeInfo, pod::PodInfo};

fn node(name: &str, change: impl Fn(&mut Value)) -> NodeInfo {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}},
    });
    change(&mut node);
    NodeInfo::from_value(&node).unwrap()
}

fn pod(name: &str, change: impl Fn(&mut Value)) -> PodInfo {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "ns", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    change(&mut pod);
    PodInfo::from_value(&pod).unwrap()
}

fn cluster(nodes: Vec<NodeInfo>, pods: Vec<(PodInfo, &str)>) -> Nodes {
    let mut all = Nodes::default();
    for node in nodes {
        all.set(node);
    }
    for (mut pod, node) in pods {
        node.clone_into(&mut pod.node);
        all.put(Arc::new(pod));
    }
    all
}

fn place(pod: &PodInfo, nodes: &Nodes) -> Decision {
    decide(pod, nodes, &Namespaces::new(), &Volumes::default(), &mut 0)
}

fn refusal(pod: &PodInfo, nodes: &Nodes) -> String {
    match place(pod, nodes) {
        Decision::Refused { message, .. } => message,
        Decision::Node(node) => panic!("placed on {node}"),
    }
}

#[test]
fn a_refusal_counts_the_nodes_of_every_reason() {
    let nodes = cluster(
        vec![
            node("cordoned", |n| n["spec"]["unschedulable"] = json!(true)),
            node("tainted", |n| {
                n["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]);
            }),
            node("small-1", |n| {
                n["status"]["allocatable"]["cpu"] = json!("1");
            }),
            node("small-2", |n| {
                n["status"]["allocatable"]["cpu"] = json!("1");
            }),
            node("full", |n| n["status"]["allocatable"]["pods"] = json!("0")),
        ],
        Vec::new(),
    );
    let wanted = pod("p", |p| {
        p["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("2");
    });
    assert_eq!(
        refusal(&wanted, &nodes),
        "0/5 nodes are available: 1 Too many pods, 1 node(s) had untolerated taint {k: v}, \
         1 node(s) were unschedulable, 2 Insufficient cpu."
    );
    assert_eq!(
        refusal(&wanted, &Nodes::default()),
        "no nodes available to schedule pods"
    );
}

#[test]
fn alike_pods_are_spread_over_alike_nodes() {
    let large = |n: &mut Value| {
        n["status"]["allocatable"] = json!({"cpu": "64", "memory": "256Gi", "pods": "110"});
    };
    let mut nodes = cluster(["a", "b", "c"].map(|name| node(name, large)).into(), vec![]);
    let (names, mut turn) = (Namespaces::new(), 0);
    for index in 0..6 {
        let mut next = pod(&format!("p{index}"), |_| {});
        let found = decide(&next, &nodes, &names, &Volumes::default(), &mut turn);
        let Decision::Node(node) = found else {
            panic!("{found:?}");
        };
        next.node = node;
        nodes.put(Arc::new(next));
    }
    let counts = nodes.all().iter().map(|node| node.pods.len());
    assert_eq!(counts.collect::<Vec<_>>(), [2, 2, 2]);
}

#[test]
fn the_only_node_that_fits_is_taken() {
    let zone =
        |name: &'static str| move |n: &mut Value| n["metadata"]["labels"]["zone"] = json!(name);
    let nodes = cluster(vec![node("a", zone("x")), node("b", zone("y"))], Vec::new());
    let selecting = pod("p", |p| p["spec"]["nodeSelector"] = json!({"zone": "y"}));
    assert_eq!(place(&selecting, &nodes), Decision::Node("b".into()));
    let demanding = pod("p", |p| {
        p["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!({
            "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}],
        });
    });
    assert_eq!(place(&demanding, &nodes), Decision::Node("a".into()));
    let liking = pod("p", |p| {
        p["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([
            {"weight": 10, "preference": {"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["x"]}]}},
        ]);
    });
    assert_eq!(place(&liking, &nodes), Decision::Node("b".into()));
}

#[test]
fn pods_that_must_be_apart_or_together_are() {
    let apart = |p: &mut Value| {
        p["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!([{"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]);
    };
    let nodes = || vec![node("a", |_| {}), node("b", |_| {})];
    let one = cluster(nodes(), vec![(pod("x", apart), "a")]);
    assert_eq!(place(&pod("p", apart), &one), Decision::Node("b".into()));
    // The rule of the pod that is there holds against newcomers without a rule.
    assert_eq!(place(&pod("p", |_| {}), &one), Decision::Node("b".into()));
    let both = cluster(
        nodes(),
        vec![(pod("x", |_| {}), "a"), (pod("y", |_| {}), "b")],
    );
    assert_eq!(
        refusal(&pod("p", apart), &both),
        "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."
    );
    let near = |p: &mut Value| {
        p["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!([{"labelSelector": {"matchLabels": {"app": "db"}}, "topologyKey": "kubernetes.io/hostname"}]);
    };
    assert_eq!(
        refusal(&pod("p", near), &both),
        "0/2 nodes are available: 2 node(s) didn't match pod affinity rules."
    );
    let db = pod("db", |p| p["metadata"]["labels"]["app"] = json!("db"));
    let with_db = cluster(nodes(), vec![(db, "b")]);
    assert_eq!(place(&pod("p", near), &with_db), Decision::Node("b".into()));
}

#[test]
fn the_spread_is_kept_even() {
    let spread = |p: &mut Value| {
        p["spec"]["topologySpreadConstraints"] = json!([{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}},
        }]);
    };
    let nodes = || vec![node("a", |_| {}), node("b", |_| {})];
    let uneven = cluster(nodes(), vec![(pod("x", |_| {}), "a")]);
    assert_eq!(
        place(&pod("p", spread), &uneven),
        Decision::Node("b".into())
    );
    let mut cordoned = nodes();
    cordoned[1].unschedulable = true;
    let uneven = cluster(cordoned, vec![(pod("x", |_| {}), "a")]);
    assert_eq!(
        refusal(&pod("p", spread), &uneven),
        "0/2 nodes are available: 1 node(s) didn't match pod topology spread constraints, \
         1 node(s) were unschedulable."
    );
}

#[test]
fn host_ports_are_had_once() {
    let port = |ip: &'static str| {
        move |p: &mut Value| {
            p["spec"]["containers"][0]["ports"] = json!([{"hostPort": 80, "hostIP": ip}]);
        }
    };
    let nodes = cluster(
        vec![node("a", |_| {})],
        vec![(pod("x", port("10.0.0.1")), "a")],
    );
    assert!(refusal(&pod("p", port("")), &nodes).contains("free ports"));
    assert!(refusal(&pod("p", port("10.0.0.1")), &nodes).contains("free ports"));
    assert_eq!(
        place(&pod("p", port("10.0.0.2")), &nodes),
        Decision::Node("a".into())
    );
}

#[test]
fn init_containers_and_sidecars_count_as_they_run() {
    let pod = pod("p", |p| {
        let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        p["spec"]["containers"] = json!([container("1"), container("1")]);
        let mut sidecar = container("500m");
        sidecar["restartPolicy"] = json!("Always");
        p["spec"]["initContainers"] = json!([container("1"), sidecar, container("3")]);
    });
    // The last init container runs beside the sidecar: more than all containers.
    assert_eq!(pod.usage.requests.cpu_milli, 3500);
}

/// A node as the naive evaluator sees it: free CPU, taint, label.
#[derive(Clone, Debug)]
struct Plain {
    cpu: i64,
    used: i64,
    taint: Option<u8>,
    label: u8,
}

fn plain() -> impl Strategy<Value = Plain> {
    (0..4_i64, 0..4_i64, prop::option::of(0..2_u8), 0..3_u8).prop_map(
        |(cpu, used, taint, label)| Plain {
            cpu,
            used,
            taint,
            label,
        },
    )
}

proptest! {
    /// A pod is placed exactly if a naive reading finds a node, and on such a one.
    #[test]
    fn filters_agree_with_a_naive_evaluator(
        plains in prop::collection::vec(plain(), 1..8),
        cpu in 0..3_i64, tolerated in prop::option::of(0..2_u8), label in prop::option::of(0..3_u8),
    ) {
        let nodes = plains.iter().enumerate().map(|(index, plain)| node(&index.to_string(), |n| {
            n["status"]["allocatable"]["cpu"] = json!(plain.cpu.to_string());
            n["metadata"]["labels"]["l"] = json!(plain.label.to_string());
            if let Some(taint) = plain.taint {
                n["spec"]["taints"] = json!([{"key": format!("t{taint}"), "effect": "NoSchedule"}]);
            }
        })).collect();
        let asking = |cpu: i64| move |p: &mut Value| {
            p["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!(cpu.to_string());
        };
        let names: Vec<String> = (0..plains.len()).map(|i| i.to_string()).collect();
        let mut all = cluster(nodes, Vec::new());
        for (name, plain) in names.iter().zip(&plains) {
            let mut there = pod(&format!("on-{name}"), asking(plain.used));
            there.node.clone_from(name);
            all.put(Arc::new(there));
        }
        let wanted = pod("p", |p| {
            asking(cpu)(p);
            if let Some(taint) = tolerated {
                p["spec"]["tolerations"] = json!([{"key": format!("t{taint}"), "operator": "Exists"}]);
            }
            if let Some(label) = label {
                p["spec"]["nodeSelector"] = json!({"l": label.to_string()});
            }
        });
        let fits = |plain: &Plain| {
            (cpu == 0 || cpu + plain.used <= plain.cpu)
                && plain.taint.is_none_or(|t| Some(t) == tolerated)
                && label.is_none_or(|l| l == plain.label)
        };
        match place(&wanted, &all) {
            Decision::Node(name) => prop_assert!(fits(&plains[name.parse::<usize>().unwrap()])),
            Decision::Refused { .. } => prop_assert!(!plains.iter().any(fits)),
        }
    }
}
