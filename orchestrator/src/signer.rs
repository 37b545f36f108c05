//! Signs approved certificate requests, and approves those of nodes that join or renew.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::auth::{Attributes, Auth, ResourceTarget, User};
use crate::cache::{Entry, EventKind, Selector};
use crate::registry::{Target, client::Client};
use crate::resource::certificates::{CERTIFICATE_SIGNING_REQUEST, GROUP, has_condition};
use crate::status::Status;
use crate::tls::request::{CLIENT, CertificateRequest, KUBELET_CLIENT, KUBELET_SERVING};
use crate::tls::{Authority, WallClock};

/// Follows certificate requests and acts on them.
#[derive(Debug)]
pub struct Signer {
    client: Client,
    auth: Arc<Auth>,
    authority: Arc<Authority>,
    clock: Clock,
}

struct Clock(WallClock);

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    request: String,
    signer_name: String,
    usages: Vec<String>,
    expiration_seconds: Option<u64>,
    username: String,
    uid: String,
    groups: Vec<String>,
}

/// What is to be done about a request.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    MayApprove,
    Sign,
}

/// What a request's status calls for, by a signer of ours.
fn next_step(object: &Value) -> Step {
    let signer = object["spec"]["signerName"].as_str().unwrap_or_default();
    let issued = object["status"]["certificate"]
        .as_str()
        .is_some_and(|text| !text.is_empty());
    let ours = [KUBELET_CLIENT, KUBELET_SERVING, CLIENT].contains(&signer);
    if issued || !ours || has_condition(object, "Denied") || has_condition(object, "Failed") {
        Step::Nothing
    } else if has_condition(object, "Approved") {
        Step::Sign
    } else if signer == KUBELET_CLIENT {
        Step::MayApprove
    } else {
        Step::Nothing
    }
}

// === impl Signer ===

impl Signer {
    /// Signs with the cluster CA; `auth` says whose requests need no person's approval.
    pub fn new(
        client: Client,
        auth: Arc<Auth>,
        authority: Arc<Authority>,
        clock: WallClock,
    ) -> Self {
        Self {
            client,
            auth,
            authority,
            clock: Clock(clock),
        }
    }

    /// Runs until dropped.
    pub async fn run(self: Arc<Self>) {
        loop {
            let informer = self
                .client
                .informer_of(&CERTIFICATE_SIGNING_REQUEST, Selector::default());
            let (present, mut watcher) = match informer {
                Ok(informer) => informer,
                Err(error) => {
                    tracing::error!(%error, "cannot follow certificate requests");
                    return;
                }
            };
            for entry in &present {
                self.handle(entry).await;
            }
            // Fallen behind the ring: begin again from the present state.
            while let Ok(deliveries) = watcher.next().await {
                for delivery in deliveries {
                    if delivery.kind != EventKind::Deleted {
                        self.handle(delivery.entry()).await;
                    }
                }
            }
        }
    }

    async fn handle(&self, entry: &Entry) {
        let object = entry.value();
        let step = next_step(&object);
        if step == Step::Nothing {
            return;
        }
        let spec = Spec::deserialize(&object["spec"]).unwrap_or_default();
        let result = match step {
            Step::Sign => self.sign(entry.name(), &spec).await,
            _ if self.is_recognised(&spec) => self.approve(entry.name()).await,
            _ => Ok(()),
        };
        match result {
            Err(error) if error.is("NotFound") => {}
            Err(error) => {
                tracing::warn!(request = entry.name(), %error, "certificate request not handled");
            }
            Ok(()) => {}
        }
    }

