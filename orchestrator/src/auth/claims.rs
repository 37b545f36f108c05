//! ServiceAccount tokens: the claims they carry and what makes them hold.
//!
//! A token holds while its time runs, its issuer and audience are ours, and the ServiceAccount,
//! pod, secret and node that it is bound to still exist with the same UIDs. Pure.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::identity::{SERVICE_ACCOUNT_PREFIX, User};

/// How long a token outlives the deletion time of what it is bound to, in seconds.
const DELETED_GRACE: i64 = 60;
/// How far ahead of our clock the signer's may be, in seconds.
const CLOCK_SKEW: i64 = 60;

/// The claims of a bound ServiceAccount token; times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Audiences.
    pub aud: Vec<String>,
    /// Expiry.
    pub exp: i64,
    /// Time of issue.
    pub iat: i64,
    /// Issuer.
    pub iss: String,
    /// Unique id.
    pub jti: String,
    /// What it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
    /// Start of validity.
    pub nbf: i64,
    /// `system:serviceaccount:namespace:name`.
    pub sub: String,
}

/// What a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Namespace of all of them.
    pub namespace: String,
    /// Node, alone or as the pod's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// The ServiceAccount itself.
    pub serviceaccount: Reference,
}

/// One object at one time in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Name.
    pub name: String,
    /// UID; may be empty for a pod's node only.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// An object that a token may be bound to, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alive {
    /// UID.
    pub uid: String,
    /// Time by which it is gone (Unix seconds), if it is being deleted.
    pub deleted_at: Option<i64>,
}

/// Looks up a bound object: resource (`serviceaccounts`, `pods`, `secrets`, `nodes`), name.
pub type Find<'a> = dyn Fn(&str, &str) -> Option<Alive> + 'a;

/// Why a token does not hold; the text goes to TokenReview and the log, never to the caller.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClaimError {
    /// Signed for another cluster.
    #[error("token issuer is {0:?}, not this cluster's")]
    Issuer(String),
    /// Too late.
    #[error("service account token has expired")]
    Expired,
    /// Too early.
    #[error("service account token is not valid yet")]
    NotYet,
    /// For somebody else.
    #[error("token audiences {0:?} are not among those asked for")]
    Audience(Vec<String>),
    /// `sub` and the bound ServiceAccount differ.
    #[error("token subject does not name its service account")]
    Subject,
    /// A bound object is gone, or is another one of that name.
    #[error(
        "service account token has been invalidated: {resource} {name:?} is gone or was recreated"
    )]
    Invalidated {
        /// Resource.
        resource: &'static str,
        /// Name.
        name: String,
    },
}

/// Checks the claims that need no live object; returns the audiences that token and asker share.
///
/// `wanted` are the audiences under which the token is presented.
pub fn check(
    claims: &Claims,
    issuer: &str,
    wanted: &[String],
    now: i64,
) -> Result<Vec<String>, ClaimError> {
    if claims.iss != issuer {
        return Err(ClaimError::Issuer(claims.iss.clone()));
    }
    if now >= claims.exp {
        return Err(ClaimError::Expired);
    }
    if now + CLOCK_SKEW < claims.nbf {
        return Err(ClaimError::NotYet);
    }
    let Bound {
        namespace,
        serviceaccount,
        ..
    } = &claims.bound;
    if claims.sub
        != format!(
            "{SERVICE_ACCOUNT_PREFIX}{namespace}:{}",
            serviceaccount.name
        )
    {
        return Err(ClaimError::Subject);
    }
    let shared: Vec<_> = wanted
        .iter()
        .filter(|audience| claims.aud.contains(audience))
        .cloned()
        .collect();
    if shared.is_empty() {
        Err(ClaimError::Audience(claims.aud.clone()))
    } else {
        Ok(shared)
    }
}

/// Checks that everything the token is bound to still exists as the same object.
pub fn check_bound(bound: &Bound, now: i64, find: &Find<'_>) -> Result<(), ClaimError> {
    // A pod's node is a note about the pod; only a token bound to the node itself dies with it.
    let node = if bound.pod.is_none() && bound.secret.is_none() {
        bound.node.as_ref()
    } else {
        None
    };
    let bindings = [
        ("serviceaccounts", Some(&bound.serviceaccount)),
        ("pods", bound.pod.as_ref()),
        ("secrets", bound.secret.as_ref()),
        ("nodes", node),
    ];
    for (resource, reference) in bindings {
        let Some(Reference { name, uid }) = reference else {
            continue;
        };
        let alive = find(resource, name).is_some_and(|object| {
            object.uid == *uid && object.deleted_at.is_none_or(|at| now < at + DELETED_GRACE)
        });
        if !alive {
            return Err(ClaimError::Invalidated {
                resource,
                name: name.clone(),
            });
        }
    }
    Ok(())
}

