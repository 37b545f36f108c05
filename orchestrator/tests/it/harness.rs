//! A server of one's own, and a small client for it.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use clap::Parser;
use fairlead::{
    auth::User,
    config::{ServerArgs, ServerConfig},
    registry::client::Client,
    resource::core::SERVICE_ACCOUNT,
    server::Server,
};

/// A directory that goes when dropped.
#[derive(Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("fl-api-{name}-{}-{number}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    server: ServerArgs,
}

/// The settings of a server that keeps to itself.
pub(crate) fn config(data: &Path) -> ServerConfig {
    let data = data.display().to_string();
    let flags = ["test", "--listen", "127.0.0.1:0", "--data-dir", &data];
    Flags::parse_from(flags).server.resolve().unwrap()
}

/// A server in this process.
pub(crate) struct Cluster {
    pub(crate) folder: Folder,
    pub(crate) server: Server,
}

impl Cluster {
    pub(crate) async fn start(name: &str) -> Self {
        let folder = Folder::new(name);
        let server = Server::start(config(&folder.0), |_| {}).await.unwrap();
        let cluster = Self { folder, server };
        // Pods need it; its controller may be faster.
        let account = serde_json::json!({"metadata": {"name": "default"}});
        match cluster
            .client()
            .create_value(&SERVICE_ACCOUNT, "default", account)
            .await
        {
            Ok(_) => {}
            Err(status) => assert_eq!(status.reason, "AlreadyExists"),
        }
        cluster
    }

    /// The API of this process, as a cluster admin.
    pub(crate) fn client(&self) -> Client {
        let registry = std::sync::Arc::clone(&self.server.registry);
        Client::new(
            registry,
            User::component("test", &["system:masters"]),
            "test",
        )
    }

    /// A kube-rs client over TLS, from the kubeconfig.
    pub(crate) async fn kube(&self) -> kube::Client {
        let config = kube::config::Kubeconfig::read_from(&self.server.kubeconfig).unwrap();
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(config, &options)
            .await
            .unwrap();
        kube::Client::try_from(config).unwrap()
    }

    /// Sends one request over TLS as the admin; the status code and the body.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: impl Into<Vec<u8>>,
    ) -> (u16, serde_json::Value) {
        let headers: &[_] = if kind.is_empty() {
            &[]
        } else {
            &[("Content-Type", kind)]
        };
        self.send_with(method, path, headers, body).await
    }

    /// As [`Self::send`], with these headers.
    pub(crate) async fn send_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> (u16, serde_json::Value) {
        let mut request = http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(kube::client::Body::from(body.into())).unwrap();
        let response = self.kube().await.send(request).await.unwrap();
        let code = response.status().as_u16();
        let bytes = response.into_body().collect_bytes().await.unwrap();
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
        (code, value)
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, serde_json::Value) {
        self.send("GET", path, "", Vec::new()).await
    }

    pub(crate) async fn post(
        &self,
        path: &str,
        body: &serde_json::Value,
    ) -> (u16, serde_json::Value) {
        self.send("POST", path, "application/json", body.to_string())
            .await
    }
}

/// Waits until `done` says so.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(
            Instant::now() < deadline,
            "{what} did not happen within 30 s"
        );
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
