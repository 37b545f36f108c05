//! Delete and deletecollection.

use axum::body::Body;
use hyper::{Response, StatusCode, http::request::Parts};
use serde_json::{Value, json};

use super::{Api, Incoming, body, options, path::Place, respond, shape, write::target};
use crate::{
    cache::Query,
    registry::{DeleteOptions, Deleted, Propagation, Target},
    resource::Resource,
    status::{Cause, Status},
};

impl Api {
    pub(super) async fn delete(
        &self,
        place: &Place<'_>,
        resource: &'static Resource,
        request: Incoming<'_>,
    ) -> Result<Response<Body>, Status> {
        let options = delete_options(place.query, request.parts, request.body).await?;
        let target = target(place, resource);
        let deleted = self
            .registry
            .delete(target, &request.caller, &options)
            .await?;
        Ok(match deleted {
            Deleted::Gone(object) if !resource.rules.returns_deleted => {
                let object: Value =
                    serde_json::from_slice(&object).expect("the registry writes JSON");
                let mut status = json!({
                    "kind": "Status",
                    "apiVersion": "v1",
                    "metadata": {},
                    "status": "Success",
                    "details": {
                        "name": place.name,
                        "kind": resource.plural,
                        "uid": object["metadata"]["uid"],
                    },
                });
                if !resource.group.is_empty() {
                    status["details"]["group"] = resource.group.into();
                }
                respond::value(StatusCode::OK, &status)
            }
            Deleted::Gone(object) | Deleted::Terminating(object) => {
                respond::json(StatusCode::OK, shape::plain(resource, object))
            }
        })
    }

    /// Deletes everything that is selected; answers with the list of it.
    pub(super) async fn delete_collection(
        &self,
        place: &Place<'_>,
        resource: &'static Resource,
        request: Incoming<'_>,
    ) -> Result<Response<Body>, Status> {
        let options = delete_options(place.query, request.parts, request.body).await?;
        let query = Query {
            namespace: (!place.namespace.is_empty()).then(|| place.namespace.to_owned()),
            selector: options::selector(place.query, resource)?,
            ..Query::default()
        };
        let cache = self.registry.cache().of(resource);
        let page = cache
            .list(&query)
            .map_err(|error| Status::expired(error.to_string()))?;
        let mut items = Vec::with_capacity(page.entries.len());
        for entry in &page.entries {
            let target = Target::object(resource, entry.namespace(), entry.name());
            match self
                .registry
                .delete(target, &request.caller, &options)
                .await
            {
                Ok(Deleted::Gone(object) | Deleted::Terminating(object)) => {
                    let object: Value =
                        serde_json::from_slice(&object).expect("the registry writes JSON");
                    items.push(resource.shown(&object));
                }
                Err(status) if status.is("NotFound") => {}
                Err(status) => return Err(status),
            }
        }
        let list = json!({
            "kind": format!("{}List", resource.kind),
            "apiVersion": resource.api_version(),
            "metadata": {"resourceVersion": self.registry.cache().revision().to_string()},
            "items": items,
        });
        Ok(respond::value(StatusCode::OK, &list))
    }
}

/// Options from the body, or from the query if there is no body.
pub(super) async fn delete_options(
    query: &str,
    parts: &Parts,
    content: Body,
) -> Result<DeleteOptions, Status> {
    let bytes = body::read(content).await?;
    let mut given = if bytes.is_empty() {
        json!({})
    } else {
        let decoded = body::any(&parts.headers, &bytes)?;
        let kind = decoded.value["kind"].as_str().unwrap_or("DeleteOptions");
        if !matches!(kind, "DeleteOptions" | "") {
            return Err(Status::bad_request(format!(
                "expected DeleteOptions, got {kind}"
            )));
        }
        decoded.value
    };
    for name in ["propagationPolicy", "dryRun"] {
        if let Some(text) = options::value(query, name).filter(|text| !text.is_empty()) {
            given[name] = if name == "dryRun" {
                json!([text])
            } else {
                text.into()
            };
        }
    }
    if let Some(seconds) = options::number(query, "gracePeriodSeconds")? {
        given["gracePeriodSeconds"] = seconds.into();
    }
    if options::value(query, "orphanDependents").is_some() {
        given["orphanDependents"] = options::flag(query, "orphanDependents").into();
    }
    parse(&given)
}

fn parse(given: &Value) -> Result<DeleteOptions, Status> {
    let refuse = |cause| {
        Err(Status::invalid(
            "meta.k8s.io",
            "DeleteOptions",
            "",
            vec![cause],
        ))
    };
    let policy = &given["propagationPolicy"];
    if !policy.is_null() && !given["orphanDependents"].is_null() {
        let why = "orphanDependents and propagationPolicy cannot be both set";
        return refuse(Cause::invalid("propagationPolicy", policy, why));
    }
    let propagation = match policy.as_str() {
        None if policy.is_null() => match given["orphanDependents"].as_bool() {
            Some(true) => Some(Propagation::Orphan),
            Some(false) => Some(Propagation::Background),
            None => None,
        },
        Some("Background") => Some(Propagation::Background),
        Some("Foreground") => Some(Propagation::Foreground),
        Some("Orphan") => Some(Propagation::Orphan),
        _ => {
            let supported = &["Background", "Foreground", "Orphan"];
            return refuse(Cause::not_supported("propagationPolicy", policy, supported));
        }
    };
    let dry_run = match given["dryRun"].as_array().map(Vec::as_slice) {
        None | Some([]) => false,
        Some(all) if all.iter().all(|one| one == "All") => true,
        Some(_) => return refuse(Cause::not_supported("dryRun", &given["dryRun"], &["All"])),
    };
    let grace = &given["gracePeriodSeconds"];
    if !grace.is_null() && grace.as_i64().is_none() {
        return refuse(Cause::invalid(
            "gracePeriodSeconds",
            grace,
            "must be a number of seconds",
        ));
    }
    let text = |value: &Value| {
        value
            .as_str()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    Ok(DeleteOptions {
        grace_seconds: grace.as_i64(),
        propagation,
        uid: text(&given["preconditions"]["uid"]),
        resource_version: text(&given["preconditions"]["resourceVersion"]),
        dry_run,
    })
}
