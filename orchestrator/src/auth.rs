//! Who asks, and may they: authentication, authorization and the reviews that show both.
//!
//! Decisions are pure ([`rule`], [`rbac`], [`claims`], [`node`]); [`Auth`] is the thin shell that
//! gives them live objects and the time. Nobody is anonymous except towards health and version.

pub mod aggregation;
pub mod authenticate;
pub mod claims;
pub mod defaults;
pub mod escalation;
pub mod identity;
pub mod jwt;
pub mod node;
pub mod objects;
pub mod rbac;
pub mod references;
pub mod review;
pub mod rule;
pub mod token_request;

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use jiff::Timestamp;
use prometheus_client::metrics::{counter::Counter, family::Family};
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde_json::Value;

pub use authenticate::is_public;
pub use identity::{Attributes, Decision, ResourceTarget, Target, User, refusal};

use crate::cache::Cache;
use crate::status::{Status, Subject};
use crate::tls::WallClock;
use authenticate::Verified;
use jwt::{JwtError, SigningKey};
use node::Graph;
use objects::{PlacementMirror, RbacMirror};
use references::PodSpec;
use rule::Rule;

/// What the cluster's tokens say about it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Issuer of ServiceAccount tokens, an https URL.
    pub issuer: String,
    /// Audiences of this API server; a token without others is for the first.
    pub audiences: Vec<String>,
}

/// Authentication and authorization of one API server.
pub struct Auth {
    settings: Settings,
    key: SigningKey,
    cache: Arc<Cache>,
    clock: WallClock,
    verified: Mutex<Verified>,
    rbac: RbacMirror,
    placement: PlacementMirror,
    node_rules: Vec<Rule>,
    attempts: Attempts,
}

/// Counts by the answer, the label `result`.
type ByResult = Family<[(&'static str, &'static str); 1], Counter>;

/// How often who-are-you and may-you were asked.
#[derive(Default)]
struct Attempts {
    authentication: ByResult,
    authorization: ByResult,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

// === impl Settings ===

impl Settings {
    /// The names that a cluster of this DNS domain gives itself.
    pub fn of_domain(cluster_domain: &str) -> Self {
        let issuer = format!("https://kubernetes.default.svc.{cluster_domain}");
        Self {
            audiences: vec![issuer.clone()],
            issuer,
        }
    }
}

// === impl Auth ===

impl Auth {
    /// Judges by the objects in `cache`; `service_account_key` is PKCS#8 PEM.
    pub fn new(
        settings: Settings,
        service_account_key: &str,
        cache: Arc<Cache>,
        clock: WallClock,
    ) -> Result<Self, JwtError> {
        Ok(Self {
            settings,
            key: SigningKey::from_pem(service_account_key)?,
            clock,
            verified: Mutex::default(),
            rbac: RbacMirror::new(&cache),
            placement: PlacementMirror::new(&cache),
            node_rules: node::rules(),
            attempts: Attempts::default(),
            cache,
        })
    }

    /// Whether the user may do this.
    pub fn authorize(&self, user: &User, attributes: &Attributes<'_>) -> Decision {
        let Some(node) = user.node() else {
            return self.rbac.ask(|rbac| rbac.authorize(user, attributes));
        };
        let by_node = node::decide(node, attributes, self, &self.node_rules);
        if by_node.allowed() {
            return by_node;
        }
        let by_role = self.rbac.ask(|rbac| rbac.authorize(user, attributes));
        if by_role.allowed() { by_role } else { by_node }
    }

    /// [`Self::authorize`], with the 403 that the caller reads.
    pub fn require(&self, user: &User, attributes: &Attributes<'_>) -> Result<(), Status> {
        let decision = self.authorize(user, attributes);
        if decision.allowed() {
            count(&self.attempts.authorization, "allowed");
            return Ok(());
        }
        count(&self.attempts.authorization, "denied");
        Err(forbidden(user, attributes, decision.reason()))
    }

    /// Every rule that the user holds in a namespace, for reviews and escalation checks.
    pub fn rules_of(&self, user: &User, namespace: &str) -> Vec<Rule> {
        self.rbac.ask(|rbac| rbac.rules_of(user, namespace))
    }

    /// Adds the counts of decisions to what `/metrics` shows.
    pub fn register(&self, registry: &mut Registry) {
        let Attempts {
            authentication,
            authorization,
        } = &self.attempts;
        let what = "Requests by whether the caller proved an identity";
        registry.register("authentication_attempts", what, authentication.clone());
        let what = "Requests by whether the caller may do what it asks";
        registry.register("authorization_attempts", what, authorization.clone());
    }

    /// The OIDC discovery document, for `/.well-known/openid-configuration`.
    pub fn discovery(&self) -> Value {
        let issuer = &self.settings.issuer;
        serde_json::json!({
            "issuer": issuer,
            "jwks_uri": format!("{issuer}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// The public keys, for `/openid/v1/jwks`.
    pub fn key_set(&self) -> Value {
        self.key.key_set()
    }

    fn now(&self) -> i64 {
        let since = (self.clock)()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    }
}

/// The `spec` of a question; its default if absent, 400 if it has another shape.
fn spec_of<T: for<'a> Deserialize<'a> + Default>(object: &Value) -> Result<T, Status> {
    match object.get("spec") {
        None | Some(Value::Null) => Ok(T::default()),
        Some(spec @ Value::Object(_)) => {
            T::deserialize(spec).map_err(|error| Status::bad_request(format!("spec: {error}")))
        }
        Some(_) => Err(Status::bad_request("spec: must be an object")),
    }
}

fn count(attempts: &ByResult, result: &'static str) {
    attempts.get_or_create(&[("result", result)]).inc();
}

/// RFC 3339 of a Unix time, as the API writes times.
fn rfc3339(unix: i64) -> String {
    Timestamp::from_second(unix)
        .unwrap_or(Timestamp::MAX)
        .to_string()
}

/// The 403 of a refused request.
pub fn forbidden(user: &User, attributes: &Attributes<'_>, reason: &str) -> Status {
    let why = refusal(user, attributes, reason);
    match &attributes.target {
        Target::Resource(target) => {
            let subject = Subject {
                group: target.group,
                resource: target.resource,
            };
            Status::forbidden(subject, target.name, why)
        }
        Target::Path(_) => Status::forbidden_path(why),
    }
}

/// The node authorizer's questions, answered from the watch cache.
impl Graph for Auth {
    fn has_pod(&self, node: &str, namespace: &str, name: &str) -> bool {
        let key = format!("{namespace}/{name}");
        self.placement.pods_on(node).iter().any(|pod| **pod == *key)
    }

    fn pods(&self, node: &str, namespace: &str) -> Vec<(String, PodSpec)> {
        #[derive(Deserialize)]
        struct Pod {
            spec: PodSpec,
        }
        let keys = self.placement.pods_on(node);
        let keys = keys.iter().filter_map(|key| key.split_once('/'));
        keys.filter(|(of, _)| namespace.is_empty() || *of == namespace)
            .filter_map(|(of, name)| {
                let pod: Pod = objects::get(&self.cache, "pods", of, name)?.decode().ok()?;
                Some((of.to_owned(), pod.spec))
            })
            .collect()
    }

    fn claim_volume(&self, namespace: &str, claim: &str) -> String {
        #[derive(Deserialize)]
        struct Claim {
            spec: Spec,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Spec {
            #[serde(default)]
            volume_name: String,
        }
        objects::get(&self.cache, "persistentvolumeclaims", namespace, claim)
            .and_then(|claim| claim.decode::<Claim>().ok())
            .map_or_else(String::new, |claim| claim.spec.volume_name)
    }
}
