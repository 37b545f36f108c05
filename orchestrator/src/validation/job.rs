//! Jobs and CronJobs.

use serde_json::Value;

use super::{At, pod_template};
use crate::cache::selector::Selector;
use crate::resource::Causes;
use crate::schedule::{self, Schedule};
use crate::status::Cause;

/// Names of jobs made by a CronJob are 11 characters longer than its own.
const CRON_JOB_NAME_MAX: usize = 52;

/// Job.
pub fn job(object: &Value, causes: &mut Causes) {
    let spec = At::root(object).field("spec");
    job_spec(&spec, causes);
    let selector = spec.field("selector");
    if selector.value.is_object() {
        selector.selector(causes);
        let labels = spec.field("template").field("metadata").field("labels");
        let get = |key: &str| labels.value.get(key).and_then(Value::as_str);
        if !Selector::from_object(selector.value).matches_labels(get) {
            labels.invalid("`selector` does not match template `labels`", causes);
        }
    } else if spec.field("manualSelector").flag() {
        causes.push(Cause::required(&selector.path, ""));
    }
}

fn job_spec(spec: &At<'_>, causes: &mut Causes) {
    for number in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        spec.field(number).not_negative(causes);
    }
    let mode = spec.field("completionMode");
    mode.choose_if_set(&["Indexed", "NonIndexed"], causes);
    let completions = spec.field("completions");
    if mode.text() == "Indexed" {
        let parallelism = spec.field("parallelism");
        if completions.int().is_none() {
            causes.push(Cause::required(
                &completions.path,
                &format!("when completion mode is {}", mode.text()),
            ));
        }
        if parallelism.int().is_some_and(|count| count > 100_000) {
            let why = "must be less than or equal to 100000 when completion mode is Indexed";
            parallelism.invalid(why, causes);
        }
    } else if spec.field("backoffLimitPerIndex").is_set() {
        let at = spec.field("backoffLimitPerIndex");
        at.invalid("requires indexed completion mode", causes);
    }
    let template = spec.field("template");
    pod_template(template.value, &template.path, causes);
    let policy = template.field("spec").field("restartPolicy");
    // "Always" is what a template that says nothing has been given.
    if policy.text() == "Always" {
        let supported = &["OnFailure", "Never"];
        causes.push(Cause::new(
            "FieldValueRequired",
            &policy.path,
            format!(
                "Required value: valid values: {:?}, {:?}",
                supported[0], supported[1]
            ),
        ));
    }
    failure_policy(spec, policy.text(), causes);
    spec.field("podReplacementPolicy")
        .choose_if_set(&["Failed", "TerminatingOrFailed"], causes);
}

fn failure_policy(spec: &At<'_>, restart: &str, causes: &mut Causes) {
    let policy = spec.field("podFailurePolicy");
    if !policy.value.is_object() {
        return;
    }
    if restart != "Never" {
        let at = spec.field("template").field("spec").field("restartPolicy");
        at.invalid(
            "only \"Never\" is supported when podFailurePolicy is specified",
            causes,
        );
    }
    for rule in policy.field("rules").items() {
        rule.field("action")
            .choose(&["Count", "FailIndex", "FailJob", "Ignore"], causes);
        let codes = rule.field("onExitCodes");
        let conditions = rule.field("onPodConditions");
        match (codes.value.is_object(), conditions.is_set()) {
            (true, true) => rule.invalid(
                "specifying both OnExitCodes and OnPodConditions is not supported",
                causes,
            ),
            (false, false) => rule.invalid(
                "specifying one of OnExitCodes and OnPodConditions is required",
                causes,
            ),
            _ => {}
        }
        if codes.value.is_object() {
            codes.field("operator").choose(&["In", "NotIn"], causes);
            if !codes.field("values").is_set() {
                codes
                    .field("values")
                    .invalid("at least one value is required", causes);
            }
        }
        for condition in conditions.items() {
            condition.field("type").qualified_name(causes);
            condition
                .field("status")
                .choose(&["False", "True", "Unknown"], causes);
        }
    }
}

/// A change of a Job.
pub fn job_update(new: &Value, old: &Value, causes: &mut Causes) {
    let spec = At::root(new).field("spec");
    let before = &old["spec"];
    // An indexed job may grow or shrink if all its pods may run at once.
    let elastic = before["completionMode"] == "Indexed"
        && spec.field("completions").value == spec.field("parallelism").value;
    if !elastic {
        spec.field("completions")
            .unchanged(&before["completions"], causes);
    }
    // Labels that tie pods to the job are written by the server, before the job starts.
    let suspended = before["suspend"] == true && old["status"].get("startTime").is_none();
    spec.field("selector")
        .unchanged(&before["selector"], causes);
    for field in [
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
    ] {
        spec.field(field).unchanged(&before[field], causes);
    }
    let template = spec.field("template");
    if suspended {
        let without = |template: &Value| {
            let mut template = template.clone();
            if let Some(map) = template.as_object_mut() {
                map.remove("metadata");
            }
            for field in ["nodeSelector", "tolerations", "affinity", "schedulingGates"] {
                if let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) {
                    spec.remove(field);
                }
            }
            template
        };
        if without(template.value) != without(&before["template"]) {
            template.unchanged(&before["template"], causes);
        }
    } else {
        template.unchanged(&before["template"], causes);
    }
}

/// CronJob.
pub fn cron_job(object: &Value, causes: &mut Causes) {
    let name = At::root(object).field("metadata").field("name");
    if name.text().len() > CRON_JOB_NAME_MAX {
        name.invalid(
            format!("must be no more than {CRON_JOB_NAME_MAX} characters"),
            causes,
        );
    }
    let spec = At::root(object).field("spec");
    let schedule = spec.field("schedule");
    if schedule.require(causes) {
        if schedule.text().contains("TZ") {
            let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            schedule.invalid(why, causes);
        } else if let Err(error) = Schedule::parse(schedule.text()) {
            schedule.invalid(error.to_string(), causes);
        }
    }
    let zone = spec.field("timeZone");
    if zone.value.is_string() {
        let name = zone.text();
        if name.is_empty() {
            zone.invalid("timeZone must be nil or non-empty string", causes);
        } else if name.eq_ignore_ascii_case("local") {
            zone.invalid(
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
                causes,
            );
        } else if schedule::zone(name).is_none() {
            zone.invalid(format!("unknown time zone {name}"), causes);
        }
    }
    for number in [
        "startingDeadlineSeconds",
        "successfulJobsHistoryLimit",
        "failedJobsHistoryLimit",
    ] {
        spec.field(number).not_negative(causes);
    }
    spec.field("concurrencyPolicy")
        .choose(&["Allow", "Forbid", "Replace"], causes);
    let job = spec.field("jobTemplate").field("spec");
    if job.field("manualSelector").flag() {
        let at = job.field("manualSelector");
        at.choose_if_set(&["nil", "false"], causes);
    }
    job_spec(&job, causes);
}
