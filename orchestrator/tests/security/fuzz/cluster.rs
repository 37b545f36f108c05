//! A server without controllers, and requests to it in this process.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use fairlead::api::{Api, Health};
use fairlead::config::ServerArgs;
use fairlead::controller::Controllers;
use fairlead::proto;
use fairlead::resource::{self, Resource};
use fairlead::server::Server;
use fairlead::tls::{CertificateIdentity, Peer, PeerCertificate};
use serde_json::{Value, json};

use super::seeds;

/// Every request is answered within this time.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A server without controllers: nothing changes but by requests.
pub(super) struct Cluster {
    pub(super) server: Server,
    pub(super) api: Arc<Api>,
    pub(super) directory: std::path::PathBuf,
}

#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) code: u16,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn value(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| String::from_utf8_lossy(&self.body).into())
    }
}

/// A request before it is sent, so that it can be shown.
pub(super) struct Request {
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) kind: &'static str,
    pub(super) body: Vec<u8>,
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
    pub(super) async fn start(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("fl-fuzz-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&directory));
        Self::open(directory).await
    }

    pub(super) async fn open(directory: std::path::PathBuf) -> Self {
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
    pub(super) async fn restart(self) -> Self {
        let Self {
            server,
            api,
            directory,
        } = self;
        drop(api);
        server.stop().await;
        Self::open(directory).await
    }

    pub(super) async fn stop(self) {
        self.server.stop().await;
        std::fs::remove_dir_all(self.directory).unwrap();
    }

    /// Sends a request as the admin; a panic, a hang or a 5xx fails the test.
    #[expect(clippy::panic, reason = "says which request it was")]
    pub(super) async fn send(&self, request: &Request) -> Answer {
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

    pub(super) async fn get(&self, path: &str) -> Answer {
        let path = path.to_owned();
        self.send(&Request {
            method: "GET",
            path,
            kind: "",
            body: Vec::new(),
        })
        .await
    }

    pub(super) async fn post(&self, collection: &str, object: &Value) -> Answer {
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
    pub(super) async fn restore(&self, seed: &seeds::Seed) {
        let answer = self.post(seed.collection, &seed.object).await;
        assert!(
            matches!(answer.code, 201 | 409 | 403),
            "{} {}",
            seed.collection,
            answer.value()
        );
    }

    /// What is read may be written back, and that changes nothing.
    pub(super) async fn check_stable(&self, path: &str, cause: &Request) {
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

pub(super) fn resource_of(collection: &str) -> &'static Resource {
    let parts: Vec<&str> = collection.split('/').collect();
    let plural = parts[parts.len() - 1];
    match parts[1] {
        "api" => resource::find("", "v1", plural).unwrap(),
        _ => resource::find(parts[2], parts[3], plural).unwrap(),
    }
}
