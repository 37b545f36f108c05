//! Makes a body fit its type: types, unknown fields, schema defaults.

use serde_json::Value;

use super::WriteOptions;
use crate::{
    resource::Resource,
    schema::{self, FieldValidation, schema},
    status::Status,
};

/// Brings `object` into stored form; complaints become warnings or a refusal.
///
/// # Errors
/// 400 for a wrong type, and under `Strict` for unknown and duplicate fields.
pub(super) fn conform(
    resource: &Resource,
    object: &mut Value,
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
        Status::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {error}",
            resource.kind, resource.version, resource.kind
        ))
    })?;
    judge(converted.complaints(&options.duplicates), options, warnings)
}

fn judge(
    complaints: Vec<String>,
    options: &WriteOptions,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    match options.field_validation {
        FieldValidation::Strict if !complaints.is_empty() => {
            Err(Status::bad_request(schema::strict_error(&complaints)))
        }
        FieldValidation::Warn => {
            warnings.extend(complaints);
            Ok(())
        }
        FieldValidation::Strict | FieldValidation::Ignore => Ok(()),
    }
}
