//! Slow start, and who goes first.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use serde_json::{Value, json};

use super::*;

fn pod(name: &str, change: impl Fn(&mut Value)) -> Pod {
    let mut pod = json!({
        "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": "n1"},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z"}],
        },
    });
    change(&mut pod);
    serde_json::from_value(pod).unwrap()
}

#[test]
fn pods_are_given_up_in_upstreams_order() {
    let crowd = HashMap::from([("n1".to_owned(), 1), ("n2".to_owned(), 2)]);
    let in_order = [
        pod("unscheduled", |p| p["spec"]["nodeName"] = json!("")),
        pod("pending", |p| p["status"]["phase"] = json!("Pending")),
        pod("unready", |p| {
            p["status"]["conditions"][0]["status"] = json!("False");
        }),
        pod("cheap", |p| {
            p["metadata"]["annotations"][COST] = json!("-5");
        }),
        pod("crowded", |p| p["spec"]["nodeName"] = json!("n2")),
        pod("ready-lately", |p| {
            p["status"]["conditions"][0]["lastTransitionTime"] = json!("2026-01-01T00:09:00Z");
        }),
        pod("restarted", |p| {
            p["status"]["containerStatuses"] = json!([{"restartCount": 3}]);
        }),
        pod("young", |p| {
            p["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:05Z");
        }),
        pod("old", |_| {}),
        pod("dear", |p| p["metadata"]["annotations"][COST] = json!("7")),
    ];
    let wanted: Vec<&str> = in_order.iter().map(|p| &*p.metadata.name).collect();
    for turn in 0..in_order.len() {
        let mut pods = in_order.to_vec();
        pods.rotate_left(turn);
        sort_for_deletion(&mut pods, &crowd);
        let found: Vec<&str> = pods.iter().map(|p| &*p.metadata.name).collect();
        assert_eq!(found, wanted);
    }
}

async fn attempts(count: usize, failing_from: usize) -> (usize, usize, bool) {
    let tried = Arc::new(AtomicUsize::new(0));
    let (done, failure) = slow_start(count, |_| {
        let tried = Arc::clone(&tried);
        async move {
            if tried.fetch_add(1, Relaxed) >= failing_from {
                return Err(Status::internal("no"));
            }
            Ok(())
        }
    })
    .await;
    (done, tried.load(Relaxed), failure.is_some())
}

#[tokio::test]
async fn a_mistake_of_all_is_made_once_and_success_doubles_the_pace() {
    assert_eq!(attempts(100, 0).await, (0, 1, true));
    assert_eq!(attempts(100, 1).await, (1, 3, true));
    assert_eq!(attempts(100, 7).await, (7, 15, true));
    assert_eq!(attempts(100, 1000).await, (100, 100, false));
    assert_eq!(attempts(0, 0).await, (0, 0, false));
}
