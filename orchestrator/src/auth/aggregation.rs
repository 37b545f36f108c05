//! Aggregated ClusterRoles: their rules are those of the ClusterRoles that their labels select.

use serde::Deserialize;
use serde_json::{Value, json};

use super::rule::{Rule, unite};
use crate::cache::{Query, Selector};
use crate::registry::{Target, client::Client};
use crate::resource::rbac::CLUSTER_ROLE;
use crate::status::Status;

/// Unites until nothing changes any more; `admin` takes in `edit`, which takes in `view`.
pub async fn settle(client: &Client) -> Result<(), Status> {
    while aggregate_all(client).await? > 0 {}
    Ok(())
}

/// Follows ClusterRoles and rewrites the aggregated ones; runs until dropped.
pub async fn follow(client: Client) {
    loop {
        let (_, mut watcher) = match client.informer_of(&CLUSTER_ROLE, Selector::default()) {
            Ok(informer) => informer,
            Err(error) => {
                tracing::error!(%error, "cannot follow ClusterRoles");
                return;
            }
        };
        loop {
            if let Err(error) = aggregate_all(&client).await {
                tracing::warn!(%error, "an aggregated ClusterRole could not be written");
            }
            // Fallen behind the ring: begin again from the present state.
            if watcher.next().await.is_err() {
                break;
            }
        }
    }
}

/// Gives every aggregated ClusterRole the rules of its parts; returns how many changed.
async fn aggregate_all(client: &Client) -> Result<usize, Status> {
    let page = client.cache_of(&CLUSTER_ROLE).list(&Query::default());
    let page = page.map_err(|error| Status::expired(error.to_string()))?;
    let mut changed = 0;
    for entry in &page.entries {
        let Ok(Aggregated {
            aggregation_rule: Some(rule),
            rules,
        }) = entry.decode()
        else {
            continue;
        };
        let selectors: Vec<Selector> = rule
            .cluster_role_selectors
            .iter()
            .map(Selector::from_object)
            .collect();
        let parts = page.entries.iter().filter(|part| {
            part.key != entry.key && selectors.iter().any(|selector| selector.matches(part))
        });
        let parts = parts.filter_map(|part| part.decode::<Aggregated>().ok()?.rules);
        let united = unite(parts);
        if rules.unwrap_or_default() == united {
            continue;
        }
        let change = |stored: &Value| {
            let mut new = stored.clone();
            new["rules"] = json!(united);
            Ok(new)
        };
        client
            .change(Target::object(&CLUSTER_ROLE, "", entry.name()), &change)
            .await?;
        changed += 1;
    }
    Ok(changed)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Aggregated {
    #[serde(default)]
    aggregation_rule: Option<AggregationRule>,
    #[serde(default)]
    rules: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AggregationRule {
    #[serde(default)]
    cluster_role_selectors: Vec<Value>,
}
