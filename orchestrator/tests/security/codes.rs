//! A table of requests, callers and codes.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::caller::{self, Caller, Cluster};
use crate::furnish;

/// The columns of the table below.
const CALLERS: [&str; 9] = [
    "nobody", "foreign", "expired", "audience", "forged", "one", "two", "viewer", "admin",
];

/// Makes the callers named in [`CALLERS`], in that order.
async fn callers(cluster: &Cluster) -> Vec<Caller> {
    let now = SystemTime::now();
    let foreign = fairlead::tls::Authority::generate(now).unwrap();
    let hour = Duration::from_hours(1);
    let account = cluster
        .admin()
        .get("/api/v1/namespaces/team/serviceaccounts/viewer")
        .await;
    let uid = account.body["metadata"]["uid"].as_str().unwrap().to_owned();
    let api = "https://kubernetes.default.svc.cluster.local";
    let token = |audience: &str, life: i64| cluster.token("team", "viewer", &uid, audience, life);
    let mut forged = token(api, 3600);
    let middle = forged.find('.').unwrap() + 10;
    let other = if forged.as_bytes()[middle] == b'A' {
        "B"
    } else {
        "A"
    };
    forged.replace_range(middle..=middle, other);
    vec![
        cluster.caller(None, None),
        cluster.caller(
            Some(caller::client(&foreign, "boss", "system:masters", hour)),
            None,
        ),
        cluster.caller(None, Some(token(api, -1))),
        cluster.caller(None, Some(token("vault", 3600))),
        cluster.caller(None, Some(forged)),
        cluster.node("one"),
        cluster.node("two"),
        cluster.caller(None, Some(token(api, 3600))),
        cluster.admin(),
    ]
}

/// method, path, body, and the code for each of [`CALLERS`].
type Row = (&'static str, &'static str, Option<Value>, [u16; 9]);

