//! Bent requests of every kind through the whole API.

use fairlead::proto;
use fairlead::schema::schema;
use serde_json::json;

use super::cluster::{Answer, Cluster, Request, resource_of};
use super::request::{change, encoded, escaped, query};
use super::{Cases, bend, kinds, seeds};

#[tokio::test(flavor = "multi_thread")]
async fn bent_writes_are_accepted_whole_or_refused_without_trace() {
    let mut cluster = Cluster::start("writes").await;
    let seeds = seeds::all();
    for seed in &seeds {
        let answer = cluster.post(seed.collection, &seed.object).await;
        assert_eq!(answer.code, 201, "{} {}", seed.collection, answer.value());
    }
    let mut cases = Cases::new(800);
    let mut accepted = 0;
    while let Some(mut random) = cases.next() {
        let random = &mut random;
        let seed = random.pick(&seeds);
        let other = &random.pick(&seeds).object;
        let resource = resource_of(seed.collection);
        let object = seed.path();
        let before = cluster.get(&object).await;
        if before.code == 404 {
            cluster.restore(seed).await;
            continue;
        }
        let current = before.value();
        let subresource = match resource.subresources {
            [] => "",
            some if random.chance(25) => random.pick(some).name,
            _ => "",
        };
        let path = format!("{object}/{subresource}")
            .trim_end_matches('/')
            .to_owned();
        let shown = cluster.get(&path).await;
        let shown = if shown.code == 200 {
            shown.value()
        } else {
            current
        };
        let request = change(random, resource, path, &shown, other);
        let answer = cluster.send(&request).await;
        let after = cluster.get(&object).await;
        if answer.code >= 400 {
            assert_eq!(
                after, before,
                "refused, and changed all the same: {request}"
            );
            continue;
        }
        accepted += 1;
        if subresource.is_empty() && after.code == 200 {
            assert_eq!(after.value(), answer.value(), "{request}");
        }
        cluster.check_stable(&object, &request).await;
    }
    assert!(
        accepted * 20 >= cases.count,
        "only {accepted} were accepted: the fuzzer sees too little"
    );
    let read = async |cluster: &Cluster| {
        let mut all = Vec::new();
        for seed in &seeds {
            all.push(cluster.get(&seed.path()).await);
        }
        all
    };
    let before = read(&cluster).await;
    cluster = cluster.restart().await;
    assert_eq!(read(&cluster).await, before, "a restart changes nothing");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "the life of one object")]
