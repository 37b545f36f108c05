//! The claims of a StatefulSet's pods: made before the pod, and owned by
//! whatever they are to go with.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Meta, Pod, StatefulSet, StatefulSetController, Status, resource, served};
use crate::{
    controller::runtime::object::{Head, controlled_by, decode, is_ending},
    registry::Target,
    resource::storage::PERSISTENT_VOLUME_CLAIM,
};

/// What a claim goes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Nobody,
    Set,
    Pod,
}

/// What the claims of a pod go with; `surplus` is a pod that is scaled away. Pure.
fn owner(policy: &Value, surplus: bool) -> Owner {
    if surplus && policy["whenScaled"] == "Delete" {
        Owner::Pod
    } else if policy["whenDeleted"] == "Delete" {
        Owner::Set
    } else {
        Owner::Nobody
    }
}

/// A claim's owners made right: the set and any pod of this name go, the one
/// that is wanted comes. A claim that somebody else controls is left alone. Pure.
fn owners(present: &[Value], set: &Meta, pod: &Meta, wanted: Owner) -> Vec<Value> {
    let reference = match wanted {
        Owner::Nobody => None,
        Owner::Set => Some(controlled_by(resource(), set)),
        Owner::Pod => Some(controlled_by(served("", "pods"), pod)),
    };
    let ours = |owner: &Value| {
        owner["uid"] == set.uid.as_str()
            || (owner["kind"] == "Pod" && owner["name"] == pod.name.as_str())
    };
    if present
        .iter()
        .any(|owner| owner["controller"] == true && !ours(owner))
    {
        return present.to_vec();
    }
    let uid = reference.as_ref().map(|reference| &reference["uid"]);
    let mut owners: Vec<Value> = present
        .iter()
        .filter(|owner| !ours(owner) || Some(&owner["uid"]) == uid)
        .cloned()
        .collect();
    if let Some(reference) = &reference
        && !owners.iter().any(|owner| owner["uid"] == reference["uid"])
    {
        owners.push(reference.clone());
    }
    owners
}

/// A claim as its template has it, under its name. Pure.
fn object(set: &StatefulSet, template: &Value, name: &str) -> Value {
    let mut metadata = json!({"name": name});
    for field in ["labels", "annotations"] {
        if template["metadata"][field].is_object() {
            metadata[field] = template["metadata"][field].clone();
        }
    }
    let selecting = set.spec.selector["matchLabels"].as_object();
    for (label, value) in selecting.into_iter().flatten() {
        metadata["labels"][label] = value.clone();
    }
    if owner(&set.spec.persistent_volume_claim_retention_policy, false) == Owner::Set {
        metadata["ownerReferences"] = json!([controlled_by(resource(), &set.metadata)]);
    }
    json!({"metadata": metadata, "spec": template["spec"]})
}

impl StatefulSetController {
    /// Makes the claims of a pod that is about to come.
    pub(super) async fn ensure_claims(
        &self,
        set: &StatefulSet,
        ordinal: i64,
    ) -> Result<(), Status> {
        let namespace = &set.metadata.namespace;
        for claim in set.claims() {
            let name = set.claim_name(claim, ordinal);
            let key = format!("{namespace}/{name}");
            if let Some(entry) = self.client.cache_of(&PERSISTENT_VOLUME_CLAIM).get(&key) {
                if decode::<Head>(&entry)?.metadata.deleting() {
                    let why = "it is being deleted; its pod waits until it is gone";
                    let subject = PERSISTENT_VOLUME_CLAIM.subject();
                    return Err(Status::conflict(subject, &name, why));
                }
                continue;
            }
            let object = object(set, claim, &name);
            let made = self
                .client
                .create_value(&PERSISTENT_VOLUME_CLAIM, namespace, object);
            let made = match made.await {
                Err(status) if is_ending(&status) => return Err(status),
                made => made.map(drop),
            };
            let (of, pod) = (
                &set.metadata.name,
                format!("{}-{ordinal}", set.metadata.name),
            );
            let reasons = ("SuccessfulCreate", "FailedCreate");
            self.tell(set, reasons, &made, |made| match made {
                Ok(()) => format!("create Claim {name} Pod {pod} in StatefulSet {of} success"),
                Err(status) => format!(
                    "create Claim {name} for Pod {pod} in StatefulSet {of} failed error: {status}"
                ),
            });
            made?;
        }
        Ok(())
    }

