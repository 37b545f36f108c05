//! Which volume suits a claim. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::NodeSelector;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    cache::Selector,
    controller::runtime::object::Meta,
    scheduler::{affinity::node_selected, node::NodeInfo},
    schema::Quantity,
};

/// Annotation that names a class, older than the field.
pub const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// A claim, as far as binding goes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Claim {
    /// Metadata.
    pub metadata: Meta,
    /// Wishes.
    pub spec: ClaimSpec,
    /// What has become of them.
    pub status: Status,
}

/// Of a claim's spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimSpec {
    /// Ways of access, all of them wanted.
    pub access_modes: Vec<String>,
    /// Which volumes, by label.
    pub selector: Value,
    /// How much.
    pub resources: Resources,
    /// The volume, given or found.
    pub volume_name: String,
    /// The class; `None` says nothing, an empty name wants none.
    pub storage_class_name: Option<String>,
    /// `Filesystem` or `Block`.
    pub volume_mode: Option<String>,
    /// Class of attributes.
    pub volume_attributes_class_name: Option<String>,
}

/// Amounts asked for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// By name of the resource.
    pub requests: BTreeMap<String, String>,
}

/// A volume, as far as binding goes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Volume {
    /// Metadata.
    pub metadata: Meta,
    /// What it is.
    pub spec: VolumeSpec,
    /// What has become of it.
    pub status: Status,
}

/// Of a volume's spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeSpec {
    /// Ways of access that it offers.
    pub access_modes: Vec<String>,
    /// How much, by name of the resource.
    pub capacity: BTreeMap<String, String>,
    /// The claim that it is kept for.
    pub claim_ref: Option<ClaimRef>,
    /// `Retain`, `Delete`, `Recycle`.
    pub persistent_volume_reclaim_policy: String,
    /// Its class, empty for none.
    pub storage_class_name: String,
    /// `Filesystem` or `Block`.
    pub volume_mode: Option<String>,
    /// Where it can be reached.
    pub node_affinity: Affinity,
    /// Class of attributes.
    pub volume_attributes_class_name: Option<String>,
}

/// A volume's place.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Affinity {
    /// The nodes; `None` is all.
    pub required: Option<NodeSelector>,
}

/// The claim that a volume is kept for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ClaimRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Which incarnation; empty if a person wrote it.
    pub uid: String,
}

/// A phase.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    /// `Pending`, `Available`, `Bound`, `Released`, `Lost`, `Failed`.
    pub phase: String,
}

/// Why a volume cannot serve a claim that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Too little.
    #[error("requested PV is too small")]
    Size,
    /// Another class.
    #[error("storageClassName does not match")]
    Class,
    /// A file system against a device.
    #[error("incompatible volumeMode")]
    Mode,
    /// A way of access is missing.
    #[error("incompatible accessMode")]
    Access,
    /// Other attributes.
    #[error("volumeAttributesClassName does not match")]
    Attributes,
}

fn bytes(amounts: &BTreeMap<String, String>) -> i128 {
    let storage = amounts.get("storage");
    let amount = storage.and_then(|text| text.parse::<Quantity>().ok());
    amount.map_or(0, Quantity::nanos)
}

impl Claim {
    /// The class it wants; empty is none.
    pub fn class(&self) -> &str {
        let beta = self.metadata.annotations.get(BETA_CLASS);
        let named = beta.or(self.spec.storage_class_name.as_ref());
        named.map_or("", |name| name)
    }

    /// Whether it is bound, as its status says.
    pub fn is_bound(&self) -> bool {
        self.status.phase == "Bound"
    }
}

impl Volume {
    /// Its class; empty is none.
    pub fn class(&self) -> &str {
        let beta = self.metadata.annotations.get(BETA_CLASS);
        beta.map_or(&self.spec.storage_class_name, |name| name)
    }

    /// Whether it is kept for the claim.
    pub fn is_kept_for(&self, claim: &Claim) -> bool {
        self.spec.claim_ref.as_ref().is_some_and(|kept| {
            kept.name == claim.metadata.name
                && kept.namespace == claim.metadata.namespace
                && (kept.uid.is_empty() || kept.uid == claim.metadata.uid)
        })
    }

    /// Whether pods on the node can have it.
    pub fn is_reachable(&self, node: &NodeInfo) -> bool {
        let place = self.spec.node_affinity.required.as_ref();
        place.is_none_or(|place| node_selected(place, node))
    }
}

/// Whether a volume can serve a claim that names it.
///
/// # Errors
/// The first thing that does not fit.
pub fn satisfies(claim: &Claim, volume: &Volume) -> Result<(), Mismatch> {
    let offered = &volume.spec.access_modes;
    let mode = |mode: &Option<String>| mode.as_deref().unwrap_or("Filesystem").to_owned();
    if bytes(&volume.spec.capacity) < bytes(&claim.spec.resources.requests) {
        Err(Mismatch::Size)
    } else if claim.class() != volume.class() {
        Err(Mismatch::Class)
    } else if mode(&claim.spec.volume_mode) != mode(&volume.spec.volume_mode) {
        Err(Mismatch::Mode)
    } else if !claim.spec.access_modes.iter().all(|m| offered.contains(m)) {
        Err(Mismatch::Access)
    } else if claim.spec.volume_attributes_class_name != volume.spec.volume_attributes_class_name {
        Err(Mismatch::Attributes)
    } else {
        Ok(())
    }
}