    /// Whether a kubelet's client request is from one who may have it without asking a person.
    fn is_recognised(&self, spec: &Spec) -> bool {
        let Ok(pem) = STANDARD.decode(&spec.request) else {
            return false;
        };
        let Ok(wanted) = CertificateRequest::parse(&pem) else {
            return false;
        };
        if wanted.granted(KUBELET_CLIENT, &spec.usages).is_err() {
            return false;
        }
        let user = User {
            name: spec.username.clone(),
            uid: spec.uid.clone(),
            groups: spec.groups.clone(),
            ..User::default()
        };
        let renews = wanted.common_name == spec.username;
        let kinds: &[&str] = if renews {
            &["selfnodeclient", "nodeclient"]
        } else {
            &["nodeclient"]
        };
        kinds.iter().any(|subresource| {
            let target = ResourceTarget {
                group: GROUP,
                resource: CERTIFICATE_SIGNING_REQUEST.plural,
                subresource,
                ..Default::default()
            };
            self.auth
                .authorize(&user, &Attributes::resource("create", target))
                .allowed()
        })
    }

    async fn approve(&self, name: &str) -> Result<(), Status> {
        let message = "Auto approving kubelet client certificate after SubjectAccessReview.";
        self.add_condition(name, "approval", "Approved", "AutoApproved", message)
            .await
    }

    async fn sign(&self, name: &str, spec: &Spec) -> Result<(), Status> {
        let pem = STANDARD.decode(&spec.request).unwrap_or_default();
        let asked = spec.expiration_seconds.map(Duration::from_secs);
        let signed = CertificateRequest::parse(&pem).and_then(|wanted| {
            let now = (self.clock.0)();
            wanted.sign(&self.authority, &spec.signer_name, &spec.usages, asked, now)
        });
        match signed {
            Ok(certificate) => {
                let change = |stored: &Value| {
                    let mut new = stored.clone();
                    new["status"]["certificate"] = STANDARD.encode(&certificate).into();
                    Ok(new)
                };
                self.client
                    .change(target(name, "status"), &change)
                    .await
                    .map(drop)
            }
            Err(error) => {
                let message = error.to_string();
                self.add_condition(
                    name,
                    "status",
                    "Failed",
                    "SignerValidationFailure",
                    &message,
                )
                .await
            }
        }
    }

    async fn add_condition(
        &self,
        name: &str,
        subresource: &str,
        kind: &str,
        reason: &str,
        message: &str,
    ) -> Result<(), Status> {
        let now = self.client.registry().now();
        let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let change = |stored: &Value| {
            let mut new = stored.clone();
            if has_condition(stored, kind) {
                return Ok(new);
            }
            let condition = json!({
                "type": kind, "status": "True", "reason": reason, "message": message,
                "lastUpdateTime": now, "lastTransitionTime": now,
            });
            match new["status"]["conditions"].as_array_mut() {
                Some(conditions) => conditions.push(condition),
                None => new["status"]["conditions"] = json!([condition]),
            }
            Ok(new)
        };
        self.client
            .change(target(name, subresource), &change)
            .await
            .map(drop)
    }
}

fn target<'a>(name: &'a str, subresource: &'a str) -> Target<'a> {
    Target {
        subresource,
        ..Target::object(&CERTIFICATE_SIGNING_REQUEST, "", name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_open_and_ours_is_acted_on() {
        let request = |signer: &str, conditions: &[&str], certificate: &str| {
            let conditions: Vec<_> = conditions
                .iter()
                .map(|kind| json!({"type": kind, "status": "True"}))
                .collect();
            next_step(&json!({
                "spec": {"signerName": signer},
                "status": {"conditions": conditions, "certificate": certificate},
            }))
        };
        assert_eq!(request(KUBELET_CLIENT, &[], ""), Step::MayApprove);
        assert_eq!(
            request(KUBELET_SERVING, &[], ""),
            Step::Nothing,
            "a person decides"
        );
        assert_eq!(request(CLIENT, &["Approved"], ""), Step::Sign);
        assert_eq!(request(CLIENT, &["Approved"], "x"), Step::Nothing);
        assert_eq!(request(CLIENT, &["Denied"], ""), Step::Nothing);
        assert_eq!(request(CLIENT, &["Approved", "Failed"], ""), Step::Nothing);
        assert_eq!(request("acme.com/own", &["Approved"], ""), Step::Nothing);
    }
}