    /// Makes the owners of the claims of all pods right.
    pub(super) async fn settle_claims(
        &self,
        set: &StatefulSet,
        pods: &BTreeMap<i64, Pod>,
    ) -> Result<(), Status> {
        let order = set.order();
        let wanted = order.start..order.start + order.replicas;
        for (ordinal, pod) in pods {
            let surplus = !wanted.contains(ordinal);
            let owner = owner(&set.spec.persistent_volume_claim_retention_policy, surplus);
            for claim in set.claims() {
                let name = set.claim_name(claim, *ordinal);
                self.settle_claim(set, &name, &pod.metadata, owner).await?;
            }
        }
        Ok(())
    }

    async fn settle_claim(
        &self,
        set: &StatefulSet,
        name: &str,
        pod: &Meta,
        owner: Owner,
    ) -> Result<(), Status> {
        let namespace = &set.metadata.namespace;
        let key = format!("{namespace}/{name}");
        let Some(entry) = self.client.cache_of(&PERSISTENT_VOLUME_CLAIM).get(&key) else {
            return Ok(());
        };
        let right = |claim: &Value| {
            let present = claim["metadata"]["ownerReferences"].as_array();
            let present = present.map(Vec::as_slice).unwrap_or_default();
            let right = owners(present, &set.metadata, pod, owner);
            (right != present).then_some(right)
        };
        if right(&entry.value()).is_none() {
            return Ok(());
        }
        let change = |current: &Value| {
            let mut new = current.clone();
            if let Some(owners) = right(current) {
                new["metadata"]["ownerReferences"] = owners.into();
            }
            Ok(new)
        };
        let target = Target::object(&PERSISTENT_VOLUME_CLAIM, namespace, name);
        match self.client.change(target, &change).await {
            Err(status) if !status.is("NotFound") => Err(status),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(name: &str, uid: &str) -> Meta {
        Meta {
            name: name.to_owned(),
            uid: uid.to_owned(),
            ..Meta::default()
        }
    }

    #[test]
    fn claims_go_with_what_the_policy_says() {
        let policy =
            |deleted: &str, scaled: &str| json!({"whenDeleted": deleted, "whenScaled": scaled});
        for (policy, kept, surplus) in [
            (Value::Null, Owner::Nobody, Owner::Nobody),
            (policy("Retain", "Retain"), Owner::Nobody, Owner::Nobody),
            (policy("Delete", "Retain"), Owner::Set, Owner::Set),
            (policy("Retain", "Delete"), Owner::Nobody, Owner::Pod),
            (policy("Delete", "Delete"), Owner::Set, Owner::Pod),
        ] {
            assert_eq!(
                (owner(&policy, false), owner(&policy, true)),
                (kept, surplus)
            );
        }
    }

    #[test]
    fn owners_change_hands_and_strangers_are_left_alone() {
        let (set, pod) = (meta("db", "s"), meta("db-0", "p"));
        let of_set = vec![controlled_by(resource(), &set)];
        let of_pod = vec![controlled_by(served("", "pods"), &pod)];
        let former = vec![controlled_by(served("", "pods"), &meta("db-0", "former"))];
        assert_eq!(owners(&[], &set, &pod, Owner::Set), of_set);
        assert_eq!(owners(&of_set, &set, &pod, Owner::Pod), of_pod);
        assert_eq!(owners(&former, &set, &pod, Owner::Pod), of_pod);
        assert_eq!(
            owners(&of_pod, &set, &pod, Owner::Nobody),
            Vec::<Value>::new()
        );
        let stranger = vec![controlled_by(served("", "pods"), &meta("other", "o"))];
        assert_eq!(owners(&stranger, &set, &pod, Owner::Set), stranger);
    }
}
