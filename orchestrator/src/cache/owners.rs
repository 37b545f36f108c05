//! Who owns whom: an index from owner UID to the owned objects' keys.
//!
//! It changes together with the objects, under the same lock, so whoever has
//! written an object finds it here at once. Bound: one line per owner
//! reference, plus one per object without a controller.

use std::{collections::BTreeSet, sync::Arc};

use super::{Entry, ResourceCache};

/// `(owner UID, object key)`; an empty UID stands for "has no controller".
#[derive(Debug, Default)]
pub(super) struct Owners(BTreeSet<(Box<str>, Arc<str>)>);

const NOBODY: &str = "";

impl Owners {
    pub(super) fn add(&mut self, entry: &Entry) {
        for owner in lines(entry) {
            self.0.insert((owner.into(), Arc::clone(&entry.key)));
        }
    }

    pub(super) fn remove(&mut self, entry: &Entry) {
        for owner in lines(entry) {
            self.0.remove(&(owner.into(), Arc::clone(&entry.key)));
        }
    }

    pub(super) fn replace(&mut self, previous: Option<&Entry>, entry: &Entry) {
        match previous {
            Some(old) if old.owners == entry.owners && old.controller == entry.controller => {}
            Some(old) => {
                self.remove(old);
                self.add(entry);
            }
            None => self.add(entry),
        }
    }

    fn of<'a>(&'a self, owner: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a Arc<str>> {
        self.0
            .range((Box::from(owner), Arc::from(prefix))..)
            .take_while(move |(uid, key)| **uid == *owner && key.starts_with(prefix))
            .map(|(_, key)| key)
    }
}

fn lines(entry: &Entry) -> impl Iterator<Item = &str> {
    let nobody = entry.controller.is_none().then_some(NOBODY);
    entry.owners.iter().map(|uid| &**uid).chain(nobody)
}

impl ResourceCache {
    /// The objects that name `uid` as an owner, in key order.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<Entry>> {
        if uid.is_empty() {
            return Vec::new();
        }
        self.found(uid, "")
    }

    /// The objects of a namespace that have no controller, in key order.
    pub fn uncontrolled(&self, namespace: &str) -> Vec<Arc<Entry>> {
        self.found(NOBODY, &format!("{namespace}/"))
    }

    fn found(&self, owner: &str, prefix: &str) -> Vec<Arc<Entry>> {
        let state = self.read();
        let keys = state.owners.of(owner, prefix);
        keys.filter_map(|key| state.objects.get(key).cloned())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{resource::core::CONFIG_MAP, store::Revision};

    fn entry(name: &str, owners: &str) -> Arc<Entry> {
        let stored = format!(r#"{{"metadata":{{"uid":"u-{name}","ownerReferences":{owners}}}}}"#);
        let key = format!("ns/{name}");
        let built = Entry::parse(&CONFIG_MAP, &key, Revision(1), stored.as_bytes(), "ADDED");
        built.unwrap().0
    }

    fn keys(owners: &Owners, uid: &str, prefix: &str) -> Vec<String> {
        owners.of(uid, prefix).map(ToString::to_string).collect()
    }

    #[test]
    fn the_index_follows_every_change_of_owners() {
        let mut owners = Owners::default();
        let alone = entry("a", "[]");
        let owned = entry("a", r#"[{"uid":"x","controller":true},{"uid":"y"}]"#);
        owners.replace(None, &alone);
        assert_eq!(keys(&owners, NOBODY, "ns/"), ["ns/a"]);
        assert!(keys(&owners, NOBODY, "n/").is_empty());
        owners.replace(Some(&alone), &owned);
        assert!(keys(&owners, NOBODY, "ns/").is_empty());
        assert_eq!(keys(&owners, "x", ""), ["ns/a"]);
        assert_eq!(keys(&owners, "y", ""), ["ns/a"]);
        assert_eq!(owned.controller_uid(), Some("x"));
        owners.remove(&owned);
        assert!(owners.0.is_empty());
    }
}