#[expect(clippy::too_many_lines, reason = "one table")]
fn rows() -> Vec<Row> {
    let team = "/api/v1/namespaces/team";
    let path =
        |rest: &str| -> &'static str { Box::leak(format!("{team}/{rest}").into_boxed_str()) };
    let bound =
        json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web"}}});
    let status = json!({"metadata": {"name": "web"}, "status": {"message": "hello"}});
    let review = json!({"spec": {"nonResourceAttributes": {"path": "/x", "verb": "get"}}});
    let dry = json!({"metadata": {"name": "new"}});
    vec![
        //                                                      nobody foreign expired audience forged one two viewer admin
        (
            "GET",
            "/healthz",
            None,
            [200, 401, 401, 401, 401, 200, 200, 200, 200],
        ),
        (
            "GET",
            "/version",
            None,
            [200, 401, 401, 401, 401, 200, 200, 200, 200],
        ),
        (
            "GET",
            "/readyz?verbose",
            None,
            [200, 401, 401, 401, 401, 200, 200, 200, 200],
        ),
        (
            "GET",
            "/api",
            None,
            [401, 401, 401, 401, 401, 200, 200, 200, 200],
        ),
        (
            "GET",
            "/apis/apps/v1",
            None,
            [401, 401, 401, 401, 401, 200, 200, 200, 200],
        ),
        (
            "GET",
            "/openapi/v3",
            None,
            [401, 401, 401, 401, 401, 200, 200, 200, 200],
        ),
        (
            "GET",
            "/metrics",
            None,
            [401, 401, 401, 401, 401, 403, 403, 403, 200],
        ),
        (
            "GET",
            "/openid/v1/jwks",
            None,
            [401, 401, 401, 401, 401, 403, 403, 200, 200],
        ),
        (
            "GET",
            "/.well-known/openid-configuration",
            None,
            [401, 401, 401, 401, 401, 403, 403, 200, 200],
        ),
        (
            "GET",
            "/nowhere",
            None,
            [401, 401, 401, 401, 401, 403, 403, 403, 404],
        ),
        (
            "GET",
            path("configmaps"),
            None,
            [401, 401, 401, 401, 401, 403, 403, 200, 200],
        ),
        (
            "GET",
            path("configmaps?watch=1&timeoutSeconds=1"),
            None,
            [401, 401, 401, 401, 401, 403, 403, 200, 200],
        ),
        (
            "GET",
            path("pods/web"),
            None,
            [401, 401, 401, 401, 401, 200, 403, 200, 200],
        ),
        (
            "GET",
            path("secrets/used"),
            None,
            [401, 401, 401, 401, 401, 200, 403, 403, 200],
        ),
        (
            "GET",
            path("secrets/other"),
            None,
            [401, 401, 401, 401, 401, 403, 403, 403, 200],
        ),
        (
            "GET",
            path("secrets"),
            None,
            [401, 401, 401, 401, 401, 403, 403, 403, 200],
        ),
        (
            "GET",
            "/api/v1/pods?fieldSelector=spec.nodeName%3Done",
            None,
            [401, 401, 401, 401, 401, 200, 403, 403, 200],
        ),
        (
            "GET",
            "/api/v1/nodes/one",
            None,
            [401, 401, 401, 401, 401, 200, 403, 403, 200],
        ),
        (
            "GET",
            "/api/v1/nodes",
            None,
            [401, 401, 401, 401, 401, 403, 403, 403, 200],
        ),
        (
            "GET",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            None,
            [401, 401, 401, 401, 401, 403, 403, 403, 200],
        ),
        (
            "POST",
            path("configmaps?dryRun=All"),
            Some(dry),
            [401, 401, 401, 401, 401, 403, 403, 403, 201],
        ),
        (
            "DELETE",
            path("configmaps/settings?dryRun=All"),
            None,
            [401, 401, 401, 401, 401, 403, 403, 403, 200],
        ),
        (
            "DELETE",
            path("pods/web?dryRun=All"),
            None,
            [401, 401, 401, 401, 401, 200, 403, 403, 200],
        ),
        (
            "POST",
            path("pods/web/eviction?dryRun=All"),
            Some(json!({"metadata": {"name": "web"}})),
            [401, 401, 401, 401, 401, 201, 403, 403, 201],
        ),
        (
            "PUT",
            path("pods/web/status?dryRun=All"),
            Some(status),
            [401, 401, 401, 401, 401, 200, 403, 403, 200],
        ),
        (
            "POST",
            path("serviceaccounts/robot/token"),
            Some(bound),
            [401, 401, 401, 401, 401, 201, 403, 403, 201],
        ),
        (
            "POST",
            path("serviceaccounts/robot/token"),
            Some(json!({})),
            [401, 401, 401, 401, 401, 403, 403, 403, 201],
        ),
        (
            "POST",
            path("serviceaccounts/viewer/token"),
            Some(json!({})),
            [401, 401, 401, 401, 401, 403, 403, 403, 201],
        ),
        (
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            Some(review),
            [401, 401, 401, 401, 401, 201, 201, 201, 201],
        ),
        (
            "POST",
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            Some(json!({})),
            [401, 401, 401, 401, 401, 201, 201, 201, 201],
        ),
    ]
}

#[tokio::test]
async fn every_kind_of_caller_gets_the_expected_code() {
    let cluster = Cluster::start("codes").await;
    furnish(&cluster).await;
    let callers = callers(&cluster).await;
    for (method, path, body, expected) in rows() {
        for ((name, caller), code) in CALLERS.iter().zip(&callers).zip(expected) {
            let answer = caller.send(method, path, body.as_ref()).await;
            assert_eq!(
                answer.code, code,
                "{name}: {method} {path}: {}",
                answer.body
            );
            if code >= 400 {
                assert_eq!(answer.body["kind"], "Status", "{name}: {method} {path}");
                assert_eq!(answer.body["code"], code);
            }
        }
    }
    cluster.stop().await;
}
