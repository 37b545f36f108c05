//! The objects every cluster has from its first second.

use serde_json::{Value, json};

use crate::{
    config::ServerConfig,
    registry::client::Client,
    resource::{Resource, core::NAMESPACE},
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
    Ok(made)
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
