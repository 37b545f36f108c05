//! From a connection and its headers to a [`User`]: client certificates, ServiceAccount and
//! bootstrap tokens, impersonation.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use thiserror::Error;

use super::claims::{self, ClaimError, Claims};
use super::identity::{
    ANONYMOUS, AUTHENTICATED, Attributes, ResourceTarget, SERVICE_ACCOUNTS, UNAUTHENTICATED, User,
    split_service_account,
};
use super::jwt::JwtError;
use super::{Auth, count, objects};
use crate::status::Status;
use crate::tls::{Peer, PeerCertificate};

/// Signatures remembered per generation; two generations are kept, the older one is dropped whole.
const VERIFIED_MAX: usize = 2048;

/// Tokens whose signature has been checked. Time and bound objects are judged on each use.
#[derive(Debug, Default)]
pub struct Verified {
    young: HashMap<[u8; 32], Arc<Claims>>,
    old: HashMap<[u8; 32], Arc<Claims>>,
}

/// Why a token identifies nobody; for the log and TokenReview, never for the caller.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TokenError {
    /// Form or signature.
    #[error(transparent)]
    Jwt(#[from] JwtError),
    /// The claims are not those of a ServiceAccount token.
    #[error("token claims are not those of a service account token")]
    Claims,
    /// The claims do not hold.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// A bootstrap token that is unknown, expired, wrong or not meant for this.
    #[error("bootstrap token is unknown, expired or not for authentication")]
    Bootstrap,
}

/// Paths that need no credentials: health and version.
pub fn is_public(path: &str) -> bool {
    let path = path.strip_suffix('/').unwrap_or(path);
    let of = |root: &str| {
        path == root
            || path
                .strip_prefix(root)
                .is_some_and(|rest| rest.starts_with('/'))
    };
    path == "/version" || ["/healthz", "/livez", "/readyz"].into_iter().any(of)
}

// === impl Verified ===

impl Verified {
    fn get(&mut self, key: &[u8; 32]) -> Option<Arc<Claims>> {
        if let Some(claims) = self.young.get(key) {
            return Some(Arc::clone(claims));
        }
        let claims = self.old.remove(key)?;
        self.put(*key, Arc::clone(&claims));
        Some(claims)
    }

    fn put(&mut self, key: [u8; 32], claims: Arc<Claims>) {
        if self.young.len() >= VERIFIED_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, claims);
    }
}

// === impl Auth: authentication ===

impl Auth {
    /// Who sends this request. Without credentials: anonymous on public paths, else 401.
    pub fn authenticate(
        &self,
        peer: Option<&Peer>,
        headers: &HeaderMap,
        path: &str,
    ) -> Result<User, Status> {
        let user = self.identify(peer, headers, path);
        let result = if user.is_ok() { "success" } else { "failure" };
        count(&self.attempts.authentication, result);
        user
    }

    fn identify(
        &self,
        peer: Option<&Peer>,
        headers: &HeaderMap,
        path: &str,
    ) -> Result<User, Status> {
        let certificate = peer.map(|peer| &peer.certificate);
        if let Some(PeerCertificate::Verified(identity)) = certificate {
            if (self.clock)() < identity.not_after {
                return Ok(certificate_user(identity));
            }
            tracing::debug!(
                user = identity.common_name,
                "client certificate has expired"
            );
            return Err(Status::unauthorized());
        }
        if let Some(token) = bearer(headers) {
            let user = self.token_user(token, &self.settings.audiences);
            return user.map(|(user, _)| user).map_err(|error| {
                tracing::debug!(%error, "bearer token refused");
                Status::unauthorized()
            });
        }
        if let Some(PeerCertificate::Rejected(reason)) = certificate {
            tracing::debug!(%reason, "client certificate refused");
            return Err(Status::unauthorized());
        }
        if is_public(path) {
            Ok(User::anonymous())
        } else {
            Err(Status::unauthorized())
        }
    }

