//! Leases, slices of endpoints, network policies.

use serde_json::Value;

use super::{
    PLAIN, Resource, Rules, pod,
    table::{self, AGE_COLUMN, Column},
};
use crate::{defaults, validation};

/// coordination, discovery, networking, storage.
pub const ALL: &[&Resource] = &[
    &LEASE,
    &ENDPOINT_SLICE,
    &NETWORK_POLICY,
    &super::storage::STORAGE_CLASS,
];

/// Where the Leases of nodes live: in memory, since they are renewed all the time.
pub const NODE_LEASES: &str = "kube-node-lease";

/// A sign of life, or of leadership.
pub static LEASE: Resource = Resource {
    volatile: Some(NODE_LEASES),
    columns: &[
        Column::text("Holder", |o, _| {
            table::text_or(o, "/spec/holderIdentity", "")
        }),
        AGE_COLUMN,
    ],
    rules: Rules {
        validate: validation::lease,
        ..PLAIN
    },
    ..Resource::namespaced(
        "leases.coordination.k8s.io",
        "coordination.k8s.io",
        "Lease",
        "leases",
        "lease",
    )
};

/// Addresses behind a Service.
pub static ENDPOINT_SLICE: Resource = Resource {
    columns: &[
        Column::text("AddressType", |o, _| table::text_or(o, "/addressType", "")),
        Column::text("Ports", |o, _| {
            let ports = o["ports"].as_array().into_iter().flatten();
            first_few(ports.map(|p| table::text_or(p, "/port", "*")), "<unset>")
        }),
        Column::text("Endpoints", |o, _| {
            let endpoints = o["endpoints"].as_array().into_iter().flatten();
            let addresses =
                endpoints.flat_map(|e| e["addresses"].as_array().into_iter().flatten().cloned());
            first_few(addresses, "<unset>")
        }),
        AGE_COLUMN,
    ],
    generation: true,
    rules: Rules {
        default: defaults::endpoint_slice,
        validate: validation::endpoint_slice,
        validate_update: validation::endpoint_slice_update,
        ..PLAIN
    },
    ..Resource::namespaced(
        "endpointslices.discovery.k8s.io",
        "discovery.k8s.io",
        "EndpointSlice",
        "endpointslices",
        "endpointslice",
    )
};

fn first_few(values: impl Iterator<Item = Value>, none: &str) -> Value {
    let all: Vec<String> = values
        .map(|value| {
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned)
        })
        .collect();
    match all.len() {
        0 => none.into(),
        1..=3 => all.join(",").into(),
        n => format!(
            "{} + {} more...",
            all.iter().take(3).cloned().collect::<Vec<_>>().join(","),
            n - 3
        )
        .into(),
    }
}

/// Who may talk to whom.
pub static NETWORK_POLICY: Resource = Resource {
    short_names: &["netpol"],
    columns: &[
        Column::text("Pod-Selector", |o, _| {
            pod::labels(&o["spec"]["podSelector"]["matchLabels"])
        }),
        AGE_COLUMN,
    ],
    generation: true,
    rules: Rules {
        default: defaults::network_policy,
        validate: validation::network_policy,
        ..PLAIN
    },
    ..Resource::namespaced(
        "networkpolicies.networking.k8s.io",
        "networking.k8s.io",
        "NetworkPolicy",
        "networkpolicies",
        "networkpolicy",
    )
};
