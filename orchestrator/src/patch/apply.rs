//! Server-side apply, and the ownership of fields that every other write changes too.
//!
//! Semantics are those of upstream's structured merge: an applier owns what it applies; a field
//! owned by others can be taken over by force only; what an applier no longer applies goes, unless
//! someone else owns it; whoever writes a field by other means owns it from then on.

mod fields;
mod managed;
mod typed;

use serde_json::{Value, json};
use thiserror::Error;

use crate::schema::{ConvertError, ObjectType, canonicalise};
use crate::status::Cause;
use fields::FieldSet;
use managed::{Entry, Managed, Manager, Operation};
use typed::{Shape, check, compare, fields_of, merge, with_parents, without};

/// Fields that nobody owns.
const UNOWNED: [&[&str]; 11] = [
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];
/// Parts that every object of a kind has, empty if need be: who sets something in them does not
/// own that they are there.
const ALWAYS_THERE: [&[&str]; 9] = [
    &["spec"],
    &["status"],
    &["spec", "template"],
    &["spec", "template", "metadata"],
    &["spec", "template", "spec"],
    &["spec", "strategy"],
    &["spec", "updateStrategy"],
    &["spec", "jobTemplate"],
    &["spec", "jobTemplate", "spec"],
];
/// What kubectl's client-side apply keeps on an object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Who writes, to what, through which door.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    pub object: &'static ObjectType,
    pub api_version: &'a str,
    /// The field manager; empty counts as `unknown`.
    pub manager: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Paths that a write through this door cannot change, so cannot own: `status` for the object
    /// itself, `spec` for its status.
    pub reset: &'a [&'a [&'a str]],
    /// RFC 3339, whole seconds, UTC.
    pub now: &'a str,
}

/// An apply that is refused.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// 400.
    #[error("{0}")]
    Malformed(String),
    /// 400.
    #[error("{0}")]
    Type(#[from] ConvertError),
    /// 409, reason `Conflict`.
    #[error("{}", conflict_message(.0))]
    Conflict(Vec<Conflict>),
}

/// A field that someone else owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The owner, as messages name it.
    pub manager: String,
    /// As in `.spec.replicas`.
    pub path: String,
}

impl ApplyError {
    /// The causes of the refusal, one for each conflict.
    pub fn causes(&self) -> Vec<Cause> {
        let Self::Conflict(conflicts) = self else {
            return Vec::new();
        };
        let cause = |conflict: &Conflict| {
            let message = format!("conflict with {}", conflict.manager);
            Cause::new("FieldManagerConflict", &conflict.path, message)
        };
        conflicts.iter().map(cause).collect()
    }
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager, one.path
        );
    }
    let mut text = format!("Apply failed with {} conflicts: ", conflicts.len());
    let mut managers: Vec<&str> = conflicts
        .iter()
        .map(|conflict| &*conflict.manager)
        .collect();
    managers.sort_unstable();
    managers.dedup();
    let mut lines = Vec::new();
    for manager in managers {
        lines.push(format!("conflicts with {manager}:"));
        let of = conflicts
            .iter()
            .filter(|conflict| conflict.manager == manager);
        lines.extend(of.map(|conflict| format!("- {}", conflict.path)));
    }
    text.push_str(&lines.join("\n"));
    text
}

impl Writer<'_> {
    fn identity(&self, operation: Operation) -> Manager {
        let name = if self.manager.is_empty() {
            "unknown"
        } else {
            self.manager
        };
        Manager {
            name: name.to_owned(),
            operation,
            api_version: self.api_version.to_owned(),
            subresource: self.subresource.to_owned(),
        }
    }

    fn shape(&self) -> Shape<'static> {
        Shape::Object(self.object)
    }

    /// The part of a set that a write through this door can own.
    fn ownable(&self, mut set: FieldSet) -> FieldSet {
        set.member = false;
        for path in self.reset {
            set.exclude(path);
        }
        for path in UNOWNED {
            set.exclude_member(path);
        }
        set
    }
}

