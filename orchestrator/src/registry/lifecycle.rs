//! Admission: nothing new in a namespace that does not exist or is going.

use serde_json::Value;

use super::{Admission, Operation, Request};
use crate::{
    resource::core::NAMESPACE,
    status::{Cause, Status},
};

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// The rule.
#[derive(Debug)]
pub struct NamespaceLifecycle;

impl Admission for NamespaceLifecycle {
    fn admit(&self, request: &mut Request<'_>, _object: &mut Value) -> Result<(), Status> {
        let target = request.target;
        if request.operation == Operation::Delete {
            let immortal = target.resource.key == NAMESPACE.key && IMMORTAL.contains(&target.name);
            return if immortal {
                Err(Status::forbidden(
                    target.resource.subject(),
                    target.name,
                    "this namespace may not be deleted",
                ))
            } else {
                Ok(())
            };
        }
        if request.operation != Operation::Create || !target.resource.namespaced {
            return Ok(());
        }
        let Some(namespace) = request.cache.of(&NAMESPACE).get(target.namespace) else {
            return Err(Status::not_found(NAMESPACE.subject(), target.namespace));
        };
        if namespace
            .fields
            .first()
            .is_some_and(|phase| &**phase == "Terminating")
        {
            let why = format!(
                "unable to create new content in namespace {} because it is being terminated",
                target.namespace
            );
            let cause = Cause::new(
                "NamespaceTerminating",
                "metadata.namespace",
                format!("namespace {} is being terminated", target.namespace),
            );
            return Err(
                Status::forbidden(target.resource.subject(), target.name, why)
                    .with_causes(vec![cause]),
            );
        }
        Ok(())
    }
}
