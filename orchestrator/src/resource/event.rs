//! Events: one set of objects under two versions, core and events.k8s.io.

use serde_json::Value;

use super::{
    PLAIN, Resource, Rules, SelectableField, View,
    table::{self, Column, NAME_COLUMN},
};
use crate::validation;

/// `events.k8s.io/v1`; the core version is among the core group's.
pub const ALL: &[&Resource] = &[&EVENT_V1];

/// What happened; core and events.k8s.io show the same objects.
pub static EVENT: Resource = Resource {
    short_names: &["ev"],
    fields: EVENT_FIELDS,
    columns: COLUMNS,
    rules: Rules {
        validate: validation::event,
        ..PLAIN
    },
    ..Resource::namespaced("events", "", "Event", "events", "event")
};

/// Fields by which events are selected.
pub const EVENT_FIELDS: &[SelectableField] = &[
    SelectableField::text("involvedObject.kind"),
    SelectableField::text("involvedObject.namespace"),
    SelectableField::text("involvedObject.name"),
    SelectableField::text("involvedObject.uid"),
    SelectableField::text("involvedObject.apiVersion"),
    SelectableField::text("involvedObject.resourceVersion"),
    SelectableField::text("involvedObject.fieldPath"),
    SelectableField::text("reason"),
    SelectableField::text("reportingComponent"),
    SelectableField::text("type"),
    // Of the core version only, so it comes last.
    SelectableField {
        name: "source",
        pointer: "source.component",
        default: "",
    },
];

/// The same objects as events.k8s.io shows them.
pub static EVENT_V1: Resource = Resource {
    view: Some(&View {
        of: &EVENT,
        renamed: &[
            ("deprecatedCount", "count"),
            ("deprecatedFirstTimestamp", "firstTimestamp"),
            ("deprecatedLastTimestamp", "lastTimestamp"),
            ("deprecatedSource", "source"),
            ("note", "message"),
            ("regarding", "involvedObject"),
            ("reportingController", "reportingComponent"),
        ],
    }),
    short_names: &["ev"],
    fields: EVENT_V1_FIELDS,
    columns: COLUMNS,
    rules: Rules {
        validate_create: validation::event_v1,
        validate_update: validation::event_v1_update,
        ..PLAIN
    },
    ..Resource::namespaced("events", "events.k8s.io", "Event", "events", "event")
};

/// Fields by which the newer version selects: those of [`EVENT_FIELDS`], in
/// the same order, without the last.
const EVENT_V1_FIELDS: &[SelectableField] = &[
    SelectableField::renamed("regarding.kind", "involvedObject.kind"),
    SelectableField::renamed("regarding.namespace", "involvedObject.namespace"),
    SelectableField::renamed("regarding.name", "involvedObject.name"),
    SelectableField::renamed("regarding.uid", "involvedObject.uid"),
    SelectableField::renamed("regarding.apiVersion", "involvedObject.apiVersion"),
    SelectableField::renamed(
        "regarding.resourceVersion",
        "involvedObject.resourceVersion",
    ),
    SelectableField::renamed("regarding.fieldPath", "involvedObject.fieldPath"),
    SelectableField::text("reason"),
    SelectableField::renamed("reportingController", "reportingComponent"),
    SelectableField::text("type"),
];

const COLUMNS: &[Column] = &[
    Column::text("Last Seen", last_seen),
    Column::text("Type", |o, _| table::text_or(o, "/type", "")),
    Column::text("Reason", |o, _| table::text_or(o, "/reason", "")),
    Column::text("Object", |o, _| {
        let object = &o["involvedObject"];
        let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
        Value::from(format!(
            "{kind}/{}",
            object["name"].as_str().unwrap_or_default()
        ))
    }),
    Column::text("Subobject", |o, _| {
        table::text_or(o, "/involvedObject/fieldPath", "")
    })
    .wide(),
    Column::text("Source", |o, _| table::text_or(o, "/source/component", "")).wide(),
    Column::text("Message", |o, _| {
        Value::from(o["message"].as_str().unwrap_or_default().trim())
    }),
    Column::text("First Seen", |o, now| {
        table::since(&o["firstTimestamp"], now)
    })
    .wide(),
    Column::integer("Count", |o, _| {
        Value::from(table::count(o, "/count").max(1))
    })
    .wide(),
    NAME_COLUMN.wide(),
];

fn last_seen(event: &Value, now: jiff::Timestamp) -> Value {
    let stamps = [
        &event["series"]["lastObservedTime"],
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["metadata"]["creationTimestamp"],
    ];
    let newest = stamps
        .into_iter()
        .find(|stamp| stamp.is_string())
        .unwrap_or(&Value::Null);
    table::since(newest, now)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_versions_select_by_the_same_stored_fields() {
        for (new, old) in EVENT_V1_FIELDS.iter().zip(EVENT_FIELDS) {
            assert_eq!(new.pointer, old.pointer);
        }
    }

    #[test]
    fn an_event_goes_through_the_other_version_and_back_unharmed() {
        let stored = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
            "involvedObject": {"kind": "Pod"}, "message": "m", "count": 3, "eventTime": null,
            "source": {"component": "c"}, "reportingComponent": "c", "reportingInstance": "i",
            "firstTimestamp": "a", "lastTimestamp": "b", "series": {"count": 2},
        });
        let mut event = stored.clone();
        EVENT_V1.show(&mut event);
        assert_eq!(event["apiVersion"], "events.k8s.io/v1");
        assert_eq!(event["regarding"]["kind"], "Pod");
        assert_eq!(event["note"], "m");
        assert_eq!(event["deprecatedCount"], 3);
        assert!(event.get("involvedObject").is_none());
        EVENT_V1.keep(&mut event);
        assert_eq!(event, stored);
    }
}
