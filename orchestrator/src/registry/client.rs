//! The API for this process: the same pipeline, no HTTP.
//!
//! Controllers write through a [`Client`] and read through it or, better,
//! straight from the watch cache ([`Client::cache`], [`Client::informer`]).
//! Objects are typed (`k8s_openapi`) or plain JSON trees.

use std::sync::Arc;

use k8s_openapi::{
    Metadata, NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Caller, DeleteOptions, Deleted, PatchBody, Registry, Target, WriteOptions, Written};
use crate::{
    auth::User,
    cache::{Entry, Query, ResourceCache, Selector, Watcher},
    resource::{self, Resource},
    status::Status,
};

/// A typed kind that this server stores.
pub trait Kind:
    k8s_openapi::Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned
{
    /// Its description.
    ///
    /// # Panics
    /// If the kind is not served; a test goes through all that controllers use.
    fn resource() -> &'static Resource {
        resource::find_kind(Self::GROUP, Self::VERSION, Self::KIND)
            .unwrap_or_else(|| unreachable!("{} {} is not served", Self::API_VERSION, Self::KIND))
    }
}

impl<K> Kind for K where
    K: k8s_openapi::Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned
{
}

/// One component's access to the API.
#[derive(Clone, Debug)]
pub struct Client {
    registry: Arc<Registry>,
    caller: Caller,
}

impl Client {
    /// Access in the name of `user`; `agent` owns the fields it writes.
    pub fn new(registry: Arc<Registry>, user: User, agent: &str) -> Self {
        Self {
            registry,
            caller: Caller {
                user: Arc::new(user),
                agent: agent.into(),
            },
        }
    }

    /// The watch cache; it holds every write that a call here has returned from.
    pub fn cache<K: Kind>(&self) -> &Arc<ResourceCache> {
        self.registry.cache().of(K::resource())
    }

    /// The watch cache of a resource that is known at run time.
    pub fn cache_of(&self, resource: &Resource) -> &Arc<ResourceCache> {
        self.registry.cache().of(resource)
    }

    /// The pipeline underneath.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// One object.
    ///
    /// # Errors
    /// 404.
    pub fn get<K: Kind>(&self, namespace: &str, name: &str) -> Result<K, Status> {
        let entry = self
            .registry
            .get(Target::object(K::resource(), namespace, name))?;
        typed(&entry)
    }

    /// All objects of a namespace (all namespaces if empty) that are selected.
    ///
    /// # Errors
    /// 500 if an object does not fit its type.
    pub fn list<K: Kind>(&self, namespace: &str, selector: Selector) -> Result<Vec<K>, Status> {
        let namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
        let query = Query {
            namespace,
            selector,
            ..Query::default()
        };
        let page = self
            .cache::<K>()
            .list(&query)
            .map_err(|error| Status::expired(error.to_string()))?;
        page.entries.iter().map(|entry| typed(entry)).collect()
    }

    /// The present objects and a watcher of what comes after them: an informer
    /// without a second copy. When the watcher says [`crate::cache::Expired`],
    /// call this again and compare.
    ///
    /// # Errors
    /// 410 never in practice.
    pub fn informer<K: Kind>(
        &self,
        selector: Selector,
    ) -> Result<(Vec<Arc<Entry>>, Watcher), Status> {
        self.informer_of(K::resource(), selector)
    }

    /// As [`Self::informer`], for a resource that is known at run time.
    ///
    /// # Errors
    /// 410 never in practice.
    pub fn informer_of(
        &self,
        resource: &Resource,
        selector: Selector,
    ) -> Result<(Vec<Arc<Entry>>, Watcher), Status> {
        let (page, watcher) = self
            .cache_of(resource)
            .list_and_watch(None, selector)
            .map_err(|error| Status::expired(error.to_string()))?;
        Ok((page.entries, watcher))
    }

    /// Creates an object; its namespace is that of its metadata.
    ///
    /// # Errors
    /// As for [`Registry::create`].
    pub async fn create<K: Kind>(&self, object: &K) -> Result<K, Status> {
        let namespace = object.metadata().namespace.clone().unwrap_or_default();
        let written = self
            .create_value(K::resource(), &namespace, tree(object)?)
            .await?;
        parse(&written)
    }

    /// As [`Self::create`], with a JSON tree.
    ///
    /// # Errors
    /// As for [`Registry::create`].
    pub async fn create_value(
        &self,
        resource: &'static Resource,
        namespace: &str,
        object: Value,
    ) -> Result<Written, Status> {
        let target = Target::object(resource, namespace, "");
        self.registry
            .create(target, &self.caller, object, &WriteOptions::default())
            .await
    }

    /// Replaces an object; 409 if it has changed since it was read.
    ///
    /// # Errors
    /// As for [`Registry::update`].
    pub async fn update<K: Kind>(&self, object: &K) -> Result<K, Status> {
        self.put(object, "").await
    }

    /// Replaces an object's status; 409 if it has changed since it was read.
    ///
    /// # Errors
    /// As for [`Registry::update`].
    pub async fn update_status<K: Kind>(&self, object: &K) -> Result<K, Status> {
        self.put(object, "status").await
    }

