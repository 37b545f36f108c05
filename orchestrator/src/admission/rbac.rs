//! Nobody grants what they do not hold: see [`crate::auth::escalation`].

use std::sync::Arc;

use serde_json::Value;

use crate::auth::Auth;
use crate::auth::escalation::RbacWrite;
use crate::auth::rbac::GROUP;
use crate::registry::{Admission, Operation, Request};
use crate::status::Status;

/// The rule.
#[derive(Debug)]
pub struct Escalation {
    auth: Arc<Auth>,
}

impl Escalation {
    /// Judges by what `auth` knows of the writer.
    pub fn new(auth: Arc<Auth>) -> Self {
        Self { auth }
    }
}

impl Admission for Escalation {
    fn admit(&self, _request: &mut Request<'_>, _object: &mut Value) -> Result<(), Status> {
        Ok(())
    }

    fn review(&self, request: &mut Request<'_>, object: &Value) -> Result<(), Status> {
        let target = request.target;
        if target.resource.group != GROUP || request.operation == Operation::Delete {
            return Ok(());
        }
        let write = RbacWrite {
            resource: target.resource.plural,
            namespace: target.namespace,
            name: super::text(object, "/metadata/name"),
            new: object,
            old: request.old,
        };
        self.auth.check_escalation(&request.caller.user, &write)
    }
}
