//! What stands behind Services: Endpoints, slices, and the server's own Service.

use std::time::Duration;

use fairlead::{
    controller::network::allocator::Range,
    registry::{DeleteOptions, Target},
    resource::{
        Resource, cluster::ENDPOINT_SLICE, core::ENDPOINTS, node::NODE, pod::POD, service::SERVICE,
    },
    server::Server,
    store::archive,
};
use serde_json::{Value, json};

use crate::harness::{Cluster, Folder, config};

/// Waits until an object, or its absence, is as it should be.
async fn settled(cluster: &Cluster, what: &str, done: impl Fn(&Cluster) -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !done(cluster) {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{what}: not so after 20 s"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn object(cluster: &Cluster, resource: &Resource, key: &str) -> Value {
    let client = cluster.client();
    let entry = client.cache_of(resource).get(key);
    entry.map_or(Value::Null, |entry| entry.value())
}

fn slices(cluster: &Cluster, service: &str) -> Vec<Value> {
    let client = cluster.client();
    let page = client
        .cache_of(&ENDPOINT_SLICE)
        .list(&fairlead::cache::Query::default());
    let all = page.unwrap().entries;
    let of = all
        .iter()
        .filter(|e| e.label("kubernetes.io/service-name") == Some(service));
    of.map(|entry| entry.value()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_own_service_comes_back_when_it_is_deleted() {
    let cluster = Cluster::start("own-service").await;
    let all = [&SERVICE, &ENDPOINTS, &ENDPOINT_SLICE];
    let key = "default/kubernetes";
    let present = |c: &Cluster| all.iter().all(|r| !object(c, r, key).is_null());
    settled(&cluster, "the first ones", present).await;
    let first = object(&cluster, &SERVICE, key);
    assert_eq!(first["spec"]["clusterIP"], "10.96.0.1");
    for resource in all {
        let options = DeleteOptions::default();
        let client = cluster.client();
        let gone = client.delete_of(resource, "default", "kubernetes", &options);
        // A Service may have taken its Endpoints with it already.
        gone.await
            .map_or_else(|status| assert!(status.is("NotFound"), "{status}"), drop);
    }
    settled(&cluster, "the second ones", present).await;
    let second = object(&cluster, &SERVICE, key);
    assert_ne!(first["metadata"]["uid"], second["metadata"]["uid"]);
    assert_eq!(second["spec"]["clusterIP"], "10.96.0.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_pods_stand_in_its_endpoints_and_in_its_slice() {
    let cluster = Cluster::start("endpoints").await;
    let client = cluster.client();
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}});
    client
        .create_value(&SERVICE, "default", service)
        .await
        .unwrap();
    // None yet: an empty object, and an empty slice that says so.
    let empty = |c: &Cluster| {
        slices(c, "web").len() == 1 && !object(c, &ENDPOINTS, "default/web").is_null()
    };
    settled(&cluster, "a slice without endpoints", empty).await;
    assert!(slices(&cluster, "web")[0]["endpoints"].is_null());
    let pod = json!({"metadata": {"name": "a", "labels": {"app": "web"}}, "spec": {"containers": [
        {"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 8080}]},
    ]}});
    client.create_value(&POD, "default", pod).await.unwrap();
    let status = |pod: &mut Value| {
        pod["status"] = json!({
            "phase": "Running",
            "podIP": "192.0.2.5",
            "podIPs": [{"ip": "192.0.2.5"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        });
    };
    let edited = client.edit_status::<k8s_openapi::api::core::v1::Pod>("default", "a", status);
    edited.await.unwrap();
    settled(&cluster, "the pod's address", |c| {
        let subset = &object(c, &ENDPOINTS, "default/web")["subsets"][0];
        let slices = slices(c, "web");
        subset["addresses"][0]["ip"] == "192.0.2.5"
            && subset["ports"][0]["port"] == 8080
            && slices.len() == 1
            && slices[0]["endpoints"][0]["addresses"] == json!(["192.0.2.5"])
    })
    .await;
    client
        .delete_of(&SERVICE, "default", "web", &DeleteOptions::default())
        .await
        .unwrap();
    settled(&cluster, "nothing left", |c| {
        slices(c, "web").is_empty() && object(c, &ENDPOINTS, "default/web").is_null()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_somebody_writes_are_mirrored_while_their_service_has_no_selector() {
    let cluster = Cluster::start("mirroring").await;
    let client = cluster.client();
    let endpoints = json!({"metadata": {"name": "ext"}, "subsets": [{"addresses": [{"ip": "192.0.2.50"}], "ports": [{"port": 5432}]}]});
    client
        .create_value(&ENDPOINTS, "default", endpoints)
        .await
        .unwrap();
    let service = json!({"metadata": {"name": "ext"}, "spec": {"ports": [{"port": 5432}]}});
    client
        .create_value(&SERVICE, "default", service)
        .await
        .unwrap();
    let mirrored = |address: &'static str| {
        move |c: &Cluster| {
            let slices = slices(c, "ext");
            slices.len() == 1 && slices[0]["endpoints"][0]["addresses"][0] == address
        }
    };
    settled(&cluster, "a mirrored slice", mirrored("192.0.2.50")).await;
    let label = "endpointslice.kubernetes.io/managed-by";
    let slice = &slices(&cluster, "ext")[0];
    assert_eq!(
        slice["metadata"]["labels"][label],
        "endpointslicemirroring-controller.k8s.io"
    );
    let moved =
        |endpoints: &mut Value| endpoints["subsets"][0]["addresses"][0]["ip"] = "192.0.2.51".into();
    let edited = client.edit::<k8s_openapi::api::core::v1::Endpoints>("default", "ext", moved);
    edited.await.unwrap();
    settled(&cluster, "the new address", mirrored("192.0.2.51")).await;
    client
        .delete_of(&SERVICE, "default", "ext", &DeleteOptions::default())
        .await
        .unwrap();
    settled(&cluster, "nothing left", |c| slices(c, "ext").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_port_of_a_service_gets_a_node_port_of_its_own() {
    let cluster = Cluster::start("node-ports").await;
    let service = json!({
        "metadata": {"name": "two"},
        "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "selector": {"a": "b"},
            "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}],
        },
    });
    let path = "/api/v1/namespaces/default/services";
    let (code, made) = cluster.post(path, &service).await;
    assert_eq!(code, 201, "{made}");
    let spec = &made["spec"];
    let mut given = vec![spec["healthCheckNodePort"].as_u64().unwrap()];
    let ports = spec["ports"].as_array().unwrap();
    given.extend(ports.iter().map(|port| port["nodePort"].as_u64().unwrap()));
    given.sort_unstable();
    given.dedup();
    assert_eq!(given.len(), 3, "{spec}");
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_live_on_when_the_range_changes() {
    let cluster = Cluster::start("other-range").await;
    let key = "default/kubernetes";
    settled(&cluster, "the server's own", |c| {
        !object(c, &SERVICE, key).is_null()
    })
    .await;
    let service =
        json!({"metadata": {"name": "web"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    cluster
        .client()
        .create_value(&SERVICE, "default", service)
        .await
        .unwrap();
    let before = object(&cluster, &SERVICE, "default/web")["spec"].clone();
    let (saved, other) = (cluster.folder.path("saved.db"), Folder::new("new-range"));
    cluster.server.stop().await;
    archive::backup(&cluster.folder.0, &saved).unwrap();
    archive::restore(&saved, &other.0).unwrap();
    let mut config = config(&other.0);
    config.service_cidr = vec![Range::parse("10.43.0.0/16").unwrap()];
    let server = Server::start(config, |_| {}).await.unwrap();
    let cluster = Cluster {
        folder: other,
        server,
    };
    // What it serves at has changed, and is told although the address stays.
    let port = u64::from(cluster.server.address.port());
    settled(&cluster, "the server's own port", |c| {
        object(c, &ENDPOINTS, key)["subsets"].is_null()
            && object(c, &SERVICE, key)["spec"]["ports"][0]["targetPort"] == port
    })
    .await;
    assert_eq!(
        object(&cluster, &SERVICE, key)["spec"]["clusterIP"],
        "10.96.0.1"
    );
    // A Service of the former range can still be changed, and keeps what it has.
    let target = Target::object(&SERVICE, "default", "web");
    let change = |current: &Value| {
        let mut new = current.clone();
        new["metadata"]["labels"]["touched"] = "yes".into();
        Ok(new)
    };
    cluster.client().change(target, &change).await.unwrap();
    assert_eq!(object(&cluster, &SERVICE, "default/web")["spec"], before);
    let moved = |current: &Value| {
        let mut new = current.clone();
        new["spec"]["clusterIP"] = "10.96.9.9".into();
        new["spec"]["clusterIPs"] = json!(["10.96.9.9"]);
        Ok(new)
    };
    assert!(cluster.client().change(target, &moved).await.is_err());
    let options = DeleteOptions::default();
    let client = cluster.client();
    client
        .delete_of(&SERVICE, "default", "kubernetes", &options)
        .await
        .unwrap();
    settled(&cluster, "the new address", |c| {
        object(c, &SERVICE, key)["spec"]["clusterIP"] == "10.43.0.1"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_follow_their_node_into_another_zone() {
    let cluster = Cluster::start("zones").await;
    let client = cluster.client();
    let label = |zone: &str| json!({"topology.kubernetes.io/zone": zone});
    let node = json!({"metadata": {"name": "n", "labels": label("a")}});
    client.create_value(&NODE, "", node).await.unwrap();
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    client
        .create_value(&SERVICE, "default", service)
        .await
        .unwrap();
    let pod = json!({"metadata": {"name": "p", "labels": {"app": "web"}}, "spec": {
        "nodeName": "n", "containers": [{"name": "c", "image": "i"}],
    }});
    client.create_value(&POD, "default", pod).await.unwrap();
    let status = |pod: &mut Value| {
        pod["status"] =
            json!({"phase": "Running", "podIP": "192.0.2.5", "podIPs": [{"ip": "192.0.2.5"}]});
    };
    let edited = client.edit_status::<k8s_openapi::api::core::v1::Pod>("default", "p", status);
    edited.await.unwrap();
    let in_zone = |zone: &'static str| {
        move |c: &Cluster| {
            let slices = slices(c, "web");
            slices.len() == 1 && slices[0]["endpoints"][0]["zone"] == zone
        }
    };
    settled(&cluster, "the first zone", in_zone("a")).await;
    let change = |current: &Value| {
        let mut new = current.clone();
        new["metadata"]["labels"] = label("b");
        Ok(new)
    };
    client
        .change(Target::object(&NODE, "", "n"), &change)
        .await
        .unwrap();
    settled(&cluster, "the other zone", in_zone("b")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_service_needs_no_more_goes_without_being_asked() {
    let cluster = Cluster::start("traffic").await;
    let path = "/api/v1/namespaces/default/services";
    let merge = "application/merge-patch+json";
    let balancer = json!({
        "metadata": {"name": "lb"},
        "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]},
    });
    let (code, mut made) = cluster.post(path, &balancer).await;
    assert_eq!(code, 201, "{made}");
    let health = made["spec"]["healthCheckNodePort"].take();
    assert!(health.is_number());
    // Whoever replaces it need not know its port.
    let at = format!("{path}/lb");
    let (code, replaced) = cluster
        .send("PUT", &at, "application/json", made.to_string())
        .await;
    assert_eq!(
        (code, &replaced["spec"]["healthCheckNodePort"]),
        (200, &health),
        "{replaced}"
    );
    let policy = json!({"spec": {"externalTrafficPolicy": "Cluster"}});
    let (code, patched) = cluster.send("PATCH", &at, merge, policy.to_string()).await;
    assert_eq!(code, 200, "{patched}");
    assert!(patched["spec"]["healthCheckNodePort"].is_null());
    let external = json!({
        "metadata": {"name": "ex"},
        "spec": {"externalIPs": ["192.0.2.1"], "ports": [{"port": 80}]},
    });
    let (code, made) = cluster.post(path, &external).await;
    assert_eq!(
        (code, &made["spec"]["externalTrafficPolicy"]),
        (201, &json!("Cluster"))
    );
    let none = json!({"spec": {"externalIPs": null}});
    let at = format!("{path}/ex");
    let (code, patched) = cluster.send("PATCH", &at, merge, none.to_string()).await;
    assert_eq!(code, 200, "{patched}");
    assert!(patched["spec"]["externalTrafficPolicy"].is_null());
}
