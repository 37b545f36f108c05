//! Discovery: which groups, versions and resources there are.

use axum::body::Body;
use hyper::{Response, StatusCode, header, header::HeaderValue, http::request::Parts};
use serde_json::{Value, json};

use super::{accept, respond};
use crate::{
    openapi,
    resource::{self, Resource, join},
    status::Status,
};

/// Discovery in one document, the versions of it that are offered.
const AGGREGATED: [&str; 2] = ["v2", "v2beta1"];

/// Answers a discovery path.
///
/// # Errors
/// 404 for any other path.
pub(super) fn answer(path: &str, parts: &Parts, address: &str) -> Result<Response<Body>, Status> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match segments.as_slice() {
        ["api"] => Ok(aggregated(parts, str::is_empty).unwrap_or_else(|| {
            let addresses = json!([{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]);
            respond::value(
                StatusCode::OK,
                &json!({
                    "kind": "APIVersions",
                    "versions": ["v1"],
                    "serverAddressByClientCIDRs": addresses,
                }),
            )
        })),
        ["apis"] => Ok(
            aggregated(parts, |group| !group.is_empty()).unwrap_or_else(|| {
                let groups: Vec<Value> = named_groups()
                    .map(|(group, version)| api_group(group, version, false))
                    .collect();
                let list = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups});
                respond::value(StatusCode::OK, &list)
            }),
        ),
        ["apis", group] => {
            let (group, version) = named_groups()
                .find(|(name, _)| name == group)
                .ok_or_else(|| no_such_group(group))?;
            Ok(respond::value(
                StatusCode::OK,
                &api_group(group, version, true),
            ))
        }
        ["api", "v1"] => Ok(resource_list("", "v1")),
        ["apis", group, version] => {
            let (group, version) = named_groups()
                .find(|found| *found == (*group, *version))
                .ok_or_else(|| no_such_group(&join(group, version)))?;
            Ok(resource_list(group, version))
        }
        ["openapi", "v2"] => Ok(openapi_old(parts)),
        ["openapi", "v3"] => Ok(respond::json(StatusCode::OK, openapi::root(BUILD))),
        ["openapi", "v3", "api", "v1"] => openapi_document("", "v1"),
        ["openapi", "v3", "apis", group, version] => openapi_document(group, version),
        [""] => Ok(root()),
        _ => Err(Status::no_such_resource(
            "the server could not find the requested resource",
        )),
    }
}

/// Names this build in the documents' addresses, which clients may cache.
const BUILD: &str = env!("CARGO_PKG_VERSION");

/// In protobuf for who names it, as kubectl does, else in JSON.
fn openapi_old(parts: &Parts) -> Response<Body> {
    let accepted = parts.headers.get(header::ACCEPT);
    let accepted = accepted.and_then(|text| text.to_str().ok());
    if !accepted.is_some_and(|text| text.contains("proto-openapi.spec.v2")) {
        return respond::value(StatusCode::OK, &openapi::old(BUILD));
    }
    let mut response = respond::json(StatusCode::OK, openapi::old_protobuf(BUILD));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/com.github.proto-openapi.spec.v2.v1.0+protobuf"),
    );
    response
}

fn openapi_document(group: &str, version: &str) -> Result<Response<Body>, Status> {
    let document = openapi::document(group, version, BUILD)
        .ok_or_else(|| no_such_group(&join(group, version)))?;
    Ok(respond::json(StatusCode::OK, document))
}

fn named_groups() -> impl Iterator<Item = (&'static str, &'static str)> {
    resource::groups()
        .into_iter()
        .filter(|(group, _)| !group.is_empty())
}

fn no_such_group(name: &str) -> Status {
    let near = named_groups()
        .map(|(group, version)| (super::distance(name, group), join(group, version)))
        .filter(|(distance, _)| *distance <= 3)
        .min();
    let hint = near.map_or_else(String::new, |(_, name)| format!("; did you mean {name:?}?"));
    Status::no_such_resource(format!("there is no API group {name:?} here{hint}"))
}

