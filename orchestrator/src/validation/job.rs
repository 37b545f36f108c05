//! Jobs and CronJobs.

use serde_json::Value;

use super::{At, pod_template};
use crate::cache::selector::Selector;
use crate::resource::Causes;
use crate::schedule::{self, Schedule};
use crate::status::Cause;

/// Names of jobs made by a CronJob are 11 characters longer than its own.
const CRON_JOB_NAME_MAX: usize = 52;

/// Completions above which an indexed Job is bound more closely.
const INDEXES_MANY: i64 = 100_000;
/// Pods at a time, and lost indexes, of a Job with so many completions.
const INDEXES_OF_MANY: i64 = 10_000;
/// Rules of a failure or success policy.
const RULES_MAX: usize = 20;
/// Exit codes of a rule.
const EXIT_CODES_MAX: usize = 255;

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
    if mode.text() == "Indexed" {
        indexed(spec, causes);
    } else {
        for field in ["backoffLimitPerIndex", "successPolicy"] {
            let at = spec.field(field);
            if at.is_set() {
                at.invalid("requires indexed completion mode", causes);
            }
        }
    }
    let lost = spec.field("maxFailedIndexes");
    let limit = spec.field("backoffLimitPerIndex");
    if lost.is_set() && !limit.is_set() {
        let why = "when maxFailedIndexes is specified";
        causes.push(Cause::required(&limit.path, why));
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
    let replacement: &[&str] = if spec.field("podFailurePolicy").is_set() {
        &["Failed"]
    } else {
        &["Failed", "TerminatingOrFailed"]
    };
    spec.field("podReplacementPolicy")
        .choose_if_set(replacement, causes);
}

/// What an indexed Job must and may say.
fn indexed(spec: &At<'_>, causes: &mut Causes) {
    let (completions, parallelism) = (spec.field("completions"), spec.field("parallelism"));
    let Some(all) = completions.int() else {
        let why = "when completion mode is Indexed";
        causes.push(Cause::required(&completions.path, why));
        return;
    };
    if parallelism.int().is_some_and(|count| count > INDEXES_MANY) {
        let why = "must be less than or equal to 100000 when completion mode is Indexed";
        parallelism.invalid(why, causes);
    }
    let lost = spec.field("maxFailedIndexes");
    if lost.int().is_some_and(|lost| lost > all) {
        lost.invalid("must be less than or equal to completions", causes);
    }
    if spec.field("backoffLimitPerIndex").is_set() && all > INDEXES_MANY {
        if !lost.is_set() {
            let why = "must be specified when completions is above 100000";
            causes.push(Cause::required(&lost.path, why));
        }
        for count in [&parallelism, &lost] {
            if count.int().is_some_and(|count| count > INDEXES_OF_MANY) {
                let why = "must be less than or equal to 10000 when completions are above 100000 \
                     and used with backoff limit per index";
                count.invalid(why, causes);
            }
        }
    }
    success_policy(&spec.field("successPolicy"), all, causes);
}

fn success_policy(policy: &At<'_>, completions: i64, causes: &mut Causes) {
    if !policy.is_set() {
        return;
    }
    let rules = policy.field("rules");
    if !rules.is_set() {
        let why = "at least one rules must be specified when the successPolicy is specified";
        causes.push(Cause::required(&rules.path, why));
    }
    too_many(&rules, RULES_MAX, causes);
    for rule in rules.items() {
        let (count, indexes) = (rule.field("succeededCount"), rule.field("succeededIndexes"));
        count.not_negative(causes);
        if !count.is_set() && !indexes.value.is_string() {
            let why = "at least one of succeededCount or succeededIndexes must be specified";
            causes.push(Cause::required(&rule.path, why));
        }
        let mut most = completions;
        let mut what = "the number of specified completions";
        if indexes.value.is_string() {
            match indexes_named(indexes.text(), completions) {
                Ok(named) => {
                    most = named;
                    what = "the number of indexes in the specified succeededIndexes field";
                }
                Err(why) => {
                    indexes.invalid(format!("error parsing succeededIndexes: {why}"), causes);
                }
            }
        }
        if count.int().is_some_and(|count| count > most) {
            count.invalid(
                format!("must be less than or equal to {most} ({what})"),
                causes,
            );
        }
    }
}

/// How many indexes `0,2-4` names; why not, if it is no such list.
fn indexes_named(text: &str, completions: i64) -> Result<i64, String> {
    let (mut named, mut last) = (0, -1);
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            let number = text.parse::<i64>().ok().filter(|number| *number >= 0);
            number.ok_or_else(|| format!("cannot convert string to integer for index: {text:?}"))
        };
        let (from, to) = (number(from)?, number(to)?);
        if from >= completions || to >= completions {
            return Err(format!("too large index: {part:?}"));
        }
        if from <= last || to < from {
            return Err(format!(
                "non-increasing order, previous: {last}, current: {from}"
            ));
        }
        named += to - from + 1;
        last = to;
    }
    Ok(named)
}

fn too_many(list: &At<'_>, most: usize, causes: &mut Causes) {
    let count = list.value.as_array().map_or(0, Vec::len);
    if count > most {
        let text = format!("Too many: {count}: must have at most {most} items");
        causes.push(Cause::new("FieldValueTooMany", &list.path, text));
    }
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
    too_many(&policy.field("rules"), RULES_MAX, causes);
    let per_index = spec.field("backoffLimitPerIndex").is_set();
    for rule in policy.field("rules").items() {
        let action = rule.field("action");
        action.choose(&["Count", "FailIndex", "FailJob", "Ignore"], causes);
        if action.text() == "FailIndex" && !per_index {
            action.invalid("requires the backoffLimitPerIndex to be set", causes);
        }
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
            exit_codes(spec, &codes, causes);
        }
        for condition in conditions.items() {
            condition.field("type").qualified_name(causes);
            condition
                .field("status")
                .choose(&["False", "True", "Unknown"], causes);
        }
    }
}

fn exit_codes(spec: &At<'_>, codes: &At<'_>, causes: &mut Causes) {
    let operator = codes.field("operator");
    operator.choose(&["In", "NotIn"], causes);
    let name = codes.field("containerName");
    let pod = spec.field("template").field("spec");
    let of = |list: &str| {
        pod.field(list)
            .items()
            .map(|c| c.field("name").text().to_owned())
    };
    if name.is_set()
        && !of("containers")
            .chain(of("initContainers"))
            .any(|known| known == name.text())
    {
        let why = "must be one of the container or initContainer names in the pod template";
        name.invalid(why, causes);
    }
    let values = codes.field("values");
    if !values.is_set() {
        values.invalid("at least one value is required", causes);
    }
    too_many(&values, EXIT_CODES_MAX, causes);
    let mut last = None;
    for value in values.items() {
        if value.int() == Some(0) && operator.text() == "In" {
            value.invalid("must not be 0 for the In operator", causes);
        }
        if value.int() == last && last.is_some() {
            value.duplicate(causes);
        } else if value.int() < last {
            values.invalid("must be ordered", causes);
            break;
        }
        last = value.int();
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
        "successPolicy",
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