    async fn put<K: Kind>(&self, object: &K, subresource: &str) -> Result<K, Status> {
        let metadata = object.metadata();
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let name = metadata.name.clone().unwrap_or_default();
        let target = Target {
            resource: K::resource(),
            subresource,
            namespace: &namespace,
            name: &name,
        };
        let new = tree(object)?;
        let written = self.change(target, &|_: &Value| Ok(new.clone())).await?;
        parse(&written)
    }

    /// Changes the current state of an object by a function: never a conflict.
    /// The function may refuse, and may run more than once.
    ///
    /// # Errors
    /// The function's; as for [`Registry::update`].
    pub async fn change(
        &self,
        target: Target<'_>,
        change: super::Change<'_>,
    ) -> Result<Written, Status> {
        self.registry
            .update(target, &self.caller, change, &WriteOptions::default())
            .await
    }

    /// Changes an object's JSON tree in place; see [`Self::change`].
    ///
    /// # Errors
    /// As for [`Registry::update`].
    pub async fn edit<K: Kind>(
        &self,
        namespace: &str,
        name: &str,
        edit: impl Fn(&mut Value) + Send + Sync,
    ) -> Result<K, Status> {
        let target = Target::object(K::resource(), namespace, name);
        self.edited(target, edit).await
    }

    /// As [`Self::edit`], through the `status` subresource.
    ///
    /// # Errors
    /// As for [`Registry::update`].
    pub async fn edit_status<K: Kind>(
        &self,
        namespace: &str,
        name: &str,
        edit: impl Fn(&mut Value) + Send + Sync,
    ) -> Result<K, Status> {
        let target = Target::status(K::resource(), namespace, name);
        self.edited(target, edit).await
    }

    async fn edited<K: Kind>(
        &self,
        target: Target<'_>,
        edit: impl Fn(&mut Value) + Send + Sync,
    ) -> Result<K, Status> {
        let change = |current: &Value| {
            let mut new = current.clone();
            edit(&mut new);
            Ok(new)
        };
        parse(&self.change(target, &change).await?)
    }

    /// Changes an object in place, if it is still the one with this UID and
    /// is there at all: what was found out about one object is never written
    /// to another that has taken its name.
    ///
    /// # Errors
    /// As for [`Registry::update`].
    pub async fn amend(
        &self,
        target: Target<'_>,
        uid: &str,
        edit: impl Fn(&mut Value) + Send + Sync,
    ) -> Result<(), Status> {
        let change = |current: &Value| {
            let mut new = current.clone();
            if current["metadata"]["uid"] == uid {
                edit(&mut new);
            }
            Ok(new)
        };
        match self.change(target, &change).await {
            Err(status) if !status.is("NotFound") => Err(status),
            _ => Ok(()),
        }
    }

    /// Replaces the whole status of the object with this UID; see [`Self::amend`].
    ///
    /// # Errors
    /// As for [`Registry::update`].
    pub async fn replace_status(
        &self,
        target: Target<'_>,
        uid: &str,
        status: &Value,
    ) -> Result<(), Status> {
        self.amend(target, uid, |new| new["status"] = status.clone())
            .await
    }

    /// Takes a finalizer off the object with this UID; see [`Self::amend`].
    ///
    /// # Errors
    /// As for [`Registry::update`].
    pub async fn remove_finalizer(
        &self,
        target: Target<'_>,
        uid: &str,
        name: &str,
    ) -> Result<(), Status> {
        let edit = |new: &mut Value| {
            if let Some(list) = new["metadata"]["finalizers"].as_array_mut() {
                list.retain(|finalizer| finalizer != name);
            }
        };
        self.amend(target, uid, edit).await
    }

    /// Patches an object or a subresource.
    ///
    /// # Errors
    /// As for [`Registry::patch`].
    pub async fn patch(&self, target: Target<'_>, patch: &PatchBody) -> Result<Written, Status> {
        self.registry
            .patch(target, &self.caller, patch, &WriteOptions::default())
            .await
    }

    /// Deletes an object, or begins to.
    ///
    /// # Errors
    /// As for [`Registry::delete`].
    pub async fn delete<K: Kind>(
        &self,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        self.delete_of(K::resource(), namespace, name, options)
            .await
    }

    /// As [`Self::delete`], for a resource that is known at run time.
    ///
    /// # Errors
    /// As for [`Registry::delete`].
    pub async fn delete_of(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let target = Target::object(resource, namespace, name);
        self.registry.delete(target, &self.caller, options).await
    }
}

/// Namespaced typed kinds, for bounds that want them.
pub trait NamespacedKind: Kind + k8s_openapi::Resource<Scope = NamespaceResourceScope> {}
impl<K> NamespacedKind for K where K: Kind + k8s_openapi::Resource<Scope = NamespaceResourceScope> {}

fn typed<K: DeserializeOwned>(entry: &Entry) -> Result<K, Status> {
    entry
        .decode()
        .map_err(|error| Status::internal(format!("{}: {error}", entry.key)))
}

fn parse<K: DeserializeOwned>(written: &Written) -> Result<K, Status> {
    serde_json::from_slice(&written.object).map_err(|error| Status::internal(error.to_string()))
}

fn tree<K: Serialize>(object: &K) -> Result<Value, Status> {
    serde_json::to_value(object).map_err(|error| Status::internal(error.to_string()))
}