/// The volumes that a claim may be bound to, best first: one that is kept for
/// it; else those that offer the least besides what it wants, then the
/// smallest. With `kept_only` nothing but the first kind.
pub fn choices<'a>(claim: &Claim, volumes: &'a [Volume], kept_only: bool) -> Vec<&'a Volume> {
    let selector = Selector::from_object(&claim.spec.selector);
    let fits = |volume: &&Volume| {
        if volume.metadata.deleting() || satisfies(claim, volume).is_err() {
            return false;
        }
        let labels = |key: &str| volume.metadata.labels.get(key).map(|value| &**value);
        volume.is_kept_for(claim)
            || (!kept_only
                && volume.spec.claim_ref.is_none()
                && volume.status.phase == "Available"
                && (claim.spec.selector.is_null() || selector.matches_labels(labels)))
    };
    let mut choices: Vec<&Volume> = volumes.iter().filter(fits).collect();
    choices.sort_by_key(|volume| {
        (
            !volume.is_kept_for(claim),
            volume.spec.access_modes.len(),
            bytes(&volume.spec.capacity),
            &volume.metadata.name,
        )
    });
    choices
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn claim(spec: &Value) -> Claim {
        let metadata = json!({"name": "c", "namespace": "n", "uid": "u"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn wish() -> Claim {
        claim(&json!({
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "5Gi"}},
        }))
    }

    fn volume(name: &str, size: &str, change: &Value) -> Volume {
        let mut object = json!({
            "metadata": {"name": name, "labels": {"name": name}},
            "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}},
            "status": {"phase": "Available"},
        });
        json_patch::merge(&mut object, change);
        serde_json::from_value(object).unwrap()
    }

    fn check(claim: &Claim, volumes: &[Volume], kept_only: bool, expected: &[&str]) {
        let names: Vec<&str> = choices(claim, volumes, kept_only)
            .into_iter()
            .map(|volume| volume.metadata.name.as_str())
            .collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn the_smallest_volume_that_fits_comes_first() {
        let wide = json!({"spec": {"accessModes": ["ReadWriteOnce", "ReadOnlyMany"]}});
        let volumes = [
            volume("big", "10Gi", &json!({})),
            volume("small", "4Gi", &json!({})),
            volume("exact", "5Gi", &json!({})),
            volume("wide", "5Gi", &wide),
            volume(
                "other-class",
                "5Gi",
                &json!({"spec": {"storageClassName": "x"}}),
            ),
            volume("device", "5Gi", &json!({"spec": {"volumeMode": "Block"}})),
            volume(
                "taken",
                "5Gi",
                &json!({"spec": {"claimRef": {"namespace": "n", "name": "d"}}}),
            ),
            volume("released", "5Gi", &json!({"status": {"phase": "Released"}})),
            volume(
                "read-only",
                "5Gi",
                &json!({"spec": {"accessModes": ["ReadOnlyMany"]}}),
            ),
        ];
        check(&wish(), &volumes, false, &["exact", "big", "wide"]);
        check(&wish(), &volumes, true, &[]);
    }

    #[test]
    fn a_volume_kept_for_the_claim_comes_before_all_others() {
        let kept =
            |uid: &str| json!({"spec": {"claimRef": {"namespace": "n", "name": "c", "uid": uid}}});
        let volumes = [
            volume("free", "5Gi", &json!({})),
            volume("by-hand", "50Gi", &kept("")),
            volume("former", "5Gi", &kept("another")),
        ];
        check(&wish(), &volumes, false, &["by-hand", "free"]);
        check(&wish(), &volumes, true, &["by-hand"]);
    }

    #[test]
    fn a_selector_chooses_by_label() {
        let mut picky = wish();
        picky.spec.selector = json!({"matchLabels": {"name": "b"}});
        let volumes = [
            volume("a", "5Gi", &json!({})),
            volume("b", "9Gi", &json!({})),
        ];
        check(&picky, &volumes, false, &["b"]);
    }

    #[test]
    fn a_named_volume_says_why_it_does_not_fit() {
        let judge = |size, change: Value| satisfies(&wish(), &volume("v", size, &change));
        assert_eq!(judge("5Gi", json!({})), Ok(()));
        assert_eq!(judge("5G", json!({})), Err(Mismatch::Size));
        assert_eq!(
            judge("5Gi", json!({"spec": {"storageClassName": "x"}})),
            Err(Mismatch::Class)
        );
    }

    proptest! {
        #[test]
        fn no_fitting_volume_is_smaller_than_the_first(sizes in prop::collection::vec(1..20_u32, 0..12), wanted in 1..20_u32) {
            let volumes: Vec<Volume> = sizes.iter().enumerate()
                .map(|(index, size)| volume(&index.to_string(), &format!("{size}Gi"), &json!({})))
                .collect();
            let claim = claim(&json!({"resources": {"requests": {"storage": format!("{wanted}Gi")}}}));
            let first = choices(&claim, &volumes, false).first().map(|v| bytes(&v.spec.capacity) >> 30);
            let gibi = 1_000_000_000_i128;
            let expected = sizes.iter().filter(|size| **size >= wanted).min();
            prop_assert_eq!(first, expected.map(|size| i128::from(*size) * gibi));
        }
    }
}
