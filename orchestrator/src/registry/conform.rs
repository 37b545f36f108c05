//! Makes a body fit its type: types, unknown fields, schema defaults.

use serde_json::Value;

use super::WriteOptions;
use crate::{
    patch::{DEPTH_MAX, deeper_than},
    resource::Resource,
    schema::{self, FieldValidation, schema},
    status::{Cause, Status},
};

/// Brings `object` into stored form; complaints become warnings or a refusal.
///
/// # Errors
/// 400 for a wrong type, for nesting too deep to be read back, and under `Strict`
/// for unknown and duplicate fields; 422 with the cause `patch` where a patch made
/// the object.
pub(super) fn conform(
    resource: &Resource,
    object: &mut Value,
    patch: Option<&Value>,
    options: &WriteOptions,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let kind = schema()
        .kind(resource.group, resource.version, resource.kind)
        .ok_or_else(|| {
            Status::internal(format!(
                "no schema for {} {}",
                resource.api_version(),
                resource.kind
            ))
        })?;
    let converted = schema::convert(kind, object).map_err(|error| {
        let text = format!(
            "{} in version {:?} cannot be handled as a {}: {error}",
            resource.kind, resource.version, resource.kind
        );
        refusal(text, patch)
    })?;
    if deeper_than(object, DEPTH_MAX) {
        let text = format!("the {} nests deeper than {DEPTH_MAX} levels", resource.kind);
        return Err(Status::bad_request(text));
    }
    let complaints = converted.complaints(&options.duplicates);
    match options.field_validation {
        FieldValidation::Strict if !complaints.is_empty() => {
            return Err(refusal(schema::strict_error(&complaints), patch));
        }
        FieldValidation::Warn => warnings.extend(complaints),
        FieldValidation::Strict | FieldValidation::Ignore => {}
    }
    Ok(())
}

fn refusal(why: String, patch: Option<&Value>) -> Status {
    match patch {
        Some(patch) => Status::invalid("", "", "", vec![Cause::invalid("patch", patch, why)]),
        None => Status::bad_request(why),
    }
}
