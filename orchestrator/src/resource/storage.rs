//! Claims, volumes and how volumes are made.

use serde_json::{Value, json};

use super::{
    PLAIN, Resource, Rules, Subresource,
    table::{self, AGE_COLUMN, Column},
};
use crate::{defaults, validation};

/// A claim to storage.
pub static PERSISTENT_VOLUME_CLAIM: Resource = Resource {
    short_names: &["pvc"],
    subresources: &[Subresource::status("", "PersistentVolumeClaim")],
    columns: &[
        Column::text("Status", |o, _| phase(o)),
        Column::text("Volume", |o, _| table::text_or(o, "/spec/volumeName", "")),
        Column::text("Capacity", |o, _| {
            table::text_or(o, "/status/capacity/storage", "")
        }),
        Column::text("Access Modes", |o, _| {
            access_modes(&o["status"]["accessModes"])
        }),
        Column::text("StorageClass", |o, _| {
            table::text_or(o, "/spec/storageClassName", "")
        }),
        Column::text("VolumeAttributesClass", |o, _| {
            table::text_or(o, "/spec/volumeAttributesClassName", "<unset>")
        }),
        AGE_COLUMN,
        Column::text("VolumeMode", |o, _| {
            table::text_or(o, "/spec/volumeMode", "<unset>")
        })
        .wide(),
    ],
    rules: Rules {
        default: defaults::persistent_volume_claim,
        validate: validation::persistent_volume_claim,
        validate_update: validation::persistent_volume_claim_update,
        returns_deleted: true,
        create: |o| o["status"] = json!({"phase": "Pending"}),
        ..PLAIN
    },
    ..Resource::namespaced(
        "persistentvolumeclaims",
        "",
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        "persistentvolumeclaim",
    )
};

/// A piece of storage.
pub static PERSISTENT_VOLUME: Resource = Resource {
    short_names: &["pv"],
    subresources: &[Subresource::status("", "PersistentVolume")],
    columns: &[
        Column::text("Capacity", |o, _| {
            table::text_or(o, "/spec/capacity/storage", "")
        }),
        Column::text("Access Modes", |o, _| {
            access_modes(&o["spec"]["accessModes"])
        }),
        Column::text("Reclaim Policy", |o, _| {
            table::text_or(o, "/spec/persistentVolumeReclaimPolicy", "")
        }),
        Column::text("Status", |o, _| phase(o)),
        Column::text("Claim", |o, _| {
            let claim = &o["spec"]["claimRef"];
            match (claim["namespace"].as_str(), claim["name"].as_str()) {
                (Some(namespace), Some(name)) => format!("{namespace}/{name}").into(),
                _ => "".into(),
            }
        }),
        Column::text("StorageClass", |o, _| {
            table::text_or(o, "/spec/storageClassName", "")
        }),
        Column::text("VolumeAttributesClass", |o, _| {
            table::text_or(o, "/spec/volumeAttributesClassName", "<unset>")
        }),
        Column::text("Reason", |o, _| table::text_or(o, "/status/reason", "")),
        AGE_COLUMN,
        Column::text("VolumeMode", |o, _| {
            table::text_or(o, "/spec/volumeMode", "<unset>")
        })
        .wide(),
    ],
    rules: Rules {
        default: defaults::persistent_volume,
        validate: validation::persistent_volume,
        validate_update: validation::persistent_volume_update,
        returns_deleted: true,
        create: |o| o["status"] = json!({"phase": "Pending"}),
        ..PLAIN
    },
    ..Resource::cluster(
        "persistentvolumes",
        "",
        "PersistentVolume",
        "persistentvolumes",
        "persistentvolume",
    )
};

/// The phase, or that the object is going.
fn phase(object: &Value) -> Value {
    if object["metadata"]["deletionTimestamp"].is_string() {
        return "Terminating".into();
    }
    table::text_or(object, "/status/phase", "")
}

fn access_modes(modes: &Value) -> Value {
    let short = |mode: &str| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    let modes = modes
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    modes.map(short).collect::<Vec<_>>().join(",").into()
}

/// How storage is made.
pub static STORAGE_CLASS: Resource = Resource {
    short_names: &["sc"],
    columns: &[
        Column::text("Provisioner", |o, _| table::text_or(o, "/provisioner", "")),
        Column::text("ReclaimPolicy", |o, _| {
            table::text_or(o, "/reclaimPolicy", "Delete")
        }),
        Column::text("VolumeBindingMode", |o, _| {
            table::text_or(o, "/volumeBindingMode", "Immediate")
        }),
        Column::text("AllowVolumeExpansion", |o, _| {
            table::text_or(o, "/allowVolumeExpansion", "false")
        }),
        AGE_COLUMN,
    ],
    rules: Rules {
        default: defaults::storage_class,
        validate: validation::storage_class,
        validate_update: validation::storage_class_update,
        ..PLAIN
    },
    ..Resource::cluster(
        "storageclasses.storage.k8s.io",
        "storage.k8s.io",
        "StorageClass",
        "storageclasses",
        "storageclass",
    )
};
