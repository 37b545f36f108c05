//! Events: two versions of one set of objects, and their end.

use std::time::Duration;

use fairlead::{resource::event::EVENT, server::Server};
use serde_json::{Value, json};

use crate::harness::{Cluster, Folder, config};

const NEW: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
const OLD: &str = "/api/v1/namespaces/default/events";

fn event(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "eventTime": "2026-01-02T03:04:05.000006Z",
        "reportingController": "example.com/thing", "reportingInstance": "thing-1",
        "action": "Trying", "reason": "Tried", "type": "Normal", "note": "it went well",
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_the_same_in_both_versions() {
    let cluster = Cluster::start("event-versions").await;
    let (code, made) = cluster.post(NEW, &event("e")).await;
    assert_eq!((code, &made["note"]), (201, &json!("it went well")));
    let (_, old) = cluster.get(&format!("{OLD}/e")).await;
    assert_eq!(old["apiVersion"], "v1");
    assert_eq!(old["message"], "it went well");
    assert_eq!(old["involvedObject"]["name"], "p");
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-02T03:04:06.000000Z"}});
    let path = format!("{NEW}/e");
    let merge = "application/merge-patch+json";
    let (code, new) = cluster
        .send("PATCH", &path, merge, series.to_string())
        .await;
    assert_eq!(
        (code, &new["apiVersion"]),
        (200, &json!("events.k8s.io/v1"))
    );
    let (code, refused) = cluster.send("PATCH", &path, merge, r#"{"note":"x"}"#).await;
    assert_eq!(
        (code, &refused["details"]["causes"][0]["field"]),
        (422, &json!("note"))
    );
    let query =
        format!("{NEW}?fieldSelector=regarding.name%3Dp,reportingController%3Dexample.com/thing");
    let (_, list) = cluster.get(&query).await;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(list["items"][0]["series"]["count"], 2);
    let (code, refused) = cluster
        .get(&format!("{NEW}?fieldSelector=involvedObject.name%3Dp"))
        .await;
    assert_eq!(code, 400, "{refused}");
    let (code, _) = cluster.send("DELETE", &path, "", "").await;
    assert_eq!(code, 200);
    assert_eq!(cluster.get(&format!("{OLD}/e")).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_end_by_themselves_and_are_seen_to() {
    let folder = Folder::new("event-ttl");
    let mut config = config(&folder.0);
    config.event_ttl = Duration::from_millis(500);
    let server = Server::start(config, |_| {}).await.unwrap();
    let cluster = Cluster { folder, server };
    let (_, list) = cluster.get(OLD).await;
    let from = list["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    for name in ["a", "b"] {
        assert_eq!(cluster.post(NEW, &event(name)).await.0, 201);
    }
    let watch = format!(
        "{NEW}?watch=1&resourceVersion={from}&timeoutSeconds=5&fieldSelector=regarding.name%3Dp"
    );
    let (_, text) = cluster.get(&watch).await;
    let seen = text
        .as_str()
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let seen: Vec<Value> = seen.collect();
    let deleted: Vec<_> = seen.iter().filter(|e| e["type"] == "DELETED").collect();
    assert_eq!(deleted.len(), 2, "{seen:?}");
    assert_eq!(deleted[0]["object"]["apiVersion"], "events.k8s.io/v1");
    assert!(cluster.client().cache_of(&EVENT).get("default/a").is_none());
}
