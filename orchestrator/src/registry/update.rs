//! Updates: replace, patch, and what an update may not touch.

use serde_json::{Value, json};

use super::{
    Caller, Hold, Operation, Registry, Request, Target, WriteOptions, Written, conform::conform,
    create::refuse, encode, engine_failure, metadata, validate,
};
use crate::{
    cache::{Entry, entry},
    resource::Resource,
    status::Status,
    store::{CommitError, Expect, Revision},
    validation,
};

/// Attempts against writers outside this process.
const ATTEMPTS: usize = 5;

/// How the new object is made of the current one; may be called again if the
/// object has changed in between.
pub type Change<'c> = &'c (dyn Fn(&Value) -> Result<Value, Status> + Send + Sync);

impl Registry {
    /// Changes an object, or one of its subresources that share its storage
    /// (`status`, `finalize`, `approval`, `ephemeralcontainers`).
    ///
    /// # Errors
    /// Those of `change`; 400, 403, 404, 409 (`Conflict`), 422 with causes.
    pub async fn update(
        &self,
        target: Target<'_>,
        caller: &Caller,
        change: Change<'_>,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        self.update_by(target, caller, change, None, options).await
    }

    /// As [`Self::update`]; if the object then does not fit its type, the
    /// `patch` is to blame: 422 instead of 400.
    pub(super) async fn update_by(
        &self,
        target: Target<'_>,
        caller: &Caller,
        change: Change<'_>,
        patch: Option<&Value>,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let key = target.resource.object_key(target.namespace, target.name);
        let _turn = self.lock(target.resource, &key).await;
        for _ in 0..ATTEMPTS {
            let current = self.get(target)?;
            let mut warnings = Vec::new();
            let mut holds: Vec<Hold> = Vec::new();
            let old = current.value();
            let mut new = match target.resource.view {
                None => change(&old)?,
                Some(_) => change(&target.resource.shown(&old))?,
            };
            preconditions(target, &new, &old)?;
            let mut request = Request {
                operation: Operation::Update,
                target: target.stored(),
                caller,
                old: Some(&old),
                dry_run: options.dry_run,
                cache: &self.cache,
                holds: &mut holds,
                warnings: &mut warnings,
            };
            self.prepare(&mut request, target, &mut new, patch, options)?;
            let stored = encode::bounded(&new)?;
            let finished = is_finished(target.resource, &new);
            let outcome = self
                .replace(target, &key, &current, stored, finished, options)
                .await;
            if let Some(written) = settle(outcome, warnings)? {
                return Ok(written);
            }
        }
        Err(Status::modified(target.resource.subject(), target.name))
    }

    /// Sets fields of the server's own making, and nothing else: no defaults, no
    /// owners of fields, no new generation, as upstream binds a pod. `given`
    /// may hold a UID and a resourceVersion in its metadata that must fit.
    ///
    /// # Errors
    /// Those of `set`; 404, 409 (`Conflict`).
    pub(super) async fn assign(
        &self,
        target: Target<'_>,
        given: &Value,
        set: &(dyn Fn(&mut Value) -> Result<(), Status> + Send + Sync),
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let key = target.resource.object_key(target.namespace, target.name);
        let _turn = self.lock(target.resource, &key).await;
        for _ in 0..ATTEMPTS {
            let current = self.get(target)?;
            let mut object = current.value();
            preconditions(target, given, &object)?;
            set(&mut object)?;
            let stored = encode::bounded(&object)?;
            let outcome = self
                .replace(target, &key, &current, stored, false, options)
                .await;
            if let Some(written) = settle(outcome, Vec::new())? {
                return Ok(written);
            }
        }
        Err(Status::modified(target.resource.subject(), target.name))
    }

    /// Everything between the change and the commit.
    fn prepare(
        &self,
        request: &mut Request<'_>,
        asked: Target<'_>,
        new: &mut Value,
        patch: Option<&Value>,
        options: &WriteOptions,
    ) -> Result<(), Status> {
        let target = request.target;
        let resource = target.resource;
        let old = request.old.expect("an update has an old object");
        let mut causes = Vec::new();
        metadata::identify(asked, new)?;
        conform(asked.resource, new, patch, options, request.warnings)?;
        if asked.resource.view.is_some() {
            let old = asked.resource.shown(old);
            (asked.resource.rules.validate_update)(new, &old, &mut causes);
            asked.resource.keep(new);
        }
        (resource.rules.default)(new);
        metadata::carry(new, old)?;
        isolate(resource, target.subresource, new, old);
        metadata::tidy(new);
        self.own_fields(target, request.caller, options, Some(old), new)?;
        if target.subresource.is_empty() {
            (resource.rules.update)(new, old);
        }
        for rule in &self.admission {
            rule.admit(request, new)?;
        }
        metadata::tidy(new);
        metadata::count_generation(resource, new, old);
        validate::object_meta(resource, new, &mut causes);
        validate::update_meta(new, old, &mut causes);
        if target.subresource != "status" {
            (resource.rules.validate)(new, &mut causes);
        }
        match target.subresource {
            "" | "scale" | "approval" => (resource.rules.validate_update)(new, old, &mut causes),
            "ephemeralcontainers" => {
                validation::ephemeral_containers_update(new, old, &mut causes);
            }
            // The other doors let nothing but their own part through.
            _ => {}
        }
        refuse(asked, new, causes)?;
        for rule in &self.admission {
            rule.review(request, new)?;
        }
        Ok(())
    }

