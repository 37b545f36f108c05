//! Bent requests of every kind through the whole API, in this process.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use fairlead::api::{Api, Health};
use fairlead::config::ServerArgs;
use fairlead::controller::Controllers;
use fairlead::proto;
use fairlead::resource::{self, Resource};
use fairlead::schema::schema;
use fairlead::server::Server;
use fairlead::tls::{CertificateIdentity, Peer, PeerCertificate};
use serde_json::{Value, json};

use super::{Cases, Random, bend, kinds, parsers::text, seeds};

/// Every request is answered within this time.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server without controllers: nothing changes but by requests.
struct Cluster {
    server: Server,
    api: Arc<Api>,
    directory: std::path::PathBuf,
}

#[derive(Debug, PartialEq)]
struct Answer {
    code: u16,
    body: Vec<u8>,
}

impl Answer {
    fn value(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| String::from_utf8_lossy(&self.body).into())
    }
}

/// A request before it is sent, so that it can be shown.
struct Request {
    method: &'static str,
    path: String,
    kind: &'static str,
    body: Vec<u8>,
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            method,
            path,
            kind,
            body,
        } = self;
        let body = match *kind {
            proto::MEDIA_TYPE => format!("{body:?}"),
            _ => String::from_utf8_lossy(body).into_owned(),
        };
        write!(f, "{method} {path} {kind} {body}")
    }
}

impl Cluster {
    async fn start(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("fl-fuzz-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&directory));
        Self::open(directory).await
    }

    async fn open(directory: std::path::PathBuf) -> Self {
        let args = ServerArgs {
            data_dir: Some(directory.clone()),
            listen: Some(([127, 0, 0, 1], 0).into()),
            disable_controllers: Some(Controllers::names().map(str::to_owned).collect()),
            ..ServerArgs::default()
        };
        let config = args.resolve().unwrap();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        // After a stop, what was aborted lets go of the store a little later.
        let server = loop {
            match Server::start(config.clone(), |_| {}).await {
                Ok(server) => break server,
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
            }
            tokio::task::yield_now().await;
        };
        let api = Arc::new(Api::new(
            Arc::clone(&server.registry),
            Arc::clone(&server.auth),
            Health::new(&[]),
            Arc::clone(&server.metrics),
            "127.0.0.1:1".to_owned(),
        ));
        let cluster = Self {
            server,
            api,
            directory,
        };
        // Pods need it, and its controller does not run.
        let account = json!({"metadata": {"name": "default"}});
        cluster
            .post("/api/v1/namespaces/default/serviceaccounts", &account)
            .await;
        cluster
    }

    /// Stops and starts on what is stored.
    async fn restart(self) -> Self {
        let Self {
            server,
            api,
            directory,
        } = self;
        drop(api);
        server.stop().await;
        Self::open(directory).await
    }

    async fn stop(self) {
        self.server.stop().await;
        std::fs::remove_dir_all(self.directory).unwrap();
    }

    /// Sends a request as the admin; a panic, a hang or a 5xx fails the test.
    #[expect(clippy::panic, reason = "says which request it was")]
    async fn send(&self, request: &Request) -> Answer {
        let peer = Peer {
            address: ([127, 0, 0, 1], 1).into(),
            certificate: PeerCertificate::Verified(Arc::new(CertificateIdentity {
                common_name: "boss".to_owned(),
                organizations: vec!["system:masters".to_owned()],
                fingerprint: String::new(),
                not_after: SystemTime::now() + Duration::from_hours(24),
            })),
        };
        let mut builder = http::Request::builder()
            .method(request.method)
            .uri(&request.path)
            .extension(peer);
        if !request.kind.is_empty() {
            builder = builder.header("Content-Type", request.kind);
        }
        // A path that HTTP itself does not take never comes to the API.
        let Ok(sent) = builder.body(Body::from(request.body.clone())) else {
            return Answer {
                code: 400,
                body: Vec::new(),
            };
        };
        let api = Arc::clone(&self.api);
        let watch = request.path.contains("watch");
        let answered = tokio::spawn(async move {
            let response = api.handle(sent).await;
            let code = response.status().as_u16();
            let body = if watch && code == 200 {
                Vec::new()
            } else {
                axum::body::to_bytes(response.into_body(), 64 << 20)
                    .await
                    .unwrap()
                    .to_vec()
            };
            Answer { code, body }
        });
        let answer = tokio::time::timeout(PATIENCE, answered)
            .await
            .unwrap_or_else(|_| panic!("no answer within {PATIENCE:?}: {request}"))
            .unwrap_or_else(|failure| panic!("{failure}: {request}"));
        if answer.code >= 500 || (answer.code >= 400 && request.method != "HEAD") {
            let status = answer.value();
            let told = ["reason", "message"]
                .iter()
                .all(|field| status[field].as_str().is_some_and(|text| !text.is_empty()));
            // A state that is yet to come is waited for, and that is how upstream says so.
            let future = answer.code == 504 && request.path.contains("resourceVersion");
            let right = (answer.code < 500 || future) && status["kind"] == "Status" && told;
            assert!(
                right && status["code"] == answer.code,
                "{request}: {} {status}",
                answer.code
            );
        }
        answer
    }

    async fn get(&self, path: &str) -> Answer {
        let path = path.to_owned();
        self.send(&Request {
            method: "GET",
            path,
            kind: "",
            body: Vec::new(),
        })
        .await
    }

    async fn post(&self, collection: &str, object: &Value) -> Answer {
        let (path, body) = (collection.to_owned(), object.to_string().into());
        self.send(&Request {
            method: "POST",
            path,
            kind: "application/json",
            body,
        })
        .await
    }

    /// Puts back an object that a case has removed.
    async fn restore(&self, seed: &seeds::Seed) {
        let answer = self.post(seed.collection, &seed.object).await;
        assert!(
            matches!(answer.code, 201 | 409 | 403),
            "{} {}",
            seed.collection,
            answer.value()
        );
    }

    /// What is read may be written back, and that changes nothing.
    async fn check_stable(&self, path: &str, cause: &Request) {
        let read = self.get(path).await;
        let object = read.value();
        if read.code != 200 || !object["metadata"]["deletionTimestamp"].is_null() {
            return;
        }
        let path = path.to_owned();
        let back = Request {
            method: "PUT",
            path,
            kind: "application/json",
            body: read.body.clone(),
        };
        let written = self.send(&back).await;
        assert_eq!(
            written.code,
            200,
            "{}: {back}\nafter {cause}",
            written.value()
        );
        let changed = written.value();
        assert_eq!(changed, object, "written back after {cause}");
    }
}

fn resource_of(collection: &str) -> &'static Resource {
    let parts: Vec<&str> = collection.split('/').collect();
    let plural = parts[parts.len() - 1];
    match parts[1] {
        "api" => resource::find("", "v1", plural).unwrap(),
        _ => resource::find(parts[2], parts[3], plural).unwrap(),
    }
}

