//! The API server under every kind of caller: who gets which answer, over real TLS.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod caller;
mod codes;
mod flood;
mod fuzz;
mod review;

use caller::{Caller, Cluster};
use serde_json::json;

/// A namespace with a viewer, a pod on node one, its secret and another.
async fn furnish(cluster: &Cluster) {
    let admin = cluster.admin();
    let made = [
        ("/api/v1/namespaces", json!({"metadata": {"name": "team"}})),
        (
            "/api/v1/namespaces/team/serviceaccounts",
            json!({"metadata": {"name": "viewer"}}),
        ),
        (
            "/api/v1/namespaces/team/serviceaccounts",
            json!({"metadata": {"name": "robot"}}),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/team/rolebindings",
            json!({
                "metadata": {"name": "viewers"},
                "roleRef": {"kind": "ClusterRole", "name": "view"},
                "subjects": [{"kind": "ServiceAccount", "name": "viewer", "namespace": "team"}],
            }),
        ),
        ("/api/v1/nodes", json!({"metadata": {"name": "one"}})),
        ("/api/v1/nodes", json!({"metadata": {"name": "two"}})),
        (
            "/api/v1/namespaces/team/secrets",
            json!({"metadata": {"name": "used"}}),
        ),
        (
            "/api/v1/namespaces/team/secrets",
            json!({"metadata": {"name": "other"}}),
        ),
        (
            "/api/v1/namespaces/team/configmaps",
            json!({"metadata": {"name": "settings"}}),
        ),
        (
            "/api/v1/namespaces/team/pods",
            json!({
                "metadata": {"name": "web"},
                "spec": {
                    "nodeName": "one",
                    "serviceAccountName": "robot",
                    "containers": [{"name": "a", "image": "x", "envFrom": [{"secretRef": {"name": "used"}}]}],
                },
            }),
        ),
    ];
    for (path, object) in made {
        let answer = admin.send("POST", path, Some(&object)).await;
        assert_eq!(answer.code, 201, "{path}: {}", answer.body);
    }
}

#[tokio::test]
async fn a_token_lives_as_long_as_what_it_is_bound_to() {
    let cluster = Cluster::start("bound").await;
    furnish(&cluster).await;
    let admin = cluster.admin();
    let token = |answer: caller::Answer| {
        answer.body["status"]["token"]
            .as_str()
            .unwrap_or_else(|| panic!("{}", answer.body))
            .to_owned()
    };
    let path = "/api/v1/namespaces/team/serviceaccounts/robot/token";
    let free = token(admin.send("POST", path, Some(&json!({}))).await);
    let request = json!({"spec": {"boundObjectRef": {"kind": "Secret", "name": "used"}}});
    let bound = token(admin.send("POST", path, Some(&request)).await);
    let who = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let (free, bound) = (
        cluster.caller(None, Some(free)),
        cluster.caller(None, Some(bound)),
    );
    for caller in [&free, &bound] {
        let answer = caller.send("POST", who, Some(&json!({}))).await;
        assert_eq!(
            answer.body["status"]["userInfo"]["username"],
            "system:serviceaccount:team:robot"
        );
    }
    admin
        .send("DELETE", "/api/v1/namespaces/team/secrets/used", None)
        .await;
    assert_eq!(
        bound.send("POST", who, Some(&json!({}))).await.code,
        401,
        "its secret is gone"
    );
    assert_eq!(free.send("POST", who, Some(&json!({}))).await.code, 201);
    admin
        .send(
            "DELETE",
            "/api/v1/namespaces/team/serviceaccounts/robot",
            None,
        )
        .await;
    assert_eq!(
        free.send("POST", who, Some(&json!({}))).await.code,
        401,
        "its account is gone"
    );
    cluster.stop().await;
}

