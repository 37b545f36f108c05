//! Too much of anything is refused with a proper answer, and the server goes on.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::caller::{Caller, Cluster};

async fn raw(caller: &Caller, request: &[u8]) -> String {
    let mut stream = caller.connect().await;
    // The server may answer and close before it has read everything.
    drop(stream.write_all(request).await);
    let mut reply = Vec::new();
    drop(stream.read_to_end(&mut reply).await);
    String::from_utf8_lossy(&reply).into_owned()
}

#[tokio::test]
async fn oversized_and_deep_requests_are_refused_and_the_server_goes_on() {
    let cluster = Cluster::start("flood").await;
    let admin = cluster.admin();
    let post = "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n";
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let wide = json!({"metadata": {"name": "big"}, "data": {"a": "x".repeat(4 << 20)}}).to_string();
    let with_body = |body: &str| format!("{post}content-length: {}\r\n\r\n{body}", body.len());
    let long_url = format!(
        "GET /api/v1/{} HTTP/1.1\r\nhost: x\r\n\r\n",
        "a".repeat(100_000)
    );
    let cases = [
        (with_body(&deep), "400"),
        (with_body(&wide), "413"),
        (format!("{post}content-length: 999999999999\r\n\r\n"), "413"),
        (with_body("[]"), "400"),
        (with_body("{"), "400"),
        (with_body("{\"metadata\": 3}"), "400"),
        (
            format!(
                "GET /api HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n",
                "y".repeat(100_000)
            ),
            "431",
        ),
    ];
    for (request, code) in cases {
        let reply = raw(&admin, request.as_bytes()).await;
        let shown = reply.get(..300).unwrap_or(&reply);
        assert!(
            reply.starts_with(&format!("HTTP/1.1 {code}")),
            "{code} expected: {shown}"
        );
    }
    let reply = raw(&admin, long_url.as_bytes()).await;
    assert!(
        reply.starts_with("HTTP/1.1 4"),
        "{}",
        reply.get(..100).unwrap_or(&reply)
    );
    assert_eq!(admin.get("/readyz").await.code, 200);
    cluster.stop().await;
}

#[tokio::test]
async fn reviews_and_tokens_with_wrong_types_are_bad_requests() {
    let cluster = Cluster::start("types").await;
    let admin = cluster.admin();
    let account = json!({"metadata": {"name": "robot"}});
    admin
        .send(
            "POST",
            "/api/v1/namespaces/default/serviceaccounts",
            Some(&account),
        )
        .await;
    let paths = [
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews",
        "/apis/authentication.k8s.io/v1/tokenreviews",
        "/api/v1/namespaces/default/serviceaccounts/robot/token",
    ];
    for path in paths {
        for body in [
            json!([]),
            json!("x"),
            json!({"spec": 3}),
            json!({"spec": []}),
            json!({"spec": {"resourceAttributes": "x", "token": 7, "audiences": 7}}),
        ] {
            let answer = admin.send("POST", path, Some(&body)).await;
            assert!(
                [400, 422].contains(&answer.code),
                "{path} {body}: {} {}",
                answer.code,
                answer.body
            );
            assert_eq!(answer.body["kind"], "Status", "{path} {body}");
        }
    }
    assert_eq!(admin.get("/readyz").await.code, 200);
    cluster.stop().await;
}

#[tokio::test]
async fn half_a_request_from_many_does_not_stop_the_others() {
    let cluster = Cluster::start("slow").await;
    let admin = cluster.admin();
    let nobody = cluster.caller(None, None);
    let mut held = Vec::new();
    for index in 0..200 {
        let mut stream = if index % 2 == 0 {
            admin.connect().await
        } else {
            nobody.connect().await
        };
        let start = "POST /api/v1/namespaces HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
        stream.write_all(start.as_bytes()).await.unwrap();
        held.push(stream);
    }
    assert_eq!(
        admin.get("/api/v1/namespaces").await.code,
        200,
        "{}",
        cluster.address()
    );
    drop(held);
    cluster.stop().await;
}
