//! Hollow nodes: many nodes and no containers, for tests at scale.
//!
//! Each registers, renews its Lease and moves the pods that are bound to it
//! along: running and ready after a delay, succeeded after another if they do
//! not restart, gone when they are deleted. They talk to any API server over
//! TLS. One connection and one watch serve all nodes; requests under way are
//! bounded by [`WIDTH`], timers by the pods that are bound.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

mod http;
mod kubeconfig;
mod node;
mod pod;

pub use http::{Client, HttpError, Lines};
pub use kubeconfig::{Kubeconfig, KubeconfigError};

use node::Node;
use pod::{Pod, Step};

/// Requests under way at a time.
const WIDTH: usize = 128;
/// A Lease is renewed this often; it counts for four times as long.
const RENEWAL: Duration = Duration::from_secs(10);
/// The node's status is renewed this often.
const HEARTBEAT: Duration = Duration::from_mins(5);
/// Wait before a lost watch is opened again.
const REOPEN: Duration = Duration::from_secs(1);
/// Hollow nodes that one address plan can hold.
const NODES_MAX: u32 = 16_000;

/// What `fairlead hollow` was told.
#[derive(Args, Clone, Debug)]
pub struct HollowArgs {
    /// How many nodes.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=i64::from(NODES_MAX)))]
    pub nodes: u32,
    /// Kubeconfig of a user who may act for all nodes.
    #[arg(
        long,
        env = "KUBECONFIG",
        default_value = "/var/lib/fairlead/admin.kubeconfig"
    )]
    pub kubeconfig: PathBuf,
    /// What the nodes' names begin with; a number follows.
    #[arg(long, default_value = "hollow-")]
    pub name_prefix: String,
    /// From the binding of a pod to its readiness, as in 500ms or 2s.
    #[arg(long, default_value = "200ms", value_parser = duration)]
    pub pod_start_delay: Duration,
    /// How long pods run that are not to be restarted.
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub pod_run_time: Duration,
    /// From a pod's deletion to its end; never longer than its grace period.
    #[arg(long, default_value = "100ms", value_parser = duration)]
    pub pod_stop_delay: Duration,
    /// CPUs of each node.
    #[arg(long, default_value = "32")]
    pub cpu: String,
    /// Memory of each node.
    #[arg(long, default_value = "128Gi")]
    pub memory: String,
    /// Pods that each node takes.
    #[arg(long, default_value_t = 110)]
    pub pods: u32,
    /// Zones that the nodes are spread over.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub zones: u32,
}

/// Reads `500ms`, `2s`, `1m`, `1h`.
///
/// # Errors
/// What is wrong and how to write it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_not_a_number| format!("{text:?} is no duration; hint: write 500ms, 2s or 1m"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        _ => Err(format!(
            "{text:?} has no unit; hint: write 500ms, 2s, 1m or 1h"
        )),
    }
}

/// Why hollow nodes do not run.
#[derive(Debug, thiserror::Error)]
pub enum HollowError {
    /// The kubeconfig cannot be used.
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// The server cannot be reached or refuses.
    #[error(transparent)]
    Http(#[from] HttpError),
}

/// Running hollow nodes.
#[derive(Debug)]
pub struct Hollow {
    args: HollowArgs,
    client: Client,
    width: Semaphore,
    nodes: Mutex<HashMap<String, Node>>,
    pods: Mutex<HashMap<String, Pod>>,
}

impl Hollow {
    /// Reads the kubeconfig and registers all nodes.
    ///
    /// # Errors
    /// [`HollowError`] naming the file or the refusal.
    pub async fn start(args: HollowArgs) -> Result<Arc<Self>, HollowError> {
        let config = Kubeconfig::read(&args.kubeconfig)?;
        let client = Client::new(&config)?;
        let nodes = (0..args.nodes).map(|index| Node::new(&args, index));
        let hollow = Arc::new(Self {
            nodes: Mutex::new(nodes.map(|node| (node.name.clone(), node)).collect()),
            pods: Mutex::default(),
            width: Semaphore::new(WIDTH),
            client,
            args,
        });
        let mut registering = tokio::task::JoinSet::new();
        for name in hollow.names() {
            let hollow = Arc::clone(&hollow);
            registering.spawn(async move { hollow.register(&name).await });
        }
        while let Some(result) = registering.join_next().await {
            result.expect("registering does not panic")?;
        }
        Ok(hollow)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.lock_nodes().keys().cloned().collect();
        names.sort();
        names
    }

