//! Who owns which field: managedFields on every write, and server-side apply.

use serde_json::Value;

use super::{
    Caller, Registry, Target, WriteOptions, Written,
    metadata::{self, stamp},
    patch::kind_of,
};
use crate::{
    patch::{self, ApplyError, Writer},
    resource::Resource,
    status::Status,
};

/// Whether a write's managedFields are still to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Ownership {
    /// Record what this write changes.
    #[default]
    Track,
    /// An apply has recorded it.
    Recorded,
}

impl Registry {
    /// Records the caller as the owner of what the write changes.
    pub(super) fn own_fields(
        &self,
        target: Target<'_>,
        caller: &Caller,
        options: &WriteOptions,
        old: Option<&Value>,
        new: &mut Value,
    ) -> Result<(), Status> {
        if options.ownership == Ownership::Recorded {
            return Ok(());
        }
        let now = stamp(self.now());
        let api_version = target.resource.api_version();
        let writer = writer(target, caller, options, &api_version, &now)?;
        patch::track_update(&writer, old, new);
        Ok(())
    }

    /// Server-side apply: creates the object (if the caller may), or merges the manager's fields.
    pub(super) async fn apply(
        &self,
        target: Target<'_>,
        caller: &Caller,
        configuration: &Value,
        force: bool,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let resource = target.resource;
        let api_version = resource.api_version();
        let now = stamp(self.now());
        let mut configuration = configuration.clone();
        metadata::identify_applied(target, &mut configuration)?;
        let options = WriteOptions {
            ownership: Ownership::Recorded,
            ..options.clone()
        };
        let merged = |live: Option<&Value>| {
            let writer = writer(target, caller, &options, &api_version, &now)?;
            patch::apply(&writer, live, configuration.clone(), force)
                .map_err(|error| refusal(&error))
        };
        let change = |live: &Value| merged(Some(live));
        match self.update(target, caller, &change, &options).await {
            Err(status) if status.is("NotFound") && target.subresource.is_empty() => {
                if let Some(refused) = &options.no_creation {
                    return Err(refused.clone());
                }
                let target = Target { name: "", ..target };
                match self.create(target, caller, merged(None)?, &options).await {
                    // Somebody was faster: then it is an update after all.
                    Err(status) if status.is("AlreadyExists") => {
                        let name = configuration["metadata"]["name"]
                            .as_str()
                            .unwrap_or_default();
                        let target = Target { name, ..target };
                        self.update(target, caller, &change, &options).await
                    }
                    other => other,
                }
            }
            other => other,
        }
    }
}

fn writer<'a>(
    target: Target<'a>,
    caller: &'a Caller,
    options: &'a WriteOptions,
    api_version: &'a str,
    now: &'a str,
) -> Result<Writer<'a>, Status> {
    let manager = if options.field_manager.is_empty() {
        &*caller.agent
    } else {
        &*options.field_manager
    };
    Ok(Writer {
        object: kind_of(target.resource)?,
        api_version,
        manager,
        subresource: target.subresource,
        reset: untouched(target.resource, target.subresource),
        now,
    })
}

/// What a write through a door cannot change, and so cannot own.
fn untouched(resource: &Resource, subresource: &str) -> &'static [&'static [&'static str]] {
    match subresource {
        "" if resource.has_status() => &[&["status"]],
        "status" => &[&["spec"], &["data"], &["metadata", "labels"]],
        _ => &[],
    }
}

fn refusal(error: &ApplyError) -> Status {
    match error {
        ApplyError::Malformed(_) | ApplyError::Type(_) => Status::bad_request(error.to_string()),
        ApplyError::Conflict(_) => Status::apply_conflict(error.to_string(), error.causes()),
    }
}
