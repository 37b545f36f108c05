//! Health with a line per check, and the version.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicBool, Ordering},
};

use axum::body::Body;
use hyper::{Response, StatusCode, header, header::HeaderValue};
use serde_json::json;

use super::{options, respond};

/// The Kubernetes release whose behaviour is offered.
pub const VERSION: &str = "v1.34.1";

/// What must be true for the server to be well.
#[derive(Debug)]
pub struct Health {
    checks: Vec<Check>,
}

#[derive(Debug)]
struct Check {
    name: &'static str,
    live: bool,
    good: AtomicBool,
}

impl Health {
    /// Checks by name; those with `true` belong to `/livez` as well as to
    /// `/readyz`. All begin as not good, but for `ping`.
    pub fn new(checks: &[(&'static str, bool)]) -> Self {
        let mut all = vec![Check {
            name: "ping",
            live: true,
            good: AtomicBool::new(true),
        }];
        all.extend(checks.iter().map(|&(name, live)| Check {
            name,
            live,
            good: AtomicBool::new(false),
        }));
        Self { checks: all }
    }

    /// Sets a check.
    pub fn set(&self, name: &str, good: bool) {
        for check in self.checks.iter().filter(|check| check.name == name) {
            check.good.store(good, Ordering::Release);
        }
    }

    /// Whether everything is good.
    pub fn is_ready(&self) -> bool {
        self.checks
            .iter()
            .all(|check| check.good.load(Ordering::Acquire))
    }

    pub(super) fn answer(&self, path: &str, query: &str) -> Option<Response<Body>> {
        let mut segments = path.trim_matches('/').split('/');
        let door = segments
            .next()
            .filter(|door| matches!(*door, "healthz" | "livez" | "readyz"))?;
        let one = segments.next();
        let excluded: Vec<String> = query
            .split('&')
            .filter_map(|pair| options::value(pair, "exclude"))
            .collect();
        let selected = self.checks.iter().filter(|check| {
            (door == "readyz" || check.live)
                && one.is_none_or(|name| name == check.name)
                && !excluded.iter().any(|name| name == check.name)
        });
        let mut text = String::new();
        let (mut good, mut found) = (true, false);
        for check in selected {
            found = true;
            let ok = check.good.load(Ordering::Acquire);
            good &= ok;
            let (mark, word) = if ok {
                ('+', "ok")
            } else {
                ('-', "failed: not ready yet")
            };
            writeln!(text, "[{mark}]{} {word}", check.name).expect("strings take everything");
        }
        if one.is_some() && !found {
            return None;
        }
        let unknown: Vec<&str> = excluded
            .iter()
            .map(String::as_str)
            .filter(|name| !self.checks.iter().any(|check| check.name == *name))
            .collect();
        if !unknown.is_empty() {
            let unknown = unknown.join(", ");
            writeln!(text, "warn: there is no check {unknown} to exclude")
                .expect("strings take everything");
        }
        let verbose = options::value(query, "verbose").is_some();
        let body = match (good, verbose) {
            (true, false) => "ok".to_owned(),
            (true, true) => text + door + " check passed\n",
            (false, _) => text + door + " check failed\n",
        };
        let mut response = Response::new(Body::from(body));
        if !good {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
        let headers = response.headers_mut();
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, plain);
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, private"),
        );
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        Some(response)
    }
}

pub(super) fn version() -> Response<Body> {
    let mut numbers = VERSION.trim_start_matches('v').split('.');
    let info = json!({
        "major": numbers.next(),
        "minor": numbers.next(),
        "gitVersion": format!("{VERSION}+fairlead.{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": option_env!("FAIRLEAD_COMMIT").unwrap_or_default(),
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", architecture()),
    });
    respond::value(StatusCode::OK, &info)
}

/// The machine's architecture as Go and container images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
