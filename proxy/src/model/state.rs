//! The objects in force, and those that are not.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{
    Change, EndpointSlice, Instead, Key, Kind, Namespace, NetworkPolicy, Node, Object, ObjectName,
    Pod, Rejected, Service,
};

/// Everything that the sources have said. A namespace that only its objects
/// name exists too, with no label but its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub nodes: BTreeMap<String, Arc<Node>>,
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    pub pods: BTreeMap<ObjectName, Arc<Pod>>,
    pub services: BTreeMap<ObjectName, Arc<Service>>,
    pub slices: BTreeMap<ObjectName, Arc<EndpointSlice>>,
    pub policies: BTreeMap<ObjectName, Arc<NetworkPolicy>>,
    /// Objects that were refused and have not come right since.
    pub rejected: BTreeMap<Key, Rejected>,
}

impl State {
    /// Takes one change in. A rejected object replaces an earlier good one: what
    /// is in force depends on what the sources say now, never on the past.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Upsert(object) => {
                self.rejected.remove(&object.key());
                self.insert(object);
            }
            Change::Remove(key) => {
                self.rejected.remove(&key);
                self.remove(&key);
            }
            Change::Reject(rejected) => {
                match &rejected.instead {
                    Instead::Later => {}
                    Instead::Nothing => self.remove(&rejected.key),
                    Instead::Closed(policy) => {
                        self.insert(Object::NetworkPolicy(Arc::clone(policy)));
                    }
                    Instead::Labelled(namespace) => {
                        self.insert(Object::Namespace(Arc::clone(namespace)));
                    }
                }
                self.rejected.insert(rejected.key.clone(), rejected);
            }
        }
    }

    /// The object in force under this key.
    pub fn get(&self, key: &Key) -> Option<Object> {
        let name = &key.name;
        match key.kind {
            Kind::Node => self.nodes.get(&name.name).cloned().map(Object::Node),
            Kind::Namespace => self
                .namespaces
                .get(&name.name)
                .cloned()
                .map(Object::Namespace),
            Kind::Pod => self.pods.get(name).cloned().map(Object::Pod),
            Kind::Service => self.services.get(name).cloned().map(Object::Service),
            Kind::EndpointSlice => self.slices.get(name).cloned().map(Object::EndpointSlice),
            Kind::NetworkPolicy => self.policies.get(name).cloned().map(Object::NetworkPolicy),
        }
    }

    fn insert(&mut self, object: Object) {
        match object {
            Object::Node(o) => drop(self.nodes.insert(o.name.clone(), o)),
            Object::Namespace(o) => drop(self.namespaces.insert(o.name.clone(), o)),
            Object::Pod(o) => drop(self.pods.insert(o.name.clone(), o)),
            Object::Service(o) => drop(self.services.insert(o.name.clone(), o)),
            Object::EndpointSlice(o) => drop(self.slices.insert(o.name.clone(), o)),
            Object::NetworkPolicy(o) => drop(self.policies.insert(o.name.clone(), o)),
        }
    }

    fn remove(&mut self, key: &Key) {
        let name = &key.name;
        match key.kind {
            Kind::Node => drop(self.nodes.remove(&name.name)),
            Kind::Namespace => drop(self.namespaces.remove(&name.name)),
            Kind::Pod => drop(self.pods.remove(name)),
            Kind::Service => drop(self.services.remove(name)),
            Kind::EndpointSlice => drop(self.slices.remove(name)),
            Kind::NetworkPolicy => drop(self.policies.remove(name)),
        }
    }
}
