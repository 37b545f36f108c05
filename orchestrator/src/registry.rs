//! The request pipeline without HTTP: what happens to an object on its way in.
//!
//! A write is decoded, checked against the schema, defaulted, admitted, given
//! its server-owned metadata, validated and committed; HTTP requests and the
//! controllers of this process ([`client::Client`]) go the very same way.
//! Reads come from the watch cache, which holds every acknowledged write.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

use crate::{
    auth::User,
    cache::{Cache, Entry},
    resource::Resource,
    schema::FieldValidation,
    status::Status,
    store::{CommitError, Expect, Revision, Store, Write},
};

pub mod admission;
pub mod client;
mod conform;
mod create;

mod delete;
pub mod encode;
pub mod expiry;
pub mod lifecycle;
mod metadata;
mod ownership;
mod patch;
mod pod;
pub mod scale;
mod update;
mod validate;

pub use admission::{Admission, Hold, Operation, Request};
pub use delete::{DeleteOptions, Deleted, Propagation};
pub use patch::PatchBody;
pub use update::Change;
pub use validate::{name_problem, object_meta};

/// Stripes of the per-object locks.
const STRIPES: usize = 512;

/// Tells the time; tests bring their own.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Everything a request needs.
pub struct Registry {
    store: Arc<dyn Store>,
    cache: Arc<Cache>,
    admission: Vec<Box<dyn Admission>>,
    clock: Clock,
    /// Writers of one object wait for each other here, so that none has to
    /// try again because of another in this process.
    locks: Box<[Mutex<()>]>,
    hasher: RandomState,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("admission", &self.admission.len())
            .finish_non_exhaustive()
    }
}

/// Who asks, and under which name fields are owned.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The authenticated user.
    pub user: Arc<User>,
    /// Field manager for writes that name none: the user agent's first word.
    pub agent: Arc<str>,
}

/// Which object, or which kind in which namespace.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The resource.
    pub resource: &'static Resource,
    /// Subresource, empty for the object itself.
    pub subresource: &'a str,
    /// Namespace, empty if cluster-scoped.
    pub namespace: &'a str,
    /// Name; empty for a create.
    pub name: &'a str,
}

impl<'a> Target<'a> {
    /// The object itself.
    pub fn object(resource: &'static Resource, namespace: &'a str, name: &'a str) -> Self {
        Self {
            resource,
            subresource: "",
            namespace,
            name,
        }
    }

    /// An object's status.
    pub fn status(resource: &'static Resource, namespace: &'a str, name: &'a str) -> Self {
        Self {
            subresource: "status",
            ..Self::object(resource, namespace, name)
        }
    }

    /// The same object in the version that is stored.
    fn stored(self) -> Self {
        Self {
            resource: self.resource.stored_as(),
            ..self
        }
    }

    /// 404 for this object.
    pub fn not_found(&self) -> Status {
        Status::not_found(self.resource.subject(), self.name)
    }
}

/// How to write.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Do everything but the commit.
    pub dry_run: bool,
    /// Field manager; empty means the caller's agent.
    pub field_manager: String,
    /// What to do about unknown and duplicate fields.
    pub field_validation: FieldValidation,
    /// Names of duplicate fields that decoding has found.
    pub duplicates: Vec<String>,
    /// Why an apply may not create an object that is not there, if it may not.
    pub no_creation: Option<Status>,
    /// Whether managedFields are still to be made.
    ownership: ownership::Ownership,
}

/// A write's result.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object as it is now, resourceVersion included.
    pub object: Bytes,
    /// Its revision; of a dry run the one it had.
    pub revision: Revision,
    /// Whether it is new.
    pub created: bool,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

impl Written {
    /// The object as a tree.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.object).expect("the registry writes JSON")
    }
}

impl Registry {
    /// A registry over a loaded cache and its store.
    pub fn new(
        store: Arc<dyn Store>,
        cache: Arc<Cache>,
        admission: Vec<Box<dyn Admission>>,
        clock: Clock,
    ) -> Self {
        let locks = (0..STRIPES).map(|_| Mutex::new(())).collect();
        Self {
            store,
            cache,
            admission,
            clock,
            locks,
            hasher: RandomState::new(),
        }
    }

    /// The watch cache.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// The clock.
    pub fn clock(&self) -> Clock {
        Arc::clone(&self.clock)
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// The current object, or 404.
    ///
    /// # Errors
    /// 404 if it does not exist.
    pub fn get(&self, target: Target<'_>) -> Result<Arc<Entry>, Status> {
        let key = target.resource.object_key(target.namespace, target.name);
        self.cache
            .of(target.resource)
            .get(&key)
            .ok_or_else(|| target.not_found())
    }

    /// Waits for the other writers of one object.
    async fn lock(&self, resource: &Resource, key: &str) -> MutexGuard<'_, ()> {
        let hash = self.hasher.hash_one((resource.key, key));
        let stripe = usize::try_from(hash % STRIPES as u64).expect("fewer stripes than usize");
        self.locks
            .get(stripe)
            .expect("the index is below the length")
            .lock()
            .await
    }

    /// Commits one object's new bytes, or its removal.
    async fn commit(
        &self,
        resource: &Resource,
        key: &str,
        expect: Expect,
        value: Option<Bytes>,
    ) -> Result<Revision, CommitError> {
        let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
        let durable = resource
            .volatile
            .is_none_or(|volatile| volatile != namespace);
        let key = format!("{}/{key}", resource.key).into();
        self.store
            .commit(vec![Write {
                key,
                expect,
                value,
                durable,
            }])
            .await
    }
}

/// A failed commit as a refusal; preconditions are the caller's business.
fn engine_failure(error: &CommitError) -> Status {
    match error {
        CommitError::Closed => Status::unavailable("the server is shutting down"),
        CommitError::Engine(_) | CommitError::Precondition { .. } => {
            Status::internal(error.to_string())
        }
    }
}
