//! Reviews and aggregated roles, as their clients read them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::caller::{Caller, Cluster};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

async fn status(caller: &Caller, path: &str, spec: Value) -> Value {
    let answer = caller
        .send("POST", path, Some(&json!({"spec": spec})))
        .await;
    assert_eq!(answer.code, 201, "{path}: {}", answer.body);
    answer.body["status"].clone()
}

#[tokio::test]
async fn a_token_review_says_whose_token_and_for_whom() {
    let cluster = Cluster::start("token-review").await;
    let admin = cluster.admin();
    let account = json!({"metadata": {"name": "robot"}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    assert_eq!(admin.send("POST", accounts, Some(&account)).await.code, 201);
    let path = format!("{accounts}/robot/token");
    let asked = json!({"audiences": ["vault", ISSUER], "expirationSeconds": 600});
    let given = status(&admin, &path, asked).await;
    let token = given["token"].as_str().unwrap();
    assert!(
        given["expirationTimestamp"]
            .as_str()
            .unwrap()
            .ends_with('Z')
    );

    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let known = status(
        &admin,
        reviews,
        json!({"token": token, "audiences": ["vault", "other"]}),
    )
    .await;
    assert_eq!(known["authenticated"], true);
    assert_eq!(known["audiences"], json!(["vault"]));
    assert_eq!(
        known["user"]["username"],
        "system:serviceaccount:default:robot"
    );
    let plain = status(&admin, reviews, json!({"token": token})).await;
    assert_eq!(plain["audiences"], json!([ISSUER]));
    for (token, audience) in [(token, "other"), ("nonsense", ISSUER), ("a.b.c", ISSUER)] {
        let spec = json!({"token": token, "audiences": [audience]});
        let unknown = status(&admin, reviews, spec).await;
        assert_eq!(unknown["authenticated"], false);
        assert!(!unknown["error"].as_str().unwrap().is_empty());
    }
    let elsewhere = json!({"spec": {"audiences": ["vault"]}});
    let answer = admin.send("POST", &path, Some(&elsewhere)).await;
    let token = answer.body["status"]["token"].as_str().unwrap().to_owned();
    assert_eq!(
        cluster.caller(None, Some(token)).get("/api").await.code,
        401,
        "not for this server"
    );
    cluster.stop().await;
}

#[tokio::test]
async fn access_reviews_answer_for_oneself_and_for_others() {
    let cluster = Cluster::start("access-review").await;
    let admin = cluster.admin();
    let bob = cluster.user("bob");
    let group = "/apis/authorization.k8s.io/v1";
    let pods =
        |namespace: &str| json!({"verb": "list", "resource": "pods", "namespace": namespace});
    let binding = json!({
        "metadata": {"name": "bob"},
        "roleRef": {"kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "name": "bob"}],
    });
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    assert_eq!(admin.send("POST", bindings, Some(&binding)).await.code, 201);
    for (namespace, allowed) in [("default", true), ("kube-system", false), ("", false)] {
        let own = json!({"resourceAttributes": pods(namespace)});
        let path = format!("{group}/selfsubjectaccessreviews");
        assert_eq!(
            status(&bob, &path, own).await["allowed"],
            allowed,
            "{namespace}"
        );
        let named = json!({"user": "bob", "resourceAttributes": pods(namespace)});
        let path = format!("{group}/subjectaccessreviews");
        assert_eq!(
            status(&admin, &path, named).await["allowed"],
            allowed,
            "{namespace}"
        );
    }
    let path = format!("{group}/namespaces/default/localsubjectaccessreviews");
    let local = json!({"user": "bob", "resourceAttributes": pods("default")});
    let answer = status(&admin, &path, local).await;
    assert_eq!(answer["allowed"], true);
    assert_eq!(
        answer["reason"],
        r#"RBAC: allowed by RoleBinding "bob/default" of ClusterRole "view" to User "bob""#
    );
    let crossed = json!({"spec": {"user": "bob", "resourceAttributes": pods("kube-system")}});
    assert_eq!(admin.send("POST", &path, Some(&crossed)).await.code, 422);
    let neither = json!({"spec": {"user": "bob"}});
    let path = format!("{group}/subjectaccessreviews");
    assert_eq!(admin.send("POST", &path, Some(&neither)).await.code, 422);

    let path = format!("{group}/selfsubjectrulesreviews");
    let rules = status(&bob, &path, json!({"namespace": "default"})).await;
    assert_eq!(rules["incomplete"], false);
    let lists = |rule: &Value| {
        let has = |field: &str, what: &str| {
            rule[field]
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one == what))
        };
        has("resources", "pods") && has("verbs", "list")
    };
    assert!(
        rules["resourceRules"].as_array().unwrap().iter().any(lists),
        "{rules}"
    );
    let rules = status(&bob, &path, json!({"namespace": "kube-system"})).await;
    assert!(
        !rules["resourceRules"].as_array().unwrap().iter().any(lists),
        "{rules}"
    );
    cluster.stop().await;
}

#[tokio::test]
async fn a_labelled_role_becomes_part_of_view_edit_and_admin() {
    let cluster = Cluster::start("aggregation").await;
    let admin = cluster.admin();
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let role = json!({
        "metadata": {
            "name": "things-viewer",
            "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"},
        },
        "rules": [{"apiGroups": ["acme.com"], "resources": ["things"], "verbs": ["get"]}],
    });
    assert_eq!(admin.send("POST", roles, Some(&role)).await.code, 201);
    for whole in ["view", "edit", "admin"] {
        wait(&admin, &format!("{roles}/{whole}"), true).await;
    }
    assert_eq!(
        admin
            .send("DELETE", &format!("{roles}/things-viewer"), None)
            .await
            .code,
        200
    );
    for whole in ["view", "edit", "admin"] {
        wait(&admin, &format!("{roles}/{whole}"), false).await;
    }
    cluster.stop().await;
}

/// Waits until a role has, or has not, the rule about things.
async fn wait(admin: &Caller, path: &str, wanted: bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let role = admin.get(path).await.body;
        if role["rules"].to_string().contains("acme.com") == wanted {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{path}: {role}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
