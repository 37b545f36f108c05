//! Creates: from a body to a committed object.

use serde_json::{Value, json};

use super::{
    Caller, Hold, Operation, Registry, Request, Target, WriteOptions, Written, conform::conform,
    encode, engine_failure, metadata, validate,
};
use crate::{
    status::{Cause, Status},
    store::{CommitError, Expect, Revision},
};

/// Names tried for one `generateName`.
const NAMES_TRIED: usize = 8;

impl Registry {
    /// Creates an object.
    ///
    /// # Errors
    /// 400, 403, 404 (no such namespace), 409 (`AlreadyExists`), 422 with causes.
    pub async fn create(
        &self,
        target: Target<'_>,
        caller: &Caller,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let asked = target;
        let (mut warnings, mut causes) = (Vec::new(), Vec::new());
        metadata::identify(asked, &mut object)?;
        conform(asked.resource, &mut object, None, options, &mut warnings)?;
        if asked.resource.view.is_some() {
            (asked.resource.rules.validate_create)(&object, &mut causes);
            asked.resource.keep(&mut object);
        }
        let target = asked.stored();
        let resource = target.resource;
        (resource.rules.default)(&mut object);
        metadata::begin(resource, &mut object, self.now())?;

        let mut holds: Vec<Hold> = Vec::new();
        let prefix = generated(&object);
        if let Some(prefix) = &prefix {
            object["metadata"]["name"] = json!(metadata::generate_name(prefix)?);
        }
        if resource.has_status() && !resource.rules.keeps_status {
            drop(object.as_object_mut().and_then(|map| map.remove("status")));
        }
        // What the server adds from here on belongs to nobody: an apply may leave it out.
        metadata::tidy(&mut object);
        self.own_fields(target, caller, options, None, &mut object)?;
        (resource.rules.create)(&mut object);
        let mut request = Request {
            operation: Operation::Create,
            target,
            caller,
            old: None,
            dry_run: options.dry_run,
            cache: &self.cache,
            holds: &mut holds,
            warnings: &mut warnings,
        };
        for rule in &self.admission {
            rule.admit(&mut request, &mut object)?;
        }
        metadata::tidy(&mut object);
        validate::object_meta(resource, &object, &mut causes);
        (resource.rules.validate)(&object, &mut causes);
        (resource.rules.validate_create)(&object, &mut causes);
        refuse(asked, &object, causes)?;
        for rule in &self.admission {
            rule.review(&mut request, &object)?;
        }
        let written = self
            .insert(asked, &mut object, prefix.as_deref(), options)
            .await;
        drop(holds);
        let (object, revision) = written?;
        Ok(Written {
            object,
            revision,
            created: true,
            warnings,
        })
    }

    /// Commits a new object; a generated name that is taken is drawn again.
    async fn insert(
        &self,
        target: Target<'_>,
        object: &mut Value,
        prefix: Option<&str>,
        options: &WriteOptions,
    ) -> Result<(bytes::Bytes, Revision), Status> {
        let resource = target.resource;
        for _ in 0..NAMES_TRIED {
            let name = object["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let key = resource.object_key(target.namespace, &name);
            let stored = encode::bounded(object)?;
            let taken = if options.dry_run {
                if self.cache.of(resource).get(&key).is_none() {
                    return Ok((stored, Revision(0)));
                }
                true
            } else {
                let _turn = self.lock(resource, &key).await;
                match self
                    .commit(resource, &key, Expect::Absent, Some(stored.clone()))
                    .await
                {
                    Ok(revision) => return Ok((encode::shown(&stored, revision), revision)),
                    Err(CommitError::Precondition { .. }) => true,
                    Err(error) => return Err(engine_failure(&error)),
                }
            };
            debug_assert!(taken, "only a taken name comes here");
            let Some(prefix) = prefix else {
                return Err(Status::already_exists(resource.subject(), &name));
            };
            object["metadata"]["name"] = json!(metadata::generate_name(prefix)?);
        }
        let name = object["metadata"]["generateName"]
            .as_str()
            .unwrap_or_default();
        Err(Status::already_exists(resource.subject(), name))
    }
}

/// The `generateName` of an object without a name.
fn generated(object: &Value) -> Option<String> {
    let metadata = &object["metadata"];
    let named = metadata["name"]
        .as_str()
        .is_some_and(|name| !name.is_empty());
    let prefix = metadata["generateName"].as_str().unwrap_or_default();
    (!named && !prefix.is_empty()).then(|| prefix.to_owned())
}

/// 422 if there are causes.
pub(super) fn refuse(target: Target<'_>, object: &Value, causes: Vec<Cause>) -> Result<(), Status> {
    if causes.is_empty() {
        return Ok(());
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let here = |cause: Cause| Cause {
        field: target.resource.field_here(&cause.field),
        ..cause
    };
    let causes = causes.into_iter().map(here).collect();
    Err(Status::invalid(
        target.resource.group,
        target.resource.kind,
        name,
        causes,
    ))
}
