//! Patches of every kind, on top of [`Registry::update`].

use serde_json::Value;

use super::{Caller, Registry, Target, WriteOptions, Written};
use crate::{
    patch::{self, PatchError},
    resource::Resource,
    schema::{ObjectType, schema},
    status::{Cause, Status},
};

/// The patch types that are offered.
const MEDIA_TYPES: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";

/// A parsed patch.
#[derive(Clone, Debug)]
pub enum PatchBody {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' own, by the schema's merge keys.
    Strategic(Value),
    /// Server-side apply of this configuration.
    Apply {
        /// What the manager wants.
        configuration: Value,
        /// Whether to take fields from other managers.
        force: bool,
    },
}

impl PatchBody {
    /// Parses a body by its media type.
    ///
    /// # Errors
    /// 415 for an unknown type, 400 for a body that does not parse, 422 for an
    /// apply without a field manager.
    pub fn parse(kind: &str, body: &[u8], force: bool, manager: &str) -> Result<Self, Status> {
        let json = |body: &[u8]| {
            crate::schema::parse_json(body)
                .map(|parsed| parsed.value)
                .map_err(|error| {
                    Status::bad_request(format!("the patch is not valid JSON: {error}"))
                })
        };
        let options = |cause| Status::invalid("meta.k8s.io", "PatchOptions", "", vec![cause]);
        if force && kind != "application/apply-patch+yaml" {
            return Err(options(Cause::forbidden(
                "force",
                "may not be specified for non-apply patch",
            )));
        }
        match kind {
            "application/json-patch+json" => json(body).map(Self::Json),
            "application/merge-patch+json" => json(body).map(Self::Merge),
            "application/strategic-merge-patch+json" => json(body).map(Self::Strategic),
            "application/apply-patch+yaml" => {
                if manager.is_empty() {
                    let why = "is required for apply patch";
                    return Err(options(Cause::required("fieldManager", why)));
                }
                let configuration = serde_saphyr::from_slice(body).map_err(|error| {
                    Status::bad_request(format!("error decoding YAML: {error}"))
                })?;
                Ok(Self::Apply {
                    configuration,
                    force,
                })
            }
            _ => Err(Status::unsupported_media_type(MEDIA_TYPES)),
        }
    }

    /// The patched object. Apply is another matter: see [`Registry::patch`].
    fn patched(&self, kind: &ObjectType, current: &Value) -> Result<Value, PatchError> {
        let mut target = current.clone();
        match self {
            Self::Json(operations) => patch::json_patch(&mut target, operations.clone())?,
            Self::Merge(changes) => patch::merge_patch(&mut target, changes.clone()),
            Self::Strategic(changes) => {
                patch::strategic_merge(kind, &mut target, changes.clone())?;
            }
            Self::Apply { .. } => {}
        }
        Ok(target)
    }

    /// What a misfit is blamed on.
    fn changes(&self) -> Option<&Value> {
        match self {
            Self::Json(changes) | Self::Merge(changes) | Self::Strategic(changes) => Some(changes),
            Self::Apply { .. } => None,
        }
    }

    /// The patch of another object than the stored one (a Scale).
    ///
    /// # Errors
    /// As for [`Registry::patch`].
    pub fn apply_to(&self, kind: &ObjectType, current: &Value) -> Result<Value, Status> {
        self.patched(kind, current).map_err(|error| refusal(&error))
    }
}

impl Registry {
    /// Patches an object or a subresource that shares its storage; an apply
    /// may create it.
    ///
    /// # Errors
    /// Those of an update; 400 or 422 for a patch that does not fit, 409 with
    /// causes for an apply that meets other managers' fields.
    pub async fn patch(
        &self,
        target: Target<'_>,
        caller: &Caller,
        patch: &PatchBody,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        if let PatchBody::Apply {
            configuration,
            force,
        } = patch
        {
            return self
                .apply(target, caller, configuration, *force, options)
                .await;
        }
        let kind = kind_of(target.resource)?;
        let change = |current: &Value| {
            let new = patch
                .patched(kind, current)
                .map_err(|error| refusal(&error))?;
            same_kind(target.resource, current, &new)?;
            Ok(new)
        };
        self.update_by(target, caller, &change, patch.changes(), options)
            .await
    }
}

/// The schema of a resource.
pub(super) fn kind_of(resource: &Resource) -> Result<&'static ObjectType, Status> {
    schema()
        .kind(resource.group, resource.version, resource.kind)
        .ok_or_else(|| {
            Status::internal(format!(
                "no schema for {} {}",
                resource.api_version(),
                resource.kind
            ))
        })
}

/// 400 for a patch that makes another kind of the object.
fn same_kind(resource: &Resource, current: &Value, new: &Value) -> Result<(), Status> {
    for field in ["apiVersion", "kind"] {
        if new.is_object() && new[field] != current[field] {
            return Err(Status::bad_request(format!(
                "a {} cannot become another kind: the patch makes {field} {}",
                resource.kind, new[field]
            )));
        }
    }
    Ok(())
}

fn refusal(error: &PatchError) -> Status {
    let text = error.to_string();
    match error {
        PatchError::Malformed(_) => Status::bad_request(text),
        PatchError::Unprocessable(_) => Status::unprocessable(&text),
        PatchError::TooManyOperations(_) => Status::too_many_operations(text),
    }
}
