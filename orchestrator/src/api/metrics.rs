//! Metrics, with upstream's names where the meaning is the same.

use std::{
    sync::{Arc, Mutex, atomic::AtomicI64},
    time::Duration,
};

use axum::body::Body;
use hyper::{Method, Response, StatusCode, header, header::HeaderValue, http::request::Parts};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{
    path::{Destination, Place},
    process::Process,
};
use crate::{cache::Cache, resource::Resource};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CodeLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResourceLabels {
    resource: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    group: &'static str,
    version: &'static str,
    resource: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TurnLabels {
    request_kind: &'static str,
}

type Gauges = Family<ResourceLabels, Gauge<i64, AtomicI64>>;

/// All metrics of the process. Controllers add theirs with [`Self::register`].
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<CodeLabels, Counter>,
    durations: Family<RequestLabels, Histogram>,
    inflight: Family<TurnLabels, Gauge>,
    watchers: Gauges,
    watch_events: Family<KindLabels, Counter>,
    objects: Gauges,
    ring_bytes: Gauges,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let durations: Family<RequestLabels, Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let (watchers, objects, ring_bytes) =
            (Gauges::default(), Gauges::default(), Gauges::default());
        registry.register(
            "apiserver_request",
            "Requests by verb, resource and code",
            requests.clone(),
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "Response latency, watches aside",
            durations.clone(),
        );
        let inflight = Family::default();
        registry.register(
            "apiserver_current_inflight_requests",
            "Requests worked on, watches aside",
            inflight.clone(),
        );
        let watch_events = Family::default();
        registry.register(
            "apiserver_watch_events",
            "Events sent to watchers",
            watch_events.clone(),
        );
        registry.register_collector(Box::new(Process));
        registry.register(
            "apiserver_longrunning_requests",
            "Open watches",
            watchers.clone(),
        );
        registry.register(
            "apiserver_storage_objects",
            "Stored objects",
            objects.clone(),
        );
        registry.register(
            "fairlead_watch_cache_ring_bytes",
            "Bytes of recent events held per resource",
            ring_bytes.clone(),
        );
        Self {
            registry: Mutex::new(registry),
            requests,
            durations,
            inflight,
            watchers,
            watch_events,
            objects,
            ring_bytes,
        }
    }
}

/// Upper bounds in seconds.
const BUCKETS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.25, 2.0, 4.0, 8.0, 20.0, 60.0,
];

/// Counts something until it is dropped.
#[derive(Debug)]
pub(super) struct Present(Gauge<i64, AtomicI64>);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Adds metrics of another part of the process.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().expect("no holder panics"));
    }

    /// Counts a request while it is worked on.
    pub(super) fn turn(&self, method: &Method) -> Present {
        let read = matches!(*method, Method::GET | Method::HEAD);
        let labels = TurnLabels {
            request_kind: if read { "readOnly" } else { "mutating" },
        };
        let gauge = self.inflight.get_or_create_owned(&labels);
        gauge.inc();
        Present(gauge)
    }

    /// Counts the events that the watchers of a resource are sent.
    pub(super) fn watch_events(&self, resource: &Resource) -> Counter {
        let labels = KindLabels {
            group: resource.group,
            version: resource.version,
            resource: resource.plural,
        };
        self.watch_events.get_or_create_owned(&labels)
    }

    /// Counts an open watch.
    pub(super) fn watching(&self, resource: &Resource) -> Present {
        let labels = ResourceLabels {
            resource: resource.key.to_owned(),
        };
        let gauge = self.watchers.get_or_create(&labels).clone();
        gauge.inc();
        Present(gauge)
    }

    /// Records one answered request. Labels come from descriptions, never from
    /// what a client made up, so their number is bounded.
    pub(super) fn observe(
        &self,
        place: Option<&Place<'_>>,
        parts: &Parts,
        code: StatusCode,
        taken: Duration,
    ) {
        let (verb, resource, subresource, scope) = match place {
            Some(place) => match place.destination {
                Destination::Object { resource } => {
                    let sub = resource
                        .subresource(place.subresource)
                        .map_or("", |s| s.name);
                    let scope = match (place.name.is_empty(), place.namespace.is_empty()) {
                        (false, _) => "resource",
                        (true, false) => "namespace",
                        (true, true) => "cluster",
                    };
                    (place.verb, Some(resource), sub, scope)
                }
                Destination::Fixed(_) => (place.verb, None, "", ""),
            },
            None => (
                if parts.method == "GET" {
                    "get"
                } else {
                    "other"
                },
                None,
                "",
                "",
            ),
        };
        let (group, version, plural) =
            resource.map_or(("", "", ""), |r| (r.group, r.version, r.plural));
        let labels = CodeLabels {
            verb: verb.to_uppercase(),
            group: group.to_owned(),
            version: version.to_owned(),
            resource: plural.to_owned(),
            subresource: subresource.to_owned(),
            code: code.as_u16(),
        };
        self.requests.get_or_create(&labels).inc();
        if verb == "watch" {
            return;
        }
        let labels = RequestLabels {
            verb: labels.verb,
            group: labels.group,
            version: labels.version,
            resource: labels.resource,
            subresource: labels.subresource,
            scope: scope.to_owned(),
        };
        self.durations
            .get_or_create(&labels)
            .observe(taken.as_secs_f64());
    }

    pub(super) fn answer(self: &Arc<Self>, cache: &Cache) -> Response<Body> {
        for (resource, fill) in cache.fill() {
            let labels = ResourceLabels {
                resource: resource.key.to_owned(),
            };
            let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            self.objects
                .get_or_create(&labels)
                .set(number(fill.objects));
            self.ring_bytes
                .get_or_create(&labels)
                .set(number(fill.ring_bytes));
        }
        let mut text = String::new();
        let registry = self.registry.lock().expect("no holder panics");
        encode(&mut text, &registry).expect("strings take everything");
        let mut response = Response::new(Body::from(text));
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }
}