    /// The user of a bearer token, and the audiences under which it holds.
    pub fn token_user(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(User, Vec<String>), TokenError> {
        if let Some((id, secret)) = bootstrap_parts(token) {
            let user = self
                .bootstrap_user(id, secret)
                .ok_or(TokenError::Bootstrap)?;
            let shared = audiences
                .iter()
                .filter(|a| self.settings.audiences.contains(a))
                .cloned();
            return Ok((user, shared.collect()));
        }
        let claims = self.verified_claims(token)?;
        let now = self.now();
        let shared = claims::check(&claims, &self.settings.issuer, audiences, now)?;
        claims::check_bound(&claims.bound, now, &|resource, name| {
            let namespace = if resource == "nodes" {
                ""
            } else {
                &claims.bound.namespace
            };
            let entry = objects::get(&self.cache, resource, namespace, name)?;
            Some(objects::alive(&entry))
        })?;
        Ok((claims::user(&claims), shared))
    }

    fn verified_claims(&self, token: &str) -> Result<Arc<Claims>, TokenError> {
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let known = || self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(claims) = known().get(&key) {
            return Ok(claims);
        }
        let payload = self.key.verify(token)?;
        let claims = serde_json::from_slice(&payload)
            .ok()
            .ok_or(TokenError::Claims)?;
        let claims: Arc<Claims> = Arc::new(claims);
        known().put(key, Arc::clone(&claims));
        Ok(claims)
    }

    fn bootstrap_user(&self, id: &str, secret: &str) -> Option<User> {
        #[derive(Deserialize)]
        struct Secret {
            #[serde(rename = "type", default)]
            kind: String,
            #[serde(default)]
            data: BTreeMap<String, String>,
        }
        let name = format!("bootstrap-token-{id}");
        let entry = objects::get(&self.cache, "secrets", "kube-system", &name)?;
        let object: Secret = entry.decode().ok()?;
        let field = |key: &str| {
            let bytes = STANDARD.decode(object.data.get(key)?).ok()?;
            String::from_utf8(bytes).ok()
        };
        let hash = |text: &str| digest(&SHA256, text.as_bytes()).as_ref().to_vec();
        let expired = field("expiration").is_some_and(|at| {
            at.parse::<Timestamp>().map_or(0, Timestamp::as_second) <= self.now()
        });
        let deleting = objects::alive(&entry).deleted_at.is_some();
        // Digests are compared, so that the time it takes tells nothing about the secret.
        let right = object.kind == "bootstrap.kubernetes.io/token"
            && field("token-id")? == id
            && hash(&field("token-secret")?) == hash(secret)
            && field("usage-bootstrap-authentication").as_deref() == Some("true");
        if !right || expired || deleting {
            return None;
        }
        let mut user =
            User::component(&format!("system:bootstrap:{id}"), &["system:bootstrappers"]);
        let extra = field("auth-extra-groups").unwrap_or_default();
        let allowed = extra
            .split(',')
            .filter(|group| group.starts_with("system:bootstrappers:"));
        user.groups.extend(allowed.map(str::to_owned));
        Some(user)
    }

    /// Replaces the user by the one that `Impersonate-*` headers ask for, if it may do so.
    pub fn impersonate(&self, user: User, headers: &HeaderMap) -> Result<User, Status> {
        let Some(wanted) = Impersonation::from_headers(headers)? else {
            return Ok(user);
        };
        for (group, resource, subresource, namespace, name) in wanted.targets() {
            let target = ResourceTarget {
                group,
                resource,
                subresource,
                namespace,
                name,
                node_name: "",
            };
            self.require(&user, &Attributes::resource("impersonate", target))?;
        }
        Ok(wanted.into_user())
    }
}

fn certificate_user(identity: &crate::tls::CertificateIdentity) -> User {
    let groups: Vec<&str> = identity.organizations.iter().map(String::as_str).collect();
    let mut user = User::component(&identity.common_name, &groups);
    let credential = format!("X509SHA256={}", identity.fingerprint);
    user.extra.insert(
        "authentication.kubernetes.io/credential-id".to_owned(),
        vec![credential],
    );
    user
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// `abcdef.0123456789abcdef`: six and sixteen characters of `[a-z0-9]`.
fn bootstrap_parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |part: &str| {
        part.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

/// What the `Impersonate-*` headers of a request ask for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Impersonation {
    user: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl Impersonation {
    fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, Status> {
        let mut wanted = Self::default();
        for (name, value) in headers {
            let Some(what) = name.as_str().strip_prefix("impersonate-") else {
                continue;
            };
            let value = value.to_str().ok();
            let value = value
                .ok_or_else(|| Status::bad_request(format!("header {name} is not plain text")))?;
            match what {
                "user" => value.clone_into(&mut wanted.user),
                "uid" => value.clone_into(&mut wanted.uid),
                "group" => wanted.groups.push(value.to_owned()),
                other => {
                    let Some(key) = other.strip_prefix("extra-") else {
                        continue;
                    };
                    let values = wanted.extra.entry(percent_decode(key)).or_default();
                    values.push(value.to_owned());
                }
            }
        }
        if wanted == Self::default() {
            return Ok(None);
        }
        if wanted.user.is_empty() {
            return Err(Status::bad_request(
                "Impersonate-Uid, -Group and -Extra headers need an Impersonate-User header",
            ));
        }
        Ok(Some(wanted))
    }

    /// What the impersonator must be allowed: (group, resource, subresource, namespace, name).
    fn targets(&self) -> Vec<(&str, &str, &str, &str, &str)> {
        const GROUP: &str = "authentication.k8s.io";
        let mut targets = vec![match split_service_account(&self.user) {
            Some((namespace, name)) => ("", "serviceaccounts", "", namespace, name),
            None => ("", "users", "", "", &*self.user),
        }];
        targets.extend(
            self.groups
                .iter()
                .map(|group| ("", "groups", "", "", &**group)),
        );
        if !self.uid.is_empty() {
            targets.push((GROUP, "uids", "", "", &self.uid));
        }
        for (key, values) in &self.extra {
            targets.extend(
                values
                    .iter()
                    .map(|value| (GROUP, "userextras", &**key, "", &**value)),
            );
        }
        targets
    }

    fn into_user(self) -> User {
        let Self {
            user: name,
            uid,
            mut groups,
            extra,
        } = self;
        if groups.is_empty()
            && let Some((namespace, _)) = split_service_account(&name)
        {
            groups = vec![
                SERVICE_ACCOUNTS.to_owned(),
                format!("{SERVICE_ACCOUNTS}:{namespace}"),
            ];
        }
        let known = groups
            .iter()
            .any(|group| [AUTHENTICATED, UNAUTHENTICATED].contains(&&**group));
        if !known {
            let group = if name == ANONYMOUS {
                UNAUTHENTICATED
            } else {
                AUTHENTICATED
            };
            groups.push(group.to_owned());
        }
        User {
            name,
            uid,
            groups,
            extra,
        }
    }
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).filter(|_| *first == b'%');
        let hex = hex.and_then(|pair| std::str::from_utf8(pair).ok());
        if let Some(byte) = hex.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            bytes.push(byte);
            rest = tail.get(2..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_health_and_version_are_public() {
        for path in [
            "/healthz",
            "/livez/ping",
            "/readyz",
            "/version",
            "/version/",
        ] {
            assert!(is_public(path), "{path}");
        }
        for path in [
            "/",
            "/api",
            "/healthzz",
            "/versions",
            "/metrics",
            "/openapi/v3",
            "/version/x",
        ] {
            assert!(!is_public(path), "{path}");
        }
    }

    #[test]
    fn impersonation_asks_for_each_right_it_uses() {
        let asked = headers(&[
            ("impersonate-user", "system:serviceaccount:a:b"),
            ("impersonate-group", "x"),
            ("impersonate-group", "y"),
            ("impersonate-uid", "u"),
            ("impersonate-extra-acme.com%2fteam", "t"),
        ]);
        let wanted = Impersonation::from_headers(&asked).unwrap().unwrap();
        let group = "authentication.k8s.io";
        assert_eq!(
            wanted.targets(),
            [
                ("", "serviceaccounts", "", "a", "b"),
                ("", "groups", "", "", "x"),
                ("", "groups", "", "", "y"),
                (group, "uids", "", "", "u"),
                (group, "userextras", "acme.com/team", "", "t"),
            ]
        );
        assert_eq!(wanted.into_user().groups, ["x", "y", AUTHENTICATED]);
        assert_eq!(Impersonation::from_headers(&headers(&[])).unwrap(), None);
        let lone = Impersonation::from_headers(&headers(&[("impersonate-group", "x")]));
        assert_eq!(lone.unwrap_err().code, 400);
    }

    #[test]
    fn the_bearer_scheme_is_the_only_one() {
        let token = |value: &str| bearer(&headers(&[("authorization", value)])).map(str::to_owned);
        assert_eq!(token("Bearer abc"), Some("abc".to_owned()));
        assert_eq!(token("bearer  abc "), Some("abc".to_owned()));
        assert_eq!(token("Basic abc"), None);
        assert_eq!(token("Bearer"), None);
        assert_eq!(token("Bearer "), None);
    }

    #[test]
    fn remembered_signatures_are_bounded() {
        let bound = claims::Bound {
            namespace: "a".into(),
            node: None,
            pod: None,
            secret: None,
            serviceaccount: claims::Reference {
                name: "b".into(),
                uid: "c".into(),
            },
        };
        let claims = Arc::new(Claims {
            aud: vec![],
            exp: 0,
            iat: 0,
            iss: String::new(),
            jti: String::new(),
            bound,
            nbf: 0,
            sub: String::new(),
        });
        let mut verified = Verified::default();
        let key = |n: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            key
        };
        for n in 0..3 * VERIFIED_MAX {
            verified.put(key(n), Arc::clone(&claims));
            assert!(verified.young.len() + verified.old.len() <= 2 * VERIFIED_MAX);
        }
        assert!(verified.get(&key(3 * VERIFIED_MAX - 1)).is_some());
        assert!(verified.get(&key(0)).is_none());
    }
}