/// The user that the claims stand for.
pub fn user(claims: &Claims) -> User {
    let Bound {
        namespace,
        node,
        pod,
        serviceaccount,
        ..
    } = &claims.bound;
    let mut user = User::service_account(namespace, &serviceaccount.name, &serviceaccount.uid);
    let mut note = |key: &str, value: &str| {
        if !value.is_empty() {
            user.extra.insert(
                format!("authentication.kubernetes.io/{key}"),
                vec![value.to_owned()],
            );
        }
    };
    note("credential-id", &format!("JTI={}", claims.jti));
    for (kind, reference) in [("pod", pod), ("node", node)] {
        if let Some(Reference { name, uid }) = reference {
            note(&format!("{kind}-name"), name);
            note(&format!("{kind}-uid"), uid);
        }
    }
    user
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

    fn reference(name: &str) -> Reference {
        Reference {
            name: name.into(),
            uid: format!("uid-{name}"),
        }
    }

    fn claims() -> Claims {
        Claims {
            aud: vec!["api".into(), "vault".into()],
            exp: 2_000,
            iat: 1_000,
            iss: ISSUER.into(),
            jti: "one".into(),
            bound: Bound {
                namespace: "default".into(),
                node: Some(reference("node")),
                pod: Some(reference("pod")),
                secret: None,
                serviceaccount: reference("robot"),
            },
            nbf: 1_000,
            sub: "system:serviceaccount:default:robot".into(),
        }
    }

    fn judge(claims: &Claims, now: i64) -> Result<Vec<String>, ClaimError> {
        check(claims, ISSUER, &["api".to_owned()], now)
    }

    #[test]
    fn a_token_holds_from_not_before_to_expiry() {
        assert_eq!(judge(&claims(), 939), Err(ClaimError::NotYet));
        assert_eq!(
            judge(&claims(), 940),
            Ok(vec!["api".to_owned()]),
            "clocks differ a little"
        );
        assert!(judge(&claims(), 1_999).is_ok());
        assert_eq!(judge(&claims(), 2_000), Err(ClaimError::Expired));
    }

    #[test]
    fn another_issuer_audience_or_subject_is_refused() {
        let foreign = Claims {
            iss: "https://elsewhere".into(),
            ..claims()
        };
        assert!(matches!(judge(&foreign, 1_500), Err(ClaimError::Issuer(_))));
        let vault = Claims {
            aud: vec!["vault".into()],
            ..claims()
        };
        assert!(matches!(judge(&vault, 1_500), Err(ClaimError::Audience(_))));
        let renamed = Claims {
            sub: "system:serviceaccount:default:other".into(),
            ..claims()
        };
        assert_eq!(judge(&renamed, 1_500), Err(ClaimError::Subject));
        assert!(check(&claims(), ISSUER, &[], 1_500).is_err());
    }

    #[test]
    fn a_token_dies_with_what_it_is_bound_to() {
        let all = |_: &str, name: &str| {
            Some(Alive {
                uid: format!("uid-{name}"),
                deleted_at: None,
            })
        };
        assert_eq!(check_bound(&claims().bound, 1_500, &all), Ok(()));
        for (resource, needed) in [("serviceaccounts", true), ("pods", true), ("nodes", false)] {
            let gone = |asked: &str, name: &str| {
                if asked == resource {
                    None
                } else {
                    all(asked, name)
                }
            };
            let other = |asked: &str, name: &str| {
                let uid = if asked == resource {
                    "other".into()
                } else {
                    format!("uid-{name}")
                };
                Some(Alive {
                    uid,
                    deleted_at: None,
                })
            };
            assert_eq!(
                check_bound(&claims().bound, 1_500, &gone).is_err(),
                needed,
                "{resource}"
            );
            assert_eq!(
                check_bound(&claims().bound, 1_500, &other).is_err(),
                needed,
                "{resource}"
            );
        }
        let node_only = Bound {
            pod: None,
            ..claims().bound
        };
        let gone = |asked: &str, name: &str| {
            if asked == "nodes" {
                None
            } else {
                all(asked, name)
            }
        };
        assert!(check_bound(&node_only, 1_500, &gone).is_err());
    }

    #[test]
    fn a_deleting_pod_keeps_its_token_for_a_minute_after_its_grace() {
        let deleting = |_: &str, name: &str| {
            Some(Alive {
                uid: format!("uid-{name}"),
                deleted_at: Some(1_500),
            })
        };
        assert!(check_bound(&claims().bound, 1_559, &deleting).is_ok());
        assert!(check_bound(&claims().bound, 1_560, &deleting).is_err());
    }

    #[test]
    fn the_user_says_which_pod_it_speaks_for() {
        let user = user(&claims());
        assert_eq!(user.name, "system:serviceaccount:default:robot");
        assert_eq!(user.uid, "uid-robot");
        let extra = |key: &str| user.extra[&format!("authentication.kubernetes.io/{key}")].clone();
        assert_eq!(extra("pod-name"), ["pod"]);
        assert_eq!(extra("node-uid"), ["uid-node"]);
        assert_eq!(extra("credential-id"), ["JTI=one"]);
    }
}