    /// Commits an update; one that changes nothing keeps its revision, one
    /// that lets go of a deleted object removes it.
    async fn replace(
        &self,
        target: Target<'_>,
        key: &str,
        current: &Entry,
        stored: bytes::Bytes,
        finished: bool,
        options: &WriteOptions,
    ) -> Result<(bytes::Bytes, Revision), CommitError> {
        let expect = Expect::At(current.revision);
        if options.dry_run {
            return Ok((encode::shown(&stored, current.revision), current.revision));
        }
        if finished {
            let revision = self.commit(target.resource, key, expect, None).await?;
            return Ok((encode::shown(&stored, revision), revision));
        }
        if entry::unspliced(&current.bytes) == stored {
            return Ok((current.bytes.clone(), current.revision));
        }
        let revision = self
            .commit(target.resource, key, expect, Some(stored.clone()))
            .await?;
        Ok((encode::shown(&stored, revision), revision))
    }
}

/// What a commit came to; none if another write was faster and all of it is to be
/// done again.
fn settle(
    outcome: Result<(bytes::Bytes, Revision), CommitError>,
    warnings: Vec<String>,
) -> Result<Option<Written>, Status> {
    match outcome {
        Ok((object, revision)) => Ok(Some(Written {
            object,
            revision,
            created: false,
            warnings,
        })),
        Err(CommitError::Precondition { .. }) => Ok(None),
        Err(error) => Err(engine_failure(&error)),
    }
}

/// 409 if the client looked at another object or an older state.
fn preconditions(target: Target<'_>, new: &Value, old: &Value) -> Result<(), Status> {
    let subject = target.resource.subject();
    let given = |field: &str| new["metadata"][field].as_str().filter(|v| !v.is_empty());
    if let Some(uid) = given("uid")
        && Some(uid) != old["metadata"]["uid"].as_str()
    {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            old["metadata"]["uid"].as_str().unwrap_or_default()
        );
        return Err(Status::conflict(subject, target.name, why));
    }
    if let Some(version) = given("resourceVersion") {
        if version.parse::<u64>().is_err() {
            return Err(Status::bad_request(format!(
                "invalid resource version {version:?}"
            )));
        }
        if Some(version) != old["metadata"]["resourceVersion"].as_str() {
            return Err(Status::modified(subject, target.name));
        }
    }
    Ok(())
}

/// Keeps each door to its own part of the object.
fn isolate(resource: &Resource, subresource: &str, new: &mut Value, old: &Value) {
    match subresource {
        "" if resource.has_status() => take(new, old, "status"),
        // Made here out of the current object, see `scale`.
        "" | "scale" => {}
        "status" => {
            let status = new.get("status").cloned();
            let metadata = new["metadata"].take();
            *new = old.clone();
            keep_identity(&metadata, new, resource.rules.status_writes_labels);
            set(new, "status", status);
        }
        "finalize" => {
            let finalizers = new["spec"]["finalizers"].take();
            *new = old.clone();
            new["spec"] = json!({});
            if finalizers.as_array().is_some_and(|list| !list.is_empty()) {
                new["spec"]["finalizers"] = finalizers;
            }
        }
        "approval" => {
            keep_only(new, old, "status", "conditions");
        }
        "ephemeralcontainers" => {
            keep_only(new, old, "spec", "ephemeralContainers");
        }
        _ => *new = old.clone(),
    }
}

/// Of a status write's metadata, ownership always counts; labels and the like
/// only for kinds whose reporters set them there (nodes, pods).
fn keep_identity(metadata: &Value, new: &mut Value, everything: bool) {
    let fields: &[&str] = if everything {
        &["labels", "annotations", "managedFields", "finalizers"]
    } else {
        &["annotations", "managedFields", "finalizers"]
    };
    for field in fields {
        match &metadata[*field] {
            Value::Null => {
                drop(
                    new["metadata"]
                        .as_object_mut()
                        .and_then(|map| map.remove(*field)),
                );
            }
            value => new["metadata"][*field] = value.clone(),
        }
    }
}

/// Of `new`, keeps `part.field` alone; the rest is that of `old`.
fn keep_only(new: &mut Value, old: &Value, part: &str, field: &str) {
    let value = new.get(part).and_then(|part| part.get(field)).cloned();
    *new = old.clone();
    match new.get_mut(part) {
        Some(part) => set(part, field, value),
        None if value.is_some() => new[part][field] = value.unwrap_or_default(),
        None => {}
    }
}

fn take(new: &mut Value, old: &Value, field: &str) {
    set(new, field, old.get(field).cloned());
}

fn set(new: &mut Value, field: &str, value: Option<Value>) {
    let Some(map) = new.as_object_mut() else {
        return;
    };
    match value {
        Some(value) => drop(map.insert(field.to_owned(), value)),
        None => drop(map.remove(field)),
    }
}

/// Whether a deleted object is held by nothing any more.
pub(super) fn is_finished(resource: &Resource, object: &Value) -> bool {
    let metadata = &object["metadata"];
    let free = metadata["finalizers"].as_array().is_none_or(Vec::is_empty);
    let grace = metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    metadata["deletionTimestamp"].is_string()
        && free
        && grace == 0
        && !(resource.rules.held)(object)
}