/// Applies `config` to `live` (`None` where the object does not exist yet) and returns the object
/// to be stored, its managed fields included. It has still to be converted, defaulted and
/// validated. An unchanged object comes back equal to `live`.
pub fn apply(
    writer: &Writer<'_>,
    live: Option<&Value>,
    mut config: Value,
    force: bool,
) -> Result<Value, ApplyError> {
    if config
        .pointer("/metadata/managedFields")
        .is_some_and(|fields| !fields.is_null())
    {
        return Err(ApplyError::Malformed(
            "metadata.managedFields must be nil".to_owned(),
        ));
    }
    let unknown = canonicalise(writer.object, &mut config)?;
    if let Some(path) = unknown.first() {
        let text =
            format!("failed to create typed patch object: .{path}: field not declared in schema");
        return Err(ApplyError::Malformed(text));
    }
    check(writer.shape(), &config, "").map_err(|why| {
        ApplyError::Malformed(format!("failed to create typed patch object: {why}"))
    })?;
    let empty = json!({});
    let before = live.unwrap_or(&empty);
    let mut bare = before.clone();
    managed::strip(&mut bare);
    let mut managed = Managed::of(before);
    if managed.0.is_empty() && live.is_some() {
        adopt(writer, &bare, &mut managed);
    }
    let merged = merge_and_prune(writer, &bare, &config, &mut managed);
    take_over(writer, before, &bare, &merged, &mut managed, force)?;
    let mut object = merged;
    let changed = object != bare;
    stamp(writer, before, &mut managed, changed);
    if changed && writer.manager == "kubectl" {
        sync_last_applied(&bare, &mut object, &config);
    }
    managed.put(&mut object);
    Ok(object)
}

/// Gives an object that no one owns anything of to `before-first-apply`.
fn adopt(writer: &Writer<'_>, bare: &Value, managed: &mut Managed) {
    let manager = Manager {
        name: "before-first-apply".to_owned(),
        ..writer.identity(Operation::Update)
    };
    let mut set = writer.ownable(compare(writer.shape(), None, Some(bare)).set());
    for path in ALWAYS_THERE {
        set.exclude_member(path);
    }
    managed.0.push(Entry {
        manager,
        time: writer.now.to_owned(),
        set,
    });
}

/// Merges the configuration, records what it owns, and removes what it no longer mentions and
/// nobody else owns.
fn merge_and_prune(
    writer: &Writer<'_>,
    bare: &Value,
    config: &Value,
    managed: &mut Managed,
) -> Value {
    let shape = writer.shape();
    let mut merged = bare.clone();
    merge(shape, &mut merged, config.clone());
    drop_nulls(&mut merged, config);
    let manager = writer.identity(Operation::Apply);
    let set = writer.ownable(fields_of(shape, config));
    let last = if let Some(entry) = managed.find(&manager) {
        std::mem::replace(&mut entry.set, set)
    } else {
        managed.0.push(Entry {
            manager,
            time: String::new(),
            set,
        });
        FieldSet::default()
    };
    if last.is_empty() {
        return merged;
    }
    let last = with_parents(shape, &last);
    let all = with_parents(shape, &fields_of(shape, &merged));
    let left = |gone: &FieldSet| without(shape, merged.clone(), gone).unwrap_or_else(|| json!({}));
    let fields = |value: &Value| with_parents(shape, &fields_of(shape, value));
    // What was applied last time goes,
    let mut kept = fields(&left(&last));
    // what anyone owns comes back,
    let mut owned = FieldSet::default();
    for entry in &managed.0 {
        owned.union(&entry.set);
    }
    kept.union(&with_parents(shape, &owned));
    let mut gone = all.clone();
    gone.subtract(&kept);
    // and what was never applied by this manager was not its to remove.
    let kept = fields(&left(&gone));
    let mut gone = all;
    gone.subtract(&kept);
    gone.intersect(&last);
    left(&gone)
}

/// Removes from `merged` the fields that `config` sets to null.
fn drop_nulls(merged: &mut Value, config: &Value) {
    if let (Value::Object(merged), Value::Object(config)) = (merged, config) {
        for (name, value) in config {
            if value.is_null() {
                merged.remove(name);
            } else if let Some(merged) = merged.get_mut(name) {
                drop_nulls(merged, value);
            }
        }
    }
}

/// Takes changed fields from their owners, or says who they are.
fn take_over(
    writer: &Writer<'_>,
    before: &Value,
    bare: &Value,
    merged: &Value,
    managed: &mut Managed,
    force: bool,
) -> Result<(), ApplyError> {
    let mut found = compare(writer.shape(), Some(bare), Some(merged));
    writer.reset.iter().for_each(|path| found.exclude(path));
    let changed = found.set();
    let manager = writer.identity(Operation::Apply);
    let allowed = if writer.manager == "kubectl" {
        last_applied(writer, before)
    } else {
        None
    };
    let mut conflicts = Vec::new();
    for entry in managed
        .0
        .iter_mut()
        .filter(|entry| !entry.manager.is(&manager))
    {
        let mut taken = entry.set.clone();
        taken.intersect(&changed);
        let mut refused = taken.clone();
        if let Some(allowed) = &allowed {
            refused.subtract(allowed);
        }
        let shown = entry.manager.shown();
        let conflict = |path| Conflict {
            manager: shown.clone(),
            path,
        };
        conflicts.extend(refused.paths().into_iter().map(conflict));
        entry.set.subtract(&taken);
        entry.set.subtract(&found.removed);
    }
    if force || conflicts.is_empty() {
        Ok(())
    } else {
        Err(ApplyError::Conflict(conflicts))
    }
}

