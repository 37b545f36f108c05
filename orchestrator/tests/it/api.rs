//! The semantics that clients rely on, over TLS.

use fairlead::resource::core::CONFIG_MAP;
use serde_json::{Value, json};

use crate::harness::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn make(cluster: &Cluster, count: usize) {
    let client = cluster.client();
    for number in 0..count {
        let object = json!({"metadata": {"name": format!("c{number:03}"), "labels": {"odd": (number % 2).to_string()}}});
        client
            .create_value(&CONFIG_MAP, "default", object)
            .await
            .unwrap();
    }
}

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_one_state_while_writers_write() {
    let cluster = Cluster::start("pages").await;
    make(&cluster, 25).await;
    let (_, whole) = cluster.get(&format!("{MAPS}?labelSelector=odd")).await;
    let mut found = Vec::new();
    let mut path = format!("{MAPS}?labelSelector=odd&limit=10");
    let mut revisions = Vec::new();
    loop {
        let (code, page) = cluster.get(&path).await;
        assert_eq!(code, 200, "{page}");
        found.extend(names(&page));
        revisions.push(page["metadata"]["resourceVersion"].clone());
        // Between the pages everything changes.
        let name = format!("c{:03}", found.len());
        let (code, _) = cluster
            .send("DELETE", &format!("{MAPS}/{name}"), "", "")
            .await;
        assert!(matches!(code, 200 | 404), "{code}");
        let extra = format!("c{:03}-extra", found.len());
        cluster
            .post(
                MAPS,
                &json!({"metadata": {"name": extra, "labels": {"odd": "1"}}}),
            )
            .await;
        let Some(token) = page["metadata"]["continue"].as_str() else {
            break;
        };
        path = format!("{MAPS}?labelSelector=odd&limit=10&continue={token}");
    }
    assert_eq!(found, names(&whole));
    revisions.dedup();
    assert_eq!(revisions.len(), 1);
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_hold_a_deleted_object_until_the_last_goes() {
    let cluster = Cluster::start("finalizers").await;
    let object = json!({"metadata": {"name": "c", "finalizers": ["a.b/one", "a.b/two"]}});
    assert_eq!(cluster.post(MAPS, &object).await.0, 201);
    let path = format!("{MAPS}/c");
    let (code, deleted) = cluster.send("DELETE", &path, "", "").await;
    assert_eq!(code, 200);
    assert!(
        deleted["metadata"]["deletionTimestamp"].is_string(),
        "{deleted}"
    );
    let patch = async |list: Value| {
        let body = json!({"metadata": {"finalizers": list}}).to_string();
        cluster
            .send("PATCH", &path, "application/merge-patch+json", body)
            .await
    };
    let (code, status) = patch(json!(["a.b/one", "a.b/three"])).await;
    assert_eq!(
        (code, &status["reason"]),
        (422, &json!("Invalid")),
        "no new finalizers: {status}"
    );
    assert_eq!(patch(json!(["a.b/two"])).await.0, 200);
    assert_eq!(cluster.get(&path).await.0, 200);
    assert_eq!(patch(Value::Null).await.0, 200);
    assert_eq!(cluster.get(&path).await.0, 404);
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn preconditions_and_stale_writes_conflict() {
    let cluster = Cluster::start("conflicts").await;
    let (_, first) = cluster
        .post(MAPS, &json!({"metadata": {"name": "c"}}))
        .await;
    let path = format!("{MAPS}/c");
    let mut newer = first.clone();
    newer["data"] = json!({"a": "b"});
    let put = async |object: &Value| {
        cluster
            .send("PUT", &path, "application/json", object.to_string())
            .await
    };
    let (code, second) = put(&newer).await;
    assert_eq!(code, 200);
    assert_ne!(
        first["metadata"]["resourceVersion"],
        second["metadata"]["resourceVersion"]
    );
    let (code, status) = put(&newer).await;
    assert_eq!((code, &status["reason"]), (409, &json!("Conflict")));
    let (code, same) = put(&second).await;
    assert_eq!(code, 200);
    assert_eq!(
        same["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"],
        "nothing changed"
    );
    for precondition in [json!({"uid": "other"}), json!({"resourceVersion": "1"})] {
        let body = json!({"preconditions": precondition}).to_string();
        let (code, status) = cluster
            .send("DELETE", &path, "application/json", body)
            .await;
        assert_eq!(
            (code, &status["reason"]),
            (409, &json!("Conflict")),
            "{status}"
        );
    }
    let body = json!({"preconditions": {"uid": second["metadata"]["uid"]}}).to_string();
    assert_eq!(
        cluster
            .send("DELETE", &path, "application/json", body)
            .await
            .0,
        200
    );
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_deleted_with_grace_once_it_has_a_node() {
    let cluster = Cluster::start("grace").await;
    let pods = "/api/v1/namespaces/default/pods";
    let spec =
        json!({"containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 20});
    let (code, pod) = cluster
        .post(pods, &json!({"metadata": {"name": "p"}, "spec": spec}))
        .await;
    assert_eq!(code, 201, "{pod}");
    assert_eq!(pod["status"]["phase"], "Pending");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    assert_eq!(
        cluster.post(&format!("{pods}/p/binding"), &binding).await.0,
        201
    );
    assert_eq!(
        cluster.post(&format!("{pods}/p/binding"), &binding).await.0,
        409
    );
    let (_, bound) = cluster.get(&format!("{pods}/p")).await;
    assert_eq!(bound["spec"]["nodeName"], "n");
    let (_, going) = cluster.send("DELETE", &format!("{pods}/p"), "", "").await;
    assert_eq!(
        going["metadata"]["deletionGracePeriodSeconds"], 20,
        "{going}"
    );
    let (_, sooner) = cluster
        .send("DELETE", &format!("{pods}/p?gracePeriodSeconds=5"), "", "")
        .await;
    assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 5);
    let (_, later) = cluster
        .send("DELETE", &format!("{pods}/p?gracePeriodSeconds=50"), "", "")
        .await;
    assert_eq!(
        later["metadata"]["deletionGracePeriodSeconds"], 5,
        "never longer"
    );
    let (code, _) = cluster
        .send("DELETE", &format!("{pods}/p?gracePeriodSeconds=0"), "", "")
        .await;
    assert_eq!(code, 200);
    assert_eq!(cluster.get(&format!("{pods}/p")).await.0, 404);
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_sets_the_node_and_claims_nothing() {
    let cluster = Cluster::start("binding").await;
    let pods = "/api/v1/namespaces/default/pods";
    // Nobody else writes to it.
    let spec = json!({"schedulerName": "nobody", "containers": [{"name": "c", "image": "i"}]});
    let pod = json!({"metadata": {"name": "p"}, "spec": spec});
    let (code, pod) = cluster.post(pods, &pod).await;
    assert_eq!(code, 201, "{pod}");
    let bind = async |metadata: Value| {
        let binding = json!({"metadata": metadata, "target": {"kind": "Node", "name": "n"}});
        cluster.post(&format!("{pods}/p/binding"), &binding).await.0
    };
    assert_eq!(bind(json!({"name": "p", "uid": "other"})).await, 409);
    let uid = &pod["metadata"]["uid"];
    let metadata = json!({"name": "p", "uid": uid, "annotations": {"a": "b"}});
    assert_eq!(bind(metadata).await, 201);
    let (_, bound) = cluster.get(&format!("{pods}/p")).await;
    assert_eq!(bound["spec"]["nodeName"], "n");
    assert_eq!(bound["metadata"]["annotations"], json!({"a": "b"}));
    assert_eq!(bound["metadata"]["generation"], 1);
    let owners = &bound["metadata"]["managedFields"];
    assert_eq!(owners, &pod["metadata"]["managedFields"]);
    let condition = &bound["status"]["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["status"]),
        (&json!("PodScheduled"), &json!("True"))
    );
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spec_and_status_have_doors_of_their_own() {
    let cluster = Cluster::start("doors").await;
    let path = "/apis/apps/v1/namespaces/default/replicasets";
    let labels = json!({"a": "b"});
    let (code, made) = cluster
        .post(
            path,
            &json!({
                "metadata": {"name": "r", "annotations": {"hold": "still"}},
                "spec": {
                    "replicas": 0,
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
                },
                "status": {"observedGeneration": 9, "replicas": 9},
            }),
        )
        .await;
    assert_eq!(code, 201, "{made}");
    assert!(
        made["status"]["observedGeneration"].is_null(),
        "a create brings no status"
    );
    let patch = async |path: &str, body: Value| {
        cluster
            .send(
                "PATCH",
                path,
                "application/merge-patch+json",
                body.to_string(),
            )
            .await
            .1
    };
    let both = json!({"spec": {"minReadySeconds": 3}, "status": {"fullyLabeledReplicas": 4}});
    let by_spec = patch(&format!("{path}/r"), both).await;
    assert_eq!(by_spec["spec"]["minReadySeconds"], 3, "{by_spec}");
    assert_ne!(by_spec["status"]["fullyLabeledReplicas"], 4);
    assert_eq!(by_spec["metadata"]["generation"], 2);
    let both = json!({"spec": {"minReadySeconds": 5}, "status": {"fullyLabeledReplicas": 6, "replicas": 0}});
    let by_status = patch(&format!("{path}/r/status"), both).await;
    assert_eq!(by_status["spec"]["minReadySeconds"], 3);
    assert_eq!(
        by_status["metadata"]["generation"], 2,
        "the status is no wish"
    );
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_live_server_starts_elsewhere() {
    let cluster = Cluster::start("backup").await;
    make(&cluster, 5).await;
    let (saved, other) = (
        cluster.folder.path("saved.db"),
        cluster.folder.path("other"),
    );
    fairlead::store::archive::backup(&cluster.folder.0, &saved).unwrap();
    fairlead::store::archive::restore(&saved, &other).unwrap();
    let second = fairlead::server::Server::start(crate::harness::config(&other), |_| {})
        .await
        .unwrap();
    let page = second
        .registry
        .cache()
        .of(&CONFIG_MAP)
        .list(&fairlead::cache::Query::default());
    let restored = page.unwrap().entries;
    assert_eq!(
        restored
            .iter()
            .filter(|entry| entry.name().starts_with('c'))
            .count(),
        5
    );
    let ca = |folder: &std::path::Path| std::fs::read(folder.join("pki/ca.crt")).unwrap();
    assert_eq!(
        ca(&cluster.folder.0),
        ca(&other),
        "the clients' trust goes with it"
    );
    second.stop().await;
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_adds_belongs_to_nobody_and_stays() {
    let cluster = Cluster::start("additions").await;
    let containers = json!([{"name": "c", "image": "x"}]);
    let template = json!({"spec": {"restartPolicy": "Never", "containers": containers}});
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "o"}, "spec": {"template": template}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "o"}, "spec": {"ports": [{"port": 80}]}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "o"}, "spec": {"containers": containers}});
    let cases = [
        (
            "/apis/batch/v1/namespaces/default/jobs",
            job,
            vec!["/spec/selector", "/spec/template/metadata"],
        ),
        (
            "/api/v1/namespaces/default/services",
            service,
            vec!["/spec/clusterIP"],
        ),
        (
            "/api/v1/namespaces/default/pods",
            pod,
            vec!["/spec/volumes", "/spec/tolerations"],
        ),
    ];
    for (collection, object, additions) in cases {
        let (code, made) = cluster
            .post(&format!("{collection}?fieldManager=maker"), &object)
            .await;
        assert_eq!(code, 201, "{made}");
        let owned = made["metadata"]["managedFields"].to_string();
        for pointer in &additions {
            assert!(made.pointer(pointer).is_some(), "{pointer} in {made}");
            let field = format!("\"f:{}\"", pointer.rsplit('/').next().unwrap());
            assert!(!owned.contains(&field), "{field} in {owned}");
        }
        // Who has taken over all that the maker owned takes none of it away.
        let mut handed = made.clone();
        handed["metadata"]["resourceVersion"] = "".into();
        let entry = &mut handed["metadata"]["managedFields"][0];
        entry["manager"] = "applier".into();
        entry["operation"] = "Apply".into();
        let path = format!("{collection}/o");
        let (code, answer) = cluster
            .send("PUT", &path, "application/json", handed.to_string())
            .await;
        assert_eq!(code, 200, "{answer}");
        let kind = "application/apply-patch+yaml";
        let path = format!("{path}?fieldManager=applier");
        let (code, applied) = cluster.send("PATCH", &path, kind, object.to_string()).await;
        assert_eq!(code, 200, "{applied}");
        for pointer in &additions {
            assert_eq!(applied.pointer(pointer), made.pointer(pointer), "{pointer}");
        }
    }
    cluster.server.stop().await;
}
