//! The objects every cluster has from its first second.

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    admission::storage::DEFAULT_CLASS,
    auth::{
        aggregation,
        defaults::{self, DefaultBinding},
    },
    config::ServerConfig,
    controller::storage::local_path::PROVISIONER_NAME,
    registry::{DeleteOptions, Target, client::Client},
    resource::{
        Resource,
        core::NAMESPACE,
        rbac::{CLUSTER_ROLE, CLUSTER_ROLE_BINDING, ROLE},
        storage::STORAGE_CLASS,
    },
    status::Status,
};

/// Namespaces that are always there.
const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// Makes what is missing; returns how many objects that were.
///
/// # Errors
/// The refusal of an object, which would be a mistake in here.
pub async fn objects(client: &Client, _config: &ServerConfig) -> Result<usize, Status> {
    let mut made = 0;
    for name in NAMESPACES {
        let namespace = json!({"metadata": {"name": name}});
        made += usize::from(ensure(client, &NAMESPACE, "", namespace).await?);
    }
    made += usize::from(ensure(client, &STORAGE_CLASS, "", local_path()).await?);
    // Side by side, so that they share the disk's flushes.
    let mut tasks = JoinSet::new();
    for role in defaults::roles() {
        let client = client.clone();
        tasks.spawn(async move {
            let resource = if role.namespace.is_empty() {
                &CLUSTER_ROLE
            } else {
                &ROLE
            };
            settle(&client, resource, role.object(), |stored| {
                role.amended(stored)
            })
            .await
        });
    }
    for binding in defaults::bindings() {
        let client = client.clone();
        tasks.spawn(async move { bind(&client, &binding).await });
    }
    while let Some(result) = tasks.join_next().await {
        made += result.map_err(|error| Status::internal(error.to_string()))??;
    }
    aggregation::settle(client).await?;
    Ok(made)
}

/// The class that claims get unless they name one: directories of the nodes.
fn local_path() -> Value {
    json!({
        "metadata": {"name": "local-path", "annotations": {DEFAULT_CLASS: "true"}},
        "provisioner": PROVISIONER_NAME,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    })
}

async fn bind(client: &Client, binding: &DefaultBinding) -> Result<usize, Status> {
    let object = binding.object();
    let name = object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let stored = client.cache_of(&CLUSTER_ROLE_BINDING).get(&name);
    if stored.is_some_and(|entry| binding.grants_another_role(&entry.value())) {
        // What a binding grants cannot be changed, only made anew.
        client
            .delete_of(&CLUSTER_ROLE_BINDING, "", &name, &DeleteOptions::default())
            .await?;
    }
    settle(client, &CLUSTER_ROLE_BINDING, object, |stored| {
        binding.amended(stored)
    })
    .await
}

/// Creates a default object, or adds to it what a newer release has.
async fn settle(
    client: &Client,
    resource: &'static Resource,
    object: Value,
    amended: impl Fn(&Value) -> Option<Value> + Send + Sync,
) -> Result<usize, Status> {
    let text = |field: &str| {
        object["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let (namespace, name) = (text("namespace"), text("name"));
    let Some(entry) = client
        .cache_of(resource)
        .get(&resource.object_key(&namespace, &name))
    else {
        return ensure(client, resource, &namespace, object)
            .await
            .map(usize::from);
    };
    if amended(&entry.value()).is_none() {
        return Ok(0);
    }
    let target = Target::object(resource, &namespace, &name);
    let change = |stored: &Value| Ok(amended(stored).unwrap_or_else(|| stored.clone()));
    client.change(target, &change).await?;
    Ok(1)
}

/// Creates an object unless it is there.
async fn ensure(
    client: &Client,
    resource: &'static Resource,
    namespace: &str,
    object: Value,
) -> Result<bool, Status> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    if client
        .cache_of(resource)
        .get(&resource.object_key(namespace, name))
        .is_some()
    {
        return Ok(false);
    }
    match client.create_value(resource, namespace, object).await {
        Ok(_) => Ok(true),
        Err(status) if status.is("AlreadyExists") => Ok(false),
        Err(status) => Err(status),
    }
}
