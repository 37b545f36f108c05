//! The HTTP surface: paths in, pipeline calls out, answers as clients expect them.
//!
//! [`Api::handle`] is one async function from request to response, so tests
//! call it without a socket. It decides nothing about objects: that is
//! [`crate::registry`]'s business.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use hyper::{Method, Request, Response, StatusCode, header, http::request::Parts};
use tokio::sync::Semaphore;

use crate::{
    auth::{Attributes, Auth, ResourceTarget, User},
    registry::{Caller, Registry},
    resource::{self, Resource},
    status::Status,
    tls::Peer,
};

mod accept;
mod body;
mod delete;
mod discovery;
mod health;
pub mod metrics;
mod options;
mod path;
mod process;
mod read;
mod respond;
mod shape;
mod subresource;
mod watch;
mod write;

pub use health::{Health, VERSION};
pub use metrics::Metrics;
pub use path::{Destination, Place};

/// Requests worked on at once, watches aside; more wait, then get 429.
const INFLIGHT: usize = 1000;
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);
/// Watches open at once; more get 429.
const WATCHES: usize = 20_000;

/// The API server.
pub struct Api {
    registry: Arc<Registry>,
    auth: Arc<Auth>,
    health: Health,
    metrics: Arc<Metrics>,
    inflight: Semaphore,
    watches: Arc<Semaphore>,
    address: String,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A request with its body apart.
struct Incoming<'a> {
    parts: &'a Parts,
    caller: Caller,
    body: Body,
}

impl Api {
    /// An API over a registry; `address` is what discovery tells clients.
    pub fn new(
        registry: Arc<Registry>,
        auth: Arc<Auth>,
        health: Health,
        metrics: Arc<Metrics>,
        address: String,
    ) -> Self {
        Self {
            registry,
            auth,
            health,
            metrics,
            inflight: Semaphore::new(INFLIGHT),
            watches: Arc::new(Semaphore::new(WATCHES)),
            address,
        }
    }

    /// Answers one request; every refusal is a `Status`.
    pub async fn handle(&self, request: Request<Body>) -> Response<Body> {
        let started = tokio::time::Instant::now();
        let (parts, body) = request.into_parts();
        let decoded = path::Segments::split(parts.uri.path());
        let mut place = None;
        let mut response = match &decoded {
            Err(status) => respond::refusal(status),
            Ok(segments) => {
                let result = self.answer(&parts, body, segments, &mut place).await;
                result.unwrap_or_else(|status| respond::refusal(&status))
            }
        };
        self.metrics
            .observe(place.as_ref(), &parts, response.status(), started.elapsed());
        if parts.method == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        response
    }