fn api_group(group: &str, version: &str, alone: bool) -> Value {
    let entry = json!({"groupVersion": join(group, version), "version": version});
    let mut value = json!({"name": group, "versions": [entry], "preferredVersion": entry});
    if alone {
        value["kind"] = "APIGroup".into();
        value["apiVersion"] = "v1".into();
    }
    value
}

fn resource_list(group: &str, version: &str) -> Response<Body> {
    let mut resources = Vec::new();
    for described in resource::all().filter(|r| r.group == group && r.version == version) {
        resources.push(api_resource(described));
        for sub in described.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", described.plural, sub.name),
                "singularName": "",
                "namespaced": described.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if (sub.group, sub.version) != (group, version) {
                entry["group"] = sub.group.into();
                entry["version"] = sub.version.into();
            }
            resources.push(entry);
        }
    }
    let list = json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": join(group, version),
        "resources": resources,
    });
    respond::value(StatusCode::OK, &list)
}

fn api_resource(described: &Resource) -> Value {
    let mut entry = json!({
        "name": described.plural,
        "singularName": described.singular,
        "namespaced": described.namespaced,
        "kind": described.kind,
        "verbs": described.verbs,
    });
    if !described.short_names.is_empty() {
        entry["shortNames"] = json!(described.short_names);
    }
    if !described.categories.is_empty() {
        entry["categories"] = json!(described.categories);
    }
    if described.is_stored() {
        entry["storageVersionHash"] = storage_hash(described).into();
    }
    entry
}

/// Opaque to clients; differs between kinds.
fn storage_hash(described: &Resource) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let name = format!("{}/{}", described.api_version(), described.kind);
    let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    STANDARD.encode(digest.as_ref().get(..8).unwrap_or_default())
}

/// The aggregated document, if the client asks for it.
fn aggregated(parts: &Parts, include: impl Fn(&str) -> bool) -> Option<Response<Body>> {
    let version = accept::media(&parts.headers).iter().find_map(|media| {
        let wanted = media.is_json()
            && media.parameter("g") == "apidiscovery.k8s.io"
            && media.parameter("as") == "APIGroupDiscoveryList";
        AGGREGATED
            .into_iter()
            .find(|v| wanted && *v == media.parameter("v"))
    })?;
    let items: Vec<Value> = resource::groups()
        .into_iter()
        .filter(|(group, _)| include(group))
        .map(|(group, version)| {
            let resources: Vec<Value> = resource::all()
                .filter(|r| (r.group, r.version) == (group, version))
                .map(discovered)
                .collect();
            json!({
                "metadata": {"name": group, "creationTimestamp": null},
                "versions": [{"version": version, "resources": resources, "freshness": "Current"}],
            })
        })
        .collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    });
    let mut response = respond::value(StatusCode::OK, &list);
    let kind =
        format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    if let Ok(kind) = HeaderValue::from_str(&kind) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("Accept"));
    Some(response)
}

fn discovered(described: &Resource) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut entry = json!({
        "resource": described.plural,
        "responseKind": kind(described.group, described.version, described.kind),
        "scope": if described.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": described.singular,
        "verbs": described.verbs,
    });
    if !described.short_names.is_empty() {
        entry["shortNames"] = json!(described.short_names);
    }
    if !described.categories.is_empty() {
        entry["categories"] = json!(described.categories);
    }
    if !described.subresources.is_empty() {
        let subs: Vec<Value> = described
            .subresources
            .iter()
            .map(|sub| {
                json!({
                    "subresource": sub.name,
                    "responseKind": kind(sub.group, sub.version, sub.kind),
                    "verbs": sub.verbs,
                })
            })
            .collect();
        entry["subresources"] = subs.into();
    }
    entry
}

fn root() -> Response<Body> {
    let mut paths: Vec<String> = [
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .into();
    for (group, version) in named_groups() {
        paths.push(format!("/apis/{group}"));
        paths.push(format!("/apis/{group}/{version}"));
    }
    paths.sort();
    respond::value(StatusCode::OK, &json!({"paths": paths}))
}