/// The fields that kubectl's client-side apply set and nobody changed since: kubectl may take them
/// over without asking.
fn last_applied(writer: &Writer<'_>, live: &Value) -> Option<FieldSet> {
    let text = live
        .get("metadata")?
        .get("annotations")?
        .get(LAST_APPLIED)?
        .as_str()?;
    let mut last: Value = serde_json::from_str(text).ok()?;
    if last.get("apiVersion")?.as_str()? != writer.api_version {
        return None;
    }
    canonicalise(writer.object, &mut last).ok()?;
    let mut set = fields_of(writer.shape(), &last);
    let found = compare(writer.shape(), Some(&last), Some(live));
    set.subtract(&found.set());
    set.subtract(&found.removed);
    Some(set)
}

/// Keeps kubectl's annotation in step, where the object has it.
fn sync_last_applied(bare: &Value, object: &mut Value, config: &Value) {
    let annotations = |value: &Value| value["metadata"]["annotations"].get(LAST_APPLIED).is_some();
    if annotations(bare) {
        let mut config = config.clone();
        let own = config.pointer_mut("/metadata/annotations");
        if let Some(own) = own.and_then(Value::as_object_mut) {
            own.remove(LAST_APPLIED);
        }
        object["metadata"]["annotations"][LAST_APPLIED] = format!("{config}\n").into();
    }
}

/// Gives the applier's entry its time: now if anything changed, else what it had.
fn stamp(writer: &Writer<'_>, before: &Value, managed: &mut Managed, changed: bool) {
    let manager = writer.identity(Operation::Apply);
    let mut old = Managed::of(before);
    let old = old.find(&manager);
    let Some(entry) = managed.find(&manager) else {
        return;
    };
    entry.manager = manager;
    entry.time = match old {
        Some(old) if !changed && old.set == entry.set => old.time.clone(),
        _ => writer.now.to_owned(),
    };
}

/// Records a create (`live` is `None`), update or patch in the managed fields of `new`, the object
/// about to be stored.
pub fn track_update(writer: &Writer<'_>, live: Option<&Value>, new: &mut Value) {
    let empty = json!({});
    let before = live.unwrap_or(&empty);
    let mut managed = sent_or_live(writer, before, new);
    managed::strip(new);
    // An object that was never tracked stays so.
    if managed.0.is_empty() && live.is_some() {
        return;
    }
    let mut found = compare(writer.shape(), live, Some(new));
    found.exclude(&["metadata", "managedFields"]);
    writer.reset.iter().for_each(|path| found.exclude(path));
    let (changed, removed) = found.into_changed_and_removed();
    for entry in &mut managed.0 {
        entry.set.subtract(&changed);
        entry.set.subtract(&removed);
    }
    let mut set = writer.ownable(changed);
    for path in ALWAYS_THERE {
        set.exclude_member(path);
    }
    if !set.is_empty() {
        let manager = writer.identity(Operation::Update);
        let now = writer.now.to_owned();
        match managed.find(&manager) {
            Some(entry) => {
                entry.set.union(&set);
                entry.time = now;
            }
            None => managed.0.push(Entry {
                manager,
                time: now,
                set,
            }),
        }
    }
    managed.cap();
    managed.put(new);
}

/// The managed fields to start from: what the request sends, unless it cannot or does not. An
/// empty list, or one empty entry, starts afresh.
fn sent_or_live(writer: &Writer<'_>, live: &Value, new: &Value) -> Managed {
    if !writer.subresource.is_empty() {
        return Managed::of(live);
    }
    let sent = new
        .pointer("/metadata/managedFields")
        .and_then(Value::as_array);
    let reset = sent.is_some_and(|list| match list.as_slice() {
        [] => true,
        [one] => one.as_object().is_some_and(serde_json::Map::is_empty),
        _ => false,
    });
    let own = Managed::of(new);
    if reset || !own.0.is_empty() {
        own
    } else {
        Managed::of(live)
    }
}

#[cfg(test)]
mod tests;
