//! The parts of objects that controllers look at.
//!
//! Decoding only these from the cache's bytes costs a fraction of a typed
//! object, which counts where thousands of pods are looked at.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::Key;
use crate::{
    cache::{Entry, Selector},
    resource::Resource,
    status::Status,
};

/// Metadata.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Name.
    pub name: String,
    /// Namespace, empty if cluster-scoped.
    pub namespace: String,
    /// UID.
    pub uid: String,
    /// Counts changes of the desired state.
    pub generation: i64,
    /// Birth.
    pub creation_timestamp: Option<Time>,
    /// When it must be gone.
    pub deletion_timestamp: Option<Time>,
    /// Seconds between the deletion and that.
    pub deletion_grace_period_seconds: Option<i64>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Owners.
    pub owner_references: Vec<OwnerReference>,
    /// What holds it when deleted.
    pub finalizers: Vec<String>,
}

impl Meta {
    /// Whether its deletion has begun.
    pub fn deleting(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// Whether a finalizer is on it.
    pub fn has_finalizer(&self, name: &str) -> bool {
        self.finalizers.iter().any(|f| f == name)
    }

    /// The owner that controls it.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references
            .iter()
            .find(|owner| owner.controller == Some(true))
    }

    /// Birth, or the beginning of time.
    pub fn born(&self) -> Timestamp {
        self.creation_timestamp
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0)
    }

    /// An annotation that is a number.
    pub fn number(&self, annotation: &str) -> Option<i64> {
        self.annotations.get(annotation)?.parse().ok()
    }
}

/// Any object's metadata.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Head {
    /// Metadata.
    pub metadata: Meta,
}

/// A condition of any status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Which.
    pub r#type: String,
    /// `True`, `False`, `Unknown`.
    pub status: String,
    /// For programs.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Since when.
    pub last_transition_time: Option<Time>,
    /// When it was last looked at, where a kind has that.
    pub last_update_time: Option<Time>,
}

/// A pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Metadata.
    pub metadata: Meta,
    /// Desired state.
    pub spec: PodSpec,
    /// Reported state.
    pub status: PodStatus,
}

/// Of a pod's desired state.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Where it runs.
    pub node_name: String,
    /// `Always`, `OnFailure`, `Never`.
    pub restart_policy: String,
    /// DNS name below its subdomain.
    pub hostname: String,
    /// Headless service that names it.
    pub subdomain: String,
    /// Where it wants to be, as it is written.
    pub affinity: Value,
}

/// Of a pod's reported state.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed`, `Unknown`.
    pub phase: String,
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// Addresses.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    /// Containers.
    pub container_statuses: Vec<ContainerStatus>,
}

/// One address of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PodIp {
    /// The address.
    #[serde(default)]
    pub ip: String,
}

/// Of a container's reported state.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// Starts after the first.
    pub restart_count: i64,
}

impl Pod {
    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Neither ended nor on its way out.
    pub fn is_active(&self) -> bool {
        !self.is_over() && !self.metadata.deleting()
    }

    /// The condition of this type.
    pub fn condition(&self, r#type: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|c| c.r#type == r#type)
    }

    /// Since when it has been ready, if it is.
    pub fn ready_since(&self) -> Option<Timestamp> {
        let ready = self.condition("Ready").filter(|c| c.status == "True")?;
        let since = ready.last_transition_time.as_ref();
        Some(since.map_or(Timestamp::UNIX_EPOCH, |time| time.0))
    }

    /// Whether it is ready.
    pub fn is_ready(&self) -> bool {
        self.ready_since().is_some()
    }

    /// Whether it has been ready for `seconds`.
    pub fn is_available(&self, seconds: i64, now: Timestamp) -> bool {
        self.ready_since()
            .is_some_and(|since| seconds == 0 || now.as_second() - since.as_second() >= seconds)
    }

    /// Container starts after the first.
    pub fn restarts(&self) -> i64 {
        let containers = self.status.container_statuses.iter();
        containers.map(|c| c.restart_count).sum()
    }
}

/// Decodes an entry.
///
/// # Errors
/// 500 if the object does not fit, which the schema rules out.
pub fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, Status> {
    entry
        .decode()
        .map_err(|error| Status::internal(format!("{}: {error}", entry.key)))
}

/// The owner reference that makes `owner` the controller.
pub fn controlled_by(resource: &Resource, owner: &Meta) -> Value {
    json!({
        "apiVersion": resource.api_version(),
        "kind": resource.kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// The key of the controller of an object, if it is of this kind.
pub fn controller_key(entry: &Entry, resource: &Resource) -> Option<Key> {
    entry.controller_uid()?;
    let head: Head = entry.decode().ok()?;
    let owner = head.metadata.controller()?;
    let group = owner.api_version.split_once('/').map_or("", |(g, _)| g);
    (owner.kind == resource.kind && group == resource.group)
        .then(|| resource.object_key(entry.namespace(), &owner.name).into())
}

/// Keys of the objects of `resource` whose selector takes an uncontrolled
/// entry: who might adopt it.
pub fn adopters(
    client: &crate::registry::client::Client,
    resource: &'static Resource,
    entry: &Entry,
) -> Vec<Key> {
    if entry.controller.is_some() {
        return Vec::new();
    }
    let query = crate::cache::Query {
        namespace: Some(entry.namespace().to_owned()),
        ..crate::cache::Query::default()
    };
    let Ok(page) = client.cache_of(resource).list(&query) else {
        return Vec::new();
    };
    let candidates = page.entries.into_iter();
    candidates
        .filter(|owner| {
            let Ok(owner) = owner.decode::<Selecting>() else {
                return false;
            };
            let selector = Selector::from_object(&owner.spec.selector);
            !selector.is_everything() && selector.matches_labels(|key| entry.label(key))
        })
        .map(|owner| std::sync::Arc::clone(&owner.key))
        .collect()
}

#[derive(Deserialize)]
struct Selecting {
    spec: SelectingSpec,
}

#[derive(Deserialize)]
struct SelectingSpec {
    #[serde(default)]
    selector: Value,
}

/// A refusal because the namespace is going: nothing to try again.
pub fn is_ending(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .into_iter()
        .any(|cause| cause.reason == "NamespaceTerminating")
}

/// Splits `namespace/name`; a bare name has no namespace.
pub fn split(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

/// An entry's list of all objects of one namespace.
///
/// # Errors
/// 410 never in practice.
pub fn list(
    client: &crate::registry::client::Client,
    resource: &Resource,
    namespace: &str,
) -> Result<Vec<std::sync::Arc<Entry>>, Status> {
    let query = crate::cache::Query {
        namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
        ..crate::cache::Query::default()
    };
    let page = client.cache_of(resource).list(&query);
    page.map(|page| page.entries)
        .map_err(|error| Status::expired(error.to_string()))
}

/// A resource that this server serves.
///
/// # Panics
/// If it is not; every name in the controllers is tried by a test.
pub fn served(group: &str, plural: &str) -> &'static Resource {
    crate::resource::find(group, "v1", plural)
        .unwrap_or_else(|| unreachable!("{plural}.{group} is not served"))
}
