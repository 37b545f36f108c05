//! kube-rs, unmodified: pages, patches, waits, discovery, eviction.

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api,
    api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
    runtime::wait::{await_condition, conditions},
};
use serde_json::{Value, json};

use crate::harness::Cluster;

const DEADLINE: Duration = Duration::from_secs(30);

/// An object of kube-rs' types.
fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_rs_reads_pages_and_applies() {
    let cluster = Cluster::start("kube-rs").await;
    let client = cluster.kube().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    for number in 0..7 {
        let name = format!("c{number}");
        let map = json!({"metadata": {"name": name, "labels": {"of": "rs"}}, "data": {"a": "b"}});
        maps.create(&PostParams::default(), &typed(map))
            .await
            .unwrap();
    }
    let mut names = Vec::new();
    let mut pages = ListParams::default().labels("of=rs").limit(3);
    loop {
        let page = maps.list(&pages).await.unwrap();
        names.extend(page.items.into_iter().filter_map(|map| map.metadata.name));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => pages = pages.continue_token(&token),
            None => break,
        }
    }
    assert_eq!(names, ["c0", "c1", "c2", "c3", "c4", "c5", "c6"]);

    let configuration = |text: &str| {
        let metadata = json!({"name": "c0"});
        Patch::Apply(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"x": text}}),
        )
    };
    let [one, two] = ["one", "two"].map(PatchParams::apply);
    maps.patch("c0", &one, &configuration("1")).await.unwrap();
    match maps.patch("c0", &two, &configuration("2")).await {
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, &*status.reason), (409, "Conflict"));
            let details = status.details.as_ref().unwrap();
            assert_eq!(details.causes[0].field, ".data.x");
        }
        other => panic!("must conflict: {other:?}"),
    }
    let forced = maps.patch("c0", &two.force(), &configuration("2")).await;
    assert_eq!(forced.unwrap().data.unwrap()["x"], "2");

    let gone = maps
        .delete_collection(
            &DeleteParams::default(),
            &ListParams::default().labels("of=rs"),
        )
        .await
        .unwrap();
    assert_eq!(gone.left().unwrap().items.len(), 7);
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_rs_discovers_patches_and_scales() {
    let cluster = Cluster::start("kube-rs-patches").await;
    let client = cluster.kube().await;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let labels = json!({"app": "d"});
    let spec = json!({"replicas": 0, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}}});
    let deployment = typed(json!({"metadata": {"name": "d"}, "spec": spec}));
    let plain = PatchParams::default();
    deployments
        .create(&PostParams::default(), &deployment)
        .await
        .unwrap();
    let image =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "b", "image": "j"}]}}}});
    let patched = deployments
        .patch("d", &plain, &Patch::Strategic(image))
        .await;
    let pod = patched.unwrap().spec.unwrap().template.spec.unwrap();
    let mut images: Vec<_> = pod
        .containers
        .iter()
        .map(|c| (&*c.name, c.image.as_deref()))
        .collect();
    images.sort_unstable();
    assert_eq!(images, [("a", Some("i")), ("b", Some("j"))]);
    let three = Patch::Merge(json!({"spec": {"replicas": 3}}));
    deployments.patch_scale("d", &plain, &three).await.unwrap();
    let scale = deployments.get_scale("d").await.unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(3));

    let discovery = kube::discovery::Discovery::new(client.clone());
    for found in [
        discovery.run().await,
        kube::discovery::Discovery::new(client)
            .run_aggregated()
            .await,
    ] {
        let kind = GroupVersionKind::gvk("apps", "v1", "Deployment");
        let (resource, can) = found.unwrap().resolve_gvk(&kind).unwrap();
        assert_eq!(resource.plural, "deployments");
        assert!(can.supports_operation("watch"));
    }
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_rs_waits_for_what_others_do() {
    let cluster = Cluster::start("kube-rs-waits").await;
    let pods: Api<Pod> = Api::default_namespaced(cluster.kube().await);
    let waits = tokio::spawn(await_condition(
        pods.clone(),
        "p",
        conditions::is_pod_running(),
    ));
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "i"}]}});
    let made = pods.create(&PostParams::default(), &typed(pod)).await;
    let uid = made.unwrap().metadata.uid.unwrap();
    let running = Patch::Merge(json!({"status": {"phase": "Running"}}));
    pods.patch_status("p", &PatchParams::default(), &running)
        .await
        .unwrap();
    let found = tokio::time::timeout(DEADLINE, waits).await.unwrap();
    let found = found.unwrap().unwrap().unwrap();
    assert_eq!(found.metadata.uid.as_ref(), Some(&uid));

    let watched = pods.clone();
    let ends =
        tokio::spawn(
            async move { await_condition(watched, "p", conditions::is_deleted(&uid)).await },
        );
    pods.evict("p", &EvictParams::default()).await.unwrap();
    tokio::time::timeout(DEADLINE, ends)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(pods.get_opt("p").await.unwrap().is_none());
    cluster.server.stop().await;
}