#[tokio::test]
async fn a_revoked_right_is_gone_with_the_answer_to_its_deletion() {
    let cluster = Cluster::start("revoked").await;
    let admin = cluster.admin();
    let bob = cluster.user("bob");
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    let binding = json!({
        "metadata": {"name": "bob"},
        "roleRef": {"kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "name": "bob"}],
    });
    for _ in 0..50 {
        assert_eq!(bob.get("/api/v1/configmaps").await.code, 403);
        assert_eq!(admin.send("POST", bindings, Some(&binding)).await.code, 201);
        assert_eq!(bob.get("/api/v1/configmaps").await.code, 200);
        assert_eq!(
            admin
                .send("DELETE", &format!("{bindings}/bob"), None)
                .await
                .code,
            200
        );
    }
    cluster.stop().await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story")]
async fn nobody_grants_more_than_they_hold() {
    let cluster = Cluster::start("escalation").await;
    furnish(&cluster).await;
    let admin = cluster.admin();
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let bind = |name: &str, role: &str, user: &str| {
        json!({
            "metadata": {"name": name},
            "roleRef": {"kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "name": user}],
        })
    };
    let bindings = format!("{rbac}/namespaces/team/rolebindings");
    let roles = format!("{rbac}/namespaces/team/roles");
    assert_eq!(
        admin
            .send("POST", &bindings, Some(&bind("lead", "admin", "lead")))
            .await
            .code,
        201
    );
    let lead = cluster.user("lead");
    let role = |name: &str, resource: &str, verb: &str| {
        json!({
            "metadata": {"name": name},
            "rules": [{"apiGroups": [""], "resources": [resource], "verbs": [verb]}],
        })
    };
    let table = [
        (&bindings, bind("a", "view", "guest"), 201),
        (&bindings, bind("b", "edit", "guest"), 201),
        (&bindings, bind("c", "admin", "guest"), 201),
        (&bindings, bind("d", "cluster-admin", "guest"), 403),
        (&bindings, bind("e", "system:node", "guest"), 403),
        (&bindings, bind("f", "no-such-role", "guest"), 404),
        (&roles, role("g", "pods", "delete"), 201),
        (&roles, role("h", "nodes", "get"), 403),
        (&roles, role("i", "pods", "*"), 403),
        (&roles, role("j", "*", "get"), 403),
    ];
    for (path, object, code) in table {
        let answer = lead.send("POST", path, Some(&object)).await;
        assert_eq!(answer.code, code, "{object}: {}", answer.body);
    }
    // What was allowed small may not grow.
    let grown = role("g", "nodes", "delete");
    assert_eq!(
        lead.send("PUT", &format!("{roles}/g"), Some(&grown))
            .await
            .code,
        403
    );
    // The right to escalate or bind is a right like any other.
    let special = json!({
        "metadata": {"name": "special"},
        "rules": [{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "clusterroles"], "verbs": ["escalate", "bind"]}],
    });
    assert_eq!(
        admin
            .send("POST", &format!("{rbac}/clusterroles"), Some(&special))
            .await
            .code,
        201
    );
    assert_eq!(
        admin
            .send("POST", &bindings, Some(&bind("special", "special", "lead")))
            .await
            .code,
        201
    );
    assert_eq!(
        lead.send("PUT", &format!("{roles}/g"), Some(&grown))
            .await
            .code,
        200
    );
    assert_eq!(
        lead.send(
            "POST",
            &bindings,
            Some(&bind("d", "cluster-admin", "guest"))
        )
        .await
        .code,
        201
    );
    cluster.stop().await;
}

#[tokio::test]
async fn an_apply_creates_only_what_its_sender_may_create() {
    let cluster = Cluster::start("apply").await;
    let admin = cluster.admin();
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({
        "metadata": {"name": "patcher"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "patch"]}],
    });
    let binding = json!({
        "metadata": {"name": "patcher"},
        "roleRef": {"kind": "ClusterRole", "name": "patcher"},
        "subjects": [{"kind": "User", "name": "bob"}],
    });
    for (kind, object) in [("clusterroles", role), ("clusterrolebindings", binding)] {
        let answer = admin
            .send("POST", &format!("{rbac}/{kind}"), Some(&object))
            .await;
        assert_eq!(answer.code, 201, "{}", answer.body);
    }
    let bob = cluster.user("bob");
    let path = "/api/v1/namespaces/default/configmaps/c?fieldManager=m";
    let map = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": value}});
    let apply = async |caller: &Caller, value: &str| {
        caller
            .send_as(
                "PATCH",
                path,
                "application/apply-patch+yaml",
                Some(&map(value)),
            )
            .await
    };
    let refused = apply(&bob, "1").await;
    assert_eq!(refused.code, 403, "{}", refused.body);
    let message = refused.body["message"].as_str().unwrap();
    assert!(message.contains("cannot create resource"), "{message}");
    assert_eq!(bob.get(path).await.code, 404);
    assert_eq!(apply(&admin, "1").await.code, 201);
    assert_eq!(apply(&bob, "1").await.code, 200, "the same is a patch");
    cluster.stop().await;
}

