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

fn place(pod: &PodInfo, nodes: &mut Nodes) -> Decision {
    decide(pod, nodes, &Around::default(), &mut 0)
}

fn refusal(pod: &PodInfo, nodes: &mut Nodes) -> String {
    match place(pod, nodes) {
        Decision::Refused { message, .. } => message,
        Decision::Node(node) => panic!("placed on {node}"),
    }
}

#[test]
fn a_refusal_counts_the_nodes_of_every_reason() {
    let mut nodes = cluster(
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
        refusal(&wanted, &mut nodes),
        "0/5 nodes are available: 1 Too many pods, 1 node(s) had untolerated taint {k: v}, \
         1 node(s) were unschedulable, 2 Insufficient cpu."
    );
    assert_eq!(
        refusal(&wanted, &mut Nodes::default()),
        "no nodes available to schedule pods"
    );
}

#[test]
fn alike_pods_are_spread_over_alike_nodes() {
    let large = |n: &mut Value| {
        n["status"]["allocatable"] = json!({"cpu": "64", "memory": "256Gi", "pods": "110"});
    };
    let mut nodes = cluster(["a", "b", "c"].map(|name| node(name, large)).into(), vec![]);
    let mut turn = 0;
    for index in 0..6 {
        let mut next = pod(&format!("p{index}"), |_| {});
        let found = decide(&next, &mut nodes, &Around::default(), &mut turn);
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
    let mut nodes = cluster(vec![node("a", zone("x")), node("b", zone("y"))], Vec::new());
    let selecting = pod("p", |p| p["spec"]["nodeSelector"] = json!({"zone": "y"}));
    assert_eq!(place(&selecting, &mut nodes), Decision::Node("b".into()));
    let demanding = pod("p", |p| {
        p["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!({
            "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}],
        });
    });
    assert_eq!(place(&demanding, &mut nodes), Decision::Node("a".into()));
    let liking = pod("p", |p| {
        p["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([
            {"weight": 10, "preference": {"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["x"]}]}},
        ]);
    });
    assert_eq!(place(&liking, &mut nodes), Decision::Node("b".into()));
}

#[test]
fn pods_that_must_be_apart_or_together_are() {
    let apart = |p: &mut Value| {
        p["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!([{"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]);
    };
    let nodes = || vec![node("a", |_| {}), node("b", |_| {})];
    let mut one = cluster(nodes(), vec![(pod("x", apart), "a")]);
    assert_eq!(
        place(&pod("p", apart), &mut one),
        Decision::Node("b".into())
    );
    // The rule of the pod that is there holds against newcomers without a rule.
    assert_eq!(
        place(&pod("p", |_| {}), &mut one),
        Decision::Node("b".into())
    );
    let mut both = cluster(
        nodes(),
        vec![(pod("x", |_| {}), "a"), (pod("y", |_| {}), "b")],
    );
    assert_eq!(
        refusal(&pod("p", apart), &mut both),
        "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."
    );
    let near = |p: &mut Value| {
        p["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!([{"labelSelector": {"matchLabels": {"app": "db"}}, "topologyKey": "kubernetes.io/hostname"}]);
    };
    assert_eq!(
        refusal(&pod("p", near), &mut both),
        "0/2 nodes are available: 2 node(s) didn't match pod affinity rules."
    );
    let db = pod("db", |p| p["metadata"]["labels"]["app"] = json!("db"));
    let mut with_db = cluster(nodes(), vec![(db, "b")]);
    assert_eq!(
        place(&pod("p", near), &mut with_db),
        Decision::Node("b".into())
    );
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
    let mut uneven = cluster(nodes(), vec![(pod("x", |_| {}), "a")]);
    assert_eq!(
        place(&pod("p", spread), &mut uneven),
        Decision::Node("b".into())
    );
    let mut cordoned = nodes();
    cordoned[1].unschedulable = true;
    let mut uneven = cluster(cordoned, vec![(pod("x", |_| {}), "a")]);
    assert_eq!(
        refusal(&pod("p", spread), &mut uneven),
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
    let mut nodes = cluster(
        vec![node("a", |_| {})],
        vec![(pod("x", port("10.0.0.1")), "a")],
    );
    assert!(refusal(&pod("p", port("")), &mut nodes).contains("free ports"));
    assert!(refusal(&pod("p", port("10.0.0.1")), &mut nodes).contains("free ports"));
    assert_eq!(
        place(&pod("p", port("10.0.0.2")), &mut nodes),
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

/// Labels a node with its zone.
fn zoned(zone: &str) -> impl Fn(&mut Value) {
    move |n| n["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(zone)
}

fn labelled(labels: Value) -> impl Fn(&mut Value) {
    move |p| p["metadata"]["labels"] = labels.clone()
}

#[test]
fn all_affinity_terms_mean_the_same_pods() {
    let term = |label: &str| json!({"labelSelector": {"matchLabels": {label: "yes"}}, "topologyKey": "kubernetes.io/hostname"});
    let near = |p: &mut Value| {
        p["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!([term("db"), term("cache")]);
    };
    let nodes = || vec![node("a", |_| {}), node("b", |_| {})];
    let half = |name: &str, label: &str| pod(name, labelled(json!({label: "yes"})));
    let mut halves = cluster(
        nodes(),
        vec![(half("x", "db"), "a"), (half("y", "cache"), "a")],
    );
    assert_eq!(
        refusal(&pod("p", near), &mut halves),
        "0/2 nodes are available: 2 node(s) didn't match pod affinity rules."
    );
    let whole = pod("z", labelled(json!({"db": "yes", "cache": "yes"})));
    let mut whole = cluster(nodes(), vec![(whole, "b")]);
    assert_eq!(
        place(&pod("p", near), &mut whole),
        Decision::Node("b".into())
    );
}

#[test]
fn the_first_of_a_group_may_be_anywhere_that_has_the_label() {
    let near = |p: &mut Value| {
        p["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!([{"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "topology.kubernetes.io/zone"}]);
    };
    let mut nodes = cluster(vec![node("a", |_| {}), node("b", zoned("z"))], vec![]);
    assert_eq!(
        place(&pod("p", near), &mut nodes),
        Decision::Node("b".into())
    );
}

#[test]
fn affinity_is_refused_before_anti_affinity() {
    let both = |p: &mut Value| {
        let term = |app: &str| json!([{"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": "kubernetes.io/hostname"}]);
        let rule = "requiredDuringSchedulingIgnoredDuringExecution";
        p["spec"]["affinity"] =
            json!({"podAffinity": {rule: term("none")}, "podAntiAffinity": {rule: term("web")}});
    };
    let mut one = cluster(vec![node("a", |_| {})], vec![(pod("x", |_| {}), "a")]);
    assert_eq!(
        refusal(&pod("p", both), &mut one),
        "0/1 nodes are available: 1 node(s) didn't match pod affinity rules."
    );
}

#[test]
fn a_pod_that_names_its_nodes_counts_the_others_as_left_out() {
    let demanding = pod("p", |p| {
        p["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!({
            "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}],
        });
    });
    let cordoned = |n: &mut Value| n["spec"]["unschedulable"] = json!(true);
    let nodes = vec![node("a", |_| {}), node("b", cordoned), node("c", cordoned)];
    let mut nodes = cluster(nodes, Vec::new());
    assert_eq!(
        refusal(&demanding, &mut nodes),
        "0/3 nodes are available: 1 node(s) were unschedulable, \
         2 node(s) didn't satisfy plugin(s) [NodeAffinity]."
    );
}

#[test]
fn what_a_pod_asks_for_as_a_whole_counts_before_its_containers() {
    let pod = pod("p", |p| {
        p["spec"]["containers"] =
            json!([{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]);
        p["spec"]["resources"] = json!({"requests": {"cpu": "3"}});
        p["spec"]["overhead"] = json!({"cpu": "500m"});
    });
    assert_eq!(pod.usage.requests.cpu_milli, 3500);
    assert_eq!(pod.usage.requests.memory, 1 << 30);
    assert_eq!(pod.usage.scored_cpu_milli, 3500);
}

#[test]
fn a_container_that_asks_for_zero_is_not_taken_to_use_more() {
    let pod = pod("p", |p| {
        p["spec"]["containers"] = json!([{"name": "c", "resources": {"requests": {"cpu": "0"}}}]);
    });
    assert_eq!(pod.usage.scored_cpu_milli, 0);
    assert_eq!(pod.usage.scored_memory, 200 << 20);
}

#[test]
fn an_image_counts_by_its_tag_and_by_how_many_nodes_have_it() {
    let having = |n: &mut Value| {
        n["status"]["images"] = json!([{"names": ["registry/i:latest"], "sizeBytes": 900 << 20}]);
    };
    let mut nodes = cluster(vec![node("a", |_| {}), node("b", having)], vec![]);
    let untagged = pod("p", |p| {
        p["spec"]["containers"][0]["image"] = json!("registry/i");
    });
    assert_eq!(place(&untagged, &mut nodes), Decision::Node("b".into()));
    let starting = pod("p", |p| {
        p["spec"]["initContainers"] = json!([{"name": "i", "image": "registry/i"}]);
    });
    assert_eq!(place(&starting, &mut nodes), Decision::Node("b".into()));
    assert_eq!(nodes.having_image("registry/i:latest"), 1);
    nodes.remove("b");
    assert_eq!(nodes.having_image("registry/i:latest"), 0);
}

#[test]
fn pods_that_ask_for_nothing_do_not_seek_balance() {
    // b's pods are better balanced, a has more room: only room counts.
    let asking = |cpu: &'static str, memory: &'static str| {
        move |p: &mut Value| {
            p["spec"]["containers"][0]["resources"]["requests"] =
                json!({"cpu": cpu, "memory": memory});
        }
    };
    let mut nodes = cluster(
        vec![node("a", |_| {}), node("b", |_| {})],
        vec![
            (pod("x", asking("1800m", "100Mi")), "a"),
            (pod("y", asking("1", "2Gi")), "b"),
        ],
    );
    assert_eq!(
        place(&pod("p", |_| {}), &mut nodes),
        Decision::Node("a".into())
    );
}

fn spreading(when: &'static str, key: &'static str) -> Value {
    json!({
        "maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"app": "web"}},
    })
}

#[test]
fn only_demands_leave_nodes_out_of_a_demanded_spread() {
    // Node a has no zone, which matters to the wish alone.
    let both = |p: &mut Value| {
        p["spec"]["topologySpreadConstraints"] = json!([
            spreading("DoNotSchedule", "kubernetes.io/hostname"),
            spreading("ScheduleAnyway", "topology.kubernetes.io/zone"),
        ]);
    };
    let there = || (pod("x", |_| {}), "b");
    let full = |n: &mut Value| n["status"]["allocatable"]["pods"] = json!("0");
    let mut nodes = cluster(vec![node("a", full), node("b", zoned("z"))], vec![there()]);
    assert!(refusal(&pod("p", both), &mut nodes).contains("1 node(s) didn't match pod topology"));
}

#[test]
fn too_few_domains_count_as_an_empty_one() {
    let spread = |p: &mut Value| {
        let mut constraint = spreading("DoNotSchedule", "kubernetes.io/hostname");
        constraint["minDomains"] = json!(3);
        p["spec"]["topologySpreadConstraints"] = json!([constraint]);
    };
    let nodes = || vec![node("a", |_| {}), node("b", |_| {})];
    let pods = vec![(pod("x", |_| {}), "a"), (pod("y", |_| {}), "b")];
    let mut nodes = cluster(nodes(), pods);
    assert_eq!(
        refusal(&pod("p", spread), &mut nodes),
        "0/2 nodes are available: 2 node(s) didn't match pod topology spread constraints."
    );
}

#[test]
fn pods_of_another_revision_are_not_spread_with() {
    let spread = |p: &mut Value| {
        let mut constraint = spreading("DoNotSchedule", "kubernetes.io/hostname");
        constraint["matchLabelKeys"] = json!(["revision"]);
        p["metadata"]["labels"]["revision"] = json!("2");
        p["spec"]["topologySpreadConstraints"] = json!([constraint]);
    };
    let old = || pod("x", labelled(json!({"app": "web", "revision": "1"})));
    let full = |n: &mut Value| n["status"]["allocatable"]["pods"] = json!("0");
    let mut nodes = cluster(vec![node("a", |_| {}), node("b", full)], vec![(old(), "a")]);
    assert_eq!(
        place(&pod("p", spread), &mut nodes),
        Decision::Node("a".into())
    );
}

#[test]
fn likes_are_spread_over_nodes_and_zones_by_default() {
    let large = |zone: &'static str| {
        move |n: &mut Value| {
            zoned(zone)(n);
            n["status"]["allocatable"] = json!({"cpu": "64", "memory": "256Gi", "pods": "110"});
        }
    };
    let nodes = vec![
        node("a", large("x")),
        node("b", large("x")),
        node("c", large("y")),
    ];
    let mut nodes = cluster(nodes, vec![]);
    let likes = serde_json::from_value(json!({"matchLabels": {"app": "web"}})).unwrap();
    let around = Around {
        likes: Some(likes),
        ..Around::default()
    };
    // Others fill c: without its likes' places, a pod would go to a or b.
    for index in 0..12 {
        let mut other = pod(&format!("o{index}"), labelled(json!({})));
        other.node = "c".into();
        nodes.put(Arc::new(other));
    }
    let mut places = Vec::new();
    for index in 0..8 {
        let mut next = pod(&format!("p{index}"), |_| {});
        let Decision::Node(node) = decide(&next, &mut nodes, &around, &mut 0) else {
            panic!("p{index} is placed");
        };
        places.push(node.clone());
        next.node = node;
        nodes.put(Arc::new(next));
    }
    let on = |name: &str| places.iter().filter(|node| *node == name).count();
    assert_eq!((on("a"), on("b"), on("c")), (3, 2, 3), "{places:?}");
}

#[test]
fn a_claim_for_one_pod_is_had_by_one_pod() {
    let claiming = |p: &mut Value| {
        p["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
    };
    let mut nodes = cluster(vec![node("a", |_| {})], vec![(pod("x", claiming), "a")]);
    assert!(nodes.uses_claim("ns/c"));
    let around = Around {
        volumes: Volumes {
            taken: true,
            ..Volumes::default()
        },
        ..Around::default()
    };
    let Decision::Refused { message, wakes } =
        decide(&pod("p", claiming), &mut nodes, &around, &mut 0)
    else {
        panic!("refused");
    };
    assert_eq!(
        message,
        "0/1 nodes are available: 1 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode."
    );
    assert_ne!(wakes & wake::POD, 0);
    nodes.take("ns/x");
    assert!(!nodes.uses_claim("ns/c"));
}

#[test]
fn only_what_can_lift_a_refusal_wakes() {
    let lifts = |reason: Reason, event: u8| reason.wakes() & event != 0;
    let short = || Reason::Insufficient("cpu".into());
    assert!(lifts(short(), wake::POD) && !lifts(short(), wake::PLACED));
    assert!(lifts(Reason::NotNear, wake::PLACED) && !lifts(Reason::NotNear, wake::POD));
    assert!(lifts(Reason::Spread, wake::PLACED) && lifts(Reason::Spread, wake::POD));
    assert!(!lifts(Reason::SpreadLabel, wake::POD));
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
        match place(&wanted, &mut all) {
            Decision::Node(name) => prop_assert!(fits(&plains[name.parse::<usize>().unwrap()])),
            Decision::Refused { .. } => prop_assert!(!plains.iter().any(fits)),
        }
    }
}
