//! Certificate requests: who asks is written by us, who approves and signs must be allowed to.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::text;
use crate::auth::{Attributes, Auth, ResourceTarget, User};
use crate::registry::{Admission, Operation, Request};
use crate::resource::certificates::{CERTIFICATE_SIGNING_REQUEST, GROUP};
use crate::status::{Cause, Status};
use crate::tls::request::{CLIENT, CertificateRequest, KUBELET_CLIENT, KUBELET_SERVING};

/// The rule.
#[derive(Debug)]
pub struct CertificateAdmission {
    auth: Arc<Auth>,
}

impl CertificateAdmission {
    /// Judges approvers by what `auth` knows of them.
    pub fn new(auth: Arc<Auth>) -> Self {
        Self { auth }
    }

    /// Whether the user holds a verb on the signer, or on all signers of its domain.
    fn holds(&self, user: &User, verb: &str, signer: &str) -> bool {
        let domain = signer.split_once('/').map_or("", |(domain, _)| domain);
        [signer, &format!("{domain}/*")].into_iter().any(|name| {
            let target = ResourceTarget {
                group: GROUP,
                resource: "signers",
                name,
                ..Default::default()
            };
            self.auth
                .authorize(user, &Attributes::resource(verb, target))
                .allowed()
        })
    }
}

impl Admission for CertificateAdmission {
    fn admit(&self, request: &mut Request<'_>, object: &mut Value) -> Result<(), Status> {
        let ours = request.target.resource.key == CERTIFICATE_SIGNING_REQUEST.key;
        if ours && request.operation == Operation::Create {
            identify(object, &request.caller.user);
        }
        Ok(())
    }

    fn review(&self, request: &mut Request<'_>, object: &Value) -> Result<(), Status> {
        if request.target.resource.key != CERTIFICATE_SIGNING_REQUEST.key {
            return Ok(());
        }
        let user = Arc::clone(&request.caller.user);
        let signer = text(object, "/spec/signerName");
        let name = text(object, "/metadata/name");
        let refuse = |why: String| {
            Err(Status::forbidden(
                request.target.resource.subject(),
                name,
                why,
            ))
        };
        match (request.operation, request.target.subresource) {
            (Operation::Create, _) => match problem(object, &user) {
                Some(Problem::Field(cause)) => {
                    let kind = request.target.resource.kind;
                    Err(Status::invalid(GROUP, kind, name, vec![cause]))
                }
                Some(Problem::Forbidden(why)) => refuse(why.to_owned()),
                None => Ok(()),
            },
            (Operation::Update, "approval") if !self.holds(&user, "approve", signer) => refuse(
                format!("user not permitted to approve requests with signerName {signer:?}"),
            ),
            (Operation::Update, "status") => {
                let old = request.old.map(|old| &old["status"]);
                let conditions = |status: &Value, kind: &str| {
                    let all = status["conditions"].as_array().into_iter().flatten();
                    all.filter(|c| c["type"] == kind)
                        .cloned()
                        .collect::<Vec<_>>()
                };
                let decided = old.is_some_and(|old| {
                    ["Approved", "Denied"]
                        .into_iter()
                        .any(|kind| conditions(old, kind) != conditions(&object["status"], kind))
                });
                if decided {
                    return refuse(
                        "Approved and Denied are set through the approval subresource".to_owned(),
                    );
                }
                let changed =
                    old.is_none_or(|old| old["certificate"] != object["status"]["certificate"]);
                if changed && !self.holds(&user, "sign", signer) {
                    return refuse(format!(
                        "user not permitted to sign requests with signerName {signer:?}"
                    ));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Writes down who asks; what the client claims about that is dropped.
fn identify(object: &mut Value, user: &User) {
    let spec = &mut object["spec"];
    spec["username"] = user.name.clone().into();
    spec["groups"] = json!(user.groups);
    let Some(fields) = spec.as_object_mut() else {
        return;
    };
    fields.remove("uid");
    fields.remove("extra");
    if !user.uid.is_empty() {
        fields.insert("uid".to_owned(), user.uid.clone().into());
    }
    if !user.extra.is_empty() {
        fields.insert("extra".to_owned(), json!(user.extra));
    }
}

#[derive(Debug)]
enum Problem {
    Field(Cause),
    Forbidden(&'static str),
}

fn problem(object: &Value, user: &User) -> Option<Problem> {
    let pem = STANDARD.decode(text(object, "/spec/request")).ok();
    let parsed = pem.map(|pem| CertificateRequest::parse(&pem));
    let wanted = match parsed {
        Some(Ok(wanted)) => wanted,
        Some(Err(error)) => {
            let shown = json!("...");
            return Some(Problem::Field(Cause::invalid(
                "spec.request",
                &shown,
                error.to_string(),
            )));
        }
        None => {
            let shown = json!("...");
            let why = "must be the base64 of a PEM encoded certificate request";
            return Some(Problem::Field(Cause::invalid("spec.request", &shown, why)));
        }
    };
    let signer = text(object, "/spec/signerName");
    if signer == CLIENT && wanted.asks_for_masters() {
        return Some(Problem::Forbidden(
            "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed",
        ));
    }
    let of_kubelet = [KUBELET_CLIENT, KUBELET_SERVING].contains(&signer);
    if of_kubelet && user.node().is_some() && wanted.common_name != user.name {
        return Some(Problem::Forbidden(
            "a node can only ask for certificates in its own name",
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_not_what_the_client_says() {
        let mut object = json!({"spec": {"username": "admin", "uid": "1", "extra": {"a": ["b"]}}});
        identify(&mut object, &User::component("bob", &["team"]));
        assert_eq!(
            object["spec"],
            json!({"username": "bob", "groups": ["team", "system:authenticated"]})
        );
    }

    #[test]
    fn an_unreadable_request_names_its_field() {
        for request in ["", "%%%", "aGVsbG8="] {
            let object = json!({"spec": {"request": request, "signerName": CLIENT}});
            let found = problem(&object, &User::component("bob", &[]));
            assert!(matches!(found, Some(Problem::Field(cause)) if cause.field == "spec.request"));
        }
    }
}
