//! Get and list.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::{Response, StatusCode, http::request::Parts};
use serde_json::{Value, json};

use super::{
    Api,
    accept::{self, Shape},
    options::{self, Continue, Wanted},
    path::Place,
    respond::{self, ListBody},
    shape::{self, Include},
};
use crate::{
    cache::{Expired, Page, Query},
    registry::Target,
    resource::Resource,
    status::Status,
    store::Revision,
};

/// How long a request waits for a revision that is not there yet.
const REVISION_WAIT: Duration = Duration::from_secs(3);

impl Api {
    /// One object.
    pub(super) fn get(
        &self,
        place: &Place<'_>,
        resource: &'static Resource,
        parts: &Parts,
    ) -> Result<Response<Body>, Status> {
        let entry = self
            .registry
            .get(Target::object(resource, place.namespace, place.name))?;
        Ok(match accept::shape(&parts.headers)? {
            Shape::Plain => {
                respond::json(StatusCode::OK, shape::plain(resource, entry.bytes.clone()))
            }
            Shape::Metadata => respond::json(StatusCode::OK, shape::partial_bytes(&entry)),
            Shape::Table => {
                let include = Include::parse(place.query);
                let metadata = json!({"resourceVersion": entry.revision.to_string()});
                let now = self.registry.now();
                let table = shape::table(resource, &[&entry], include, true, now, &metadata);
                respond::value(StatusCode::OK, &table)
            }
        })
    }

    /// A page of objects.
    pub(super) async fn list(
        &self,
        place: &Place<'_>,
        resource: &'static Resource,
        parts: &Parts,
    ) -> Result<Response<Body>, Status> {
        let form = accept::shape(&parts.headers)?;
        let query = self.query(place, resource).await?;
        let cache = self.registry.cache().of(resource);
        let page = cache.list(&query).map_err(|error| expired(&query, error))?;
        let metadata = list_metadata(&page, &query);
        Ok(match form {
            Shape::Plain => {
                let head = head(
                    &resource.api_version(),
                    &format!("{}List", resource.kind),
                    &metadata,
                );
                let entries = page.entries.into_iter();
                let objects = entries.map(move |entry| shape::plain(resource, entry.bytes.clone()));
                ListBody::response(head, objects, Bytes::from_static(b"]}\n"))
            }
            Shape::Metadata => {
                let head = head("meta.k8s.io/v1", "PartialObjectMetadataList", &metadata);
                let objects = page
                    .entries
                    .into_iter()
                    .map(|entry| shape::partial_bytes(&entry));
                ListBody::response(head, objects, Bytes::from_static(b"]}\n"))
            }
            Shape::Table => {
                let include = Include::parse(place.query);
                let entries: Vec<_> = page.entries.iter().map(|entry| &**entry).collect();
                let now = self.registry.now();
                let table = shape::table(resource, &entries, include, true, now, &metadata);
                respond::value(StatusCode::OK, &table)
            }
        })
    }

    /// Reads a list's parameters; waits for the revision that they ask for.
    async fn query(&self, place: &Place<'_>, resource: &'static Resource) -> Result<Query, Status> {
        let limit = options::number(place.query, "limit")?.unwrap_or(0);
        let limit = usize::try_from(limit)
            .map_err(|_negative| Status::bad_request("limit must not be negative"))?;
        let token = options::value(place.query, "continue").filter(|text| !text.is_empty());
        let selector = options::selector(place.query, resource)?;
        let namespace = (!place.namespace.is_empty()).then(|| place.namespace.to_owned());
        let mut query = Query {
            namespace,
            selector,
            limit,
            after: None,
            at: None,
        };
        if let Some(token) = token {
            if options::revision(place.query)?.is_some_and(|revision| revision.0 > 0) {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let token = Continue::decode(&token)?;
            query.at = (token.revision > 0).then_some(Revision(token.revision));
            query.after = Some(token.after);
        } else {
            match options::wanted(place.query, limit > 0)? {
                Wanted::Newest | Wanted::Any => {}
                Wanted::NotOlderThan(revision) => self.wait_for(revision).await?,
                Wanted::Exactly(revision) => {
                    self.wait_for(revision).await?;
                    query.at = Some(revision);
                }
            }
        }
        Ok(query)
    }

    /// Waits until a revision is there.
    ///
    /// # Errors
    /// 504 if it does not come.
    pub(super) async fn wait_for(&self, revision: Revision) -> Result<(), Status> {
        let cache = self.registry.cache();
        tokio::time::timeout(REVISION_WAIT, cache.reached(revision))
            .await
            .map_err(|_elapsed| Status::too_large_resource_version(revision.0, cache.revision().0))
    }
}

/// 410; between pages with a token to go on inconsistently.
fn expired(query: &Query, error: Expired) -> Status {
    match &query.after {
        None => Status::expired(error.to_string()),
        Some(after) => Status {
            continue_token: Some(
                Continue {
                    revision: 0,
                    after: after.clone(),
                }
                .encode()
                .into(),
            ),
            ..Status::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
            )
        },
    }
}

fn list_metadata(page: &Page, query: &Query) -> Value {
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(after) = &page.more_after {
        let revision = query.at.unwrap_or(page.revision).0;
        metadata["continue"] = Continue {
            revision,
            after: after.to_string(),
        }
        .encode()
        .into();
        if let Some(remaining) = page.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    metadata
}

fn head(api_version: &str, kind: &str, metadata: &Value) -> Bytes {
    format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{metadata},"items":["#)
        .into()
}
