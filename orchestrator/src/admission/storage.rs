//! Claims and volumes are protected while in use, and a claim gets the default class.

use serde_json::Value;

use super::{creates, list_mut, text};
use crate::cache::{Cache, Query};
use crate::registry::{Admission, Request};
use crate::resource;
use crate::status::Status;

/// Holds a claim that a pod uses.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Holds a volume that is bound to a claim.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Marks the class that claims get by default.
pub const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The rule.
#[derive(Debug)]
pub struct StorageDefaults;

impl Admission for StorageDefaults {
    fn admit(&self, request: &mut Request<'_>, object: &mut Value) -> Result<(), Status> {
        if creates(request, "", "persistentvolumes") {
            protect(object, VOLUME_PROTECTION);
        } else if creates(request, "", "persistentvolumeclaims") {
            protect(object, CLAIM_PROTECTION);
            if wants_class(object)
                && let Some(class) = default_class(request.cache)
            {
                object["spec"]["storageClassName"] = class.into();
            }
        }
        Ok(())
    }
}

fn protect(object: &mut Value, finalizer: &str) {
    if let Some(finalizers) = list_mut(&mut object["metadata"], "finalizers")
        && !finalizers.iter().any(|own| own == finalizer)
    {
        finalizers.push(finalizer.into());
    }
}

/// Whether a claim says nothing about its class; an empty name is a wish for none.
fn wants_class(claim: &Value) -> bool {
    claim["spec"]["storageClassName"].is_null()
        && claim["metadata"]["annotations"][BETA_CLASS].is_null()
}

/// The class marked as default; of several the youngest, then the first by name.
pub fn default_class(cache: &Cache) -> Option<String> {
    let classes = resource::find("storage.k8s.io", "v1", "storageclasses")?;
    let page = cache.of(classes).list(&Query::default()).ok()?;
    let objects = page.entries.iter().map(|entry| entry.value());
    let defaults =
        objects.filter(|class| class["metadata"]["annotations"][DEFAULT_CLASS] == "true");
    youngest(defaults.collect())
}

fn youngest(mut classes: Vec<Value>) -> Option<String> {
    classes.sort_by(|a, b| {
        let age = |class| text(class, "/metadata/creationTimestamp").to_owned();
        let name = |class| text(class, "/metadata/name").to_owned();
        age(b).cmp(&age(a)).then_with(|| name(a).cmp(&name(b)))
    });
    classes
        .first()
        .map(|class| text(class, "/metadata/name").to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_finalizer_is_added_once() {
        let mut claim = json!({"metadata": {"name": "a"}});
        protect(&mut claim, CLAIM_PROTECTION);
        protect(&mut claim, CLAIM_PROTECTION);
        assert_eq!(claim["metadata"]["finalizers"], json!([CLAIM_PROTECTION]));
    }

    #[test]
    fn an_empty_class_name_is_a_wish() {
        assert!(wants_class(&json!({"spec": {}, "metadata": {}})));
        assert!(!wants_class(
            &json!({"spec": {"storageClassName": ""}, "metadata": {}})
        ));
        let beta = json!({"spec": {}, "metadata": {"annotations": {BETA_CLASS: "x"}}});
        assert!(!wants_class(&beta));
    }

    #[test]
    fn of_several_defaults_the_youngest_counts() {
        let class =
            |name: &str, at: &str| json!({"metadata": {"name": name, "creationTimestamp": at}});
        let classes = vec![
            class("b", "2026-01-01T00:00:00Z"),
            class("c", "2026-01-02T00:00:00Z"),
            class("a", "2026-01-02T00:00:00Z"),
        ];
        assert_eq!(youngest(classes).as_deref(), Some("a"));
        assert_eq!(youngest(Vec::new()), None);
    }
}