    async fn answer<'a>(
        &self,
        parts: &'a Parts,
        body: Body,
        segments: &'a path::Segments,
        noted: &mut Option<Place<'a>>,
    ) -> Result<Response<Body>, Status> {
        let peer = parts.extensions.get::<Peer>();
        let user = self
            .auth
            .authenticate(peer, &parts.headers, parts.uri.path())?;
        let user = self.auth.impersonate(user, &parts.headers)?;
        let place = Place::find(
            &parts.method,
            parts.uri.query().unwrap_or_default(),
            segments,
        )?;
        let place = noted.insert(place);
        self.authorize(&user, place)?;
        let agent = parts
            .headers
            .get(header::USER_AGENT)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split('/').next())
            .filter(|value| !value.is_empty())
            .unwrap_or("unknown");
        let caller = Caller {
            user: Arc::new(user),
            agent: agent.into(),
        };
        if let Some(what) = place.long_running() {
            return self.watch(place, what, parts).await;
        }
        let _turn = tokio::time::timeout(PATIENCE, self.inflight.acquire())
            .await
            .map_err(|_elapsed| {
                Status::too_many_requests("Too many requests, please try again later.", 1)
            })?
            .map_err(|_closed| Status::unavailable("the server is shutting down"))?;
        let _counted = self.metrics.turn(&parts.method);
        let request = Incoming {
            parts,
            caller,
            body,
        };
        match place.destination {
            Destination::Fixed(path) => self.fixed(path, request.parts),
            Destination::Object { resource, .. } => {
                let mut response = self.object(place, resource, request).await?;
                let warning = resource.deprecated.map(str::to_owned);
                respond::warn(&mut response, warning.as_slice());
                Ok(response)
            }
        }
    }

    /// 403 unless the user may do this.
    fn authorize(&self, user: &User, place: &Place<'_>) -> Result<(), Status> {
        let resource = match place.destination {
            Destination::Fixed(path) => {
                return self.auth.require(user, &Attributes::path(place.verb, path));
            }
            Destination::Object { resource } => resource,
        };
        // A selector that cannot be parsed is refused later, and demands nothing here.
        let selector = match place.verb {
            "list" | "watch" | "deletecollection" => {
                options::selector(place.query, resource).unwrap_or_default()
            }
            _ => crate::cache::Selector::default(),
        };
        let node_field = resource
            .fields
            .iter()
            .position(|field| field.name == "spec.nodeName");
        let target = ResourceTarget {
            group: resource.group,
            resource: resource.plural,
            subresource: place.subresource,
            namespace: place.namespace,
            name: if place.name.is_empty() {
                selector.wanted_name().unwrap_or_default()
            } else {
                place.name
            },
            node_name: node_field
                .and_then(|f| selector.wanted_field(f))
                .unwrap_or_default(),
        };
        self.auth
            .require(user, &Attributes::resource(place.verb, target))
    }

    /// Everything that is not a resource.
    fn fixed(&self, path: &str, parts: &Parts) -> Result<Response<Body>, Status> {
        if parts.method != Method::GET && parts.method != Method::HEAD {
            return Err(Status::method_not_allowed());
        }
        if let Some(response) = self
            .health
            .answer(path, parts.uri.query().unwrap_or_default())
        {
            return Ok(response);
        }
        match path {
            "/metrics" => Ok(self.metrics.answer(self.registry.cache())),
            "/version" | "/version/" => Ok(health::version()),
            "/.well-known/openid-configuration" => {
                Ok(respond::value(StatusCode::OK, &self.auth.discovery()))
            }
            "/openid/v1/jwks" => Ok(respond::value(StatusCode::OK, &self.auth.key_set())),
            _ => discovery::answer(path, parts, &self.address),
        }
    }

    async fn object(
        &self,
        place: &Place<'_>,
        resource: &'static Resource,
        request: Incoming<'_>,
    ) -> Result<Response<Body>, Status> {
        // Before anything is done: a write that cannot be answered does not happen.
        accept::shape(&request.parts.headers)?;
        body::plain(&request.parts.headers)?;
        if !place.subresource.is_empty() {
            return self.subresource(place, resource, request).await;
        }
        if !resource.verbs.contains(&place.verb) {
            return Err(Status::method_not_allowed());
        }
        match place.verb {
            "get" => self.get(place, resource, request.parts),
            "list" => self.list(place, resource, request.parts).await,
            "create" => self.create(place, resource, request).await,
            "update" => self.replace(place, resource, request).await,
            "patch" => self.patch(place, resource, request).await,
            "delete" => self.delete(place, resource, request).await,
            "deletecollection" => self.delete_collection(place, resource, request).await,
            _ => Err(Status::method_not_allowed()),
        }
    }
}

/// 404 for a kind that does not exist here, with what was perhaps meant.
fn unknown_resource(group: &str, version: &str, plural: &str) -> Status {
    let near = resource::all()
        .map(|r| {
            (
                distance(plural, r.plural) + usize::from(r.group != group),
                r,
            )
        })
        .filter(|(distance, _)| *distance <= 2)
        .min_by_key(|(distance, _)| *distance);
    let hint = near.map_or_else(String::new, |(_, r)| {
        format!("; did you mean {:?} in {}?", r.plural, r.api_version())
    });
    Status::no_such_resource(format!(
        "the server could not find the requested resource ({plural:?} in {}){hint}",
        resource::join(group, version)
    ))
}

/// Levenshtein distance of two short words; long ones count as far apart.
fn distance(a: &str, b: &str) -> usize {
    const LONG: usize = 64;
    if a.len() > LONG || b.len() > LONG {
        return LONG;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let next = (left + 1)
                .min(*cell + 1)
                .min(diagonal + usize::from(x != y));
            diagonal = *cell;
            *cell = next;
            left = next;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}
