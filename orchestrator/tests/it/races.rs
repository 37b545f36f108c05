//! Writers that race, in the pipeline and over TLS.

use fairlead::{
    registry::{DeleteOptions, Target},
    resource::{core::CONFIG_MAP, node::NODE},
};
use serde_json::{Value, json};

use crate::harness::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_writers_of_one_object_lose_no_update() {
    let cluster = Cluster::start("racers").await;
    let client = cluster.client();
    let object = json!({"metadata": {"name": "c"}, "data": {"n": "0"}});
    client
        .create_value(&CONFIG_MAP, "default", object)
        .await
        .unwrap();
    let add = |current: &Value| {
        let mut new = current.clone();
        let number: u64 = current["data"]["n"].as_str().unwrap().parse().unwrap();
        new["data"]["n"] = (number + 1).to_string().into();
        Ok(new)
    };
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let client = client.clone();
        tasks.spawn(async move {
            let target = Target::object(&CONFIG_MAP, "default", "c");
            client.change(target, &add).await.unwrap();
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    let entry = client.cache_of(&CONFIG_MAP).get("default/c").unwrap();
    assert_eq!(entry.value()["data"]["n"], "1000");
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_and_replace_over_tls_lose_no_update() {
    let cluster = Cluster::start("replacers").await;
    let (code, _) = cluster
        .post(
            "/api/v1/namespaces/default/configmaps",
            &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"n": "0"}}),
        )
        .await;
    assert_eq!(code, 201);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let kube = cluster.kube().await;
        tasks.spawn(async move {
            type ConfigMap = k8s_openapi::api::core::v1::ConfigMap;
            let api: kube::Api<ConfigMap> = kube::Api::namespaced(kube, "default");
            let mut written = 0;
            while written < 25 {
                let mut object = api.get("c").await.unwrap();
                let data = object.data.as_mut().unwrap();
                let number: u64 = data["n"].parse().unwrap();
                data.insert("n".to_owned(), (number + 1).to_string());
                match api
                    .replace("c", &kube::api::PostParams::default(), &object)
                    .await
                {
                    Ok(_) => written += 1,
                    Err(kube::Error::Api(status)) => assert_eq!(status.code, 409),
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    let (_, object) = cluster.get("/api/v1/namespaces/default/configmaps/c").await;
    assert_eq!(object["data"]["n"], "200");
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_creates_of_one_name_one_wins() {
    let cluster = Cluster::start("creators").await;
    let client = cluster.client();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let client = client.clone();
        tasks.spawn(async move {
            let object = json!({"metadata": {"name": "c"}});
            match client.create_value(&CONFIG_MAP, "default", object).await {
                Ok(_) => 1,
                Err(status) => {
                    assert_eq!(status.reason, "AlreadyExists");
                    0
                }
            }
        });
    }
    let mut won = 0;
    while let Some(result) = tasks.join_next().await {
        won += result.unwrap();
    }
    assert_eq!(won, 1);
    let gone = DeleteOptions::default();
    client
        .delete_of(&CONFIG_MAP, "default", "c", &gone)
        .await
        .unwrap();
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_seen_of_one_object_is_not_written_to_another_of_its_name() {
    let cluster = Cluster::start("namesakes").await;
    let client = cluster.client();
    let account = || json!({"metadata": {"name": "n"}});
    let first = client.create_value(&NODE, "", account()).await.unwrap();
    let old = first.value()["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned();
    let options = DeleteOptions::now();
    client.delete_of(&NODE, "", "n", &options).await.unwrap();
    let target = Target::status(&NODE, "", "n");
    let status = json!({"nodeInfo": {"kernelVersion": "old"}});
    // Nobody there is fine.
    client.replace_status(target, &old, &status).await.unwrap();
    let second = client.create_value(&NODE, "", account()).await.unwrap();
    let new = second.value()["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned();
    let kernel = || {
        let entry = client.cache_of(&NODE).get("n").unwrap();
        entry.value()["status"]["nodeInfo"]["kernelVersion"].clone()
    };
    client.replace_status(target, &old, &status).await.unwrap();
    assert_ne!(kernel(), "old");
    client.replace_status(target, &new, &status).await.unwrap();
    assert_eq!(kernel(), "old");
    cluster.server.stop().await;
}