    fn lock_nodes(&self) -> std::sync::MutexGuard<'_, HashMap<String, Node>> {
        self.nodes.lock().expect("no holder panics")
    }

    fn lock_pods(&self) -> std::sync::MutexGuard<'_, HashMap<String, Pod>> {
        self.pods.lock().expect("no holder panics")
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Value, HttpError> {
        let _turn = self
            .width
            .acquire()
            .await
            .expect("the semaphore is never closed");
        self.client.call(method, path, body).await
    }

    async fn create(&self, path: &str, object: &Value) -> Result<(), HttpError> {
        match self
            .call("POST", path, Some(("application/json", object)))
            .await
        {
            Err(HttpError::Refused { code: 409, .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn register(&self, name: &str) -> Result<(), HttpError> {
        let object = {
            let nodes = self.lock_nodes();
            let node = nodes.get(name).expect("a hollow node stays");
            node.object(&self.args)
        };
        self.create("/api/v1/nodes", &object).await?;
        self.beat(name).await?;
        self.lease(name).await
    }

    async fn lease(&self, name: &str) -> Result<(), HttpError> {
        let lease = {
            let nodes = self.lock_nodes();
            nodes.get(name).expect("a hollow node stays").lease()
        };
        let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        self.create(path, &lease).await
    }

    async fn beat(&self, name: &str) -> Result<(), HttpError> {
        let status = {
            let nodes = self.lock_nodes();
            nodes
                .get(name)
                .expect("a hollow node stays")
                .status(&self.args)
        };
        let path = format!("/api/v1/nodes/{name}/status");
        let patch = ("application/strategic-merge-patch+json", &status);
        self.call("PATCH", &path, Some(patch)).await.map(drop)
    }

    async fn renew(&self, name: &str) {
        let now = Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
            .to_string();
        let patch = json!({"spec": {"renewTime": now}});
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}");
        let renewed = self
            .call(
                "PATCH",
                &path,
                Some(("application/merge-patch+json", &patch)),
            )
            .await;
        let renewed = match renewed {
            // Leases of nodes do not outlive the server's process.
            Err(HttpError::Refused { code: 404, .. }) => self.lease(name).await,
            other => other.map(drop),
        };
        if let Err(error) = renewed {
            tracing::warn!(node = name, %error, "a lease was not renewed");
        }
    }

    /// Acts as the nodes until dropped.
    pub async fn run(self: Arc<Self>) {
        tokio::join!(
            Arc::clone(&self).keep(RENEWAL, false),
            Arc::clone(&self).keep(HEARTBEAT, true),
            self.follow(),
        );
    }

    /// Renews every node's Lease, or status, once per period, evenly spread.
    async fn keep(self: Arc<Self>, period: Duration, status: bool) {
        let names = self.names();
        let count = u32::try_from(names.len()).unwrap_or(u32::MAX).max(1);
        let mut ticks = tokio::time::interval(period / count);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            for name in &names {
                ticks.tick().await;
                if status {
                    if let Err(error) = self.beat(name).await {
                        tracing::warn!(node = %name, %error, "a heartbeat was not taken");
                    }
                } else {
                    self.renew(name).await;
                }
            }
        }
    }

    /// Follows the pods, again and again.
    async fn follow(self: Arc<Self>) {
        loop {
            if let Err(error) = self.follow_once().await {
                tracing::info!(%error, "the watch of pods has ended and is opened again");
            }
            tokio::time::sleep(REOPEN).await;
        }
    }

    async fn follow_once(self: &Arc<Self>) -> Result<(), HttpError> {
        let path = "/api/v1/pods?fieldSelector=spec.nodeName!%3D";
        let mut list = self.call("GET", path, None).await?;
        let mut seen = std::collections::HashSet::new();
        if let Value::Array(pods) = list["items"].take() {
            for pod in pods {
                seen.insert(pod::key(&pod));
                self.saw(pod);
            }
        }
        let version = list["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default();
        let gone: Vec<String> = {
            let pods = self.lock_pods();
            pods.keys()
                .filter(|key| !seen.contains(*key))
                .cloned()
                .collect()
        };
        for key in gone {
            self.forget(&key);
        }
        let path = format!("{path}&watch=true&allowWatchBookmarks=true&resourceVersion={version}");
        let mut lines = self.client.watch(&path).await?;
        while let Some(mut event) = lines.next().await? {
            match event["type"].as_str().unwrap_or_default() {
                "ADDED" | "MODIFIED" => self.saw(event["object"].take()),
                "DELETED" => self.forget(&pod::key(&event["object"])),
                "ERROR" => {
                    let code = event["object"]["code"].as_u64().unwrap_or(500);
                    return Err(HttpError::Refused {
                        code: u16::try_from(code).unwrap_or(500),
                        message: event["object"]["message"].to_string(),
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn forget(&self, key: &str) {
        let pod = self.lock_pods().remove(key);
        if let Some(pod) = pod
            && let Some(node) = self.lock_nodes().get_mut(&pod.node)
        {
            node.free(pod.slot);
        }
    }

    /// Starts what comes next for a pod, unless that is under way.
    fn saw(self: &Arc<Self>, object: Value) {
        let name = object["spec"]["nodeName"].as_str().unwrap_or_default();
        let key = pod::key(&object);
        let step = {
            let mut pods = self.lock_pods();
            let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
            if pods.get(&key).is_some_and(|pod| pod.uid != uid) {
                drop(pods);
                self.forget(&key);
                pods = self.lock_pods();
            }
            if !pods.contains_key(&key) {
                let mut nodes = self.lock_nodes();
                let Some(node) = nodes.get_mut(name) else {
                    return;
                };
                let slot = node.take();
                pods.insert(key.clone(), Pod::new(&object, slot));
            }
            let Some(pod) = pods.get_mut(&key) else {
                return;
            };
            pod.next(&object)
        };
        if let Some(step) = step {
            tokio::spawn(Arc::clone(self).act(key, step, object));
        }
    }

    async fn act(self: Arc<Self>, key: String, step: Step, object: Value) {
        tokio::time::sleep(step.delay(&self.args, &object)).await;
        let address = {
            let pods = self.lock_pods();
            let Some(pod) = pods.get(&key) else {
                return;
            };
            // A pod that is to go takes no other step.
            if step != Step::Stop && pod.stopping {
                return;
            }
            let nodes = self.lock_nodes();
            nodes
                .get(&pod.node)
                .map(|node| (node.address(), node.pod_address(pod.slot)))
        };
        let Some((host, own)) = address else {
            return;
        };
        let path = pod::path(&object);
        let mut result = Ok(Value::Null);
        // As a kubelet does: a pod's end is told before the pod goes.
        if !pod::has_ended(&object) {
            let patch = step.status(&object, &host, &own);
            let patch = ("application/strategic-merge-patch+json", &patch);
            let path = format!("{path}/status");
            result = self.call("PATCH", &path, Some(patch)).await;
        }
        if step == Step::Stop && result.is_ok() {
            let uid = &object["metadata"]["uid"];
            let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
            result = self
                .call("DELETE", &path, Some(("application/json", &options)))
                .await;
        }
        match result {
            Ok(_)
            | Err(HttpError::Refused {
                code: 404 | 409, ..
            }) => {}
            Err(error) => {
                tracing::warn!(pod = %key, %error, "a pod did not move on and is tried again");
                if let Some(pod) = self.lock_pods().get_mut(&key) {
                    pod.undo(step);
                }
                tokio::time::sleep(REOPEN).await;
                Box::pin(self.retry(key, object)).await;
            }
        }
    }

    async fn retry(self: Arc<Self>, key: String, object: Value) {
        let step = self
            .lock_pods()
            .get_mut(&key)
            .and_then(|pod| pod.next(&object));
        if let Some(step) = step {
            tokio::spawn(self.act_boxed(key, step, object));
        }
        tokio::task::yield_now().await;
    }

    fn act_boxed(
        self: Arc<Self>,
        key: String,
        step: Step,
        object: Value,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.act(key, step, object))
    }
}