async fn bent_creates_and_deletes_are_carried_out_or_refused() {
    let cluster = Cluster::start("creates").await;
    let (seeds, posts) = (seeds::all(), seeds::posts());
    for seed in &seeds {
        cluster.restore(seed).await;
    }
    let mut cases = Cases::new(800);
    while let Some(mut random) = cases.next() {
        let random = &mut random;
        let seed = if random.chance(25) {
            random.pick(&posts)
        } else {
            random.pick(&seeds)
        };
        let other = &random.pick(&seeds).object;
        let mut bent = seed.object.clone();
        let stored = bent.pointer("/metadata/finalizers").is_some();
        if stored {
            bent["metadata"]["name"] = json!("other");
        }
        bend::nodes(random, &mut bent, other);
        let resource = stored.then(|| resource_of(seed.collection));
        let (kind, body) = encoded(random, resource, &bent);
        let strict = if random.chance(30) {
            "?fieldValidation=Strict"
        } else {
            ""
        };
        let path = format!("{}{strict}", seed.collection);
        let request = Request {
            method: "POST",
            path,
            kind,
            body,
        };
        let answer = cluster.send(&request).await;
        if !stored || answer.code != 201 {
            continue;
        }
        let made = answer.value();
        let path = format!(
            "{}/{}",
            seed.collection,
            escaped(made["metadata"]["name"].as_str().unwrap())
        );
        assert_eq!(cluster.get(&path).await.value(), made, "{request}");
        cluster.check_stable(&path, &request).await;
        let mut options = json!({"kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {}, "dryRun": []});
        if random.chance(60) {
            bend::nodes(random, &mut options, other);
        }
        let before = cluster.get(&path).await;
        let (kind, body) = encoded(random, None, &options);
        let request = Request {
            method: "DELETE",
            path: path.clone(),
            kind,
            body,
        };
        let answer = cluster.send(&request).await;
        if answer.code >= 400 {
            assert_eq!(
                cluster.get(&path).await,
                before,
                "refused, and changed all the same: {request}"
            );
            let plain = Request {
                method: "DELETE",
                path,
                kind: "",
                body: Vec::new(),
            };
            cluster.send(&plain).await;
        }
    }
    cluster.restart().await.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "tables of pieces")]
async fn bent_paths_and_queries_are_answered_or_refused() {
    const SEGMENTS: [&str; 22] = [
        "api",
        "apis",
        "v1",
        "apps",
        "batch",
        "namespaces",
        "default",
        "pods",
        "deployments",
        "status",
        "scale",
        "seed",
        "finalize",
        "watch",
        "openapi",
        "v3",
        "healthz",
        "readyz",
        "",
        "..",
        "%2F",
        "%00",
    ];
    let cluster = Cluster::start("queries").await;
    let seeds = seeds::all();
    for seed in &seeds {
        cluster.restore(seed).await;
    }
    let mut cases = Cases::new(1500);
    while let Some(mut random) = cases.next() {
        let random = &mut random;
        let seed = random.pick(&seeds);
        let mut path = match random.below(4) {
            0 => {
                let count = random.below(8);
                let parts: Vec<&str> = (0..count).map(|_| *random.pick(&SEGMENTS)).collect();
                format!("/{}", parts.join("/"))
            }
            1 => seed.path(),
            2 => format!(
                "{}/{}",
                seed.collection,
                escaped(random.pick::<&str>(&bend::WORDS))
            ),
            _ => seed.collection.to_owned(),
        };
        if random.chance(20) {
            let mut bytes = path.into_bytes();
            bend::bytes(random, &mut bytes, seed.collection.as_bytes());
            path = String::from_utf8_lossy(&bytes).into_owned();
        }
        let mut method = *random.pick(&[
            "GET", "GET", "GET", "GET", "HEAD", "PUT", "POST", "PATCH", "OPTIONS", "DELETE",
        ]);
        let mut query = query(random);
        if method == "DELETE" {
            query.push_str("&dryRun=All");
            // The first value counts.
            method = if query.matches("dryRun").count() > 1 {
                "GET"
            } else {
                method
            };
        }
        let path = format!("{path}?{query}");
        let answer = cluster
            .send(&Request {
                method,
                path,
                kind: "",
                body: Vec::new(),
            })
            .await;
        assert!(method != "POST" || answer.code != 201 || answer.value()["kind"] != "Status");
    }
    cluster.stop().await;
}

/// Readers of JSON stop at 128 levels: what is stored must stay below that in any encoding.
#[tokio::test(flavor = "multi_thread")]
async fn deep_nesting_is_refused_in_every_encoding() {
    let mut cluster = Cluster::start("deep").await;
    let collection = "/apis/apps/v1/namespaces/default/controllerrevisions";
    let resource = resource_of(collection);
    let object = schema().kind("apps", "v1", "ControllerRevision").unwrap();
    let mut refused = 0;
    for levels in (90..140).step_by(2) {
        let deep = (0..levels).fold(json!({}), |inner, _| json!({"a": inner}));
        let fields = (0..levels).fold(json!({}), |inner, _| json!({"f:a": inner}));
        let entry = json!({"manager": "m", "operation": "Update", "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": fields});
        let name = json!({"name": format!("a{levels}")});
        let owned = json!({"name": format!("b{levels}"), "managedFields": [entry]});
        for value in [
            json!({"metadata": name, "revision": 1, "data": deep}),
            json!({"metadata": owned, "revision": 1, "data": {}}),
        ] {
            let protobuf = kinds::body("apps/v1", "ControllerRevision", object, &value);
            for (kind, body) in [
                (proto::MEDIA_TYPE, protobuf),
                ("application/yaml", value.to_string().into()),
                ("application/json", value.to_string().into()),
            ] {
                let path = collection.to_owned();
                let answer = cluster
                    .send(&Request {
                        method: "POST",
                        path,
                        kind,
                        body,
                    })
                    .await;
                refused += usize::from(answer.code == 400);
                let path = format!(
                    "{collection}/{}",
                    value["metadata"]["name"].as_str().unwrap()
                );
                let read = cluster.get(&path).await;
                assert!(
                    read.value().is_object(),
                    "{} {kind} {levels}",
                    resource.kind
                );
                let patch = json!({"metadata": {"labels": {"a": format!("{levels}")}}})
                    .to_string()
                    .into();
                let kind = "application/merge-patch+json";
                cluster
                    .send(&Request {
                        method: "PATCH",
                        path,
                        kind,
                        body: patch,
                    })
                    .await;
            }
        }
    }
    assert!(refused > 60, "{refused} of 150 refused");
    cluster = cluster.restart().await;
    assert_eq!(cluster.get(collection).await.code, 200);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_of_ephemeral_containers_that_changes_nothing_stores_nothing() {
    let cluster = Cluster::start("ephemeral").await;
    let pod =
        json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    let made = cluster.post("/api/v1/namespaces/default/pods", &pod).await;
    assert_eq!(made.code, 201, "{}", made.value());
    let patched = cluster
        .send(&Request {
            method: "PATCH",
            path: "/api/v1/namespaces/default/pods/a/ephemeralcontainers".to_owned(),
            kind: "application/merge-patch+json",
            body: b"{}".to_vec(),
        })
        .await;
    assert_eq!(patched, Answer { code: 200, ..made });
    cluster.stop().await;
}
