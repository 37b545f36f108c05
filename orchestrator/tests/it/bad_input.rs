//! Bad input: always a `Status` with the right code, never a 500 or a hang.

use serde_json::{Value, json};

use crate::harness::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn check(answer: &(u16, Value), code: u16, reason: &str, text: &str) {
    let (found, status) = answer;
    assert_eq!(*found, code, "{status}");
    assert_eq!(status["kind"], "Status", "{status}");
    assert_eq!(status["reason"], reason, "{status}");
    assert_eq!(status["code"], code);
    let message = status["message"].as_str().unwrap();
    assert!(message.contains(text), "no {text:?} in {message:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
async fn bad_requests_get_the_right_status() {
    let cluster = Cluster::start("bad").await;
    let post = async |body: String| cluster.send("POST", MAPS, "application/json", body).await;

    check(
        &post("{".to_owned()).await,
        400,
        "BadRequest",
        "not valid JSON",
    );
    check(
        &post("[]".to_owned()).await,
        400,
        "BadRequest",
        "one object",
    );
    let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
    let deep = format!(r#"{{"metadata":{{"name":"a"}},"data":{deep}}}"#);
    check(&post(deep).await, 400, "BadRequest", "recursion limit");
    let large = json!({"metadata": {"name": "a"}, "data": {"k": "x".repeat(4 << 20)}});
    check(
        &post(large.to_string()).await,
        413,
        "RequestEntityTooLarge",
        "3145728",
    );
    let wrong = json!({"metadata": {"name": "a"}, "data": {"k": 1}});
    check(
        &post(wrong.to_string()).await,
        400,
        "BadRequest",
        "cannot unmarshal number",
    );
    let kind = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}});
    check(
        &post(kind.to_string()).await,
        400,
        "BadRequest",
        "cannot be handled as a ConfigMap",
    );
    let other = json!({"metadata": {"name": "a", "namespace": "other"}});
    check(
        &post(other.to_string()).await,
        400,
        "BadRequest",
        "does not match the namespace",
    );
    let name = json!({"metadata": {"name": "A_b"}});
    check(
        &post(name.to_string()).await,
        422,
        "Invalid",
        "metadata.name",
    );
    check(
        &post(json!({"metadata": {}}).to_string()).await,
        422,
        "Invalid",
        "name or generateName",
    );
    let unknown = json!({"metadata": {"name": "a"}, "spec": {}});
    let strict = format!("{MAPS}?fieldValidation=Strict");
    let answer = cluster
        .send("POST", &strict, "application/json", unknown.to_string())
        .await;
    check(&answer, 400, "BadRequest", "unknown field \"spec\"");
    let answer = cluster.send("POST", MAPS, "text/plain", "x").await;
    check(&answer, 415, "UnsupportedMediaType", "application/json");
    let answer = cluster
        .send(
            "POST",
            MAPS,
            "application/vnd.kubernetes.protobuf",
            "k8s\0\u{7f}x",
        )
        .await;
    check(&answer, 400, "BadRequest", "not valid");

    for (path, code, reason, text) in [
        (
            "/api/v1/configmapz",
            404,
            "NotFound",
            "did you mean \"configmaps\" in v1?",
        ),
        (
            "/apis/app/v1/deployments",
            404,
            "NotFound",
            "did you mean \"deployments\" in apps/v1?",
        ),
        ("/apis/nothing", 404, "NotFound", "no API group"),
        ("/nowhere", 404, "NotFound", "could not find"),
        (
            "/api/v1/namespaces/default/configmaps/none",
            404,
            "NotFound",
            "\"none\" not found",
        ),
        (
            "/api/v1/namespaces/default/configmaps/none/status",
            404,
            "NotFound",
            "no subresource",
        ),
        (
            "/api/v1/configmaps?labelSelector=a%20in%20b",
            400,
            "BadRequest",
            "unable to parse",
        ),
        (
            "/api/v1/configmaps?fieldSelector=data.x%3D1",
            400,
            "BadRequest",
            "not supported: data.x",
        ),
        ("/api/v1/configmaps?limit=-1", 400, "BadRequest", "limit"),
        ("/api/v1/configmaps?limit=x", 400, "BadRequest", "limit"),
        (
            "/api/v1/configmaps?continue=x",
            400,
            "BadRequest",
            "continue",
        ),
        (
            "/api/v1/configmaps?resourceVersion=x",
            400,
            "BadRequest",
            "invalid resource version",
        ),
        (
            "/api/v1/configmaps?resourceVersionMatch=Exact",
            422,
            "Invalid",
            "forbidden unless",
        ),
        (
            "/api/v1/nodes/n/status/more",
            404,
            "NotFound",
            "could not find",
        ),
        ("/api/v1/%zz", 400, "BadRequest", "percent"),
        (
            "/apis/rbac.authorization.k8s.io/v1/roles/r",
            404,
            "NotFound",
            "use the path /namespaces/NAMESPACE/roles",
        ),
        (
            "/api/v1/configmaps?sendInitialEvents=true",
            422,
            "Invalid",
            "sendInitialEvents: Forbidden: is forbidden for list",
        ),
    ] {
        check(&cluster.get(path).await, code, reason, text);
    }
    let answer = cluster
        .send(
            "DELETE",
            "/api/v1/namespaces/default/configmaps/none",
            "",
            "",
        )
        .await;
    check(&answer, 404, "NotFound", "none");
    let answer = cluster
        .send("POST", "/api/v1/nodes/n", "application/json", "{}")
        .await;
    check(&answer, 405, "MethodNotAllowed", "");
    let answer = cluster.send("DELETE", "/api/v1/pods", "", "").await;
    check(&answer, 405, "MethodNotAllowed", "/namespaces/NAMESPACE/");
    let answer = cluster
        .send("PATCH", &format!("{MAPS}/c"), "application/json", "{}")
        .await;
    check(&answer, 415, "UnsupportedMediaType", "merge-patch");
    let answer = cluster
        .send("DELETE", "/api/v1/namespaces/default", "", "")
        .await;
    check(&answer, 403, "Forbidden", "may not be deleted");
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn validation_names_every_field_that_is_wrong() {
    let cluster = Cluster::start("causes").await;
    let deployment = json!({
        "metadata": {"name": "d"},
        "spec": {
            "replicas": -1,
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "c"}},
                "spec": {"containers": [
                    {"name": "X", "image": "", "ports": [{"containerPort": 70000}]},
                ]},
            },
        },
    });
    let (code, status) = cluster
        .post("/apis/apps/v1/namespaces/default/deployments", &deployment)
        .await;
    assert_eq!(
        (code, &status["reason"]),
        (422, &json!("Invalid")),
        "{status}"
    );
    let causes = status["details"]["causes"].as_array().unwrap();
    let fields: Vec<&str> = causes
        .iter()
        .map(|cause| cause["field"].as_str().unwrap())
        .collect();
    for field in [
        "spec.replicas",
        "spec.template.metadata.labels",
        "spec.template.spec.containers[0].name",
        "spec.template.spec.containers[0].image",
        "spec.template.spec.containers[0].ports[0].containerPort",
    ] {
        assert!(fields.contains(&field), "{field} in {fields:?}");
    }
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_that_does_not_fit_is_named_as_the_cause() {
    let cluster = Cluster::start("misfits").await;
    let object = json!({"metadata": {"name": "c"}, "data": {"a": "b"}});
    assert_eq!(cluster.post(MAPS, &object).await.0, 201);
    let path = format!("{MAPS}/c?fieldValidation=Strict");
    let patch = async |kind: &str, body: Value| {
        let kind = format!("application/{kind}");
        cluster.send("PATCH", &path, &kind, body.to_string()).await
    };
    for kind in ["merge-patch+json", "strategic-merge-patch+json"] {
        for (body, why) in [
            (json!({"data": {"a": 1}}), "cannot unmarshal number"),
            (json!({"datum": {}}), "unknown field \"datum\""),
        ] {
            let answer = patch(kind, body).await;
            check(&answer, 422, "Invalid", why);
            let causes = &answer.1["details"]["causes"];
            assert_eq!(causes[0]["field"], "patch", "{causes}");
        }
        let other = json!({"kind": "Secret"});
        let why = "cannot become another kind";
        check(&patch(kind, other).await, 400, "BadRequest", why);
    }
    // Without details, so that kubectl shows the message.
    let failed = json!([{"op": "test", "path": "/data/a", "value": "z"}]);
    let answer = patch("json-patch+json", failed).await;
    check(&answer, 422, "Invalid", "value did not match");
    assert!(answer.1.get("details").is_none(), "{}", answer.1);
    let unknown =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "datum": 1});
    let path = format!("{MAPS}/c?fieldManager=m");
    let kind = "application/apply-patch+yaml";
    let answer = cluster
        .send("PATCH", &path, kind, unknown.to_string())
        .await;
    let why = ".datum: field not declared in schema";
    check(&answer, 400, "BadRequest", why);
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_and_evictions_must_not_contradict_themselves() {
    let cluster = Cluster::start("contradictions").await;
    let both = json!({"propagationPolicy": "Orphan", "orphanDependents": true});
    let answer = cluster
        .send(
            "DELETE",
            &format!("{MAPS}/c"),
            "application/json",
            both.to_string(),
        )
        .await;
    check(&answer, 422, "Invalid", "cannot be both set");
    let eviction = json!({"metadata": {"name": "other"}});
    let answer = cluster
        .post("/api/v1/namespaces/default/pods/p/eviction", &eviction)
        .await;
    check(
        &answer,
        400,
        "BadRequest",
        "does not match name in Eviction object (other)",
    );
    let (code, body) = cluster
        .send("HEAD", "/api/v1/namespaces/default", "", "")
        .await;
    assert_eq!((code, body), (200, Value::from("")), "a HEAD has no body");
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_cannot_be_answered_or_read_does_not_happen() {
    let cluster = Cluster::start("unanswerable").await;
    let json = ("Content-Type", "application/json");
    let object = json!({"metadata": {"name": "c"}}).to_string();
    for (header, code, reason, text) in [
        (
            ("Accept", "text/html"),
            406,
            "NotAcceptable",
            "application/json",
        ),
        (
            ("Content-Encoding", "gzip"),
            415,
            "UnsupportedMediaType",
            "unencoded",
        ),
    ] {
        let answer = cluster
            .send_with("POST", MAPS, &[json, header], object.clone())
            .await;
        check(&answer, code, reason, text);
        let answer = cluster.get(&format!("{MAPS}/c")).await;
        check(&answer, 404, "NotFound", "not found");
    }
    let plain = ("Content-Encoding", "identity");
    let (code, body) = cluster
        .send_with("POST", MAPS, &[json, plain], object)
        .await;
    assert_eq!(code, 201, "{body}");
    let (code, _) = cluster
        .send_with("DELETE", &format!("{MAPS}/c"), &[("Accept", "a/b")], "")
        .await;
    assert_eq!(code, 406);
    assert_eq!(
        cluster.get(&format!("{MAPS}/c")).await.0,
        200,
        "it is still there"
    );
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_names_its_object() {
    let cluster = Cluster::start("names").await;
    let object = json!({"metadata": {"name": "c"}, "data": {"k": "v"}});
    assert_eq!(cluster.post(MAPS, &object).await.0, 201);
    let path = format!("{MAPS}/c");
    for (body, text) in [
        (json!({}), "was undeterminable: name must be provided"),
        (
            json!({"metadata": {"name": "d"}}),
            "(d) does not match the name on the URL (c)",
        ),
        (
            json!({"metadata": {"name": "c", "namespace": "other"}}),
            "(other) does not match the namespace on the request (default)",
        ),
    ] {
        let answer = cluster
            .send("PUT", &path, "application/json", body.to_string())
            .await;
        check(&answer, 400, "BadRequest", text);
    }
    assert_eq!(cluster.get(&path).await.1["data"]["k"], "v");
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_does_not_grow_without_end() {
    let cluster = Cluster::start("growth").await;
    let base = "/api/v1/namespaces/default/podtemplates";
    let object = json!({
        "metadata": {"name": "t"},
        "template": {"spec": {"containers": [{"name": "a", "image": "x"}]}},
    });
    let (code, template) = cluster.post(base, &object).await;
    assert_eq!(code, 201, "{template}");
    assert_eq!(template["template"]["spec"]["restartPolicy"], "Always");
    let path = format!("{base}/t");
    let grow = async |name: &str| {
        let value = "x".repeat(2 << 20);
        let env = json!([{"name": name, "value": value}]);
        let patch = json!({"template": {"spec": {"containers": [{"name": "a", "env": env}]}}});
        let kind = "application/strategic-merge-patch+json";
        cluster.send("PATCH", &path, kind, patch.to_string()).await
    };
    assert_eq!(grow("A").await.0, 200);
    check(&grow("B").await, 413, "RequestEntityTooLarge", "3145728");
    let (_, kept) = cluster.get(&path).await;
    let env = &kept["template"]["spec"]["containers"][0]["env"];
    assert_eq!(env.as_array().unwrap().len(), 1);
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_neither_renames_nor_bares_its_object() {
    let cluster = Cluster::start("renames").await;
    let object = json!({"metadata": {"name": "c", "labels": {"a": "b"}}});
    let (_, before) = cluster.post(MAPS, &object).await;
    let path = format!("{MAPS}/c");
    let rename = json!([{"op": "replace", "path": "/metadata/name", "value": "d"}]);
    let bare = json!([{"op": "remove", "path": "/metadata"}]);
    for (kind, patch) in [
        ("json-patch+json", rename),
        ("json-patch+json", bare),
        ("merge-patch+json", json!({"metadata": null})),
        ("merge-patch+json", json!({"metadata": {"name": null}})),
        (
            "strategic-merge-patch+json",
            json!({"metadata": {"name": "d"}}),
        ),
    ] {
        let kind = format!("application/{kind}");
        let answer = cluster.send("PATCH", &path, &kind, patch.to_string()).await;
        check(&answer, 422, "Invalid", "metadata.name");
    }
    assert_eq!(cluster.get(&path).await.1, before);
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apply_says_what_it_applies() {
    let cluster = Cluster::start("applies").await;
    let apply = async |path: &str, body: Value| {
        let sign = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{sign}fieldManager=m");
        let kind = "application/apply-patch+yaml";
        cluster.send("PATCH", &path, kind, body.to_string()).await
    };
    let path = format!("{MAPS}/c");
    for (version, kind, text) in [
        ("v1", "Secret", "cannot be handled as a ConfigMap"),
        ("v1", "", "cannot be handled as a ConfigMap"),
        ("apps/v1", "ConfigMap", "expected: v1"),
        ("", "ConfigMap", "expected: v1"),
    ] {
        let body = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "c"}});
        check(&apply(&path, body).await, 400, "BadRequest", text);
    }
    assert_eq!(cluster.get(&path).await.0, 404);
    // A Scale is applied to the workload behind it.
    let sets = "/apis/apps/v1/namespaces/default/replicasets";
    let template = json!({
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "a", "image": "x"}]},
    });
    let spec =
        json!({"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    let set = json!({"metadata": {"name": "s"}, "spec": spec});
    assert_eq!(cluster.post(sets, &set).await.0, 201);
    let scale = |replicas: u8| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "s"}, "spec": {"replicas": replicas}});
    let path = format!("{sets}/s/scale");
    let conflict = apply(&path, scale(2)).await;
    check(&conflict, 409, "Conflict", ".spec.replicas");
    let (code, applied) = apply(&format!("{path}?force=true"), scale(2)).await;
    assert_eq!(
        (code, &applied["spec"]["replicas"]),
        (200, &json!(2)),
        "{applied}"
    );
    let other = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "s"}});
    check(
        &apply(&path, other).await,
        400,
        "BadRequest",
        "expected a Scale",
    );
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_selector_that_cannot_be_decoded_deletes_nothing() {
    let cluster = Cluster::start("escapes").await;
    let object = json!({"metadata": {"name": "c"}});
    assert_eq!(cluster.post(MAPS, &object).await.0, 201);
    for query in ["labelSelector=%ff", "fieldSelector=%ff%fe", "x=%c3("] {
        let answer = cluster
            .send("DELETE", &format!("{MAPS}?{query}"), "", "")
            .await;
        check(&answer, 400, "BadRequest", "bad percent escape");
    }
    assert_eq!(cluster.get(&format!("{MAPS}/c")).await.0, 200);
    cluster.server.stop().await;
}