#[tokio::test]
async fn a_node_joins_by_token_and_renews_by_certificate() {
    let cluster = Cluster::start("join").await;
    let admin = cluster.admin();
    let text = |text: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(text)
    };
    let secret = json!({
        "metadata": {"name": "bootstrap-token-abcdef"},
        "type": "bootstrap.kubernetes.io/token",
        "data": {
            "token-id": text("abcdef"),
            "token-secret": text("0123456789abcdef"),
            "usage-bootstrap-authentication": text("true"),
        },
    });
    let path = "/api/v1/namespaces/kube-system/secrets";
    assert_eq!(admin.send("POST", path, Some(&secret)).await.code, 201);
    let wrong = cluster.caller(None, Some("abcdef.0123456789abcdee".into()));
    assert_eq!(wrong.get("/api").await.code, 401);
    let newcomer = cluster.caller(None, Some("abcdef.0123456789abcdef".into()));
    let (request, key) = caller::signing_request("system:node:three", "system:nodes");
    let name = newcomer
        .request_certificate("join", &request, "kube-apiserver-client-kubelet")
        .await;
    let signed = admin.wait_for_certificate(&name).await;
    let node = cluster.caller(Some(caller::issued(&signed, &key)), None);
    let answer = node
        .send(
            "POST",
            "/api/v1/nodes",
            Some(&json!({"metadata": {"name": "three"}})),
        )
        .await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    let answer = node
        .send(
            "POST",
            "/api/v1/nodes",
            Some(&json!({"metadata": {"name": "four"}})),
        )
        .await;
    assert_eq!(answer.code, 403, "{}", answer.body);

    let (request, key) = caller::signing_request("system:node:three", "system:nodes");
    let name = node
        .request_certificate("renew", &request, "kube-apiserver-client-kubelet")
        .await;
    let signed = admin.wait_for_certificate(&name).await;
    let renewed = cluster.caller(Some(caller::issued(&signed, &key)), None);
    assert_eq!(renewed.get("/api/v1/nodes/three").await.code, 200);

    let (request, _) = caller::signing_request("system:node:four", "system:nodes");
    let object = caller::certificate_object("foreign", &request, "kube-apiserver-client-kubelet");
    let answer = node.send("POST", caller::REQUESTS, Some(&object)).await;
    assert_eq!(answer.code, 403, "in another node's name: {}", answer.body);
    cluster.stop().await;
}

#[tokio::test]
async fn a_restricted_namespace_refuses_and_a_warned_one_warns() {
    let cluster = Cluster::start("levels").await;
    let admin = cluster.admin();
    let label = |mode: &str| format!("pod-security.kubernetes.io/{mode}");
    for (name, mode) in [("strict", "enforce"), ("warned", "warn")] {
        let namespace = json!({"metadata": {"name": name, "labels": {label(mode): "restricted"}}});
        assert_eq!(
            admin
                .send("POST", "/api/v1/namespaces", Some(&namespace))
                .await
                .code,
            201
        );
        let account = json!({"metadata": {"name": "default"}});
        let path = format!("/api/v1/namespaces/{name}/serviceaccounts");
        let code = admin.send("POST", &path, Some(&account)).await.code;
        assert!([201, 409].contains(&code), "{code}");
    }
    let pod =
        json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "image": "x"}]}});
    let refused = admin
        .send("POST", "/api/v1/namespaces/strict/pods", Some(&pod))
        .await;
    assert_eq!(refused.code, 403);
    let message = refused.body["message"].as_str().unwrap();
    assert!(message.starts_with("pods \"a\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation"), "{message}");
    let warned = admin
        .send("POST", "/api/v1/namespaces/warned/pods", Some(&pod))
        .await;
    assert_eq!(warned.code, 201, "{}", warned.body);
    assert!(
        warned.head.contains("would violate PodSecurity"),
        "{}",
        warned.head
    );
    let wrong = json!({"metadata": {"name": "b", "labels": {label("enforce"): "strictest"}}});
    assert_eq!(
        admin
            .send("POST", "/api/v1/namespaces", Some(&wrong))
            .await
            .code,
        422
    );
    cluster.stop().await;
}
