//! Admission: what a write must be given, or refused for, between schema and store.
//!
//! Each rule is a pure function over the object and a thin [`Admission`] around it that looks up
//! what it needs in the watch cache. Rules that change come first.

use std::sync::Arc;

use serde_json::Value;

use crate::auth::Auth;
use crate::registry::{Admission, Operation, Request};

pub mod certificates;
pub mod node_restriction;
pub mod pod_security;
pub mod rbac;
pub mod service_account;
pub mod storage;
pub mod tolerations;

/// Every rule of this module, in order.
pub fn rules(auth: &Arc<Auth>) -> Vec<Box<dyn Admission>> {
    vec![
        Box::new(service_account::ServiceAccountAdmission),
        Box::new(tolerations::DefaultTolerations),
        Box::new(storage::StorageDefaults),
        Box::new(certificates::CertificateAdmission::new(Arc::clone(auth))),
        Box::new(node_restriction::NodeRestriction),
        Box::new(rbac::Escalation::new(Arc::clone(auth))),
        Box::new(pod_security::rule::PodSecurity),
    ]
}

/// Whether a write is of this resource, not of a subresource.
fn concerns(request: &Request<'_>, group: &str, plural: &str) -> bool {
    let target = &request.target;
    target.subresource.is_empty()
        && target.resource.group == group
        && target.resource.plural == plural
}

/// Whether a write creates this resource.
fn creates(request: &Request<'_>, group: &str, plural: &str) -> bool {
    request.operation == Operation::Create && concerns(request, group, plural)
}

/// The text of a field, empty if absent.
fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The elements of a list field.
fn each<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// The list under `field`, made if absent; `None` if the parent is no object.
fn list_mut<'a>(parent: &'a mut Value, field: &str) -> Option<&'a mut Vec<Value>> {
    let slot = parent.as_object_mut()?.entry(field).or_insert(Value::Null);
    if !slot.is_array() {
        *slot = Value::Array(Vec::new());
    }
    slot.as_array_mut()
}
