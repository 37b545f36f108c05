//! A StatefulSet with claims, from its first pod to its last volume: real
//! scheduler, binder, provisioner, garbage collector, on hollow nodes.

use clap::Parser;
use fairlead::{
    cache::Query,
    hollow::{Hollow, HollowArgs},
    registry::{DeleteOptions, Target},
    resource::Resource,
};
use serde_json::{Value, json};

use crate::{
    controllers::found,
    harness::{Cluster, wait_until},
};

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    hollow: HollowArgs,
}

fn set() -> Value {
    json!({
        "metadata": {"name": "db"},
        "spec": {
            "serviceName": "db",
            "replicas": 3,
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"},
            "selector": {"matchLabels": {"app": "db"}},
            "template": {
                "metadata": {"labels": {"app": "db"}},
                "spec": {"containers": [{"name": "c", "image": "x"}]},
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            }],
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_gets_its_volumes_where_its_pods_are_and_takes_them_along() {
    let cluster = Cluster::start("volumes").await;
    let kubeconfig = cluster.server.kubeconfig.display().to_string();
    let flags = ["test", "--nodes", "3", "--kubeconfig", &kubeconfig];
    let hollow = Hollow::start(Flags::parse_from(flags).hollow)
        .await
        .unwrap();
    let running = tokio::spawn(hollow.run());
    let client = cluster.client();
    let (sets, claims) = (
        found("apps", "statefulsets"),
        found("", "persistentvolumeclaims"),
    );
    let all = |what: &'static Resource| -> Vec<Value> {
        let page = client.cache_of(what).list(&Query::default()).unwrap();
        page.entries.iter().map(|entry| entry.value()).collect()
    };
    client.create_value(sets, "default", set()).await.unwrap();
    wait_until("three ready pods", || {
        all(sets)[0]["status"]["readyReplicas"] == 3
    });
    let volumes = all(found("", "persistentvolumes"));
    assert_eq!(volumes.len(), 3);
    for pod in all(found("", "pods")) {
        let claim = format!("data-{}", pod["metadata"]["name"].as_str().unwrap());
        let own = |volume: &&Value| volume["spec"]["claimRef"]["name"] == claim.as_str();
        let volume = volumes.iter().find(own).unwrap();
        let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
        let place = &terms[0]["matchExpressions"][0]["values"][0];
        assert_eq!(*place, pod["spec"]["nodeName"]);
    }
    let fewer = |current: &Value| {
        let mut new = current.clone();
        new["spec"]["replicas"] = 1.into();
        Ok(new)
    };
    let target = Target::object(sets, "default", "db");
    client.change(target, &fewer).await.unwrap();
    let names = |what| -> Vec<Value> {
        let objects = all(what).into_iter();
        objects
            .map(|object| object["metadata"]["name"].clone())
            .collect()
    };
    wait_until("the claims of the pods that went to go", || {
        names(claims) == ["data-db-0"] && all(found("", "persistentvolumes")).len() == 1
    });
    let options = DeleteOptions::default();
    client
        .delete_of(sets, "default", "db", &options)
        .await
        .unwrap();
    wait_until("everything to go", || {
        names(claims).is_empty() && all(found("", "persistentvolumes")).is_empty()
    });
    running.abort();
    cluster.server.stop().await;
}
