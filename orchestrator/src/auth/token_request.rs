//! The `token` subresource of ServiceAccounts: bound, expiring tokens on request.

use serde::Deserialize;
use serde_json::{Value, json};

use super::claims::{Bound, Claims, Reference};
use super::identity::{SERVICE_ACCOUNT_PREFIX, User};
use super::{Auth, objects, rfc3339, spec_of};
use crate::status::{Cause, Status, Subject};

/// Life of a token if none is asked for, seconds.
const LIFE_DEFAULT: i64 = 3600;
/// Shortest life, seconds.
const LIFE_MIN: i64 = 600;
/// Longest life that the API takes, seconds.
const LIFE_MAX: i64 = 1 << 32;

const SERVICE_ACCOUNTS: Subject<'_> = Subject {
    group: "",
    resource: "serviceaccounts",
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    audiences: Option<Vec<String>>,
    expiration_seconds: Option<i64>,
    bound_object_ref: Option<ObjectRef>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ObjectRef {
    kind: String,
    name: String,
    uid: String,
}

impl Auth {
    /// Answers a TokenRequest for `namespace/name`: the request with the token in its status.
    /// A node gets tokens for its own pods only.
    pub fn request_token(
        &self,
        user: &User,
        namespace: &str,
        name: &str,
        request: &Value,
    ) -> Result<Value, Status> {
        let spec: Spec = spec_of(request)?;
        let account_uid = self
            .live_uid("serviceaccounts", namespace, name)
            .ok_or_else(|| Status::not_found(SERVICE_ACCOUNTS, name))?;
        let life = life(spec.expiration_seconds)?;
        let audiences = spec
            .audiences
            .filter(|list| !list.is_empty())
            .unwrap_or_else(|| self.settings.audiences.clone());
        let mut bound = Bound {
            namespace: namespace.to_owned(),
            node: None,
            pod: None,
            secret: None,
            serviceaccount: Reference {
                name: name.to_owned(),
                uid: account_uid,
            },
        };
        if let Some(wanted) = spec.bound_object_ref {
            self.bind(&mut bound, &wanted)?;
        }
        if let Some(node) = user.node() {
            own_pod_only(node, name, &bound)?;
        }
        let now = self.now();
        let claims = Claims {
            aud: audiences.clone(),
            exp: now.saturating_add(life),
            iat: now,
            iss: self.settings.issuer.clone(),
            jti: random_uuid().ok_or_else(|| Status::internal("no randomness for a token"))?,
            sub: format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}"),
            nbf: now,
            bound,
        };
        let token = self
            .key
            .sign(&claims)
            .map_err(|error| Status::internal(error.to_string()))?;
        // Made anew: nothing of what the client sent besides the spec is echoed.
        let mut answer = json!({
            "metadata": {
                "name": name,
                "namespace": namespace,
                "creationTimestamp": rfc3339(now),
            },
            "spec": {"audiences": audiences, "expirationSeconds": life},
            "status": {"token": token, "expirationTimestamp": rfc3339(claims.exp)},
        });
        if let Some(bound) = request.pointer("/spec/boundObjectRef") {
            answer["spec"]["boundObjectRef"] = bound.clone();
        }
        Ok(answer)
    }

    /// Binds the token to the pod, secret or node that the request names.
    fn bind(&self, bound: &mut Bound, wanted: &ObjectRef) -> Result<(), Status> {
        let ObjectRef { kind, name, uid } = wanted;
        let (resource, namespace) = match kind.as_str() {
            "Pod" => ("pods", bound.namespace.as_str()),
            "Secret" => ("secrets", bound.namespace.as_str()),
            "Node" => ("nodes", ""),
            other => {
                let message = format!("cannot bind token to object of type {other:?}");
                return Err(Status::bad_request(message));
            }
        };
        let subject = Subject {
            group: "",
            resource,
        };
        let entry = objects::get(&self.cache, resource, namespace, name)
            .ok_or_else(|| Status::not_found(subject, name))?;
        if !uid.is_empty() && **uid != *entry.uid {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. \
                 The object might have been deleted and then recreated"
            );
            return Err(Status::conflict(subject, name, why));
        }
        let reference = Reference {
            name: name.clone(),
            uid: entry.uid.to_string(),
        };
        match resource {
            "pods" => {
                let pod: Pod = entry
                    .decode()
                    .map_err(|error| Status::internal(format!("pod {name:?}: {error}")))?;
                let account = &bound.serviceaccount.name;
                if pod.spec.service_account_name != *account {
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {account:?} to pod running with \
                         different serviceaccount name."
                    )));
                }
                let node = pod.spec.node_name;
                bound.node = (!node.is_empty()).then(|| Reference {
                    uid: self.live_uid("nodes", "", &node).unwrap_or_default(),
                    name: node,
                });
                bound.pod = Some(reference);
            }
            "secrets" => bound.secret = Some(reference),
            _ => bound.node = Some(reference),
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Pod {
    spec: PodSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default)]
    service_account_name: String,
    #[serde(default)]
    node_name: String,
}

/// Refuses a node's token that is not bound to a pod on it.
fn own_pod_only(node: &str, account: &str, bound: &Bound) -> Result<(), Status> {
    let on_it = bound.node.as_ref().is_some_and(|of| of.name == node);
    let why = match &bound.pod {
        None => "node requested token not bound to a pod",
        Some(_) if !on_it => "node requested token bound to a pod scheduled on a different node",
        Some(_) => return Ok(()),
    };
    Err(Status::forbidden(SERVICE_ACCOUNTS, account, why))
}

fn life(asked: Option<i64>) -> Result<i64, Status> {
    let life = asked.unwrap_or(LIFE_DEFAULT);
    let why = if life < LIFE_MIN {
        "may not specify a duration less than 10 minutes"
    } else if life > LIFE_MAX {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(life);
    };
    let cause = Cause::invalid("spec.expirationSeconds", &json!(life), why);
    Err(Status::invalid(
        "authentication.k8s.io",
        "TokenRequest",
        "",
        vec![cause],
    ))
}

/// A random UUID (version 4), `None` if the system has no randomness.
fn random_uuid() -> Option<String> {
    use ring::rand::{SecureRandom as _, SystemRandom};
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).ok()?;
    let mut bits = u128::from_be_bytes(bytes);
    bits = bits & !(0xf << 76) | (4 << 76);
    bits = bits & !(0b11 << 62) | (0b10 << 62);
    let hex = format!("{bits:032x}");
    let part = |range| hex.get(range).unwrap_or_default();
    Some(format!(
        "{}-{}-{}-{}-{}",
        part(0..8),
        part(8..12),
        part(12..16),
        part(16..20),
        part(20..32)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_outside_the_bounds_names_its_field() {
        assert_eq!(life(None).unwrap(), 3600);
        assert_eq!(life(Some(600)).unwrap(), 600);
        for (asked, why) in [
            (599, "less than 10 minutes"),
            (LIFE_MAX + 1, "larger than 2^32"),
        ] {
            let refused = life(Some(asked)).unwrap_err();
            assert_eq!(refused.code, 422);
            assert!(
                refused.message.contains("spec.expirationSeconds"),
                "{refused}"
            );
            assert!(refused.message.contains(why), "{refused}");
        }
    }

    #[test]
    fn a_uuid_has_its_version_and_variant() {
        for _ in 0..50 {
            let id = random_uuid().unwrap();
            assert_eq!(id.len(), 36);
            assert_eq!(&id[14..15], "4", "{id}");
            assert!("89ab".contains(&id[19..20]), "{id}");
        }
    }
}
