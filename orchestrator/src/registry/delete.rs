//! Deletion: preconditions, grace, finalizers, propagation.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    Caller, Hold, Operation, Registry, Request, Target, encode, engine_failure,
    metadata::{self, stamp},
    update::is_finished,
};
use crate::{
    resource::Resource,
    status::Status,
    store::{CommitError, Expect},
};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const ATTEMPTS: usize = 5;

/// What happens to the objects that this one owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They go afterwards.
    Background,
    /// They go first.
    Foreground,
    /// They stay.
    Orphan,
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds until the object must be gone; `None` is the object's own.
    pub grace_seconds: Option<i64>,
    /// `None` is the resource's default.
    pub propagation: Option<Propagation>,
    /// Only this incarnation.
    pub uid: Option<String>,
    /// Only this state.
    pub resource_version: Option<String>,
    /// Do everything but the commit.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// With this propagation.
    pub fn propagating(propagation: Propagation) -> Self {
        Self {
            propagation: Some(propagation),
            ..Self::default()
        }
    }

    /// At once, whatever the object's grace period says.
    pub fn now() -> Self {
        Self {
            grace_seconds: Some(0),
            ..Self::default()
        }
    }

    /// Only the incarnation with this UID.
    #[must_use]
    pub fn only(self, uid: &str) -> Self {
        Self {
            uid: Some(uid.to_owned()),
            ..self
        }
    }
}

/// What a deletion has done.
#[derive(Clone, Debug)]
pub enum Deleted {
    /// The object is gone; this was its last state.
    Gone(Bytes),
    /// It is on its way: something holds it, or its grace period runs.
    Terminating(Bytes),
}

impl Registry {
    /// Deletes an object, or begins to.
    ///
    /// # Errors
    /// 403, 404, 409 if a precondition fails.
    pub async fn delete(
        &self,
        target: Target<'_>,
        caller: &Caller,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let resource = target.resource;
        let key = resource.object_key(target.namespace, target.name);
        let _turn = self.lock(resource, &key).await;
        for _ in 0..ATTEMPTS {
            let current = self.get(target)?;
            let old = current.value();
            preconditions(target, options, &old)?;
            let (mut warnings, mut holds) = (Vec::new(), Vec::<Hold>::new());
            let mut request = Request {
                operation: Operation::Delete,
                target,
                caller,
                old: Some(&old),
                dry_run: options.dry_run,
                cache: &self.cache,
                holds: &mut holds,
                warnings: &mut warnings,
            };
            for rule in &self.admission {
                rule.admit(&mut request, &mut old.clone())?;
            }
            for rule in &self.admission {
                rule.review(&mut request, &old)?;
            }
            let new = marked(resource, &old, options, self.now())?;
            let (value, stored) = if is_finished(resource, &new) {
                (None, entry_bytes(&old))
            } else {
                let stored = encode::stored(&new);
                (Some(stored.clone()), stored)
            };
            let gone = value.is_none();
            let unchanged = !gone && crate::cache::entry::unspliced(&current.bytes) == stored;
            let revision = if options.dry_run || unchanged {
                current.revision
            } else {
                match self
                    .commit(resource, &key, Expect::At(current.revision), value)
                    .await
                {
                    Ok(revision) => revision,
                    Err(CommitError::Precondition { .. }) => continue,
                    Err(error) => return Err(engine_failure(&error)),
                }
            };
            let shown = encode::shown(&stored, revision);
            return Ok(if gone {
                Deleted::Gone(shown)
            } else {
                Deleted::Terminating(shown)
            });
        }
        Err(Status::modified(resource.subject(), target.name))
    }
}

fn entry_bytes(old: &Value) -> Bytes {
    encode::stored(old)
}

fn preconditions(target: Target<'_>, options: &DeleteOptions, old: &Value) -> Result<(), Status> {
    for (what, wanted, field) in [
        ("UID", &options.uid, "uid"),
        (
            "ResourceVersion",
            &options.resource_version,
            "resourceVersion",
        ),
    ] {
        let found = old["metadata"][field].as_str().unwrap_or_default();
        if let Some(wanted) = wanted
            && wanted != found
        {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
            );
            return Err(Status::conflict(
                target.resource.subject(),
                target.name,
                why,
            ));
        }
    }
    Ok(())
}

/// The object with the marks of its deletion.
fn marked(
    resource: &Resource,
    old: &Value,
    options: &DeleteOptions,
    now: Timestamp,
) -> Result<Value, Status> {
    let mut new = old.clone();
    propagate(resource, &mut new, options.propagation);
    let asked = options
        .grace_seconds
        .map(|seconds| if seconds < 0 { 1 } else { seconds });
    let wanted = (resource.rules.grace)(old, asked);
    let mark = &old["metadata"]["deletionTimestamp"];
    let (grace, moment) = match mark
        .as_str()
        .and_then(|text| text.parse::<Timestamp>().ok())
    {
        None => (wanted, later(now, wanted)),
        Some(moment) => {
            // A second deletion may only shorten the first.
            let before = old["metadata"]["deletionGracePeriodSeconds"]
                .as_i64()
                .unwrap_or(0);
            let shorter = if options.grace_seconds.is_some() || wanted == 0 {
                wanted.min(before)
            } else {
                before
            };
            (shorter, later(moment, shorter - before))
        }
    };
    let metadata = metadata::map(&mut new)?;
    metadata.insert("deletionTimestamp".to_owned(), json!(stamp(moment)));
    metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
    if mark.is_null() {
        if let Some(generation) = metadata.get("generation").and_then(Value::as_i64) {
            metadata.insert("generation".to_owned(), json!(generation + 1));
        }
        (resource.rules.terminate)(&mut new);
    }
    metadata::tidy(&mut new);
    Ok(new)
}

fn later(from: Timestamp, seconds: i64) -> Timestamp {
    from.checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX)
}

/// Sets the finalizers that make the garbage collector orphan or go first.
fn propagate(resource: &Resource, new: &mut Value, propagation: Option<Propagation>) {
    let names = new["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    let policy = match propagation {
        Some(policy) => policy,
        None if has(ORPHAN) => Propagation::Orphan,
        None if has(FOREGROUND) => Propagation::Foreground,
        None if resource.rules.orphans => Propagation::Orphan,
        None => Propagation::Background,
    };
    let mut kept: Vec<Value> = names
        .iter()
        .filter(|name| *name != ORPHAN && *name != FOREGROUND)
        .cloned()
        .collect();
    match policy {
        Propagation::Orphan => kept.push(json!(ORPHAN)),
        Propagation::Foreground => kept.push(json!(FOREGROUND)),
        Propagation::Background => {}
    }
    new["metadata"]["finalizers"] = Value::Array(kept);
}
