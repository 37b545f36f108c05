//! certificates.k8s.io: requests for certificates, approved by people or rules, signed by us.

use serde_json::{Value, json};

use super::{
    Causes, PLAIN, Resource, Rules, SelectableField, Subresource,
    table::{self, AGE_COLUMN, Column},
};
use crate::status::Cause;

/// `certificates.k8s.io/v1`.
pub const ALL: &[&Resource] = &[&CERTIFICATE_SIGNING_REQUEST];

/// Group of certificate requests.
pub const GROUP: &str = "certificates.k8s.io";

/// Shortest life that may be asked for, seconds.
const LIFE_MIN: i64 = 600;

/// A request for a certificate.
pub static CERTIFICATE_SIGNING_REQUEST: Resource = Resource {
    short_names: &["csr"],
    subresources: &[
        Subresource {
            name: "approval",
            kind: "CertificateSigningRequest",
            group: GROUP,
            version: "v1",
            verbs: &["get", "patch", "update"],
        },
        Subresource::status(GROUP, "CertificateSigningRequest"),
    ],
    fields: &[SelectableField::text("spec.signerName")],
    columns: &[
        AGE_COLUMN,
        Column::text("SignerName", |object, _| {
            table::text_or(object, "/spec/signerName", "<none>")
        }),
        Column::text("Requestor", |object, _| {
            table::text_or(object, "/spec/username", "<none>")
        }),
        Column::text("RequestedDuration", |object, _| {
            let seconds = object["spec"]["expirationSeconds"].as_i64();
            Value::from(seconds.map_or_else(|| "<none>".to_owned(), table::human_duration))
        }),
        Column::text("Condition", |object, _| Value::from(condition(object))),
    ],
    rules: Rules {
        update: |new, old| new["spec"] = old["spec"].clone(),
        validate,
        validate_update: decisions_stay,
        ..PLAIN
    },
    ..Resource::cluster(
        "certificatesigningrequests.certificates.k8s.io",
        GROUP,
        "CertificateSigningRequest",
        "certificatesigningrequests",
        "certificatesigningrequest",
    )
};

/// Whether a request has a condition of this type.
pub fn has_condition(object: &Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| {
        all.iter()
            .any(|c| c["type"] == kind && c["status"] != "False")
    })
}

fn condition(object: &Value) -> String {
    let mut words: Vec<&str> = ["Approved", "Denied", "Failed"]
        .into_iter()
        .filter(|c| has_condition(object, c))
        .collect();
    if words.is_empty() {
        words.push("Pending");
    }
    if object["status"]["certificate"]
        .as_str()
        .is_some_and(|text| !text.is_empty())
    {
        words.push("Issued");
    }
    words.join(",")
}

fn validate(object: &Value, causes: &mut Causes) {
    let spec = &object["spec"];
    let text = |field: &str| spec[field].as_str().unwrap_or_default();
    if text("request").is_empty() {
        causes.push(Cause::required("spec.request", ""));
    }
    let signer = text("signerName");
    match signer.split_once('/') {
        _ if signer.is_empty() => causes.push(Cause::required("spec.signerName", "")),
        Some((domain, path)) if domain.contains('.') && !path.is_empty() => {}
        _ => {
            let why =
                "must be a fully qualified domain and path of the form 'example.com/signer-name'";
            causes.push(Cause::invalid("spec.signerName", &json!(signer), why));
        }
    }
    let usages = spec["usages"].as_array().map_or(&[][..], Vec::as_slice);
    if usages.is_empty() {
        causes.push(Cause::required("spec.usages", ""));
    }
    for (index, usage) in usages.iter().enumerate() {
        if usages.iter().take(index).any(|other| other == usage) {
            causes.push(Cause::duplicate(format!("spec.usages[{index}]"), usage));
        }
    }
    if spec["expirationSeconds"]
        .as_i64()
        .is_some_and(|seconds| seconds < LIFE_MIN)
    {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        causes.push(Cause::invalid(
            "spec.expirationSeconds",
            &spec["expirationSeconds"],
            why,
        ));
    }
    if has_condition(object, "Approved") && has_condition(object, "Denied") {
        let why = "Approved and Denied conditions are mutually exclusive";
        causes.push(Cause::invalid(
            "status.conditions",
            &object["status"]["conditions"],
            why,
        ));
    }
}

/// What has been decided is not undone: `(new, old)`.
fn decisions_stay(new: &Value, old: &Value, causes: &mut Causes) {
    let count = |object: &Value, kind: &str| {
        let conditions = object["status"]["conditions"].as_array().into_iter();
        conditions.flatten().filter(|c| c["type"] == kind).count()
    };
    for kind in ["Approved", "Denied", "Failed"] {
        if count(new, kind) < count(old, kind) {
            let why = format!("updates may not remove a condition of type {kind:?}");
            causes.push(Cause::forbidden("status.conditions", &why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_each_wrong_field() {
        let mut causes = Vec::new();
        let spec = json!({"signerName": "nodomain/x", "expirationSeconds": 10});
        validate(&json!({"spec": spec}), &mut causes);
        let usages = json!({"request": "x", "signerName": "a.b/c", "usages": ["client auth", "client auth"]});
        validate(&json!({"spec": usages}), &mut causes);
        let fields: Vec<_> = causes.iter().map(|cause| cause.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.request",
                "spec.signerName",
                "spec.usages",
                "spec.expirationSeconds",
                "spec.usages[1]"
            ]
        );
    }

    #[test]
    fn a_decision_is_not_undone() {
        let with = |kinds: &[&str]| {
            let conditions: Vec<_> = kinds.iter().map(|kind| json!({"type": kind})).collect();
            json!({"status": {"conditions": conditions}})
        };
        let undone = |new: &[&str], old: &[&str]| {
            let mut causes = Vec::new();
            decisions_stay(&with(new), &with(old), &mut causes);
            causes.len()
        };
        assert_eq!(undone(&["Approved"], &[]), 0);
        assert_eq!(undone(&["Approved", "Failed"], &["Approved"]), 0);
        assert_eq!(undone(&["Approved"], &["Denied"]), 1);
        assert_eq!(undone(&[], &["Approved", "Failed"]), 2);
    }

    #[test]
    fn the_condition_column_reads_as_kubectl_shows_it() {
        let with = |conditions: Value, certificate: &str| {
            condition(&json!({"status": {"conditions": conditions, "certificate": certificate}}))
        };
        assert_eq!(with(json!([]), ""), "Pending");
        let approved = json!([{"type": "Approved", "status": "True"}]);
        assert_eq!(with(approved.clone(), ""), "Approved");
        assert_eq!(with(approved, "x"), "Approved,Issued");
        assert_eq!(
            with(json!([{"type": "Denied", "status": "True"}]), ""),
            "Denied"
        );
    }
}
