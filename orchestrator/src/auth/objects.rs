//! The live objects that authentication and authorization look at, read from the watch cache.
//!
//! Nothing runs in the background: an index catches up with the cache when it is asked, so a
//! decision never stands on less than what has been acknowledged, and a revoked right is gone
//! with the acknowledgement of its deletion.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use jiff::Timestamp;
use serde::Deserialize;

use super::claims::Alive;
use super::rbac::{GROUP, Kind, Rbac};
use crate::cache::{Cache, Entry, EventKind, Query, ResourceCache, Selector, Watcher};
use crate::resource;

/// A follower of one resource that catches up when asked.
#[derive(Debug)]
pub struct Mirror {
    cache: Arc<ResourceCache>,
    watcher: Option<Watcher>,
}

/// What a [`Mirror`] tells its index.
#[derive(Debug)]
pub enum Change<'a> {
    /// Forget everything; what exists follows.
    Reset,
    /// This object is so now.
    Put(&'a Entry),
    /// This object is gone.
    Gone(&'a Entry),
}

/// Roles and bindings that follow the cache.
#[derive(Debug)]
pub struct RbacMirror {
    mirrors: Mutex<Vec<(Kind, Mirror)>>,
    rbac: RwLock<Rbac>,
}

/// Which pods are on which node, following the cache.
#[derive(Debug)]
pub struct PlacementMirror {
    state: Mutex<(Option<Mirror>, Placement)>,
    node_field: Option<usize>,
}

#[derive(Debug, Default)]
struct Placement {
    pods: HashMap<String, HashSet<Arc<str>>>,
    node_of: HashMap<Arc<str>, String>,
}

// === impl Mirror ===

impl Mirror {
    /// Follows a resource from its beginning; `None` if this server does not have it.
    pub fn new(cache: &Cache, group: &str, plural: &str) -> Option<Self> {
        let resource = resource::find(group, "v1", plural).filter(|found| found.is_stored())?;
        Some(Self {
            cache: Arc::clone(cache.of(resource)),
            watcher: None,
        })
    }

    /// Tells everything that has happened since the last call.
    pub fn catch_up(&mut self, mut tell: impl FnMut(Change<'_>)) {
        while let Some(watcher) = &mut self.watcher {
            let Ok(deliveries) = watcher.ready() else {
                break;
            };
            if deliveries.is_empty() {
                return;
            }
            for delivery in deliveries {
                let entry = delivery.entry();
                match delivery.kind {
                    EventKind::Deleted => tell(Change::Gone(entry)),
                    EventKind::Added | EventKind::Modified => tell(Change::Put(entry)),
                }
            }
        }
        // The first call, or the ring has gone on without us.
        let page = self.cache.list(&Query::default());
        let page = page.expect("the newest state never expires");
        tell(Change::Reset);
        for entry in &page.entries {
            tell(Change::Put(entry));
        }
        self.watcher = self
            .cache
            .watch(page.revision, None, Selector::default())
            .ok();
    }
}

// === impl RbacMirror ===

impl RbacMirror {
    /// Follows the four RBAC resources.
    pub fn new(cache: &Cache) -> Self {
        let kinds = [
            (Kind::Role, "roles"),
            (Kind::RoleBinding, "rolebindings"),
            (Kind::ClusterRole, "clusterroles"),
            (Kind::ClusterRoleBinding, "clusterrolebindings"),
        ];
        let mirrors = kinds
            .into_iter()
            .filter_map(|(kind, plural)| Some((kind, Mirror::new(cache, GROUP, plural)?)))
            .collect();
        Self {
            mirrors: Mutex::new(mirrors),
            rbac: RwLock::default(),
        }
    }

    /// Asks the index, caught up.
    pub fn ask<R>(&self, question: impl FnOnce(&Rbac) -> R) -> R {
        let mut mirrors = self.mirrors.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, mirror) in mirrors.iter_mut() {
            mirror.catch_up(|change| self.tell(*kind, &change));
        }
        drop(mirrors);
        question(&self.rbac.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn tell(&self, kind: Kind, change: &Change<'_>) {
        let mut rbac = self.rbac.write().unwrap_or_else(PoisonError::into_inner);
        let (entry, bytes) = match change {
            Change::Reset => return rbac.clear(kind),
            Change::Put(entry) => (entry, Some(&*entry.bytes)),
            Change::Gone(entry) => (entry, None),
        };
        if let Err(error) = rbac.apply(kind, entry.namespace(), entry.name(), bytes) {
            tracing::error!(?kind, key = %entry.key, %error, "an RBAC object cannot be read and grants nothing");
        }
    }
}

// === impl PlacementMirror ===

impl PlacementMirror {
    /// Follows pods.
    pub fn new(cache: &Cache) -> Self {
        let node_field = resource::find("", "v1", "pods").and_then(|pods| {
            pods.fields
                .iter()
                .position(|field| field.name == "spec.nodeName")
        });
        Self {
            state: Mutex::new((Mirror::new(cache, "", "pods"), Placement::default())),
            node_field,
        }
    }

    /// Keys (`namespace/name`) of the pods on a node.
    pub fn pods_on(&self, node: &str) -> Vec<Arc<str>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (mirror, placement) = &mut *state;
        if let (Some(mirror), Some(field)) = (mirror, self.node_field) {
            mirror.catch_up(|change| match change {
                Change::Reset => *placement = Placement::default(),
                Change::Put(pod) => {
                    placement.put(&pod.key, pod.fields.get(field).map_or("", AsRef::as_ref));
                }
                Change::Gone(pod) => placement.put(&pod.key, ""),
            });
        }
        placement
            .pods
            .get(node)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }
}

// === impl Placement ===

impl Placement {
    /// Notes that a pod is on a node, or (empty) on none.
    fn put(&mut self, pod: &Arc<str>, node: &str) {
        if self.node_of.get(pod).map_or("", String::as_str) == node {
            return;
        }
        if let Some(old) = self.node_of.remove(pod)
            && let Some(pods) = self.pods.get_mut(&old)
        {
            pods.remove(pod);
            if pods.is_empty() {
                self.pods.remove(&old);
            }
        }
        if !node.is_empty() {
            self.node_of.insert(Arc::clone(pod), node.to_owned());
            self.pods
                .entry(node.to_owned())
                .or_default()
                .insert(Arc::clone(pod));
        }
    }
}

/// One object of the core group.
pub fn get(cache: &Cache, plural: &str, namespace: &str, name: &str) -> Option<Arc<Entry>> {
    let resource = resource::find("", "v1", plural).filter(|found| found.is_stored())?;
    cache
        .of(resource)
        .get(&resource.object_key(namespace, name))
}

/// UID and deletion time of an object, as tokens ask for them.
pub fn alive(entry: &Entry) -> Alive {
    #[derive(Deserialize)]
    struct Object {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        #[serde(default)]
        deletion_timestamp: Option<String>,
    }
    let deleted = entry
        .decode::<Object>()
        .ok()
        .and_then(|object| object.metadata.deletion_timestamp);
    // A time that cannot be read counts as long past: the object is being deleted.
    let deleted_at = deleted.map(|at| at.parse().map_or(0, Timestamp::as_second));
    Alive {
        uid: entry.uid.to_string(),
        deleted_at,
    }
}