/// A body in one of the encodings, now and then with bytes bent too.
fn encoded(
    random: &mut Random,
    resource: Option<&Resource>,
    value: &Value,
) -> (&'static str, Vec<u8>) {
    let text = value.to_string().into_bytes();
    let (kind, mut body) = match (random.below(4), resource) {
        (0, Some(resource)) => {
            let object = schema()
                .kind(resource.group, resource.version, resource.kind)
                .unwrap();
            let body = kinds::body(&resource.api_version(), resource.kind, object, value);
            (proto::MEDIA_TYPE, body)
        }
        (1, _) => ("application/yaml", text),
        _ => ("application/json", text),
    };
    if random.chance(25) {
        bend::bytes(random, &mut body, b"{\"a\":[{\"b\":null}]}");
    }
    (kind, body)
}

fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escape = |byte: u8| {
        if plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(escape).collect()
}

fn query(random: &mut Random) -> String {
    const NAMES: [&str; 20] = [
        "labelSelector",
        "fieldSelector",
        "resourceVersion",
        "resourceVersionMatch",
        "limit",
        "continue",
        "timeoutSeconds",
        "watch",
        "allowWatchBookmarks",
        "sendInitialEvents",
        "dryRun",
        "fieldManager",
        "fieldValidation",
        "force",
        "pretty",
        "gracePeriodSeconds",
        "propagationPolicy",
        "orphanDependents",
        "includeObject",
        "verbose",
    ];
    let pair = |random: &mut Random| {
        let value = match random.below(4) {
            0 => text(random),
            1 => (*random.pick(&[
                "All",
                "Strict",
                "Exact",
                "NotOlderThan",
                "true",
                "0",
                "1",
                "Orphan",
            ]))
            .to_owned(),
            2 => base64_token(random),
            _ => (*random.pick(&bend::WORDS)).to_owned(),
        };
        let value = if random.chance(5) {
            format!("%{}", value.len())
        } else {
            escaped(&value)
        };
        format!("{}={value}", random.pick(&NAMES))
    };
    let pairs: Vec<String> = (0..random.below(4)).map(|_| pair(random)).collect();
    pairs.join("&")
}

/// Something like a continue token.
fn base64_token(random: &mut Random) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let token = json!({"rv": bend::leaf(random), "after": bend::leaf(random)});
    URL_SAFE_NO_PAD.encode(token.to_string())
}

/// A request that changes an object at `path`, which now looks as `current`.
fn change(
    random: &mut Random,
    resource: &Resource,
    path: String,
    current: &Value,
    other: &Value,
) -> Request {
    let mut bent = current.clone();
    bend::nodes(random, &mut bent, other);
    if random.chance(50)
        && let Some(metadata) = bent.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.remove("resourceVersion");
    }
    let part = bend::part(random, current, other);
    let (method, kind, body) = match random.below(5) {
        0 => {
            let (kind, body) = encoded(random, Some(resource), &bent);
            ("PUT", kind, body)
        }
        1 => (
            "PATCH",
            "application/json-patch+json",
            bend::json_patch(random, current).to_string().into(),
        ),
        2 => (
            "PATCH",
            "application/merge-patch+json",
            part.to_string().into(),
        ),
        3 => (
            "PATCH",
            "application/strategic-merge-patch+json",
            part.to_string().into(),
        ),
        _ => {
            let mut part = part;
            if let Some(metadata) = part.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
            (
                "PATCH",
                "application/apply-patch+yaml",
                part.to_string().into(),
            )
        }
    };
    let manager = if kind.contains("apply") {
        "?fieldManager=fuzz&force=true"
    } else {
        ""
    };
    Request {
        method,
        path: path + manager,
        kind,
        body,
    }
}

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
