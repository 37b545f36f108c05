//! Events, of both versions.

use serde_json::Value;

use super::{At, Causes};
use crate::status::Cause;

/// Longest text for programs.
const NAME_MAX: usize = 128;
/// Longest text for people.
const NOTE_MAX: usize = 1024;

/// An Event as it is stored: it lies in the namespace of what it is about, and
/// one that says its time in the new way says the rest in the new way too.
pub fn event(object: &Value, causes: &mut Causes) {
    let root = At::root(object);
    let namespace = root.field("metadata").field("namespace").text();
    let of = root.field("involvedObject").field("namespace");
    // What is about no namespace lies in one of the cluster's own.
    let fits = if of.is_set() {
        of.text() == namespace
    } else {
        matches!(namespace, "default" | "kube-system")
    };
    if !fits {
        of.invalid("does not match event.namespace", causes);
    }
    if !root.field("eventTime").is_set() {
        return;
    }
    let controller = root.field("reportingComponent");
    if controller.require(causes) {
        controller.qualified_name(causes);
    }
    for name in ["reportingInstance", "action", "reason"] {
        let field = root.field(name);
        if field.require(causes) && field.text().len() > NAME_MAX {
            field.invalid("can have at most 128 characters", causes);
        }
    }
    let message = root.field("message");
    if message.text().len() > NOTE_MAX {
        message.invalid("can have at most 1024 characters", causes);
    }
}

/// A new events.k8s.io Event: nothing of the old way may be in it.
pub fn event_v1(object: &Value, causes: &mut Causes) {
    let root = At::root(object);
    root.field("eventTime").require(causes);
    root.field("type").choose(&["Normal", "Warning"], causes);
    for name in [
        "deprecatedCount",
        "deprecatedFirstTimestamp",
        "deprecatedLastTimestamp",
        "deprecatedSource",
    ] {
        let field = root.field(name);
        if field.is_set() {
            field.forbid("needs to be unset", causes);
        }
    }
    series(&root, causes);
}

/// A change of an events.k8s.io Event: only the series goes on.
pub fn event_v1_update(new: &Value, old: &Value, causes: &mut Causes) {
    let root = At::root(new);
    for name in [
        "action",
        "deprecatedCount",
        "deprecatedFirstTimestamp",
        "deprecatedLastTimestamp",
        "deprecatedSource",
        "eventTime",
        "note",
        "reason",
        "regarding",
        "related",
        "reportingController",
        "reportingInstance",
        "type",
    ] {
        root.field(name).unchanged(&old[name], causes);
    }
    series(&root, causes);
}

/// A series has been seen at least twice, and says when last.
fn series(root: &At<'_>, causes: &mut Causes) {
    let series = root.field("series");
    if !series.value.is_object() {
        return;
    }
    let count = series.field("count");
    if count.int().unwrap_or(0) < 2 {
        causes.push(Cause::invalid(
            &count.path,
            count.value,
            "should be at least 2",
        ));
    }
    series.field("lastObservedTime").require(causes);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(of: impl Fn(&mut Causes)) -> Vec<String> {
        let mut causes = Causes::new();
        of(&mut causes);
        causes.into_iter().map(|cause| cause.field).collect()
    }

    #[test]
    fn an_event_of_the_new_way_is_complete() {
        let bare = json!({"type": "Odd", "deprecatedCount": 1, "series": {"count": 1}});
        assert_eq!(
            fields(|causes| event_v1(&bare, causes)),
            [
                "eventTime",
                "type",
                "deprecatedCount",
                "series.count",
                "series.lastObservedTime"
            ]
        );
        let stored = json!({"metadata": {"namespace": "default"}, "eventTime": "t"});
        assert_eq!(
            fields(|causes| event(&stored, causes)),
            [
                "reportingComponent",
                "reportingInstance",
                "action",
                "reason"
            ]
        );
    }

    #[test]
    fn only_its_series_changes() {
        let old = json!({"note": "a", "reason": "r"});
        let new =
            json!({"note": "b", "reason": "r", "series": {"count": 2, "lastObservedTime": "t"}});
        assert_eq!(
            fields(|causes| event_v1_update(&new, &old, causes)),
            ["note"]
        );
    }
}
