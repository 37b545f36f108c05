//! batch/v1: work that ends.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    PLAIN, Resource, Rules, SelectableField, Subresource,
    table::{self, AGE_COLUMN, Column, count},
    template,
};
use crate::{defaults, validation};

/// `batch/v1`.
pub const ALL: &[&Resource] = &[&CRON_JOB, &JOB];

/// A job again and again.
pub static CRON_JOB: Resource = Resource {
    short_names: &["cj"],
    categories: &["all"],
    subresources: &[Subresource::status("batch", "CronJob")],
    columns: &[
        Column::text("Schedule", |o, _| table::text_or(o, "/spec/schedule", "")),
        Column::text("Timezone", |o, _| {
            table::text_or(o, "/spec/timeZone", "<none>")
        }),
        Column::text("Suspend", |o, _| {
            Value::from(if o["spec"]["suspend"] == json!(true) {
                "True"
            } else {
                "False"
            })
        }),
        Column::integer("Active", |o, _| {
            o["status"]["active"].as_array().map_or(0, Vec::len).into()
        }),
        Column::text(
            "Last Schedule",
            |o, now| match &o["status"]["lastScheduleTime"] {
                Value::Null => "<none>".into(),
                stamp => table::since(stamp, now),
            },
        ),
        AGE_COLUMN,
        Column::text("Containers", |o, _| template::names(cron_pod(o))).wide(),
        Column::text("Images", |o, _| template::images(cron_pod(o))).wide(),
        Column::text("Selector", |_, _| "<none>".into()).wide(),
    ],
    generation: true,
    rules: Rules {
        default: defaults::cron_job,
        validate: validation::cron_job,
        ..PLAIN
    },
    ..Resource::namespaced("cronjobs.batch", "batch", "CronJob", "cronjobs", "cronjob")
};

fn cron_pod(object: &Value) -> &Value {
    &object["spec"]["jobTemplate"]["spec"]["template"]["spec"]
}

/// Pods that run to completion.
pub static JOB: Resource = Resource {
    categories: &["all"],
    subresources: &[Subresource::status("batch", "Job")],
    fields: &[SelectableField {
        name: "status.successful",
        pointer: "status.succeeded",
        default: "0",
    }],
    columns: &[
        Column::text("Status", |o, _| job_status(o).into()),
        Column::text("Completions", |o, _| completions(o)),
        Column::text("Duration", duration),
        AGE_COLUMN,
        Column::text("Containers", |o, _| {
            template::names(&o["spec"]["template"]["spec"])
        })
        .wide(),
        Column::text("Images", |o, _| {
            template::images(&o["spec"]["template"]["spec"])
        })
        .wide(),
        Column::text("Selector", |o, _| {
            let scale = crate::registry::scale::of(o);
            table::text_or(&scale, "/status/selector", "<none>")
        })
        .wide(),
    ],
    generation: true,
    rules: Rules {
        default: defaults::job,
        create: own_selector,
        validate: validation::job,
        validate_update: validation::job_update,
        orphans: true,
        ..PLAIN
    },
    ..Resource::namespaced("jobs.batch", "batch", "Job", "jobs", "job")
};

/// A job tells its pods by its own UID, unless the client selects by hand.
fn own_selector(job: &mut Value) {
    if job["spec"]["manualSelector"] == json!(true) {
        return;
    }
    let uid = job["metadata"]["uid"].clone();
    let name = job["metadata"]["name"].clone();
    let labels = &mut job["spec"]["template"]["metadata"]["labels"];
    for prefix in ["", "batch.kubernetes.io/"] {
        labels[format!("{prefix}controller-uid")] = uid.clone();
        labels[format!("{prefix}job-name")] = name.clone();
    }
    if job["spec"]["selector"].is_null() {
        job["spec"]["selector"] =
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
    }
}

fn has_condition(job: &Value, kind: &str) -> bool {
    let conditions = job["status"]["conditions"].as_array().into_iter().flatten();
    conditions
        .into_iter()
        .any(|c| c["type"] == kind && c["status"] == "True")
}

fn job_status(job: &Value) -> &'static str {
    match () {
        () if has_condition(job, "Complete") => "Complete",
        () if has_condition(job, "Failed") => "Failed",
        () if job["metadata"]["deletionTimestamp"].is_string() => "Terminating",
        () if has_condition(job, "Suspended") => "Suspended",
        () if has_condition(job, "FailureTarget") => "FailureTarget",
        () if has_condition(job, "SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn completions(job: &Value) -> Value {
    let done = count(job, "/status/succeeded");
    match job["spec"]["completions"].as_i64() {
        Some(wanted) => format!("{done}/{wanted}").into(),
        None => match count(job, "/spec/parallelism") {
            parallel @ 2.. => format!("{done}/1 of {parallel}").into(),
            _ => format!("{done}/1").into(),
        },
    }
}

fn duration(job: &Value, now: Timestamp) -> Value {
    let time = |field: &str| job["status"][field].as_str()?.parse::<Timestamp>().ok();
    let Some(start) = time("startTime") else {
        return "".into();
    };
    let end = time("completionTime").unwrap_or(now);
    table::human_duration(end.as_second() - start.as_second()).into()
}
