//! batch/v1: work that ends.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Causes, PLAIN, Resource, Rules, SelectableField, Subresource,
    apps::label_selector,
    table::{self, AGE_COLUMN, Column, count},
    template::{self, at_least, one_of},
};
use crate::{cache::Selector, defaults, status::Cause};

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
        validate: |o, causes| {
            let spec = &o["spec"];
            if spec["schedule"].as_str().unwrap_or_default().is_empty() {
                causes.push(Cause::required("spec.schedule", ""));
            }
            one_of(
                spec,
                "spec",
                "concurrencyPolicy",
                &["Allow", "Forbid", "Replace"],
                causes,
            );
            for field in [
                "startingDeadlineSeconds",
                "successfulJobsHistoryLimit",
                "failedJobsHistoryLimit",
            ] {
                at_least(spec, "spec", field, 0, causes);
            }
            job_spec(
                &spec["jobTemplate"]["spec"],
                "spec.jobTemplate.spec",
                causes,
            );
            if o["metadata"]["name"]
                .as_str()
                .is_some_and(|name| name.len() > 52)
            {
                let why = "must be no more than 52 characters";
                causes.push(Cause::invalid("metadata.name", &o["metadata"]["name"], why));
            }
        },
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
        validate: |o, causes| {
            job_spec(&o["spec"], "spec", causes);
            let selector = Selector::from_object(&o["spec"]["selector"]);
            let labels = &o["spec"]["template"]["metadata"]["labels"];
            if !selector.matches_labels(|key| labels[key].as_str()) {
                let why = "`selector` does not match template `labels`";
                causes.push(Cause::invalid("spec.template.metadata.labels", labels, why));
            }
        },
        validate_update: |new, old, causes| {
            let (spec, before) = (&new["spec"], &old["spec"]);
            let elastic =
                spec["completionMode"] == "Indexed" && spec["completions"] == spec["parallelism"];
            if spec["completions"] != before["completions"] && !elastic {
                let value = &spec["completions"];
                causes.push(Cause::invalid(
                    "spec.completions",
                    value,
                    "field is immutable",
                ));
            }
            let may_move = before["suspend"] == json!(true) && old["status"]["startTime"].is_null();
            for field in [
                "selector",
                "template",
                "completionMode",
                "podFailurePolicy",
                "backoffLimitPerIndex",
            ] {
                if spec[field] != before[field] && !(field == "template" && may_move) {
                    let path = format!("spec.{field}");
                    causes.push(Cause::invalid(path, &spec[field], "field is immutable"));
                }
            }
        },
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

fn job_spec(spec: &Value, path: &str, causes: &mut Causes) {
    for field in [
        "parallelism",
        "completions",
        "backoffLimit",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
    ] {
        at_least(spec, path, field, 0, causes);
    }
    one_of(
        spec,
        path,
        "completionMode",
        &["NonIndexed", "Indexed"],
        causes,
    );
    if spec["completionMode"] == "Indexed" && spec["completions"].is_null() {
        let why = "when completion mode is Indexed";
        causes.push(Cause::required(format!("{path}.completions"), why));
    }
    label_selector(&spec["selector"], &format!("{path}.selector"), causes);
    let pod = &spec["template"]["spec"];
    template::validate_spec(pod, &format!("{path}.template.spec"), causes);
    if pod["restartPolicy"]
        .as_str()
        .is_none_or(|policy| policy == "Always")
    {
        let field = format!("{path}.template.spec.restartPolicy");
        let why = "valid values: \"OnFailure\", \"Never\"";
        causes.push(Cause::required(field, why));
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
